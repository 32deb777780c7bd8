//! DestinationRule (`networking.istio.io`): what happens once a destination is chosen.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::scalar::{GoDuration, LabelSelector, null_as_default};
use super::virtual_service::{Percent, PortSelector};

/// Policy and subsets of one host.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DestinationRule {
    /// The host; without a dot it is in the rule's namespace.
    pub host: String,
    /// Policy for all subsets.
    #[serde(default)]
    pub traffic_policy: Option<TrafficPolicy>,
    /// Named subsets.
    #[serde(default, deserialize_with = "null_as_default")]
    pub subsets: Vec<Subset>,
    /// Namespaces that see it.
    #[serde(default, deserialize_with = "null_as_default")]
    pub export_to: Vec<String>,
    /// Clients of the namespace that it applies to.
    #[serde(default)]
    pub workload_selector: Option<LabelSelector>,
}

/// A named share of a service's endpoints.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Subset {
    /// Its name.
    pub name: String,
    /// Labels of its endpoints.
    #[serde(default, deserialize_with = "null_as_default")]
    pub labels: BTreeMap<String, String>,
    /// Policy on top of the rule's.
    #[serde(default)]
    pub traffic_policy: Option<TrafficPolicy>,
}

/// Blocks of policy; a block of a nearer layer replaces the whole block of a farther one.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct TrafficPolicy {
    /// Choice of endpoint.
    pub load_balancer: Option<LoadBalancer>,
    /// Limits of connections and requests.
    pub connection_pool: Option<ConnectionPool>,
    /// Ejection of failing endpoints.
    pub outlier_detection: Option<OutlierDetection>,
    /// TLS towards the destination.
    pub tls: Option<TlsSettings>,
    /// Policies by service port; each replaces this whole layer for its port.
    #[serde(deserialize_with = "null_as_default")]
    pub port_level_settings: Vec<PortTrafficPolicy>,
    /// Limit on concurrent retries.
    pub retry_budget: Option<RetryBudget>,
}

/// [`TrafficPolicy`] for one port.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct PortTrafficPolicy {
    /// The service port.
    pub port: Option<PortSelector>,
    /// Choice of endpoint.
    pub load_balancer: Option<LoadBalancer>,
    /// Limits of connections and requests.
    pub connection_pool: Option<ConnectionPool>,
    /// Ejection of failing endpoints.
    pub outlier_detection: Option<OutlierDetection>,
    /// TLS towards the destination.
    pub tls: Option<TlsSettings>,
}

/// Choice of endpoint.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct LoadBalancer {
    /// A simple algorithm.
    pub simple: SimpleLb,
    /// Affinity by hash.
    pub consistent_hash: Option<ConsistentHash>,
    /// Slow start.
    pub warmup: Option<Warmup>,
    /// Slow start, older form: only the duration.
    pub warmup_duration_secs: Option<GoDuration>,
}

/// A simple algorithm.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum SimpleLb {
    /// The default: least request.
    #[default]
    Unspecified,
    /// In turn.
    RoundRobin,
    /// Fewest requests in flight of two.
    LeastRequest,
    /// As `LEAST_REQUEST`, older name.
    LeastConn,
    /// At random.
    Random,
    /// The connection's own destination.
    Passthrough,
}

/// Affinity by hash.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ConsistentHash {
    /// By header.
    pub http_header_name: Option<String>,
    /// By cookie.
    pub http_cookie: Option<HttpCookie>,
    /// By source address.
    pub use_source_ip: Option<bool>,
    /// By query parameter.
    pub http_query_parameter_name: Option<String>,
    /// Ring hash.
    pub ring_hash: Option<RingHash>,
    /// Maglev.
    pub maglev: Option<Maglev>,
    /// Older form of `ringHash.minimumRingSize`.
    pub minimum_ring_size: Option<u64>,
}

/// Ring hash.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct RingHash {
    /// Smallest ring.
    pub minimum_ring_size: Option<u64>,
}

/// Maglev.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Maglev {
    /// Table size, a prime.
    pub table_size: Option<u64>,
}

/// A cookie to hash.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HttpCookie {
    /// Its name.
    pub name: String,
    /// Its path, where generated.
    #[serde(default)]
    pub path: String,
    /// Its lifetime; where given the proxy generates it.
    #[serde(default)]
    pub ttl: Option<GoDuration>,
}

/// Slow start.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Warmup {
    /// How long.
    pub duration: Option<GoDuration>,
    /// First share in per cent; 10 where absent.
    pub minimum_percent: Option<f64>,
    /// Curve; 1 is linear.
    pub aggression: Option<f64>,
}

/// Limits of connections and requests.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConnectionPool {
    /// For TCP.
    #[serde(default)]
    pub tcp: Option<TcpPool>,
    /// For HTTP.
    #[serde(default)]
    pub http: Option<HttpPool>,
}

/// TCP limits.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct TcpPool {
    /// Most connections.
    pub max_connections: Option<u32>,
    /// Time to connect.
    pub connect_timeout: Option<GoDuration>,
    /// Keep-alive probes.
    pub tcp_keepalive: Option<TcpKeepalive>,
    /// Longest life of a connection.
    pub max_connection_duration: Option<GoDuration>,
    /// Idle time.
    pub idle_timeout: Option<GoDuration>,
}

/// Keep-alive probes.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct TcpKeepalive {
    /// Probes before giving up.
    pub probes: Option<u32>,
    /// Idle time before the first.
    pub time: Option<GoDuration>,
    /// Between probes.
    pub interval: Option<GoDuration>,
}

/// HTTP limits.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct HttpPool {
    /// Most requests waiting for a connection.
    pub http1_max_pending_requests: Option<u32>,
    /// Most requests at once.
    pub http2_max_requests: Option<u32>,
    /// Requests per connection; 0 means no limit.
    pub max_requests_per_connection: Option<u32>,
    /// Most retries at once.
    pub max_retries: Option<u32>,
    /// Idle time of a connection.
    pub idle_timeout: Option<GoDuration>,
    /// `DEFAULT`, `DO_NOT_UPGRADE`, `UPGRADE`.
    pub h2_upgrade_policy: Option<String>,
    /// Use the client's protocol.
    pub use_client_protocol: Option<bool>,
    /// Most streams per HTTP/2 connection.
    pub max_concurrent_streams: Option<u32>,
}

/// Limit on concurrent retries.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct RetryBudget {
    /// Share of active requests; 20 % where absent.
    pub percent: Option<f64>,
    /// Always allowed; 3 where absent.
    pub min_retry_concurrency: Option<u32>,
}

/// Ejection of failing endpoints.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct OutlierDetection {
    /// Older name of `consecutive5xxErrors`.
    pub consecutive_errors: Option<u32>,
    /// Consecutive 5xx; 5 where absent, 0 is off.
    #[serde(rename = "consecutive5xxErrors")]
    pub consecutive_5xx_errors: Option<u32>,
    /// Consecutive 502, 503, 504; off where absent.
    pub consecutive_gateway_errors: Option<u32>,
    /// Consecutive local failures.
    pub consecutive_local_origin_failures: Option<u32>,
    /// Whether local failures are counted apart.
    pub split_external_local_origin_errors: bool,
    /// Time between sweeps; 10 s where absent.
    pub interval: Option<GoDuration>,
    /// Base of the ejection time; 30 s where absent.
    pub base_ejection_time: Option<GoDuration>,
    /// Most endpoints ejected; 10 % where absent.
    pub max_ejection_percent: Option<u32>,
    /// Below this share of healthy endpoints all are used; never where absent.
    pub min_health_percent: Option<u32>,
}

/// TLS towards the destination.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct TlsSettings {
    /// The mode.
    pub mode: TlsMode,
    /// File of the client certificate.
    pub client_certificate: String,
    /// File of its key.
    pub private_key: String,
    /// File of the CA.
    pub ca_certificates: String,
    /// A secret; ignored by sidecars.
    pub credential_name: String,
    /// Names that the peer must present.
    #[serde(deserialize_with = "null_as_default")]
    pub subject_alt_names: Vec<String>,
    /// Server name to send.
    pub sni: String,
    /// Whether to accept any certificate.
    pub insecure_skip_verify: Option<bool>,
}

/// Mode of [`TlsSettings`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum TlsMode {
    /// None.
    #[default]
    Disable,
    /// TLS without a client certificate.
    Simple,
    /// TLS with given certificates.
    Mutual,
    /// The mesh's own mutual TLS.
    IstioMutual,
}

impl RetryBudget {
    /// The share of active requests.
    pub fn share(&self) -> Percent {
        Percent { value: self.percent.unwrap_or(20.0) }
    }
}
