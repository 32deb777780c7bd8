//! Where snapshots are put, and where streams find them.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use super::snapshot::Snapshot;

type Groups = HashMap<Arc<str>, watch::Sender<Option<Arc<Snapshot>>>>;

/// The newest snapshot of every group of clients. Clones share one cache.
///
/// A group is whatever the server's group function says: a node, or many alike. A stream whose group has no snapshot
/// yet waits for one. Nothing is queued: a stream that is slow sees only the newest snapshot when it looks again.
#[derive(Clone, Default)]
pub struct SnapshotCache {
    groups: Arc<Mutex<Groups>>,
}

impl SnapshotCache {
    /// An empty cache.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Replaces the snapshot of a group; returns what is now in the cache.
    ///
    /// What is equal to the previous snapshot is shared with it, so that setting an equal snapshot again sends nothing.
    pub fn set(&self, group: &str, snapshot: Snapshot) -> Arc<Snapshot> {
        let mut groups = self.lock();
        let sender = Self::entry(&mut groups, group);
        let snapshot = match &*sender.borrow() {
            Some(old) => Arc::new(snapshot.sharing(old)),
            None => Arc::new(snapshot),
        };
        sender.send_replace(Some(snapshot.clone()));
        snapshot
    }

    /// The newest snapshot of a group.
    #[must_use]
    pub fn get(&self, group: &str) -> Option<Arc<Snapshot>> {
        self.lock().get(group).and_then(|sender| sender.borrow().clone())
    }

    /// Forgets a group. Streams of it keep what they have and wait for a snapshot to be set again.
    pub fn clear(&self, group: &str) {
        let mut groups = self.lock();
        if let Some(sender) = groups.get(group) {
            sender.send_replace(None);
            if sender.receiver_count() == 0 {
                groups.remove(group);
            }
        }
    }

    /// The groups that have a snapshot or a stream, in no order.
    #[must_use]
    pub fn groups(&self) -> Vec<Arc<str>> {
        self.lock().keys().cloned().collect()
    }

    /// Follows a group.
    pub(super) fn subscribe(&self, group: &str) -> watch::Receiver<Option<Arc<Snapshot>>> {
        let mut receiver = Self::entry(&mut self.lock(), group).subscribe();
        receiver.mark_changed();
        receiver
    }

    /// A stream of the group has ended: a group without streams and without a snapshot leaves nothing behind, for a node
    /// may call itself anything.
    pub(super) fn release(&self, group: &str) {
        let mut groups = self.lock();
        if groups.get(group).is_some_and(|g| g.receiver_count() == 0 && g.borrow().is_none()) {
            groups.remove(group);
        }
    }

    fn entry<'a>(groups: &'a mut Groups, group: &str) -> &'a watch::Sender<Option<Arc<Snapshot>>> {
        groups.entry(Arc::from(group)).or_insert_with(|| watch::channel(None).0)
    }

    fn lock(&self) -> MutexGuard<'_, Groups> {
        self.groups.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for SnapshotCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SnapshotCache").field("groups", &self.lock().len()).finish()
    }
}
