//! Prints every change of a server's clusters.
//!
//! ```text
//! cargo run -p mesh-xds --features client --example watch -- http://127.0.0.1:18000
//! ```

use mesh_xds::client::{AdsClient, Names};
use mesh_xds::pb::envoy::config::cluster::v3::Cluster;
use mesh_xds::pb::envoy::config::core::v3::Node;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let server = std::env::args().nth(1).unwrap_or_else(|| "http://127.0.0.1:18000".to_owned());
    let node = Node { id: "watch".to_owned(), cluster: "example".to_owned(), ..Default::default() };
    let client = AdsClient::builder(node).server(server).start()?;

    let mut clusters = client.watch::<Cluster>(Names::all());
    while let Some(mut update) = clusters.next().await {
        for upsert in std::mem::take(&mut update.upserts) {
            if upsert.unchanged {
                continue;
            }
            println!("+ {} (version {})", upsert.name, upsert.version);
            if upsert.resource.connect_timeout.is_none() {
                update.reject(&upsert.name, "this example insists on a connect timeout");
            }
        }
        for name in &update.removed {
            println!("- {name}");
        }
        update.accept();
    }
    Ok(())
}
