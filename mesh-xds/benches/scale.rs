//! A thousand Delta clients on one server, in two processes; prints figures.
//!
//! Every client is a node of its own, as in a control plane: a change goes through the push engine to a thousand groups.
//! Latencies count from the report of a change, the engine's pause of 100 ms included.
//!
//! ```text
//! cargo bench -p mesh-xds --all-features --bench scale -- [CLIENTS] [CLUSTERS]
//! ```

use std::collections::BTreeSet;
use std::pin::Pin;
use std::process::{Child, Command};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use mesh_xds::client::{AdsClient, Names, Watch};
use mesh_xds::pb::envoy::config::cluster::v3::Cluster;
use mesh_xds::pb::envoy::config::cluster::v3::cluster::{ClusterDiscoveryType, DiscoveryType};
use mesh_xds::pb::envoy::config::core::v3::Node;
use mesh_xds::pb::envoy::config::endpoint::v3::{ClusterLoadAssignment, LocalityLbEndpoints};
use mesh_xds::pb::envoy::service::discovery::v3::DeltaDiscoveryRequest;
use mesh_xds::push::{Publisher, PushConfig, PushEngine, Scope};
use mesh_xds::server::{
    AdsServer, AllowAny, ClientInfo, DeltaStream, Nack, Observer, ServerConfig, Snapshot, SnapshotBuilder,
    SnapshotCache,
};
use mesh_xds::{Resource, TypeUrl};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_stream::{Stream, StreamExt as _};
use tonic::transport::server::Connected;

/// The allocator that `mesh-control` runs with: much is allocated while a thousand clients connect, little stays.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

type Error = Box<dyn std::error::Error + Send + Sync>;

const SETTLED: Duration = Duration::from_secs(15);
const PATIENCE: Duration = Duration::from_secs(600);

fn main() -> Result<(), Error> {
    let args: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["clients", uri, clients, clusters] => {
            runtime.block_on(clients_main(uri, clients.parse()?, clusters.parse()?))
        }
        _ => {
            let clients = args.first().map_or(Ok(1_000), |a| a.parse())?;
            let clusters = args.get(1).map_or(Ok(1_000), |a| a.parse())?;
            runtime.block_on(server_main(clients, clusters))
        }
    }
}

fn name(number: usize) -> String {
    format!("outbound|8080||service-{number:05}.default.svc.cluster.local")
}

fn cluster(number: usize, mark: &str) -> Cluster {
    let discovery = Some(ClusterDiscoveryType::Type(DiscoveryType::Eds as i32));
    Cluster {
        name: name(number),
        alt_stat_name: mark.into(),
        cluster_discovery_type: discovery,
        ..Default::default()
    }
}

fn endpoints(number: usize, mark: u32) -> ClusterLoadAssignment {
    let endpoints = vec![LocalityLbEndpoints { priority: mark, ..Default::default() }];
    ClusterLoadAssignment { cluster_name: name(number), endpoints, ..Default::default() }
}

fn mesh(clusters: usize) -> Result<SnapshotBuilder, Error> {
    let add = |b: SnapshotBuilder, n| Ok::<_, Error>(b.add(&cluster(n, "1"))?.add(&endpoints(n, 0))?);
    (0..clusters).try_fold(Snapshot::builder(), add)
}

/// What all clients are told, and who they are.
struct Fleet {
    cache: SnapshotCache,
    shared: Mutex<(Snapshot, BTreeSet<Arc<str>>)>,
}

impl Fleet {
    fn with<T>(&self, look: impl FnOnce(&mut (Snapshot, BTreeSet<Arc<str>>)) -> T) -> T {
        look(&mut self.shared.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Publisher for Fleet {
    type Event = Scope<(usize, u32)>;
    type Change = ();
    type Client = Arc<str>;

    async fn prepare(&self, event: Self::Event) -> Option<()> {
        let Scope::Endpoints(moved) = event else { return None };
        self.with(|(shared, _)| {
            let add = |b: SnapshotBuilder, (number, mark)| b.add(&endpoints(number, mark));
            *shared = moved.into_iter().try_fold(shared.edit(), add).ok()?.build();
            Some(())
        })
    }

    fn affected(&self, (): &()) -> Vec<Arc<str>> {
        self.with(|(_, clients)| clients.iter().cloned().collect())
    }

    async fn push(&self, client: Arc<str>, (): ()) {
        let snapshot = self.with(|(shared, _)| shared.clone());
        self.cache.set(&client, snapshot);
    }
}

/// Enters clients as they come.
struct Door(Arc<Fleet>, PushEngine<Fleet>);

impl Observer for Door {
    fn connected(&self, client: &ClientInfo) {
        self.0.with(|(_, clients)| clients.insert(client.group.clone()));
        self.1.push(client.group.clone(), ());
    }

    fn disconnected(&self, _: &ClientInfo) {}

    fn rejected(&self, client: &ClientInfo, type_url: &TypeUrl, nack: &Nack) {
        eprintln!("{}: {type_url:?}: {}", client.group, nack.message);
    }
}

async fn server_main(clients: usize, clusters: usize) -> Result<(), Error> {
    delta_of_ten_thousand()?;
    let shared = Mutex::new((mesh(clusters)?.build(), BTreeSet::new()));
    let fleet = Arc::new(Fleet { cache: SnapshotCache::new(), shared });
    let processors = std::thread::available_parallelism()?.get();
    let engine = PushEngine::start(PushConfig::default(), processors, fleet.clone());
    let written = Arc::new(AtomicU64::new(0));
    let (ads, port, task) = serve(&fleet, &engine, 0, written.clone()).await?;
    println!("resident memory, no clients: {} MiB", resident()? / 1024);
    let started = Instant::now();
    let mut child = Clients::start(port, clients, clusters)?;
    until(|| synced(&ads, clients, &TypeUrl::ENDPOINTS, 1)).await?;
    println!(
        "{clients} clients × {clusters} clusters and endpoints, all ACKed after {:?}",
        started.elapsed()
    );
    println!("resident memory: {} MiB", resident()? / 1024);

    let mut worst = Vec::new();
    let before = written.load(Ordering::Relaxed);
    const ROUNDS: u32 = 5;
    for round in 1..=ROUNDS {
        let sent: u64 =
            ads.clients().iter().filter_map(|c| c.types.get(&TypeUrl::ENDPOINTS)).map(|s| s.responses).sum();
        let changed = Instant::now();
        engine.changed(Scope::Endpoints(BTreeSet::from([(clusters / 2, round)])));
        until(|| {
            let status = ads.clients();
            let all = status.iter().filter_map(|c| c.types.get(&TypeUrl::ENDPOINTS));
            let (count, settled) =
                all.fold((0, true), |(n, ok), s| (n + s.responses, ok && s.nonce_sent == s.nonce_acked));
            settled && count >= sent + clients as u64
        })
        .await?;
        let mut latencies: Vec<Duration> = Vec::new();
        for status in ads.clients() {
            let Some(at) = status.types.get(&TypeUrl::ENDPOINTS).and_then(|s| s.acked_at) else { continue };
            let ago = status.client.connected_for().saturating_sub(at);
            latencies.push(changed.elapsed().saturating_sub(ago));
        }
        latencies.sort();
        worst.push((latencies[latencies.len() / 2], latencies[latencies.len() * 99 / 100]));
    }
    let bytes = (written.load(Ordering::Relaxed) - before) / u64::from(ROUNDS) / clients as u64;
    for (p50, p99) in worst {
        println!("one endpoint changes: ACK of every client p50 {p50:?}, p99 {p99:?}");
    }
    println!("bytes written per client and change: {bytes}");

    // The server is gone and comes back with the same content.
    ads.shut_down();
    task.abort();
    let _ = task.await;
    let started = Instant::now();
    let before = written.load(Ordering::Relaxed);
    let (ads, ..) = serve(&fleet, &engine, port, written.clone()).await?;
    until(|| {
        let status = ads.clients();
        status.len() == clients && status.iter().all(|c| c.types.contains_key(&TypeUrl::ENDPOINTS))
    })
    .await?;
    let reconnected = started.elapsed();
    let said: u64 = ads.clients().iter().flat_map(|c| c.types.values()).map(|s| s.responses).sum();
    let bytes = (written.load(Ordering::Relaxed) - before) / clients as u64;
    println!(
        "{clients} clients came back within {reconnected:?}; {said} responses, {bytes} bytes written per client"
    );
    println!("resident memory: {} MiB", resident()? / 1024);
    // What the storm needed and the allocator gives back within ten seconds.
    tokio::time::sleep(SETTLED).await;
    println!("resident memory, {SETTLED:?} later: {} MiB", resident()? / 1024);
    child.0.kill()?;
    Ok(())
}

/// A snapshot of 10,000 that differs in one, on one stream.
fn delta_of_ten_thousand() -> Result<(), Error> {
    let before = mesh(10_000)?.build();
    let after = Arc::new(before.edit().add(&cluster(4_711, "2"))?.build());
    let mut stream = DeltaStream::new(Arc::default());
    stream.on_snapshot(Arc::new(before));
    let type_url = TypeUrl::CLUSTER.to_string();
    stream.on_request(Duration::ZERO, DeltaDiscoveryRequest { type_url, ..Default::default() })?;
    while stream.next_response(Duration::ZERO).is_some() {}
    let started = Instant::now();
    stream.on_snapshot(after);
    let found = stream.next_response(Duration::ZERO).map_or(0, |r| r.resources.len());
    println!("one of 10,000 changed: {found} resource found in {:?}", started.elapsed());
    Ok(())
}

fn synced(ads: &AdsServer, clients: usize, type_url: &TypeUrl, responses: u64) -> bool {
    let status = ads.clients();
    let done = status.iter().filter_map(|c| c.types.get(type_url));
    done.filter(|s| s.responses >= responses && s.nonce_sent == s.nonce_acked).count() == clients
}

async fn until(mut check: impl FnMut() -> bool) -> Result<(), Error> {
    let deadline = Instant::now() + PATIENCE;
    while !check() {
        if Instant::now() > deadline {
            return Err("not in time".into());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

fn resident() -> Result<u64, Error> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).ok_or("no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

type Task = tokio::task::JoinHandle<Result<(), tonic::transport::Error>>;

async fn serve(
    fleet: &Arc<Fleet>,
    engine: &PushEngine<Fleet>,
    port: u16,
    written: Arc<AtomicU64>,
) -> Result<(AdsServer, u16, Task), Error> {
    let door = Door(fleet.clone(), engine.clone());
    let ads = AdsServer::with_observer(fleet.cache.clone(), AllowAny, ServerConfig::default(), door);
    let listener = TcpListener::bind(("127.0.0.1", port)).await?;
    let port = listener.local_addr()?.port();
    let incoming = counted(listener, written);
    let server = tonic::transport::Server::builder().add_routes(ads.routes());
    Ok((ads, port, tokio::spawn(server.serve_with_incoming(incoming))))
}

fn counted(listener: TcpListener, written: Arc<AtomicU64>) -> impl Stream<Item = std::io::Result<Counted>> {
    tokio_stream::wrappers::TcpListenerStream::new(listener)
        .map(move |s| s.map(|s| Counted(s, written.clone())))
}

/// A connection whose written bytes are counted.
struct Counted(TcpStream, Arc<AtomicU64>);

impl Connected for Counted {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl AsyncRead for Counted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Counted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        let written = Pin::new(&mut self.0).poll_write(cx, buf);
        if let Poll::Ready(Ok(n)) = &written {
            self.1.fetch_add(*n as u64, Ordering::Relaxed);
        }
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

/// The process with the clients.
struct Clients(Child);

impl Clients {
    fn start(port: u16, clients: usize, clusters: usize) -> Result<Self, Error> {
        let uri = format!("http://127.0.0.1:{port}");
        let args = ["clients", &uri, &clients.to_string(), &clusters.to_string()];
        Ok(Self(Command::new(std::env::current_exe()?).args(args).spawn()?))
    }
}

impl Drop for Clients {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

async fn clients_main(uri: &str, clients: usize, clusters: usize) -> Result<(), Error> {
    let mut watches = JoinSet::new();
    for number in 0..clients {
        let node = Node { id: format!("client-{number}"), ..Default::default() };
        let client = AdsClient::builder(node).server(uri).start()?;
        watches.spawn(follow(client.watch::<Cluster>(Names::all())));
        watches.spawn(follow(client.watch::<ClusterLoadAssignment>(Names::of((0..clusters).map(name)))));
    }
    while watches.join_next().await.is_some() {}
    Ok(())
}

/// Accepts whatever comes.
async fn follow<T: Resource>(mut watch: Watch<T>) {
    while let Some(update) = watch.next().await {
        update.accept();
    }
}
