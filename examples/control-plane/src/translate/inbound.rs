//! LDS and CDS, the server's side: `virtualInbound` with a set of chains per port, and the clusters behind them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use mesh_xds::pb::envoy::config::cluster::v3 as cluster_pb;
use mesh_xds::pb::envoy::config::core::v3 as core;
use mesh_xds::pb::envoy::config::listener::v3 as pb;
use mesh_xds::pb::envoy::config::route::v3 as route;
use mesh_xds::pb::envoy::extensions::filters::listener::http_inspector::v3::HttpInspector;
use mesh_xds::pb::envoy::extensions::filters::listener::original_dst::v3::OriginalDst;
use mesh_xds::pb::envoy::extensions::filters::listener::tls_inspector::v3::TlsInspector;
use mesh_xds::pb::envoy::r#type::v3::Int32Range;

use super::names::{BLACK_HOLE, INBOUND_PASSTHROUGH, MESH_HTTP, MESH_TCP, PLAINTEXT_HTTP, inbound_cluster};
use super::policy::{Merged, Policy};
use super::proto::{address, list, listener_filter, metadata, seconds, socket_address, structure};
use super::tls::{self, Carries};
use super::view::Program;
use super::{INBOUND_PORT, Proxy, clusters, http, matching, rbac};
use crate::model::{Dependency, Mesh, Protocol, Service};
use crate::resources::{IntOrString, MtlsMode};

/// The application sees this address as its client; redirection exempts it.
const INBOUND_SOURCE: &str = "127.0.0.6";
/// Inbound pools of an address are as good as never dropped.
const CLEANUP_SECONDS: i64 = 315_576_000;
/// First bytes that the TLS inspector reads.
const TLS_INITIAL_READ: u32 = 512;

/// What one workload port serves.
struct Port {
    target: u16,
    service_port: u16,
    protocol: Protocol,
    services: Vec<Arc<Service>>,
}

/// The workload's ports by number; of several services on one, the oldest decides the protocol.
fn ports(mesh: &Mesh, proxy: &Proxy) -> Vec<Port> {
    let mut ports: BTreeMap<u16, Port> = BTreeMap::new();
    for served in mesh.served(&proxy.namespace, &proxy.name, &proxy.ips) {
        add(&mut ports, served.service, served.port, served.target);
    }
    add_pending(mesh, proxy, &mut ports);
    ports.into_values().collect()
}

fn add(ports: &mut BTreeMap<u16, Port>, service: &Arc<Service>, service_port: u16, target: u16) {
    let Some(port) = service.port(service_port).filter(|p| p.protocol != Protocol::Udp) else { return };
    let entry = ports.entry(target).or_insert_with(|| Port {
        target,
        service_port,
        protocol: port.protocol,
        services: Vec::new(),
    });
    if !entry.services.iter().any(|known| known.host == service.host) {
        entry.services.push(Arc::clone(service));
    }
}

/// A workload that has no address yet is not among the endpoints; its ports are known all the same.
fn add_pending(mesh: &Mesh, proxy: &Proxy, ports: &mut BTreeMap<u16, Port>) {
    let Some(workload) = mesh.workload(&proxy.namespace, &proxy.name) else { return };
    if !workload.ips.is_empty() {
        return;
    }
    let selecting = |s: &&Arc<Service>| s.namespace == workload.namespace && mesh.selects(s, workload);
    for service in mesh.services.iter().filter(selecting) {
        for port in &service.ports {
            let target = match &port.target {
                IntOrString::Int(number) => Some(*number),
                IntOrString::String(name) => workload.named_ports.get(name).copied(),
            };
            if let Some(target) = target {
                add(ports, service, port.port, target);
            }
        }
    }
}

/// What the server's side of a proxy depends on.
pub(super) fn dependencies(mesh: &Mesh, proxy: &Proxy) -> BTreeSet<Dependency> {
    let own = || proxy.namespace.clone();
    let mut all = BTreeSet::from([
        Dependency::Workload(own(), proxy.name.clone()),
        Dependency::Peers(own()),
        Dependency::Access(own()),
        Dependency::Access(mesh.settings.root_namespace.clone()),
    ]);
    let served = ports(mesh, proxy).into_iter().flat_map(|port| port.services);
    all.extend(served.map(|service| Dependency::Service(service.host.clone())));
    all
}

/// The listener and its clusters.
pub(super) fn translate(mesh: &Mesh, proxy: &Proxy) -> (pb::Listener, Vec<cluster_pb::Cluster>) {
    let served = ports(mesh, proxy);
    (listener(mesh, proxy, &served), clusters(mesh, proxy, &served))
}

/// `virtualInbound`.
fn listener(mesh: &Mesh, proxy: &Proxy, served: &[Port]) -> pb::Listener {
    let access = rbac::Access::of(mesh, proxy);
    let builder = Builder { mesh, access };
    let mode = |port: Option<u16>| mesh.peers.mode(&proxy.namespace, &proxy.labels, port);
    let mut chains = vec![pb::FilterChain {
        name: "virtualInbound-blackhole".to_owned(),
        filter_chain_match: Some(pb::FilterChainMatch {
            destination_port: Some(INBOUND_PORT.into()),
            ..pb::FilterChainMatch::default()
        }),
        filters: vec![http::tcp_proxy(BLACK_HOLE)],
        ..pb::FilterChain::default()
    }];
    chains.extend(builder.passthrough(mode(None), None));
    let numbers: BTreeSet<u16> = served.iter().map(|port| port.target).collect();
    let mut modes: Vec<(u16, MtlsMode, Protocol)> = Vec::new();
    for port in mesh.peers.overridden_ports(&proxy.namespace, &proxy.labels) {
        if !numbers.contains(&port) {
            chains.extend(builder.passthrough(mode(Some(port)), Some(port)));
            modes.push((port, mode(Some(port)), Protocol::Auto));
        }
    }
    for port in served {
        let mode = mode(Some(port.target));
        chains.extend(builder.of_port(port, mode));
        modes.push((port.target, mode, port.protocol));
    }
    pb::Listener {
        name: "virtualInbound".to_owned(),
        address: Some(address("0.0.0.0", INBOUND_PORT)),
        filter_chains: chains,
        listener_filters: inspectors(mode(None), &modes),
        listener_filters_timeout: seconds(0),
        continue_on_listener_filters_timeout: true,
        traffic_direction: core::TrafficDirection::Inbound.into(),
        ..pb::Listener::default()
    }
}

struct Builder<'m> {
    mesh: &'m Mesh,
    access: rbac::Access<'m>,
}

/// Filters of a set of chains, with and without HTTP.
struct Filters {
    http: Vec<pb::Filter>,
    tcp: Vec<pb::Filter>,
    http_name: String,
    tcp_name: String,
}

impl Builder<'_> {
    fn of_port(&self, port: &Port, mode: MtlsMode) -> Vec<pb::FilterChain> {
        let cluster = inbound_cluster(port.target);
        let name = format!("0.0.0.0_{}", port.target);
        let host = port.services.first().map_or("", |service| &service.host);
        let operation = format!("{host}:{}/*", port.service_port);
        let retries = matches!(port.protocol, Protocol::Http | Protocol::Auto);
        let filters = self.filters(&cluster, port.service_port, &operation, retries, port.protocol);
        let filters = Filters { http_name: name.clone(), tcp_name: name, ..filters };
        self.chains(mode, port.protocol, Some(port.target), &filters)
    }

    /// Chains for ports that no service claims.
    fn passthrough(&self, mode: MtlsMode, port: Option<u16>) -> Vec<pb::FilterChain> {
        let number = port.unwrap_or(0);
        let filters = self.filters(INBOUND_PASSTHROUGH, number, ":0/*", false, Protocol::Auto);
        let filters = Filters {
            http_name: "virtualInbound-catchall-http".to_owned(),
            tcp_name: "virtualInbound".to_owned(),
            ..filters
        };
        self.chains(mode, Protocol::Auto, port, &filters)
    }

    fn filters(
        &self,
        cluster: &str,
        service_port: u16,
        operation: &str,
        retries: bool,
        protocol: Protocol,
    ) -> Filters {
        let mut tcp = self.access.network_filters();
        tcp.push(http::tcp_proxy(cluster));
        let stat_prefix = if cluster == INBOUND_PASSTHROUGH {
            INBOUND_PASSTHROUGH.to_owned()
        } else {
            format!("inbound_0.0.0.0_{service_port};")
        };
        let routes = inline_routes(cluster, service_port, operation, retries);
        let grpc_web = protocol == Protocol::GrpcWeb;
        let http = vec![http::inbound(stat_prefix, routes, self.access.http_filters(), grpc_web)];
        Filters { http, tcp, http_name: String::new(), tcp_name: String::new() }
    }

    /// The chains of one port by mode and protocol, in the order in which they are listed.
    fn chains(
        &self,
        mode: MtlsMode,
        protocol: Protocol,
        port: Option<u16>,
        filters: &Filters,
    ) -> Vec<pb::FilterChain> {
        #[derive(Clone, Copy, PartialEq)]
        enum Kind {
            Auto,
            Http,
            Tcp,
        }
        let kind = match protocol {
            Protocol::Auto => Kind::Auto,
            p if p.is_http() => Kind::Http,
            _ => Kind::Tcp,
        };
        let all: Vec<&str> = MESH_TCP.iter().chain(&MESH_HTTP).copied().collect();
        // (transport protocol, application protocols, carries HTTP, behind mutual TLS)
        let rows: Vec<(&str, &[&str], bool, bool)> = match (mode, kind) {
            (MtlsMode::Permissive | MtlsMode::Unset, Kind::Auto) => vec![
                ("tls", &MESH_HTTP, true, true),
                ("raw_buffer", &PLAINTEXT_HTTP, true, false),
                ("tls", &MESH_TCP, false, true),
                ("raw_buffer", &[], false, false),
                ("tls", &[], false, false),
            ],
            (MtlsMode::Permissive | MtlsMode::Unset, Kind::Http) => {
                vec![("tls", &all, true, true), ("raw_buffer", &[], true, false)]
            }
            (MtlsMode::Permissive | MtlsMode::Unset, Kind::Tcp) => {
                vec![
                    ("tls", &all, false, true),
                    ("tls", &[], false, false),
                    ("raw_buffer", &[], false, false),
                ]
            }
            (MtlsMode::Strict, Kind::Auto) => {
                vec![("tls", &MESH_HTTP, true, true), ("tls", &[], false, true)]
            }
            (MtlsMode::Strict, Kind::Http) => vec![("tls", &[], true, true)],
            (MtlsMode::Strict, Kind::Tcp) => vec![("tls", &[], false, true)],
            (MtlsMode::Disable, Kind::Auto) => {
                vec![("raw_buffer", &PLAINTEXT_HTTP, true, false), ("raw_buffer", &[], false, false)]
            }
            (MtlsMode::Disable, Kind::Http) => vec![("raw_buffer", &[], true, false)],
            (MtlsMode::Disable, Kind::Tcp) => vec![("raw_buffer", &[], false, false)],
        };
        rows.into_iter()
            .map(|(transport, protocols, is_http, mtls)| pb::FilterChain {
                name: if is_http { filters.http_name.clone() } else { filters.tcp_name.clone() },
                filter_chain_match: Some(pb::FilterChainMatch {
                    destination_port: port.map(u32::from),
                    transport_protocol: transport.to_owned(),
                    application_protocols: protocols.iter().map(|p| (*p).to_owned()).collect(),
                    ..pb::FilterChainMatch::default()
                }),
                filters: if is_http { filters.http.clone() } else { filters.tcp.clone() },
                transport_socket: mtls.then(|| {
                    let carries = if is_http { Carries::Http } else { Carries::Tcp };
                    tls::inbound(&self.mesh.settings.trust_domain, carries)
                }),
                ..pb::FilterChain::default()
            })
            .collect()
    }
}

/// Listener filters; each inspector is off on ports whose chains do not ask for what it finds.
fn inspectors(passthrough: MtlsMode, ports: &[(u16, MtlsMode, Protocol)]) -> Vec<pb::ListenerFilter> {
    let tls = |mode: MtlsMode, _: Protocol| mode != MtlsMode::Disable;
    let http = |mode: MtlsMode, protocol: Protocol| protocol == Protocol::Auto && mode != MtlsMode::Strict;
    let mut tls_inspector = listener_filter(
        "envoy.filters.listener.tls_inspector",
        &TlsInspector { initial_read_buffer_size: Some(TLS_INITIAL_READ), ..TlsInspector::default() },
    );
    tls_inspector.filter_disabled = disabled(passthrough, ports, tls);
    let mut http_inspector =
        listener_filter("envoy.filters.listener.http_inspector", &HttpInspector::default());
    http_inspector.filter_disabled = disabled(passthrough, ports, http);
    let original = listener_filter("envoy.filters.listener.original_dst", &OriginalDst::default());
    vec![original, tls_inspector, http_inspector]
}

fn disabled(
    passthrough: MtlsMode,
    ports: &[(u16, MtlsMode, Protocol)],
    needs: impl Fn(MtlsMode, Protocol) -> bool,
) -> Option<pb::ListenerFilterChainMatchPredicate> {
    use pb::listener_filter_chain_match_predicate::{MatchSet, Rule};
    let predicate = |rule| pb::ListenerFilterChainMatchPredicate { rule: Some(rule) };
    let default = needs(passthrough, Protocol::Auto);
    let different: Vec<_> = ports
        .iter()
        .filter(|(_, mode, protocol)| needs(*mode, *protocol) != default)
        .map(|(port, ..)| {
            let start = i32::from(*port);
            predicate(Rule::DestinationPortRange(Int32Range { start, end: start + 1 }))
        })
        .collect();
    // One rule stands for itself; several are alternatives.
    let set = match <[_; 1]>::try_from(different) {
        Ok([only]) => Some(only),
        Err(several) if several.is_empty() => None,
        Err(rules) => Some(predicate(Rule::OrMatch(MatchSet { rules }))),
    };
    match (default, set) {
        (true, set) => set,
        (false, None) => Some(predicate(Rule::AnyMatch(true))),
        (false, Some(set)) => Some(predicate(Rule::NotMatch(Box::new(set)))),
    }
}

fn inline_routes(
    cluster: &str,
    service_port: u16,
    operation: &str,
    retries: bool,
) -> route::RouteConfiguration {
    let action = route::RouteAction {
        cluster_specifier: Some(route::route_action::ClusterSpecifier::Cluster(cluster.to_owned())),
        timeout: seconds(0),
        max_stream_duration: Some(route::route_action::MaxStreamDuration {
            max_stream_duration: seconds(0),
            grpc_timeout_header_max: seconds(0),
            grpc_timeout_header_offset: None,
        }),
        // A connection that the application closed while idle: nothing was processed, a second one may be tried.
        retry_policy: retries.then(|| route::RetryPolicy {
            retry_on: "reset-before-request".to_owned(),
            num_retries: Some(2),
            ..route::RetryPolicy::default()
        }),
        ..route::RouteAction::default()
    };
    let default = route::Route {
        name: "default".to_owned(),
        r#match: Some(matching::everything()),
        decorator: Some(route::Decorator { operation: operation.to_owned(), propagate: None }),
        action: Some(route::route::Action::Route(action)),
        ..route::Route::default()
    };
    route::RouteConfiguration {
        name: cluster.to_owned(),
        virtual_hosts: vec![route::VirtualHost {
            name: format!("inbound|http|{service_port}"),
            domains: vec!["*".to_owned()],
            routes: vec![default],
            ..route::VirtualHost::default()
        }],
        validate_clusters: Some(false),
        ..route::RouteConfiguration::default()
    }
}

/// The clusters behind `virtualInbound`.
fn clusters(mesh: &Mesh, proxy: &Proxy, served: &[Port]) -> Vec<cluster_pb::Cluster> {
    let program = Program::of(mesh, proxy);
    let mut all: Vec<_> = served
        .iter()
        .map(|port| {
            let mut cluster = to_original_destination(inbound_cluster(port.target));
            let owner = port.services.first();
            let merged = owner.map(|service| Merged::new(program.traffic_for(service))).unwrap_or_default();
            // Of a DestinationRule only the connection pool concerns the server's side.
            let policy = Policy { pool: merged.policy(port.service_port, None).pool, ..Policy::default() };
            clusters::connection_pool(&mut cluster, &policy);
            clusters::http_options(&mut cluster, port.protocol, &policy);
            let services = port.services.iter().map(|s| clusters::service_entry(s)).collect();
            let istio = structure([("services", list(services))]);
            cluster.metadata = metadata([("istio".to_owned(), istio)].into());
            cluster
        })
        .collect();
    let mut passthrough = to_original_destination(INBOUND_PASSTHROUGH.to_owned());
    clusters::use_downstream_protocol(&mut passthrough);
    all.push(passthrough);
    all
}

fn to_original_destination(name: String) -> cluster_pb::Cluster {
    use cluster_pb::cluster;
    cluster_pb::Cluster {
        name,
        cluster_discovery_type: Some(cluster::ClusterDiscoveryType::Type(
            cluster::DiscoveryType::OriginalDst.into(),
        )),
        lb_policy: cluster::LbPolicy::ClusterProvided.into(),
        connect_timeout: seconds(clusters::CONNECT_TIMEOUT_SECONDS),
        circuit_breakers: Some(clusters::unlimited()),
        cleanup_interval: seconds(CLEANUP_SECONDS),
        upstream_bind_config: Some(core::BindConfig {
            source_address: Some(socket_address(INBOUND_SOURCE, 0)),
            ..core::BindConfig::default()
        }),
        ..cluster_pb::Cluster::default()
    }
}
