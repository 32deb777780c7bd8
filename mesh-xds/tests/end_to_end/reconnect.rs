//! When and where a client connects again, in paused time, over connections in memory.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use mesh_xds::client::{AdsClient, Connector, Io, Names, Target};
use mesh_xds::pb::envoy::config::cluster::v3::Cluster;
use mesh_xds::pb::envoy::service::discovery::v3::aggregated_discovery_service_server::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
};
use mesh_xds::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use mesh_xds::server::{AdsServer, AllowAny, ServerConfig, Snapshot, SnapshotCache};
use tokio::io::DuplexStream;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::service::Routes;
use tonic::{Request, Response, Status, Streaming};

use crate::support::*;

/// Servers by port, and every attempt to reach one.
#[derive(Clone, Default)]
struct Network {
    servers: BTreeMap<u16, mpsc::UnboundedSender<io::Result<DuplexStream>>>,
    attempts: Arc<Mutex<Vec<(Instant, u16)>>>,
}

impl Network {
    fn serve(&mut self, port: u16, routes: Routes) {
        let (connections, inbox) = mpsc::unbounded_channel();
        let router = tonic::transport::Server::builder().add_routes(routes);
        tokio::spawn(router.serve_with_incoming(UnboundedReceiverStream::new(inbox)));
        self.servers.insert(port, connections);
    }

    fn connector(&self) -> Connector {
        let network = self.clone();
        Connector::new(move |target| {
            let network = network.clone();
            async move { network.connect(&target) }
        })
    }

    fn connect(&self, target: &Target) -> io::Result<Box<dyn Io>> {
        let Target::Http(uri) = target else { return Err(io::ErrorKind::Unsupported.into()) };
        let port = uri.port_u16().unwrap_or(0);
        self.attempts.lock().unwrap().push((Instant::now(), port));
        let server = self.servers.get(&port).ok_or(io::ErrorKind::ConnectionRefused)?;
        let (near, far) = tokio::io::duplex(64 << 10);
        server.send(Ok(far)).map_err(|_| io::ErrorKind::ConnectionRefused)?;
        Ok(Box::new(near))
    }

    fn attempts(&self) -> Vec<(Instant, u16)> {
        self.attempts.lock().unwrap().clone()
    }
}

fn client(network: &Network) -> AdsClient {
    let builder = AdsClient::builder(node("n")).server("http://first:1").server("http://second:2");
    builder.connector(network.connector()).start().unwrap()
}

#[tokio::test(start_paused = true)]
async fn servers_that_fail_are_tried_in_turn_and_ever_more_slowly() {
    let network = Network::default();
    let client = client(&network);
    let _watch = client.watch::<Cluster>(Names::all());
    sleep(Duration::from_secs(300)).await;
    let attempts = network.attempts();
    let ports: Vec<_> = attempts.iter().map(|(_, port)| *port).collect();
    assert_eq!(ports[..6], [1, 2, 1, 2, 1, 2]);
    let mut step = Duration::from_millis(500);
    for pair in attempts.windows(2) {
        let gap = pair[1].0 - pair[0].0;
        // Timers count in milliseconds.
        let slack = Duration::from_millis(2);
        assert!(gap + slack >= step / 2 && gap <= step + slack, "{gap:?} where {step:?} is the step");
        step = (step * 2).min(Duration::from_secs(30));
    }
    assert!(attempts.len() >= 15, "{}", attempts.len());
    assert_eq!(client.connection().borrow().last_error.as_ref().map(|e| e.reason()), Some("connect"));
}

#[tokio::test(start_paused = true)]
async fn a_server_with_nothing_new_to_say_is_a_good_one() {
    let cache = SnapshotCache::new();
    cache.set("n", Snapshot::builder().add(&cluster("a", "1")).unwrap().build());
    let mut config = ServerConfig::default();
    config.max_stream_age = Some(Duration::from_secs(60));
    let server = AdsServer::new(cache, AllowAny, config);
    let mut network = Network::default();
    network.serve(1, server.routes());
    let client = client(&network);
    let mut clusters = client.watch::<Cluster>(Names::all());
    clusters.next().await.unwrap().accept();
    // The server ends a stream each minute, and after the first one no stream brings anything.
    let mut connected = 0;
    for _ in 0..600 {
        sleep(Duration::from_secs(1)).await;
        connected += u32::from(client.connection().borrow().connected);
    }
    let attempts = network.attempts();
    assert!((9..=12).contains(&attempts.len()), "{attempts:?}");
    assert!(attempts.iter().all(|(_, port)| *port == 1), "nothing is wrong with the first: {attempts:?}");
    for pair in attempts.windows(2) {
        let gap = pair[1].0 - pair[0].0;
        assert!(gap >= Duration::from_secs(54) && gap <= Duration::from_secs(67), "no backing off: {gap:?}");
    }
    assert!(connected > 500, "connected in {connected} of 600 seconds");
    assert_eq!(client.connection().borrow().streams as usize, attempts.len());
}

/// Answers with headers only together with a first response, which never comes; ends each stream after a minute.
struct Taciturn;

#[tonic::async_trait]
impl AggregatedDiscoveryService for Taciturn {
    type StreamAggregatedResourcesStream = tokio_stream::Pending<Result<DiscoveryResponse, Status>>;
    type DeltaAggregatedResourcesStream = tokio_stream::Pending<Result<DeltaDiscoveryResponse, Status>>;

    async fn stream_aggregated_resources(
        &self,
        _: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        Err(Status::unimplemented("Delta only"))
    }

    async fn delta_aggregated_resources(
        &self,
        _: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        sleep(Duration::from_secs(60)).await;
        Err(Status::unavailable("a minute is over"))
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_that_has_not_even_headers_to_send_is_a_good_one() {
    let mut network = Network::default();
    network.serve(1, Routes::new(AggregatedDiscoveryServiceServer::new(Taciturn)));
    let client = client(&network);
    let _watch = client.watch::<Cluster>(Names::all());
    sleep(Duration::from_secs(4)).await;
    assert!(!client.connection().borrow().connected, "not yet");
    sleep(Duration::from_secs(2)).await;
    let state = client.connection().borrow().clone();
    assert!(state.connected && state.streams == 1, "{state:?}");
    sleep(Duration::from_secs(600)).await;
    let attempts = network.attempts();
    assert!(attempts.iter().all(|(_, port)| *port == 1), "nothing is wrong with the first: {attempts:?}");
    assert!((10..=12).contains(&attempts.len()), "no backing off: {attempts:?}");
}
