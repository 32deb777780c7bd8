//! `/clusters` and `/listeners`.

use std::fmt::Write;
use std::net::SocketAddr;

use http::StatusCode;
use mesh_proxy_core::config::EndpointHealth;
use mesh_proxy_core::proxy::{ClusterSnapshot, EndpointSnapshot};
use serde_json::{Value, json};

use crate::agent::SharedAgent;
use crate::http::{Call, Reply, json, text};

fn wants_json(call: &Call) -> bool {
    call.param("format").is_some_and(|format| format == "json")
}

/// Envoy's `/clusters`.
pub(super) fn clusters(agent: &SharedAgent, call: &Call) -> Reply {
    let clusters = agent.handle.clusters();
    if wants_json(call) {
        let statuses: Vec<Value> = clusters.iter().map(status).collect();
        return json(format!("{:#}\n", json!({ "cluster_statuses": statuses })));
    }
    let mut out = String::new();
    for cluster in &clusters {
        let name = &cluster.config.name;
        let _infallible = writeln!(
            out,
            "{name}::observability_name::{name}\n{name}::added_via_api::{}",
            agent.pod.is_some()
        );
        for endpoint in &cluster.endpoints {
            for (key, value) in counters(endpoint) {
                let _infallible = writeln!(out, "{name}::{}::{key}::{value}", endpoint.address);
            }
            let _infallible = writeln!(
                out,
                "{name}::{address}::hostname::{host}\n{name}::{address}::health_flags::{flags}\n\
                 {name}::{address}::weight::{weight}\n{name}::{address}::priority::{priority}",
                address = endpoint.address,
                host = endpoint.hostname,
                flags = flags(endpoint),
                weight = endpoint.weight,
                priority = endpoint.priority,
            );
        }
    }
    text(StatusCode::OK, out)
}

fn counters(endpoint: &EndpointSnapshot) -> [(&'static str, u64); 6] {
    [
        ("cx_active", endpoint.cx_active),
        ("cx_connect_fail", endpoint.cx_connect_fail),
        ("cx_total", endpoint.cx_total),
        ("rq_active", endpoint.rq_active),
        ("rq_error", endpoint.rq_error),
        ("rq_total", endpoint.rq_total),
    ]
}

fn flags(endpoint: &EndpointSnapshot) -> String {
    let mut flags = String::new();
    if endpoint.ejected {
        flags.push_str("/failed_outlier_check");
    }
    if eds_health(endpoint) == "UNHEALTHY" {
        flags.push_str("/failed_eds_health");
    }
    if flags.is_empty() { "healthy".into() } else { flags }
}

fn eds_health(endpoint: &EndpointSnapshot) -> &'static str {
    match endpoint.health {
        EndpointHealth::Healthy => "HEALTHY",
        EndpointHealth::Draining => "DRAINING",
        _ => "UNHEALTHY",
    }
}

fn socket(address: SocketAddr) -> Value {
    json!({ "socket_address": { "address": address.ip().to_string(), "port_value": address.port() } })
}

fn status(cluster: &ClusterSnapshot) -> Value {
    let hosts: Vec<Value> = cluster
        .endpoints
        .iter()
        .map(|endpoint| {
            let stats: Vec<Value> = counters(endpoint)
                .into_iter()
                .map(|(name, value)| {
                    let kind = if name.ends_with("_active") { "GAUGE" } else { "COUNTER" };
                    json!({ "name": name, "value": value.to_string(), "type": kind })
                })
                .collect();
            let mut health = json!({ "eds_health_status": eds_health(endpoint) });
            if endpoint.ejected {
                health["failed_outlier_check"] = true.into();
            }
            json!({
                "address": socket(endpoint.address),
                "stats": stats,
                "health_status": health,
                "weight": endpoint.weight,
                "hostname": &*endpoint.hostname,
                "priority": endpoint.priority,
                "locality": {
                    "region": &*endpoint.locality.region,
                    "zone": &*endpoint.locality.zone,
                    "sub_zone": &*endpoint.locality.sub_zone,
                },
            })
        })
        .collect();
    let name = &*cluster.config.name;
    json!({ "name": name, "observability_name": name, "added_via_api": true, "host_statuses": hosts })
}

/// Envoy's `/listeners`.
pub(super) fn listeners(agent: &SharedAgent, call: &Call) -> Reply {
    let listeners = agent.handle.listeners();
    let addresses = |name: &str, configured: &[SocketAddr]| {
        let bound = agent.handle.bound_addresses(name);
        if bound.is_empty() { configured.to_vec() } else { bound }
    };
    if wants_json(call) {
        let statuses: Vec<Value> = listeners
            .iter()
            .map(|listener| {
                let addresses = addresses(&listener.name, &listener.addresses);
                let more: Vec<Value> = addresses.iter().skip(1).map(|a| socket(*a)).collect();
                json!({
                    "name": &*listener.name,
                    "local_address": addresses.first().map(|a| socket(*a)),
                    "additional_local_addresses": more,
                })
            })
            .collect();
        return json(format!("{:#}\n", json!({ "listener_statuses": statuses })));
    }
    let mut out = String::new();
    for listener in &listeners {
        for address in addresses(&listener.name, &listener.addresses) {
            let _infallible = writeln!(out, "{}::{address}", listener.name);
        }
    }
    text(StatusCode::OK, out)
}
