//! LDS, the client's side: `virtualOutbound` and a listener per address and port of the services in view.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use mesh_xds::pb::envoy::config::core::v3::TrafficDirection;
use mesh_xds::pb::envoy::config::listener::v3 as pb;
use mesh_xds::pb::envoy::extensions::filters::listener::http_inspector::v3::HttpInspector;
use mesh_xds::pb::envoy::extensions::filters::listener::tls_inspector::v3::TlsInspector;
use mesh_xds::pb::envoy::extensions::filters::network::tcp_proxy::v3 as tcp;

use super::names::{BLACK_HOLE, ClusterName, PASSTHROUGH, PLAINTEXT_HTTP};
use super::proto::{address, cidr, listener_filter, seconds};
use super::view::Program;
use super::{OUTBOUND_PORT, http, matching, routes};
use crate::model::{Protocol, Service, ServicePort};
use crate::resources::{WeightedDestination, parse_cidr};

/// All outbound listeners for a proxy with these addresses.
pub(super) fn listeners(program: &Program<'_>, own: &[IpAddr]) -> Vec<pb::Listener> {
    let mut ports: BTreeMap<(String, u16), Draft> = BTreeMap::new();
    for service in &program.view.services {
        for port in &service.ports {
            add(program, &mut ports, service, port, own);
        }
    }
    let mut all: Vec<_> =
        ports.into_iter().map(|((bind, port), draft)| draft.build(program, &bind, port)).collect();
    all.push(virtual_outbound(program.view.registry_only));
    all
}

const ANY: &str = "0.0.0.0";

/// What has been gathered for one address and port.
#[derive(Default)]
struct Draft {
    /// The route configuration of its HTTP, if it has any.
    http: Option<String>,
    grpc_web: bool,
    /// Opaque chains; of equal matches the first (oldest service's) stays.
    chains: Vec<(pb::FilterChainMatch, pb::Filter)>,
    additional: Vec<IpAddr>,
}

impl Draft {
    fn add_chain(&mut self, m: pb::FilterChainMatch, filter: pb::Filter) {
        if !self.chains.iter().any(|(known, _)| *known == m) {
            self.chains.push((m, filter));
        }
    }

    fn build(self, program: &Program<'_>, bind: &str, port: u16) -> pb::Listener {
        let by_name = self.chains.iter().any(|(m, _)| !m.server_names.is_empty());
        let catches_all = self.chains.iter().any(|(m, _)| *m == pb::FilterChainMatch::default());
        let mut listener_filters = Vec::new();
        if by_name || (self.http.is_some() && catches_all && bind != ANY) {
            listener_filters
                .push(listener_filter("envoy.filters.listener.tls_inspector", &TlsInspector::default()));
        }
        if self.http.is_some() {
            let inspector = HttpInspector::default();
            listener_filters.push(listener_filter("envoy.filters.listener.http_inspector", &inspector));
        }
        let mut filter_chains = Vec::new();
        if let Some(route_config) = &self.http {
            filter_chains.push(pb::FilterChain {
                filter_chain_match: Some(pb::FilterChainMatch {
                    transport_protocol: "raw_buffer".to_owned(),
                    application_protocols: PLAINTEXT_HTTP.iter().map(|p| (*p).to_owned()).collect(),
                    ..pb::FilterChainMatch::default()
                }),
                filters: vec![http::outbound(
                    format!("outbound_{bind}_{port};"),
                    route_config.clone(),
                    self.grpc_web,
                )],
                ..pb::FilterChain::default()
            });
        }
        for (m, filter) in self.chains {
            let open = m == pb::FilterChainMatch::default();
            filter_chains.push(pb::FilterChain {
                filter_chain_match: (!open).then_some(m),
                filters: vec![filter],
                ..pb::FilterChain::default()
            });
        }
        // An address of a service has nobody else to pass to; the wildcard may be meant for a stranger.
        let default_filter_chain = (bind == ANY && !catches_all).then(|| pb::FilterChain {
            name: "PassthroughFilterChain".to_owned(),
            filters: vec![http::tcp_proxy(unknown_destination(program.view.registry_only))],
            ..pb::FilterChain::default()
        });
        pb::Listener {
            name: format!("{bind}_{port}"),
            address: Some(address(bind, port)),
            additional_addresses: self
                .additional
                .iter()
                .map(|ip| pb::AdditionalAddress {
                    address: Some(address(&ip.to_string(), port)),
                    socket_options: None,
                })
                .collect(),
            bind_to_port: Some(false),
            traffic_direction: TrafficDirection::Outbound.into(),
            listener_filters_timeout: self.http.is_some().then(|| seconds(0)).flatten(),
            continue_on_listener_filters_timeout: self.http.is_some(),
            listener_filters,
            filter_chains,
            default_filter_chain,
            ..pb::Listener::default()
        }
    }
}

fn add(
    program: &Program<'_>,
    ports: &mut BTreeMap<(String, u16), Draft>,
    service: &Service,
    port: &ServicePort,
    own: &[IpAddr],
) {
    let number = port.port;
    if port.protocol == Protocol::Udp {
        return;
    }
    if routes::shares_port(service, port) {
        let entry = ports.entry((ANY.to_owned(), number)).or_default();
        entry.http = Some(number.to_string());
        entry.grpc_web |= port.protocol == Protocol::GrpcWeb;
        return;
    }
    let chains = opaque_chains(program, service, port);
    if let Some((first, others)) = service.vips.split_first() {
        let entry = ports.entry((first.to_string(), number)).or_default();
        entry.additional = others.to_vec();
        if port.protocol == Protocol::Auto {
            entry.http = Some(routes::sniffed_name(service, port));
        }
        for (m, filter) in chains {
            entry.add_chain(m, filter);
        }
    } else if service.headless() {
        for endpoint in service.endpoints.get(&number).into_iter().flatten().filter(|e| e.healthy) {
            if own.iter().any(|ip| ip.to_string() == endpoint.address) {
                continue;
            }
            let entry = ports.entry((endpoint.address.clone(), number)).or_default();
            for (m, filter) in chains.clone() {
                entry.add_chain(m, filter);
            }
        }
    } else {
        let entry = ports.entry((ANY.to_owned(), number)).or_default();
        for (m, filter) in chains {
            for m in within(&m, &service.cidrs) {
                entry.add_chain(m, filter.clone());
            }
        }
    }
}

/// The match, narrowed to the service's address ranges where it has any.
fn within(m: &pb::FilterChainMatch, cidrs: &[IpNet]) -> Vec<pb::FilterChainMatch> {
    let mut m = m.clone();
    if m.prefix_ranges.is_empty() {
        m.prefix_ranges = cidrs.iter().copied().map(cidr).collect();
    }
    vec![m]
}

/// Chains for bytes that are not looked into: those of a VirtualService, else one to the service.
fn opaque_chains(
    program: &Program<'_>,
    service: &Service,
    port: &ServicePort,
) -> Vec<(pb::FilterChainMatch, pb::Filter)> {
    let number = port.port;
    let rule = program.route_for(&service.host);
    let mut chains = Vec::new();
    if let Some(rule) = rule.filter(|_| port.protocol == Protocol::Tls) {
        for route in &rule.spec.tls {
            for m in &route.matches {
                let narrowing = (&m.gateways[..], &m.source_labels, m.source_namespace.as_str(), m.port);
                if !matching::concerns(&program.view, number, narrowing) {
                    continue;
                }
                let to = destinations(program, &rule.namespace, &route.route, number);
                let m = chain_match(&m.destination_subnets, &m.sni_hosts);
                chains.push((m, http::tcp_proxy_to(&service.host, to)));
            }
        }
        if !chains.is_empty() {
            return chains;
        }
    }
    if let Some(rule) = rule {
        for route in &rule.spec.tcp {
            let to = || destinations(program, &rule.namespace, &route.route, number);
            if route.matches.is_empty() {
                chains.push((chain_match(&[], &[]), http::tcp_proxy_to(&service.host, to())));
                return chains;
            }
            for m in &route.matches {
                let narrowing = (&m.gateways[..], &m.source_labels, m.source_namespace.as_str(), m.port);
                if !matching::concerns(&program.view, number, narrowing) {
                    continue;
                }
                let terminal = m.destination_subnets.is_empty();
                let m = chain_match(&m.destination_subnets, &[]);
                chains.push((m, http::tcp_proxy_to(&service.host, to())));
                if terminal {
                    return chains;
                }
            }
        }
    }
    let cluster = ClusterName { port: number, subset: "", host: &service.host }.to_string();
    // Only where the address does not say which service is meant, the server name has to.
    let by_name = port.protocol == Protocol::Tls && service.vips.is_empty() && !service.headless();
    let names = if by_name { vec![service.host.clone()] } else { Vec::new() };
    chains.push((chain_match(&[], &names), http::tcp_proxy(&cluster)));
    chains
}

fn chain_match(subnets: &[String], names: &[String]) -> pb::FilterChainMatch {
    pb::FilterChainMatch {
        prefix_ranges: subnets.iter().filter_map(|subnet| parse_cidr(subnet)).map(cidr).collect(),
        server_names: names.to_vec(),
        ..pb::FilterChainMatch::default()
    }
}

fn destinations(
    program: &Program<'_>,
    namespace: &str,
    all: &[WeightedDestination],
    port: u16,
) -> tcp::tcp_proxy::ClusterSpecifier {
    use tcp::tcp_proxy::{ClusterSpecifier, WeightedCluster, weighted_cluster::ClusterWeight};
    let weighted: Vec<_> = all.iter().filter(|to| all.len() == 1 || to.weight > 0).collect();
    let name =
        |to: &WeightedDestination| routes::destination_cluster(program, namespace, &to.destination, port);
    match weighted.as_slice() {
        [] => ClusterSpecifier::Cluster(BLACK_HOLE.to_owned()),
        [only] => ClusterSpecifier::Cluster(name(only)),
        several => ClusterSpecifier::WeightedClusters(WeightedCluster {
            clusters: several
                .iter()
                .map(|to| ClusterWeight { name: name(to), weight: to.weight, metadata_match: None })
                .collect(),
        }),
    }
}

fn unknown_destination(registry_only: bool) -> &'static str {
    if registry_only { BLACK_HOLE } else { PASSTHROUGH }
}

fn virtual_outbound(registry_only: bool) -> pb::Listener {
    let black_hole = pb::FilterChain {
        name: "virtualOutbound-blackhole".to_owned(),
        filter_chain_match: Some(pb::FilterChainMatch {
            destination_port: Some(OUTBOUND_PORT.into()),
            ..pb::FilterChainMatch::default()
        }),
        filters: vec![http::tcp_proxy(BLACK_HOLE)],
        ..pb::FilterChain::default()
    };
    let catch_all = pb::FilterChain {
        name: "virtualOutbound-catchall-tcp".to_owned(),
        filters: vec![http::tcp_proxy(unknown_destination(registry_only))],
        ..pb::FilterChain::default()
    };
    pb::Listener {
        name: "virtualOutbound".to_owned(),
        address: Some(address(ANY, OUTBOUND_PORT)),
        filter_chains: vec![black_hole, catch_all],
        use_original_dst: Some(true),
        traffic_direction: TrafficDirection::Outbound.into(),
        max_connections_to_accept_per_socket_event: Some(1),
        ..pb::Listener::default()
    }
}
