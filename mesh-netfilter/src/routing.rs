//! What interception needs beside rules: addresses and routes, over rtnetlink.
//!
//! IPv6 interception needs `::6` on the loopback interface (IPv4 has all of 127/8 there), and transparent proxying needs
//! marked packets routed to this machine. Everything is installed once, found again, and removed again.

use std::fmt;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::SockProtocol;

use crate::interception::Interception;
use crate::net::Family;
use crate::netlink::NetlinkError;
use crate::netlink::socket::Socket;
use crate::netlink::wire::{Attributes, Message, Messages};

const REQUEST: u16 = 1;
const ACK: u16 = 4;
const DUMP: u16 = 0x300;
const CREATE_NEW: u16 = 0x400 | 0x200;
const NEW_LINK: u16 = 16;
const GET_LINK: u16 = 18;
const NEW_ADDRESS: u16 = 20;
const GET_ADDRESS: u16 = 22;
const NEW_ROUTE: u16 = 24;
const GET_ROUTE: u16 = 26;
const NEW_RULE: u16 = 32;
const GET_RULE: u16 = 34;
/// From "new" to "delete".
const DELETE: u16 = 1;
const UP: u32 = 1;
/// The loopback interface's index; it is the first of every network namespace.
const LOOPBACK: u32 = 1;
/// How often the route to a new address is looked for at once; it is there after a few.
const QUICK_LOOKS: usize = 200;
/// How often it is looked for then, on a machine whose kernel has much else to do, and how long it is left alone between.
const SLOW_LOOKS: usize = 10_000;
const BETWEEN_LOOKS: Duration = Duration::from_millis(1);
const LENGTH_OF_ADDRESS: usize = 8;
const LENGTH_OF_ROUTE: usize = 12;

/// One thing beside the rules that an interception needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Need {
    /// `::6/128` on the loopback interface: the source of the proxy's connections to its application.
    LoopbackAddress,
    /// Packets with this mark are routed by this table.
    MarkRule {
        /// For packets of this family.
        family: Family,
        /// The mark.
        mark: u32,
        /// The table.
        table: u32,
    },
    /// Everything in this table is local.
    LocalRoute {
        /// For packets of this family.
        family: Family,
        /// The table.
        table: u32,
    },
}

impl fmt::Display for Need {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::LoopbackAddress => f.write_str("address ::6/128 dev lo"),
            Self::MarkRule { family, mark, table } => write!(f, "{family} rule fwmark {mark} lookup {table}"),
            Self::LocalRoute { family, table } => {
                write!(f, "{family} route local default dev lo table {table}")
            }
        }
    }
}

/// Why an address or route could not be read or changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RoutingError {
    /// The socket failed.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// The kernel refused one change.
    #[error("{what}: {errno}{}", hint(*errno))]
    Refused {
        /// What it was.
        what: String,
        /// Why.
        errno: Errno,
    },
}

impl RoutingError {
    /// A stable label.
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Netlink(error) => error.reason(),
            Self::Refused { .. } => "refused",
        }
    }
}

const fn hint(errno: Errno) -> &'static str {
    match errno {
        Errno::EPERM => ": CAP_NET_ADMIN is missing",
        Errno::EACCES | Errno::EOPNOTSUPP | Errno::EAFNOSUPPORT => {
            ": IPv6 is switched off (net.ipv6.conf.lo.disable_ipv6) or not in this kernel"
        }
        _ => "",
    }
}

/// Everything beside the rules that this intent needs.
pub fn needs(intent: &Interception) -> Vec<Need> {
    let mut needs = Vec::new();
    if intent.ipv6 {
        needs.push(Need::LoopbackAddress);
    }
    if let Some((mark, table)) = intent.policy_route() {
        for family in Family::BOTH.into_iter().filter(|family| *family == Family::V4 || intent.ipv6) {
            needs.push(Need::LocalRoute { family, table });
            needs.push(Need::MarkRule { family, mark, table });
        }
    }
    needs
}

/// The addresses and routes of the network namespace in which this was opened.
#[derive(Debug)]
pub struct Routing {
    socket: Socket,
}

impl Routing {
    /// Opens rtnetlink in the calling thread's network namespace.
    ///
    /// # Errors
    /// When the kernel refuses the socket.
    pub fn open() -> Result<Self, RoutingError> {
        Ok(Self { socket: Socket::open(SockProtocol::NetlinkRoute)? })
    }

    /// Switches the loopback interface on. Returns whether it was off.
    ///
    /// # Errors
    /// When the kernel cannot be read or refuses.
    pub fn loopback_up(&mut self) -> Result<bool, RoutingError> {
        let request = |sequence| {
            let mut out = Messages::default();
            out.begin(GET_LINK, REQUEST, sequence, &link(0, 0));
            out
        };
        let flags =
            |message: Message<'_>| message.payload.get(8..)?.first_chunk().copied().map(u32::from_ne_bytes);
        if self.socket.get(request, flags)? & UP != 0 {
            return Ok(false);
        }
        self.change("loopback interface up".into(), |out, sequence| {
            out.begin(NEW_LINK, REQUEST | ACK, sequence, &link(UP, UP));
        })?;
        Ok(true)
    }

    /// Which of these are not there.
    ///
    /// # Errors
    /// When the kernel cannot be read.
    pub fn missing(&mut self, needs: &[Need]) -> Result<Vec<Need>, RoutingError> {
        let mut missing = Vec::new();
        for need in needs {
            if self.find(*need)?.is_none() {
                missing.push(*need);
            }
        }
        Ok(missing)
    }

    /// Installs what is missing; returns how many that were.
    ///
    /// # Errors
    /// When the kernel cannot be read or refuses.
    pub fn apply(&mut self, needs: &[Need]) -> Result<usize, RoutingError> {
        let missing = self.missing(needs)?;
        for need in &missing {
            self.change(need.to_string(), |out, sequence| write(*need, None, 0, CREATE_NEW, out, sequence))?;
            if *need == Need::LoopbackAddress {
                self.wait_for_address()?;
            }
        }
        Ok(missing.len())
    }

    /// The kernel routes to a new IPv6 address a moment later, from a work queue; until then answers to it are lost.
    fn wait_for_address(&mut self) -> Result<(), RoutingError> {
        for look in 0..QUICK_LOOKS + SLOW_LOOKS {
            let request = |sequence| {
                let mut out = Messages::default();
                let mut fixed = vec![0; LENGTH_OF_ROUTE];
                fixed[0] = number(Family::V6);
                out.begin(GET_ROUTE, REQUEST | DUMP, sequence, &fixed);
                out
            };
            let found = self.socket.dump(request, |message| {
                let (fixed, rest) = message.payload.split_at_checked(LENGTH_OF_ROUTE)?;
                let here = fixed[7] == TYPE_LOCAL && Attributes(rest).get(RTA_TO) == Some(&SIX[..]);
                here.then_some(())
            })?;
            if !found.is_empty() {
                return Ok(());
            }
            if look < QUICK_LOOKS {
                std::thread::yield_now();
            } else {
                std::thread::park_timeout(BETWEEN_LOOKS);
            }
        }
        Err(RoutingError::Refused { what: Need::LoopbackAddress.to_string(), errno: Errno::ETIMEDOUT })
    }

    /// Removes what is there; returns how many that were.
    ///
    /// # Errors
    /// When the kernel cannot be read or refuses.
    pub fn clean(&mut self, needs: &[Need]) -> Result<usize, RoutingError> {
        let mut removed = 0;
        for need in needs.iter().rev() {
            // The kernel takes the same rule any number of times; earlier tools did that.
            while let Some(found) = self.find(*need)? {
                self.change(need.to_string(), |out, sequence| {
                    write(*need, Some(found), DELETE, 0, out, sequence);
                })?;
                removed += 1;
            }
        }
        Ok(removed)
    }

    fn find(&mut self, need: Need) -> Result<Option<Found>, RoutingError> {
        let (kind, family, length) = match need {
            Need::LoopbackAddress => (GET_ADDRESS, Family::V6, LENGTH_OF_ADDRESS),
            Need::MarkRule { family, .. } => (GET_RULE, family, LENGTH_OF_ROUTE),
            Need::LocalRoute { family, .. } => (GET_ROUTE, family, LENGTH_OF_ROUTE),
        };
        let request = |sequence| {
            let mut out = Messages::default();
            let mut fixed = vec![0; length];
            fixed[0] = number(family);
            out.begin(kind, REQUEST | DUMP, sequence, &fixed);
            out
        };
        let found = self.socket.dump(request, |message| matches(need, message.payload, length))?;
        Ok(found.into_iter().next())
    }

    fn change(&mut self, what: String, build: impl FnOnce(&mut Messages, u32)) -> Result<(), RoutingError> {
        let sequence = self.socket.take_sequence(1);
        let mut out = Messages::default();
        build(&mut out, sequence);
        match self.socket.request(&out, sequence, sequence)?.first() {
            None => Ok(()),
            // Somebody was faster.
            Some(refused) if refused.errno == Errno::EEXIST => Ok(()),
            Some(refused) => Err(RoutingError::Refused { what, errno: refused.errno }),
        }
    }
}

const fn number(family: Family) -> u8 {
    match family {
        Family::V4 => 2,
        Family::V6 => 10,
    }
}

/// `ifinfomsg` of the loopback interface.
fn link(flags: u32, change: u32) -> Vec<u8> {
    [0, LOOPBACK, flags, change].into_iter().flat_map(u32::to_ne_bytes).collect()
}

/// `::6`.
const SIX: [u8; 16] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 6];
const SCOPE_HOST: u8 = 254;
/// `IFA_F_NODAD`: the address can be used at once.
const NO_DETECTION: u8 = 2;
const TYPE_LOCAL: u8 = 2;
const PROTOCOL_STATIC: u8 = 4;
const ACTION_TABLE: u8 = 1;
const FRA_PRIORITY: u16 = 6;
const FRA_TABLE: u16 = 15;
const FRA_MARK: u16 = 10;
/// What a rule can ask for beside a mark: source, destination, interfaces, tunnel, device of a VRF, users, protocol, ports, service
/// class, flow label.
const FRA_SELECTORS: [u16; 12] = [1, 2, 3, 12, 17, 19, 20, 22, 23, 24, 25, 26];
const FRA_MASK: u16 = 16;
const RTA_TABLE: u16 = 15;
const RTA_OUT: u16 = 4;
const RTA_TO: u16 = 1;

/// What tells one that is there from others like it.
#[derive(Debug, Clone, Copy)]
struct Found {
    /// A rule's, by which the kernel tells it from rules that also ask for something else.
    priority: u32,
}

fn write(need: Need, found: Option<Found>, delete: u16, flags: u16, out: &mut Messages, sequence: u32) {
    // Tables above 255 are only in the attribute.
    let short = |table: u32| u8::try_from(table).unwrap_or(0);
    let flags = REQUEST | ACK | flags;
    match need {
        Need::LoopbackAddress => {
            let mut fixed = vec![number(Family::V6), 128, NO_DETECTION, SCOPE_HOST];
            fixed.extend(LOOPBACK.to_ne_bytes());
            out.begin(NEW_ADDRESS + delete, flags, sequence, &fixed);
            out.bytes(1, &SIX);
            out.bytes(2, &SIX);
        }
        Need::MarkRule { family, mark, table } => {
            let fixed = [number(family), 0, 0, 0, short(table), 0, 0, ACTION_TABLE, 0, 0, 0, 0];
            out.begin(NEW_RULE + delete, flags, sequence, &fixed);
            out.bytes(FRA_MARK, &mark.to_ne_bytes());
            out.bytes(FRA_MASK, &u32::MAX.to_ne_bytes());
            out.bytes(FRA_TABLE, &table.to_ne_bytes());
            if let Some(Found { priority }) = found {
                out.bytes(FRA_PRIORITY, &priority.to_ne_bytes());
            }
        }
        Need::LocalRoute { family, table } => {
            let fixed =
                [number(family), 0, 0, 0, short(table), PROTOCOL_STATIC, SCOPE_HOST, TYPE_LOCAL, 0, 0, 0, 0];
            out.begin(NEW_ROUTE + delete, flags, sequence, &fixed);
            out.bytes(RTA_TABLE, &table.to_ne_bytes());
            out.bytes(RTA_OUT, &LOOPBACK.to_ne_bytes());
        }
    }
}

fn matches(need: Need, payload: &[u8], length: usize) -> Option<Found> {
    let (fixed, rest) = payload.split_at_checked(length)?;
    let attributes = Attributes(rest);
    let word = |kind: u16| {
        attributes.get(kind).and_then(|value| value.first_chunk().copied()).map(u32::from_ne_bytes)
    };
    let same = match need {
        Need::LoopbackAddress => {
            fixed[4..8] == LOOPBACK.to_ne_bytes()
                && attributes.get(1).or_else(|| attributes.get(2)) == Some(&SIX[..])
        }
        Need::MarkRule { family, mark, table } => {
            fixed[0] == number(family)
                && word(FRA_MARK) == Some(mark)
                && word(FRA_MASK).is_none_or(|mask| mask == u32::MAX)
                && word(FRA_TABLE) == Some(table)
                && asks_for_the_mark_alone(fixed, attributes)
        }
        Need::LocalRoute { family, table } => {
            fixed[0] == number(family)
                && fixed[1] == 0
                && fixed[7] == TYPE_LOCAL
                && word(RTA_TABLE) == Some(table)
                && word(RTA_OUT) == Some(LOOPBACK)
        }
    };
    same.then(|| Found { priority: word(FRA_PRIORITY).unwrap_or(0) })
}

/// Whether a rule is for all packets of its mark: addresses, interfaces, ports, users and what else it may ask for are those
/// of somebody else's rule.
fn asks_for_the_mark_alone(fixed: &[u8], attributes: Attributes<'_>) -> bool {
    // Destination and source length, type of service, action, and its flags with "not" among them.
    let plain = fixed[1..4] == [0, 0, 0] && fixed[7] == ACTION_TABLE && fixed[8..12] == [0; 4];
    plain && !attributes.into_iter().any(|(kind, _)| FRA_SELECTORS.contains(&kind))
}
