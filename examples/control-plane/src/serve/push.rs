//! From a change on disk to those whom it concerns: `mesh_xds::push` waits for a pause, this module indexes the mesh, finds
//! what the change means and for whom, and puts snapshots.

mod clients;

pub(crate) use clients::MeshSource;

use std::sync::Arc;

use mesh_xds::TypeUrl;
use mesh_xds::pb::envoy::config::core::v3::Node;
use mesh_xds::push::{Publisher, PushConfig, PushEngine};
use mesh_xds::server::{ClientInfo, Nack, Observer, SnapshotCache};
use tokio::sync::watch;
use tokio::time::Instant;

use super::monitor::Metrics;
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

impl Publisher for Translator {
    type Event = ();
    type Change = Change;
    /// Every node is a group of its own; nodes that are alike share what their snapshots are made of.
    type Client = Arc<str>;

    async fn prepare(&self, (): ()) -> Option<Change> {
        let started = Instant::now();
        let state = Arc::clone(&self.state.borrow());
        let (settings, before) = (self.settings.clone(), self.source.snapshots());
        let (next, change) = blocking(move || before.next(Arc::new(Mesh::build(&state, settings)))).await;
        self.publish.send_replace(Arc::new(next));
        self.metrics.prepared(kind(change.as_ref()), started.elapsed());
        change
    }

    fn affected(&self, change: &Change) -> Vec<Arc<str>> {
        let affected = self.source.affected(change);
        tracing::info!(kind = kind(Some(change)), clients = affected.len(), "pushing");
        affected
    }

    async fn push(&self, group: Arc<str>, change: Change) {
        let started = Instant::now();
        let Some((node, before)) = self.source.client(&group) else {
            self.cache.clear(&group);
            return;
        };
        let snapshots = self.source.snapshots();
        let proxy = node.proxy(snapshots.mesh());
        let moved = before.as_ref().and_then(|told| snapshots.with_moved_endpoints(told, &proxy, &change));
        let told = match moved {
            Some(told) => told,
            None => {
                let snapshots = Arc::clone(&snapshots);
                blocking(move || snapshots.of(&proxy, before.as_ref())).await
            }
        };
        self.cache.set(&group, told.snapshot().clone());
        self.source.told(&group, told, snapshots.generation());
        self.metrics.pushed(started.elapsed());
    }
}

fn kind(change: Option<&Change>) -> &'static str {
    match change {
        None => "nothing",
        Some(Change::Endpoints(_)) => "endpoints",
        Some(Change::Some(_)) => "partial",
        Some(Change::All) => "full",
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
        self.engine.push(Arc::clone(group), Change::All);
    }

    fn left(&self, group: &Arc<str>) {
        if self.source.left(group) {
            // In turn after what may be under way for it: then nothing of it stays in the cache.
            self.engine.push(Arc::clone(group), Change::All);
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

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

#[cfg(test)]
mod tests;
