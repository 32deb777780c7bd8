//! Routes: virtual hosts, matches and actions.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, StatusCode};

use super::{Fraction, HeaderMatcher, HeaderOperations, PerFilterConfig, QueryMatcher, Regex};

/// A route table.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct RouteConfiguration {
    /// Unique name (`80`, `inbound|9080||`).
    pub name: Arc<str>,
    /// Virtual hosts; no domain may appear twice.
    pub virtual_hosts: Vec<VirtualHost>,
    /// Strip `:port` from the host before matching.
    pub ignore_port_in_host_matching: bool,
    /// Operations on requests to upstreams.
    pub request_headers: HeaderOperations,
    /// Operations on responses to clients.
    pub response_headers: HeaderOperations,
    /// Per-filter configuration.
    pub per_filter: Vec<PerFilterConfig>,
}

/// A virtual host.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct VirtualHost {
    /// Name for logs and tools.
    pub name: Arc<str>,
    /// `host`, `*.suffix`, `prefix.*` or `*`; compared without case.
    pub domains: Vec<Arc<str>>,
    /// In order; the first match wins.
    pub routes: Vec<Arc<Route>>,
    /// Operations on requests to upstreams.
    pub request_headers: HeaderOperations,
    /// Operations on responses to clients.
    pub response_headers: HeaderOperations,
    /// For routes without their own.
    pub retry: Option<Arc<RetryPolicy>>,
    /// Send `x-envoy-attempt-count` upstream.
    pub include_request_attempt_count: bool,
    /// Send `x-envoy-attempt-count` downstream.
    pub include_attempt_count_in_response: bool,
    /// Per-filter configuration.
    pub per_filter: Vec<PerFilterConfig>,
}

/// One route.
#[derive(Debug, Clone, PartialEq)]
pub struct Route {
    /// Name for logs; may be empty.
    pub name: Arc<str>,
    /// What it takes.
    pub matches: RouteMatch,
    /// What it does.
    pub action: RouteAction,
    /// Operations on requests to upstreams.
    pub request_headers: HeaderOperations,
    /// Operations on responses to clients.
    pub response_headers: HeaderOperations,
    /// Per-filter configuration.
    pub per_filter: Vec<PerFilterConfig>,
}

impl Route {
    /// Everything under `prefix` to one cluster, no timeout, no retries.
    #[must_use]
    pub fn forward(prefix: &str, cluster: &str) -> Self {
        Self {
            name: "".into(),
            matches: RouteMatch { path: PathMatch::Prefix(prefix.into()), ..RouteMatch::default() },
            action: RouteAction::Forward(Box::new(Forward::new(ClusterSpecifier::Name(cluster.into())))),
            request_headers: HeaderOperations::default(),
            response_headers: HeaderOperations::default(),
            per_filter: Vec::new(),
        }
    }
}

/// Criteria of a route, all of which must hold.
#[derive(Debug, Clone, PartialEq)]
pub struct RouteMatch {
    /// The path.
    pub path: PathMatch,
    /// Whether case matters in the path (not for regular expressions). Default true.
    pub case_sensitive: bool,
    /// Headers.
    pub headers: Vec<HeaderMatcher>,
    /// Query parameters.
    pub query: Vec<QueryMatcher>,
    /// Only gRPC requests.
    pub grpc: bool,
    /// Only this share of requests.
    pub fraction: Option<Fraction>,
}

impl Default for RouteMatch {
    fn default() -> Self {
        Self {
            path: PathMatch::Prefix("/".into()),
            case_sensitive: true,
            headers: Vec::new(),
            query: Vec::new(),
            grpc: false,
            fraction: None,
        }
    }
}

/// Criteria of a path, without query.
#[derive(Debug, Clone, PartialEq)]
pub enum PathMatch {
    /// Begins with.
    Prefix(Arc<str>),
    /// Is.
    Exact(Arc<str>),
    /// Matches as a whole.
    Regex(Regex),
    /// Is, or begins with this and `/`.
    PathSeparatedPrefix(Arc<str>),
    /// A CONNECT request.
    Connect,
}

/// What a route does.
#[derive(Debug, Clone, PartialEq)]
pub enum RouteAction {
    /// Sends the request upstream.
    Forward(Box<Forward>),
    /// Answers with a redirect.
    Redirect(Box<Redirect>),
    /// Answers.
    Direct(DirectResponse),
    /// The action was not valid when it was configured: answers 500, and the configuration error said why.
    Invalid {
        /// What was wrong.
        reason: Arc<str>,
    },
}

/// Forwarding.
#[derive(Debug, Clone, PartialEq)]
pub struct Forward {
    /// Where to.
    pub cluster: ClusterSpecifier,
    /// For the whole response, retries included. `None` is no limit (Istio's default; Envoy's is 15 s).
    pub timeout: Option<Duration>,
    /// Without a byte in either direction. `None` leaves it to the connection manager, zero is no limit.
    pub idle_timeout: Option<Duration>,
    /// Bound for the client's `grpc-timeout` header: `None` ignores the header, zero accepts any.
    pub max_grpc_timeout: Option<Duration>,
    /// Retries.
    pub retry: Option<Arc<RetryPolicy>>,
    /// Path rewrite.
    pub rewrite: Option<PathRewrite>,
    /// Host rewrite.
    pub host_rewrite: HostRewrite,
    /// Append the host that was asked for to `x-forwarded-host` when it is rewritten. Default false.
    pub append_forwarded_host: bool,
    /// Shadow requests.
    pub mirrors: Vec<MirrorPolicy>,
    /// What consistent hashing hashes.
    pub hash_policies: Vec<HashPolicy>,
    /// When the cluster is unknown. Default 503.
    pub cluster_not_found: StatusCode,
    /// Upgrades allowed or refused here, overriding the connection manager: lower-case name (`connect` for CONNECT
    /// requests), enabled.
    pub upgrades: Vec<(Arc<str>, bool)>,
}

impl Forward {
    /// Forwards with no timeout, no retries, nothing changed.
    #[must_use]
    pub fn new(cluster: ClusterSpecifier) -> Self {
        Self {
            cluster,
            timeout: None,
            idle_timeout: None,
            max_grpc_timeout: None,
            retry: None,
            rewrite: None,
            host_rewrite: HostRewrite::None,
            append_forwarded_host: false,
            mirrors: Vec::new(),
            hash_policies: Vec::new(),
            cluster_not_found: StatusCode::SERVICE_UNAVAILABLE,
            upgrades: Vec::new(),
        }
    }
}

/// Which cluster.
#[derive(Debug, Clone, PartialEq)]
pub enum ClusterSpecifier {
    /// This one.
    Name(Arc<str>),
    /// One of these by weight; the total is the sum and above 0.
    Weighted(Vec<WeightedCluster>),
    /// The one named by a request header (HTTP only).
    Header(HeaderName),
}

/// A weighted choice.
#[derive(Debug, Clone, PartialEq)]
pub struct WeightedCluster {
    /// The cluster.
    pub name: Arc<str>,
    /// Its share.
    pub weight: u32,
    /// Operations on requests, before the route's.
    pub request_headers: HeaderOperations,
    /// Operations on responses, before the route's.
    pub response_headers: HeaderOperations,
    /// Host rewrite for this choice.
    pub host_rewrite: Option<HeaderValue>,
    /// Per-filter configuration.
    pub per_filter: Vec<PerFilterConfig>,
}

impl WeightedCluster {
    /// A choice without header operations.
    #[must_use]
    pub fn new(name: &str, weight: u32) -> Self {
        Self {
            name: name.into(),
            weight,
            request_headers: HeaderOperations::default(),
            response_headers: HeaderOperations::default(),
            host_rewrite: None,
            per_filter: Vec::new(),
        }
    }
}

/// Changes the path sent upstream.
#[derive(Debug, Clone, PartialEq)]
pub enum PathRewrite {
    /// Replaces what the route matched (the whole path for exact and regex matches), keeping the query.
    Prefix(Arc<str>),
    /// Replaces every match of a pattern; `\1` refers to groups.
    Regex {
        /// The pattern, matched anywhere.
        pattern: Regex,
        /// The replacement.
        substitution: Arc<str>,
    },
}

/// Changes the host sent upstream.
#[derive(Debug, Clone, PartialEq, Default)]
pub enum HostRewrite {
    /// Unchanged.
    #[default]
    None,
    /// This host.
    Literal(HeaderValue),
    /// The endpoint's host name, where it has one.
    Endpoint,
    /// The value of another header.
    Header(HeaderName),
}

/// A shadow request: sent, answer ignored.
#[derive(Debug, Clone, PartialEq)]
pub struct MirrorPolicy {
    /// Where to.
    pub cluster: Arc<str>,
    /// Share of requests.
    pub fraction: Fraction,
    /// Append `-shadow` to the host.
    pub shadow_host_suffix: bool,
}

/// One part of the hash of consistent hashing.
#[derive(Debug, Clone, PartialEq)]
pub struct HashPolicy {
    /// What is hashed.
    pub source: HashSource,
    /// Later policies count only while there is no hash yet.
    pub terminal: bool,
}

/// What consistent hashing hashes.
#[derive(Debug, Clone, PartialEq)]
pub enum HashSource {
    /// A header's value.
    Header(HeaderName),
    /// A cookie, generated and set on the response when `ttl` is given and it is missing.
    Cookie {
        /// Name.
        name: Arc<str>,
        /// Lifetime of a generated cookie; zero is a session cookie; `None` never generates.
        ttl: Option<Duration>,
        /// Path of a generated cookie; may be empty.
        path: Arc<str>,
        /// Further attributes of a generated cookie: name and value, which may be empty.
        attributes: Vec<(Arc<str>, Arc<str>)>,
    },
    /// The client's address.
    SourceIp,
    /// A query parameter.
    Query(Arc<str>),
}

/// Answers with a redirect.
#[derive(Debug, Clone, PartialEq)]
pub struct Redirect {
    /// 301, 302, 303, 307 or 308.
    pub code: StatusCode,
    /// Scheme; `None` keeps.
    pub scheme: Option<Arc<str>>,
    /// Host; `None` keeps.
    pub host: Option<Arc<str>>,
    /// Port; `None` keeps.
    pub port: Option<u16>,
    /// Path (with query, if it has one); `None` keeps.
    pub path: Option<Arc<str>>,
    /// Replaces the matched prefix; used when `path` is `None`.
    pub prefix_rewrite: Option<Arc<str>>,
    /// Drop the query.
    pub strip_query: bool,
}

/// Answers.
#[derive(Debug, Clone, PartialEq)]
pub struct DirectResponse {
    /// Status.
    pub status: StatusCode,
    /// Body, at most 1 MiB by Istio's rule.
    pub body: Bytes,
}

/// When and how often a request is tried again.
#[derive(Debug, Clone, PartialEq)]
pub struct RetryPolicy {
    /// Conditions.
    pub on: RetryOn,
    /// Status codes for [`RetryOn::RETRIABLE_STATUS_CODES`].
    pub status_codes: Vec<StatusCode>,
    /// Retries after the first attempt.
    pub num_retries: u32,
    /// For each attempt; dropped for none.
    pub per_try_timeout: Option<Duration>,
    /// Do not use a host again that was already tried (`previous_hosts`).
    pub avoid_previous_hosts: bool,
    /// How often another host is looked for. Default 1; Istio sends 5.
    pub host_selection_attempts: u32,
    /// Prefer priorities not tried yet, recomputed after this many attempts (`previous_priorities`).
    pub avoid_previous_priorities: Option<u32>,
    /// Base of the jittered back-off. Default 25 ms.
    pub base_interval: Duration,
    /// Longest back-off. Default ten times the base.
    pub max_interval: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            on: RetryOn::empty(),
            status_codes: Vec::new(),
            num_retries: 1,
            per_try_timeout: None,
            avoid_previous_hosts: false,
            host_selection_attempts: 1,
            avoid_previous_priorities: None,
            base_interval: Duration::from_millis(25),
            max_interval: Duration::from_millis(250),
        }
    }
}

/// A set of retry conditions (Envoy's `x-envoy-retry-on` and `x-envoy-retry-grpc-on` words).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RetryOn(u32);

impl RetryOn {
    /// Any 5xx, and every reset or timeout before headers.
    pub const FIVE_XX: Self = Self(1);
    /// 502, 503, 504.
    pub const GATEWAY_ERROR: Self = Self(1 << 1);
    /// The upstream did not answer at all.
    pub const RESET: Self = Self(1 << 2);
    /// Reset before the request was sent (a reused connection that the peer had closed).
    pub const RESET_BEFORE_REQUEST: Self = Self(1 << 3);
    /// The connection could not be made.
    pub const CONNECT_FAILURE: Self = Self(1 << 4);
    /// HTTP/2 `REFUSED_STREAM`.
    pub const REFUSED_STREAM: Self = Self(1 << 5);
    /// 409.
    pub const RETRIABLE_4XX: Self = Self(1 << 6);
    /// The listed status codes.
    pub const RETRIABLE_STATUS_CODES: Self = Self(1 << 7);
    /// gRPC status 1 in the response headers.
    pub const GRPC_CANCELLED: Self = Self(1 << 8);
    /// gRPC status 4 in the response headers.
    pub const GRPC_DEADLINE_EXCEEDED: Self = Self(1 << 9);
    /// gRPC status 8 in the response headers.
    pub const GRPC_RESOURCE_EXHAUSTED: Self = Self(1 << 10);
    /// gRPC status 13 in the response headers.
    pub const GRPC_INTERNAL: Self = Self(1 << 11);
    /// gRPC status 14 in the response headers.
    pub const GRPC_UNAVAILABLE: Self = Self(1 << 12);

    /// No condition.
    #[must_use]
    pub const fn empty() -> Self {
        Self(0)
    }

    /// Either set's conditions.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether the two share a condition.
    #[must_use]
    pub const fn intersects(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// Whether nothing is retried.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Reads Envoy's comma-separated words; unknown words are ignored, as Envoy does.
    #[must_use]
    pub fn parse(words: &str) -> Self {
        words.split(',').map(str::trim).fold(Self::empty(), |set, word| {
            set.union(match word {
                "5xx" => Self::FIVE_XX,
                "gateway-error" => Self::GATEWAY_ERROR,
                "reset" => Self::RESET,
                "reset-before-request" => Self::RESET_BEFORE_REQUEST,
                "connect-failure" => Self::CONNECT_FAILURE,
                "refused-stream" => Self::REFUSED_STREAM,
                "retriable-4xx" => Self::RETRIABLE_4XX,
                "retriable-status-codes" => Self::RETRIABLE_STATUS_CODES,
                "cancelled" => Self::GRPC_CANCELLED,
                "deadline-exceeded" => Self::GRPC_DEADLINE_EXCEEDED,
                "resource-exhausted" => Self::GRPC_RESOURCE_EXHAUSTED,
                "internal" => Self::GRPC_INTERNAL,
                "unavailable" => Self::GRPC_UNAVAILABLE,
                _ => Self::empty(),
            })
        })
    }
}

impl RouteConfiguration {
    /// Routes whose action is not valid: `virtual host/route: reason`. They answer 500 and belong into the NACK.
    #[must_use]
    pub fn invalid_routes(&self) -> Vec<String> {
        let of_host = |host: &VirtualHost| {
            let routes = host.routes.iter().filter_map(|route| match &route.action {
                RouteAction::Invalid { reason } => Some(format!("{}/{}: {reason}", host.name, route.name)),
                _ => None,
            });
            routes.collect::<Vec<_>>()
        };
        self.virtual_hosts.iter().flat_map(of_host).collect()
    }
}
