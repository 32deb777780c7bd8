//! RDS: which virtual hosts a port has, which names they answer to, and where their requests go.
#![allow(deprecated, reason = "the proxies in use read these fields, not their successors")]

mod action;
mod headers;

pub(super) use action::destination_cluster;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use mesh_xds::pb::envoy::config::route::v3 as pb;

use super::matching;
use super::names::{ClusterName, PASSTHROUGH};
use super::proto::seconds;
use super::view::Program;
use crate::model::{Protocol, RouteRule, Service, ServicePort};

/// Largest body of a direct response.
const MAX_DIRECT_BODY_BYTES: u32 = 1 << 20;

/// Whether a port's HTTP is served by the shared `<port>` configuration; otherwise by one of its own.
pub(super) fn shares_port(service: &Service, port: &ServicePort) -> bool {
    port.protocol.is_http() || (port.protocol == Protocol::Auto && service.vips.is_empty())
}

/// Name of the configuration of a detected port with an address of its own.
pub(super) fn sniffed_name(service: &Service, port: &ServicePort) -> String {
    format!("{}:{}", service.host, port.port)
}

/// All route configurations of a view.
pub(super) fn configurations(program: &Program<'_>) -> Vec<pb::RouteConfiguration> {
    let mut shared: BTreeMap<u16, Vec<(&Arc<Service>, &ServicePort)>> = BTreeMap::new();
    let mut own = Vec::new();
    for service in &program.view.services {
        for port in &service.ports {
            if shares_port(service, port) {
                shared.entry(port.port).or_default().push((service, port));
            } else if port.protocol == Protocol::Auto {
                own.push(sniffed(program, service, port));
            }
        }
    }
    let mut all: Vec<_> = shared.iter().map(|(port, services)| of_port(program, *port, services)).collect();
    all.append(&mut own);
    all
}

fn configuration(name: String, virtual_hosts: Vec<pb::VirtualHost>) -> pb::RouteConfiguration {
    pb::RouteConfiguration {
        name,
        virtual_hosts,
        validate_clusters: Some(false),
        ignore_port_in_host_matching: true,
        max_direct_response_body_size_bytes: Some(MAX_DIRECT_BODY_BYTES),
        ..pb::RouteConfiguration::default()
    }
}

fn sniffed(program: &Program<'_>, service: &Arc<Service>, port: &ServicePort) -> pb::RouteConfiguration {
    let mut vhost = virtual_host(program, service, port);
    vhost.domains = vec!["*".to_owned()];
    configuration(sniffed_name(service, port), vec![vhost])
}

fn of_port(
    program: &Program<'_>,
    port: u16,
    services: &[(&Arc<Service>, &ServicePort)],
) -> pb::RouteConfiguration {
    // A service's own full name beats another's derived one, so those are taken first.
    let mut taken: BTreeSet<String> = services.iter().map(|(s, _)| s.host.clone()).collect();
    let mut hosts = Vec::new();
    for (service, service_port) in services {
        let mut vhost = virtual_host(program, service, service_port);
        let mut names = domains(program, service);
        names.retain(|name| *name == service.host || taken.insert(name.clone()));
        vhost.domains = names;
        hosts.push(vhost);
    }
    if port == 80 {
        hosts.extend(unknown_hosts(program, port, &mut taken));
    }
    hosts.sort_by(|a, b| a.name.cmp(&b.name));
    hosts.push(catch_all(program.view.registry_only));
    configuration(port.to_string(), hosts)
}

/// Hosts that a VirtualService names although no registry knows them.
fn unknown_hosts(program: &Program<'_>, port: u16, taken: &mut BTreeSet<String>) -> Vec<pb::VirtualHost> {
    let mut hosts = Vec::new();
    for rule in &program.routes {
        for host in &rule.hosts {
            let known = program.service(host).is_some() || host == "*" || taken.contains(host);
            if known || program.route_for(host).is_none_or(|first| first.name != rule.name) {
                continue;
            }
            taken.insert(host.clone());
            let routes = rule_routes(program, rule, port, None);
            if !routes.is_empty() {
                hosts.push(pb::VirtualHost {
                    name: format!("{host}:{port}"),
                    domains: vec![host.clone()],
                    routes,
                    include_request_attempt_count: true,
                    ..pb::VirtualHost::default()
                });
            }
        }
    }
    hosts
}

/// The host's routes: its VirtualService's, or straight to the service.
fn virtual_host(program: &Program<'_>, service: &Arc<Service>, port: &ServicePort) -> pb::VirtualHost {
    let rule = program.route_for(&service.host).filter(|rule| !rule.spec.http.is_empty());
    let routes = match rule {
        Some(rule) => rule_routes(program, rule, port.port, Some(service)),
        None => vec![default_route(program, service, port.port)],
    };
    pb::VirtualHost {
        name: format!("{}:{}", service.host, port.port),
        routes,
        include_request_attempt_count: true,
        ..pb::VirtualHost::default()
    }
}

/// A VirtualService's routes for a client of this view: one per alternative, in order, up to the first that leaves
/// nothing to those after it. Whatever matches none is answered 404: there is no fall back to the service.
fn rule_routes(
    program: &Program<'_>,
    rule: &RouteRule,
    port: u16,
    service: Option<&Arc<Service>>,
) -> Vec<pb::Route> {
    let mut routes = Vec::new();
    for http in &rule.spec.http {
        let name = if http.name.is_empty() { "default" } else { &http.name };
        let context = action::Context { program, rule, port, service };
        if http.matches.is_empty() {
            let route = context.route(http, None, matching::everything(), name.to_owned());
            routes.push(route);
            return routes;
        }
        for m in http.matches.iter().filter(|m| matching::http_concerns(&program.view, port, m)) {
            let name = if m.name.is_empty() { name.to_owned() } else { format!("{name}.{}", m.name) };
            let route_match = matching::route_match(m);
            let last = matching::is_catch_all(&route_match);
            routes.push(context.route(http, Some(m), route_match, name));
            if last {
                return routes;
            }
        }
    }
    routes
}

fn default_route(program: &Program<'_>, service: &Service, port: u16) -> pb::Route {
    let cluster = ClusterName { port, subset: "", host: &service.host }.to_string();
    let hash_policy = action::hash_policy(program, service, port, "");
    pb::Route {
        name: "default".to_owned(),
        r#match: Some(matching::everything()),
        decorator: Some(pb::Decorator { operation: format!("{}:{port}/*", service.host), propagate: None }),
        action: Some(pb::route::Action::Route(pb::RouteAction {
            cluster_specifier: Some(pb::route_action::ClusterSpecifier::Cluster(cluster)),
            timeout: seconds(0),
            retry_policy: Some(action::default_retries(hash_policy.is_empty())),
            max_grpc_timeout: seconds(0),
            hash_policy,
            ..pb::RouteAction::default()
        })),
        ..pb::Route::default()
    }
}

/// Every name by which clients of this view may call the service.
fn domains(program: &Program<'_>, service: &Service) -> Vec<String> {
    let mut names = vec![service.host.clone()];
    if service.kubernetes {
        names.push(format!("{}.", service.host));
        let (name, namespace) = (&service.name, &service.namespace);
        let mut short = Vec::new();
        if *namespace == program.view.namespace {
            short.push(name.clone());
        }
        short.push(format!("{name}.{namespace}"));
        short.push(format!("{name}.{namespace}.svc"));
        names.append(&mut short);
        if service.headless() {
            let wild: Vec<_> = names.iter().map(|name| format!("*.{name}")).collect();
            names.extend(wild);
        }
    }
    names.extend(service.vips.iter().map(|vip| match vip {
        std::net::IpAddr::V4(ip) => ip.to_string(),
        std::net::IpAddr::V6(ip) => format!("[{ip}]"),
    }));
    names
}

fn catch_all(registry_only: bool) -> pb::VirtualHost {
    let (name, action) = if registry_only {
        let refuse = pb::DirectResponseAction { status: 502, ..pb::DirectResponseAction::default() };
        ("block_all", pb::route::Action::DirectResponse(refuse))
    } else {
        let pass = pb::RouteAction {
            cluster_specifier: Some(pb::route_action::ClusterSpecifier::Cluster(PASSTHROUGH.to_owned())),
            timeout: seconds(0),
            max_grpc_timeout: seconds(0),
            ..pb::RouteAction::default()
        };
        ("allow_any", pb::route::Action::Route(pass))
    };
    pb::VirtualHost {
        name: name.to_owned(),
        domains: vec!["*".to_owned()],
        routes: vec![pb::Route {
            name: name.to_owned(),
            r#match: Some(matching::everything()),
            action: Some(action),
            ..pb::Route::default()
        }],
        include_request_attempt_count: true,
        ..pb::VirtualHost::default()
    }
}
