//! A packet's way through the rules: where it ends, and why.
//!
//! [`Ruleset::fate`] gives the end alone, without allocating; [`Ruleset::trace`] also every rule that was asked. Both walk
//! any [`Ruleset`]: ours, one read from text, or what the kernel holds.

mod describe;
mod explain;
mod packet;
#[cfg(feature = "raw-packets")]
mod raw;
mod walk;

use std::fmt;

use crate::ruleset::{Ruleset, TableKind};

pub use packet::{Direction, InvalidPacket, Packet};
pub(crate) use walk::holds_at_first;
use walk::{Silent, Walk};

/// Where a packet ends, and what it carries then.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fate {
    /// What happens to it.
    pub verdict: Verdict,
    /// Its mark.
    pub mark: u32,
    /// Its connection's mark.
    pub connmark: u32,
    /// The conntrack zone its connection is in.
    pub zone: u16,
    /// Whether every rule on the way could be decided. A rule with a condition that this crate does not model counts as
    /// not matching.
    pub certain: bool,
}

/// What happens to a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// It goes where it was going.
    Accepted,
    /// It goes nowhere.
    Dropped,
    /// It goes to this port of this machine.
    Redirected {
        /// The port.
        port: u16,
    },
    /// It goes to the socket on this port, addresses unchanged.
    Delivered {
        /// The port.
        port: u16,
    },
}

impl Verdict {
    /// The port of the proxy that gets the packet, if one does.
    pub const fn port(self) -> Option<u16> {
        match self {
            Self::Redirected { port } | Self::Delivered { port } => Some(port),
            Self::Accepted | Self::Dropped => None,
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Accepted => f.write_str("accepted: it goes where it was going, not through the proxy"),
            Self::Dropped => f.write_str("dropped"),
            Self::Redirected { port } => write!(f, "redirected to port {port}"),
            Self::Delivered { port } => write!(f, "delivered transparently to port {port}"),
        }
    }
}

/// One rule that a packet was held against.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// The rule's table.
    pub table: TableKind,
    /// The rule's chain.
    pub chain: String,
    /// The rule's place in the chain, from 1.
    pub number: usize,
    /// How many jumps led here.
    pub depth: usize,
    /// The rule, as `iptables-save` writes it.
    pub rule: String,
    /// Which part of the intent it stands for.
    pub note: String,
    /// Whether the packet matched; `None` when that cannot be decided.
    pub matched: Option<bool>,
    /// What happened then, or which condition did not hold.
    pub why: String,
}

/// A packet's whole way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trace {
    /// The packet.
    pub packet: Packet,
    /// Every rule that was asked, in order.
    pub steps: Vec<Step>,
    /// Where it ended.
    pub fate: Fate,
}

impl Ruleset {
    /// Where the packet ends. Does not allocate.
    ///
    /// # Examples
    /// ```
    /// use mesh_netfilter::{Interception, Ruleset, trace::Verdict};
    ///
    /// let rules = Ruleset::from(&Interception::default());
    /// let packet = "tcp 10.0.0.5:40000 > 10.1.2.3:8080 out uid 1000".parse()?;
    /// assert_eq!(rules.fate(&packet).verdict, Verdict::Redirected { port: 15001 });
    /// # Ok::<(), mesh_netfilter::trace::InvalidPacket>(())
    /// ```
    pub fn fate(&self, packet: &Packet) -> Fate {
        Walk::new(self, packet, &mut Silent).run()
    }

    /// Where the packet ends, with every rule it was held against.
    pub fn trace(&self, packet: &Packet) -> Trace {
        let mut steps = Vec::new();
        let fate = Walk::new(self, packet, &mut steps).run();
        Trace { packet: packet.clone(), steps, fate }
    }
}

#[cfg(test)]
mod tests;
