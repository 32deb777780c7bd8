//! The HTTP connection manager and its filters.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, StatusCode};
use ipnet::IpNet;

use super::{AccessLog, HeaderMatcher, HeaderOperations, Rbac, RouteConfiguration, StringMatcher};

/// HTTP on a connection: codec, filters, routes.
#[derive(Debug, Clone, PartialEq)]
pub struct HttpConnectionManager {
    /// Prefix of its statistics (`inbound_0.0.0.0_9080;`).
    pub stat_prefix: Arc<str>,
    /// HTTP version.
    pub codec: Codec,
    /// Routes.
    pub routes: RouteSource,
    /// Filters in order; the last one must be the router.
    pub filters: Vec<HttpFilterConfig>,
    /// Logs, written when a request ends.
    pub access_logs: Vec<AccessLog>,
    /// Value of the `server` header. Default `envoy`.
    pub server_name: HeaderValue,
    /// What happens with the upstream's `server` header.
    pub server_header: ServerHeader,
    /// Use the peer's address as the client's and append it to `x-forwarded-for`. Default false.
    pub use_remote_address: bool,
    /// Do not append the peer's address to `x-forwarded-for`. Default false.
    pub skip_xff_append: bool,
    /// Proxies in front that are trusted to append to `x-forwarded-for`: which of its addresses is the client's, see
    /// [`RequestContext::client_address`](crate::filter::RequestContext::client_address).
    pub xff_trusted_hops: u32,
    /// What happens with `x-forwarded-client-cert`.
    pub forward_client_cert: ForwardClientCert,
    /// What is put into it.
    pub set_client_cert: SetClientCertDetails,
    /// Make an `x-request-id` where there is none. Default true.
    pub generate_request_id: bool,
    /// Keep an `x-request-id` from an external client (with `use_remote_address`, one whose address is not internal).
    /// Default false.
    pub preserve_external_request_id: bool,
    /// Return `x-request-id`. Default false.
    pub request_id_in_response: bool,
    /// Path normalisation.
    pub normalization: PathNormalization,
    /// Upgrades let through for HTTP/1.1 clients, lower case (`websocket`; `connect` for CONNECT requests). Others are
    /// served as if the client had not asked, CONNECT is refused (403).
    pub upgrades: Vec<Arc<str>>,
    /// Accept HTTP/1.0. Default false (426).
    pub accept_http_10: bool,
    /// Keep-alive connections are closed after this long without a request. Default 1 h; `None` never.
    pub idle_timeout: Option<Duration>,
    /// Streams that are forwarded end after this long without a byte in either direction (408 while the request is not
    /// complete, else 504; reset when a response has begun), tunnels of upgrades too. Default 5 min (Envoy); Istio
    /// sends 0 = `None`.
    pub stream_idle_timeout: Option<Duration>,
    /// For the whole request to arrive (408). Default none.
    pub request_timeout: Option<Duration>,
    /// For a request's headers to arrive, counted from when they are waited for. Default none.
    pub request_headers_timeout: Option<Duration>,
    /// Connections end gracefully after this long. Default none.
    pub max_connection_duration: Option<Duration>,
    /// A forwarded stream ends this long after its request's headers, whatever the route's timeout. Default none.
    pub max_stream_duration: Option<Duration>,
    /// Requests per connection. 0 is unlimited.
    pub max_requests_per_connection: u32,
    /// Concurrent HTTP/2 streams. Default 100.
    pub max_concurrent_streams: u32,
    /// HTTP/2 stream window. Default 1 MiB here.
    pub initial_stream_window: Option<u32>,
    /// HTTP/2 connection window.
    pub initial_connection_window: Option<u32>,
    /// Most bytes of request headers (431). Default 60 KiB; with HTTP/1 less than 8 KiB count as 8 KiB.
    pub max_request_headers_bytes: u32,
    /// Most request headers (431). Default 100.
    pub max_request_headers: u32,
    /// Internal clients' addresses. `None` means private and loopback ones.
    pub internal_ranges: Option<Vec<IpNet>>,
    /// Whether the host loses its port before routing.
    pub strip_host_port: StripHostPort,
    /// Whether the host loses a dot at its end before routing. Default false.
    pub strip_trailing_host_dot: bool,
    /// What happens with request headers that have `_` in their names.
    pub underscores: HeadersWithUnderscores,
}

impl HttpConnectionManager {
    /// A connection manager with the defaults and only the router.
    #[must_use]
    pub fn new(stat_prefix: &str, routes: RouteSource) -> Self {
        Self {
            stat_prefix: stat_prefix.into(),
            codec: Codec::Auto,
            routes,
            filters: vec![HttpFilterConfig::new(
                "envoy.filters.http.router",
                HttpFilterKind::Router { suppress_envoy_headers: false },
            )],
            access_logs: Vec::new(),
            server_name: HeaderValue::from_static("envoy"),
            server_header: ServerHeader::Overwrite,
            use_remote_address: false,
            skip_xff_append: false,
            xff_trusted_hops: 0,
            forward_client_cert: ForwardClientCert::Sanitize,
            set_client_cert: SetClientCertDetails::default(),
            generate_request_id: true,
            preserve_external_request_id: false,
            request_id_in_response: false,
            normalization: PathNormalization::default(),
            upgrades: Vec::new(),
            accept_http_10: false,
            idle_timeout: Some(Duration::from_secs(3600)),
            stream_idle_timeout: Some(Duration::from_secs(300)),
            request_timeout: None,
            request_headers_timeout: None,
            max_connection_duration: None,
            max_stream_duration: None,
            max_requests_per_connection: 0,
            max_concurrent_streams: 100,
            initial_stream_window: None,
            initial_connection_window: None,
            max_request_headers_bytes: 60 * 1024,
            max_request_headers: 100,
            internal_ranges: None,
            strip_host_port: StripHostPort::Keep,
            strip_trailing_host_dot: false,
            underscores: HeadersWithUnderscores::Allow,
        }
    }
}

/// Whether the host of a request loses its port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum StripHostPort {
    /// No.
    #[default]
    Keep,
    /// When it is the port that the client connected to (`strip_matching_host_port`).
    Matching,
    /// Always (`strip_any_host_port`).
    Any,
}

/// What happens with request headers that have `_` in their names, which CGI-like servers cannot tell from `-`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum HeadersWithUnderscores {
    /// Nothing.
    #[default]
    Allow,
    /// 400.
    Reject,
    /// They are removed.
    Drop,
}

/// HTTP version on a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Codec {
    /// By ALPN, else by the first bytes.
    #[default]
    Auto,
    /// HTTP/1.
    Http1,
    /// HTTP/2.
    Http2,
}

/// Where routes come from.
#[derive(Debug, Clone, PartialEq)]
pub enum RouteSource {
    /// Given here.
    Inline(Arc<RouteConfiguration>),
    /// Given by [`Handle::apply_routes`](crate::Handle::apply_routes) under this name.
    Rds(Arc<str>),
}

/// What happens with the upstream's `server` header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ServerHeader {
    /// Replaced by ours.
    #[default]
    Overwrite,
    /// Ours only if absent.
    AppendIfAbsent,
    /// Left alone.
    PassThrough,
}

/// What happens with a client's `x-forwarded-client-cert`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ForwardClientCert {
    /// Removed.
    #[default]
    Sanitize,
    /// Kept when the connection is mutual TLS.
    ForwardOnly,
    /// Our peer appended when the connection is mutual TLS; removed otherwise.
    AppendForward,
    /// Replaced by our peer when the connection is mutual TLS; removed otherwise.
    SanitizeSet,
    /// Kept whatever the connection is.
    AlwaysForwardOnly,
}

/// What our element of `x-forwarded-client-cert` carries besides `By` and `Hash`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SetClientCertDetails {
    /// `Subject`.
    pub subject: bool,
    /// `DNS`.
    pub dns: bool,
    /// `URI`.
    pub uri: bool,
}

/// Path normalisation before routing and policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PathNormalization {
    /// RFC 3986 dot segments, `\` to `/`, unreserved percent-encodings decoded.
    pub normalize: bool,
    /// `//` to `/`.
    pub merge_slashes: bool,
    /// What happens with `%2F` and `%5C`.
    pub escaped_slashes: EscapedSlashes,
}

/// What happens with `%2F` and `%5C`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum EscapedSlashes {
    /// Nothing.
    #[default]
    Keep,
    /// 400.
    Reject,
    /// Decoded, then a redirect.
    UnescapeAndRedirect,
    /// Decoded.
    UnescapeAndForward,
}

/// A share of requests in millionths.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Fraction(pub u32);

impl Fraction {
    /// Everything.
    pub const ALL: Self = Self(1_000_000);

    /// Whether a uniform random number selects.
    #[must_use]
    pub fn selects(self, random: u64) -> bool {
        random % 1_000_000 < u64::from(self.0)
    }
}

/// One HTTP filter of a chain.
#[derive(Debug, Clone, PartialEq)]
pub struct HttpFilterConfig {
    /// Instance name; per-route configuration refers to it.
    pub name: Arc<str>,
    /// What it is.
    pub kind: HttpFilterKind,
    /// Off unless a route turns it on.
    pub disabled: bool,
}

impl HttpFilterConfig {
    /// An enabled filter.
    #[must_use]
    pub fn new(name: &str, kind: HttpFilterKind) -> Self {
        Self { name: name.into(), kind, disabled: false }
    }
}

/// The filters there are.
#[derive(Debug, Clone, PartialEq)]
pub enum HttpFilterKind {
    /// The router; last.
    Router {
        /// Do not add `x-envoy-*` headers.
        suppress_envoy_headers: bool,
    },
    /// Authorization.
    Rbac(Arc<Rbac>),
    /// Fault injection.
    Fault(Arc<Fault>),
    /// CORS; the policy is per route.
    Cors,
    /// Header changes.
    HeaderMutation(Arc<HeaderMutation>),
    /// Local rate limit.
    LocalRateLimit(Arc<LocalRateLimit>),
    /// `istio.alpn`: ALPN by the HTTP version used upstream.
    AlpnOverride(AlpnOverride),
    /// Known and without effect on the data path here (`grpc_stats`, `istio.stats`, metadata exchange over headers):
    /// telemetry is built in.
    Telemetry,
    /// Made by a registered [`HttpFilterFactory`](crate::filter::HttpFilterFactory).
    Custom(CustomFilter),
}

/// Configuration of a custom filter.
#[derive(Debug, Clone, PartialEq)]
pub struct CustomFilter {
    /// The factory's name or type URL.
    pub factory: Arc<str>,
    /// The factory's business.
    pub config: Bytes,
}

/// `istio.alpn`: offered ALPN by upstream HTTP version; empty lists leave the cluster's.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct AlpnOverride {
    /// For HTTP/1.0 clients.
    pub http10: Arc<[Arc<str>]>,
    /// For HTTP/1.1.
    pub http11: Arc<[Arc<str>]>,
    /// For HTTP/2.
    pub http2: Arc<[Arc<str>]>,
}

impl AlpnOverride {
    /// The lists that Istio's control plane sends.
    #[must_use]
    pub fn istio() -> Self {
        let list = |own: &str, plain: &str| Arc::from([Arc::from(own), Arc::from("istio"), Arc::from(plain)]);
        Self {
            http10: list("istio-http/1.0", "http/1.0"),
            http11: list("istio-http/1.1", "http/1.1"),
            http2: list("istio-h2", "h2"),
        }
    }
}

/// Fault injection.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Fault {
    /// Delay.
    pub delay: Option<FaultDelay>,
    /// Abort.
    pub abort: Option<FaultAbort>,
    /// Only for requests with these headers.
    pub headers: Vec<HeaderMatcher>,
    /// Only towards this cluster.
    pub upstream_cluster: Option<Arc<str>>,
    /// Only this many at once.
    pub max_active: Option<u32>,
}

/// Delay of a request.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FaultDelay {
    /// How long.
    pub duration: Duration,
    /// How often.
    pub fraction: Fraction,
}

/// Answer instead of the upstream.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FaultAbort {
    /// HTTP status; 200 with a gRPC status.
    pub status: StatusCode,
    /// gRPC status.
    pub grpc_status: Option<u32>,
    /// How often.
    pub fraction: Fraction,
}

/// CORS policy of a route.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Cors {
    /// Origins allowed.
    pub allow_origins: Vec<StringMatcher>,
    /// `access-control-allow-methods`.
    pub allow_methods: Option<HeaderValue>,
    /// `access-control-allow-headers`.
    pub allow_headers: Option<HeaderValue>,
    /// `access-control-expose-headers`.
    pub expose_headers: Option<HeaderValue>,
    /// `access-control-max-age`.
    pub max_age: Option<HeaderValue>,
    /// `access-control-allow-credentials`.
    pub allow_credentials: bool,
    /// Send preflights with a foreign origin upstream. Default true.
    pub forward_not_matching_preflights: bool,
}

/// Header changes by a filter.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct HeaderMutation {
    /// On requests.
    pub request: HeaderOperations,
    /// On responses.
    pub response: HeaderOperations,
}

/// A token bucket.
#[derive(Debug, Clone, PartialEq)]
pub struct LocalRateLimit {
    /// Prefix of its statistics.
    pub stat_prefix: Arc<str>,
    /// Bucket size.
    pub max_tokens: u32,
    /// Tokens added at each fill.
    pub tokens_per_fill: u32,
    /// Time between fills, at least 1 ms.
    pub fill_interval: Duration,
    /// Status when empty. Default 429.
    pub status: StatusCode,
    /// Share of requests that the filter looks at. Default all here.
    pub enabled: Fraction,
    /// Share of those for which the answer is enforced.
    pub enforced: Fraction,
    /// Operations on the answer.
    pub response_headers: HeaderOperations,
}

/// What a route, virtual host or weighted cluster says to a filter.
#[derive(Debug, Clone, PartialEq)]
pub struct PerFilterConfig {
    /// The filter's instance name.
    pub filter: Arc<str>,
    /// Turns the filter off here.
    pub disabled: bool,
    /// Replaces the filter's configuration here.
    pub config: Option<PerRoute>,
}

/// Replacement of a filter's configuration.
#[derive(Debug, Clone, PartialEq)]
pub enum PerRoute {
    /// RBAC; `None` lets everything pass.
    Rbac(Option<Arc<Rbac>>),
    /// Fault.
    Fault(Arc<Fault>),
    /// CORS.
    Cors(Arc<Cors>),
    /// Header changes, after the filter's own.
    HeaderMutation(Arc<HeaderMutation>),
    /// Local rate limit.
    LocalRateLimit(Arc<LocalRateLimit>),
    /// For a custom filter.
    Custom(Bytes),
}

/// Names that the data path treats in a special way.
pub(crate) mod names {
    use super::HeaderName;

    pub(crate) const XFCC: HeaderName = HeaderName::from_static("x-forwarded-client-cert");
    pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
    pub(crate) const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
    pub(crate) const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
    pub(crate) const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
    pub(crate) const ATTEMPT_COUNT: HeaderName = HeaderName::from_static("x-envoy-attempt-count");
    pub(crate) const ORIGINAL_PATH: HeaderName = HeaderName::from_static("x-envoy-original-path");
    pub(crate) const EXPECTED_TIMEOUT: HeaderName = HeaderName::from_static("x-envoy-expected-rq-timeout-ms");
    pub(crate) const SERVICE_TIME: HeaderName = HeaderName::from_static("x-envoy-upstream-service-time");
}
