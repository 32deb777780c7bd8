//! What a running proxy looks like from outside.

use std::{net::SocketAddr, sync::Arc};

use crate::config::{Cluster, Direction, EndpointHealth, Locality};

/// A live downstream connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectionSnapshot {
    /// Unique in this process.
    pub id: u64,
    /// The listener's direction.
    pub direction: Direction,
    /// Our address, the original destination where there is one. For an upstream session our source address.
    pub local: SocketAddr,
    /// The peer.
    pub peer: SocketAddr,
    /// The identity we presented.
    pub local_identity: Option<Arc<str>>,
    /// The identity the peer proved.
    pub peer_identity: Option<Arc<str>>,
    /// `TLSv1.3`, …
    pub tls_version: Option<&'static str>,
    /// `X25519MLKEM768`, …
    pub key_exchange: Option<&'static str>,
    /// Cipher suite.
    pub cipher: Option<&'static str>,
    /// The cluster of an upstream session.
    pub cluster: Option<Arc<str>>,
    /// The listener of a downstream session.
    pub listener: Option<Arc<str>>,
    /// The filter chain of a downstream session.
    pub chain: Option<Arc<str>>,
}

/// An active cluster.
#[derive(Debug, Clone)]
pub struct ClusterSnapshot {
    /// Its configuration.
    pub config: Arc<Cluster>,
    /// Its endpoints; empty for original-destination clusters.
    pub endpoints: Vec<EndpointSnapshot>,
    /// EDS or DNS has not answered yet.
    pub warming: bool,
}

/// An endpoint as the load balancer sees it.
#[derive(Debug, Clone, PartialEq)]
pub struct EndpointSnapshot {
    /// Its address.
    pub address: SocketAddr,
    /// Host name, where it has one.
    pub hostname: Arc<str>,
    /// Locality.
    pub locality: Locality,
    /// Priority.
    pub priority: u32,
    /// Weight.
    pub weight: u32,
    /// Health as configured.
    pub health: EndpointHealth,
    /// Ejected by outlier detection.
    pub ejected: bool,
    /// Requests in flight.
    pub rq_active: u64,
    /// Connections open.
    pub cx_active: u64,
    /// Requests ever.
    pub rq_total: u64,
    /// Failed ones among them.
    pub rq_error: u64,
    /// Connections ever.
    pub cx_total: u64,
    /// Failed connection attempts.
    pub cx_connect_fail: u64,
}

/// What the active configuration refers to but has not been given.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Missing {
    /// Route configurations named by listeners.
    pub routes: Vec<Arc<str>>,
    /// EDS service names of clusters.
    pub endpoints: Vec<Arc<str>>,
}

impl Missing {
    /// Whether nothing is missing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.routes.is_empty() && self.endpoints.is_empty()
    }
}
