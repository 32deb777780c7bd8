//! A server on loopback, small resources, and waiting for a state.

use std::time::Duration;

use mesh_xds::TypeUrl;
use mesh_xds::pb::envoy::config::cluster::v3::Cluster;
use mesh_xds::pb::envoy::config::cluster::v3::cluster::{ClusterDiscoveryType, DiscoveryType};
use mesh_xds::pb::envoy::config::core::v3::Node;
use mesh_xds::pb::envoy::config::endpoint::v3::{ClusterLoadAssignment, LocalityLbEndpoints};
use mesh_xds::pb::envoy::service::discovery::v3::DeltaDiscoveryRequest;
use mesh_xds::pb::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use mesh_xds::pb::envoy::service::status::v3::client_status_discovery_service_client::ClientStatusDiscoveryServiceClient;
use mesh_xds::server::{AdsServer, Authorizer, ServerConfig, SnapshotCache, TypeStatus};
use tokio::net::TcpListener;
use tokio::time::timeout;
use tonic::transport::{Channel, Endpoint};

pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) fn cluster(name: &str, stat: &str) -> Cluster {
    Cluster {
        name: name.to_owned(),
        alt_stat_name: stat.to_owned(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Eds as i32)),
        ..Default::default()
    }
}

pub(crate) fn endpoints(name: &str, priority: u32) -> ClusterLoadAssignment {
    let endpoints = vec![LocalityLbEndpoints { priority, ..Default::default() }];
    ClusterLoadAssignment { cluster_name: name.to_owned(), endpoints, ..Default::default() }
}

pub(crate) fn node(id: &str) -> Node {
    Node { id: id.to_owned(), ..Default::default() }
}

pub(crate) struct Running {
    pub(crate) server: AdsServer,
    pub(crate) uri: String,
    pub(crate) task: tokio::task::JoinHandle<()>,
}

pub(crate) async fn serve(cache: SnapshotCache, authorizer: impl Authorizer, port: u16) -> Running {
    run(AdsServer::new(cache, authorizer, ServerConfig::default()), port).await
}

pub(crate) async fn run(server: AdsServer, port: u16) -> Running {
    let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
    let uri = format!("http://{}", listener.local_addr().unwrap());
    let routes = server.routes();
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
    let task = tokio::spawn(async move {
        tonic::transport::Server::builder().add_routes(routes).serve_with_incoming(incoming).await.unwrap();
    });
    Running { server, uri, task }
}

/// Waits for something, within [`PATIENCE`].
pub(crate) async fn eventually(what: &str, mut check: impl FnMut() -> bool) {
    let look = async {
        while !check() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, look).await.unwrap_or_else(|_| panic!("in time: {what}"));
}

/// Waits until `check` holds for the newest client of the server.
pub(crate) async fn until(server: &AdsServer, type_url: &TypeUrl, check: impl Fn(&TypeStatus) -> bool) {
    eventually("the client reaches the state", || {
        server.clients().last().and_then(|c| c.types.get(type_url)).is_some_and(&check)
    })
    .await;
}

pub(crate) async fn channel(uri: &str) -> Channel {
    Endpoint::from_shared(uri.to_owned()).unwrap().connect().await.unwrap()
}

/// An operator who asks the client status service of a server.
pub(crate) async fn operator(server: &AdsServer) -> ClientStatusDiscoveryServiceClient<Channel> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let uri = format!("http://{}", listener.local_addr().unwrap());
    let service = server.client_status();
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
    tokio::spawn(async move {
        tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming).await.unwrap();
    });
    ClientStatusDiscoveryServiceClient::new(channel(&uri).await)
}

/// A Delta stream by hand: requests go in, whatever the server says comes out.
pub(crate) struct RawStream {
    pub(crate) requests: tokio::sync::mpsc::UnboundedSender<DeltaDiscoveryRequest>,
    pub(crate) responses:
        tonic::Streaming<mesh_xds::pb::envoy::service::discovery::v3::DeltaDiscoveryResponse>,
}

impl RawStream {
    /// Opens a stream without saying anything.
    pub(crate) async fn open(channel: Channel) -> Result<Self, tonic::Status> {
        let (requests, inbox) = tokio::sync::mpsc::unbounded_channel();
        let outgoing = tokio_stream::wrappers::UnboundedReceiverStream::new(inbox);
        let mut client = AggregatedDiscoveryServiceClient::new(channel);
        let responses = client.delta_aggregated_resources(outgoing).await?.into_inner();
        Ok(Self { requests, responses })
    }

    /// Opens a stream and asks for all clusters.
    pub(crate) async fn clusters(channel: Channel, id: &str) -> Result<Self, tonic::Status> {
        let stream = Self::open(channel).await?;
        stream.ask(clusters_of(id));
        Ok(stream)
    }

    pub(crate) fn ask(&self, request: DeltaDiscoveryRequest) {
        self.requests.send(request).unwrap();
    }

    /// How the stream ends; whatever is said before is passed over.
    pub(crate) async fn end(&mut self) -> tonic::Status {
        let read = async {
            loop {
                match self.responses.message().await {
                    Ok(Some(_)) => {}
                    Ok(None) => return tonic::Status::ok(""),
                    Err(status) => return status,
                }
            }
        };
        timeout(PATIENCE, read).await.expect("the stream ends in time")
    }
}

/// The first request of a node, for all clusters.
pub(crate) fn clusters_of(id: &str) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        node: Some(node(id)),
        type_url: TypeUrl::CLUSTER.to_string(),
        ..Default::default()
    }
}
