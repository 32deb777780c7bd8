//! One scrape endpoint for application and proxy.

use std::fmt::Write as _;

use serde_json::{Value, json};

use crate::annotation as a;
use crate::error::InjectError;
use crate::pod;
use crate::validate::parse_bool;
use crate::warning::Warning;

/// Ports that the proxy itself listens on.
const OWN_PORTS: [u16; 9] = [15000, 15001, 15004, 15006, 15008, 15020, 15021, 15053, 15090];

/// Point Prometheus at the agent and tell the agent where the application's metrics are.
pub(crate) fn merge(
    merged: &mut Value,
    mesh: &Value,
    status_port: i64,
    warnings: &mut Vec<Warning>,
) -> Result<(), InjectError> {
    if find(merged, "prometheus_io_scrape").is_some_and(|(_, value)| parse_bool(value) == Some(false)) {
        return Ok(());
    }
    if !enabled(merged, mesh) {
        return Ok(());
    }
    let own = status_port.to_string();
    let value =
        |merged: &Value, key: &str| find(merged, key).map(|(_, value)| value.to_owned()).unwrap_or_default();
    if value(merged, "prometheus_io_port") == own {
        return Ok(());
    }
    let scrape = value(merged, "prometheus_io_scrape");
    let mut path = value(merged, "prometheus_io_path");
    let mut port = value(merged, "prometheus_io_port");
    let targets = targets(merged, warnings);
    match targets.first() {
        Some(first) => {
            (port, path) = first.clone();
            for (port, _) in &targets {
                check_port(a::SCRAPE_TARGETS, port, status_port)?;
            }
        }
        None if !port.is_empty() => {
            let key = find(merged, "prometheus_io_port").map(|(key, _)| key.to_owned()).unwrap_or_default();
            check_port(&key, &port, status_port)?;
        }
        None => {}
    }
    let configured = !(scrape.is_empty() && path.is_empty() && port.is_empty() && targets.is_empty());
    if configured && let Some(proxy) = pod::sidecar_mut(merged) {
        let mut text = format!(
            "{{\"scrape\":{},\"path\":{},\"port\":{}",
            Value::from(scrape),
            Value::from(path),
            Value::from(port)
        );
        if !targets.is_empty() {
            text.push_str(",\"targets\":[");
            for (i, (port, path)) in targets.iter().enumerate() {
                let comma = if i > 0 { "," } else { "" };
                let (port, path) = (Value::from(port.as_str()), Value::from(path.as_str()));
                let _ = write!(text, "{comma}{{\"port\":{port},\"path\":{path}}}");
            }
            text.push(']');
        }
        text.push('}');
        let env = pod::env_mut(proxy);
        env.retain(|entry| pod::name_of(entry) != "ISTIO_PROMETHEUS_ANNOTATIONS");
        env.push(json!({"name": "ISTIO_PROMETHEUS_ANNOTATIONS", "value": text}));
    }
    let annotations = pod::meta_mut(merged, "annotations");
    let ours = [
        "prometheus_io_path",
        "prometheus_io_port",
        "prometheus_io_scrape",
        "prometheus_istio_io_scrape_targets",
    ];
    annotations.retain(|key, _| !ours.iter().any(|own| reads(key, own)));
    for (key, value) in [
        ("prometheus.io/port", own.as_str()),
        ("prometheus.io/path", "/stats/prometheus"),
        ("prometheus.io/scrape", "true"),
    ] {
        annotations.insert(key.to_owned(), json!(value));
    }
    Ok(())
}

/// Is merging on: the pod's annotation, else the mesh's setting, else yes.
pub(crate) fn enabled(pod_in: &Value, mesh: &Value) -> bool {
    let own = pod::annotation(pod_in, a::MERGE_METRICS).and_then(parse_bool);
    own.or_else(|| mesh.get("enablePrometheusMerge").and_then(Value::as_bool)).unwrap_or(true)
}

/// Tell Prometheus about the port of merged metrics over TLS.
pub(crate) fn secure_port(merged: &mut Value) {
    if find(merged, "prometheus_istio_io_secure_port").is_some() {
        return;
    }
    let port =
        pod::sidecar(merged).and_then(|proxy| pod::env_value(proxy, "ENVOY_SECURE_MERGED_METRICS_PORT"));
    if let Some(port) = port.filter(|port| !matches!(*port, "" | "0")).map(str::to_owned) {
        pod::meta_mut(merged, "annotations").insert(a::SECURE_METRICS_PORT.to_owned(), Value::String(port));
    }
}

fn targets(pod_in: &Value, warnings: &mut Vec<Warning>) -> Vec<(String, String)> {
    let Some((key, list)) = find(pod_in, "prometheus_istio_io_scrape_targets") else { return Vec::new() };
    let mut targets = Vec::new();
    for item in list.split(',').map(str::trim).filter(|item| !item.is_empty()) {
        let (port, path) = item.split_once(':').unwrap_or((item, ""));
        let (port, path) = (port.trim(), path.trim());
        if port.is_empty() {
            warnings.push(Warning::IgnoredAnnotation {
                annotation: key.to_owned(),
                value: list.to_owned(),
                message: format!("target {item:?} has no port; the whole list is ignored"),
            });
            return Vec::new();
        }
        targets
            .push((port.to_owned(), if path.is_empty() { "/metrics".to_owned() } else { path.to_owned() }));
    }
    targets
}

fn check_port(annotation: &str, text: &str, status_port: i64) -> Result<(), InjectError> {
    let wrong = |message: String| InjectError::Prometheus {
        annotation: annotation.to_owned(),
        value: text.to_owned(),
        message,
    };
    let port: u16 = text
        .parse()
        .ok()
        .filter(|port| *port > 0)
        .ok_or_else(|| wrong("not a port from 1 to 65535".to_owned()))?;
    if i64::from(port) == status_port || OWN_PORTS.contains(&port) {
        return Err(wrong(format!("port {port} belongs to the proxy")));
    }
    Ok(())
}

/// An annotation whose key reads so when everything but letters and digits becomes `_`.
fn find<'a>(pod_in: &'a Value, normalised: &str) -> Option<(&'a str, &'a str)> {
    let annotations = pod_in.get("metadata")?.get("annotations")?.as_object()?;
    let found = annotations.iter().find(|(key, _)| reads(key, normalised))?;
    Some((found.0, found.1.as_str()?))
}

/// Does the key read so when everything but letters and digits becomes `_`?
fn reads(key: &str, normalised: &str) -> bool {
    key.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).eq(normalised.chars())
}
