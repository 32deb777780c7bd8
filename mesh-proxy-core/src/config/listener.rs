//! Listeners: an address, what is learnt by peeking, and the filter chains to choose from.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use super::{AccessLog, FilterChain, NetworkFilter, RouteSource};

/// One listener. `bind_to_port = false` makes it reachable only by hand-off from a listener with `use_original_dst`.
#[derive(Debug, Clone, PartialEq)]
pub struct Listener {
    /// Unique name; an update replaces the listener of the same name.
    pub name: Arc<str>,
    /// The address and any additional ones (dual stack). Never empty for a valid listener. Port 0 asks the kernel.
    pub addresses: Vec<SocketAddr>,
    /// Whether sockets are opened. Default true.
    pub bind_to_port: bool,
    /// Hand connections over to the listener whose address is the original destination. Default false.
    pub use_original_dst: bool,
    /// `IP_TRANSPARENT` on the socket (TPROXY). Default false.
    pub transparent: bool,
    /// Which side of the workload this is.
    pub direction: Direction,
    /// What is learnt about a connection before a chain is chosen.
    pub listener_filters: ListenerFilters,
    /// Chains in configuration order; the order does not matter for matching (see [`FilterChain`]).
    pub filter_chains: Vec<FilterChain>,
    /// The chain when none matches; without one the connection is closed (`NR`).
    pub default_filter_chain: Option<FilterChain>,
    /// Logs for connections that matched no chain.
    pub access_logs: Vec<AccessLog>,
    /// Prefix of the listener's statistics; empty means its first address.
    pub stat_prefix: Arc<str>,
    /// The accept queue's length. Default 4096.
    pub backlog: u32,
}

impl Listener {
    /// A bound listener with one address, no inspection and no chains yet.
    #[must_use]
    pub fn new(name: &str, address: SocketAddr) -> Self {
        Self {
            name: name.into(),
            addresses: vec![address],
            bind_to_port: true,
            use_original_dst: false,
            transparent: false,
            direction: Direction::Unspecified,
            listener_filters: ListenerFilters::default(),
            filter_chains: Vec::new(),
            default_filter_chain: None,
            access_logs: Vec::new(),
            stat_prefix: "".into(),
            backlog: 4096,
        }
    }
}

/// Which side of the workload a listener serves (Envoy's `TrafficDirection`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Direction {
    /// Not said; drained with everything else.
    #[default]
    Unspecified,
    /// From others to the workload. Drained on request.
    Inbound,
    /// From the workload to others. Serves until shutdown.
    Outbound,
}

impl Direction {
    /// `inbound`, `outbound` or `unspecified`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unspecified => "unspecified",
            Self::Inbound => "inbound",
            Self::Outbound => "outbound",
        }
    }
}

/// What a listener learns by asking the kernel and by peeking (nothing is consumed).
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ListenerFilters {
    /// Ask for the original destination and use it as the destination for matching (not only for hand-off).
    pub original_dst: bool,
    /// Peek at a TLS ClientHello (server name, offered ALPN). Without it a connection counts as `raw_buffer`.
    pub tls_inspector: Option<Inspector>,
    /// Peek at plain text for HTTP (`http/1.0`, `http/1.1`, `h2c`).
    pub http_inspector: Option<Inspector>,
    /// How long peeking may take in all. `None` waits for bytes for ever, as Istio asks.
    pub timeout: Option<Duration>,
    /// After the timeout go on with what is known; otherwise close.
    pub continue_on_timeout: bool,
}

/// One peeking listener filter.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Inspector {
    /// Connections for which it is skipped.
    pub disabled: PortPredicate,
}

/// A predicate over the destination port (Envoy's `ListenerFilterChainMatchPredicate`).
#[derive(Debug, Clone, PartialEq, Default)]
pub enum PortPredicate {
    /// Matches nothing: the filter always runs.
    #[default]
    Never,
    /// Matches every connection: the filter never runs.
    Always,
    /// `start..=end` of destination ports.
    Range(u16, u16),
    /// Any of these.
    Any(Vec<Self>),
    /// All of these.
    All(Vec<Self>),
    /// The opposite.
    Not(Box<Self>),
}

impl PortPredicate {
    /// Whether `port` matches.
    #[must_use]
    pub fn matches(&self, port: u16) -> bool {
        match self {
            Self::Never => false,
            Self::Always => true,
            Self::Range(start, end) => (*start..=*end).contains(&port),
            Self::Any(any) => any.iter().any(|p| p.matches(port)),
            Self::All(all) => all.iter().all(|p| p.matches(port)),
            Self::Not(p) => !p.matches(port),
        }
    }
}

impl Listener {
    /// Route configurations (RDS) that this listener needs.
    pub fn route_names(&self) -> Vec<Arc<str>> {
        let chains = self.filter_chains.iter().chain(&self.default_filter_chain);
        let mut names: Vec<Arc<str>> = chains
            .flat_map(|chain| &chain.filters)
            .filter_map(|filter| match filter {
                NetworkFilter::Http(http) => match &http.routes {
                    RouteSource::Rds(name) => Some(Arc::clone(name)),
                    RouteSource::Inline(_) => None,
                },
                _ => None,
            })
            .collect();
        names.sort();
        names.dedup();
        names
    }
}
