//! What a matching route does.
#![allow(deprecated, reason = "the proxies in use read these fields, not their successors")]

use std::sync::Arc;
use std::time::Duration;

use mesh_xds::pb::envoy::config::core::v3 as core;
use mesh_xds::pb::envoy::config::route::v3 as pb;
use mesh_xds::pb::envoy::config::route::v3::route_action;
use mesh_xds::pb::envoy::extensions::filters::common::fault::v3 as common_fault;
use mesh_xds::pb::envoy::extensions::filters::http::cors::v3 as cors;
use mesh_xds::pb::envoy::extensions::filters::http::fault::v3 as fault;
use mesh_xds::pb::envoy::extensions::retry::host::previous_hosts::v3::PreviousHostsPredicate;
use mesh_xds::pb::envoy::extensions::retry::priority::previous_priorities::v3::PreviousPrioritiesConfig;
use mesh_xds::pb::envoy::r#type::matcher::v3 as matcher;
use prost_types::Any;

use super::super::matching;
use super::super::names::ClusterName;
use super::super::policy::Merged;
use super::super::proto::{any, duration, fraction, metadata, regex_matcher, structure, text};
use super::super::view::Program;
use super::headers::Operations;
use crate::model::{RouteRule, Service};
use crate::resources::{
    CorsPolicy, Destination, DirectResponse, Fault, HttpMatch, HttpRoute, Percent, Redirect, Retry,
};
use crate::store::resolve_host;

/// Conditions of the retry policy that every route has unless told otherwise.
const DEFAULT_RETRY_ON: &str = "connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes";
const DEFAULT_RETRIES: u32 = 2;
const HOST_SELECTION_ATTEMPTS: i64 = 5;

/// What a VirtualService's routes are translated in.
pub(super) struct Context<'c, 'm> {
    pub(super) program: &'c Program<'m>,
    pub(super) rule: &'c RouteRule,
    pub(super) port: u16,
    pub(super) service: Option<&'c Arc<Service>>,
}

impl Context<'_, '_> {
    pub(super) fn route(
        &self,
        http: &HttpRoute,
        m: Option<&HttpMatch>,
        route_match: pb::RouteMatch,
        name: String,
    ) -> pb::Route {
        let mut operations = Operations::of(http.headers.as_ref());
        let mut route = pb::Route {
            name,
            r#match: Some(route_match),
            stat_prefix: m.map(|m| m.stat_prefix.clone()).unwrap_or_default(),
            metadata: metadata([("istio".to_owned(), structure([("config", text(self.path()))]))].into()),
            ..pb::Route::default()
        };
        if let Some(host) = self.service.map(|service| &service.host).or_else(|| self.rule.hosts.first()) {
            let operation = format!("{host}:{}/*", self.port);
            route.decorator = Some(pb::Decorator { operation, propagate: None });
        }
        route.action = Some(if let Some(redirect) = &http.redirect {
            pb::route::Action::Redirect(redirection(redirect))
        } else if let Some(direct) = &http.direct_response {
            pb::route::Action::DirectResponse(direct_response(direct))
        } else {
            pb::route::Action::Route(self.forward(http, &mut operations))
        });
        if let Some(fault) = &http.fault {
            route.typed_per_filter_config.insert("envoy.filters.http.fault".to_owned(), fault_config(fault));
        }
        if let Some(policy) = &http.cors_policy {
            route.typed_per_filter_config.insert("envoy.filters.http.cors".to_owned(), cors_config(policy));
        }
        route.request_headers_to_add = operations.request_add;
        route.request_headers_to_remove = operations.request_remove;
        route.response_headers_to_add = operations.response_add;
        route.response_headers_to_remove = operations.response_remove;
        route
    }

    /// Where the route comes from, for tools.
    fn path(&self) -> String {
        format!(
            "/apis/networking.istio.io/v1alpha3/namespaces/{}/virtual-service/{}",
            self.rule.namespace, self.rule.name
        )
    }

    fn forward(&self, http: &HttpRoute, operations: &mut Operations) -> pb::RouteAction {
        let timeout = http.timeout.map_or(Duration::ZERO, |timeout| timeout.0);
        let mut action = pb::RouteAction {
            timeout: Some(duration(timeout)),
            max_grpc_timeout: Some(duration(timeout)),
            ..pb::RouteAction::default()
        };
        // With one destination its weight says nothing; of several, those of weight 0 take no part.
        let weighted: Vec<_> =
            http.route.iter().filter(|to| http.route.len() == 1 || to.weight > 0).collect();
        if let [only] = weighted.as_slice() {
            operations.append(only.headers.as_ref());
            let cluster = self.cluster(&only.destination);
            action.cluster_specifier = Some(route_action::ClusterSpecifier::Cluster(cluster));
            action.hash_policy = self.hash_policy(&only.destination);
        } else {
            let clusters = weighted.iter().map(|to| {
                let own = Operations::of(to.headers.as_ref());
                pb::weighted_cluster::ClusterWeight {
                    name: self.cluster(&to.destination),
                    weight: Some(to.weight),
                    request_headers_to_add: own.request_add,
                    request_headers_to_remove: own.request_remove,
                    response_headers_to_add: own.response_add,
                    response_headers_to_remove: own.response_remove,
                    host_rewrite_specifier: own
                        .host
                        .map(pb::weighted_cluster::cluster_weight::HostRewriteSpecifier::HostRewriteLiteral),
                    ..pb::weighted_cluster::ClusterWeight::default()
                }
            });
            let clusters =
                pb::WeightedCluster { clusters: clusters.collect(), ..pb::WeightedCluster::default() };
            action.cluster_specifier = Some(route_action::ClusterSpecifier::WeightedClusters(clusters));
            for to in &weighted {
                for policy in self.hash_policy(&to.destination) {
                    if !action.hash_policy.contains(&policy) {
                        action.hash_policy.push(policy);
                    }
                }
            }
        }
        action.retry_policy = match &http.retries {
            Some(retries) => user_retries(retries, action.hash_policy.is_empty()),
            None => Some(default_retries(action.hash_policy.is_empty())),
        };
        let mut host = operations.host.take();
        if let Some(rewrite) = &http.rewrite {
            if let Some(by_regex) = &rewrite.uri_regex_rewrite {
                action.regex_rewrite = Some(matcher::RegexMatchAndSubstitute {
                    pattern: Some(regex_matcher(&by_regex.pattern)),
                    substitution: by_regex.rewrite.clone(),
                });
            } else if let Some(uri) = &rewrite.uri {
                action.prefix_rewrite.clone_from(uri);
            }
            host = rewrite.authority.clone().or(host);
        }
        action.host_rewrite_specifier = host.map(route_action::HostRewriteSpecifier::HostRewriteLiteral);
        action.request_mirror_policies = self.mirrors(http);
        action
    }

    fn mirrors(&self, http: &HttpRoute) -> Vec<route_action::RequestMirrorPolicy> {
        let share =
            http.mirror_percentage.or_else(|| http.mirror_percent.map(|p| Percent { value: f64::from(p) }));
        let single = http.mirror.iter().map(|to| (to, share));
        let several = http.mirrors.iter().map(|mirror| (&mirror.destination, mirror.percentage));
        let policy = |(to, share): (&Destination, Option<Percent>)| route_action::RequestMirrorPolicy {
            cluster: self.cluster(to),
            runtime_fraction: Some(core::RuntimeFractionalPercent {
                default_value: Some(fraction(share.map_or(100.0, |share| share.value))),
                ..core::RuntimeFractionalPercent::default()
            }),
            trace_sampled: Some(false),
            disable_shadow_host_suffix_append: true,
            ..route_action::RequestMirrorPolicy::default()
        };
        let nothing = |share: &Option<Percent>| share.is_some_and(|share| share.value == 0.0);
        single.chain(several).filter(|(_, share)| !nothing(share)).map(policy).collect()
    }

    fn cluster(&self, to: &Destination) -> String {
        destination_cluster(self.program, &self.rule.namespace, to, self.port)
    }

    fn hash_policy(&self, to: &Destination) -> Vec<route_action::HashPolicy> {
        let host = resolve_host(&to.host, &self.rule.namespace, &self.program.mesh.settings.domain);
        let Some(service) = self.program.service(&host) else { return Vec::new() };
        let port = destination_port(Some(service), to, self.port);
        hash_policy(self.program, service, port, &to.subset)
    }
}

/// The cluster of a destination. Hosts and subsets that are not in view are named all the same: the proxy answers 503
/// with "cluster not found".
pub(in super::super) fn destination_cluster(
    program: &Program<'_>,
    namespace: &str,
    to: &Destination,
    listener_port: u16,
) -> String {
    let host = resolve_host(&to.host, namespace, &program.mesh.settings.domain);
    let port = destination_port(program.service(&host).map(|s| &**s), to, listener_port);
    ClusterName { port, subset: &to.subset, host: &host }.to_string()
}

/// Explicit, else the service's only one, else the listener's.
fn destination_port(service: Option<&Service>, to: &Destination, listener_port: u16) -> u16 {
    match (&to.port, service.map(|s| s.ports.as_slice())) {
        (Some(port), _) => port.number,
        (None, Some([only])) => only.port,
        _ => listener_port,
    }
}

/// What requests are hashed by, as the destination's rule says.
pub(super) fn hash_policy(
    program: &Program<'_>,
    service: &Service,
    port: u16,
    subset: &str,
) -> Vec<route_action::HashPolicy> {
    use route_action::hash_policy::{ConnectionProperties, Cookie, Header, PolicySpecifier, QueryParameter};
    let merged = Merged::new(program.traffic_for(service));
    let subset = merged.subsets().into_iter().find(|s| s.name == subset);
    let policy = merged.policy(port, subset);
    let Some(hash) = policy.load_balancer.and_then(|lb| lb.consistent_hash.as_ref()) else {
        return Vec::new();
    };
    let specifier = if let Some(name) = &hash.http_header_name {
        PolicySpecifier::Header(Header { header_name: name.clone(), ..Header::default() })
    } else if let Some(cookie) = &hash.http_cookie {
        PolicySpecifier::Cookie(Cookie {
            name: cookie.name.clone(),
            ttl: cookie.ttl.map(|ttl| duration(ttl.0)),
            path: cookie.path.clone(),
            ..Cookie::default()
        })
    } else if let Some(name) = &hash.http_query_parameter_name {
        PolicySpecifier::QueryParameter(QueryParameter { name: name.clone() })
    } else if hash.use_source_ip == Some(true) {
        PolicySpecifier::ConnectionProperties(ConnectionProperties { source_ip: true })
    } else {
        return Vec::new();
    };
    vec![route_action::HashPolicy { terminal: false, policy_specifier: Some(specifier) }]
}

/// The policy of routes that say nothing about retries. `spread`: avoid hosts already tried (not with affinity).
pub(super) fn default_retries(spread: bool) -> pb::RetryPolicy {
    pb::RetryPolicy {
        retry_on: DEFAULT_RETRY_ON.to_owned(),
        num_retries: Some(DEFAULT_RETRIES),
        retry_host_predicate: if spread { vec![previous_hosts()] } else { Vec::new() },
        host_selection_retry_max_attempts: HOST_SELECTION_ATTEMPTS,
        ..pb::RetryPolicy::default()
    }
}

fn previous_hosts() -> pb::retry_policy::RetryHostPredicate {
    pb::retry_policy::RetryHostPredicate {
        name: "envoy.retry_host_predicates.previous_hosts".to_owned(),
        config_type: Some(pb::retry_policy::retry_host_predicate::ConfigType::TypedConfig(any(
            &PreviousHostsPredicate {},
        ))),
    }
}

/// No attempts, given or not, means no retries at all.
fn user_retries(retries: &Retry, spread: bool) -> Option<pb::RetryPolicy> {
    let attempts = u32::try_from(retries.attempts).ok().filter(|attempts| *attempts > 0)?;
    let spread = spread && retries.retry_ignore_previous_hosts != Some(false);
    let mut policy = default_retries(spread);
    policy.num_retries = Some(attempts);
    policy.per_try_timeout = retries.per_try_timeout.map(|timeout| duration(timeout.0));
    if !retries.retry_on.is_empty() {
        let mut words = Vec::new();
        for word in retries.retry_on.split(',').map(str::trim).filter(|word| !word.is_empty()) {
            match word.parse::<u32>() {
                Ok(code) => policy.retriable_status_codes.push(code),
                Err(_) => words.push(word),
            }
        }
        if !policy.retriable_status_codes.is_empty() && !words.contains(&"retriable-status-codes") {
            words.push("retriable-status-codes");
        }
        policy.retry_on = words.join(",");
    }
    if retries.retry_remote_localities == Some(true) {
        policy.retry_priority = Some(pb::retry_policy::RetryPriority {
            name: "envoy.retry_priorities.previous_priorities".to_owned(),
            config_type: Some(pb::retry_policy::retry_priority::ConfigType::TypedConfig(any(
                &PreviousPrioritiesConfig { update_frequency: 2 },
            ))),
        });
    }
    policy.retry_back_off = retries.backoff.map(|base| pb::retry_policy::RetryBackOff {
        base_interval: Some(duration(base.0)),
        max_interval: None,
    });
    Some(policy)
}

fn redirection(redirect: &Redirect) -> pb::RedirectAction {
    use pb::redirect_action::{PathRewriteSpecifier, RedirectResponseCode, SchemeRewriteSpecifier};
    let code = match redirect.redirect_code.unwrap_or(301) {
        302 => RedirectResponseCode::Found,
        303 => RedirectResponseCode::SeeOther,
        307 => RedirectResponseCode::TemporaryRedirect,
        308 => RedirectResponseCode::PermanentRedirect,
        _ => RedirectResponseCode::MovedPermanently,
    };
    let default_port = match redirect.derive_port.as_deref() {
        Some("FROM_PROTOCOL_DEFAULT") => {
            Some(if redirect.scheme.as_deref() == Some("https") { 443 } else { 80 })
        }
        _ => None,
    };
    pb::RedirectAction {
        host_redirect: redirect.authority.clone().unwrap_or_default(),
        response_code: code.into(),
        port_redirect: redirect.port.or(default_port).map(u32::from).unwrap_or_default(),
        path_rewrite_specifier: redirect.uri.clone().map(PathRewriteSpecifier::PathRedirect),
        scheme_rewrite_specifier: redirect.scheme.clone().map(SchemeRewriteSpecifier::SchemeRedirect),
        strip_query: false,
    }
}

fn direct_response(direct: &DirectResponse) -> pb::DirectResponseAction {
    let specifier = direct.body.as_ref().and_then(|body| {
        use core::data_source::Specifier;
        let text = body.string.clone().map(Specifier::InlineString);
        text.or_else(|| {
            use base64::Engine as _;
            let bytes = base64::engine::general_purpose::STANDARD.decode(body.bytes.as_deref()?).ok()?;
            Some(Specifier::InlineBytes(bytes))
        })
    });
    pb::DirectResponseAction {
        status: direct.status,
        body: specifier
            .map(|specifier| core::DataSource { specifier: Some(specifier), watched_directory: None }),
        ..pb::DirectResponseAction::default()
    }
}

fn fault_config(config: &Fault) -> Any {
    use common_fault::fault_delay::FaultDelaySecifier;
    use fault::fault_abort::ErrorType;
    let delay = config.delay.as_ref().map(|delay| common_fault::FaultDelay {
        percentage: Some(fraction(
            delay.percentage.map_or_else(|| delay.percent.map_or(100.0, f64::from), |share| share.value),
        )),
        fault_delay_secifier: delay.fixed_delay.map(|d| FaultDelaySecifier::FixedDelay(duration(d.0))),
    });
    let abort = config.abort.as_ref().map(|abort| fault::FaultAbort {
        percentage: Some(fraction(abort.percentage.map_or(100.0, |share| share.value))),
        error_type: match (abort.http_status, &abort.grpc_status) {
            (Some(status), _) => Some(ErrorType::HttpStatus(status)),
            (None, Some(name)) => Some(ErrorType::GrpcStatus(grpc_code(name))),
            (None, None) => None,
        },
    });
    any(&fault::HttpFault { delay, abort, ..fault::HttpFault::default() })
}

/// A gRPC status by name or number; unknown names are `UNKNOWN`.
fn grpc_code(name: &str) -> u32 {
    const NAMES: [&str; 17] = [
        "OK",
        "CANCELLED",
        "UNKNOWN",
        "INVALID_ARGUMENT",
        "DEADLINE_EXCEEDED",
        "NOT_FOUND",
        "ALREADY_EXISTS",
        "PERMISSION_DENIED",
        "RESOURCE_EXHAUSTED",
        "FAILED_PRECONDITION",
        "ABORTED",
        "OUT_OF_RANGE",
        "UNIMPLEMENTED",
        "INTERNAL",
        "UNAVAILABLE",
        "DATA_LOSS",
        "UNAUTHENTICATED",
    ];
    let by_name = NAMES.iter().position(|known| *known == name).and_then(|code| u32::try_from(code).ok());
    by_name.or_else(|| name.parse().ok()).unwrap_or(2)
}

fn cors_config(policy: &CorsPolicy) -> Any {
    any(&cors::CorsPolicy {
        allow_origin_string_match: policy.allow_origins.iter().filter_map(matching::string).collect(),
        allow_methods: policy.allow_methods.join(","),
        allow_headers: policy.allow_headers.join(","),
        expose_headers: policy.expose_headers.join(","),
        max_age: policy.max_age.map(|age| age.0.as_secs().to_string()).unwrap_or_default(),
        allow_credentials: policy.allow_credentials,
        filter_enabled: Some(core::RuntimeFractionalPercent {
            default_value: Some(fraction(100.0)),
            ..core::RuntimeFractionalPercent::default()
        }),
        forward_not_matching_preflights: Some(policy.unmatched_preflights.as_deref() != Some("IGNORE")),
        ..cors::CorsPolicy::default()
    })
}
