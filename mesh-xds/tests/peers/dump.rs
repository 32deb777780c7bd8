//! Everything that a richly configured Envoy says about itself, through our types and back.

use std::path::PathBuf;
use std::process::Command;

use libtest_mimic::Failed;
use mesh_xds::json::{Redaction, any_to_value, from_json, from_json_lossy, from_value, from_yaml, to_value};
use mesh_xds::pb::envoy::admin::v3::{self as admin, ConfigDump};
use mesh_xds::pb::envoy::config::bootstrap::v3::Bootstrap;
use mesh_xds::pb::envoy::config::cluster::v3::Cluster;
use mesh_xds::pb::envoy::config::core::v3::TypedExtensionConfig;
use mesh_xds::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use mesh_xds::pb::envoy::config::listener::v3::Listener;
use mesh_xds::pb::envoy::config::route::v3::{RouteConfiguration, ScopedRouteConfiguration};
use mesh_xds::pb::envoy::extensions::transport_sockets::tls::v3::Secret;
use mesh_xds::pb::envoy::service::runtime::v3::Runtime;
use mesh_xds::resource::decode;
use mesh_xds::server::{Snapshot, SnapshotCache};
use prost::{Message, Name};
use serde_json::Value;

use crate::support::{Process, Server, free_port, get, until};

/// Listeners, routes, clusters, secrets, runtime, overload and statistics, with as many fields set as Envoy accepts.
const BOOTSTRAP: &str = include_str!("rich.yaml");

/// A health check with a name, which Envoy has had since 1.40.
const NEWER_BOOTSTRAP: &str = "
admin: { address: { socket_address: { address: 127.0.0.1, port_value: ADMIN_PORT } } }
static_resources:
  clusters:
  - name: checked
    type: STATIC
    connect_timeout: 1s
    health_checks:
    - { name: probe, timeout: 1s, interval: 60s, unhealthy_threshold: 2, healthy_threshold: 1, tcp_health_check: {} }
";

const LISTENER: &str = r#"
name: discovered
address: { socket_address: { address: 127.0.0.1, port_value: 0 } }
filter_chains:
- transport_socket:
    name: tls
    typed_config:
      "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext
      common_tls_context:
        tls_certificate_sds_secret_configs: [{ name: discovered, sds_config: { ads: {}, resource_api_version: V3, initial_fetch_timeout: 0s } }]
  filters:
  - name: http
    typed_config:
      "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
      stat_prefix: discovered
      SPECIFIER
      http_filters: [{ name: router, typed_config: { "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router } }]
"#;
const BY_NAME: &str = "rds: { route_config_name: web, config_source: { ads: {}, resource_api_version: V3, initial_fetch_timeout: 0s } }";
const BY_SCOPE: &str = "scoped_routes: { name: scopes, scope_key_builder: { fragments: [{ header_value_extractor: { name: x-scope, \
     element: { separator: ';', key: k } } }] }, rds_config_source: { ads: {}, resource_api_version: V3 }, scoped_rds: { \
     scoped_rds_config_source: { ads: {}, resource_api_version: V3, initial_fetch_timeout: 0s } } }";

/// What Envoy learns from us: one resource of each type that it can subscribe to.
fn snapshot(certificate: &str, key: &str) -> Result<Snapshot, Failed> {
    let scoped = LISTENER.replace("name: discovered\n", "name: scoped\n").replace("SPECIFIER", BY_SCOPE);
    let secret = serde_json::json!({ "name": "discovered", "tls_certificate": {
        "certificate_chain": { "inline_string": certificate }, "private_key": { "inline_string": key } } });
    let endpoints = "{ cluster_name: other-name, endpoints: [{ locality: { region: r }, load_balancing_weight: 3, lb_endpoints: [{ \
                     endpoint: { address: { socket_address: { address: 127.0.0.1, port_value: 1 } } }, metadata: { filter_metadata: { \
                     istio: { workload: a } } } }] }] }";
    let extension = "{ name: discovered, typed_config: { \"@type\": \
                     type.googleapis.com/envoy.extensions.filters.http.buffer.v3.Buffer, max_request_bytes: 7 } }";
    let routes = "{ name: web, virtual_hosts: [{ name: all, domains: ['*'], routes: [{ match: { prefix: / }, route: { cluster: eds, \
                  timeout: 0.000000001s } }] }] }";
    Ok(Snapshot::builder()
        .add(&from_yaml::<Listener>(&LISTENER.replace("SPECIFIER", BY_NAME))?)?
        .add(&from_yaml::<Listener>(&scoped)?)?
        .add(&from_yaml::<RouteConfiguration>(routes)?)?
        .add(&from_yaml::<ScopedRouteConfiguration>(
            "{ name: scope, route_configuration_name: web, key: { fragments: [{ string_key: s }] } }",
        )?)?
        .add(&from_yaml::<Cluster>("{ name: discovered, type: STATIC, connect_timeout: 2.5s }")?)?
        .add(&from_yaml::<ClusterLoadAssignment>(endpoints)?)?
        .add(&from_value::<Secret>(&secret)?)?
        .add(&from_yaml::<TypedExtensionConfig>(extension)?)?
        .add(&from_yaml::<Runtime>(
            "{ name: flags, layer: { some.flag: true, rate: 0.5, nested: { deep: text } } }",
        )?)?
        .build())
}

/// A certificate and its key.
fn certificate() -> Result<(String, String), Failed> {
    let folder = tempfile::tempdir()?;
    let (key, chain) = (folder.path().join("key.pem"), folder.path().join("cert.pem"));
    let made = Command::new("openssl")
        .args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-days",
            "2",
        ])
        .args(["-subj", "/CN=peer", "-addext", "subjectAltName=URI:spiffe://mesh.example/ns/a/sa/b"])
        .arg("-keyout")
        .arg(&key)
        .arg("-out")
        .arg(&chain)
        .output()?;
    if !made.status.success() {
        return Err(format!("openssl: {}", String::from_utf8_lossy(&made.stderr)).into());
    }
    Ok((std::fs::read_to_string(chain)?, std::fs::read_to_string(key)?))
}

/// Each page of the admin interface that is a message reads into our types, prints as it was, and survives as bytes.
pub(crate) async fn everything(path: PathBuf) -> Result<(), Failed> {
    let (chain, key) = certificate()?;
    let cache = SnapshotCache::new();
    cache.set("all", snapshot(&chain, &key)?);
    let server = Server::start(cache, 0).await?;
    let port = free_port().await?;
    let config =
        BOOTSTRAP.replace("ADMIN_PORT", &port.to_string()).replace("XDS_PORT", &server.port.to_string());
    let bootstrap = from_yaml::<Bootstrap>(&config)?;
    let files = [("envoy.yaml", config.as_str()), ("cert.pem", &chain), ("key.pem", &key)];
    let args = ["-c", "envoy.yaml", "--concurrency", "1", "--disable-hot-restart", "--log-level", "warning"];
    let envoy = Process::start(&path, &args, &files)?;
    let page = |page: &'static str| async move { get(port, page).await };

    // One mark for each resource that came from us.
    let marks =
        ["2.500s", "other-name", "route_configuration_name", "\"max_request_bytes\": 7", "0.000000001s"];
    let complete = || async {
        let Ok((200, text)) = page("/config_dump?include_eds").await else { return false };
        marks.iter().all(|mark| text.contains(mark)) && text.contains("dynamic_active_secrets")
    };
    let learned = until("Envoy has learned everything", complete).await;
    learned.map_err(|e| format!("{}\n{}", e.message().unwrap_or(""), envoy.output()))?;

    let (_, text) = page("/config_dump?include_eds").await?;
    let dump = survives::<ConfigDump>("config_dump", &text)?;
    let mut seen: Vec<&str> = Vec::new();
    for section in &dump.configs {
        seen.push(section.type_url.rsplit('.').next().unwrap_or_default());
        typed(section)?;
    }
    seen.sort_unstable();
    let expected = [
        "BootstrapConfigDump",
        "ClustersConfigDump",
        "EcdsConfigDump",
        "EndpointsConfigDump",
        "ListenersConfigDump",
        "RoutesConfigDump",
        "ScopedRoutesConfigDump",
        "SecretsConfigDump",
    ];
    if seen != expected {
        return Err(format!("the sections are {seen:?}").into());
    }
    // The bootstrap that Envoy read is the one that we read, but for what Envoy adds about itself.
    let section =
        dump.configs.iter().find(|c| c.type_url.ends_with("BootstrapConfigDump")).ok_or("no bootstrap")?;
    let theirs =
        admin::BootstrapConfigDump::decode(section.value.as_slice())?.bootstrap.ok_or("no bootstrap")?;
    let (theirs, ours) = (to_value(&theirs, Redaction::Off)?, to_value(&bootstrap, Redaction::Off)?);
    for part in [
        "static_resources",
        "dynamic_resources",
        "layered_runtime",
        "overload_manager",
        "stats_config",
        "admin",
    ] {
        let (theirs, ours) = (&theirs[part], &ours[part]);
        // A static secret is shown without its secrets.
        if let Some(path) = difference(part, theirs, ours).filter(|path| !path.contains("secrets")) {
            return Err(format!("what we read differs at {path}").into());
        }
    }
    let pages = [
        survives_with_defaults::<admin::Clusters>("clusters", &page("/clusters?format=json").await?.1)?
            .encoded_len(),
        survives_with_defaults::<admin::Listeners>("listeners", &page("/listeners?format=json").await?.1)?
            .encoded_len(),
        survives_with_defaults::<admin::Certificates>("certs", &page("/certs").await?.1)?.encoded_len(),
        newer(&page("/server_info").await?.1)?.encoded_len(),
        survives_with_defaults::<admin::Memory>("memory", &page("/memory").await?.1)?.encoded_len(),
    ];
    println!(
        "{} bytes of config_dump, {} sections; other pages {pages:?} bytes encoded",
        text.len(),
        seen.len()
    );
    Ok(())
}

/// Reads a page, prints it, and sends it through bytes: nothing may change.
fn survives<T: Message + Name + Default + PartialEq>(what: &str, text: &str) -> Result<T, Failed> {
    let message: T = from_json(text).map_err(|e| format!("{what}: {e}"))?;
    let theirs: Value = serde_json::from_str(text)?;
    if let Some(path) = difference(what, &theirs, &to_value(&message, Redaction::Off)?) {
        return Err(format!("our print differs at {path}").into());
    }
    if T::decode(message.encode_to_vec().as_slice())? != message {
        return Err(format!("{what} changes when it is encoded").into());
    }
    Ok(message)
}

/// The same for a page that also says what has its default: without that it has to be the same message.
fn survives_with_defaults<T: Message + Name + Default + PartialEq>(
    what: &str,
    text: &str,
) -> Result<T, Failed> {
    let mut page: Value = serde_json::from_str(text)?;
    let message: T = from_value(&page).map_err(|e| format!("{what}: {e}"))?;
    strip(&mut page, &to_value(&message, Redaction::Off)?);
    if survives::<T>(what, &page.to_string())? != message {
        return Err(format!("{what}: something that we do not print is no default").into());
    }
    Ok(message)
}

/// Fields of `ServerInfo` that this Envoy has and the table of definitions does not.
const NEWER: [&str; 3] = [
    "command_line_options.file_flush_min_size",
    "command_line_options.log_stacktrace_single_entry",
    "hot_restart_initializing",
];

/// A page of an Envoy that is newer than the table: what is unknown is named with its line, all else is read.
fn newer(text: &str) -> Result<admin::ServerInfo, Failed> {
    let error = from_json::<admin::ServerInfo>(text).err().ok_or("what is unknown was not refused")?;
    let read = from_json_lossy::<admin::ServerInfo>(text)?;
    let mut paths: Vec<&str> = read.skipped.listed.iter().map(|skipped| skipped.path.as_str()).collect();
    paths.sort_unstable();
    if paths != NEWER || !NEWER.iter().any(|path| error.to_string().contains(path)) {
        return Err(format!("skipped {paths:?}, refused {error}").into());
    }
    let lines: Vec<&str> = text.lines().collect();
    for skipped in &read.skipped.listed {
        let name = skipped.path.rsplit('.').next().unwrap_or_default();
        if !lines.get(skipped.line.wrapping_sub(1)).is_some_and(|line| line.contains(name)) {
            return Err(format!("{skipped} is not on that line").into());
        }
    }
    let mut page: Value = serde_json::from_str(text)?;
    strip(&mut page, &to_value(&read.message, Redaction::Off)?);
    if survives::<admin::ServerInfo>("server_info", &page.to_string())? != read.message {
        return Err("server_info: something that we do not print is no default".into());
    }
    Ok(read.message)
}

/// A configuration with a field that is newer than the table: its dump is read but for that field.
pub(crate) async fn newer_than_the_table(path: PathBuf) -> Result<(), Failed> {
    let port = free_port().await?;
    let config = NEWER_BOOTSTRAP.replace("ADMIN_PORT", &port.to_string());
    let args = ["-c", "envoy.yaml", "--concurrency", "1", "--disable-hot-restart", "--log-level", "warning"];
    let envoy = Process::start(&path, &args, &[("envoy.yaml", &config)])?;
    let ready =
        until("the dump is there", || async { matches!(get(port, "/config_dump").await, Ok((200, _))) });
    ready.await.map_err(|e| format!("{}\n{}", e.message().unwrap_or(""), envoy.output()))?;
    let (_, text) = get(port, "/config_dump").await?;
    let read = from_json_lossy::<ConfigDump>(&text)?;
    let mut paths: Vec<String> = read.skipped.listed.iter().map(|skipped| skipped.path.clone()).collect();
    paths.sort();
    let expected = [
        "configs[0].bootstrap.static_resources.clusters[0].health_checks[0].name",
        "configs[1].static_clusters[0].cluster.health_checks[0].name",
    ];
    if paths != expected {
        return Err(format!("skipped {paths:?}").into());
    }
    let section = read.message.configs.iter().find(|c| c.type_url.ends_with("ClustersConfigDump"));
    let dump = admin::ClustersConfigDump::decode(section.ok_or("no clusters")?.value.as_slice())?;
    let cluster = dump.static_clusters.first().and_then(|c| c.cluster.as_ref()).ok_or("no cluster")?;
    let cluster = decode::<Cluster>(cluster)?;
    if (cluster.name.as_str(), cluster.health_checks.len()) == ("checked", 1) {
        Ok(())
    } else {
        Err(format!("read {cluster:?}").into())
    }
}

/// Removes from `theirs` every key that `ours` does not have.
fn strip(theirs: &mut Value, ours: &Value) {
    match (theirs, ours) {
        (Value::Object(a), Value::Object(b)) => {
            a.retain(|key, _| b.contains_key(key));
            a.iter_mut().for_each(|(key, value)| strip(value, &b[key]));
        }
        (Value::Array(a), Value::Array(b)) => a.iter_mut().zip(b).for_each(|(a, b)| strip(a, b)),
        _ => {}
    }
}

/// The typed form of a section holds everything that its bytes hold.
fn typed(section: &mesh_xds::Any) -> Result<(), Failed> {
    macro_rules! through {
        ($($name:ident)*) => {
            match section.type_url.rsplit('.').next() {
                $(Some(stringify!($name)) => admin::$name::decode(section.value.as_slice())?.encode_to_vec(),)*
                _ => return Err(format!("{} is not known", section.type_url).into()),
            }
        };
    }
    let value = through!(BootstrapConfigDump ClustersConfigDump EcdsConfigDump EndpointsConfigDump ListenersConfigDump
        RoutesConfigDump ScopedRoutesConfigDump SecretsConfigDump);
    let again = mesh_xds::Any { type_url: section.type_url.clone(), value };
    let (before, after) = (any_to_value(section, Redaction::Off), any_to_value(&again, Redaction::Off));
    match difference(&section.type_url, &before, &after) {
        None => Ok(()),
        Some(path) => Err(format!("our types lose {path}").into()),
    }
}

/// Where two JSON values differ; numbers that are equal may be written differently.
pub(crate) fn difference(path: &str, theirs: &Value, ours: &Value) -> Option<String> {
    match (theirs, ours) {
        (Value::Object(a), Value::Object(b)) => {
            let missing = b.keys().find(|k| !a.contains_key(*k)).map(|k| format!("{path}.{k} (only ours)"));
            a.iter()
                .find_map(|(k, v)| match b.get(k) {
                    Some(w) => difference(&format!("{path}.{k}"), v, w),
                    None => Some(format!("{path}.{k} (only theirs: {v})")),
                })
                .or(missing)
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            a.iter().zip(b).enumerate().find_map(|(i, (v, w))| difference(&format!("{path}[{i}]"), v, w))
        }
        (Value::Number(a), Value::Number(b)) if a.as_f64() == b.as_f64() => None,
        (a, b) if a == b => None,
        (a, b) => Some(format!("{path}: {a} became {b}")),
    }
}
