//! Names that tools parse: byte for byte Istio's.

use std::fmt;

pub(super) const PASSTHROUGH: &str = "PassthroughCluster";
pub(super) const BLACK_HOLE: &str = "BlackHoleCluster";
pub(super) const INBOUND_PASSTHROUGH: &str = "InboundPassthroughCluster";
pub(super) const SDS_CLUSTER: &str = "sds-grpc";

/// ALPN values that the HTTP inspector finds in plaintext.
pub(super) const PLAINTEXT_HTTP: [&str; 2] = ["http/1.1", "h2c"];
/// ALPN values by which a sidecar marks HTTP inside mutual TLS.
pub(super) const MESH_HTTP: [&str; 3] = ["istio-http/1.0", "istio-http/1.1", "istio-h2"];
/// ALPN values by which a sidecar marks opaque bytes inside mutual TLS.
pub(super) const MESH_TCP: [&str; 2] = ["istio-peer-exchange", "istio"];

/// `outbound|<port>|<subset>|<host>`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ClusterName<'a> {
    /// The service port.
    pub port: u16,
    /// The subset; empty for all endpoints.
    pub subset: &'a str,
    /// The full host name.
    pub host: &'a str,
}

impl<'a> ClusterName<'a> {
    /// Reads an outbound cluster's name.
    pub fn parse(text: &'a str) -> Option<Self> {
        let mut parts = text.strip_prefix("outbound|")?.splitn(3, '|');
        let port = parts.next()?.parse().ok()?;
        Some(Self { port, subset: parts.next()?, host: parts.next()? })
    }

    /// The server name that a client sends for this cluster in mutual TLS.
    pub fn sni(&self) -> String {
        format!("outbound_.{}_.{}_.{}", self.port, self.subset, self.host)
    }
}

impl fmt::Display for ClusterName<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "outbound|{}|{}|{}", self.port, self.subset, self.host)
    }
}

/// `inbound|<port>||`.
pub(super) fn inbound_cluster(port: u16) -> String {
    format!("inbound|{port}||")
}
