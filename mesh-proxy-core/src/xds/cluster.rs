//! Clusters.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc, time::Duration};

use mesh_xds::pb::envoy::{
    config::{cluster::v3 as pb, core::v3 as core},
    extensions::upstreams::http::v3 as upstream_http,
};
use pb::cluster::{ClusterDiscoveryType, DiscoveryType, LbConfig, LbPolicy as WireLb};
use prost_types::value::Kind;

use super::{
    At, Result, decode_if, duration, endpoint, limit, limit_or, missing, port, strings, tls, type_name,
    unsupported,
};
use crate::{
    config::{
        CircuitBreakers, Cluster, ClusterService, Discovery, HashFunction, LbPolicy, OutlierDetection,
        RetryBudget, SlowStart, TcpKeepalive, TransportSocket, TransportSocketMatch, UpstreamProtocol,
    },
    error::ConfigError,
};

#[allow(deprecated, reason = "old forms are still on the wire")]
pub(super) fn cluster(message: &pb::Cluster) -> Result<Cluster> {
    if message.name.is_empty() {
        return Err(missing("name"));
    }
    if !message.filters.is_empty() {
        return Err(unsupported("filters", "upstream network filters"));
    }
    if message.lb_subset_config.is_some() {
        return Err(unsupported("lb_subset_config", "subset load balancing"));
    }
    if !message.health_checks.is_empty() {
        return Err(unsupported("health_checks", "active health checks"));
    }
    let discovery = discovery(message)?;
    let options = http_options(message)?;
    let mut cluster = Cluster::new(&message.name, discovery);
    cluster.alt_stat_name = message.alt_stat_name.trim_end_matches(';').into();
    if let Some(value) = &message.connect_timeout {
        cluster.connect_timeout = duration("connect_timeout", value)?;
    }
    cluster.lb = lb(message)?;
    cluster.protocol = options.protocol;
    cluster.idle_timeout = options.idle_timeout;
    cluster.max_requests_per_connection =
        options.max_requests.or(message.max_requests_per_connection).unwrap_or(0);
    if let Some(streams) = options.max_streams {
        cluster.max_concurrent_streams = streams;
    }
    if let Some(socket) = &message.transport_socket {
        cluster.transport = tls::upstream(socket).at("transport_socket")?;
    }
    cluster.transport_matches = message
        .transport_socket_matches
        .iter()
        .enumerate()
        .map(|(i, m)| transport_match(m).at(format!("transport_socket_matches[{i}]")))
        .collect::<Result<_>>()?;
    if let Some(breakers) = &message.circuit_breakers {
        cluster.circuit_breakers = circuit_breakers(breakers);
    }
    if let Some(detection) = &message.outlier_detection {
        cluster.outlier_detection = Some(outlier_detection(detection).at("outlier_detection")?);
    }
    if let Some(common) = &message.common_lb_config {
        use pb::cluster::common_lb_config::LocalityConfigSpecifier;
        if let Some(threshold) = &common.healthy_panic_threshold {
            cluster.panic_threshold = threshold.value;
        }
        cluster.locality_weighted = matches!(
            common.locality_config_specifier,
            Some(LocalityConfigSpecifier::LocalityWeightedLbConfig(_))
        );
    }
    cluster.slow_start = slow_start(message)?;
    if let Some(bind) = &message.upstream_bind_config {
        cluster.bind = bind_addresses(bind).at("upstream_bind_config")?;
    }
    cluster.tcp_keepalive =
        message.upstream_connection_options.as_ref().and_then(|o| o.tcp_keepalive.as_ref()).map(keepalive);
    if let Some(istio) = message.metadata.as_ref().and_then(|m| m.filter_metadata.get("istio")) {
        let mut texts = strings(istio);
        cluster.alpn_override = texts.remove("alpn_override").as_deref() != Some("false");
        cluster.services = services(istio);
        cluster.metadata = texts;
    }
    Ok(cluster)
}

fn discovery(message: &pb::Cluster) -> Result<Discovery> {
    let inline = || {
        let given = message.load_assignment.as_ref();
        given.ok_or_else(|| missing("load_assignment"))
    };
    let kind = match &message.cluster_discovery_type {
        None => DiscoveryType::Static,
        Some(ClusterDiscoveryType::Type(_)) => match &message.cluster_discovery_type {
            Some(ClusterDiscoveryType::Type(value)) => {
                DiscoveryType::try_from(*value).map_err(|_| ConfigError::invalid("type", value, "unknown"))?
            }
            _ => DiscoveryType::Static,
        },
        Some(ClusterDiscoveryType::ClusterType(custom)) => {
            return Err(unsupported("cluster_type", &custom.name));
        }
    };
    #[allow(deprecated, reason = "clusters have no newer field for it on Istio's wire")]
    let refresh = match &message.dns_refresh_rate {
        None => Duration::from_secs(5),
        Some(value) => duration("dns_refresh_rate", value)?.max(Duration::from_millis(1)),
    };
    Ok(match kind {
        DiscoveryType::Static => match &message.load_assignment {
            None => Discovery::Static(Arc::new(crate::config::LoadAssignment::new(&message.name, []))),
            Some(given) => {
                Discovery::Static(Arc::new(endpoint::load_assignment(given).at("load_assignment")?))
            }
        },
        DiscoveryType::Eds => {
            let name = message.eds_cluster_config.as_ref().map_or("", |c| c.service_name.as_str());
            let name = if name.is_empty() { &message.name } else { name };
            Discovery::Eds { service_name: name.into() }
        }
        DiscoveryType::StrictDns => {
            Discovery::StrictDns { hosts: endpoint::dns_hosts(inline()?).at("load_assignment")?, refresh }
        }
        DiscoveryType::LogicalDns => {
            let hosts = endpoint::dns_hosts(inline()?).at("load_assignment")?;
            let host = hosts.into_iter().next().ok_or_else(|| missing("load_assignment.endpoints"))?;
            Discovery::LogicalDns { host, refresh }
        }
        DiscoveryType::OriginalDst => Discovery::OriginalDst {
            port_override: match &message.lb_config {
                Some(LbConfig::OriginalDstLbConfig(config)) => {
                    if config.use_http_header {
                        return Err(unsupported("original_dst_lb_config", "a destination from a header"));
                    }
                    config.upstream_port_override.map(|p| port("upstream_port_override", p)).transpose()?
                }
                _ => None,
            },
        },
    })
}

fn lb(message: &pb::Cluster) -> Result<LbPolicy> {
    if let Some(policy) = &message.load_balancing_policy {
        return typed_lb(policy).at("load_balancing_policy");
    }
    Ok(match message.lb_policy() {
        WireLb::RoundRobin => LbPolicy::RoundRobin,
        WireLb::LeastRequest => LbPolicy::LeastRequest {
            choices: match &message.lb_config {
                Some(LbConfig::LeastRequestLbConfig(config)) => config.choice_count.unwrap_or(2).max(2),
                _ => 2,
            },
        },
        WireLb::Random => LbPolicy::Random,
        WireLb::RingHash => {
            let config = match &message.lb_config {
                Some(LbConfig::RingHashLbConfig(config)) => Some(config),
                _ => None,
            };
            let murmur = pb::cluster::ring_hash_lb_config::HashFunction::MurmurHash2 as i32;
            LbPolicy::RingHash {
                min: config.and_then(|c| c.minimum_ring_size).unwrap_or(1024),
                max: config.and_then(|c| c.maximum_ring_size).unwrap_or(8 * 1024 * 1024),
                function: match config {
                    Some(c) if c.hash_function == murmur => HashFunction::Murmur2,
                    _ => HashFunction::XxHash,
                },
            }
        }
        WireLb::Maglev => LbPolicy::Maglev {
            table_size: match &message.lb_config {
                Some(LbConfig::MaglevLbConfig(config)) => config.table_size.unwrap_or(65_537),
                _ => 65_537,
            },
        },
        WireLb::ClusterProvided => LbPolicy::ClusterProvided,
        other => return Err(unsupported("lb_policy", other.as_str_name())),
    })
}

/// The newer form: the first policy that is known here.
fn typed_lb(message: &pb::LoadBalancingPolicy) -> Result<LbPolicy> {
    use mesh_xds::pb::envoy::extensions::load_balancing_policies as lb;
    for policy in &message.policies {
        let any = policy.typed_extension_config.as_ref().and_then(|e| e.typed_config.as_ref());
        let Some(any) = any else { continue };
        if let Some(config) = decode_if::<lb::least_request::v3::LeastRequest>(any)? {
            return Ok(LbPolicy::LeastRequest { choices: config.choice_count.unwrap_or(2).max(2) });
        }
        match type_name(any) {
            "envoy.extensions.load_balancing_policies.round_robin.v3.RoundRobin" => {
                return Ok(LbPolicy::RoundRobin);
            }
            "envoy.extensions.load_balancing_policies.random.v3.Random" => return Ok(LbPolicy::Random),
            "envoy.extensions.load_balancing_policies.cluster_provided.v3.ClusterProvided" => {
                return Ok(LbPolicy::ClusterProvided);
            }
            _ => {}
        }
    }
    Err(unsupported("policies", "none of these policies"))
}

struct HttpOptions {
    protocol: UpstreamProtocol,
    idle_timeout: Option<Duration>,
    max_requests: Option<u32>,
    max_streams: Option<u32>,
}

#[allow(deprecated, reason = "old forms are still on the wire")]
fn http_options(message: &pb::Cluster) -> Result<HttpOptions> {
    use upstream_http::http_protocol_options::{
        UpstreamProtocolOptions, explicit_http_config::ProtocolConfig,
    };
    const KEY: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
    let hour = Some(Duration::from_secs(3600));
    let Some(any) = message.typed_extension_protocol_options.get(KEY) else {
        let common = message.common_http_protocol_options.as_ref();
        let http2 = message.http2_protocol_options.as_ref();
        return Ok(HttpOptions {
            protocol: if http2.is_some() { UpstreamProtocol::Http2 } else { UpstreamProtocol::Http1 },
            idle_timeout: limit_or("idle_timeout", common.and_then(|c| c.idle_timeout.as_ref()), hour)?,
            max_requests: common.and_then(|c| c.max_requests_per_connection),
            max_streams: http2.and_then(|h| h.max_concurrent_streams),
        });
    };
    let options = decode_if::<upstream_http::HttpProtocolOptions>(any)?
        .ok_or_else(|| unsupported("typed_extension_protocol_options", type_name(any)))?;
    if options.http_filters.iter().any(|f| f.name != "envoy.filters.http.upstream_codec") {
        return Err(unsupported("http_filters", "upstream HTTP filters"));
    }
    let mut max_streams = None;
    let protocol = match &options.upstream_protocol_options {
        None => UpstreamProtocol::Http1,
        Some(UpstreamProtocolOptions::ExplicitHttpConfig(explicit)) => match &explicit.protocol_config {
            None | Some(ProtocolConfig::HttpProtocolOptions(_)) => UpstreamProtocol::Http1,
            Some(ProtocolConfig::Http2ProtocolOptions(http2)) => {
                max_streams = http2.max_concurrent_streams;
                UpstreamProtocol::Http2
            }
            Some(_) => return Err(unsupported("explicit_http_config", "HTTP/3")),
        },
        Some(UpstreamProtocolOptions::UseDownstreamProtocolConfig(config)) => {
            max_streams = config.http2_protocol_options.as_ref().and_then(|h| h.max_concurrent_streams);
            UpstreamProtocol::Downstream
        }
        Some(UpstreamProtocolOptions::AutoConfig(_)) => {
            return Err(unsupported("auto_config", "HTTP by ALPN"));
        }
    };
    let common = options.common_http_protocol_options.as_ref();
    Ok(HttpOptions {
        protocol,
        idle_timeout: limit_or("idle_timeout", common.and_then(|c| c.idle_timeout.as_ref()), hour)?,
        max_requests: common.and_then(|c| c.max_requests_per_connection),
        max_streams,
    })
}

fn transport_match(message: &pb::cluster::TransportSocketMatch) -> Result<TransportSocketMatch> {
    let socket = match &message.transport_socket {
        Some(socket) => tls::upstream(socket).at("transport_socket")?,
        None => TransportSocket::Raw,
    };
    let matches = message.r#match.as_ref().map_or_else(BTreeMap::new, strings);
    Ok(TransportSocketMatch { name: message.name.as_str().into(), matches, socket })
}

fn circuit_breakers(message: &pb::CircuitBreakers) -> CircuitBreakers {
    let defaults = CircuitBreakers::default();
    let normal = core::RoutingPriority::Default as i32;
    let Some(limits) = message.thresholds.iter().find(|t| t.priority == normal) else { return defaults };
    CircuitBreakers {
        max_connections: limits.max_connections.unwrap_or(defaults.max_connections),
        max_pending_requests: limits.max_pending_requests.unwrap_or(defaults.max_pending_requests),
        max_requests: limits.max_requests.unwrap_or(defaults.max_requests),
        max_retries: limits.max_retries.unwrap_or(defaults.max_retries),
        retry_budget: limits.retry_budget.as_ref().map(|budget| RetryBudget {
            percent: budget.budget_percent.as_ref().map_or(20.0, |p| p.value),
            min_concurrency: budget.min_retry_concurrency.unwrap_or(3),
        }),
    }
}

fn outlier_detection(message: &pb::OutlierDetection) -> Result<OutlierDetection> {
    let defaults = OutlierDetection::default();
    // A detector that is counted but not enforced (0 %) never ejects.
    let enforced = |limit: u32, percent: Option<u32>, default: u32| {
        if percent.unwrap_or(default) == 0 { 0 } else { limit }
    };
    let base = limit("base_ejection_time", message.base_ejection_time.as_ref())?;
    let base = base.unwrap_or(defaults.base_ejection_time);
    let most = limit("max_ejection_time", message.max_ejection_time.as_ref())?;
    Ok(OutlierDetection {
        consecutive_5xx: enforced(
            message.consecutive_5xx.unwrap_or(5),
            message.enforcing_consecutive_5xx,
            100,
        ),
        consecutive_gateway: enforced(
            message.consecutive_gateway_failure.unwrap_or(5),
            message.enforcing_consecutive_gateway_failure,
            0,
        ),
        consecutive_local_origin: enforced(
            message.consecutive_local_origin_failure.unwrap_or(5),
            message.enforcing_consecutive_local_origin_failure,
            100,
        ),
        split_local_origin: message.split_external_local_origin_errors,
        interval: limit("interval", message.interval.as_ref())?.unwrap_or(defaults.interval),
        base_ejection_time: base,
        max_ejection_time: most.unwrap_or(defaults.max_ejection_time).max(base),
        max_ejection_percent: message.max_ejection_percent.unwrap_or(defaults.max_ejection_percent).min(100),
    })
}

fn slow_start(message: &pb::Cluster) -> Result<Option<SlowStart>> {
    let config = match &message.lb_config {
        Some(LbConfig::LeastRequestLbConfig(config)) => config.slow_start_config.as_ref(),
        Some(LbConfig::RoundRobinLbConfig(config)) => config.slow_start_config.as_ref(),
        _ => None,
    };
    let Some(config) = config else { return Ok(None) };
    let Some(window) = limit("slow_start_window", config.slow_start_window.as_ref())? else {
        return Ok(None);
    };
    Ok(Some(SlowStart {
        window,
        aggression: config.aggression.as_ref().map_or(1.0, |a| a.default_value),
        min_percent: config.min_weight_percent.as_ref().map_or(10.0, |p| p.value),
    }))
}

fn bind_addresses(message: &core::BindConfig) -> Result<Vec<IpAddr>> {
    let extra = message.extra_source_addresses.iter().filter_map(|e| e.address.as_ref());
    #[allow(deprecated, reason = "the old form is still on the wire")]
    let additional = message.additional_source_addresses.iter();
    let all = message.source_address.iter().chain(extra).chain(additional);
    all.map(|socket| {
        let text = &socket.address;
        text.parse().map_err(|_| ConfigError::invalid("source_address", text, "not an IP address"))
    })
    .collect()
}

fn keepalive(message: &core::TcpKeepalive) -> TcpKeepalive {
    let seconds = |value: Option<u32>| value.map(|s| Duration::from_secs(s.into()));
    TcpKeepalive {
        probes: message.keepalive_probes,
        time: seconds(message.keepalive_time),
        interval: seconds(message.keepalive_interval),
    }
}

/// `services: [{host, name, namespace}]` of Istio's metadata.
fn services(istio: &prost_types::Struct) -> Vec<ClusterService> {
    let Some(Kind::ListValue(list)) = istio.fields.get("services").and_then(|v| v.kind.as_ref()) else {
        return Vec::new();
    };
    let one = |value: &prost_types::Value| match &value.kind {
        Some(Kind::StructValue(fields)) => {
            let fields = strings(fields);
            let get = |name: &str| Arc::from(fields.get(name).map_or("", String::as_str));
            Some(ClusterService { host: get("host"), name: get("name"), namespace: get("namespace") })
        }
        _ => None,
    };
    list.values.iter().filter_map(one).collect()
}
