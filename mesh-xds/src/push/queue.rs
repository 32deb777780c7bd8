//! Work per client, coalesced and bounded.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, Semaphore};

use super::Merge;

/// One entry per client: pending work of a client merges; work for a client that is being served waits until it is
/// done and then happens once. Clones are the same queue.
pub struct PushQueue<K, E> {
    shared: Arc<Shared<K, E>>,
}

struct Shared<K, E> {
    state: Mutex<State<K, E>>,
    wake: Notify,
}

struct State<K, E> {
    order: VecDeque<K>,
    pending: BTreeMap<K, E>,
    /// Clients that are being served, and whether they are to be queued again afterwards.
    serving: BTreeMap<K, bool>,
    /// How many clones of the queue exist.
    handles: usize,
}

impl<K: Ord + Clone + Send + 'static, E: Merge + Send + 'static> PushQueue<K, E> {
    /// Starts a queue on the current tokio runtime; `work` is done for at most `concurrency` clients at once, and for
    /// one client at most once at a time. It stops when the last clone is dropped and everything is done.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn start<F, R>(concurrency: usize, work: F) -> Self
    where
        F: Fn(K, E) -> R + Send + Sync + 'static,
        R: Future<Output = ()> + Send + 'static,
    {
        let state =
            State { order: VecDeque::new(), pending: BTreeMap::new(), serving: BTreeMap::new(), handles: 1 };
        let shared = Arc::new(Shared { state: Mutex::new(state), wake: Notify::new() });
        tokio::spawn(run(Arc::clone(&shared), Arc::new(Semaphore::new(concurrency.max(1))), Arc::new(work)));
        Self { shared }
    }

    /// Adds work for a client. Never waits.
    pub fn push(&self, client: K, event: E) {
        let mut state = self.shared.lock();
        if let Some(pending) = state.pending.get_mut(&client) {
            pending.merge(event);
            return;
        }
        state.pending.insert(client.clone(), event);
        match state.serving.get_mut(&client) {
            Some(again) => *again = true,
            None => state.order.push_back(client),
        }
        drop(state);
        self.shared.wake.notify_one();
    }

    /// How many clients have pending work.
    #[must_use]
    pub fn len(&self) -> usize {
        self.shared.lock().pending.len()
    }

    /// Whether no client has pending work.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Forgets a client's pending work: it is gone.
    pub fn forget(&self, client: &K) {
        let mut state = self.shared.lock();
        state.pending.remove(client);
        state.order.retain(|queued| queued != client);
    }
}

impl<K, E> Shared<K, E> {
    fn lock(&self) -> MutexGuard<'_, State<K, E>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn run<K, E, F, R>(shared: Arc<Shared<K, E>>, permits: Arc<Semaphore>, work: Arc<F>)
where
    K: Ord + Clone + Send + 'static,
    E: Merge + Send + 'static,
    F: Fn(K, E) -> R + Send + Sync + 'static,
    R: Future<Output = ()> + Send + 'static,
{
    loop {
        // The semaphore is never closed.
        let Ok(permit) = permits.clone().acquire_owned().await else { return };
        let (client, event) = loop {
            if let Some(next) = shared.begin() {
                break next;
            }
            if shared.is_over() {
                return;
            }
            shared.wake.notified().await;
        };
        let (shared, work) = (shared.clone(), work.clone());
        tokio::spawn(async move {
            // Dropped in turn, also when the work panics: then the client is free again, and so is its place.
            let _place = permit;
            let _serving = Serving { shared, client: Some(client.clone()) };
            work(client, event).await;
        });
    }
}

/// A client that is being served, until this is dropped.
struct Serving<K: Ord + Clone, E> {
    shared: Arc<Shared<K, E>>,
    client: Option<K>,
}

impl<K: Ord + Clone, E> Drop for Serving<K, E> {
    fn drop(&mut self) {
        if let Some(client) = self.client.take() {
            self.shared.end(client);
        }
    }
}

impl<K: Ord + Clone, E> Shared<K, E> {
    /// Nobody can add work, and no running work can queue its client again.
    fn is_over(&self) -> bool {
        let state = self.lock();
        state.handles == 0 && state.serving.is_empty()
    }

    fn begin(&self) -> Option<(K, E)> {
        let mut state = self.lock();
        while let Some(client) = state.order.pop_front() {
            if let Some(event) = state.pending.remove(&client) {
                state.serving.insert(client.clone(), false);
                return Some((client, event));
            }
        }
        None
    }

    fn end(&self, client: K) {
        let mut state = self.lock();
        if state.serving.remove(&client) == Some(true) {
            state.order.push_back(client);
        }
        drop(state);
        self.wake.notify_one();
    }
}

impl<K, E> Clone for PushQueue<K, E> {
    fn clone(&self) -> Self {
        self.shared.lock().handles += 1;
        Self { shared: self.shared.clone() }
    }
}

impl<K, E> Drop for PushQueue<K, E> {
    fn drop(&mut self) {
        self.shared.lock().handles -= 1;
        self.shared.wake.notify_one();
    }
}

impl<K, E> fmt::Debug for PushQueue<K, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PushQueue").field("pending", &self.shared.lock().pending.len()).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn work_of_one_client_merges_and_a_slow_one_delays_nobody() {
        let done = Arc::new(Mutex::new(Vec::new()));
        let log = done.clone();
        let queue = PushQueue::start(2, move |client: &'static str, event: BTreeSet<u32>| {
            let log = log.clone();
            async move {
                if client == "slow" {
                    tokio::time::sleep(Duration::from_secs(60)).await;
                }
                log.lock().unwrap().push((client, event.into_iter().collect::<Vec<_>>()));
            }
        });
        queue.push("slow", BTreeSet::from([1]));
        tokio::time::sleep(Duration::from_millis(1)).await;
        for n in 2..5 {
            queue.push("slow", BTreeSet::from([n]));
            queue.push("fast", BTreeSet::from([n]));
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(*done.lock().unwrap(), [("fast", vec![2, 3, 4])]);
        assert_eq!(queue.len(), 1);
        tokio::time::sleep(Duration::from_secs(200)).await;
        let all = done.lock().unwrap().clone();
        assert_eq!(all, [("fast", vec![2, 3, 4]), ("slow", vec![1]), ("slow", vec![2, 3, 4])]);
        assert!(queue.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn work_that_panics_leaves_its_client_free() {
        let done = Arc::new(Mutex::new(Vec::new()));
        let log = done.clone();
        let queue = PushQueue::start(1, move |client: &'static str, event: BTreeSet<u32>| {
            let log = log.clone();
            async move {
                assert!(!event.contains(&1), "this one fails");
                log.lock().unwrap().push(client);
            }
        });
        for n in [1, 2] {
            queue.push("one", BTreeSet::from([n]));
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert_eq!(*done.lock().unwrap(), ["one"]);
    }
}
