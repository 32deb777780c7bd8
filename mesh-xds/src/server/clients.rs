//! The connected clients, as data.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use crate::pb::envoy::config::core::v3::Node;
use crate::resource::TypeUrl;

use super::status::{Nack, TypeStatus};
use super::stream::ServerStream;

/// One connected client.
#[derive(Debug, Clone)]
pub struct ClientInfo {
    /// Unique within the server's lifetime. Two streams of one node, as during a reconnect, are two clients.
    pub id: u64,
    /// The node of the first request.
    pub node: Arc<Node>,
    /// The group whose snapshots it receives.
    pub group: Arc<str>,
    /// Who the authorizer says it is.
    pub identity: String,
    /// Whether the stream is Delta.
    pub delta: bool,
    /// When the stream was authorized, wall clock.
    pub connected_at: SystemTime,
    pub(super) started: tokio::time::Instant,
}

impl ClientInfo {
    /// How long the client is connected. Times in [`TypeStatus`] count from the same moment.
    #[must_use]
    pub fn connected_for(&self) -> Duration {
        self.started.elapsed()
    }
}

/// One connected client and how far it is with every type it asked for.
#[derive(Debug, Clone)]
pub struct ClientStatus {
    /// Who it is.
    pub client: Arc<ClientInfo>,
    /// What it has.
    pub types: BTreeMap<TypeUrl, TypeStatus>,
}

/// Is told what happens to clients. Every method has an empty default and must not block.
pub trait Observer: Send + Sync + 'static {
    /// A client was authorized; it waits for a snapshot of its group if there is none.
    fn connected(&self, client: &ClientInfo) {
        let _ = client;
    }

    /// A stream ended.
    fn disconnected(&self, client: &ClientInfo) {
        let _ = client;
    }

    /// A client rejected a response.
    fn rejected(&self, client: &ClientInfo, type_url: &TypeUrl, nack: &Nack) {
        let _ = (client, type_url, nack);
    }
}

impl Observer for () {}

/// The connected clients of one server.
#[derive(Default)]
pub(super) struct Registry {
    next: AtomicU64,
    clients: Mutex<BTreeMap<u64, Entry>>,
}

struct Entry {
    client: Arc<ClientInfo>,
    stream: Arc<Mutex<ServerStream>>,
}

impl Registry {
    pub(super) fn next_id(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    pub(super) fn insert(&self, client: Arc<ClientInfo>, stream: Arc<Mutex<ServerStream>>) {
        self.lock().insert(client.id, Entry { client, stream });
    }

    pub(super) fn remove(&self, id: u64) {
        self.lock().remove(&id);
    }

    pub(super) fn len(&self) -> usize {
        self.lock().len()
    }

    pub(super) fn status(&self) -> Vec<ClientStatus> {
        let entries: Vec<_> = self.lock().values().map(|e| (e.client.clone(), e.stream.clone())).collect();
        let status = |stream: &Mutex<ServerStream>| {
            stream.lock().unwrap_or_else(PoisonError::into_inner).status().into_iter().collect()
        };
        entries.into_iter().map(|(client, stream)| ClientStatus { client, types: status(&stream) }).collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Entry>> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry").field("clients", &self.len()).finish()
    }
}
