//! From a change on disk to those whom it concerns: `mesh_xds::push` waits for a pause, this module indexes the mesh, finds
//! what the change means and for whom, and puts snapshots.

mod clients;

pub(crate) use clients::MeshSource;

use std::sync::Arc;

use mesh_xds::TypeUrl;
use mesh_xds::pb::envoy::config::core::v3::Node;
use mesh_xds::push::{Merge, Publisher, PushConfig, PushEngine};
use mesh_xds::server::{ClientInfo, Nack, Observer, Snapshot, SnapshotCache};
use tokio::sync::watch;
use tokio::time::Instant;

use super::monitor::Metrics;
use crate::blocking::blocking;
use crate::model::{Change, Mesh, MeshSettings};
use crate::snapshot::Snapshots;
use crate::store::State;

/// The engine of a control plane.
pub(crate) type Engine = PushEngine<Translator>;

/// Starts pushing: what is there already is indexed before this returns, so that the mesh is there from the start.
pub(crate) fn start(
    mut state: watch::Receiver<Arc<State>>,
    settings: MeshSettings,
    cache: SnapshotCache,
    metrics: Metrics,
) -> (Engine, MeshSource, Watcher) {
    let mesh = Arc::new(Mesh::build(&state.borrow_and_update(), settings.clone()));
    let (publish, snapshots) = watch::channel(Arc::new(Snapshots::new(mesh)));
    let source = MeshSource::new(snapshots);
    let translator =
        Translator { state, settings, cache, source: source.clone(), publish, metrics: metrics.clone() };
    let concurrency = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let engine = PushEngine::start(PushConfig::default(), concurrency, Arc::new(translator));
    let watcher = Watcher { engine: engine.clone(), source: source.clone(), metrics };
    (engine, source, watcher)
}

/// Tells the engine of every new state, until there will be none.
pub(crate) async fn follow(mut state: watch::Receiver<Arc<State>>, engine: Engine) {
    while state.changed().await.is_ok() {
        engine.changed(());
    }
}

/// What the engine does for the mesh.
pub(crate) struct Translator {
    state: watch::Receiver<Arc<State>>,
    settings: MeshSettings,
    cache: SnapshotCache,
    source: MeshSource,
    publish: watch::Sender<Arc<Snapshots>>,
    metrics: Metrics,
}

/// What changed, up to which generation.
#[derive(Debug, Clone)]
pub(crate) struct Batch {
    change: Change,
    generation: u64,
}

impl Batch {
    /// Everything, of whatever generation it is.
    fn all() -> Self {
        Self { change: Change::All, generation: 0 }
    }
}

impl Merge for Batch {
    fn merge(&mut self, newer: Self) {
        self.change.merge(newer.change);
        self.generation = self.generation.max(newer.generation);
    }
}

impl Publisher for Translator {
    type Event = ();
    type Change = Batch;
    /// Every node is a group of its own; nodes that are alike share what their snapshots are made of.
    type Client = Arc<str>;

    async fn prepare(&self, (): ()) -> Option<Batch> {
        let started = Instant::now();
        let state = Arc::clone(&self.state.borrow());
        let (settings, before) = (self.settings.clone(), self.source.snapshots());
        let (next, change) = blocking(move || before.next(Arc::new(Mesh::build(&state, settings)))).await;
        let generation = next.generation();
        self.publish.send_replace(Arc::new(next));
        self.metrics.prepared(change.as_ref().map(kind), started.elapsed());
        change.map(|change| Batch { change, generation })
    }

    fn affected(&self, batch: &Batch) -> Vec<Arc<str>> {
        let affected = self.source.affected(&batch.change);
        tracing::info!(kind = kind(&batch.change), clients = affected.len(), "pushing");
        affected
    }

    async fn push(&self, group: Arc<str>, mut batch: Batch) {
        let started = Instant::now();
        loop {
            let snapshots = self.source.snapshots();
            let Some((node, before)) = self.source.client(&group) else {
                self.cache.clear(&group);
                snapshots.forget_unused();
                return;
            };
            let proxy = node.proxy(snapshots.mesh());
            // A newer generation may be there already of which this batch does not know: then nothing is taken for granted.
            let short = before.as_ref().filter(|_| batch.generation == snapshots.generation());
            let moved = short.and_then(|told| snapshots.with_moved_endpoints(told, &proxy, &batch.change));
            let told = match moved {
                Some(told) => told,
                None => {
                    let snapshots = Arc::clone(&snapshots);
                    blocking(move || snapshots.of(&proxy, before.as_ref())).await
                }
            };
            let held = self.cache.set(&group, told.snapshot().clone());
            if self.source.told(&group, told.held_as(Snapshot::clone(&held)), snapshots.generation()) {
                break;
            }
            // Meanwhile somebody found that a newer generation does not concern what it had been told before.
            batch = Batch::all();
        }
        self.metrics.pushed(started.elapsed());
    }
}

fn kind(change: &Change) -> &'static str {
    match change {
        Change::Endpoints(_) => "endpoints",
        Change::Some(_) => "partial",
        Change::All => "full",
    }
}

/// Hears of clients coming and going.
#[derive(Debug, Clone)]
pub(crate) struct Watcher {
    engine: Engine,
    source: MeshSource,
    metrics: Metrics,
}

impl Watcher {
    fn joined(&self, group: &Arc<str>, node: &Node) {
        self.source.joined(group, node);
        self.engine.push(Arc::clone(group), Batch::all());
    }

    fn left(&self, group: &Arc<str>) {
        if self.source.left(group) {
            // In turn after what may be under way for it: then nothing of it stays in the cache.
            self.engine.push(Arc::clone(group), Batch::all());
        }
    }
}

impl Observer for Watcher {
    fn connected(&self, client: &ClientInfo) {
        self.metrics.connections.inc();
        self.joined(&client.group, &client.node);
    }

    fn disconnected(&self, client: &ClientInfo) {
        self.metrics.connections.dec();
        self.left(&client.group);
    }

    fn rejected(&self, client: &ClientInfo, type_url: &TypeUrl, nack: &Nack) {
        self.metrics.rejected(type_url.short());
        tracing::warn!(
            node = client.node.id,
            kind = type_url.short(),
            message = nack.message,
            "configuration rejected"
        );
    }
}

#[cfg(test)]
mod tests;
