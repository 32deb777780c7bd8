//! EDS: who is behind a cluster, grouped by locality, with health and the way to speak to each.

use std::collections::BTreeMap;

use mesh_xds::pb::envoy::config::core::v3 as core;
use mesh_xds::pb::envoy::config::endpoint::v3 as pb;
use prost_types::Struct;

use super::names::ClusterName;
use super::policy::Merged;
use super::proto::{address, metadata, structure, text};
use super::view::Program;
use crate::model::{Discovery, Endpoint, Protocol, Service};
use crate::resources::{SimpleLb, Subset, TlsMode, scalar_subset};

/// All load assignments of a view.
pub(super) fn assignments(program: &Program<'_>) -> Vec<pb::ClusterLoadAssignment> {
    program.view.services.iter().flat_map(|service| of_service(program, service)).collect()
}

/// The load assignments of one service: the whole and every subset, per port.
pub(super) fn of_service(program: &Program<'_>, service: &Service) -> Vec<pb::ClusterLoadAssignment> {
    let mut all = Vec::new();
    if service.discovery != Discovery::Eds {
        return all;
    }
    let merged = Merged::new(program.traffic_for(service));
    for port in service.ports.iter().filter(|port| port.protocol != Protocol::Udp) {
        let subsets = merged.subsets();
        for subset in std::iter::once(None).chain(subsets.into_iter().map(Some)) {
            let policy = merged.policy(port.port, subset);
            let passthrough = policy
                .load_balancer
                .is_some_and(|lb| lb.simple == SimpleLb::Passthrough && lb.consistent_hash.is_none());
            if passthrough {
                continue;
            }
            let name =
                ClusterName { port: port.port, subset: subset.map_or("", |s| &s.name), host: &service.host };
            let force = policy.tls.is_some_and(|tls| tls.mode == TlsMode::IstioMutual);
            all.push(assignment(service, &name, subset, force));
        }
    }
    all
}

/// The load assignment of one cluster; endpoints say themselves whether they speak mutual TLS.
pub fn load_assignment(
    service: &Service,
    name: &ClusterName<'_>,
    subset: Option<&Subset>,
) -> pb::ClusterLoadAssignment {
    assignment(service, name, subset, false)
}

fn assignment(
    service: &Service,
    name: &ClusterName<'_>,
    subset: Option<&Subset>,
    force_mtls: bool,
) -> pb::ClusterLoadAssignment {
    let mut localities: BTreeMap<&str, Vec<&Endpoint>> = BTreeMap::new();
    let endpoints = service.endpoints.get(&name.port).into_iter().flatten();
    for endpoint in endpoints.filter(|e| subset.is_none_or(|s| scalar_subset(&s.labels, &e.labels))) {
        localities.entry(&endpoint.locality).or_default().push(endpoint);
    }
    let groups = localities.into_iter().map(|(locality, endpoints)| pb::LocalityLbEndpoints {
        locality: Some(self::locality(locality)),
        load_balancing_weight: Some(endpoints.iter().map(|e| e.weight).sum()),
        lb_endpoints: endpoints.into_iter().map(|e| lb_endpoint(e, force_mtls)).collect(),
        ..pb::LocalityLbEndpoints::default()
    });
    pb::ClusterLoadAssignment {
        cluster_name: name.to_string(),
        endpoints: groups.collect(),
        ..pb::ClusterLoadAssignment::default()
    }
}

fn locality(text: &str) -> core::Locality {
    let mut parts = text.splitn(3, '/').map(str::to_owned);
    let mut next = || parts.next().unwrap_or_default();
    core::Locality { region: next(), zone: next(), sub_zone: next() }
}

fn lb_endpoint(endpoint: &Endpoint, force_mtls: bool) -> pb::LbEndpoint {
    let health = if endpoint.healthy { core::HealthStatus::Healthy } else { core::HealthStatus::Unhealthy };
    let mut namespaces: BTreeMap<String, Struct> = BTreeMap::new();
    if endpoint.mtls || force_mtls {
        let tls_mode = structure([("tlsMode", text("istio"))]);
        namespaces.insert("envoy.transport_socket_match".to_owned(), tls_mode);
    }
    if let Some(workload) = &endpoint.workload {
        let identity = [
            workload.name.as_str(),
            &workload.namespace,
            workload.canonical_name(),
            workload.canonical_revision(),
            "Kubernetes",
        ];
        namespaces.insert("istio".to_owned(), structure([("workload", text(identity.join(";")))]));
    }
    pb::LbEndpoint {
        health_status: health.into(),
        metadata: metadata(namespaces),
        load_balancing_weight: Some(endpoint.weight),
        host_identifier: Some(pb::lb_endpoint::HostIdentifier::Endpoint(pb::Endpoint {
            address: Some(address(&endpoint.address, endpoint.port)),
            ..pb::Endpoint::default()
        })),
    }
}
