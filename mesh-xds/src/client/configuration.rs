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
use super::watch::{Update, Watch};

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
    /// An empty list comes at most once: when the first configuration is complete and its last part changed nothing.
    /// Acknowledgements go out while this is awaited: a consumer that stops calling it stops acknowledging. Cancel safe.
    pub async fn next(&mut self) -> Option<Vec<Change>> {
        loop {
            let timer = self.warming.next_timer().and_then(|at| self.started.checked_add(at));
            // In dependency order, so that of several responses the one that others need is taken first.
            let changes = tokio::select! {
                biased;
                update = self.clusters.next() => self.on_clusters(update?),
                update = self.endpoints.next() => self.on_endpoints(update?),
                update = self.listeners.next() => self.on_listeners(update?),
                update = self.routes.next() => self.on_routes(update?),
                update = next(&mut self.secrets) => self.on_secrets(update?),
                () = at(timer) => self.warming.on_timer(self.started.elapsed()),
            };
            self.follow();
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
        self.seen_clusters && self.seen_listeners && self.warming.next_waiting().is_none()
    }

    /// Names of clusters and of listeners that wait for endpoints or routes.
    #[must_use]
    pub fn waiting(&self) -> (Vec<&str>, Vec<&str>) {
        self.warming.waiting()
    }

    fn on_clusters(&mut self, update: Update<Cluster>) -> Vec<Change> {
        self.seen_clusters = true;
        let (new, removed) = sift(update, |r| (self.accept)(Candidate::Cluster(r)), false);
        self.warming.on_clusters(self.started.elapsed(), new, &removed)
    }

    fn on_endpoints(&mut self, update: Update<ClusterLoadAssignment>) -> Vec<Change> {
        let (new, removed) = sift(update, |r| (self.accept)(Candidate::Endpoints(r)), true);
        self.warming.on_endpoints(self.started.elapsed(), new, &removed)
    }

    fn on_listeners(&mut self, update: Update<Listener>) -> Vec<Change> {
        self.seen_listeners = true;
        let (new, removed) = sift(update, |r| (self.accept)(Candidate::Listener(r)), false);
        self.warming.on_listeners(self.started.elapsed(), new, &removed)
    }

    fn on_routes(&mut self, update: Update<RouteConfiguration>) -> Vec<Change> {
        let (new, removed) = sift(update, |r| (self.accept)(Candidate::Routes(r)), true);
        self.warming.on_routes(self.started.elapsed(), new, &removed)
    }

    fn on_secrets(&mut self, update: Update<Secret>) -> Vec<Change> {
        let (new, _) = sift(update, |r| (self.accept)(Candidate::Secret(r)), true);
        self.warming.on_secrets(self.started.elapsed(), new)
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

/// Asks about each resource, acknowledges, and returns what was accepted and what is gone.
fn sift<T: Resource>(
    mut update: Update<T>,
    mut accept: impl FnMut(&T) -> Result<(), String>,
    again: bool,
) -> (Vec<Arc<T>>, Vec<String>) {
    let mut accepted = Vec::new();
    for upsert in std::mem::take(&mut update.upserts) {
        match accept(&upsert.resource) {
            // What is in use already is handed on only where "it came again" is news: to a parent that waits for it.
            Ok(()) if upsert.unchanged && !again => {}
            Ok(()) => accepted.push(upsert.resource),
            Err(reason) => update.reject(&upsert.name, reason),
        }
    }
    // How long a parent waits for a child is the parent's own timer.
    let missing = update.lapse == Some(LapseReason::Missing);
    let removed = if missing { Vec::new() } else { std::mem::take(&mut update.removed) };
    update.accept();
    (accepted, removed)
}

async fn next<T: Resource>(watch: &mut Option<Watch<T>>) -> Option<Update<T>> {
    match watch {
        Some(watch) => watch.next().await,
        None => std::future::pending().await,
    }
}

async fn at(when: Option<Instant>) {
    match when {
        Some(when) => sleep_until(when).await,
        None => std::future::pending().await,
    }
}
