//! Typed tables, chains, rules, matches and targets, for both families and every backend.

mod compile;
mod display;

use std::borrow::Cow;
use std::fmt;

use ipnet::IpNet;

use crate::net::{Family, Interface, Owner, PortRange, Protocol};

/// The name of our nf_tables table, of family `inet`.
pub const TABLE: &str = "mesh";

/// What every chain of ours begins with.
pub const CHAIN_PREFIX: &str = "MESH_";

/// A set of chains with their rules.
///
/// Chains of one table stand in the order in which they were made; a base chain (one that hangs on a hook) has the hook's
/// iptables name.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Ruleset {
    /// All chains, base chains included.
    pub chains: Vec<Chain>,
    /// How the kernel reads matches where iptables and nf_tables differ.
    pub dialect: Dialect,
}

/// Where iptables and nf_tables read the same words differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Dialect {
    /// A negated owner match holds for a packet without a socket.
    #[default]
    Iptables,
    /// An owner match never holds for a packet without a socket.
    Nftables,
}

/// The places where rules stand, in the order in which a packet meets them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TableKind {
    /// Before connection tracking (priority -300).
    Raw,
    /// Marks and transparent proxying (-150).
    Mangle,
    /// Address translation, for the first packet of a connection (-100).
    Nat,
    /// Filtering (0).
    Filter,
    /// Mandatory access control (50).
    Security,
}

impl TableKind {
    /// All, in the order in which a packet meets them.
    pub const ALL: [Self; 5] = [Self::Raw, Self::Mangle, Self::Nat, Self::Filter, Self::Security];

    /// The name iptables gives it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Mangle => "mangle",
            Self::Nat => "nat",
            Self::Filter => "filter",
            Self::Security => "security",
        }
    }
}

impl fmt::Display for TableKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A point in a packet's way at which base chains are asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Hook {
    /// A packet has arrived.
    Prerouting,
    /// It is for this machine.
    Input,
    /// It is for another machine.
    Forward,
    /// A local process has sent it.
    Output,
    /// It is about to leave.
    Postrouting,
}

impl Hook {
    /// All hooks.
    pub const ALL: [Self; 5] =
        [Self::Prerouting, Self::Input, Self::Forward, Self::Output, Self::Postrouting];

    /// The built-in chain's name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Prerouting => "PREROUTING",
            Self::Input => "INPUT",
            Self::Forward => "FORWARD",
            Self::Output => "OUTPUT",
            Self::Postrouting => "POSTROUTING",
        }
    }

    /// The hook with this built-in chain's name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|hook| hook.as_str() == name)
    }
}

/// A chain of rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    /// Where it stands.
    pub table: TableKind,
    /// Its name; for a base chain that of its hook.
    pub name: Cow<'static, str>,
    /// The hook it hangs on, if it is a base chain.
    pub hook: Option<Hook>,
    /// What a base chain does with packets no rule decided: let them pass, or not.
    pub drops: bool,
    /// Its rules, in order.
    pub rules: Vec<Rule>,
}

/// One rule: when everything matches, the target happens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// The only family it is for; `None` is both.
    pub family: Option<Family>,
    /// All of these must hold.
    pub matches: Vec<Match>,
    /// What happens then.
    pub target: Target,
    /// Which part of the intent it stands for. No part of the rule's meaning.
    pub note: Cow<'static, str>,
}

/// One condition on a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Match {
    /// The transport protocol.
    Protocol {
        /// Which.
        protocol: Protocol,
        /// Whether it must not be that.
        invert: bool,
    },
    /// The source address. Holds only for packets of the prefix's family, inverted or not.
    Source {
        /// The prefix; host bits are ignored.
        net: IpNet,
        /// Whether it must be outside.
        invert: bool,
    },
    /// The destination address. Holds only for packets of the prefix's family, inverted or not.
    Destination {
        /// The prefix; host bits are ignored.
        net: IpNet,
        /// Whether it must be outside.
        invert: bool,
    },
    /// The source port; needs a protocol match.
    SourcePorts {
        /// The ports.
        ports: Vec<PortRange>,
        /// Whether it must be none of them.
        invert: bool,
    },
    /// The destination port; needs a protocol match.
    DestinationPorts {
        /// The ports.
        ports: Vec<PortRange>,
        /// Whether it must be none of them.
        invert: bool,
    },
    /// The interface it came in by.
    InInterface {
        /// Which.
        interface: Interface,
        /// Whether it must be another.
        invert: bool,
    },
    /// The interface it leaves by.
    OutInterface {
        /// Which.
        interface: Interface,
        /// Whether it must be another.
        invert: bool,
    },
    /// The user that owns the sending socket.
    Uid {
        /// Who.
        owner: Owner,
        /// Whether it must be another.
        invert: bool,
    },
    /// The group that owns the sending socket.
    Gid {
        /// Who.
        owner: Owner,
        /// Whether it must be another.
        invert: bool,
    },
    /// The packet's mark.
    Mark {
        /// What it must be, under the mask.
        value: u32,
        /// Which bits count.
        mask: u32,
        /// Whether it must differ.
        invert: bool,
    },
    /// The connection's mark.
    ConnMark {
        /// What it must be, under the mask.
        value: u32,
        /// Which bits count.
        mask: u32,
        /// Whether it must differ.
        invert: bool,
    },
    /// What connection tracking says.
    State {
        /// One of these.
        states: Vec<CtState>,
        /// Whether it must be none of them.
        invert: bool,
    },
    /// Always holds; words for people.
    Comment {
        /// The words.
        text: String,
    },
    /// Something this crate does not model; kept as its words so that text survives a round trip. A trace cannot decide it.
    Foreign {
        /// The words, as iptables or nft writes them.
        words: String,
    },
}

/// What connection tracking says of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum CtState {
    /// It fits no connection.
    Invalid,
    /// It begins one.
    New,
    /// It belongs to one that was seen in both directions.
    Established,
    /// It begins one that another connection announced.
    Related,
    /// It is not tracked.
    Untracked,
}

impl CtState {
    /// All, in the order in which iptables lists them.
    pub const ALL: [Self; 5] = [Self::Invalid, Self::New, Self::Related, Self::Established, Self::Untracked];

    /// The name iptables gives it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Invalid => "INVALID",
            Self::New => "NEW",
            Self::Established => "ESTABLISHED",
            Self::Related => "RELATED",
            Self::Untracked => "UNTRACKED",
        }
    }

    /// The kernel's bit.
    pub(crate) const fn bit(self) -> u32 {
        match self {
            Self::Invalid => 1,
            Self::Established => 2,
            Self::Related => 4,
            Self::New => 8,
            Self::Untracked => 64,
        }
    }
}

/// What happens to a packet that matched.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Target {
    /// The base chain is done: the packet passes.
    Accept,
    /// The packet is gone.
    Drop,
    /// The sender is told, the packet is gone.
    Reject {
        /// `--reject-with`, if it stood there.
        with: Option<String>,
    },
    /// Back to the calling chain; in a base chain its policy.
    Return,
    /// Through that chain, then on.
    Jump(Cow<'static, str>),
    /// Through that chain, then back to the caller.
    Goto(Cow<'static, str>),
    /// To a local port instead.
    Redirect {
        /// Which.
        port: u16,
    },
    /// To the socket that listens on a local port, addresses unchanged.
    Tproxy {
        /// Which port.
        port: u16,
        /// The mark set for policy routing.
        mark: u32,
    },
    /// Sets the packet's mark, then on.
    SetMark {
        /// The new value of the bits in the mask.
        value: u32,
        /// Which bits change.
        mask: u32,
    },
    /// Copies the packet's mark to the connection, then on.
    SaveMark,
    /// Copies the connection's mark to the packet, then on.
    RestoreMark,
    /// Tracks the connection in this zone (the first one set counts), then on.
    Zone(u16),
    /// Nothing but counting; then on.
    Count,
    /// Something this crate does not model; kept as its words. A trace goes on and says so.
    Foreign {
        /// The words after `-j`.
        words: String,
    },
}

impl Ruleset {
    /// The chain of this name in this table.
    pub fn chain(&self, table: TableKind, name: &str) -> Option<&Chain> {
        self.chains.iter().find(|chain| chain.table == table && chain.name == name)
    }

    /// How many rules there are in all chains.
    pub fn len(&self) -> usize {
        self.chains.iter().map(|chain| chain.rules.len()).sum()
    }

    /// Whether there is no rule.
    pub fn is_empty(&self) -> bool {
        self.chains.iter().all(|chain| chain.rules.is_empty())
    }

    /// Replaces every owner name by its id.
    ///
    /// # Errors
    /// The first name that `resolve` does not know.
    pub fn resolve(&self, resolve: impl Fn(OwnerKind, &str) -> Option<u32>) -> Result<Self, UnknownOwner> {
        let mut resolved = self.clone();
        let all =
            resolved.chains.iter_mut().flat_map(|chain| &mut chain.rules).flat_map(|rule| &mut rule.matches);
        for each in all {
            let (kind, owner) = match each {
                Match::Uid { owner, .. } => (OwnerKind::User, owner),
                Match::Gid { owner, .. } => (OwnerKind::Group, owner),
                _ => continue,
            };
            if let Owner::Name(name) = owner {
                let id = resolve(kind, name).ok_or_else(|| UnknownOwner { kind, name: name.clone() })?;
                *owner = Owner::Id(id);
            }
        }
        Ok(resolved)
    }

    /// [`Ruleset::resolve`] by this machine's user and group databases.
    ///
    /// # Errors
    /// The first name that is in neither.
    pub fn resolve_here(&self) -> Result<Self, UnknownOwner> {
        self.resolve(|kind, name| match kind {
            OwnerKind::User => {
                nix::unistd::User::from_name(name).ok().flatten().map(|user| user.uid.as_raw())
            }
            OwnerKind::Group => {
                nix::unistd::Group::from_name(name).ok().flatten().map(|group| group.gid.as_raw())
            }
        })
    }
}

/// Which database a name belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OwnerKind {
    /// Users.
    User,
    /// Groups.
    Group,
}

/// A user or group that this machine does not know.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no {} is called {name:?} on this machine", match kind { OwnerKind::User => "user", OwnerKind::Group => "group" })]
pub struct UnknownOwner {
    /// Which database was asked.
    pub kind: OwnerKind,
    /// For whom.
    pub name: String,
}

impl Chain {
    /// A base chain without rules that lets packets pass.
    pub const fn base(table: TableKind, hook: Hook) -> Self {
        Self { table, name: Cow::Borrowed(hook.as_str()), hook: Some(hook), drops: false, rules: Vec::new() }
    }

    /// A chain that others jump to, without rules.
    pub fn regular(table: TableKind, name: impl Into<Cow<'static, str>>) -> Self {
        Self { table, name: name.into(), hook: None, drops: false, rules: Vec::new() }
    }
}

impl Rule {
    /// A rule for both families.
    pub fn new(matches: Vec<Match>, target: Target) -> Self {
        let family = matches.iter().find_map(Match::family);
        Self { family, matches, target, note: Cow::Borrowed("") }
    }

    /// The same, saying which part of the intent it stands for.
    #[must_use]
    pub fn noted(mut self, note: impl Into<Cow<'static, str>>) -> Self {
        self.note = note.into();
        self
    }

    /// The same, for packets of one family only.
    #[must_use]
    pub const fn only(mut self, family: Option<Family>) -> Self {
        if family.is_some() {
            self.family = family;
        }
        self
    }

    /// Whether both rules do the same to the same packets as far as their words go; notes do not count.
    pub fn same_as(&self, other: &Self) -> bool {
        self.family == other.family && self.matches == other.matches && self.target == other.target
    }
}

impl Match {
    /// The family of packets this can hold for, if it is only one.
    pub const fn family(&self) -> Option<Family> {
        match self {
            Self::Source { net, .. } | Self::Destination { net, .. } => Some(Family::of_net(net)),
            _ => None,
        }
    }

    /// `-p tcp`.
    pub const TCP: Self = Self::Protocol { protocol: Protocol::Tcp, invert: false };
    /// `-p udp`.
    pub const UDP: Self = Self::Protocol { protocol: Protocol::Udp, invert: false };

    /// The destination port is among these.
    pub fn ports(ports: impl Into<Vec<PortRange>>) -> Self {
        Self::DestinationPorts { ports: ports.into(), invert: false }
    }

    /// The destination port is none of these.
    pub fn not_ports(ports: impl Into<Vec<PortRange>>) -> Self {
        Self::DestinationPorts { ports: ports.into(), invert: true }
    }

    /// The destination is inside.
    pub const fn to(net: IpNet) -> Self {
        Self::Destination { net, invert: false }
    }

    /// The destination is outside.
    pub const fn not_to(net: IpNet) -> Self {
        Self::Destination { net, invert: true }
    }

    /// The source is inside.
    pub const fn from(net: IpNet) -> Self {
        Self::Source { net, invert: false }
    }

    /// It came in by this interface.
    pub fn via(interface: &Interface) -> Self {
        Self::InInterface { interface: interface.clone(), invert: false }
    }

    /// It leaves by this interface.
    pub fn out(interface: &Interface) -> Self {
        Self::OutInterface { interface: interface.clone(), invert: false }
    }

    /// The packet's whole mark is this.
    pub const fn mark(value: u32) -> Self {
        Self::Mark { value, mask: u32::MAX, invert: false }
    }
}
