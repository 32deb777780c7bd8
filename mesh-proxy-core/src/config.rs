//! Configuration: validated, immutable values that the data path runs on.
//!
//! Nothing here knows of xDS: a program may build these values by hand, and the `xds` feature converts messages into
//! them. All types are plain data (`Clone`, `PartialEq`): equality is how an update finds out what it really changes.
//! What cannot be expressed here cannot be configured; what is expressed here is obeyed by the data path.

mod access_log;
mod cluster;
mod endpoint;
mod filter_chain;
mod headers;
mod http;
mod listener;
mod matcher;
mod network;
mod rbac;
mod route;
mod tls;

pub(crate) use self::http::names;
pub use access_log::{AccessLog, AccessLogFilter, AccessLogFormat};
pub use cluster::{
    CircuitBreakers, Cluster, ClusterService, Discovery, DnsFamily, HashFunction, LbPolicy, OutlierDetection,
    RetryBudget, SlowStart, TcpKeepalive, TransportSocket, TransportSocketMatch, UpstreamProtocol,
};
pub use endpoint::{Endpoint, EndpointHealth, LoadAssignment, Locality, LocalityEndpoints};
pub use filter_chain::{FilterChain, FilterChainMatch, SourceType, TransportProtocol};
pub use headers::{AppendAction, HeaderOperation, HeaderOperations};
pub use http::{
    AlpnOverride, Codec, Cors, CustomFilter, EscapedSlashes, Fault, FaultAbort, FaultDelay,
    ForwardClientCert, Fraction, HeaderMutation, HeadersWithUnderscores, HttpConnectionManager,
    HttpFilterConfig, HttpFilterKind, LocalRateLimit, PathNormalization, PerFilterConfig, PerRoute,
    RouteSource, ServerHeader, SetClientCertDetails, StripHostPort,
};
pub use listener::{Direction, Inspector, Listener, ListenerFilters, PortPredicate};
pub(crate) use matcher::is_grpc;
pub use matcher::{
    HeaderMatch, HeaderMatcher, QueryMatch, QueryMatcher, Regex, StringMatcher, StringPattern,
};
pub use network::{NetworkFilter, NetworkRbac, TcpProxy};
pub use rbac::{Rbac, RbacAction, RbacPolicy, RbacRule, RbacRules};
pub use route::{
    ClusterSpecifier, DirectResponse, Forward, HashPolicy, HashSource, HostRewrite, MirrorPolicy, PathMatch,
    PathRewrite, Redirect, RetryOn, RetryPolicy, Route, RouteAction, RouteConfiguration, RouteMatch,
    VirtualHost, WeightedCluster,
};
pub use tls::{DownstreamTls, SecretRef, TlsVersion, UpstreamTls};
