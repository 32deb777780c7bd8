//! gRPC's own xDS client, calling a backend through our LDS, RDS, CDS and EDS.

use std::path::PathBuf;

use libtest_mimic::Failed;
use mesh_xds::json::from_yaml;
use mesh_xds::pb::envoy::config::cluster::v3::Cluster;
use mesh_xds::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use mesh_xds::pb::envoy::config::listener::v3::Listener;
use mesh_xds::pb::envoy::config::route::v3::RouteConfiguration;
use mesh_xds::server::{Snapshot, SnapshotCache, SyncState};

use crate::support::{Process, Server, free_port, until};

/// A backend that echoes, and a client that finds it by `xds:///echo`.
const SCRIPT: &str = r#"
import os, sys, grpc
from concurrent import futures

class Echo(grpc.GenericRpcHandler):
    def service(self, details):
        return grpc.unary_unary_rpc_method_handler(lambda request, context: b"echo " + request)

server = grpc.server(futures.ThreadPoolExecutor(2), handlers=[Echo()])
server.add_insecure_port("127.0.0.1:" + sys.argv[1])
server.start()
with grpc.insecure_channel("xds:///echo") as channel:
    call = channel.unary_unary("/test.Echo/Say")
    for n in range(3):
        print(call(b"%d" % n, timeout=30, wait_for_ready=True).decode(), flush=True)
    sys.stdin.readline()
"#;

const LISTENER: &str = r#"
name: echo
api_listener:
  api_listener:
    "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
    rds: { route_config_name: echo-routes, config_source: { ads: {}, resource_api_version: V3 } }
    http_filters:
    - name: router
      typed_config: { "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router }
"#;
const ROUTES: &str = "{ name: echo-routes, virtual_hosts: [{ name: all, domains: ['*'], routes: [{ match: { prefix: '' }, route: { cluster: echo-cluster } }] }] }";
const CLUSTER: &str = "{ name: echo-cluster, type: EDS, eds_cluster_config: { eds_config: { ads: {}, resource_api_version: V3 } }, lb_policy: ROUND_ROBIN }";

pub(crate) async fn calls(python: PathBuf) -> Result<(), Failed> {
    let port = free_port().await?;
    let endpoints = format!(
        "{{ cluster_name: echo-cluster, endpoints: [{{ locality: {{ region: r }}, load_balancing_weight: 1, lb_endpoints: [{{ \
         endpoint: {{ address: {{ socket_address: {{ address: 127.0.0.1, port_value: {port} }} }} }} }}] }}] }}"
    );
    let snapshot = Snapshot::builder()
        .add(&from_yaml::<Listener>(LISTENER)?)?
        .add(&from_yaml::<RouteConfiguration>(ROUTES)?)?
        .add(&from_yaml::<Cluster>(CLUSTER)?)?
        .add(&from_yaml::<ClusterLoadAssignment>(&endpoints)?)?
        .build();
    let cache = SnapshotCache::new();
    cache.set("all", snapshot);
    let server = Server::start(cache, 0).await?;
    let bootstrap = format!(
        r#"{{"xds_servers": [{{"server_uri": "127.0.0.1:{}", "channel_creds": [{{"type": "insecure"}}], "server_features": ["xds_v3"]}}],
            "node": {{"id": "grpc", "cluster": "test"}}}}"#,
        server.port
    );
    let run =
        format!("export GRPC_XDS_BOOTSTRAP=$PWD/bootstrap.json; exec {} echo.py {port}", python.display());
    let files = [("echo.py", SCRIPT), ("bootstrap.json", &bootstrap)];
    let process = Process::start("sh".as_ref(), &["-c", &run], &files)?;
    let called = until("gRPC calls through us", || async { process.output().contains("echo 2") }).await;
    called.map_err(|e| format!("{}\n{}", e.message().unwrap_or(""), process.output()))?;
    // The client may be gone already; while it was there it accepted everything.
    let rejected =
        server.ads.clients().iter().any(|c| c.types.values().any(|s| s.state() == SyncState::Error));
    if rejected {
        return Err(format!("something was rejected: {:?}", server.ads.clients()).into());
    }
    println!("{}", process.output().trim().replace('\n', ", "));
    Ok(())
}
