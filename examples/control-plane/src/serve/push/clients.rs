//! The sidecars that are connected, and what each was told.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mesh_xds::pb::envoy::config::core::v3::Node;
use tokio::sync::watch;

use crate::model::{Change, Mesh};
use crate::serve::node::NodeInfo;
use crate::snapshot::{Snapshots, Told};
use crate::translate::Proxy;

/// The newest mesh, and the nodes to translate it for. Clones share.
#[derive(Clone)]
pub(crate) struct MeshSource {
    snapshots: watch::Receiver<Arc<Snapshots>>,
    clients: Arc<Mutex<HashMap<Arc<str>, Client>>>,
}

/// A node, how many streams it has, and what it was told.
#[derive(Debug, Clone)]
struct Client {
    node: NodeInfo,
    streams: usize,
    told: Option<Told>,
    /// The newest generation of which `told` is true.
    generation: u64,
}

impl Client {
    fn new(node: NodeInfo, streams: usize) -> Self {
        Self { node, streams, told: None, generation: 0 }
    }
}

impl MeshSource {
    pub(super) fn new(snapshots: watch::Receiver<Arc<Snapshots>>) -> Self {
        Self { snapshots, clients: Arc::default() }
    }

    pub(crate) fn current(&self) -> Arc<Mesh> {
        Arc::clone(self.snapshots.borrow().mesh())
    }

    pub(crate) fn follow(&self) -> watch::Receiver<Arc<Snapshots>> {
        self.snapshots.clone()
    }

    pub(super) fn snapshots(&self) -> Arc<Snapshots> {
        Arc::clone(&self.snapshots.borrow())
    }

    /// Takes a node in; returns its group.
    pub(in crate::serve) fn register(&self, node: NodeInfo) -> String {
        let id = node.id.clone();
        let mut clients = self.lock();
        match clients.get_mut(id.as_str()) {
            Some(known) => known.node = node,
            None => {
                clients.insert(Arc::from(id.as_str()), Client::new(node, 0));
            }
        }
        id
    }

    /// A stream of a node that [`register`](Self::register) took in has begun. Its node may have been forgotten meanwhile:
    /// the end of its previous stream can be noticed between the two.
    pub(super) fn joined(&self, group: &str, node: &Node) {
        let mut clients = self.lock();
        match clients.get_mut(group) {
            Some(known) => known.streams += 1,
            None => {
                if let Ok(node) = NodeInfo::parse(node) {
                    clients.insert(Arc::from(group), Client::new(node, 1));
                }
            }
        }
    }

    /// A stream has ended; with its last one a node is forgotten, and the answer is yes.
    pub(super) fn left(&self, group: &str) -> bool {
        let mut clients = self.lock();
        let Some(known) = clients.get_mut(group) else { return false };
        known.streams = known.streams.saturating_sub(1);
        known.streams == 0 && clients.remove(group).is_some()
    }

    /// A node and what it was told; `None` once it is forgotten.
    pub(super) fn client(&self, group: &str) -> Option<(NodeInfo, Option<Told>)> {
        self.lock().get(group).map(|client| (client.node.clone(), client.told.clone()))
    }

    /// Remembers what a node was told, of which generation. No, if it was taken for up to date with a newer one meanwhile,
    /// because of what it had been told before.
    pub(super) fn told(&self, group: &str, told: Told, generation: u64) -> bool {
        let mut clients = self.lock();
        let Some(client) = clients.get_mut(group) else { return true };
        client.told = Some(told);
        let newest = client.generation <= generation;
        client.generation = generation;
        newest
    }

    /// Whom the change to the newest generation concerns. Whoever it does not concern is up to date with that.
    pub(super) fn affected(&self, change: &Change) -> Vec<Arc<str>> {
        let snapshots = self.snapshots();
        let newest = snapshots.generation();
        let untouched = |client: &Client| {
            let Some(told) = &client.told else { return false };
            // Who missed an older change as well is waiting for a push, or in the middle of one.
            let follows = client.generation + 1 == newest;
            client.generation >= newest
                || (follows && !snapshots.is_concerned(told, &client.node.proxy(snapshots.mesh()), change))
        };
        let mut affected = Vec::new();
        for (group, client) in self.lock().iter_mut() {
            if untouched(client) {
                client.generation = client.generation.max(newest);
            } else {
                affected.push(group.clone());
            }
        }
        affected
    }

    /// The proxy behind a node id, for debugging pages.
    pub(crate) fn proxy(&self, id: &str) -> Option<Proxy> {
        let mesh = self.current();
        self.lock().get(id).map(|client| client.node.proxy(&mesh))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Arc<str>, Client>> {
        // Nothing panics while it holds one of these.
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for MeshSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MeshSource").field("nodes", &self.lock().len()).finish_non_exhaustive()
    }
}
