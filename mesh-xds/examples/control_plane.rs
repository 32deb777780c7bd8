//! A control plane in forty lines: one listener, one route, one cluster, one endpoint, for every client that asks.
//!
//! ```text
//! cargo run -p mesh-xds --features server --example control_plane -- 127.0.0.1:18000 127.0.0.1:8080
//! ```
//! Then bootstrap an Envoy on it (`dynamic_resources` with ADS, `api_type: DELTA_GRPC`), or run the example `watch`.

use std::sync::Arc;

use mesh_xds::pb::envoy::config::cluster::v3::Cluster;
use mesh_xds::pb::envoy::config::listener::v3::Listener;
use mesh_xds::server::{AdsServer, AllowAny, ServerConfig, Snapshot, SnapshotCache};

const LISTENER: &str = r#"
name: web
address: { socket_address: { address: 127.0.0.1, port_value: 10000 } }
filter_chains:
- filters:
  - name: tcp
    typed_config:
      "@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
      stat_prefix: web
      cluster: backend
"#;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let listen = args.next().unwrap_or_else(|| "127.0.0.1:18000".to_owned()).parse()?;
    let backend = args.next().unwrap_or_else(|| "127.0.0.1:8080".to_owned());
    let (host, port) = backend.rsplit_once(':').ok_or("the backend is HOST:PORT")?;
    let cluster = format!(
        "name: backend\ntype: STATIC\nconnect_timeout: 1s\nload_assignment: {{ cluster_name: backend, endpoints: [{{ \
         lb_endpoints: [{{ endpoint: {{ address: {{ socket_address: {{ address: {host}, port_value: {port} }} }} }} }}] }}] }}"
    );

    let snapshot = Snapshot::builder()
        .add(&mesh_xds::json::from_yaml::<Cluster>(&cluster)?)?
        .add(&mesh_xds::json::from_yaml::<Listener>(LISTENER)?)?
        .build();
    let mut config = ServerConfig::default();
    config.group = Arc::new(|_| "everybody".to_owned());
    let cache = SnapshotCache::new();
    cache.set("everybody", snapshot);

    let server = AdsServer::new(cache, AllowAny, config);
    println!("serving xDS on {listen}");
    tonic::transport::Server::builder().add_routes(server.routes()).serve(listen).await?;
    Ok(())
}
