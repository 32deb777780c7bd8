//! From `ConfigDump` to JSON, with secrets redacted.

use std::io::{self, Read, Write};

use mesh_xds::json::{Redaction, any_to_value};
use mesh_xds::pb::envoy::admin::v3::ConfigDump;
use prost::Message;
use serde_json::{Value, json};
use thiserror::Error;

use crate::http::parse_query;

/// Why a dump could not be rendered.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum RenderError {
    /// The input is not a `ConfigDump`.
    #[error("the dump cannot be decoded: {0}")]
    Decode(#[from] prost::DecodeError),
    /// Reading or writing failed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The text could not be written.
    #[error(transparent)]
    Json(#[from] serde_json::Error),
}

/// The child's work: a binary dump on stdin, JSON on stdout.
///
/// # Errors
/// The input is no dump, or a pipe broke.
pub fn render_stdin(query: &str) -> Result<(), RenderError> {
    let mut bytes = Vec::new();
    io::stdin().lock().read_to_end(&mut bytes)?;
    let text = render_here(&bytes, query)?;
    let mut stdout = io::stdout().lock();
    stdout.write_all(&text)?;
    Ok(stdout.flush()?)
}

/// Renders in this process.
///
/// # Errors
/// The bytes are no dump.
pub fn render_here(dump: &[u8], query: &str) -> Result<Vec<u8>, RenderError> {
    let dump = ConfigDump::decode(dump)?;
    let configs: Vec<Value> = dump.configs.iter().map(|any| any_to_value(any, Redaction::On)).collect();
    let resource = parse_query(query).into_iter().find(|(key, _)| key == "resource").map(|(_, value)| value);
    let configs = match resource {
        None => configs,
        Some(field) => select(&configs, &field),
    };
    let mut text = serde_json::to_vec_pretty(&json!({ "configs": configs }))?;
    text.push(b'\n');
    Ok(text)
}

/// The elements of one repeated field, each with the type of the message it came from.
fn select(configs: &[Value], field: &str) -> Vec<Value> {
    let mut out = Vec::new();
    for config in configs {
        for element in config.get(field).and_then(Value::as_array).into_iter().flatten() {
            let mut element = element.clone();
            if let (Some(map), Some(outer)) =
                (element.as_object_mut(), config.get("@type").and_then(Value::as_str))
            {
                map.entry("@type").or_insert_with(|| format!("{outer}.{}", element_type(field)).into());
            }
            out.push(element);
        }
    }
    out
}

/// The nested message type behind a field name of Envoy's dumps.
fn element_type(field: &str) -> &'static str {
    match field {
        "dynamic_listeners" => "DynamicListener",
        "static_listeners" => "StaticListener",
        "dynamic_active_clusters" | "dynamic_warming_clusters" => "DynamicCluster",
        "static_clusters" => "StaticCluster",
        "dynamic_route_configs" => "DynamicRouteConfig",
        "static_route_configs" => "StaticRouteConfig",
        "dynamic_endpoint_configs" => "DynamicEndpointConfig",
        "static_endpoint_configs" => "StaticEndpointConfig",
        "dynamic_active_secrets" | "dynamic_warming_secrets" => "DynamicSecret",
        _ => "Element",
    }
}
