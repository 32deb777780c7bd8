//! A packet, as far as rules can see it.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use crate::net::{Family, Protocol};
use crate::ruleset::CtState;

/// Which way a packet goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Direction {
    /// It arrives at this machine.
    In,
    /// A local process sends it.
    Out,
}

/// A packet, as far as rules can see it.
///
/// Written and read as `tcp 10.0.0.5:40000 > 10.1.2.3:8080 out via eth0 uid 1000 gid 1000 mark 5 connmark 6 state NEW`,
/// where everything after the direction may be left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet {
    /// Which way it goes.
    pub direction: Direction,
    /// The transport protocol.
    pub protocol: Protocol,
    /// The source address.
    pub source: IpAddr,
    /// The source port; 0 where the protocol has none.
    pub source_port: u16,
    /// The destination address, of the same family.
    pub destination: IpAddr,
    /// The destination port; 0 where the protocol has none.
    pub destination_port: u16,
    /// The interface it came in by, or leaves by.
    pub interface: String,
    /// The user of the sending socket. `None` without a socket, as for what arrives.
    pub uid: Option<u32>,
    /// The group of the sending socket.
    pub gid: Option<u32>,
    /// Its mark.
    pub mark: u32,
    /// Its connection's mark.
    pub connmark: u32,
    /// What connection tracking says. Address translation is asked for new connections only.
    pub state: CtState,
}

/// Why text or bytes are not a packet.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidPacket {
    /// A word that is not what should stand there.
    #[error("{word:?} is not {expected}; write it like: tcp 10.0.0.5:40000 > 10.1.2.3:8080 out uid 1000")]
    Word {
        /// The word; empty at the end.
        word: String,
        /// What should stand there.
        expected: &'static str,
    },
    /// Source and destination are of different families.
    #[error("source and destination are of different families")]
    Families,
    /// Bytes that are no IP packet.
    #[error("byte {offset}: {reason}")]
    Bytes {
        /// Where.
        offset: usize,
        /// What is wrong.
        reason: &'static str,
    },
}

impl InvalidPacket {
    /// A stable label.
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Word { .. } => "bad_word",
            Self::Families => "mixed_families",
            Self::Bytes { .. } => "bad_bytes",
        }
    }
}

impl Packet {
    /// A packet about which nothing else is known: on `eth0` (on `lo` when a local process sends it to this machine), without
    /// owner or mark, the first of its connection. Source and destination are of one family.
    pub fn new(
        direction: Direction,
        protocol: Protocol,
        (source, source_port): (IpAddr, u16),
        (destination, destination_port): (IpAddr, u16),
    ) -> Self {
        let local = direction == Direction::Out && destination.is_loopback();
        Self {
            direction,
            protocol,
            source,
            source_port,
            destination,
            destination_port,
            interface: if local { "lo" } else { "eth0" }.to_owned(),
            uid: None,
            gid: None,
            mark: 0,
            connmark: 0,
            state: CtState::New,
        }
    }

    /// The IP version.
    pub const fn family(&self) -> Family {
        Family::of(self.destination)
    }
}

impl FromStr for Packet {
    type Err = InvalidPacket;

    fn from_str(text: &str) -> Result<Self, InvalidPacket> {
        let mut words = text.split_whitespace();
        let mut next = |expected| words.next().ok_or(InvalidPacket::Word { word: String::new(), expected });
        let wrong = |word: &str, expected| InvalidPacket::Word { word: word.to_owned(), expected };
        let word = next("a protocol")?;
        let protocol: Protocol = word.parse().map_err(|_| wrong(word, "a protocol"))?;
        let source = endpoint(next("a source")?, protocol)?;
        let word = next("\">\"")?;
        if word != ">" {
            return Err(wrong(word, "\">\""));
        }
        let destination = endpoint(next("a destination")?, protocol)?;
        if source.0.is_ipv4() != destination.0.is_ipv4() {
            return Err(InvalidPacket::Families);
        }
        let direction = match words.next() {
            Some("in") => Direction::In,
            Some("out") | None => Direction::Out,
            Some(word) => return Err(wrong(word, "\"in\" or \"out\"")),
        };
        let mut packet = Self::new(direction, protocol, source, destination);
        while let Some(word) = words.next() {
            let expected = match word {
                "via" => "an interface",
                "uid" => "a user id",
                "gid" => "a group id",
                "mark" | "connmark" => "a mark",
                "state" => "NEW, ESTABLISHED, RELATED, INVALID or UNTRACKED",
                other => return Err(wrong(other, "via, uid, gid, mark, connmark or state")),
            };
            let value = words.next().ok_or(InvalidPacket::Word { word: String::new(), expected })?;
            let number = || crate::net::number(value).ok_or_else(|| wrong(value, expected));
            match word {
                "via" => value.clone_into(&mut packet.interface),
                "uid" => packet.uid = Some(number()?),
                "gid" => packet.gid = Some(number()?),
                "mark" => packet.mark = number()?,
                "connmark" => packet.connmark = number()?,
                _ => {
                    let state =
                        CtState::ALL.into_iter().find(|state| state.as_str().eq_ignore_ascii_case(value));
                    packet.state = state.ok_or_else(|| wrong(value, expected))?;
                }
            }
        }
        // A socket has both owners; who names one only means the other to be somebody else.
        if packet.uid.is_some() || packet.gid.is_some() {
            packet.uid.get_or_insert(0);
            packet.gid.get_or_insert(0);
        }
        Ok(packet)
    }
}

/// `10.0.0.1:80`, `[::1]:80`, or an address alone.
fn endpoint(word: &str, protocol: Protocol) -> Result<(IpAddr, u16), InvalidPacket> {
    let wrong = || {
        let expected = if protocol.has_ports() { "an address with a port" } else { "an address" };
        InvalidPacket::Word { word: word.to_owned(), expected }
    };
    if let Ok(address) = word.parse::<std::net::SocketAddr>() {
        return if protocol.has_ports() { Ok((address.ip(), address.port())) } else { Err(wrong()) };
    }
    let address = word.strip_prefix('[').and_then(|word| word.strip_suffix(']')).unwrap_or(word);
    let address: IpAddr = address.parse().map_err(|_| wrong())?;
    if protocol.has_ports() { Err(wrong()) } else { Ok((address, 0)) }
}

impl fmt::Display for Packet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let endpoint = |f: &mut fmt::Formatter<'_>, address: IpAddr, port: u16| {
            if self.protocol.has_ports() {
                write!(f, "{}", std::net::SocketAddr::new(address, port))
            } else {
                write!(f, "{address}")
            }
        };
        write!(f, "{} ", self.protocol)?;
        endpoint(f, self.source, self.source_port)?;
        f.write_str(" > ")?;
        endpoint(f, self.destination, self.destination_port)?;
        let direction = match self.direction {
            Direction::In => "in",
            Direction::Out => "out",
        };
        write!(f, " {direction} via {}", self.interface)?;
        for (word, value) in [("uid", self.uid), ("gid", self.gid)] {
            if let Some(value) = value {
                write!(f, " {word} {value}")?;
            }
        }
        for (word, value) in [("mark", self.mark), ("connmark", self.connmark)] {
            if value != 0 {
                write!(f, " {word} {value:#x}")?;
            }
        }
        if self.state != CtState::New {
            write!(f, " state {}", self.state.as_str())?;
        }
        Ok(())
    }
}
