//! Clusters.

mod http_options;
mod load_balancing;

use std::{collections::BTreeMap, net::IpAddr, sync::Arc, time::Duration};

use http_options::{http_options, server_names};
use load_balancing::{lb, slow_start};
use mesh_xds::pb::envoy::config::{cluster::v3 as pb, core::v3 as core};
use pb::cluster::{ClusterDiscoveryType, DiscoveryType, DnsLookupFamily, LbConfig};
use prost_types::value::Kind;

use super::{
    At, Result,
    audit::{fields, refuse},
    duration, endpoint, limit, missing, port, strings, tls, unsupported,
};
use crate::{
    config::{
        CircuitBreakers, Cluster, ClusterService, Discovery, DnsFamily, OutlierDetection, RetryBudget,
        TcpKeepalive, TransportSocket, TransportSocketMatch,
    },
    error::ConfigError,
};

/// Refuses what would not be obeyed.
#[allow(deprecated, reason = "old forms are still on the wire")]
fn audit(message: &pb::Cluster) -> Result<()> {
    fields!(message => pb::Cluster {
        obeyed: [
            name, eds_cluster_config, connect_timeout, lb_policy, max_requests_per_connection,
            circuit_breakers, http_protocol_options, http2_protocol_options, dns_refresh_rate,
            dns_lookup_family, outlier_detection, upstream_bind_config, transport_socket, metadata,
            protocol_selection, common_lb_config, alt_stat_name, common_http_protocol_options,
            upstream_connection_options, load_assignment, typed_extension_protocol_options,
            load_balancing_policy, transport_socket_matches, upstream_http_protocol_options,
            cluster_discovery_type, lb_config,
        ],
        // Tuning, statistics, and how names are resolved: the system's resolver is asked every `dns_refresh_rate`.
        ignored: [
            per_connection_buffer_limit_bytes, cleanup_interval, ignore_health_on_host_removal,
            respect_dns_ttl, dns_failure_refresh_rate, track_timeout_budgets, track_cluster_stats,
            wait_for_warm_on_init, typed_dns_resolver_config, lrs_report_endpoint_metrics, dns_jitter,
        ],
        refused: [
            health_checks, dns_resolvers, lb_subset_config, close_connections_on_host_health_failure, filters,
            lrs_server, use_tcp_for_dns_lookups, upstream_config, preconnect_policy,
            connection_pool_per_downstream_connection, dns_resolution_config, transport_socket_matcher,
        ],
    });
    if let Some(options) = &message.http_protocol_options {
        super::http::http1_options(options).at("http_protocol_options")?;
    }
    if let Some(options) = &message.http2_protocol_options {
        super::http::http2_options(options).at("http2_protocol_options")?;
    }
    Ok(())
}

#[allow(deprecated, reason = "old forms are still on the wire")]
pub(super) fn cluster(message: &pb::Cluster) -> Result<Cluster> {
    if message.name.is_empty() {
        return Err(missing("name"));
    }
    audit(message)?;
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
    cluster.max_connection_duration = options.max_connection_duration;
    cluster.initial_stream_window = options.stream_window;
    cluster.initial_connection_window = options.connection_window;
    cluster.dns_family = match message.dns_lookup_family() {
        DnsLookupFamily::Auto => DnsFamily::V6Preferred,
        DnsLookupFamily::V4Only => DnsFamily::V4Only,
        DnsLookupFamily::V6Only => DnsFamily::V6Only,
        DnsLookupFamily::V4Preferred => DnsFamily::V4Preferred,
        DnsLookupFamily::All => DnsFamily::All,
    };
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
    if let Some(names) = &options.names {
        server_names(&mut cluster, names).at("upstream_http_protocol_options")?;
    }
    if let Some(breakers) = &message.circuit_breakers {
        cluster.circuit_breakers = circuit_breakers(breakers).at("circuit_breakers")?;
    }
    if let Some(detection) = &message.outlier_detection {
        cluster.outlier_detection = Some(outlier_detection(detection).at("outlier_detection")?);
    }
    if let Some(common) = &message.common_lb_config {
        use pb::cluster::common_lb_config::LocalityConfigSpecifier;
        fields!(common => pb::cluster::CommonLbConfig {
            obeyed: [healthy_panic_threshold, locality_config_specifier],
            // Updates count at once; nothing is checked actively, and nobody overrides a host's health.
            ignored: [update_merge_window, ignore_new_hosts_until_first_hc, override_host_status],
            refused: [close_connections_on_host_set_change, consistent_hashing_lb_config],
        });
        if let Some(LocalityConfigSpecifier::ZoneAwareLbConfig(_)) = &common.locality_config_specifier {
            return Err(unsupported("common_lb_config.zone_aware_lb_config", "zone aware routing"));
        }
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
            let mut hosts = endpoint::dns_hosts(inline()?).at("load_assignment")?;
            if hosts.len() > 1 {
                return Err(ConfigError::invalid(
                    "load_assignment",
                    hosts.len(),
                    "a logical DNS cluster has one endpoint",
                ));
            }
            let host = hosts.pop().ok_or_else(|| missing("load_assignment.endpoints"))?;
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

fn transport_match(message: &pb::cluster::TransportSocketMatch) -> Result<TransportSocketMatch> {
    let socket = match &message.transport_socket {
        Some(socket) => tls::upstream(socket).at("transport_socket")?,
        None => TransportSocket::Raw,
    };
    let matches = super::shared_labels(message.r#match.as_ref().map_or_else(BTreeMap::new, strings));
    Ok(TransportSocketMatch { name: message.name.as_str().into(), matches, socket })
}

fn circuit_breakers(message: &pb::CircuitBreakers) -> Result<CircuitBreakers> {
    fields!(message => pb::CircuitBreakers { obeyed: [thresholds], refused: [per_host_thresholds], });
    for thresholds in &message.thresholds {
        fields!(thresholds => pb::circuit_breakers::Thresholds {
            obeyed: [
                priority, max_connections, max_pending_requests, max_requests, max_retries, retry_budget,
            ],
            // Statistics.
            ignored: [track_remaining],
            refused: [max_connection_pools],
        });
    }
    let defaults = CircuitBreakers::default();
    let normal = core::RoutingPriority::Default as i32;
    let Some(limits) = message.thresholds.iter().find(|t| t.priority == normal) else {
        // Limits of other priorities count for nobody: a route with a priority is refused.
        return Ok(defaults);
    };
    Ok(CircuitBreakers {
        max_connections: limits.max_connections.unwrap_or(defaults.max_connections),
        max_pending_requests: limits.max_pending_requests.unwrap_or(defaults.max_pending_requests),
        max_requests: limits.max_requests.unwrap_or(defaults.max_requests),
        max_retries: limits.max_retries.unwrap_or(defaults.max_retries),
        retry_budget: limits.retry_budget.as_ref().map(|budget| RetryBudget {
            percent: budget.budget_percent.as_ref().map_or(20.0, |p| p.value),
            min_concurrency: budget.min_retry_concurrency.unwrap_or(3),
        }),
    })
}

fn outlier_detection(message: &pb::OutlierDetection) -> Result<OutlierDetection> {
    fields!(message => pb::OutlierDetection {
        obeyed: [
            consecutive_5xx, interval, base_ejection_time, max_ejection_percent, enforcing_consecutive_5xx,
            enforcing_success_rate, consecutive_gateway_failure, enforcing_consecutive_gateway_failure,
            split_external_local_origin_errors, consecutive_local_origin_failure,
            enforcing_consecutive_local_origin_failure, enforcing_local_origin_success_rate,
            enforcing_failure_percentage, enforcing_failure_percentage_local_origin, max_ejection_time,
            always_eject_one_host,
        ],
        // About detectors by rate, which must be off, and health checks, of which there are none.
        ignored: [
            success_rate_minimum_hosts, success_rate_request_volume, success_rate_stdev_factor,
            failure_percentage_threshold, failure_percentage_minimum_hosts, failure_percentage_request_volume,
            successful_active_health_check_uneject_host,
        ],
        refused: [max_ejection_time_jitter, monitors],
    });
    // Unset, Envoy would eject by success rate where there are enough hosts; asking for it is another matter.
    for (field, percent) in [
        ("enforcing_success_rate", message.enforcing_success_rate),
        ("enforcing_local_origin_success_rate", message.enforcing_local_origin_success_rate),
        ("enforcing_failure_percentage", message.enforcing_failure_percentage),
        ("enforcing_failure_percentage_local_origin", message.enforcing_failure_percentage_local_origin),
    ] {
        refuse(field, &percent.unwrap_or(0))?;
    }
    if message.always_eject_one_host == Some(false) {
        return Err(unsupported("always_eject_one_host", "false"));
    }
    let defaults = OutlierDetection::default();
    // A detector that is counted but not enforced (0 %) never ejects.
    for (field, percent) in [
        ("enforcing_consecutive_5xx", message.enforcing_consecutive_5xx),
        ("enforcing_consecutive_gateway_failure", message.enforcing_consecutive_gateway_failure),
        ("enforcing_consecutive_local_origin_failure", message.enforcing_consecutive_local_origin_failure),
    ] {
        if let Some(part @ (1..=99 | 101..)) = percent {
            return Err(unsupported(field, part));
        }
    }
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

fn bind_addresses(message: &core::BindConfig) -> Result<Vec<IpAddr>> {
    fields!(message => core::BindConfig {
        obeyed: [source_address, additional_source_addresses, extra_source_addresses],
        refused: [socket_options, local_address_selector],
        refused_if_true: [freebind],
    });
    let extra = message.extra_source_addresses.iter().filter_map(|e| e.address.as_ref());
    #[allow(deprecated, reason = "the old form is still on the wire")]
    let additional = message.additional_source_addresses.iter();
    let all = message.source_address.iter().chain(extra).chain(additional);
    all.map(|socket| {
        super::plain_socket(socket)?;
        if let Some(core::socket_address::PortSpecifier::PortValue(port @ 1..)) = socket.port_specifier {
            return Err(unsupported("source_address.port_value", port));
        }
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
