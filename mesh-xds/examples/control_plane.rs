//! A control plane in forty lines: a listener that leads to a cluster, for every client that asks. Its arguments are
//! where to serve xDS, the port of the backend, and the port that the listener opens:
//! `cargo run -p mesh-xds --features json,server --example control_plane -- 127.0.0.1:18000 8080 10000`
//! Then start an Envoy whose `dynamic_resources` come from there by ADS, or the example `watch`.
use std::sync::Arc;

use mesh_xds::json::from_yaml;
use mesh_xds::pb::envoy::config::{cluster::v3::Cluster, listener::v3::Listener};
use mesh_xds::server::{AdsServer, AllowAny, ServerConfig, Snapshot, SnapshotCache};

const LISTENER: &str = r#"
name: web
address: { socket_address: { address: 127.0.0.1, port_value: PORT } }
filter_chains:
- filters:
  - name: tcp
    typed_config:
      "@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
      stat_prefix: web
      cluster: backend"#;
const CLUSTER: &str = r"
name: backend
connect_timeout: 1s
load_assignment:
  cluster_name: backend
  endpoints: [{ lb_endpoints: [{ endpoint: { address: { socket_address: { address: 127.0.0.1, port_value: PORT } } } }] }]";

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let listen = args.next().unwrap_or_else(|| "127.0.0.1:18000".to_owned()).parse()?;
    let cluster: Cluster = from_yaml(&CLUSTER.replace("PORT", args.next().as_deref().unwrap_or("8080")))?;
    let listener: Listener = from_yaml(&LISTENER.replace("PORT", args.next().as_deref().unwrap_or("10000")))?;
    let cache = SnapshotCache::new();
    cache.set("everybody", Snapshot::builder().add(&cluster)?.add(&listener)?.build());
    let mut config = ServerConfig::default();
    config.group = Arc::new(|_| "everybody".to_owned());
    let routes = AdsServer::new(cache, AllowAny, config).routes();
    Ok(tonic::transport::Server::builder().add_routes(routes).serve(listen).await?)
}
