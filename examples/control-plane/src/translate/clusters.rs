//! CDS: one cluster per service port and subset, and the two for unknown destinations.
#![allow(deprecated, reason = "the proxies in use read these fields, not their successors")]

use std::collections::BTreeMap;

use mesh_xds::pb::envoy::config::cluster::v3 as pb;
use mesh_xds::pb::envoy::config::cluster::v3::cluster;
use mesh_xds::pb::envoy::config::core::v3 as core;
use mesh_xds::pb::envoy::extensions::upstreams::http::v3 as upstream;
use mesh_xds::pb::envoy::r#type::v3::Percent;
use prost_types::Struct;

use super::names::{BLACK_HOLE, ClusterName, PASSTHROUGH};
use super::policy::{Merged, Policy};
use super::proto::{ads, any, duration, list, metadata, nested, seconds, structure, text};
use super::view::Program;
use super::{endpoints, tls};
use crate::model::{Discovery, Protocol, Service, ServicePort, TrafficRule};
use crate::resources::{MtlsMode, SimpleLb, Subset, TlsMode};

/// Time to connect where nothing else is said.
pub(super) const CONNECT_TIMEOUT_SECONDS: i64 = 10;
/// Idle time after which pass-through connections' pools are dropped.
const PASSTHROUGH_IDLE_SECONDS: i64 = 300;

/// All outbound clusters of a view.
pub(super) fn outbound(program: &Program<'_>) -> Vec<pb::Cluster> {
    let mut clusters = Vec::new();
    for service in &program.view.services {
        let merged = Merged::new(program.traffic_for(service));
        for port in service.ports.iter().filter(|port| port.protocol != Protocol::Udp) {
            clusters.extend(of_port(program, service, port, &merged, None));
            for subset in merged.subsets() {
                clusters.extend(of_port(program, service, port, &merged, Some(subset)));
            }
        }
    }
    clusters.push(black_hole());
    clusters.push(passthrough());
    clusters
}

fn of_port(
    program: &Program<'_>,
    service: &Service,
    port: &ServicePort,
    merged: &Merged<'_>,
    subset: Option<&Subset>,
) -> Option<pb::Cluster> {
    let policy = merged.policy(port.port, subset);
    let subset_name = subset.map_or("", |subset| &subset.name);
    let name = ClusterName { port: port.port, subset: subset_name, host: &service.host };
    let mut cluster = pb::Cluster {
        name: name.to_string(),
        connect_timeout: seconds(CONNECT_TIMEOUT_SECONDS),
        alt_stat_name: format!("{name};"),
        circuit_breakers: Some(unlimited()),
        metadata: metadata(istio_metadata(service, merged.first(), subset_name)),
        common_lb_config: Some(cluster::CommonLbConfig {
            healthy_panic_threshold: Some(Percent { value: 0.0 }),
            ..cluster::CommonLbConfig::default()
        }),
        ..pb::Cluster::default()
    };
    let discovery = match policy.load_balancer {
        Some(lb) if lb.simple == SimpleLb::Passthrough && lb.consistent_hash.is_none() => {
            Discovery::OriginalDst
        }
        _ => service.discovery,
    };
    discover(&mut cluster, discovery, service, port, subset)?;
    if discovery != Discovery::OriginalDst {
        load_balancer(&mut cluster, &policy);
    }
    http_options(&mut cluster, port.protocol, &policy);
    connection_pool(&mut cluster, &policy);
    outlier(&mut cluster, &policy);
    transport(&mut cluster, program, service, port, subset, &policy, discovery);
    Some(cluster)
}

/// `None` where a DNS cluster would have no endpoints.
fn discover(
    cluster: &mut pb::Cluster,
    discovery: Discovery,
    service: &Service,
    port: &ServicePort,
    subset: Option<&Subset>,
) -> Option<()> {
    let kind = match discovery {
        Discovery::Eds => {
            cluster.eds_cluster_config = Some(cluster::EdsClusterConfig {
                eds_config: Some(ads()),
                service_name: cluster.name.clone(),
            });
            cluster::DiscoveryType::Eds
        }
        Discovery::OriginalDst => {
            cluster.lb_policy = cluster::LbPolicy::ClusterProvided.into();
            cluster::DiscoveryType::OriginalDst
        }
        Discovery::StrictDns | Discovery::LogicalDns => {
            let name =
                ClusterName { port: port.port, subset: subset.map_or("", |s| &s.name), host: &service.host };
            let mut assignment = endpoints::load_assignment(service, &name, subset);
            if assignment.endpoints.is_empty() {
                return None;
            }
            if discovery == Discovery::LogicalDns {
                // One name only: the first.
                assignment.endpoints.truncate(1);
                if let Some(group) = assignment.endpoints.first_mut() {
                    group.lb_endpoints.truncate(1);
                }
            }
            cluster.load_assignment = Some(assignment);
            cluster.dns_lookup_family = cluster::DnsLookupFamily::V4Preferred.into();
            cluster.respect_dns_ttl = true;
            cluster.dns_refresh_rate = seconds(60);
            if discovery == Discovery::StrictDns {
                cluster::DiscoveryType::StrictDns
            } else {
                cluster::DiscoveryType::LogicalDns
            }
        }
    };
    cluster.cluster_discovery_type = Some(cluster::ClusterDiscoveryType::Type(kind.into()));
    Some(())
}

fn load_balancer(cluster: &mut pb::Cluster, policy: &Policy<'_>) {
    let Some(lb) = policy.load_balancer else {
        cluster.lb_policy = cluster::LbPolicy::LeastRequest.into();
        return;
    };
    if let Some(hash) = &lb.consistent_hash {
        if let Some(maglev) = &hash.maglev {
            cluster.lb_policy = cluster::LbPolicy::Maglev.into();
            let table_size = maglev.table_size;
            cluster.lb_config =
                Some(cluster::LbConfig::MaglevLbConfig(cluster::MaglevLbConfig { table_size }));
        } else {
            cluster.lb_policy = cluster::LbPolicy::RingHash.into();
            let minimum = hash.ring_hash.as_ref().and_then(|ring| ring.minimum_ring_size);
            let config = cluster::RingHashLbConfig {
                minimum_ring_size: Some(minimum.or(hash.minimum_ring_size).unwrap_or(1024)),
                ..cluster::RingHashLbConfig::default()
            };
            cluster.lb_config = Some(cluster::LbConfig::RingHashLbConfig(config));
        }
        return;
    }
    let warmup = lb.warmup.as_ref().map(|w| (w.duration, w.minimum_percent, w.aggression));
    let warmup = warmup.or_else(|| lb.warmup_duration_secs.map(|duration| (Some(duration), None, None)));
    let slow_start_config = warmup.map(|(window, minimum, aggression)| cluster::SlowStartConfig {
        slow_start_window: window.map(|window| duration(window.0)),
        min_weight_percent: Some(Percent { value: minimum.unwrap_or(10.0) }),
        aggression: Some(core::RuntimeDouble {
            default_value: aggression.unwrap_or(1.0),
            ..core::RuntimeDouble::default()
        }),
    });
    let policy = match lb.simple {
        SimpleLb::RoundRobin => {
            if slow_start_config.is_some() {
                let config = cluster::RoundRobinLbConfig { slow_start_config };
                cluster.lb_config = Some(cluster::LbConfig::RoundRobinLbConfig(config));
            }
            cluster::LbPolicy::RoundRobin
        }
        SimpleLb::Random => cluster::LbPolicy::Random,
        SimpleLb::Unspecified | SimpleLb::LeastRequest | SimpleLb::LeastConn | SimpleLb::Passthrough => {
            if slow_start_config.is_some() {
                let config = cluster::LeastRequestLbConfig {
                    slow_start_config,
                    ..cluster::LeastRequestLbConfig::default()
                };
                cluster.lb_config = Some(cluster::LbConfig::LeastRequestLbConfig(config));
            }
            cluster::LbPolicy::LeastRequest
        }
    };
    cluster.lb_policy = policy.into();
}

/// The upstream HTTP version: declared, or the client's.
pub(super) fn http_options(cluster: &mut pb::Cluster, protocol: Protocol, policy: &Policy<'_>) {
    let pool = policy.pool.and_then(|pool| pool.http.as_ref());
    let use_client = pool.and_then(|pool| pool.use_client_protocol).unwrap_or(false);
    let upgrade = pool.and_then(|pool| pool.h2_upgrade_policy.as_deref()) == Some("UPGRADE");
    let http2 = core::Http2ProtocolOptions {
        max_concurrent_streams: pool.and_then(|pool| pool.max_concurrent_streams),
        ..core::Http2ProtocolOptions::default()
    };
    let auto = protocol == Protocol::Auto;
    let options = if !auto && !protocol.is_http() {
        return;
    } else if auto || use_client {
        upstream::http_protocol_options::UpstreamProtocolOptions::UseDownstreamProtocolConfig(
            upstream::http_protocol_options::UseDownstreamHttpConfig {
                http_protocol_options: Some(core::Http1ProtocolOptions::default()),
                http2_protocol_options: Some(http2),
                http3_protocol_options: None,
            },
        )
    } else {
        use upstream::http_protocol_options::explicit_http_config::ProtocolConfig;
        let config = if protocol.is_http2() || upgrade {
            ProtocolConfig::Http2ProtocolOptions(http2)
        } else {
            ProtocolConfig::HttpProtocolOptions(core::Http1ProtocolOptions::default())
        };
        upstream::http_protocol_options::UpstreamProtocolOptions::ExplicitHttpConfig(
            upstream::http_protocol_options::ExplicitHttpConfig { protocol_config: Some(config) },
        )
    };
    let common = pool.and_then(|pool| {
        let limit = pool.max_requests_per_connection.filter(|limit| *limit > 0);
        (limit.is_some() || pool.idle_timeout.is_some()).then(|| core::HttpProtocolOptions {
            idle_timeout: pool.idle_timeout.map(|timeout| duration(timeout.0)),
            max_requests_per_connection: limit,
            ..core::HttpProtocolOptions::default()
        })
    });
    let all = upstream::HttpProtocolOptions {
        common_http_protocol_options: common,
        upstream_protocol_options: Some(options),
        ..upstream::HttpProtocolOptions::default()
    };
    cluster
        .typed_extension_protocol_options
        .insert("envoy.extensions.upstreams.http.v3.HttpProtocolOptions".to_owned(), any(&all));
}

pub(super) fn connection_pool(cluster: &mut pb::Cluster, policy: &Policy<'_>) {
    let mut breakers = unlimited();
    if let (Some(pool), Some(limits)) = (policy.pool, breakers.thresholds.first_mut()) {
        if let Some(tcp) = &pool.tcp {
            if let Some(timeout) = tcp.connect_timeout {
                cluster.connect_timeout = Some(duration(timeout.0));
            }
            limits.max_connections = tcp.max_connections.or(limits.max_connections);
            cluster.upstream_connection_options = tcp.tcp_keepalive.as_ref().map(|keepalive| {
                let whole = |value: Option<crate::resources::GoDuration>| {
                    value.map(|value| u32::try_from(value.0.as_secs()).unwrap_or(u32::MAX))
                };
                pb::UpstreamConnectionOptions {
                    tcp_keepalive: Some(core::TcpKeepalive {
                        keepalive_probes: keepalive.probes,
                        keepalive_time: whole(keepalive.time),
                        keepalive_interval: whole(keepalive.interval),
                    }),
                    ..pb::UpstreamConnectionOptions::default()
                }
            });
        }
        if let Some(http) = &pool.http {
            limits.max_pending_requests = http.http1_max_pending_requests.or(limits.max_pending_requests);
            limits.max_requests = http.http2_max_requests.or(limits.max_requests);
            limits.max_retries = http.max_retries.or(limits.max_retries);
        }
    }
    if let (Some(budget), Some(limits)) = (policy.retry_budget, breakers.thresholds.first_mut()) {
        limits.max_retries = None;
        limits.retry_budget = Some(pb::circuit_breakers::thresholds::RetryBudget {
            budget_percent: Some(Percent { value: budget.share().value }),
            min_retry_concurrency: Some(budget.min_retry_concurrency.unwrap_or(3)),
        });
    }
    cluster.circuit_breakers = Some(breakers);
}

/// Limits so high that they never bite: what Istio sets where nobody asks for limits.
pub(super) fn unlimited() -> pb::CircuitBreakers {
    pb::CircuitBreakers {
        thresholds: vec![pb::circuit_breakers::Thresholds {
            max_connections: Some(u32::MAX),
            max_pending_requests: Some(u32::MAX),
            max_requests: Some(u32::MAX),
            max_retries: Some(u32::MAX),
            ..pb::circuit_breakers::Thresholds::default()
        }],
        per_host_thresholds: Vec::new(),
    }
}

fn outlier(cluster: &mut pb::Cluster, policy: &Policy<'_>) {
    let Some(outlier) = policy.outlier else { return };
    let enforcing = |value: Option<u32>| value.map(|value| if value == 0 { 0 } else { 100 });
    let consecutive = outlier.consecutive_5xx_errors.or(outlier.consecutive_errors);
    let local = outlier.consecutive_local_origin_failures;
    cluster.outlier_detection = Some(pb::OutlierDetection {
        consecutive_5xx: consecutive.filter(|value| *value > 0),
        enforcing_consecutive_5xx: enforcing(consecutive),
        consecutive_gateway_failure: outlier.consecutive_gateway_errors.filter(|value| *value > 0),
        enforcing_consecutive_gateway_failure: enforcing(outlier.consecutive_gateway_errors),
        enforcing_success_rate: Some(0),
        interval: outlier.interval.map(|value| duration(value.0)),
        base_ejection_time: outlier.base_ejection_time.map(|value| duration(value.0)),
        max_ejection_percent: outlier.max_ejection_percent,
        split_external_local_origin_errors: outlier.split_external_local_origin_errors,
        consecutive_local_origin_failure: local.filter(|value| *value > 0),
        enforcing_consecutive_local_origin_failure: enforcing(local),
        enforcing_local_origin_success_rate: outlier.split_external_local_origin_errors.then_some(0),
        ..pb::OutlierDetection::default()
    });
    if let Some(common) = cluster.common_lb_config.as_mut() {
        let threshold = outlier.min_health_percent.unwrap_or(0);
        common.healthy_panic_threshold = Some(Percent { value: f64::from(threshold) });
    }
}

fn transport(
    cluster: &mut pb::Cluster,
    program: &Program<'_>,
    service: &Service,
    port: &ServicePort,
    subset: Option<&Subset>,
    policy: &Policy<'_>,
    discovery: Discovery,
) {
    let explicit = policy.tls.map(|tls| tls.mode);
    let name = ClusterName { port: port.port, subset: subset.map_or("", |s| &s.name), host: &service.host };
    let http2 = port.protocol.is_http2();
    match explicit {
        Some(TlsMode::Disable) => {}
        Some(TlsMode::Simple | TlsMode::Mutual) => {
            if let Some(settings) = policy.tls {
                cluster.transport_socket = Some(tls::originate(settings, http2));
            }
            override_alpn_off(cluster);
        }
        Some(TlsMode::IstioMutual) | None => {
            let service_mode = program.mesh.peers.namespace_mode(&service.namespace);
            let automatic = !service.external && service_mode != MtlsMode::Disable;
            if explicit.is_none() && !automatic {
                return;
            }
            let settings = policy.tls;
            let sni =
                settings.filter(|tls| !tls.sni.is_empty()).map_or_else(|| name.sni(), |tls| tls.sni.clone());
            let named = settings.map(|tls| &tls.subject_alt_names).filter(|names| !names.is_empty());
            let identities: Vec<String> = match named {
                Some(names) => names.clone(),
                None => service.identities.iter().cloned().collect(),
            };
            let socket = tls::mutual(identities.into_iter(), sni, http2);
            if discovery == Discovery::Eds && explicit.is_none() {
                cluster.transport_socket_matches = by_endpoint(socket);
            } else if explicit.is_some() || service.all_speak_mtls(port.port) {
                // Without endpoints of its own a cluster has one socket for all: TLS only if every endpoint can.
                cluster.transport_socket = Some(socket);
            }
        }
    }
}

/// Mutual TLS for endpoints that are marked so, plaintext for the others.
fn by_endpoint(socket: core::TransportSocket) -> Vec<cluster::TransportSocketMatch> {
    vec![
        cluster::TransportSocketMatch {
            name: "tlsMode-istio".to_owned(),
            r#match: Some(structure([("tlsMode", text("istio"))])),
            transport_socket: Some(socket),
        },
        cluster::TransportSocketMatch {
            name: "tlsMode-disabled".to_owned(),
            r#match: Some(Struct::default()),
            transport_socket: Some(tls::raw_buffer()),
        },
    ]
}

fn override_alpn_off(cluster: &mut pb::Cluster) {
    let metadata = cluster.metadata.get_or_insert_default();
    let istio = metadata.filter_metadata.entry("istio".to_owned()).or_default();
    istio.fields.insert("alpn_override".to_owned(), text("false"));
}

fn istio_metadata(service: &Service, rule: Option<&TrafficRule>, subset: &str) -> BTreeMap<String, Struct> {
    let mut fields = structure([("services", list(vec![service_entry(service)]))]);
    if let Some(rule) = rule {
        let path = format!(
            "/apis/networking.istio.io/v1alpha3/namespaces/{}/destination-rule/{}",
            rule.namespace, rule.name
        );
        fields.fields.insert("config".to_owned(), text(path));
    }
    if !subset.is_empty() {
        fields.fields.insert("subset".to_owned(), text(subset));
    }
    [("istio".to_owned(), fields)].into()
}

/// `{host, name, namespace}` of a service, as tools expect it in metadata.
pub(super) fn service_entry(service: &Service) -> prost_types::Value {
    nested(structure([
        ("host", text(&service.host)),
        ("name", text(&service.name)),
        ("namespace", text(&service.namespace)),
    ]))
}

fn black_hole() -> pb::Cluster {
    pb::Cluster {
        name: BLACK_HOLE.to_owned(),
        cluster_discovery_type: Some(cluster::ClusterDiscoveryType::Type(
            cluster::DiscoveryType::Static.into(),
        )),
        connect_timeout: seconds(CONNECT_TIMEOUT_SECONDS),
        ..pb::Cluster::default()
    }
}

fn passthrough() -> pb::Cluster {
    let mut cluster = pb::Cluster {
        name: PASSTHROUGH.to_owned(),
        cluster_discovery_type: Some(cluster::ClusterDiscoveryType::Type(
            cluster::DiscoveryType::OriginalDst.into(),
        )),
        connect_timeout: seconds(CONNECT_TIMEOUT_SECONDS),
        lb_policy: cluster::LbPolicy::ClusterProvided.into(),
        circuit_breakers: Some(unlimited()),
        ..pb::Cluster::default()
    };
    use_downstream_protocol(&mut cluster);
    cluster
}

/// The client's HTTP version upstream, and idle pools dropped after five minutes.
pub(super) fn use_downstream_protocol(cluster: &mut pb::Cluster) {
    let all = upstream::HttpProtocolOptions {
        common_http_protocol_options: Some(core::HttpProtocolOptions {
            idle_timeout: seconds(PASSTHROUGH_IDLE_SECONDS),
            ..core::HttpProtocolOptions::default()
        }),
        upstream_protocol_options: Some(
            upstream::http_protocol_options::UpstreamProtocolOptions::UseDownstreamProtocolConfig(
                upstream::http_protocol_options::UseDownstreamHttpConfig {
                    http_protocol_options: Some(core::Http1ProtocolOptions::default()),
                    http2_protocol_options: Some(core::Http2ProtocolOptions::default()),
                    http3_protocol_options: None,
                },
            ),
        ),
        ..upstream::HttpProtocolOptions::default()
    };
    cluster
        .typed_extension_protocol_options
        .insert("envoy.extensions.upstreams.http.v3.HttpProtocolOptions".to_owned(), any(&all));
}
