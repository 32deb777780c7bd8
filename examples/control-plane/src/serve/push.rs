//! From a change on disk to every client: debounce, rebuild the mesh, translate once per view, put snapshots.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mesh_xds::TypeUrl;
use mesh_xds::pb::envoy::config::core::v3::Node;
use mesh_xds::push::{Debounce, PushConfig};
use mesh_xds::server::{ClientInfo, Nack, Observer, SnapshotCache};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::monitor::Metrics;
use super::node::NodeInfo;
use crate::model::{Mesh, MeshSettings};
use crate::snapshot::Snapshots;
use crate::store::State;

/// The newest mesh, and the list of nodes to translate for. Clones share.
#[derive(Clone)]
pub(crate) struct MeshSource {
    mesh: watch::Receiver<Arc<Mesh>>,
    nodes: Arc<Mutex<HashMap<String, Client>>>,
    wanted: mpsc::UnboundedSender<String>,
}

/// A node, and how many streams it has.
#[derive(Debug, Clone)]
struct Client {
    node: NodeInfo,
    streams: usize,
}

impl MeshSource {
    pub(crate) fn current(&self) -> Arc<Mesh> {
        Arc::clone(&self.mesh.borrow())
    }

    pub(crate) fn follow(&self) -> watch::Receiver<Arc<Mesh>> {
        self.mesh.clone()
    }

    /// Takes a node in; returns its group.
    pub(super) fn register(&self, node: NodeInfo) -> String {
        let id = node.id.clone();
        let mut nodes = lock(&self.nodes);
        let streams = nodes.get(&id).map_or(0, |client| client.streams);
        nodes.insert(id.clone(), Client { node, streams });
        id
    }

    /// A stream of a node that [`register`](Self::register) took in has begun. Its node may have been forgotten meanwhile:
    /// the end of its previous stream can be noticed between the two.
    fn joined(&self, group: &str, node: &Node) {
        let mut nodes = lock(&self.nodes);
        match nodes.get_mut(group) {
            Some(known) => known.streams += 1,
            None => {
                if let Ok(node) = NodeInfo::parse(node) {
                    nodes.insert(group.to_owned(), Client { node, streams: 1 });
                }
            }
        }
        drop(nodes);
        // The receiver is gone only when the process ends.
        let _ = self.wanted.send(group.to_owned());
    }

    /// A stream has ended; with its last one a node is forgotten.
    fn left(&self, group: &str) {
        let mut nodes = lock(&self.nodes);
        if let Some(known) = nodes.get_mut(group) {
            known.streams = known.streams.saturating_sub(1);
            if known.streams == 0 {
                nodes.remove(group);
                drop(nodes);
                let _ = self.wanted.send(group.to_owned());
            }
        }
    }

    /// The proxy behind a node id, for debugging pages.
    pub(crate) fn proxy(&self, id: &str) -> Option<crate::translate::Proxy> {
        let mesh = self.current();
        lock(&self.nodes).get(id).map(|client| client.node.proxy(&mesh))
    }
}

impl fmt::Debug for MeshSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MeshSource").field("nodes", &lock(&self.nodes).len()).finish_non_exhaustive()
    }
}

/// Hears of clients coming and going.
#[derive(Debug, Clone)]
pub(crate) struct Watcher {
    source: MeshSource,
    metrics: Metrics,
}

impl Observer for Watcher {
    fn connected(&self, client: &ClientInfo) {
        self.metrics.connections.inc();
        self.source.joined(&client.group, &client.node);
    }

    fn disconnected(&self, client: &ClientInfo) {
        self.metrics.connections.dec();
        self.source.left(&client.group);
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

/// The task that pushes.
pub(crate) struct Pusher {
    state: watch::Receiver<Arc<State>>,
    settings: MeshSettings,
    cache: SnapshotCache,
    source: MeshSource,
    publish: watch::Sender<Arc<Mesh>>,
    wanted: mpsc::UnboundedReceiver<String>,
    snapshots: Snapshots,
    metrics: Metrics,
}

impl Pusher {
    /// Translates nothing yet, but indexes the first state, so that the mesh is there from the start.
    pub(crate) fn new(
        mut state: watch::Receiver<Arc<State>>,
        settings: MeshSettings,
        cache: SnapshotCache,
        metrics: Metrics,
    ) -> (Self, MeshSource, Watcher) {
        let first = Arc::new(Mesh::build(&state.borrow_and_update(), settings.clone()));
        let (publish, mesh) = watch::channel(Arc::clone(&first));
        let (sender, wanted) = mpsc::unbounded_channel();
        let source = MeshSource { mesh, nodes: Arc::default(), wanted: sender };
        let watcher = Watcher { source: source.clone(), metrics: metrics.clone() };
        let snapshots = Snapshots::new(first);
        let this =
            Self { state, settings, cache, source: source.clone(), publish, wanted, snapshots, metrics };
        (this, source, watcher)
    }

    pub(crate) async fn run(mut self) {
        loop {
            tokio::select! {
                changed = self.state.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    self.settle().await;
                    self.push_all().await;
                }
                group = self.wanted.recv() => match group {
                    Some(group) => self.serve(group).await,
                    None => return,
                },
            }
        }
    }

    /// Waits until changes stop for a moment. New clients are served meanwhile.
    async fn settle(&mut self) {
        let mut changes = Debounce::new(PushConfig::default());
        changes.add((), Instant::now());
        while let Some(due) = changes.due() {
            tokio::select! {
                () = tokio::time::sleep_until(due) => {
                    changes.take(Instant::now());
                }
                changed = self.state.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    changes.add((), Instant::now());
                }
                Some(group) = self.wanted.recv() => self.serve(group).await,
            }
        }
    }

    async fn push_all(&mut self) {
        let started = Instant::now();
        let state = Arc::clone(&self.state.borrow_and_update());
        let settings = self.settings.clone();
        let mut snapshots = std::mem::take(&mut self.snapshots);
        let nodes: Vec<(String, NodeInfo)> =
            lock(&self.source.nodes).iter().map(|(id, client)| (id.clone(), client.node.clone())).collect();
        let clients = nodes.len();
        let work = move || {
            let mesh = Arc::new(Mesh::build(&state, settings));
            let kind = snapshots.renew(Arc::clone(&mesh));
            let all: Vec<_> =
                nodes.into_iter().map(|(group, node)| (group, snapshots.of(&node.proxy(&mesh)))).collect();
            (snapshots, mesh, all, kind)
        };
        let (snapshots, mesh, all, kind) = blocking(work).await;
        self.snapshots = snapshots;
        self.publish.send_replace(mesh);
        for (group, snapshot) in all {
            self.cache.set(&group, snapshot);
        }
        self.metrics.pushed(kind.as_str(), started.elapsed());
        let took_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
        tracing::info!(kind = kind.as_str(), clients, took_ms, "pushed");
    }

    /// Gives one group its snapshot, or forgets it when its last stream is gone.
    async fn serve(&mut self, group: String) {
        let node = lock(&self.source.nodes).get(&group).map(|client| client.node.clone());
        let Some(node) = node else {
            self.cache.clear(&group);
            return;
        };
        let mut snapshots = std::mem::take(&mut self.snapshots);
        let (snapshots, snapshot) = blocking(move || {
            let proxy = node.proxy(snapshots.mesh());
            let snapshot = snapshots.of(&proxy);
            (snapshots, snapshot)
        })
        .await;
        self.snapshots = snapshots;
        self.cache.set(&group, snapshot);
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing panics while it holds one of these.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn a_node_that_comes_back_while_its_old_stream_ends_is_served() {
        let (_state, states) = watch::channel(Arc::default());
        let cache = SnapshotCache::new();
        let (pusher, source, _) =
            Pusher::new(states, MeshSettings::default(), cache.clone(), Metrics::default());
        let node = Node { id: "sidecar~10.0.0.9~client.shop~x".to_owned(), ..Node::default() };
        let enter = || source.register(NodeInfo::parse(&node).expect("a node"));
        let group = enter();
        source.joined(&group, &node);
        // The new stream is let in, then the old one's end is noticed, then the new one begins.
        enter();
        source.left(&group);
        source.joined(&group, &node);
        tokio::spawn(pusher.run());
        let served = async {
            while cache.get(&group).is_none() || source.proxy(&group).is_none() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), served).await.expect("a snapshot");
        source.left(&group);
        let forgotten = async {
            while cache.get(&group).is_some() || source.proxy(&group).is_some() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), forgotten)
            .await
            .expect("forgotten with its last stream");
    }
}
