//! Network filters.

use std::{sync::Arc, time::Duration};

use super::{AccessLog, ClusterSpecifier, HttpConnectionManager, Rbac};

/// A network filter. [`TcpProxy`](Self::TcpProxy) and [`Http`](Self::Http) are terminal.
#[derive(Debug, Clone, PartialEq)]
pub enum NetworkFilter {
    /// Authorization of the connection.
    Rbac(NetworkRbac),
    /// Bytes to a cluster.
    TcpProxy(TcpProxy),
    /// HTTP.
    Http(Arc<HttpConnectionManager>),
}

impl NetworkFilter {
    /// Whether the filter ends a chain.
    #[must_use]
    pub fn is_terminal(&self) -> bool {
        !matches!(self, Self::Rbac(_))
    }
}

/// RBAC at connection level.
#[derive(Debug, Clone, PartialEq)]
pub struct NetworkRbac {
    /// Prefix of its statistics.
    pub stat_prefix: Arc<str>,
    /// The rules; HTTP-only rules never match here.
    pub rbac: Arc<Rbac>,
}

/// Forwards a connection's bytes.
#[derive(Debug, Clone, PartialEq)]
pub struct TcpProxy {
    /// Prefix of its statistics.
    pub stat_prefix: Arc<str>,
    /// Where to.
    pub cluster: ClusterSpecifier,
    /// Close after this long without a byte in either direction. Default 1 h; `None` never.
    pub idle_timeout: Option<Duration>,
    /// Close this long after the connection was accepted. Default never.
    pub max_connection_duration: Option<Duration>,
    /// Consistent hashing hashes the client's address; without, there is nothing to hash. Default false.
    pub hash_source_ip: bool,
    /// Attempts to connect, the first included. Default 1.
    pub max_connect_attempts: u32,
    /// Logs, written when the connection ends.
    pub access_logs: Vec<AccessLog>,
}

impl TcpProxy {
    /// Forwards to one cluster with the defaults.
    #[must_use]
    pub fn new(stat_prefix: &str, cluster: &str) -> Self {
        Self {
            stat_prefix: stat_prefix.into(),
            cluster: ClusterSpecifier::Name(cluster.into()),
            idle_timeout: Some(Duration::from_secs(3600)),
            max_connection_duration: None,
            hash_source_ip: false,
            max_connect_attempts: 1,
            access_logs: Vec::new(),
        }
    }
}
