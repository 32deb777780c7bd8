//! Listeners, routes, clusters and endpoints of one client, in dependency order.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use tokio::time::{Instant, sleep_until};

use crate::pb::envoy::config::cluster::v3::Cluster;
use crate::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use crate::pb::envoy::config::listener::v3::Listener;
use crate::pb::envoy::config::route::v3::RouteConfiguration;
use crate::pb::envoy::extensions::transport_sockets::tls::v3::Secret;
use crate::resource::Resource;

use super::ads::AdsClient;
use super::core::LapseReason;
use super::subscription::Names;
use super::warming::{Candidate, Change, Warming};
use super::watch::{Encoded, Watch};

/// How many assignments are decoded and handed over at once: those of a first push take hundreds of times the memory of
/// one.
const PORTION: usize = 16;

type Accept = Box<dyn FnMut(Candidate<'_>) -> Result<(), String> + Send>;

/// Made by [`AdsClient::configuration`] and [`AdsClient::configuration_with_secrets`].
pub struct Configuration {
    clusters: Watch<Cluster>,
    endpoints: Watch<ClusterLoadAssignment>,
    listeners: Watch<Listener>,
    routes: Watch<RouteConfiguration>,
    secrets: Option<Watch<Secret>>,
    accept: Accept,
    warming: Warming,
    /// Endpoints of which a portion was handed over.
    begun: Option<Encoded<ClusterLoadAssignment>>,
    started: Instant,
    wanted_endpoints: BTreeSet<String>,
    wanted_routes: BTreeSet<String>,
    wanted_secrets: BTreeSet<String>,
    seen_clusters: bool,
    seen_listeners: bool,
    complete_once: bool,
}

impl Configuration {
    pub(super) fn new(client: &AdsClient, secrets: bool, accept: Accept) -> Self {
        Self {
            clusters: client.watch(Names::all()),
            endpoints: client.watch(Names::none()),
            listeners: client.watch(Names::all()),
            routes: client.watch(Names::none()),
            secrets: secrets.then(|| client.watch(Names::none())),
            accept,
            warming: if secrets { Warming::with_secrets() } else { Warming::new() },
            begun: None,
            started: Instant::now(),
            wanted_endpoints: BTreeSet::new(),
            wanted_routes: BTreeSet::new(),
            wanted_secrets: BTreeSet::new(),
            seen_clusters: false,
            seen_listeners: false,
            complete_once: false,
        }
    }

    /// The next changes to apply, in their order; `None` when the client has stopped.
    ///
    /// Endpoints come in portions, so that not all of a first push are decoded at once. An empty list comes at most once:
    /// when the first configuration is complete and its last part changed nothing. Acknowledgements go out while this is
    /// awaited: a consumer that stops calling it stops acknowledging. Cancel safe.
    pub async fn next(&mut self) -> Option<Vec<Change>> {
        loop {
            let timer = self.warming.next_timer().and_then(|at| self.started.checked_add(at));
            // In dependency order, so that of several responses the one that others need is taken first.
            let changes = if let Some(endpoints) = self.begun.take() {
                self.on_endpoints(endpoints)
            } else {
                tokio::select! {
                    biased;
                    update = self.clusters.next_encoded() => self.on_clusters(update?),
                    update = self.endpoints.next_encoded() => self.on_endpoints(update?),
                    update = self.listeners.next_encoded() => self.on_listeners(update?),
                    update = self.routes.next_encoded() => self.on_routes(update?),
                    update = next(&mut self.secrets) => self.on_secrets(update?),
                    () = at(timer) => self.warming.on_timer(self.started.elapsed()),
                }
            };
            if self.begun.is_none() {
                self.follow();
            }
            let first = self.is_complete() && !self.complete_once;
            self.complete_once |= first;
            if first || !changes.is_empty() {
                return Some(changes);
            }
        }
    }

    /// Whether the first listeners and clusters came and nothing waits for what it needs.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        let all_seen = self.seen_clusters && self.seen_listeners && self.begun.is_none();
        all_seen && self.warming.next_waiting().is_none()
    }

    /// Names of clusters and of listeners that wait for endpoints or routes.
    #[must_use]
    pub fn waiting(&self) -> (Vec<&str>, Vec<&str>) {
        self.warming.waiting()
    }

    fn on_clusters(&mut self, update: Encoded<Cluster>) -> Vec<Change> {
        self.seen_clusters = true;
        let (now, warming) = (self.started.elapsed(), &mut self.warming);
        decide(
            update,
            &mut self.accept,
            |r| Candidate::Cluster(r),
            false,
            |new, removed| warming.on_clusters(now, new, removed),
        )
    }

    fn on_endpoints(&mut self, mut update: Encoded<ClusterLoadAssignment>) -> Vec<Change> {
        let new = Sifted {
            from: &mut update,
            accept: &mut self.accept,
            candidate: |r| Candidate::Endpoints(r),
            again: true,
        };
        let portion: Vec<_> = new.take(PORTION).collect();
        let is_last = update.is_empty();
        let removed = if is_last { removed(&mut update) } else { Vec::new() };
        let changes = self.warming.on_endpoints(self.started.elapsed(), portion, &removed);
        if is_last {
            update.update.accept();
        } else {
            self.begun = Some(update);
        }
        changes
    }

    fn on_listeners(&mut self, update: Encoded<Listener>) -> Vec<Change> {
        self.seen_listeners = true;
        let (now, warming) = (self.started.elapsed(), &mut self.warming);
        decide(
            update,
            &mut self.accept,
            |r| Candidate::Listener(r),
            false,
            |new, removed| warming.on_listeners(now, new, removed),
        )
    }

    fn on_routes(&mut self, update: Encoded<RouteConfiguration>) -> Vec<Change> {
        let (now, warming) = (self.started.elapsed(), &mut self.warming);
        decide(
            update,
            &mut self.accept,
            |r| Candidate::Routes(r),
            true,
            |new, removed| warming.on_routes(now, new, removed),
        )
    }

    fn on_secrets(&mut self, update: Encoded<Secret>) -> Vec<Change> {
        let (now, warming) = (self.started.elapsed(), &mut self.warming);
        decide(
            update,
            &mut self.accept,
            |r| Candidate::Secret(r),
            true,
            |new, _| warming.on_secrets(now, new),
        )
    }

    /// Subscribes to what is referred to now.
    fn follow(&mut self) {
        let follow = self.warming.follow();
        if follow.endpoints != self.wanted_endpoints {
            self.endpoints.set(Names { all: false, names: follow.endpoints.clone() });
            self.wanted_endpoints = follow.endpoints;
        }
        if !follow.endpoints_again.is_empty() {
            self.endpoints.ask_again(follow.endpoints_again);
        }
        if follow.routes != self.wanted_routes {
            self.routes.set(Names { all: false, names: follow.routes.clone() });
            self.wanted_routes = follow.routes;
        }
        if let Some(secrets) = self.secrets.as_ref().filter(|_| follow.secrets != self.wanted_secrets) {
            secrets.set(Names { all: false, names: follow.secrets.clone() });
            self.wanted_secrets = follow.secrets;
        }
    }
}

impl fmt::Debug for Configuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Configuration").field("warming", &self.warming).finish_non_exhaustive()
    }
}

/// The resources of an update that are accepted, one after the other; the others are rejected.
struct Sifted<'a, T> {
    from: &'a mut Encoded<T>,
    accept: &'a mut Accept,
    candidate: for<'b> fn(&'b T) -> Candidate<'b>,
    /// Whether "it came again" is news: to a parent that waits for it. Else what is in use already is not handed on.
    again: bool,
}

impl<T: Resource> Iterator for Sifted<'_, T> {
    type Item = Arc<T>;

    fn next(&mut self) -> Option<Arc<T>> {
        loop {
            let upsert = self.from.take()?;
            match (self.accept)((self.candidate)(&upsert.resource)) {
                Ok(()) if upsert.unchanged && !self.again => {}
                Ok(()) => return Some(upsert.resource),
                Err(reason) => self.from.update.reject(&upsert.name, reason),
            }
        }
    }
}

/// Hands what is accepted of a whole update to `apply`, with the names of what is gone, and acknowledges.
fn decide<T: Resource>(
    mut update: Encoded<T>,
    accept: &mut Accept,
    candidate: for<'b> fn(&'b T) -> Candidate<'b>,
    again: bool,
    apply: impl FnOnce(Sifted<'_, T>, &[String]) -> Vec<Change>,
) -> Vec<Change> {
    let removed = removed(&mut update);
    let changes = apply(Sifted { from: &mut update, accept, candidate, again }, &removed);
    update.update.accept();
    changes
}

/// What is gone. How long a parent waits for a child that does not come is the parent's own timer.
fn removed<T>(update: &mut Encoded<T>) -> Vec<String> {
    match update.update.lapse {
        Some(LapseReason::Missing) => Vec::new(),
        _ => std::mem::take(&mut update.update.removed),
    }
}

async fn next<T: Resource>(watch: &mut Option<Watch<T>>) -> Option<Encoded<T>> {
    match watch {
        Some(watch) => watch.next_encoded().await,
        None => std::future::pending().await,
    }
}

async fn at(when: Option<Instant>) {
    match when {
        Some(when) => sleep_until(when).await,
        None => std::future::pending().await,
    }
}
