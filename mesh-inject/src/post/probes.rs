//! Kubelet's probes go to the agent, which asks the application in their stead.
//!
//! A kubelet has no certificate of the mesh, so a probe that reached a sidecar which demands one would fail. The agent
//! answers on its own port and forwards to the original target, which it learns from one environment entry.

use serde_json::{Map, Value, json};

use crate::annotation as a;
use crate::json::object;
use crate::pod;
use crate::proxy_config::canonical;
use crate::validate::parse_bool;
use crate::warning::Warning;

/// The environment entry that holds the original probes.
pub(crate) const PROBERS: &str = "ISTIO_KUBE_APP_PROBERS";

/// (field of the container, path of the agent, is it a lifecycle hook)
const HANDLERS: [(&str, &str, &str); 5] = [
    ("readinessProbe", "app-health", "readyz"),
    ("livenessProbe", "app-health", "livez"),
    ("startupProbe", "app-health", "startupz"),
    ("preStop", "app-lifecycle", "prestopz"),
    ("postStart", "app-lifecycle", "poststartz"),
];

/// Is rewriting on: the pod's annotation, else the chart's value.
pub(crate) fn enabled(pod_in: &Value, default: bool) -> bool {
    pod::annotation(pod_in, a::REWRITE_PROBES).and_then(parse_bool).unwrap_or(default)
}

/// Publish the original probes in the sidecar's environment and point the probes at the agent.
///
/// `original` is the pod as it came (named ports and earlier injection are looked up there); `agent_port` is where the
/// agent listens, `mesh_port` the mesh's own setting of it.
pub(crate) fn rewrite(
    merged: &mut Value,
    original: &Value,
    default: bool,
    mesh_port: i64,
    warnings: &mut Vec<Warning>,
) {
    if pod::sidecar(merged).is_none() || !enabled(merged, default) {
        return;
    }
    let agent_port = match pod::annotation(merged, a::STATUS_PORT) {
        Some(text) => text.trim().parse().unwrap_or_default(),
        None => mesh_port,
    };
    // Nobody listens there, and Kubernetes accepts no probe of such a port.
    if !(1..=65535).contains(&agent_port) {
        let all = || ["initContainers", "containers"].into_iter().flat_map(|list| pod::list(merged, list));
        let own = |container: &&Value| pod::name_of(container) != a::PROXY_CONTAINER;
        let left: Vec<String> = all()
            .filter(own)
            .filter(|container| {
                HANDLERS.iter().any(|(field, ..)| handler(container, field).is_some_and(is_rewritten))
            })
            .map(|container| pod::name_of(container).to_owned())
            .collect();
        if !left.is_empty() {
            warnings.push(Warning::ProbesLeftAlone { containers: left, port: agent_port });
        }
        return;
    }
    let mut probers = Map::new();
    for list in ["initContainers", "containers"] {
        for container in pod::list(merged, list) {
            collect(container, mesh_port, &mut probers, warnings);
        }
    }
    publish(merged, probers, pod::annotation(original, a::STATUS).is_some());
    for list in ["initContainers", "containers"] {
        if pod::list(merged, list).is_empty() {
            continue;
        }
        for container in pod::list_mut(merged, list) {
            if pod::name_of(container) == a::PROXY_CONTAINER {
                continue;
            }
            let name = pod::name_of(container).to_owned();
            for (field, prefix, suffix) in HANDLERS {
                let path = format!("/{prefix}/{name}/{suffix}");
                // A probe that nobody can answer for is better left to fail by its own name, and one that asks the agent
                // something of its own is better left to do so.
                let answered = handler(container, field).is_some_and(|handler| {
                    let hook = prefix == "app-lifecycle";
                    matches!(prober(container, handler, hook, mesh_port), Found::Prober(_))
                        || handler.pointer("/httpGet/path") == Some(&json!(path))
                });
                if answered && let Some(handler) = handler_mut(container, field) {
                    point_at_agent(handler, &path, agent_port);
                }
            }
        }
    }
}

/// Whether this is a probe or hook that the agent would answer for.
fn is_rewritten(handler: &Value) -> bool {
    ["httpGet", "tcpSocket", "grpc"].iter().any(|kind| handler.get(kind).is_some_and(Value::is_object))
}

fn collect(container: &Value, mesh_port: i64, probers: &mut Map<String, Value>, warnings: &mut Vec<Warning>) {
    let name = pod::name_of(container);
    if name == a::PROXY_CONTAINER {
        return;
    }
    for (field, prefix, suffix) in HANDLERS {
        let Some(handler) = handler(container, field) else { continue };
        let hook = prefix == "app-lifecycle";
        match prober(container, handler, hook, mesh_port) {
            Found::Prober(mut prober) => {
                let timeout = handler.get("timeoutSeconds").and_then(Value::as_i64).unwrap_or_default();
                if !hook && timeout != 0 {
                    prober["timeoutSeconds"] = json!(timeout);
                }
                probers.insert(format!("/{prefix}/{name}/{suffix}"), prober);
            }
            Found::UnknownPort(port) => warnings.push(Warning::UnknownProbePort {
                container: name.to_owned(),
                probe: field.to_owned(),
                port,
            }),
            Found::Nothing => {}
        }
    }
}

enum Found {
    Prober(Value),
    UnknownPort(String),
    Nothing,
}

fn prober(container: &Value, handler: &Value, hook: bool, mesh_port: i64) -> Found {
    for kind in ["httpGet", "tcpSocket"] {
        let Some(action) = handler.get(kind).filter(|action| action.is_object()) else { continue };
        let port = action.get("port").unwrap_or(&Value::Null);
        let number = match port {
            Value::String(name) => match resolve(container, name) {
                Some(number) => number,
                None => return Found::UnknownPort(name.clone()),
            },
            number => number.as_i64().unwrap_or_default(),
        };
        if number == mesh_port {
            return Found::Nothing;
        }
        let mut action: Value = action.clone();
        action["port"] = json!(number);
        return Found::Prober(object([(kind, action)]));
    }
    match handler.get("grpc").filter(|action| action.is_object()) {
        Some(action) if !hook => {
            let port = action.get("port").and_then(Value::as_i64).unwrap_or_default();
            if port == mesh_port {
                return Found::Nothing;
            }
            let service = action.get("service").cloned().unwrap_or(Value::Null);
            Found::Prober(json!({"grpc": {"port": port, "service": service}}))
        }
        _ => Found::Nothing,
    }
}

fn resolve(container: &Value, name: &str) -> Option<i64> {
    let ports = container.get("ports")?.as_array()?;
    if let Some(port) = pod::find(ports, name) {
        return port.get("containerPort")?.as_i64();
    }
    name.parse().ok()
}

fn publish(merged: &mut Value, mut probers: Map<String, Value>, injected_before: bool) {
    if probers.is_empty() {
        return;
    }
    let Some(proxy) = pod::sidecar_mut(merged) else { return };
    let env = pod::env_mut(proxy);
    if let Some(entry) = env.iter_mut().find(|entry| pod::name_of(entry) == PROBERS)
        && injected_before
    {
        let known =
            entry.get("value").and_then(Value::as_str).and_then(|text| serde_json::from_str(text).ok());
        if let Some(Value::Object(known)) = known {
            probers.extend(known);
        }
        pod::as_map(entry).insert("value".to_owned(), Value::String(canonical(&Value::Object(probers))));
        return;
    }
    env.retain(|entry| pod::name_of(entry) != PROBERS);
    let value = Value::String(canonical(&Value::Object(probers)));
    env.push(object([("name", Value::from(PROBERS)), ("value", value)]));
}

fn point_at_agent(handler: &mut Map<String, Value>, path: &str, port: i64) {
    if let Some(get) = handler.get_mut("httpGet").and_then(Value::as_object_mut) {
        get.insert("path".to_owned(), json!(path));
        get.insert("port".to_owned(), json!(port));
        if get.get("scheme").and_then(Value::as_str) == Some("HTTPS") {
            get.insert("scheme".to_owned(), json!("HTTP"));
        }
    } else if handler.remove("tcpSocket").is_some() || handler.remove("grpc").is_some() {
        handler.insert("httpGet".to_owned(), json!({"path": path, "port": port}));
    }
}

fn handler<'a>(container: &'a Value, field: &str) -> Option<&'a Value> {
    let parent =
        if matches!(field, "preStop" | "postStart") { container.get("lifecycle")? } else { container };
    parent.get(field).filter(|handler| handler.is_object())
}

fn handler_mut<'a>(container: &'a mut Value, field: &str) -> Option<&'a mut Map<String, Value>> {
    let hook = matches!(field, "preStop" | "postStart");
    let parent = if hook { container.get_mut("lifecycle")? } else { container };
    let handler = parent.get_mut(field)?.as_object_mut()?;
    // An agent cannot speak gRPC's health protocol for a hook: such a hook stays as it is.
    (!hook || !handler.contains_key("grpc")).then_some(handler)
}

/// Put the published probes back into their containers; names those whose ports were names once (they cannot be told
/// from numbers any more, so every container with a named port is listed).
pub(crate) fn restore(pod_out: &mut Value, probers: &Map<String, Value>) -> Vec<String> {
    let mut numbered = Vec::new();
    for list in ["initContainers", "containers"] {
        if pod::list(pod_out, list).is_empty() {
            continue;
        }
        for container in pod::list_mut(pod_out, list) {
            let name = pod::name_of(container).to_owned();
            for (field, prefix, suffix) in HANDLERS {
                let path = format!("/{prefix}/{name}/{suffix}");
                let Some(original) = probers.get(&path).and_then(Value::as_object) else { continue };
                let Some(handler) = handler_mut(container, field) else { continue };
                if handler.get("httpGet").and_then(|get| get.get("path")).and_then(Value::as_str)
                    != Some(&path)
                {
                    continue;
                }
                handler.remove("httpGet");
                for kind in ["httpGet", "tcpSocket", "grpc"] {
                    if let Some(action) = original.get(kind) {
                        let action = crate::values::without_nulls(action).unwrap_or_else(|| json!({}));
                        handler.insert(kind.to_owned(), action);
                    }
                }
                let ports = container.get("ports").and_then(Value::as_array);
                let named = ports.into_iter().flatten().any(|port| !pod::name_of(port).is_empty());
                if named && !numbered.contains(&name) {
                    numbered.push(name.clone());
                }
            }
        }
    }
    numbered
}
