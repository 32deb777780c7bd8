//! Endpoints.

use mesh_xds::pb::envoy::config::{core::v3 as core, endpoint::v3 as pb};

use super::{At, Result, audit::fields, missing, shared_labels, socket_address, strings, text, unsupported};
use crate::config::{Endpoint, EndpointHealth, LoadAssignment, Locality, LocalityEndpoints};

type Labels = std::sync::Arc<std::collections::BTreeMap<String, String>>;

pub(super) fn load_assignment(message: &pb::ClusterLoadAssignment) -> Result<LoadAssignment> {
    fields!(message => pb::ClusterLoadAssignment {
        obeyed: [cluster_name, endpoints, policy],
        refused: [named_endpoints],
    });
    if let Some(policy) = &message.policy {
        fields!(policy => pb::cluster_load_assignment::Policy {
            obeyed: [overprovisioning_factor],
            refused: [drop_overloads, endpoint_stale_after, weighted_priority_health],
        });
    }
    if message.cluster_name.is_empty() {
        return Err(missing("cluster_name"));
    }
    let localities = message
        .endpoints
        .iter()
        .enumerate()
        .map(|(i, m)| locality(m).at(format!("endpoints[{i}]")))
        .collect::<Result<_>>()?;
    let factor = message.policy.as_ref().and_then(|p| p.overprovisioning_factor).unwrap_or(140);
    Ok(LoadAssignment {
        cluster_name: message.cluster_name.as_str().into(),
        localities,
        overprovisioning_factor: factor.max(1),
    })
}

fn locality(message: &pb::LocalityLbEndpoints) -> Result<LocalityEndpoints> {
    fields!(message => pb::LocalityLbEndpoints {
        obeyed: [locality, lb_endpoints, load_balancing_weight, priority],
        ignored: [proximity, metadata],
        refused: [lb_config],
    });
    let place = message.locality.as_ref().map_or_else(Locality::default, |l| Locality {
        region: l.region.as_str().into(),
        zone: l.zone.as_str().into(),
        sub_zone: l.sub_zone.as_str().into(),
    });
    let mut endpoints: Vec<Endpoint> = Vec::with_capacity(message.lb_endpoints.len());
    for (i, message) in message.lb_endpoints.iter().enumerate() {
        let known = endpoints.last().map(|last| &last.transport_match);
        endpoints.push(endpoint(message, known).at(format!("lb_endpoints[{i}]"))?);
    }
    Ok(LocalityEndpoints {
        locality: place,
        weight: message.load_balancing_weight.unwrap_or(1),
        priority: message.priority,
        endpoints,
    })
}

fn endpoint(message: &pb::LbEndpoint, known: Option<&Labels>) -> Result<Endpoint> {
    let Some(pb::lb_endpoint::HostIdentifier::Endpoint(inner)) = &message.host_identifier else {
        return Err(unsupported("endpoint_name", "an endpoint by name"));
    };
    fields!(inner => pb::Endpoint {
        obeyed: [address, hostname],
        // Nothing is checked actively, and the first address is the one that is used.
        ignored: [health_check_config, additional_addresses],
    });
    let health = match message.health_status() {
        core::HealthStatus::Unknown | core::HealthStatus::Healthy => EndpointHealth::Healthy,
        core::HealthStatus::Degraded => EndpointHealth::Degraded,
        core::HealthStatus::Draining => EndpointHealth::Draining,
        core::HealthStatus::Unhealthy | core::HealthStatus::Timeout => EndpointHealth::Unhealthy,
    };
    let metadata = |filter: &str| {
        let fields = message.metadata.as_ref()?.filter_metadata.get(filter)?;
        Some(strings(fields))
    };
    let labels = metadata("envoy.transport_socket_match").unwrap_or_default();
    Ok(Endpoint {
        address: socket_address(inner.address.as_ref()).at("endpoint")?,
        hostname: text(&inner.hostname),
        health,
        weight: message.load_balancing_weight.unwrap_or(1),
        // Mostly those of the endpoint before.
        transport_match: match known.filter(|known| ***known == labels) {
            Some(known) => Labels::clone(known),
            None => shared_labels(labels),
        },
        workload: metadata("istio").and_then(|m| m.get("workload").map(|w| w.as_str().into())),
    })
}

/// Names and ports of a DNS cluster's inline assignment.
pub(super) fn dns_hosts(message: &pb::ClusterLoadAssignment) -> Result<Vec<(std::sync::Arc<str>, u16)>> {
    let all = message.endpoints.iter().flat_map(|l| &l.lb_endpoints);
    all.map(|endpoint| {
        let Some(pb::lb_endpoint::HostIdentifier::Endpoint(inner)) = &endpoint.host_identifier else {
            return Err(unsupported("endpoint_name", "an endpoint by name"));
        };
        match inner.address.as_ref().and_then(|a| a.address.as_ref()) {
            Some(core::address::Address::SocketAddress(socket)) => {
                let port = match socket.port_specifier {
                    Some(core::socket_address::PortSpecifier::PortValue(v)) => super::port("port_value", v)?,
                    _ => return Err(missing("port_value")),
                };
                Ok((socket.address.as_str().into(), port))
            }
            _ => Err(missing("address")),
        }
    })
    .collect()
}
