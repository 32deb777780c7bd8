//! VirtualService (`networking.istio.io`): which requests go where.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::scalar::{GoDuration, null_as_default};

/// Routing rules for a set of hosts.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct VirtualService {
    /// Hosts that clients name.
    #[serde(default, deserialize_with = "null_as_default")]
    pub hosts: Vec<String>,
    /// Gateways; empty means `mesh`, every sidecar.
    #[serde(default, deserialize_with = "null_as_default")]
    pub gateways: Vec<String>,
    /// HTTP routes in order.
    #[serde(default, deserialize_with = "null_as_default")]
    pub http: Vec<HttpRoute>,
    /// TLS passthrough routes by SNI.
    #[serde(default, deserialize_with = "null_as_default")]
    pub tls: Vec<TlsRoute>,
    /// TCP routes.
    #[serde(default, deserialize_with = "null_as_default")]
    pub tcp: Vec<TcpRoute>,
    /// Namespaces that see it.
    #[serde(default, deserialize_with = "null_as_default")]
    pub export_to: Vec<String>,
}

/// One HTTP route.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct HttpRoute {
    /// Name for debugging.
    pub name: String,
    /// Alternatives; empty matches everything.
    #[serde(rename = "match", deserialize_with = "null_as_default")]
    pub matches: Vec<HttpMatch>,
    /// Weighted destinations.
    #[serde(deserialize_with = "null_as_default")]
    pub route: Vec<RouteDestination>,
    /// Answer with a redirect.
    pub redirect: Option<Redirect>,
    /// Answer directly.
    pub direct_response: Option<DirectResponse>,
    /// Continue in another VirtualService.
    pub delegate: Option<Delegate>,
    /// Rewrite before forwarding.
    pub rewrite: Option<HttpRewrite>,
    /// Timeout of the whole request; absent or 0 means none.
    pub timeout: Option<GoDuration>,
    /// Retry policy; absent means the default one.
    pub retries: Option<Retry>,
    /// Injected faults.
    pub fault: Option<Fault>,
    /// Where to send a copy.
    pub mirror: Option<Destination>,
    /// Where to send copies.
    #[serde(deserialize_with = "null_as_default")]
    pub mirrors: Vec<HttpMirror>,
    /// Share to mirror, legacy integer form.
    pub mirror_percent: Option<u32>,
    /// Share to mirror.
    pub mirror_percentage: Option<Percent>,
    /// Cross-origin policy.
    pub cors_policy: Option<CorsPolicy>,
    /// Header operations.
    pub headers: Option<Headers>,
}

/// A string to match; exactly one field, or none for "present".
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StringMatch {
    /// Equal to.
    #[serde(default)]
    pub exact: Option<String>,
    /// Begins with.
    #[serde(default)]
    pub prefix: Option<String>,
    /// RE2, the whole value.
    #[serde(default)]
    pub regex: Option<String>,
}

/// One alternative of a route's match; all fields must hold.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct HttpMatch {
    /// Name for debugging.
    pub name: String,
    /// The path.
    pub uri: Option<StringMatch>,
    /// `:scheme`.
    pub scheme: Option<StringMatch>,
    /// `:method`.
    pub method: Option<StringMatch>,
    /// `:authority`.
    pub authority: Option<StringMatch>,
    /// Headers by name.
    #[serde(deserialize_with = "null_as_default")]
    pub headers: BTreeMap<String, Option<StringMatch>>,
    /// Headers that must not match.
    #[serde(deserialize_with = "null_as_default")]
    pub without_headers: BTreeMap<String, Option<StringMatch>>,
    /// Query parameters by name.
    #[serde(deserialize_with = "null_as_default")]
    pub query_params: BTreeMap<String, StringMatch>,
    /// Whether `uri` ignores case.
    pub ignore_uri_case: bool,
    /// The service port.
    pub port: Option<u16>,
    /// The client's labels.
    #[serde(deserialize_with = "null_as_default")]
    pub source_labels: BTreeMap<String, String>,
    /// The client's namespace.
    pub source_namespace: String,
    /// Replaces the VirtualService's gateways.
    #[serde(deserialize_with = "null_as_default")]
    pub gateways: Vec<String>,
    /// Prefix of statistics.
    pub stat_prefix: String,
}

/// A service, port and subset.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Destination {
    /// The host; without a dot it is in the rule's namespace.
    pub host: String,
    /// A subset of the DestinationRule.
    #[serde(default)]
    pub subset: String,
    /// The port.
    #[serde(default)]
    pub port: Option<PortSelector>,
}

/// `port: {number: ...}`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PortSelector {
    /// The number.
    pub number: u16,
}

/// A weighted HTTP destination.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RouteDestination {
    /// Where.
    pub destination: Destination,
    /// Relative weight.
    #[serde(default)]
    pub weight: u32,
    /// Header operations for this destination.
    #[serde(default)]
    pub headers: Option<Headers>,
}

/// A weighted TCP or TLS destination.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WeightedDestination {
    /// Where.
    pub destination: Destination,
    /// Relative weight.
    #[serde(default)]
    pub weight: u32,
}

/// Answer with a redirect.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Redirect {
    /// New path.
    pub uri: Option<String>,
    /// New host.
    pub authority: Option<String>,
    /// New port.
    pub port: Option<u16>,
    /// `FROM_PROTOCOL_DEFAULT` or `FROM_REQUEST_PORT`.
    pub derive_port: Option<String>,
    /// New scheme.
    pub scheme: Option<String>,
    /// Status; 301 where absent.
    pub redirect_code: Option<u32>,
}

/// Answer directly.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DirectResponse {
    /// The status.
    pub status: u32,
    /// The body.
    #[serde(default)]
    pub body: Option<DirectBody>,
}

/// Body of a direct response.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DirectBody {
    /// As text.
    #[serde(default)]
    pub string: Option<String>,
    /// As base64.
    #[serde(default)]
    pub bytes: Option<String>,
}

/// Continue in another VirtualService.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Delegate {
    /// Its name.
    #[serde(default)]
    pub name: String,
    /// Its namespace.
    #[serde(default)]
    pub namespace: String,
}

/// Rewrite before forwarding.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct HttpRewrite {
    /// Replaces the matched prefix or path.
    pub uri: Option<String>,
    /// Replaces the host.
    pub authority: Option<String>,
    /// Rewrites by regular expression; wins over `uri`.
    pub uri_regex_rewrite: Option<RegexRewrite>,
}

/// A regular expression and its substitution.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RegexRewrite {
    /// RE2.
    #[serde(rename = "match")]
    pub pattern: String,
    /// With `\1`-style groups.
    pub rewrite: String,
}

/// Retry policy.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Retry {
    /// Number of retries; 0 and absent mean none.
    pub attempts: i32,
    /// Timeout per try.
    pub per_try_timeout: Option<GoDuration>,
    /// Conditions, comma-separated.
    pub retry_on: String,
    /// Whether to try other localities.
    pub retry_remote_localities: Option<bool>,
    /// Whether to avoid hosts already tried; true where absent.
    pub retry_ignore_previous_hosts: Option<bool>,
    /// Base back-off.
    pub backoff: Option<GoDuration>,
}

/// Injected faults.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fault {
    /// Delay before forwarding.
    #[serde(default)]
    pub delay: Option<Delay>,
    /// Answer with an error.
    #[serde(default)]
    pub abort: Option<Abort>,
}

/// An injected delay.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Delay {
    /// How long.
    pub fixed_delay: Option<GoDuration>,
    /// Share of requests.
    pub percentage: Option<Percent>,
    /// Share of requests, legacy integer form.
    pub percent: Option<u32>,
}

/// An injected error.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Abort {
    /// HTTP status.
    pub http_status: Option<u32>,
    /// gRPC status by name.
    pub grpc_status: Option<String>,
    /// Share of requests; 100 % where absent.
    pub percentage: Option<Percent>,
}

/// `{value: 0.1}`, in per cent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Percent {
    /// Per cent, 0 to 100.
    #[serde(default)]
    pub value: f64,
}

/// A mirror target.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HttpMirror {
    /// Where.
    pub destination: Destination,
    /// Share of requests; all where absent.
    #[serde(default)]
    pub percentage: Option<Percent>,
}

/// Cross-origin policy.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct CorsPolicy {
    /// Origins.
    #[serde(deserialize_with = "null_as_default")]
    pub allow_origins: Vec<StringMatch>,
    /// Methods.
    #[serde(deserialize_with = "null_as_default")]
    pub allow_methods: Vec<String>,
    /// Request headers.
    #[serde(deserialize_with = "null_as_default")]
    pub allow_headers: Vec<String>,
    /// Response headers.
    #[serde(deserialize_with = "null_as_default")]
    pub expose_headers: Vec<String>,
    /// How long a preflight may be cached.
    pub max_age: Option<GoDuration>,
    /// Whether credentials may be sent.
    pub allow_credentials: Option<bool>,
    /// `FORWARD` or `IGNORE`.
    pub unmatched_preflights: Option<String>,
}

/// Header operations by direction.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Headers {
    /// On the request.
    #[serde(default)]
    pub request: Option<HeaderOperations>,
    /// On the response.
    #[serde(default)]
    pub response: Option<HeaderOperations>,
}

/// Set, add, remove.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HeaderOperations {
    /// Overwrite.
    #[serde(deserialize_with = "null_as_default")]
    pub set: BTreeMap<String, String>,
    /// Append.
    #[serde(deserialize_with = "null_as_default")]
    pub add: BTreeMap<String, String>,
    /// Remove.
    #[serde(deserialize_with = "null_as_default")]
    pub remove: Vec<String>,
}

/// A TLS route by SNI.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsRoute {
    /// Alternatives.
    #[serde(default, rename = "match", deserialize_with = "null_as_default")]
    pub matches: Vec<TlsMatch>,
    /// Destinations.
    #[serde(default, deserialize_with = "null_as_default")]
    pub route: Vec<WeightedDestination>,
}

/// One alternative of a TLS route.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct TlsMatch {
    /// Server names.
    #[serde(deserialize_with = "null_as_default")]
    pub sni_hosts: Vec<String>,
    /// Destination CIDRs.
    #[serde(deserialize_with = "null_as_default")]
    pub destination_subnets: Vec<String>,
    /// The service port.
    pub port: Option<u16>,
    /// The client's labels.
    #[serde(deserialize_with = "null_as_default")]
    pub source_labels: BTreeMap<String, String>,
    /// The client's namespace.
    pub source_namespace: String,
    /// Replaces the VirtualService's gateways.
    #[serde(deserialize_with = "null_as_default")]
    pub gateways: Vec<String>,
}

/// A TCP route.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TcpRoute {
    /// Alternatives; empty matches everything.
    #[serde(default, rename = "match", deserialize_with = "null_as_default")]
    pub matches: Vec<L4Match>,
    /// Destinations.
    #[serde(default, deserialize_with = "null_as_default")]
    pub route: Vec<WeightedDestination>,
}

/// One alternative of a TCP route.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct L4Match {
    /// Destination CIDRs.
    #[serde(deserialize_with = "null_as_default")]
    pub destination_subnets: Vec<String>,
    /// The service port.
    pub port: Option<u16>,
    /// The client's labels.
    #[serde(deserialize_with = "null_as_default")]
    pub source_labels: BTreeMap<String, String>,
    /// The client's namespace.
    pub source_namespace: String,
    /// Replaces the VirtualService's gateways.
    #[serde(deserialize_with = "null_as_default")]
    pub gateways: Vec<String>,
}
