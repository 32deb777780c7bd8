//! The debugging pages.

use http::StatusCode;
use mesh_xds::TypeUrl;
use mesh_xds::json::{Redaction, to_value};
use serde_json::{Map, Value, json};

use super::Shared;
use super::http::{Answer, json, text};
use crate::translate::{Proxy, Resources, translate};

/// Pages and what they show.
const PAGES: [(&str, &str); 6] = [
    ("syncz", "connected proxies and how far each is with every type"),
    ("status", "resources that are not applied and policies that fail closed"),
    ("configz", "resources in force"),
    ("registryz", "services and their endpoints"),
    ("config_dump?proxyID=", "what one proxy is told"),
    ("connections", "connected clients"),
];

pub(super) fn page(shared: &Shared, name: &str, query: &str) -> Answer {
    match name {
        "" => {
            let lines: Vec<_> = PAGES.iter().map(|(page, what)| format!("/debug/{page}: {what}\n")).collect();
            text(StatusCode::OK, lines.concat())
        }
        "syncz" => json(&syncz(shared)),
        "connections" | "adsz" => json(&connections(shared)),
        "status" => json(&status(shared)),
        "configz" => json(&configz(shared)),
        "registryz" => json(&registryz(shared)),
        "config_dump" => config_dump(shared, query),
        _ => text(StatusCode::NOT_FOUND, "no such page; /debug lists them\n"),
    }
}

/// In the form that `istioctl proxy-status` reads.
fn syncz(shared: &Shared) -> Value {
    let types = [
        ("cluster", TypeUrl::CLUSTER),
        ("listener", TypeUrl::LISTENER),
        ("route", TypeUrl::ROUTE),
        ("endpoint", TypeUrl::ENDPOINTS),
    ];
    let clients = shared.ads.clients().into_iter().map(|client| {
        let mut entry = Map::new();
        let id = &client.client.node.id;
        let proxy = id.split('~').nth(2).unwrap_or(id);
        entry.insert("proxy".to_owned(), json!(proxy));
        entry.insert("proxy_id".to_owned(), json!(id));
        entry.insert("proxy_type".to_owned(), json!("sidecar"));
        entry.insert("cluster_id".to_owned(), json!("Kubernetes"));
        entry.insert("istio_version".to_owned(), json!(env!("CARGO_PKG_VERSION")));
        entry.insert("identity".to_owned(), json!(client.client.identity));
        for (name, type_url) in &types {
            let Some(status) = client.types.get(type_url) else { continue };
            // Istio's tools compare the two, so that who came back with everything has to have been told something.
            let silent = status.nonce_sent.is_empty();
            let sent = if silent {
                [&status.version_acked; 3]
            } else {
                [&status.nonce_sent, &status.nonce_acked, &status.version_sent]
            };
            for (what, value) in ["sent", "acked", "version"].into_iter().zip(sent) {
                entry.insert(format!("{name}_{what}"), json!(value));
            }
            entry.insert(format!("{name}_status"), json!(status.state().as_str()));
            if let Some(error) = &status.error {
                entry.insert(format!("{name}_error"), json!(error.message));
            }
        }
        Value::Object(entry)
    });
    Value::Array(clients.collect())
}

fn connections(shared: &Shared) -> Value {
    let clients: Vec<_> = shared
        .ads
        .clients()
        .into_iter()
        .map(|client| {
            json!({
                "connection": client.client.id,
                "node": client.client.node.id,
                "identity": client.client.identity,
                "delta": client.client.delta,
                "connected_seconds": client.client.connected_for().as_secs(),
            })
        })
        .collect();
    json!({ "total": clients.len(), "clients": clients })
}

fn status(shared: &Shared) -> Value {
    let state = shared.state.borrow();
    json!({
        "generation": state.generation,
        "resources": state.objects.len(),
        "rejected": state.rejected,
        "fail_closed": state.fail_closed,
        "ignored": state.ignored,
        "clients": shared.ads.client_count(),
    })
}

fn configz(shared: &Shared) -> Value {
    let state = shared.state.borrow();
    let objects = state.objects.values().map(|object| {
        json!({
            "kind": object.key.kind,
            "namespace": object.key.namespace,
            "name": object.key.name,
            "file": object.origin.file,
            "line": object.origin.line,
            "hash": object.hash,
        })
    });
    Value::Array(objects.collect())
}

fn registryz(shared: &Shared) -> Value {
    let mesh = shared.mesh.current();
    let services = mesh.services.iter().map(|service| {
        let endpoints: Map<String, Value> = service
            .endpoints
            .iter()
            .map(|(port, endpoints)| {
                let all: Vec<_> = endpoints
                    .iter()
                    .map(|e| {
                        json!({
                            "address": e.address,
                            "port": e.port,
                            "healthy": e.healthy,
                            "mtls": e.mtls,
                            "workload": e.workload.as_ref().map(|w| format!("{}/{}", w.namespace, w.name)),
                        })
                    })
                    .collect();
                (port.to_string(), json!(all))
            })
            .collect();
        json!({
            "host": service.host,
            "namespace": service.namespace,
            "addresses": service.vips,
            "identities": service.identities,
            "endpoints": endpoints,
        })
    });
    Value::Array(services.collect())
}

/// `proxyID` is a connected node's id, or `<pod>.<namespace>` of any pod.
fn config_dump(shared: &Shared, query: &str) -> Answer {
    let wanted = query.split('&').find_map(|pair| pair.strip_prefix("proxyID="));
    let Some(wanted) = wanted.filter(|wanted| !wanted.is_empty()) else {
        return text(StatusCode::BAD_REQUEST, "proxyID=<node id> or <pod>.<namespace> is required\n");
    };
    let wanted = wanted.replace("%7E", "~").replace("%7e", "~");
    let mesh = shared.mesh.current();
    let by_name = || {
        let (name, namespace) = wanted.rsplit_once('.')?;
        let workload = mesh.workload(namespace, name)?;
        Some(Proxy {
            namespace: workload.namespace.clone(),
            name: workload.name.clone(),
            labels: workload.labels.clone(),
            ips: workload.ips.clone(),
        })
    };
    let Some(proxy) = shared.mesh.proxy(&wanted).or_else(by_name) else {
        return text(StatusCode::NOT_FOUND, format!("no proxy {wanted:?}\n"));
    };
    let Resources { listeners, routes, clusters, endpoints } = translate(&mesh, &proxy);
    fn all<T: prost::Message + prost::Name>(messages: &[T]) -> Vec<Value> {
        let show = |message: &T| {
            to_value(message, Redaction::default()).unwrap_or_else(|error| json!(error.to_string()))
        };
        messages.iter().map(show).collect()
    }
    json(&json!({
        "listeners": all(&listeners),
        "routes": all(&routes),
        "clusters": all(&clusters),
        "endpoints": all(&endpoints),
    }))
}
