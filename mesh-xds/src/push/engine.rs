//! The stages in a row.

use std::fmt;
use std::future::Future;
use std::sync::Arc;

use super::{Merge, PushConfig, PushQueue, Pusher};

/// What the engine has to ask about a configuration.
pub trait Publisher: Send + Sync + 'static {
    /// What is reported. A publisher that finds out by itself what is new takes `()`: something is.
    type Event: Merge + Send + 'static;
    /// What changed for clients; [`Scope`](super::Scope) is one.
    type Change: Merge + Clone + Send + Sync + 'static;
    /// A client, or a group of clients that receive the same.
    type Client: Ord + Clone + Send + 'static;

    /// Prepares what all clients share and says what that changes for them; `None` if nothing. Called once for each batch
    /// of events, before anybody is pushed to; the next batch is prepared when this one is. Where only endpoints moved
    /// there is little to do.
    fn prepare(&self, event: Self::Event) -> impl Future<Output = Option<Self::Change>> + Send;

    /// Whom the change concerns, among the clients that are there. A client that no longer depends on what changed, but
    /// did before, is concerned.
    fn affected(&self, change: &Self::Change) -> Vec<Self::Client>;

    /// Brings one client up to date, as by [`SnapshotCache::set`](crate::server::SnapshotCache::set). `change` is all
    /// that [`affected`](Self::affected) has said of the client since it was last brought up to date. What
    /// [`prepare`](Self::prepare) shows to others already may be newer than that by one change: whoever takes a short way
    /// because of what `change` says has to see to it that it is not.
    fn push(&self, client: Self::Client, change: Self::Change) -> impl Future<Output = ()> + Send;
}

/// Changes in, pushes out: debounced, for those who are affected, at most once at a time for each client and for so many
/// clients at once. Clones are the same engine; it stops with the last one, when everything is done.
pub struct PushEngine<P: Publisher> {
    pusher: Pusher<P::Event>,
    queue: PushQueue<P::Client, P::Change>,
}

impl<P: Publisher> PushEngine<P> {
    /// Starts an engine on the current tokio runtime. `concurrency` is how many clients are pushed to at once.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn start(config: PushConfig, concurrency: usize, publisher: Arc<P>) -> Self {
        let worker = publisher.clone();
        let queue = PushQueue::start(concurrency, move |client, change| {
            let worker = worker.clone();
            async move { worker.push(client, change).await }
        });
        let entrance = queue.clone();
        let pusher = Pusher::start(config, move |event: P::Event| {
            let (publisher, queue) = (publisher.clone(), entrance.clone());
            async move {
                let Some(change) = publisher.prepare(event).await else { return };
                for client in publisher.affected(&change) {
                    queue.push(client, change.clone());
                }
            }
        });
        Self { pusher, queue }
    }

    /// Something changed. Never waits.
    pub fn changed(&self, event: P::Event) {
        self.pusher.changed(event);
    }

    /// Pushes to one client without waiting for a pause: it has just come, or it has gone and what was held for it can go
    /// as well. Never waits; work of one client happens in turn, so that what is pushed last is done last.
    pub fn push(&self, client: P::Client, change: P::Change) {
        self.queue.push(client, change);
    }

    /// A client is gone: what was pending for it is forgotten.
    pub fn forget(&self, client: &P::Client) {
        self.queue.forget(client);
    }

    /// How many clients wait for their turn.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.queue.len()
    }
}

impl<P: Publisher> Clone for PushEngine<P> {
    fn clone(&self) -> Self {
        Self { pusher: self.pusher.clone(), queue: self.queue.clone() }
    }
}

impl<P: Publisher> fmt::Debug for PushEngine<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PushEngine").field("queue", &self.queue).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::sync::Mutex;
    use std::time::Duration;

    use super::*;
    use crate::TypeUrl;
    use crate::pb::envoy::config::cluster::v3::Cluster;
    use crate::pb::envoy::config::endpoint::v3::{ClusterLoadAssignment, LocalityLbEndpoints};
    use crate::push::Scope;
    use crate::server::{Snapshot, SnapshotCache};

    /// Clients by name and what they depend on; every service has a generation.
    struct Mesh {
        cache: SnapshotCache,
        depend: BTreeMap<&'static str, Vec<&'static str>>,
        slow: Option<&'static str>,
        generation: Mutex<u32>,
        log: Mutex<Vec<String>>,
        busy: Mutex<(usize, usize)>,
    }

    impl Mesh {
        fn new(slow: Option<&'static str>) -> Arc<Self> {
            let depend =
                [("one", vec!["a"]), ("two", vec!["b"]), ("three", vec!["a", "b"]), ("four", vec![])];
            Arc::new(Self {
                cache: SnapshotCache::new(),
                depend: depend.into(),
                slow,
                generation: Mutex::default(),
                log: Mutex::default(),
                busy: Mutex::default(),
            })
        }

        fn note(&self, line: String) {
            self.log.lock().unwrap().push(line);
        }

        fn take_log(&self) -> Vec<String> {
            std::mem::take(&mut *self.log.lock().unwrap())
        }

        fn endpoints(&self, service: &str) -> ClusterLoadAssignment {
            let priority = *self.generation.lock().unwrap();
            let endpoints = vec![LocalityLbEndpoints { priority, ..Default::default() }];
            ClusterLoadAssignment { cluster_name: service.to_owned(), endpoints, ..Default::default() }
        }
    }

    impl Publisher for Mesh {
        type Event = Scope<&'static str>;
        type Change = Scope<&'static str>;
        type Client = &'static str;

        async fn prepare(&self, change: Self::Event) -> Option<Self::Change> {
            if change.concerns([&"nobody's"]) && !change.concerns([]) {
                self.note("nothing".to_owned());
                return None;
            }
            *self.generation.lock().unwrap() += 1;
            self.note(if change.is_endpoints_only() { "endpoints".to_owned() } else { "rebuild".to_owned() });
            Some(change)
        }

        fn affected(&self, change: &Self::Change) -> Vec<&'static str> {
            let concerned = self.depend.iter().filter(|(_, keys)| change.concerns(keys.iter()));
            concerned.map(|(client, _)| *client).collect()
        }

        async fn push(&self, client: &'static str, change: Self::Change) {
            {
                let mut busy = self.busy.lock().unwrap();
                *busy = (busy.0 + 1, busy.1.max(busy.0 + 1));
            }
            tokio::time::sleep(Duration::from_secs(if self.slow == Some(client) { 60 } else { 1 })).await;
            let services = &self.depend[client];
            let next = match (self.cache.get(client), &change) {
                (Some(old), Scope::Endpoints(moved)) => {
                    let moved = services.iter().filter(|service| moved.contains(*service));
                    moved.fold(old.edit(), |b, service| b.add(&self.endpoints(service)).unwrap()).build()
                }
                _ => {
                    let builder = Snapshot::builder().with_type(TypeUrl::CLUSTER);
                    let add = |b: crate::server::SnapshotBuilder, service: &&str| {
                        let cluster = Cluster { name: (*service).to_owned(), ..Default::default() };
                        b.add(&cluster).and_then(|b| b.add(&self.endpoints(service))).unwrap()
                    };
                    services.iter().fold(builder, add).build()
                }
            };
            self.cache.set(client, next);
            self.note(format!("{client} {change:?}"));
            self.busy.lock().unwrap().0 -= 1;
        }
    }

    fn endpoints(service: &'static str) -> Scope<&'static str> {
        Scope::Endpoints(BTreeSet::from([service]))
    }

    async fn pass(seconds: u64) {
        tokio::time::sleep(Duration::from_secs(seconds)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn only_the_affected_hear_of_it_and_endpoints_rebuild_nothing() {
        let mesh = Mesh::new(None);
        let engine = PushEngine::start(PushConfig::default(), 8, mesh.clone());
        engine.changed(Scope::All);
        pass(5).await;
        assert_eq!(mesh.take_log()[0], "rebuild");
        assert_eq!(mesh.cache.groups().len(), 4, "everybody has a snapshot");
        let before = mesh.cache.get("three").unwrap();

        // A burst is one batch.
        for _ in 0..100 {
            engine.changed(endpoints("b"));
        }
        pass(5).await;
        let log = mesh.take_log();
        assert_eq!(log[0], "endpoints");
        let pushed = BTreeSet::from_iter(log[1..].iter().map(String::as_str));
        assert_eq!(pushed, BTreeSet::from(["three Endpoints({\"b\"})", "two Endpoints({\"b\"})"]));
        // What did not change is the very same set, which costs nothing to compare.
        let after = mesh.cache.get("three").unwrap();
        let set = |snapshot: &Snapshot, type_url| snapshot.get(&type_url).unwrap().clone();
        assert!(Arc::ptr_eq(&set(&before, TypeUrl::CLUSTER), &set(&after, TypeUrl::CLUSTER)));
        let priority =
            |snapshot: &Snapshot, name| set(snapshot, TypeUrl::ENDPOINTS).get(name).unwrap().version();
        assert_eq!(priority(&before, "a"), priority(&after, "a"));
        assert_ne!(priority(&before, "b"), priority(&after, "b"));
        // What turns out to change nothing is pushed to nobody.
        engine.changed(endpoints("nobody's"));
        pass(5).await;
        assert_eq!(mesh.take_log(), ["nothing"]);
        // Together with something else it is no longer the fast path.
        engine.changed(endpoints("b"));
        engine.changed(Scope::Some(BTreeSet::from(["a"])));
        pass(5).await;
        assert_eq!(mesh.take_log()[0], "rebuild");
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_client_delays_nobody_and_is_owed_the_sum() {
        let mesh = Mesh::new(Some("two"));
        let engine = PushEngine::start(PushConfig::default(), 2, mesh.clone());
        engine.changed(endpoints("b"));
        pass(1).await;
        for service in ["a", "b", "a"] {
            engine.changed(endpoints(service));
            pass(4).await;
        }
        assert_eq!(engine.pending(), 1, "what came meanwhile waits, merged");
        let log = mesh.take_log();
        assert!(!log.iter().any(|line| line.starts_with("two")), "{log:?}");
        assert_eq!(log.iter().filter(|line| line.starts_with("one")).count(), 2);
        engine.changed(Scope::Some(BTreeSet::from(["b"])));
        pass(200).await;
        let log = mesh.take_log();
        let two: Vec<_> = log.iter().filter(|line| line.starts_with("two")).collect();
        assert_eq!(two, ["two Endpoints({\"b\"})", "two Some({\"b\"})"]);
    }

    #[tokio::test(start_paused = true)]
    async fn so_many_at_once_and_no_more() {
        let mesh = Mesh::new(None);
        let engine = PushEngine::start(PushConfig::default(), 3, mesh.clone());
        engine.changed(Scope::All);
        pass(10).await;
        assert_eq!(*mesh.busy.lock().unwrap(), (0, 3), "four clients, three at once");
        // Whoever has just come is served without a pause, and whoever is gone is not served.
        mesh.take_log();
        engine.push("one", Scope::All);
        tokio::time::sleep(Duration::from_millis(1_001)).await;
        assert_eq!(mesh.take_log(), ["one All"]);
        for client in ["one", "two", "three", "four"] {
            engine.push(client, Scope::All);
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
        engine.forget(&"four");
        pass(10).await;
        assert_eq!(mesh.take_log().len(), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn an_engine_that_nobody_holds_finishes_its_work() {
        let mesh = Mesh::new(None);
        let engine = PushEngine::start(PushConfig::default(), 8, mesh.clone());
        engine.changed(Scope::All);
        drop(engine);
        pass(10).await;
        assert_eq!(mesh.take_log().len(), 5);
        assert_eq!(Arc::strong_count(&mesh), 1, "its tasks have ended");
    }
}
