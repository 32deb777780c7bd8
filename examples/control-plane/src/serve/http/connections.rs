//! The connections of one server: how many there may be, and which one goes when another wants its place.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::Instant;

/// How long one that was asked to leave may take before the next one is asked.
const NEXT: Duration = Duration::from_millis(100);

/// All connections of a server.
#[derive(Debug)]
pub(super) struct Connections {
    slots: Arc<Semaphore>,
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    next: u64,
    all: HashMap<u64, Arc<Shared>>,
}

#[derive(Debug)]
struct Shared {
    /// Requests under way, and since when there are that many.
    requests: watch::Sender<(usize, Instant)>,
    leave: Notify,
}

/// A place among the connections, given back when it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    connections: Arc<Connections>,
    number: u64,
    shared: Arc<Shared>,
    _slot: OwnedSemaphorePermit,
}

/// A request under way; its connection is not idle meanwhile.
#[derive(Debug)]
pub(super) struct Busy(Arc<Shared>);

impl Connections {
    pub(super) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { slots: Arc::new(Semaphore::new(most)), open: Mutex::default() })
    }

    /// Waits for a place. While all are taken, the connection that has had no request for the longest time is asked to
    /// leave, so that connections which only sit there cannot keep others out.
    pub(super) async fn admit(self: &Arc<Self>) -> Place {
        let mut free = std::pin::pin!(Arc::clone(&self.slots).acquire_owned());
        loop {
            let slot = tokio::select! {
                biased;
                slot = &mut free => slot,
                () = self.ask_one_to_leave() => continue,
            };
            let Ok(slot) = slot else {
                // Nobody closes the semaphore.
                return std::future::pending().await;
            };
            let shared =
                Arc::new(Shared { requests: watch::Sender::new((0, Instant::now())), leave: Notify::new() });
            let mut open = lock(&self.open);
            let number = open.next;
            open.next += 1;
            open.all.insert(number, Arc::clone(&shared));
            return Place { connections: Arc::clone(self), number, shared, _slot: slot };
        }
    }

    async fn ask_one_to_leave(&self) {
        {
            let mut open = lock(&self.open);
            let idle = open.all.iter().filter_map(|(number, shared)| {
                let (requests, since) = *shared.requests.borrow();
                (requests == 0).then_some((since, *number))
            });
            // Forgotten here, so that the next one is asked should it take its time.
            if let Some(shared) = idle.min().and_then(|(_, number)| open.all.remove(&number)) {
                shared.leave.notify_one();
            }
        }
        tokio::time::sleep(NEXT).await;
    }
}

impl Place {
    /// Says that a request is under way.
    pub(super) fn busy(&self) -> Busy {
        self.shared
            .requests
            .send_modify(|(requests, since)| (*requests, *since) = (*requests + 1, Instant::now()));
        Busy(Arc::clone(&self.shared))
    }

    /// Ends when the connection should: no request for `idle`, or its place is wanted.
    pub(super) async fn over(&self, idle: Duration) {
        let mut changes = self.shared.requests.subscribe();
        let unused = async {
            loop {
                let (requests, since) = *changes.borrow_and_update();
                tokio::select! {
                    () = tokio::time::sleep_until(since + idle), if requests == 0 => return,
                    // The sender lives as long as `self`.
                    _ = changes.changed() => {}
                }
            }
        };
        tokio::select! {
            () = unused => {}
            () = self.shared.leave.notified() => {}
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        lock(&self.connections.open).all.remove(&self.number);
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.requests.send_modify(|(requests, since)| {
            (*requests, *since) = (requests.saturating_sub(1), Instant::now());
        });
    }
}

fn lock(open: &Mutex<Open>) -> MutexGuard<'_, Open> {
    // Nothing panics while it holds this.
    open.lock().unwrap_or_else(PoisonError::into_inner)
}
