use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap},
    future::Future,
    sync::Arc,
};

use tokio::{
    sync::mpsc,
    task::{JoinHandle, JoinSet},
    time::Instant,
};

use super::{FetchError, FetchedSvid, RenewalPolicy, schedule::Schedule};
use crate::{
    clock::WallClock,
    id::SpiffeId,
    identity::{Identity, IdentityPublisher},
};

/// Gets new credentials for many identities: what a node's proxy does for the workloads it serves.
pub trait ManyFetcher: Send + Sync + 'static {
    /// Fetches once for `id`. Must be cancel safe.
    fn fetch(&self, id: &SpiffeId) -> impl Future<Output = Result<FetchedSvid, FetchError>> + Send;
}

/// Keeps many identities alive with one task, at most a few fetches at a time. First fetches go before renewals, so
/// that a new workload does not wait behind a fleet of old ones. Dropping it stops renewal.
#[derive(Debug)]
pub struct SvidManager {
    commands: mpsc::UnboundedSender<Command>,
    clock: WallClock,
    task: JoinHandle<()>,
}

#[derive(Debug)]
enum Command {
    Add(SpiffeId, IdentityPublisher),
    Remove(SpiffeId),
}

impl SvidManager {
    /// Starts the task, with at most `concurrency` fetches at a time. Must be called within a tokio runtime.
    pub fn spawn<F: ManyFetcher>(
        fetcher: F,
        policy: RenewalPolicy,
        clock: WallClock,
        concurrency: usize,
    ) -> Self {
        let (commands, requests) = mpsc::unbounded_channel();
        let queue = Queue {
            fetcher: Arc::new(fetcher),
            policy,
            concurrency: concurrency.max(1),
            entries: HashMap::new(),
            due: BinaryHeap::new(),
            generation: 0,
        };
        let task = tokio::spawn(queue.run(requests));
        Self { commands, clock, task }
    }

    /// Begins to keep `id` alive. Asking again for the same ID replaces the former identity, which then expires.
    pub fn add(&self, id: SpiffeId) -> Identity {
        let (publisher, identity) = Identity::channel(self.clock.clone());
        // The task ends only when this value is dropped.
        let _ = self.commands.send(Command::Add(id, publisher));
        identity
    }

    /// Stops keeping `id` alive.
    pub fn remove(&self, id: SpiffeId) {
        let _ = self.commands.send(Command::Remove(id));
    }
}

impl Drop for SvidManager {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Entry {
    publisher: IdentityPublisher,
    schedule: Schedule,
    /// Tells a fetch for a removed or replaced identity from one for the present.
    generation: u64,
}

/// Ordered by class (first fetches before renewals), then by time.
type Due = Reverse<(bool, Instant, u64, SpiffeId)>;

struct Queue<F> {
    fetcher: Arc<F>,
    policy: RenewalPolicy,
    concurrency: usize,
    entries: HashMap<SpiffeId, Entry>,
    due: BinaryHeap<Reverse<(Instant, bool, u64, SpiffeId)>>,
    generation: u64,
}

type Fetched = (SpiffeId, u64, Result<FetchedSvid, FetchError>);

impl<F: ManyFetcher> Queue<F> {
    async fn run(mut self, mut commands: mpsc::UnboundedReceiver<Command>) {
        let mut fetches: JoinSet<Fetched> = JoinSet::new();
        let mut ready: BinaryHeap<Due> = BinaryHeap::new();
        loop {
            let now = Instant::now();
            while self.due.peek().is_some_and(|Reverse((at, ..))| *at <= now)
                && let Some(Reverse((at, renewal, generation, id))) = self.due.pop()
            {
                ready.push(Reverse((renewal, at, generation, id)));
            }
            while fetches.len() < self.concurrency
                && let Some(Reverse((_, _, generation, id))) = ready.pop()
            {
                if self.entries.get(&id).is_some_and(|entry| entry.generation == generation) {
                    self.start(&mut fetches, id, generation);
                }
            }
            let next = self.due.peek().map(|Reverse((at, ..))| *at);
            let timer = async {
                match next {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                command = commands.recv() => match command {
                    None => return,
                    Some(Command::Remove(id)) => drop(self.entries.remove(&id)),
                    Some(Command::Add(id, publisher)) => self.add(id, publisher),
                },
                Some(outcome) = fetches.join_next() => {
                    if let Ok(fetched) = outcome {
                        self.finish(fetched);
                    }
                }
                () = timer => {}
            }
        }
    }

    fn add(&mut self, id: SpiffeId, publisher: IdentityPublisher) {
        self.generation += 1;
        let mut policy = self.policy.clone();
        policy.seed = policy.seed.map(|seed| seed.wrapping_add(self.generation));
        let entry = Entry { publisher, schedule: Schedule::new(policy), generation: self.generation };
        self.due.push(Reverse((Instant::now(), false, self.generation, id.clone())));
        self.entries.insert(id, entry);
    }

    fn start(&self, fetches: &mut JoinSet<Fetched>, id: SpiffeId, generation: u64) {
        let (fetcher, timeout) = (self.fetcher.clone(), self.policy.fetch_timeout);
        fetches.spawn(async move {
            let outcome = match tokio::time::timeout(timeout, fetcher.fetch(&id)).await {
                Ok(outcome) => outcome,
                Err(_) => Err(FetchError::new("timeout", "the fetch took too long")),
            };
            (id, generation, outcome)
        });
    }

    fn finish(&mut self, (id, generation, outcome): Fetched) {
        let Some(entry) = self.entries.get_mut(&id).filter(|entry| entry.generation == generation) else {
            return;
        };
        let pause = match outcome {
            Ok(fetched) => {
                let now = entry.publisher.identity().clock().now();
                let pause = entry.schedule.after_success(&fetched.credential, now);
                entry.publisher.publish(Some(fetched.credential), fetched.bundles);
                pause
            }
            Err(error) => {
                tracing::warn!(%id, reason = error.reason, %error, "SVID not renewed, the current one stays");
                entry.schedule.after_failure()
            }
        };
        let has_one = entry.publisher.identity().current().credential.is_some();
        self.due.push(Reverse((Instant::now() + pause, has_one, generation, id)));
    }
}
