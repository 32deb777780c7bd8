//! The client status service.

use mesh_xds::TypeUrl;
use mesh_xds::client::{AdsClient, Names};
use mesh_xds::pb::envoy::config::cluster::v3::Cluster;
use mesh_xds::pb::envoy::service::status::v3::{ClientStatusRequest, ConfigStatus};
use mesh_xds::server::{AllowAny, Snapshot, SnapshotCache, SyncState};
use tokio::time::timeout;

use crate::support::*;

#[tokio::test]
async fn clients_are_shown_by_csds() {
    let cache = SnapshotCache::new();
    cache.set("n", Snapshot::builder().add(&cluster("a", "1")).unwrap().build());
    let running = serve(cache, AllowAny, 0).await;
    let client = AdsClient::builder(node("n")).server(&running.uri).start().unwrap();
    let mut clusters = client.watch::<Cluster>(Names::all());
    let mut update = timeout(PATIENCE, clusters.next()).await.unwrap().unwrap();
    update.reject("a", "not today");
    update.accept();
    until(&running.server, &TypeUrl::CLUSTER, |s| s.state() == SyncState::Error).await;

    let mut operator = operator(&running.server).await;
    let status = operator.fetch_client_status(ClientStatusRequest::default()).await.unwrap().into_inner();
    let of_type = &status.config[0].generic_xds_configs[0];
    assert_eq!(status.config[0].node.as_ref().unwrap().id, "n");
    assert_eq!(of_type.config_status, i32::from(ConfigStatus::Error));
    assert_eq!(of_type.error_state.as_ref().unwrap().details, "a: not today");

    // As a stream, and for one node.
    let of = |id: &str| ClientStatusRequest { node: Some(node(id)), ..Default::default() };
    let requests = tokio_stream::iter([of("n"), of("another")]);
    let mut answers = operator.stream_client_status(requests).await.unwrap().into_inner();
    assert_eq!(answers.message().await.unwrap().unwrap().config.len(), 1);
    assert_eq!(answers.message().await.unwrap().unwrap().config.len(), 0);
    assert_eq!(answers.message().await.unwrap(), None);
    // What is not supported is refused, not passed over.
    let matched = ClientStatusRequest { node_matchers: vec![Default::default()], ..Default::default() };
    assert_eq!(operator.fetch_client_status(matched).await.unwrap_err().code(), tonic::Code::Unimplemented);
}
