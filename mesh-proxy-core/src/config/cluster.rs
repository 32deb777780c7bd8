//! Clusters: where requests can go, and how they get there.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc, time::Duration};

use super::{LoadAssignment, UpstreamTls};

/// An upstream cluster.
#[derive(Debug, Clone, PartialEq)]
pub struct Cluster {
    /// Unique name: `outbound|80||reviews.ns.svc.cluster.local`.
    pub name: Arc<str>,
    /// Name used in statistics; empty means `name`.
    pub alt_stat_name: Arc<str>,
    /// How endpoints are found.
    pub discovery: Discovery,
    /// How one of them is chosen. Default least request with two choices.
    pub lb: LbPolicy,
    /// Default 5 s (Envoy's); Istio sends 10 s.
    pub connect_timeout: Duration,
    /// HTTP version spoken to the endpoints.
    pub protocol: UpstreamProtocol,
    /// The default transport.
    pub transport: TransportSocket,
    /// Transports by endpoint metadata; the first match wins, else `transport`.
    pub transport_matches: Vec<TransportSocketMatch>,
    /// Limits.
    pub circuit_breakers: CircuitBreakers,
    /// Ejection of failing endpoints; `None` is off.
    pub outlier_detection: Option<OutlierDetection>,
    /// Percent of healthy endpoints below which health is ignored. Default 50; 0 never panics.
    pub panic_threshold: f64,
    /// Balance by locality weight inside a priority. Default false.
    pub locality_weighted: bool,
    /// Slow start of new endpoints.
    pub slow_start: Option<SlowStart>,
    /// Source addresses for connections (one per family): `127.0.0.6` for inbound clusters.
    pub bind: Vec<IpAddr>,
    /// Pooled connections are closed after this long without a request. Default 1 h; `None` never.
    pub idle_timeout: Option<Duration>,
    /// Pooled connections are not used any more when they are this old. Default never.
    pub max_connection_duration: Option<Duration>,
    /// Requests after which a connection is not used again. 0 is unlimited.
    pub max_requests_per_connection: u32,
    /// HTTP/2 stream window. Default hyper's.
    pub initial_stream_window: Option<u32>,
    /// HTTP/2 connection window. Default hyper's.
    pub initial_connection_window: Option<u32>,
    /// Which addresses of a name count, in DNS clusters. Default all.
    pub dns_family: DnsFamily,
    /// Concurrent streams of one HTTP/2 connection. Default 2^31-1.
    pub max_concurrent_streams: u32,
    /// TCP keep-alive.
    pub tcp_keepalive: Option<TcpKeepalive>,
    /// Whether `istio.alpn` replaces ALPN for this cluster (metadata `istio.alpn_override` is not `"false"`).
    pub alpn_override: bool,
    /// The mesh services behind it (metadata `istio.services`), for telemetry.
    pub services: Vec<ClusterService>,
    /// Other string metadata under filter name `istio` (`config`, `subset`, …), for tools.
    pub metadata: BTreeMap<String, String>,
}

impl Cluster {
    /// A cluster with Envoy's defaults, HTTP/1.1 and plain text.
    #[must_use]
    pub fn new(name: &str, discovery: Discovery) -> Self {
        Self {
            name: name.into(),
            alt_stat_name: "".into(),
            discovery,
            lb: LbPolicy::LeastRequest { choices: 2 },
            connect_timeout: Duration::from_secs(5),
            protocol: UpstreamProtocol::Http1,
            transport: TransportSocket::Raw,
            transport_matches: Vec::new(),
            circuit_breakers: CircuitBreakers::default(),
            outlier_detection: None,
            panic_threshold: 50.0,
            locality_weighted: false,
            slow_start: None,
            bind: Vec::new(),
            idle_timeout: Some(Duration::from_secs(3600)),
            max_connection_duration: None,
            max_requests_per_connection: 0,
            initial_stream_window: None,
            initial_connection_window: None,
            dns_family: DnsFamily::All,
            max_concurrent_streams: i32::MAX as u32,
            tcp_keepalive: None,
            alpn_override: true,
            services: Vec::new(),
            metadata: BTreeMap::new(),
        }
    }

    /// Whether a transport takes its server name from the request.
    pub(crate) fn wants_host_name(&self) -> bool {
        let all = self.transport_matches.iter().map(|m| &m.socket).chain([&self.transport]);
        all.into_iter().any(|socket| matches!(socket, TransportSocket::Tls(tls) if tls.auto_sni))
    }

    /// The name that statistics carry.
    #[must_use]
    pub fn stat_name(&self) -> &Arc<str> {
        if self.alt_stat_name.is_empty() { &self.name } else { &self.alt_stat_name }
    }
}

/// A mesh service that a cluster stands for.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct ClusterService {
    /// FQDN.
    pub host: Arc<str>,
    /// Short name.
    pub name: Arc<str>,
    /// Namespace.
    pub namespace: Arc<str>,
}

/// How endpoints are found.
#[derive(Debug, Clone, PartialEq)]
pub enum Discovery {
    /// Given here.
    Static(Arc<LoadAssignment>),
    /// Given by [`Handle::apply_endpoints`](crate::Handle::apply_endpoints) under this service name.
    Eds {
        /// The EDS resource's name; the cluster's name unless the control plane says otherwise.
        service_name: Arc<str>,
    },
    /// Wherever the connection wanted to go.
    OriginalDst {
        /// Use this port instead of the original one.
        port_override: Option<u16>,
    },
    /// Names resolved periodically, all addresses used.
    StrictDns {
        /// `(host name, port)` of each endpoint.
        hosts: Vec<(Arc<str>, u16)>,
        /// Time between resolutions. Default 5 s.
        refresh: Duration,
    },
    /// A name resolved periodically, the first address used for new connections.
    LogicalDns {
        /// `(host name, port)`.
        host: (Arc<str>, u16),
        /// Time between resolutions. Default 5 s.
        refresh: Duration,
    },
}

/// Which addresses of a name count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DnsFamily {
    /// All.
    #[default]
    All,
    /// IPv4.
    V4Only,
    /// IPv6.
    V6Only,
    /// IPv4, and IPv6 where there is none.
    V4Preferred,
    /// IPv6, and IPv4 where there is none.
    V6Preferred,
}

/// How an endpoint is chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum LbPolicy {
    /// The least loaded of `choices` random endpoints.
    LeastRequest {
        /// At least 2.
        choices: u32,
    },
    /// In turn.
    RoundRobin,
    /// Any.
    Random,
    /// Consistent hashing on a ring.
    RingHash {
        /// Smallest ring size, at most `max`. Default 1024.
        min: u64,
        /// Largest ring size, at most 8 Mi, the default.
        max: u64,
        /// The hash.
        function: HashFunction,
    },
    /// Consistent hashing with Maglev's table.
    Maglev {
        /// Prime, at most 5000011. Default 65537.
        table_size: u64,
    },
    /// The cluster itself knows (original destination).
    ClusterProvided,
}

/// Hash functions of the ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HashFunction {
    /// XXH64, seed 0.
    XxHash,
    /// MurmurHash64A.
    Murmur2,
}

/// HTTP version towards the endpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum UpstreamProtocol {
    /// HTTP/1.1.
    #[default]
    Http1,
    /// HTTP/2 (prior knowledge, or `h2` by ALPN).
    Http2,
    /// What the client speaks.
    Downstream,
}

/// A transport towards endpoints.
#[derive(Debug, Clone, PartialEq, Default)]
pub enum TransportSocket {
    /// Plain text.
    #[default]
    Raw,
    /// TLS.
    Tls(Arc<UpstreamTls>),
}

/// A transport for endpoints whose metadata matches.
#[derive(Debug, Clone, PartialEq)]
pub struct TransportSocketMatch {
    /// Name, for statistics.
    pub name: Arc<str>,
    /// All of these must be in the endpoint's `transport_match`; empty matches every endpoint. Shared, because most clusters
    /// of a mesh say the same.
    pub matches: Arc<BTreeMap<String, String>>,
    /// The transport.
    pub socket: TransportSocket,
}

/// Limits of a cluster, counted over all workers. `u32::MAX` is unlimited.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CircuitBreakers {
    /// Connections. Default 1024.
    pub max_connections: u32,
    /// Requests waiting for a connection. Default 1024.
    pub max_pending_requests: u32,
    /// Requests in flight. Default 1024.
    pub max_requests: u32,
    /// Retries in flight, unless a budget is given. Default 3.
    pub max_retries: u32,
    /// Retries as a share of requests; replaces `max_retries`.
    pub retry_budget: Option<RetryBudget>,
}

impl Default for CircuitBreakers {
    fn default() -> Self {
        Self {
            max_connections: 1024,
            max_pending_requests: 1024,
            max_requests: 1024,
            max_retries: 3,
            retry_budget: None,
        }
    }
}

/// Retries allowed as a share of what is in flight.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RetryBudget {
    /// Percent of active requests. Default 20.
    pub percent: f64,
    /// Always allowed. Default 3.
    pub min_concurrency: u32,
}

/// Ejection of failing endpoints.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct OutlierDetection {
    /// 5xx (or local errors) in a row that eject. 0 is off. Default 5.
    pub consecutive_5xx: u32,
    /// 502, 503, 504 in a row that eject. 0 is off (Envoy's default does not enforce it).
    pub consecutive_gateway: u32,
    /// Local errors in a row that eject, with `split_local_origin`. Default 5.
    pub consecutive_local_origin: u32,
    /// Count local errors apart from the upstream's answers.
    pub split_local_origin: bool,
    /// Time between sweeps that bring endpoints back. Default 10 s.
    pub interval: Duration,
    /// Ejection lasts this long times the number of ejections. Default 30 s.
    pub base_ejection_time: Duration,
    /// Longest ejection. Default 300 s.
    pub max_ejection_time: Duration,
    /// Share of endpoints that may be out. At least one always may. Default 10.
    pub max_ejection_percent: u32,
}

impl Default for OutlierDetection {
    fn default() -> Self {
        Self {
            consecutive_5xx: 5,
            consecutive_gateway: 0,
            consecutive_local_origin: 5,
            split_local_origin: false,
            interval: Duration::from_secs(10),
            base_ejection_time: Duration::from_secs(30),
            max_ejection_time: Duration::from_secs(300),
            max_ejection_percent: 10,
        }
    }
}

/// Ramps the weight of new endpoints, and of those that come back after an ejection. For round robin and least request.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SlowStart {
    /// Length of the ramp.
    pub window: Duration,
    /// Shape; 1 is linear.
    pub aggression: f64,
    /// Smallest share of the weight, percent. Default 10.
    pub min_percent: f64,
}

/// TCP keep-alive parameters; `None` leaves the kernel's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TcpKeepalive {
    /// Probes before giving up.
    pub probes: Option<u32>,
    /// Idle time before the first probe.
    pub time: Option<Duration>,
    /// Time between probes.
    pub interval: Option<Duration>,
}
