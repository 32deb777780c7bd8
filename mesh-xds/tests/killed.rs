//! The server's process is killed under load: clients keep what they have, come back, and are sent nothing that they know.

#[path = "support/server_process.rs"]
mod server_process;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use libtest_mimic::{Arguments, Failed, Trial};
use mesh_xds::client::{AdsClient, Names, Protocol, ResourceStatus, Watch};
use mesh_xds::pb::envoy::config::cluster::v3::Cluster;
use mesh_xds::pb::envoy::config::cluster::v3::cluster::{ClusterDiscoveryType, DiscoveryType};
use mesh_xds::pb::envoy::config::core::v3::Node;
use mesh_xds::pb::envoy::config::endpoint::v3::{ClusterLoadAssignment, LocalityLbEndpoints};
use mesh_xds::server::Snapshot;
use mesh_xds::{Resource, TypeUrl};
use tokio::time::{Instant, sleep};

use server_process::{Counts, ServerProcess, quiet_port, run_if_child};

const DELTA_CLIENTS: usize = 100;
const SOTW_CLIENTS: usize = 20;
const CLIENTS: usize = DELTA_CLIENTS + SOTW_CLIENTS;
/// Clusters, each with endpoints of its name.
const CLUSTERS: u64 = 50;
const PATIENCE: Duration = Duration::from_secs(120);

fn main() {
    run_if_child(|round, _| content(round));
    let trial = Trial::test("clients_outlive_a_killed_server", || {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()?
            .block_on(outlive())
    });
    libtest_mimic::run(&Arguments::from_args(), vec![trial]).exit();
}

/// The endpoints of one cluster in a round: each round changes those of one cluster.
fn mark(number: u64, round: u64) -> u32 {
    let rounds = (round + CLUSTERS - 1 - number) / CLUSTERS;
    u32::try_from(rounds).unwrap_or(u32::MAX)
}

fn content(round: u64) -> Snapshot {
    let add = |builder: mesh_xds::server::SnapshotBuilder, number: u64| {
        let name = name(number);
        let eds = Some(ClusterDiscoveryType::Type(DiscoveryType::Eds as i32));
        let cluster = Cluster { name: name.clone(), cluster_discovery_type: eds, ..Default::default() };
        let locality = LocalityLbEndpoints { priority: mark(number, round), ..Default::default() };
        let endpoints =
            ClusterLoadAssignment { cluster_name: name, endpoints: vec![locality], ..Default::default() };
        builder.add(&cluster).and_then(|b| b.add(&endpoints)).expect("both have names")
    };
    (0..CLUSTERS).fold(Snapshot::builder(), add).build()
}

fn name(number: u64) -> String {
    format!("service-{number}")
}

/// What one client has, as its consumer knows it.
#[derive(Debug, Default)]
struct Has {
    clusters: BTreeMap<String, Vec<u8>>,
    endpoints: BTreeMap<String, u32>,
    /// How often it was sent something that it had.
    repeated: usize,
    /// How often anything came.
    received: usize,
    /// How often something was said to be gone. Nothing ever is.
    removed: usize,
}

impl Has {
    /// Whether it has everything there was in a round.
    fn is_at(&self, round: u64) -> bool {
        let up_to_date = |number| self.endpoints.get(&name(number)) == Some(&mark(number, round));
        self.clusters.len() as u64 == CLUSTERS && (0..CLUSTERS).all(up_to_date)
    }
}

struct Follower {
    client: AdsClient,
    protocol: Protocol,
    has: Arc<Mutex<Has>>,
}

impl Follower {
    fn start(number: usize, port: u16) -> Result<Self, Failed> {
        let protocol = if number < DELTA_CLIENTS { Protocol::Delta } else { Protocol::Sotw };
        let node = Node { id: format!("client-{number}"), ..Default::default() };
        let client = AdsClient::builder(node)
            .server(format!("http://127.0.0.1:{port}"))
            .protocol(protocol)
            .seed(number as u64)
            .start()?;
        let has = Arc::new(Mutex::new(Has::default()));
        let keep = |has: &mut Has, cluster: &Cluster| {
            has.clusters.insert(cluster.name.clone(), cluster.to_any().value) == Some(cluster.to_any().value)
        };
        tokio::spawn(follow(client.watch(Names::all()), has.clone(), keep));
        let keep = |has: &mut Has, endpoints: &ClusterLoadAssignment| {
            let mark = endpoints.endpoints.first().map_or(0, |locality| locality.priority);
            has.endpoints.insert(endpoints.cluster_name.clone(), mark) == Some(mark)
        };
        tokio::spawn(follow(client.watch(Names::of((0..CLUSTERS).map(name))), has.clone(), keep));
        Ok(Self { client, protocol, has })
    }

    fn has(&self) -> MutexGuard<'_, Has> {
        self.has.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_delta(&self) -> bool {
        self.protocol == Protocol::Delta
    }
}

/// Takes whatever comes; `keep` says whether it was there already.
async fn follow<T: Resource>(mut watch: Watch<T>, has: Arc<Mutex<Has>>, keep: fn(&mut Has, &T) -> bool) {
    while let Some(update) = watch.next().await {
        {
            let mut has = has.lock().unwrap_or_else(PoisonError::into_inner);
            for upsert in &update.upserts {
                has.received += 1;
                has.repeated += usize::from(keep(&mut has, &upsert.resource));
            }
            has.removed += update.removed.len();
        }
        update.accept();
    }
}

async fn until(what: &str, mut check: impl FnMut() -> Result<bool, Failed>) -> Result<(), Failed> {
    let deadline = Instant::now() + PATIENCE;
    while !check()? {
        if Instant::now() > deadline {
            return Err(format!("{what}: not within {PATIENCE:?}").into());
        }
        sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

fn ensure(holds: bool, what: impl FnOnce() -> String) -> Result<(), Failed> {
    if holds { Ok(()) } else { Err(what().into()) }
}

async fn outlive() -> Result<(), Failed> {
    let port = quiet_port()?;
    let mut server = ServerProcess::start(port, 0, "-")?;
    let followers = (0..CLIENTS).map(|n| Follower::start(n, port)).collect::<Result<Vec<_>, _>>()?;
    until("everybody has everything", || Ok(followers.iter().all(|f| f.has().is_at(0)))).await?;

    // Changes as fast as they can be said, and SIGKILL in the middle of them.
    let mut round = 0;
    let busy = Instant::now() + Duration::from_secs(2);
    while Instant::now() < busy {
        round += 1;
        server.set(round)?;
        sleep(Duration::from_millis(2)).await;
    }
    let under_load: usize = followers.iter().map(|f| f.has().received).sum();
    server.kill()?;
    until("everybody notices", || Ok(followers.iter().all(|f| !f.client.connection().borrow().connected)))
        .await?;
    for follower in &followers {
        let has = follower.has();
        ensure(has.removed == 0 && has.clusters.len() as u64 == CLUSTERS, || format!("lost: {has:?}"))?;
    }
    for follower in &followers {
        let known = follower.client.resources().await?;
        let acked =
            |t| known.get(&t).into_iter().flatten().filter(|(_, r)| r.status == ResourceStatus::Acked);
        let count = acked(TypeUrl::CLUSTER).count() + acked(TypeUrl::ENDPOINTS).count();
        ensure(count as u64 == 2 * CLUSTERS, || format!("{count} resources are in use"))?;
    }

    // Seven services moved while it was away. Whoever comes back hears of those, and of what it had missed; no more.
    followers.iter().for_each(|f| f.has().repeated = 0);
    round += 7;
    let mut server = ServerProcess::start(port, round, "-")?;
    until("everybody follows again", || Ok(followers.iter().all(|f| f.has().is_at(round)))).await?;
    until("everybody has answered", || Ok(all_asked(server.counts()?))).await?;
    let counts = server.counts()?;
    let repeated: usize = followers.iter().filter(|f| f.is_delta()).map(|f| f.has().repeated).sum();
    ensure(repeated == 0, || format!("{repeated} resources were sent again: {counts:?}"))?;
    ensure(counts.delta_responses == DELTA_CLIENTS as u64, || format!("one response each: {counts:?}"))?;

    // Killed again at rest: the next one has nothing to say at all.
    server.kill()?;
    until("everybody notices", || Ok(followers.iter().all(|f| !f.client.connection().borrow().connected)))
        .await?;
    let before: usize = followers.iter().filter(|f| f.is_delta()).map(|f| f.has().received).sum();
    let mut server = ServerProcess::start(port, round, "-")?;
    until("everybody is back", || Ok(all_asked(server.counts()?))).await?;
    until("silence counts as a good connection", || {
        Ok(followers.iter().all(|f| f.client.connection().borrow().connected))
    })
    .await?;
    let counts = server.counts()?;
    let after: usize = followers.iter().filter(|f| f.is_delta()).map(|f| f.has().received).sum();
    ensure(counts.delta_responses == 0 && after == before, || format!("{counts:?}, {}", after - before))?;
    println!("{round} rounds, {under_load} resources received under load, {CLIENTS} clients, 2 kills");
    Ok(())
}

/// Whether every client has asked for both types and has answered what it was sent.
fn all_asked(counts: Counts) -> bool {
    counts.clients == CLIENTS && counts.asked == 2 * CLIENTS && counts.synced == counts.asked
}
