//! The services for single types, groups, authorization by group, the observer, and states as data.

use std::sync::{Arc, Mutex};

use mesh_xds::TypeUrl;
use mesh_xds::client::{AdsClient, LapseReason, Names, Protocol, ResourceStatus};
use mesh_xds::pb::envoy::config::cluster::v3::Cluster;
use mesh_xds::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use mesh_xds::pb::envoy::service::cluster::v3::cluster_discovery_service_client::ClusterDiscoveryServiceClient;
use mesh_xds::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};
use mesh_xds::pb::envoy::service::endpoint::v3::endpoint_discovery_service_client::EndpointDiscoveryServiceClient;
use mesh_xds::pb::envoy::service::route::v3::virtual_host_discovery_service_client::VirtualHostDiscoveryServiceClient;
use mesh_xds::server::{
    AdsServer, AllowAny, Authorization, Authorizer, Caller, ClientInfo, Grant, Nack, Observer, ServerConfig,
    Snapshot, SnapshotCache, SyncState,
};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::Code;

use crate::support::*;

fn one_of_each() -> Snapshot {
    Snapshot::builder().add(&cluster("a", "1")).unwrap().add(&endpoints("a", 1)).unwrap().build()
}

/// Writes down what it is told.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<String>>>);

impl Log {
    fn add(&self, line: String) {
        self.0.lock().unwrap().push(line);
    }

    fn lines(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }
}

impl Observer for Log {
    fn connected(&self, client: &ClientInfo) {
        self.add(format!("+ {}", client.node.id));
    }

    fn disconnected(&self, client: &ClientInfo) {
        self.add(format!("- {}", client.node.id));
    }

    fn rejected(&self, client: &ClientInfo, type_url: &TypeUrl, nack: &Nack) {
        self.add(format!("{} {}: {}", client.node.id, type_url.short(), nack.message));
    }
}

#[tokio::test]
async fn a_service_for_one_type_needs_no_type_url() {
    let cache = SnapshotCache::new();
    cache.set("n", one_of_each());
    let log = Log::default();
    let server = AdsServer::with_observer(cache, AllowAny, ServerConfig::default(), log.clone());
    let running = run(server, 0).await;

    // State of the world, EDS: asked, answered, rejected; the observer is told the type that no request named.
    let (requests, inbox) = mpsc::unbounded_channel();
    let first = DiscoveryRequest {
        node: Some(node("n")),
        resource_names: vec!["a".to_owned()],
        ..Default::default()
    };
    requests.send(first).unwrap();
    let mut client = EndpointDiscoveryServiceClient::new(channel(&running.uri).await);
    let mut responses =
        client.stream_endpoints(UnboundedReceiverStream::new(inbox)).await.unwrap().into_inner();
    let response = responses.message().await.unwrap().unwrap();
    assert_eq!((response.type_url.as_str(), response.resources.len()), (TypeUrl::ENDPOINTS.as_str(), 1));
    let error = mesh_xds::pb::google::rpc::Status { code: 3, message: "a: no".into(), details: Vec::new() };
    let nack = DiscoveryRequest {
        resource_names: vec!["a".to_owned()],
        response_nonce: response.nonce,
        error_detail: Some(error),
        ..Default::default()
    };
    requests.send(nack.clone()).unwrap();
    until(&running.server, &TypeUrl::ENDPOINTS, |s| s.state() == SyncState::Error).await;
    // A rejection of something else long ago is none of this response.
    requests.send(DiscoveryRequest { response_nonce: "stale".to_owned(), ..nack }).unwrap();
    drop(requests);
    eventually("the client is gone", || running.server.client_count() == 0).await;
    assert_eq!(log.lines(), ["+ n", "n EDS: a: no", "- n"]);

    // Delta, CDS.
    let delta = |type_url: &str| DeltaDiscoveryRequest {
        node: Some(node("n")),
        type_url: type_url.to_owned(),
        ..Default::default()
    };
    let mut client = ClusterDiscoveryServiceClient::new(channel(&running.uri).await);
    let requests = tokio_stream::StreamExt::chain(tokio_stream::once(delta("")), tokio_stream::pending());
    let mut responses = client.delta_clusters(requests).await.unwrap().into_inner();
    assert_eq!(responses.message().await.unwrap().unwrap().resources[0].name, "a");
    // Another type is refused there.
    let wrong = tokio_stream::once(delta(TypeUrl::LISTENER.as_str()));
    let refused = client.delta_clusters(wrong).await.unwrap().into_inner().message().await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);

    // VHDS is Delta only, and by name only.
    let mut client = VirtualHostDiscoveryServiceClient::new(channel(&running.uri).await);
    let host =
        DeltaDiscoveryRequest { resource_names_subscribe: vec!["routes/host".to_owned()], ..delta("") };
    let requests = tokio_stream::StreamExt::chain(tokio_stream::once(host), tokio_stream::pending());
    let mut responses = client.delta_virtual_hosts(requests).await.unwrap().into_inner();
    assert_eq!(responses.message().await.unwrap().unwrap().removed_resources, ["routes/host"]);
}

#[tokio::test]
async fn alike_nodes_share_the_snapshot_of_their_group() {
    let cache = SnapshotCache::new();
    let mut config = ServerConfig::default();
    config.group = Arc::new(|node| node.cluster.clone());
    let running = run(AdsServer::new(cache.clone(), AllowAny, config), 0).await;
    let mut watches = Vec::new();
    for (id, group) in [("a", "blue"), ("b", "blue"), ("c", "green")] {
        let node = mesh_xds::pb::envoy::config::core::v3::Node { cluster: group.to_owned(), ..node(id) };
        let client = AdsClient::builder(node).server(&running.uri).start().unwrap();
        watches.push(client.watch::<Cluster>(Names::all()));
    }
    cache.set("blue", Snapshot::builder().add(&cluster("blue", "1")).unwrap().build());
    cache.set("green", Snapshot::builder().add(&cluster("green", "1")).unwrap().build());
    for (watch, expected) in watches.iter_mut().zip(["blue", "blue", "green"]) {
        let update = timeout(PATIENCE, watch.next()).await.unwrap().unwrap();
        assert_eq!(update.upserts[0].name, expected);
        update.accept();
    }
    // A group without a snapshot keeps what it has, and hears only what changed when there is one again.
    cache.clear("blue");
    let next = Snapshot::builder().add(&cluster("blue", "1")).unwrap().add(&cluster("new", "1")).unwrap();
    cache.set("blue", next.build());
    for watch in &mut watches[..2] {
        let update = timeout(PATIENCE, watch.next()).await.unwrap().unwrap();
        assert_eq!((update.upserts.len(), update.upserts[0].name.as_str()), (1, "new"));
        update.accept();
    }
}

#[tokio::test]
async fn two_streams_of_one_node_are_two_clients() {
    let cache = SnapshotCache::new();
    cache.set("n", one_of_each());
    let running = serve(cache.clone(), AllowAny, 0).await;
    let channel = channel(&running.uri).await;
    // As when a client connects again before its old connection is known to be dead.
    let mut old = RawStream::clusters(channel.clone(), "n").await.unwrap();
    let mut new = RawStream::clusters(channel, "n").await.unwrap();
    let (first, second) =
        (old.responses.message().await.unwrap().unwrap(), new.responses.message().await.unwrap().unwrap());
    assert_eq!((first.resources.len(), second.resources.len()), (1, 1));
    assert_eq!(running.server.client_count(), 2);
    drop(old);
    eventually("the old one is gone", || running.server.client_count() == 1).await;
    cache.set("n", cache.get("n").unwrap().edit().add(&cluster("b", "1")).unwrap().build());
    assert_eq!(new.responses.message().await.unwrap().unwrap().resources[0].name, "b");
}

/// Puts everybody where it decides, whatever the node says.
struct Quarantine;

impl Authorizer for Quarantine {
    fn authorize<'a>(
        &'a self,
        _: &'a Caller,
        _: &'a mesh_xds::pb::envoy::config::core::v3::Node,
    ) -> Authorization<'a> {
        let grant = Grant { identity: "somebody".to_owned(), group: Some("quarantine".to_owned()) };
        Box::pin(std::future::ready(Ok(grant)))
    }
}

#[tokio::test]
async fn the_authorizer_may_choose_the_group() {
    let cache = SnapshotCache::new();
    cache.set("n", one_of_each());
    cache.set("quarantine", Snapshot::builder().add(&cluster("nothing-much", "1")).unwrap().build());
    let running = serve(cache, Quarantine, 0).await;
    let client = AdsClient::builder(node("n")).server(&running.uri).start().unwrap();
    let mut clusters = client.watch::<Cluster>(Names::all());
    let update = timeout(PATIENCE, clusters.next()).await.unwrap().unwrap();
    assert_eq!(update.upserts[0].name, "nothing-much");
    let info = running.server.clients()[0].client.clone();
    assert_eq!((info.identity.as_str(), &*info.group), ("somebody", "quarantine"));
}

async fn states(protocol: Protocol) {
    let cache = SnapshotCache::new();
    let running = serve(cache.clone(), AllowAny, 0).await;
    let client = AdsClient::builder(node("n"))
        .server(&running.uri)
        .protocol(protocol)
        .missing_after(Some(Duration::from_millis(50)))
        .start()
        .unwrap();
    let state = |wanted: SyncState| {
        let server = running.server.clone();
        async move { until(&server, &TypeUrl::ENDPOINTS, |s| s.state() == wanted).await }
    };
    let status =
        async |name: &str| client.resources().await.unwrap()[&TypeUrl::ENDPOINTS].get(name).map(|r| r.status);
    let mut watch = client.watch::<ClusterLoadAssignment>(Names::of(["a"]));
    // Asked for, and there is nothing to say; the client gives up waiting but not asking.
    state(SyncState::NotSent).await;
    let missing = timeout(PATIENCE, watch.next()).await.unwrap().unwrap();
    assert_eq!((missing.lapse, &*missing.removed), (Some(LapseReason::Missing), &["a".to_owned()][..]));
    assert_eq!(status("a").await, Some(ResourceStatus::Timeout));
    // Sent, and acknowledged only when the consumer has accepted.
    cache.set("n", one_of_each());
    let update = timeout(PATIENCE, watch.next()).await.unwrap().unwrap();
    state(SyncState::Stale).await;
    assert_eq!(status("a").await, Some(ResourceStatus::Timeout));
    update.accept();
    state(SyncState::Synced).await;
    assert_eq!(status("a").await, Some(ResourceStatus::Acked));
    // An update that is dropped undecided is a rejection.
    cache.set("n", cache.get("n").unwrap().edit().add(&endpoints("a", 2)).unwrap().build());
    drop(timeout(PATIENCE, watch.next()).await.unwrap().unwrap());
    state(SyncState::Error).await;
    let nack = running.server.clients()[0].types[&TypeUrl::ENDPOINTS].error.clone().unwrap();
    assert_eq!(nack.message, "a: was dropped undecided");
    assert_eq!(status("a").await, Some(ResourceStatus::Nacked));
    // Not asked for any more.
    watch.set(Names::none());
    state(SyncState::Ignored).await;
    assert_eq!(status("a").await, None);
    // On demand.
    watch.set(Names::of(["a"]));
    let update = timeout(PATIENCE, watch.next()).await.unwrap().unwrap();
    assert_eq!(update.upserts[0].resource.endpoints[0].priority, 2);
    update.accept();
    state(SyncState::Synced).await;
}

#[tokio::test]
async fn every_state_of_a_delta_client_is_seen() {
    states(Protocol::Delta).await;
}

#[tokio::test]
async fn every_state_of_a_state_of_the_world_client_is_seen() {
    states(Protocol::Sotw).await;
}
