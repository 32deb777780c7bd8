//! The words that intent and rules share: families, ports, interfaces, owners, protocols.

use std::fmt;
use std::str::FromStr;

/// An IP version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both, in the order in which rules are written.
    pub const BOTH: [Self; 2] = [Self::V4, Self::V6];

    /// The family of an address. A v4-mapped IPv6 address is IPv6 here: that is what the packet says.
    pub const fn of(address: std::net::IpAddr) -> Self {
        match address {
            std::net::IpAddr::V4(_) => Self::V4,
            std::net::IpAddr::V6(_) => Self::V6,
        }
    }

    /// The family of a prefix.
    pub const fn of_net(net: &ipnet::IpNet) -> Self {
        match net {
            ipnet::IpNet::V4(_) => Self::V4,
            ipnet::IpNet::V6(_) => Self::V6,
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

/// An inclusive range of ports; a single port is a range of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PortRange {
    first: u16,
    last: u16,
}

impl PortRange {
    /// One port.
    pub const fn single(port: u16) -> Self {
        Self { first: port, last: port }
    }

    /// A range; `None` when `last < first`.
    pub const fn new(first: u16, last: u16) -> Option<Self> {
        if last < first { None } else { Some(Self { first, last }) }
    }

    /// The lowest port.
    pub const fn first(self) -> u16 {
        self.first
    }

    /// The highest port.
    pub const fn last(self) -> u16 {
        self.last
    }

    /// Whether the range is one port.
    pub const fn is_single(self) -> bool {
        self.first == self.last
    }

    /// Whether `port` is inside.
    pub const fn contains(self, port: u16) -> bool {
        self.first <= port && port <= self.last
    }

    /// Whether some port is in both.
    pub const fn overlaps(self, other: Self) -> bool {
        self.first <= other.last && other.first <= self.last
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_single() { write!(f, "{}", self.first) } else { write!(f, "{}:{}", self.first, self.last) }
    }
}

impl From<u16> for PortRange {
    fn from(port: u16) -> Self {
        Self::single(port)
    }
}

/// Why a word is not what it should be. The caller adds the field it stood in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct BadWord {
    /// What is wrong, as the end of a sentence.
    pub reason: &'static str,
}

const fn bad(reason: &'static str) -> BadWord {
    BadWord { reason }
}

/// A number as iptables reads it: decimal, `0x` hexadecimal or `0` octal.
pub(crate) fn number(word: &str) -> Option<u32> {
    if let Some(hex) = word.strip_prefix("0x").or_else(|| word.strip_prefix("0X")) {
        return plain(hex, 16);
    }
    match word.strip_prefix('0') {
        Some(octal) if !octal.is_empty() => plain(octal, 8),
        _ => plain(word, 10),
    }
}

fn plain(digits: &str, radix: u32) -> Option<u32> {
    // `from_str_radix` would also take a sign.
    if digits.starts_with(['+', '-']) { None } else { u32::from_str_radix(digits, radix).ok() }
}

impl FromStr for PortRange {
    type Err = BadWord;

    /// `8080`, `8000:8010`, `:1023`, `1024:`; numbers in any notation iptables takes. Blanks around are ignored.
    fn from_str(word: &str) -> Result<Self, BadWord> {
        let port = |text: &str| {
            number(text)
                .and_then(|port| u16::try_from(port).ok())
                .ok_or(bad("is not a port number between 0 and 65535"))
        };
        let word = word.trim();
        let Some((first, last)) = word.split_once(':') else { return port(word).map(Self::single) };
        let first = if first.is_empty() { 0 } else { port(first)? };
        let last = if last.is_empty() { u16::MAX } else { port(last)? };
        Self::new(first, last).ok_or(bad("is a port range that ends before it begins"))
    }
}

/// A network interface name, or a prefix of names (`eth+`, as iptables writes it).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Interface(String);

impl Interface {
    /// The loopback interface.
    pub fn loopback() -> Self {
        Self("lo".to_owned())
    }

    /// The name as written, with its `+`.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The prefix when this stands for several interfaces.
    pub fn prefix(&self) -> Option<&str> {
        self.0.strip_suffix('+')
    }

    /// Whether an interface of this name is meant.
    pub fn matches(&self, name: &str) -> bool {
        self.prefix().map_or(name == self.0, |prefix| name.starts_with(prefix))
    }
}

impl fmt::Display for Interface {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Interface {
    type Err = BadWord;

    /// At most 15 bytes (`IFNAMSIZ` less its terminator), no blanks, quotes or slashes.
    fn from_str(word: &str) -> Result<Self, BadWord> {
        let word = word.trim();
        match word {
            "" => return Err(bad("is an empty interface name")),
            "." | ".." => return Err(bad("is not an interface name")),
            _ => {}
        }
        if word.len() > 15 {
            return Err(bad("is longer than the 15 bytes of an interface name"));
        }
        if word.starts_with(['-', '!']) {
            return Err(bad("begins like an option"));
        }
        if !word.bytes().all(|byte| byte.is_ascii_graphic() && !b"/\"'\\`;{}".contains(&byte)) {
            return Err(bad("has a character that no interface name can have"));
        }
        Ok(Self(word.to_owned()))
    }
}

/// A user or group, as `-m owner` takes it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Owner {
    /// A numeric id.
    Id(u32),
    /// An inclusive range of ids.
    Range(u32, u32),
    /// A name, resolved in the user or group database when the rules are applied.
    Name(String),
}

impl Owner {
    /// Whether the numeric id is meant. A name that was not resolved is no id.
    pub const fn contains(&self, id: u32) -> bool {
        match self {
            Self::Id(own) => *own == id,
            Self::Range(first, last) => *first <= id && id <= *last,
            Self::Name(_) => false,
        }
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Id(id) => write!(f, "{id}"),
            Self::Range(first, last) => write!(f, "{first}-{last}"),
            Self::Name(name) => f.write_str(name),
        }
    }
}

impl From<u32> for Owner {
    fn from(id: u32) -> Self {
        Self::Id(id)
    }
}

impl FromStr for Owner {
    type Err = BadWord;

    /// `1337`, `1000-1999` or a name.
    fn from_str(word: &str) -> Result<Self, BadWord> {
        let word = word.trim();
        if let Some(id) = number(word) {
            // The kernel keeps -1 for "no id".
            return if id == u32::MAX { Err(bad("is not a valid id")) } else { Ok(Self::Id(id)) };
        }
        if let Some((first, last)) = word.split_once('-')
            && let (Some(first), Some(last)) = (number(first), number(last))
        {
            return if first <= last && last != u32::MAX {
                Ok(Self::Range(first, last))
            } else {
                Err(bad("is not a valid range of ids"))
            };
        }
        let first = word.bytes().next().ok_or(bad("is empty"))?;
        let tail = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.$@".contains(&byte);
        if (first.is_ascii_alphabetic() || first == b'_') && word.len() <= 256 && word.bytes().all(tail) {
            Ok(Self::Name(word.to_owned()))
        } else {
            Err(bad("is neither an id nor a name"))
        }
    }
}

/// A transport protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// TCP (6).
    Tcp,
    /// UDP (17).
    Udp,
    /// ICMP (1) or, in IPv6, ICMPv6 (58), by number.
    Other(u8),
}

impl Protocol {
    /// The number in the IP header.
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Other(number) => number,
        }
    }

    /// The protocol with this number.
    pub const fn from_number(number: u8) -> Self {
        match number {
            6 => Self::Tcp,
            17 => Self::Udp,
            other => Self::Other(other),
        }
    }

    /// Whether packets of this protocol carry ports at the usual place.
    pub const fn has_ports(self) -> bool {
        matches!(self.number(), 6 | 17 | 33 | 132 | 136)
    }
}

/// The names that `iptables-save` uses where the machine's list of protocols is the usual one.
const PROTOCOLS: [(&str, u8); 17] = [
    ("tcp", 6),
    ("udp", 17),
    ("icmp", 1),
    ("ipv6-icmp", 58),
    ("igmp", 2),
    ("ipencap", 4),
    ("dccp", 33),
    ("ipv6", 41),
    ("gre", 47),
    ("esp", 50),
    ("ah", 51),
    ("ospf", 89),
    ("pim", 103),
    ("vrrp", 112),
    ("l2tp", 115),
    ("sctp", 132),
    ("udplite", 136),
];

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match PROTOCOLS.iter().find(|(_, number)| *number == self.number()) {
            Some((name, _)) => f.write_str(name),
            None => write!(f, "{}", self.number()),
        }
    }
}

impl FromStr for Protocol {
    type Err = BadWord;

    /// A name or a number.
    fn from_str(word: &str) -> Result<Self, BadWord> {
        let name = match word.to_ascii_lowercase().as_str() {
            "icmpv6" => "ipv6-icmp".to_owned(),
            "ospfigp" => "ospf".to_owned(),
            "ipip" | "ipv4" => "ipencap".to_owned(),
            name => name.to_owned(),
        };
        let known = PROTOCOLS.iter().find(|(known, _)| *known == name).map(|(_, number)| *number);
        let found = known.or_else(|| number(&name).and_then(|number| u8::try_from(number).ok()));
        found.map(Self::from_number).ok_or(bad("is not a protocol"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_read_as_iptables_reads_them() {
        for (word, want) in [
            ("80", Some((80, 80))),
            (" 90 ", Some((90, 90))),
            ("0x1F90", Some((8080, 8080))),
            ("010", Some((8, 8))),
            ("8000:8010", Some((8000, 8010))),
            (":1023", Some((0, 1023))),
            ("1024:", Some((1024, 65535))),
            ("0", Some((0, 0))),
            ("65536", None),
            ("-1", None),
            ("+1", None),
            ("http", None),
            ("9:8", None),
            ("", None),
            ("080", None),
        ] {
            let got = word.parse::<PortRange>().ok().map(|range| (range.first(), range.last()));
            assert_eq!(got, want, "{word:?}");
        }
    }

    #[test]
    fn owners_are_ids_ranges_or_names() {
        assert_eq!("1337".parse(), Ok(Owner::Id(1337)));
        assert_eq!("1-5".parse(), Ok(Owner::Range(1, 5)));
        assert_eq!("istio-proxy".parse(), Ok(Owner::Name("istio-proxy".into())));
        for wrong in ["", "4294967295", "5-1", "-j", "a b", "a;b", "1.5"] {
            assert!(wrong.parse::<Owner>().is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn interface_names_cannot_smuggle_options() {
        assert!("eth0".parse::<Interface>().is_ok());
        assert!(
            "vnet+".parse::<Interface>().is_ok_and(|name| name.matches("vnet7") && !name.matches("eth0"))
        );
        for wrong in ["", "-j", "!eth0", "sixteen-bytes-xx", "a b", "a/b", "a\"b", ".."] {
            assert!(wrong.parse::<Interface>().is_err(), "{wrong:?}");
        }
    }
}
