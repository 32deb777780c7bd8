use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap},
    future::Future,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::mpsc,
    task::{JoinHandle, JoinSet},
    time::Instant,
};

use super::{
    FetchError, FetchedSvid, RenewalPolicy, SourceStatus,
    accept::{fetch_usable, publish_new, say_expired},
    schedule::Schedule,
};
use crate::{
    clock::WallClock,
    id::SpiffeId,
    identity::{Identity, IdentityPublisher, IdentityState},
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
    statuses: Statuses,
    clock: WallClock,
    task: JoinHandle<()>,
}

/// How renewal goes, by identity.
#[derive(Debug, Clone, Default)]
struct Statuses(Arc<Mutex<HashMap<SpiffeId, SourceStatus>>>);

impl Statuses {
    fn lock(&self) -> MutexGuard<'_, HashMap<SpiffeId, SourceStatus>> {
        // No code panics while it holds the lock; a poisoned one is still consistent.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
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
        let statuses = Statuses::default();
        let queue = Queue {
            statuses: statuses.clone(),
            fetcher: Arc::new(fetcher),
            policy,
            concurrency: concurrency.max(1),
            entries: HashMap::new(),
            due: BinaryHeap::new(),
            expiries: BinaryHeap::new(),
            generation: 0,
        };
        let task = tokio::spawn(queue.run(requests));
        Self { commands, statuses, clock, task }
    }

    /// Begins to keep `id` alive. Asking again for the same ID replaces the former identity, which then expires.
    pub fn add(&self, id: SpiffeId) -> Identity {
        let (publisher, identity) = Identity::channel(self.clock.clone());
        // The task ends only when this value is dropped.
        let _ = self.commands.send(Command::Add(id, publisher));
        identity
    }

    /// How renewal goes for `id`; `None` when it is not kept alive.
    pub fn status(&self, id: &SpiffeId) -> Option<SourceStatus> {
        self.statuses.lock().get(id).cloned()
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
    statuses: Statuses,
    fetcher: Arc<F>,
    policy: RenewalPolicy,
    concurrency: usize,
    entries: HashMap<SpiffeId, Entry>,
    due: BinaryHeap<Reverse<(Instant, bool, u64, SpiffeId)>>,
    /// When credentials end. Most are renewed before, and then this says nothing.
    expiries: BinaryHeap<Reverse<(Instant, u64, SpiffeId)>>,
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
            self.report_expiries(now);
            let due = self.due.peek().map(|Reverse((at, ..))| *at);
            let expiry = self.expiries.peek().map(|Reverse((at, ..))| *at);
            let next = due.into_iter().chain(expiry).min();
            let timer = async {
                match next {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                command = commands.recv() => match command {
                    None => return,
                    Some(Command::Remove(id)) => {
                        self.entries.remove(&id);
                        self.statuses.lock().remove(&id);
                    }
                    Some(Command::Add(id, publisher)) => self.add(id, publisher),
                },
                // A fetch's panic is caught within it; nobody aborts one.
                Some(Ok(fetched)) = fetches.join_next() => self.finish(fetched),
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
        self.statuses.lock().insert(id.clone(), SourceStatus::default());
        self.entries.insert(id, entry);
    }

    fn report_expiries(&mut self, now: Instant) {
        while self.expiries.peek().is_some_and(|Reverse((at, ..))| *at <= now)
            && let Some(Reverse((_, generation, id))) = self.expiries.pop()
        {
            let entry = self.entries.get(&id).filter(|entry| entry.generation == generation);
            let identity = entry.map(|entry| entry.publisher.identity());
            if let Some(identity) = identity.filter(|it| matches!(it.state(), IdentityState::Expired { .. }))
            {
                say_expired(identity);
            }
        }
    }

    fn start(&self, fetches: &mut JoinSet<Fetched>, id: SpiffeId, generation: u64) {
        let Some(entry) = self.entries.get(&id) else { return };
        let identity = entry.publisher.identity().clone();
        let (fetcher, timeout) = (self.fetcher.clone(), self.policy.fetch_timeout);
        fetches.spawn(async move {
            let outcome = fetch_usable(fetcher.fetch(&id), timeout, &identity, Some(&id)).await;
            (id, generation, outcome)
        });
    }

    fn finish(&mut self, (id, generation, outcome): Fetched) {
        let Some(entry) = self.entries.get_mut(&id).filter(|entry| entry.generation == generation) else {
            return;
        };
        let mut statuses = self.statuses.lock();
        let status = statuses.entry(id.clone()).or_default();
        let pause = match outcome {
            Ok(fetched) => {
                let now = entry.publisher.identity().clock().now();
                let left = fetched.credential.not_after().duration_since(now).unwrap_or_default();
                let pause = entry.schedule.after_success(&fetched.credential, now);
                status.succeeded(publish_new(&entry.publisher, fetched));
                // A moment later than the last valid second.
                let end = Instant::now() + left + Duration::from_millis(1);
                self.expiries.push(Reverse((end, generation, id.clone())));
                pause
            }
            Err(error) => {
                tracing::warn!(%id, reason = error.reason, %error, "SVID not renewed, the current one stays");
                status.failed(&error);
                entry.schedule.after_failure()
            }
        };
        drop(statuses);
        let has_one = entry.publisher.identity().current().credential.is_some();
        self.due.push(Reverse((Instant::now() + pause, has_one, generation, id)));
    }
}
