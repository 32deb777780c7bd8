//! What a person means: which traffic meets the proxy.
//!
//! [`Interception`] is the typed, valid intent; [`InterceptionConfig`] is the same as words (flags, environment
//! variables, annotations), which [`InterceptionConfig::parse`] turns into it or refuses with field, value and reason.

mod annotations;
mod config;
mod contradictions;

use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net};

use crate::net::{Interface, Owner, PortRange};

pub use config::InterceptionConfig;
pub use contradictions::{Contradiction, Contradictions};

/// Which traffic of a network namespace is handed to the proxy, and which is not.
///
/// # Defaults
/// [`Default`] is what an injected pod gets when nothing is annotated: everything outbound to 15001, everything
/// inbound to 15006 except 15090, 15021 and 15020, uid and gid 1337 exempt, IPv4 only, no DNS capture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interception {
    /// Where captured outbound connections go.
    pub outbound_port: u16,
    /// Where captured inbound connections go.
    pub inbound_port: u16,
    /// The tunnel's port (HBONE): inbound connections to it reach their destination themselves.
    pub tunnel_port: u16,
    /// The proxy's users. Their traffic is never captured as outbound.
    pub proxy_uids: Vec<Owner>,
    /// The proxy's groups. Their traffic is never captured as outbound.
    pub proxy_gids: Vec<Owner>,
    /// How inbound connections are captured.
    pub mode: Mode,
    /// Which inbound ports are captured.
    pub inbound: InboundPorts,
    /// Sources whose connections are delivered directly, such as a node that probes its pods.
    pub inbound_exempt_sources: Vec<IpNet>,
    /// Which destinations are captured by address.
    pub outbound: OutboundRanges,
    /// Destinations that are not captured, whatever else includes them by address or port.
    pub outbound_exclude: Vec<IpNet>,
    /// Ports that are captured whatever their address (unless that is excluded).
    pub outbound_ports: Vec<PortRange>,
    /// Ports that are never captured, TCP and UDP. They win over everything else.
    pub outbound_exclude_ports: Vec<PortRange>,
    /// Whose traffic is captured, by group.
    pub owner_groups: OwnerGroups,
    /// Interfaces whose traffic is captured in neither direction.
    pub exclude_interfaces: Vec<Interface>,
    /// Interfaces of virtual machines: what enters through them is treated as outbound.
    pub virtual_interfaces: Vec<Interface>,
    /// Which name lookups go to the agent.
    pub dns: Dns,
    /// Drop packets that connection tracking calls invalid, instead of answering them with a reset.
    pub drop_invalid: bool,
    /// The IPv4 addresses that mean "this machine" in rules that spare local traffic.
    pub loopback: Ipv4Net,
    /// Whether IPv6 is captured too. IPv4 always is.
    pub ipv6: bool,
    /// What was odd in the words this came from. Empty for an intent that was built from values.
    pub warnings: Vec<Contradiction>,
}

/// How inbound connections reach the proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Destination NAT; the proxy asks the socket for the original destination.
    Redirect,
    /// Transparent proxying; source and destination stay as they were.
    Tproxy {
        /// The packet mark that routes to the local machine. Default 1337.
        mark: u32,
        /// The routing table for that mark. Default 133.
        table: u32,
    },
}

impl Mode {
    /// [`Mode::Tproxy`] with the default mark 1337 and table 133.
    pub const TPROXY: Self = Self::Tproxy { mark: 1337, table: 133 };
}

/// Which inbound ports are captured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InboundPorts {
    /// Everything but these.
    AllExcept(Vec<PortRange>),
    /// These; an empty list captures nothing.
    Only(Vec<PortRange>),
}

/// Which outbound destinations are captured by address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OutboundRanges {
    /// Every address.
    All,
    /// These prefixes; an empty list captures nothing by address.
    Only(Vec<IpNet>),
}

/// Whose outbound traffic is captured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OwnerGroups {
    /// Everybody's but that of these groups.
    AllExcept(Vec<Owner>),
    /// Only that of these groups (at most [`OwnerGroups::MAX_ONLY`]); an empty list captures nothing outbound.
    Only(Vec<Owner>),
}

impl OwnerGroups {
    /// How many groups [`OwnerGroups::Only`] may name: they share one rule, and Istio draws the line here.
    pub const MAX_ONLY: usize = 64;
}

/// Which name lookups are handed to the agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Dns {
    /// None.
    Off,
    /// Every packet to port 53.
    All {
        /// Where the agent listens. Default 15053.
        port: u16,
    },
    /// Lookups sent to these servers. Without servers this is [`Dns::Off`].
    Servers {
        /// Where the agent listens. Default 15053.
        port: u16,
        /// The resolver addresses of this machine.
        servers: Vec<IpAddr>,
    },
}

impl Dns {
    /// Where the agent answers lookups unless told otherwise.
    pub const PORT: u16 = 15053;

    /// The agent's port if any lookup is captured.
    pub fn port(&self) -> Option<u16> {
        match self {
            Self::Off => None,
            Self::All { port } => Some(*port),
            Self::Servers { port, servers } => (!servers.is_empty()).then_some(*port),
        }
    }
}

impl Default for Interception {
    fn default() -> Self {
        Self {
            outbound_port: 15001,
            inbound_port: 15006,
            tunnel_port: 15008,
            proxy_uids: vec![Owner::Id(1337)],
            proxy_gids: vec![Owner::Id(1337)],
            mode: Mode::Redirect,
            inbound: InboundPorts::AllExcept(vec![15090.into(), 15021.into(), 15020.into()]),
            inbound_exempt_sources: Vec::new(),
            outbound: OutboundRanges::All,
            outbound_exclude: Vec::new(),
            outbound_ports: Vec::new(),
            outbound_exclude_ports: Vec::new(),
            owner_groups: OwnerGroups::AllExcept(Vec::new()),
            exclude_interfaces: Vec::new(),
            virtual_interfaces: Vec::new(),
            dns: Dns::Off,
            drop_invalid: false,
            loopback: DEFAULT_LOOPBACK,
            ipv6: false,
            warnings: Vec::new(),
        }
    }
}

impl Interception {
    /// Refuses an intent that contradicts itself, which is otherwise accepted with the meaning Istio gives it.
    ///
    /// # Errors
    /// Every contradiction found; see [`Interception::contradictions`].
    pub fn strict(self) -> Result<Self, Contradictions> {
        let found = self.contradictions();
        if found.is_empty() { Ok(self) } else { Err(Contradictions(found)) }
    }

    /// Whether inbound connections are captured at all.
    pub fn captures_inbound(&self) -> bool {
        !matches!(&self.inbound, InboundPorts::Only(ports) if ports.is_empty())
    }

    /// The mark and routing table that transparent proxying needs, when this intent uses it.
    pub fn policy_route(&self) -> Option<(u32, u32)> {
        match self.mode {
            Mode::Tproxy { mark, table } if self.captures_inbound() => Some((mark, table)),
            _ => None,
        }
    }
}

/// 127.0.0.1/32.
const DEFAULT_LOOPBACK: Ipv4Net = Ipv4Net::new_assert(std::net::Ipv4Addr::LOCALHOST, 32);

/// Why words are not an interception.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidInterception {
    /// One item of a field is not what the field holds.
    #[error("{field}: {value:?} {reason}")]
    Word {
        /// The field, by its long flag (or environment variable when there is no flag).
        field: &'static str,
        /// The offending item.
        value: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// More groups than share one rule.
    #[error(
        "{field}: number of owner groups whose outgoing traffic should be redirected cannot exceed {max}, got {got}"
    )]
    TooManyGroups {
        /// The field.
        field: &'static str,
        /// The bound, [`OwnerGroups::MAX_ONLY`].
        max: usize,
        /// How many there were.
        got: usize,
    },
}

impl InvalidInterception {
    /// A stable label.
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Word { .. } => "invalid_value",
            Self::TooManyGroups { .. } => "too_many_groups",
        }
    }

    /// The field, by its long flag or environment variable.
    pub const fn field(&self) -> &'static str {
        match self {
            Self::Word { field, .. } | Self::TooManyGroups { field, .. } => field,
        }
    }
}
