//! A real Envoy, bootstrapped on our server.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use libtest_mimic::Failed;
use mesh_xds::TypeUrl;
use mesh_xds::json::from_yaml;
use mesh_xds::pb::envoy::config::cluster::v3::Cluster;
use mesh_xds::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use mesh_xds::pb::envoy::config::listener::v3::Listener;
use mesh_xds::pb::envoy::config::route::v3::RouteConfiguration;
use mesh_xds::server::{Snapshot, SnapshotBuilder, SnapshotCache, SyncState, TypeStatus};

use crate::server_process::{Counts, ServerProcess, quiet_port};
use crate::support::{PATIENCE, Process, Server, backend, free_port, get, until};

pub(crate) fn bootstrap(api_type: &str, xds_port: u16, admin_port: u16) -> String {
    format!(
        r#"
node: {{ id: envoy, cluster: test }}
admin: {{ address: {{ socket_address: {{ address: 127.0.0.1, port_value: {admin_port} }} }} }}
dynamic_resources:
  ads_config:
    api_type: {api_type}
    transport_api_version: V3
    grpc_services: [{{ envoy_grpc: {{ cluster_name: xds }} }}]
  cds_config: {{ ads: {{}}, resource_api_version: V3, initial_fetch_timeout: 0s }}
  lds_config: {{ ads: {{}}, resource_api_version: V3, initial_fetch_timeout: 0s }}
static_resources:
  clusters:
  - name: xds
    type: STATIC
    connect_timeout: 1s
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {{ http2_protocol_options: {{}} }}
    load_assignment:
      cluster_name: xds
      endpoints: [{{ lb_endpoints: [{{ endpoint: {{ address: {{ socket_address: {{ address: 127.0.0.1, port_value: {xds_port} }} }} }} }}] }}]
"#
    )
}

fn listener(port: u16) -> Result<Listener, Failed> {
    Ok(from_yaml(&format!(
        r#"
name: web
address: {{ socket_address: {{ address: 127.0.0.1, port_value: {port} }} }}
filter_chains:
- filters:
  - name: http
    typed_config:
      "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
      stat_prefix: web
      rds:
        route_config_name: web
        config_source: {{ ads: {{}}, resource_api_version: V3, initial_fetch_timeout: 0s }}
      http_filters:
      - name: router
        typed_config: {{ "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router }}
"#
    ))?)
}

fn cluster(name: &str, timeout: &str) -> Result<Cluster, Failed> {
    Ok(from_yaml(&format!(
        "{{ name: {name}, type: EDS, connect_timeout: {timeout}, eds_cluster_config: {{ eds_config: {{ ads: {{}}, \
         resource_api_version: V3, initial_fetch_timeout: 0s }} }} }}"
    ))?)
}

fn endpoints(name: &str, port: u16) -> Result<ClusterLoadAssignment, Failed> {
    Ok(from_yaml(&format!(
        "{{ cluster_name: {name}, endpoints: [{{ lb_endpoints: [{{ endpoint: {{ address: {{ socket_address: {{ address: \
         127.0.0.1, port_value: {port} }} }} }} }}] }}] }}"
    ))?)
}

fn routes(cluster: &str) -> Result<RouteConfiguration, Failed> {
    Ok(from_yaml(&format!(
        "{{ name: web, virtual_hosts: [{{ name: all, domains: ['*'], routes: [{{ match: {{ prefix: / }}, route: {{ \
         cluster: {cluster} }} }}] }}] }}"
    ))?)
}

/// The whole configuration: one listener that leads to one cluster.
fn mesh(web: u16, name: &str, port: u16) -> Result<SnapshotBuilder, Failed> {
    let builder = Snapshot::builder().add(&listener(web)?)?.add(&routes(name)?)?;
    Ok(builder.add(&cluster(name, "1s")?)?.add(&endpoints(name, port)?)?)
}

async fn says(port: u16, expected: &str) -> bool {
    matches!(get(port, "/").await, Ok((200, body)) if body == expected)
}

fn status(server: &Server, type_url: &TypeUrl) -> Option<TypeStatus> {
    server.ads.clients().last()?.types.get(type_url).cloned()
}

struct Running {
    envoy: Process,
    server: Server,
    cache: SnapshotCache,
    web: u16,
    admin: u16,
}

fn start_envoy(path: &Path, api_type: &str, xds: u16, admin: u16) -> Result<Process, Failed> {
    let config = bootstrap(api_type, xds, admin);
    let args = ["-c", "envoy.yaml", "--concurrency", "1", "--disable-hot-restart", "--log-level", "warning"];
    Process::start(path, &args, &[("envoy.yaml", &config)])
}

async fn start(path: &Path, api_type: &str, one: u16) -> Result<Running, Failed> {
    let (web, admin) = (free_port().await?, free_port().await?);
    let cache = SnapshotCache::new();
    cache.set("all", mesh(web, "one", one)?.build());
    let server = Server::start(cache.clone(), 0).await?;
    let envoy = start_envoy(path, api_type, server.port, admin)?;
    let running = Running { envoy, server, cache, web, admin };
    let served = until("Envoy serves", || says(web, "one")).await;
    served.map_err(|e| format!("{}\n{}", e.message().unwrap_or(""), running.envoy.output()))?;
    Ok(running)
}

/// Serving, updates, a rejection that we see, and a restart of our server that no request notices.
pub(crate) async fn follows(path: PathBuf, api_type: &str) -> Result<(), Failed> {
    let (one, two, three) = (backend("one").await?, backend("two").await?, backend("three").await?);
    let Running { envoy, server, cache, web, admin } = start(&path, api_type, one).await?;
    let web_says = move |expected| move || says(web, expected);

    // Endpoints move; then a new cluster replaces the old one. Under load, and no request fails.
    let load = Load::start(web);
    cache.set("all", mesh(web, "one", two)?.build());
    let mut marks = Vec::new();
    let mut mark = |what: &'static str| marks.push((what, load.done()));
    until("endpoints are followed", web_says("two")).await?;
    mark("endpoints");
    // Envoy takes a route as soon as it comes, also to a cluster that still warms: the cluster goes ahead.
    let both = mesh(web, "one", two)?.add(&cluster("new", "1s")?)?.add(&endpoints("new", three)?)?;
    cache.set("all", both.build());
    let warm =
        || async { get(admin, "/clusters").await.is_ok_and(|(_, text)| text.contains("new::127.0.0.1")) };
    until("the new cluster is warm", warm).await?;
    mark("new cluster warm");
    cache.set("all", mesh(web, "new", three)?.build());
    until("a new cluster is followed", web_says("three")).await?;
    for type_url in [TypeUrl::CLUSTER, TypeUrl::ENDPOINTS, TypeUrl::LISTENER, TypeUrl::ROUTE] {
        let synced = || async { status(&server, &type_url).is_some_and(|s| s.state() == SyncState::Synced) };
        until(&format!("{} is synced", type_url.short()), synced).await?;
    }

    mark("old cluster gone");
    // A cluster that Envoy refuses: its words are on our side, everything else goes on.
    let broken = "{ name: broken, type: STATIC, load_assignment: { cluster_name: broken, endpoints: [{ lb_endpoints: [{ \
                  endpoint: { address: { socket_address: { address: not-an-ip, port_value: 1 } } } }] }] } }";
    cache.set("all", mesh(web, "new", three)?.add(&from_yaml::<Cluster>(broken)?)?.build());
    let nack = || status(&server, &TypeUrl::CLUSTER).filter(|s| s.state() == SyncState::Error)?.error;
    until("the rejection is seen", || async { nack().is_some() }).await?;
    let said = nack().map(|n| n.message).unwrap_or_default();
    if !(said.contains("broken") && said.contains("not-an-ip")) {
        return Err(format!("the rejection says {said:?}").into());
    }
    cache.set("all", mesh(web, "new", three)?.build());
    until("the next version is accepted", || async {
        status(&server, &TypeUrl::CLUSTER).is_some_and(|s| s.state() == SyncState::Synced)
    })
    .await?;

    // Our server is killed, comes back with other content, and is followed again.
    let port = server.port;
    mark("killed");
    server.kill();
    load.goes_on().await?;
    // The port is free when the last connection of the old server is closed.
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    let server = loop {
        match Server::start(cache.clone(), port).await {
            Ok(server) => break server,
            Err(error) if tokio::time::Instant::now() > deadline => return Err(error),
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    };
    until("Envoy comes back", || async { server.ads.client_count() == 1 }).await?;
    cache.set("all", mesh(web, "new", one)?.build());
    until("the new server is followed", web_says("one")).await?;
    mark("back");
    let requests = load.finish().await.map_err(|e| format!("{e} ({marks:?})\n{}", envoy.output()))?;
    println!("{api_type}: {requests} requests, none failed");
    Ok(())
}

/// What the process of a server serves: one listener whose only endpoint moves with each round. `what` names three ports:
/// that of the listener, and two backends that take turns.
pub(crate) fn content(round: u64, what: &str) -> Snapshot {
    let ports: Vec<u16> = what.split(' ').filter_map(|port| port.parse().ok()).collect();
    let [web, one, two] = ports[..] else { panic!("three ports, not {what:?}") };
    let backend = if round.is_multiple_of(2) { one } else { two };
    mesh(web, "moving", backend).unwrap_or_else(|error| panic!("{error:?}")).build()
}

/// The process of our server is killed again and again, while endpoints move and requests run.
pub(crate) async fn outlives_kills(path: PathBuf, api_type: &str) -> Result<(), Failed> {
    let (one, two) = (backend("one").await?, backend("two").await?);
    let (web, admin, port) = (free_port().await?, free_port().await?, quiet_port()?);
    let what = format!("{web} {one} {two}");
    let mut server = ServerProcess::start(port, 0, &what)?;
    let envoy = start_envoy(&path, api_type, port, admin)?;
    let served = until("Envoy serves", || says(web, "one")).await;
    served.map_err(|e| format!("{}\n{}", e.message().unwrap_or(""), envoy.output()))?;

    let load = Load::start(web);
    let mut round = 0;
    for _ in 0..3 {
        // In the middle of changes, most of which are never heard.
        for _ in 0..50 {
            round += 1;
            server.set(round)?;
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        server.kill()?;
        load.goes_on().await?;
        round += 1;
        server = ServerProcess::start(port, round, &what)?;
        let expected = if round % 2 == 0 { "one" } else { "two" };
        until("the next server is followed", || says(web, expected)).await?;
    }
    // Killed at rest. By Delta, Envoy says what it has and the next server says nothing.
    settled(&mut server).await?;
    server.kill()?;
    load.goes_on().await?;
    server = ServerProcess::start(port, round, &what)?;
    let counts = settled(&mut server).await?;
    if counts.delta_responses > 0 {
        return Err(format!("something was sent again: {counts:?}").into());
    }
    server.set(round + 1)?;
    let expected = if round % 2 == 0 { "two" } else { "one" };
    until("the last server is followed", || says(web, expected)).await?;
    let requests = load.finish().await.map_err(|e| format!("{e}\n{}", envoy.output()))?;
    println!("{api_type}: {round} rounds, 4 kills, {requests} requests, none failed");
    Ok(())
}

/// Waits until Envoy has asked for its four types and has answered what it was sent.
async fn settled(server: &mut ServerProcess) -> Result<Counts, Failed> {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        let counts = server.counts()?;
        if counts.asked == 4 && counts.synced == 4 {
            return Ok(counts);
        }
        if tokio::time::Instant::now() > deadline {
            return Err(format!("not settled: {counts:?}").into());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Requests one after the other, each on a connection of its own.
struct Load {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU32>,
    /// What went wrong, request by request.
    task: tokio::task::JoinHandle<Vec<String>>,
}

impl Load {
    fn start(port: u16) -> Self {
        let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
        let task = tokio::spawn({
            let (stop, done) = (stop.clone(), done.clone());
            async move {
                let mut failed = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    let number = done.fetch_add(1, Ordering::Relaxed);
                    match get(port, "/").await {
                        Ok((200, _)) => {}
                        other => failed.push(format!("{number}: {other:?}")),
                    }
                }
                failed
            }
        });
        Self { stop, done, task }
    }

    fn done(&self) -> u32 {
        self.done.load(Ordering::Relaxed)
    }

    /// Waits for fifty further requests.
    async fn goes_on(&self) -> Result<(), Failed> {
        let before = self.done();
        until("requests go on without us", || async { self.done() > before + 50 }).await
    }

    /// How many requests there were, if none failed.
    async fn finish(self) -> Result<u32, String> {
        self.stop.store(true, Ordering::Relaxed);
        let failed = self.task.await.map_err(|error| error.to_string())?;
        if failed.is_empty() {
            Ok(self.done.load(Ordering::Relaxed))
        } else {
            Err(format!("failed: {failed:?}"))
        }
    }
}
