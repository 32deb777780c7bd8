//! Network filters and HTTP filters.

use std::sync::Arc;

use ::http::{HeaderValue, StatusCode};
use bytes::Bytes;
use mesh_xds::pb::envoy::{
    config::{common::mutation_rules::v3 as rules, listener::v3 as listener, rbac::v3 as rbac_pb},
    extensions::filters::{
        common::fault::v3 as fault_common,
        http::{
            cors::v3 as cors_pb, fault::v3 as fault_pb, header_mutation::v3 as mutation_pb,
            local_ratelimit::v3 as limit_pb, rbac::v3 as http_rbac, router::v3 as router_pb,
        },
        network::{http_connection_manager::v3 as hcm, rbac::v3 as network_rbac, tcp_proxy::v3 as tcp_pb},
    },
};
use prost::Message;
use prost_types::Any;

use super::{
    At, Result, access_log::access_logs, audit::fields, decode, decode_if, duration, limit, limit_or,
    matcher, missing, rbac::rbac, type_name, unsupported,
};
use crate::{
    config::{
        AlpnOverride, ClusterSpecifier, Cors, CustomFilter, Fault, FaultAbort, FaultDelay, Fraction,
        HeaderMutation, HeaderOperations, HttpFilterConfig, HttpFilterKind, LocalRateLimit, NetworkFilter,
        NetworkRbac, PerFilterConfig, PerRoute, TcpProxy, WeightedCluster,
    },
    error::ConfigError,
};

/// A network filter; `None` for telemetry that is built in.
pub(super) fn network_filter(message: &listener::Filter) -> Result<Option<NetworkFilter>> {
    let any = match &message.config_type {
        Some(listener::filter::ConfigType::TypedConfig(any)) => any,
        Some(listener::filter::ConfigType::ConfigDiscovery(_)) => {
            return Err(unsupported("config_discovery", &message.name));
        }
        None => return Err(missing("typed_config")),
    };
    if let Some(manager) = decode_if::<hcm::HttpConnectionManager>(any)? {
        return super::http::manager(&manager).map(|m| Some(NetworkFilter::Http(Arc::new(m))));
    }
    if let Some(tcp) = decode_if::<tcp_pb::TcpProxy>(any)? {
        return tcp_proxy(&tcp).map(|t| Some(NetworkFilter::TcpProxy(t)));
    }
    if let Some(filter) = decode_if::<network_rbac::Rbac>(any)? {
        fields!(&filter => network_rbac::Rbac {
            obeyed: [rules, shadow_rules, stat_prefix, shadow_rules_stat_prefix, matcher, shadow_matcher],
            refused: [enforcement_type, delay_deny],
        });
        let rbac = rbac(
            filter.rules.as_ref(),
            filter.shadow_rules.as_ref(),
            &filter.shadow_rules_stat_prefix,
            filter.matcher.is_some() || filter.shadow_matcher.is_some(),
        )?;
        return Ok(Some(NetworkFilter::Rbac(NetworkRbac {
            stat_prefix: filter.stat_prefix.as_str().into(),
            rbac: Arc::new(rbac),
        })));
    }
    match (message.name.as_str(), type_name(any)) {
        // Istio's TCP telemetry, which is built in.
        ("istio.stats", _) | (_, "stats.PluginConfig") => Ok(None),
        (_, kind) => Err(unsupported("typed_config", kind)),
    }
}

fn tcp_proxy(message: &tcp_pb::TcpProxy) -> Result<TcpProxy> {
    use tcp_pb::tcp_proxy::ClusterSpecifier as Wire;
    fields!(message => tcp_pb::TcpProxy {
        obeyed: [
            stat_prefix, access_log, max_connect_attempts, idle_timeout, hash_policy,
            max_downstream_connection_duration, cluster_specifier,
        ],
        refused: [
            downstream_idle_timeout, upstream_idle_timeout, metadata_match, tunneling_config, on_demand,
            access_log_flush_interval, flush_access_log_on_connected, access_log_options, backoff_options,
            proxy_protocol_tlvs, max_downstream_connection_duration_jitter_percentage, upstream_connect_mode,
            max_early_data_bytes,
        ],
    });
    use mesh_xds::pb::envoy::r#type::v3::hash_policy::PolicySpecifier;
    let mut hash_source_ip = false;
    for policy in &message.hash_policy {
        match &policy.policy_specifier {
            Some(PolicySpecifier::SourceIp(_)) => hash_source_ip = true,
            Some(PolicySpecifier::FilterState(state)) => {
                return Err(unsupported("hash_policy.filter_state", &state.key));
            }
            None => return Err(missing("hash_policy")),
        }
    }
    let cluster = match message.cluster_specifier.as_ref().ok_or_else(|| missing("cluster_specifier"))? {
        Wire::Cluster(name) => ClusterSpecifier::Name(name.as_str().into()),
        Wire::WeightedClusters(all) => {
            for cluster in &all.clusters {
                fields!(cluster => tcp_pb::tcp_proxy::weighted_cluster::ClusterWeight {
                    obeyed: [name, weight],
                    refused: [metadata_match],
                });
            }
            let clusters: Vec<_> =
                all.clusters.iter().map(|c| WeightedCluster::new(&c.name, c.weight)).collect();
            if clusters.iter().all(|c| c.weight == 0) {
                return Err(ConfigError::invalid("weighted_clusters", "0", "the weights sum to 0"));
            }
            ClusterSpecifier::Weighted(clusters)
        }
    };
    let hour = Some(std::time::Duration::from_secs(3600));
    Ok(TcpProxy {
        stat_prefix: message.stat_prefix.as_str().into(),
        cluster,
        idle_timeout: limit_or("idle_timeout", message.idle_timeout.as_ref(), hour)?,
        max_connect_attempts: message.max_connect_attempts.unwrap_or(1).max(1),
        max_connection_duration: limit(
            "max_downstream_connection_duration",
            message.max_downstream_connection_duration.as_ref(),
        )?,
        hash_source_ip,
        access_logs: access_logs(&message.access_log)?,
    })
}

/// `istio.alpn`'s configuration, which is not among Envoy's own messages.
#[derive(Clone, PartialEq, Message)]
struct AlpnConfig {
    #[prost(message, repeated, tag = "1")]
    overrides: Vec<AlpnEntry>,
}

#[derive(Clone, PartialEq, Message)]
struct AlpnEntry {
    /// 0 HTTP/1.0, 1 HTTP/1.1, 2 HTTP/2.
    #[prost(int32, tag = "1")]
    upstream_protocol: i32,
    #[prost(string, repeated, tag = "2")]
    protocols: Vec<String>,
}

fn alpn(any: &Any) -> Result<AlpnOverride> {
    let config: AlpnConfig = decode(any)?;
    let list = |protocol| {
        let entry = config.overrides.iter().find(|e| e.upstream_protocol == protocol);
        entry.into_iter().flat_map(|e| &e.protocols).map(|p| Arc::from(p.as_str())).collect()
    };
    Ok(AlpnOverride { http10: list(0), http11: list(1), http2: list(2) })
}

/// Filters whose telemetry is built into the data path.
fn is_telemetry(name: &str, kind: &str) -> bool {
    matches!(
        kind,
        "envoy.extensions.filters.http.grpc_stats.v3.FilterConfig"
            | "stats.PluginConfig"
            | "io.istio.http.peer_metadata.Config"
    ) || name == "istio.metadata_exchange"
}

/// An HTTP filter; `None` for an unknown one that says it is optional.
pub(super) fn http_filter(message: &hcm::HttpFilter) -> Result<Option<HttpFilterConfig>> {
    let any = match &message.config_type {
        Some(hcm::http_filter::ConfigType::TypedConfig(any)) => any,
        Some(hcm::http_filter::ConfigType::ConfigDiscovery(_)) => {
            return Err(unsupported("config_discovery", &message.name));
        }
        None => return Err(missing("typed_config")),
    };
    let kind = match kind(message, any) {
        Ok(kind) => kind,
        Err(ConfigError::Unsupported { .. }) if message.is_optional => return Ok(None),
        Err(error) => return Err(error),
    };
    let name = Arc::from(message.name.as_str());
    Ok(Some(HttpFilterConfig { name, kind, disabled: message.disabled }))
}

fn kind(message: &hcm::HttpFilter, any: &Any) -> Result<HttpFilterKind> {
    let kind = type_name(any);
    if let Some(router) = decode_if::<router_pb::Router>(any)? {
        fields!(&router => router_pb::Router {
            obeyed: [suppress_envoy_headers],
            // Statistics and spans.
            ignored: [dynamic_stats, start_child_span, suppress_grpc_request_failure_code_stats],
            refused: [
                upstream_log, strict_check_headers, respect_expected_rq_timeout, upstream_http_filters,
                upstream_log_options,
            ],
        });
        return Ok(HttpFilterKind::Router { suppress_envoy_headers: router.suppress_envoy_headers });
    }
    if let Some(filter) = decode_if::<http_rbac::Rbac>(any)? {
        return Ok(HttpFilterKind::Rbac(Arc::new(http_rbac(&filter)?)));
    }
    if let Some(filter) = decode_if::<fault_pb::HttpFault>(any)? {
        return Ok(HttpFilterKind::Fault(Arc::new(fault(&filter)?)));
    }
    if let Some(filter) = decode_if::<mutation_pb::HeaderMutation>(any)? {
        fields!(&filter => mutation_pb::HeaderMutation {
            obeyed: [mutations],
            refused: [most_specific_header_mutations_wins],
        });
        return Ok(HttpFilterKind::HeaderMutation(Arc::new(mutations(filter.mutations.as_ref())?)));
    }
    if let Some(filter) = decode_if::<limit_pb::LocalRateLimit>(any)? {
        return Ok(HttpFilterKind::LocalRateLimit(Arc::new(rate_limit(&filter)?)));
    }
    match kind {
        "envoy.extensions.filters.http.cors.v3.Cors" => Ok(HttpFilterKind::Cors),
        "istio.envoy.config.filter.http.alpn.v2alpha1.FilterConfig" => {
            alpn(any).map(HttpFilterKind::AlpnOverride)
        }
        kind if is_telemetry(&message.name, kind) => Ok(HttpFilterKind::Telemetry),
        // A program may bring its own filters; whether it does is checked when the listener is applied.
        kind if !kind.starts_with("envoy.") => Ok(HttpFilterKind::Custom(CustomFilter {
            factory: kind.into(),
            config: Bytes::copy_from_slice(&any.value),
        })),
        kind => Err(unsupported("typed_config", kind)),
    }
}

fn http_rbac(filter: &http_rbac::Rbac) -> Result<crate::config::Rbac> {
    fields!(filter => http_rbac::Rbac {
        obeyed: [rules, shadow_rules, shadow_rules_stat_prefix, matcher, shadow_matcher],
        // Statistics.
        ignored: [rules_stat_prefix, track_per_rule_stats],
    });
    let rules: Option<&rbac_pb::Rbac> = filter.rules.as_ref();
    let has_matcher = filter.matcher.is_some() || filter.shadow_matcher.is_some();
    rbac(rules, filter.shadow_rules.as_ref(), &filter.shadow_rules_stat_prefix, has_matcher)
}

fn fault(message: &fault_pb::HttpFault) -> Result<Fault> {
    fields!(message => fault_pb::HttpFault {
        obeyed: [delay, abort, upstream_cluster, headers, max_active_faults],
        // Keys of a runtime that does not exist here, and statistics.
        ignored: [
            delay_percent_runtime, abort_percent_runtime, delay_duration_runtime, abort_http_status_runtime,
            max_active_faults_runtime, response_rate_limit_percent_runtime, abort_grpc_status_runtime,
            disable_downstream_cluster_stats, filter_metadata,
        ],
        refused: [downstream_nodes, response_rate_limit],
    });
    let delay = message.delay.as_ref().map(|delay| {
        let fraction = delay.percentage.as_ref().map_or(Fraction(0), matcher::fraction);
        match &delay.fault_delay_secifier {
            Some(fault_common::fault_delay::FaultDelaySecifier::FixedDelay(fixed)) => {
                Ok(FaultDelay { duration: duration("delay.fixed_delay", fixed)?, fraction })
            }
            _ => Err(unsupported("delay", "a delay given by a header")),
        }
    });
    let abort = message.abort.as_ref().map(|abort| {
        let fraction = abort.percentage.as_ref().map_or(Fraction(0), matcher::fraction);
        match &abort.error_type {
            Some(fault_pb::fault_abort::ErrorType::HttpStatus(code)) => {
                Ok(FaultAbort { status: status("abort.http_status", *code)?, grpc_status: None, fraction })
            }
            Some(fault_pb::fault_abort::ErrorType::GrpcStatus(code)) => {
                Ok(FaultAbort { status: StatusCode::OK, grpc_status: Some(*code), fraction })
            }
            _ => Err(unsupported("abort", "an abort given by a header")),
        }
    });
    let cluster = &message.upstream_cluster;
    Ok(Fault {
        delay: delay.transpose()?,
        abort: abort.transpose()?,
        headers: matcher::headers(&message.headers, "headers")?,
        upstream_cluster: (!cluster.is_empty()).then(|| cluster.as_str().into()),
        max_active: message.max_active_faults,
    })
}

pub(super) fn status(field: &str, code: u32) -> Result<StatusCode> {
    u16::try_from(code)
        .ok()
        .and_then(|code| StatusCode::from_u16(code).ok())
        .ok_or_else(|| ConfigError::invalid(field, code, "not an HTTP status"))
}

fn mutations(message: Option<&mutation_pb::Mutations>) -> Result<HeaderMutation> {
    let Some(message) = message else { return Ok(HeaderMutation::default()) };
    fields!(message => mutation_pb::Mutations {
        obeyed: [request_mutations, response_mutations],
        refused: [query_parameter_mutations, response_trailers_mutations, request_trailers_mutations],
    });
    Ok(HeaderMutation {
        request: mutation(&message.request_mutations).at("request_mutations")?,
        response: mutation(&message.response_mutations).at("response_mutations")?,
    })
}

fn mutation(messages: &[rules::HeaderMutation]) -> Result<HeaderOperations> {
    let mut operations = HeaderOperations::default();
    for message in messages {
        match message.action.as_ref().ok_or_else(|| missing("action"))? {
            rules::header_mutation::Action::Remove(name) => {
                operations.remove.extend(matcher::operations(&[], std::slice::from_ref(name))?.remove);
            }
            rules::header_mutation::Action::Append(option) => {
                operations.add.extend(matcher::operation(option)?);
            }
            rules::header_mutation::Action::RemoveOnMatch(_) => {
                return Err(unsupported("remove_on_match", "removal by pattern"));
            }
        }
    }
    Ok(operations)
}

fn rate_limit(message: &limit_pb::LocalRateLimit) -> Result<LocalRateLimit> {
    fields!(message => limit_pb::LocalRateLimit {
        obeyed: [stat_prefix, status, token_bucket, filter_enabled, filter_enforced, response_headers_to_add],
        // About descriptors, of which there are none.
        ignored: [vh_rate_limits, always_consume_default_token_bucket, max_dynamic_descriptors, stage],
        refused: [
            descriptors, request_headers_to_add_when_not_enforced, local_rate_limit_per_downstream_connection,
            enable_x_ratelimit_headers, rate_limited_as_resource_exhausted, local_cluster_rate_limit,
            rate_limits,
        ],
    });
    let fraction = |f: Option<&mesh_xds::pb::envoy::config::core::v3::RuntimeFractionalPercent>| {
        f.map_or(Fraction(0), matcher::runtime_fraction)
    };
    let bucket = message.token_bucket.as_ref();
    let interval = bucket.and_then(|b| b.fill_interval.as_ref());
    let code = message.status.as_ref().map_or(429, |s| u32::try_from(s.code).unwrap_or(429));
    Ok(LocalRateLimit {
        stat_prefix: message.stat_prefix.as_str().into(),
        max_tokens: bucket.map_or(0, |b| b.max_tokens),
        tokens_per_fill: bucket.map_or(0, |b| b.tokens_per_fill.unwrap_or(1)),
        fill_interval: interval
            .map_or(Ok(std::time::Duration::from_secs(1)), |i| duration("fill_interval", i))?,
        // Envoy ignores codes below 400.
        status: if code < 400 { StatusCode::TOO_MANY_REQUESTS } else { status("status", code)? },
        enabled: fraction(message.filter_enabled.as_ref()),
        enforced: fraction(message.filter_enforced.as_ref()),
        response_headers: matcher::operations(&message.response_headers_to_add, &[])?,
    })
}

fn cors(message: &cors_pb::CorsPolicy) -> Result<Cors> {
    fields!(message => cors_pb::CorsPolicy {
        obeyed: [
            allow_origin_string_match, allow_methods, allow_headers, expose_headers, max_age,
            allow_credentials, filter_enabled, shadow_enabled, forward_not_matching_preflights,
        ],
        refused_if_true: [allow_private_network_access],
    });
    let share = |f: &Option<_>, absent| f.as_ref().map_or(absent, matcher::runtime_fraction);
    // All or nothing: a share of requests has no meaning to a browser.
    if share(&message.filter_enabled, Fraction::ALL) != Fraction::ALL {
        return Err(unsupported("filter_enabled", "a policy for a share of requests"));
    }
    if share(&message.shadow_enabled, Fraction(0)) != Fraction(0) {
        return Err(unsupported("shadow_enabled", "a policy that is only evaluated"));
    }
    let value = |field: &str, text: &str| match text {
        "" => Ok(None),
        text => HeaderValue::from_str(text)
            .map(Some)
            .map_err(|_| ConfigError::invalid(field, text, "not allowed in a header")),
    };
    Ok(Cors {
        allow_origins: matcher::strings(&message.allow_origin_string_match, "allow_origin_string_match")?,
        allow_methods: value("allow_methods", &message.allow_methods)?,
        allow_headers: value("allow_headers", &message.allow_headers)?,
        expose_headers: value("expose_headers", &message.expose_headers)?,
        max_age: value("max_age", &message.max_age)?,
        allow_credentials: message.allow_credentials.unwrap_or(false),
        forward_not_matching_preflights: message.forward_not_matching_preflights.unwrap_or(true),
    })
}

/// `envoy.config.route.v3.FilterConfig`: a wrapper that may turn a filter off.
#[derive(Clone, PartialEq, Message)]
struct Wrapper {
    #[prost(message, optional, tag = "1")]
    config: Option<Any>,
    #[prost(bool, tag = "2")]
    is_optional: bool,
    #[prost(bool, tag = "3")]
    disabled: bool,
}

/// Per-filter configuration of a route, virtual host, table or weighted cluster.
pub(super) fn per_filter<'a>(
    map: impl IntoIterator<Item = (&'a String, &'a Any)>,
) -> Result<Vec<PerFilterConfig>> {
    let mut all = Vec::new();
    for (filter, any) in map {
        let place = format!("typed_per_filter_config[{filter:?}]");
        let (config, disabled, optional) = if type_name(any) == "envoy.config.route.v3.FilterConfig" {
            let wrapper: Wrapper = decode(any).at(&place)?;
            (wrapper.config, wrapper.disabled, wrapper.is_optional)
        } else {
            (Some(any.clone()), false, false)
        };
        let config = match config.as_ref().map(per_route).transpose() {
            Ok(config) => config.flatten(),
            Err(ConfigError::Unsupported { .. }) if optional => continue,
            Err(error) => return Err(error).at(&place),
        };
        all.push(PerFilterConfig { filter: filter.as_str().into(), disabled, config });
    }
    Ok(all)
}

fn per_route(any: &Any) -> Result<Option<PerRoute>> {
    if let Some(message) = decode_if::<http_rbac::RbacPerRoute>(any)? {
        let rbac = message.rbac.as_ref().map(|m| http_rbac(m).map(Arc::new)).transpose()?;
        return Ok(Some(PerRoute::Rbac(rbac)));
    }
    if let Some(message) = decode_if::<fault_pb::HttpFault>(any)? {
        return Ok(Some(PerRoute::Fault(Arc::new(fault(&message)?))));
    }
    if let Some(message) = decode_if::<cors_pb::CorsPolicy>(any)? {
        return Ok(Some(PerRoute::Cors(Arc::new(cors(&message)?))));
    }
    if let Some(message) = decode_if::<mutation_pb::HeaderMutationPerRoute>(any)? {
        return Ok(Some(PerRoute::HeaderMutation(Arc::new(mutations(message.mutations.as_ref())?))));
    }
    if let Some(message) = decode_if::<limit_pb::LocalRateLimit>(any)? {
        return Ok(Some(PerRoute::LocalRateLimit(Arc::new(rate_limit(&message)?))));
    }
    match type_name(any) {
        kind if kind.starts_with("envoy.") => Err(unsupported("typed_config", kind)),
        _ => Ok(Some(PerRoute::Custom(Bytes::copy_from_slice(&any.value)))),
    }
}
