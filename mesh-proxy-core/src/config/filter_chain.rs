//! Filter chains and what they match.

use std::{sync::Arc, time::Duration};

use ipnet::IpNet;

use super::{DownstreamTls, NetworkFilter};

/// A chain: criteria, transport, network filters ending in a terminal one.
///
/// Chains are chosen by staged narrowing in Envoy's order (destination port, destination address, server name,
/// transport protocol, application protocol, directly connected source, source type, source address, source port),
/// without backtracking.
#[derive(Debug, Clone, PartialEq)]
pub struct FilterChain {
    /// Name for logs and statistics; may be empty.
    pub name: Arc<str>,
    /// Criteria; the default value matches everything.
    pub matches: FilterChainMatch,
    /// TLS towards the client; `None` is plain text.
    pub tls: Option<Arc<DownstreamTls>>,
    /// Filters in order; the last one must be terminal.
    pub filters: Vec<NetworkFilter>,
    /// How long a TLS handshake may take. Default 15 s.
    pub handshake_timeout: Option<Duration>,
}

impl FilterChain {
    /// A plain-text chain that matches everything.
    #[must_use]
    pub fn new(name: &str, filters: Vec<NetworkFilter>) -> Self {
        Self {
            name: name.into(),
            matches: FilterChainMatch::default(),
            tls: None,
            filters,
            handshake_timeout: Some(Duration::from_secs(15)),
        }
    }
}

/// Criteria of a chain. An empty list or `None` leaves the criterion open.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct FilterChainMatch {
    /// Destination port.
    pub destination_port: Option<u16>,
    /// Destination addresses; the longest prefix wins.
    pub prefix_ranges: Vec<IpNet>,
    /// Server names: exact or `*.suffix`; lower case.
    pub server_names: Vec<Arc<str>>,
    /// Plain text or TLS.
    pub transport_protocol: Option<TransportProtocol>,
    /// What the client offers by ALPN, or what the HTTP inspector saw.
    pub application_protocols: Vec<Arc<str>>,
    /// Address of the directly connected peer.
    pub direct_source_prefix_ranges: Vec<IpNet>,
    /// Local or external source.
    pub source_type: SourceType,
    /// Source address.
    pub source_prefix_ranges: Vec<IpNet>,
    /// Source ports.
    pub source_ports: Vec<u16>,
}

/// What the transport looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TransportProtocol {
    /// `raw_buffer`: no TLS seen, or not looked for.
    RawBuffer,
    /// `tls`: a ClientHello was seen.
    Tls,
}

/// Where the connection comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum SourceType {
    /// Anywhere.
    #[default]
    Any,
    /// Loopback, or source and destination address are the same.
    SameIpOrLoopback,
    /// Any other address.
    External,
}
