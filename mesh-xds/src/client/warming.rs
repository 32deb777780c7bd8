//! Dependency order: nothing is handed over before what it needs is there.
//!
//! A cluster with endpoints from EDS waits for a `ClusterLoadAssignment` that arrives after it; a listener with routes
//! from RDS waits for those it does not know yet; where secrets are followed, both wait for those that they refer to over
//! ADS. Until then the previous version serves. `initial_fetch_timeout` of the reference bounds the wait (default 15 s,
//! zero waits forever); after it the resource is handed over without.
//!
//! Listeners and routes that arrive while a cluster is new and not yet warm wait for it too, so that a route never leads
//! to a cluster that is about to exist: on a start for as long as the clusters take, later for at most [`MAX_HOLD`].

mod references;
mod slot;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use prost::Message as _;

use crate::pb::envoy::config::cluster::v3::Cluster;
use crate::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use crate::pb::envoy::config::listener::v3::Listener;
use crate::pb::envoy::config::route::v3::RouteConfiguration;
use crate::pb::envoy::extensions::transport_sockets::tls::v3::Secret;

use references::{Kind, Reference, endpoints_of, routes_of, secrets_of_cluster, secrets_of_listener};
use slot::{Slot, Waiting};

/// How long listeners and routes are held back for new clusters once the first configuration is complete.
pub const MAX_HOLD: Duration = Duration::from_secs(2);

/// A resource that is offered for acceptance, decoded. Of a secret the `Debug` form says the name only.
#[derive(Clone, Copy)]
pub enum Candidate<'a> {
    /// From CDS.
    Cluster(&'a Cluster),
    /// From EDS.
    Endpoints(&'a ClusterLoadAssignment),
    /// From LDS.
    Listener(&'a Listener),
    /// From RDS.
    Routes(&'a RouteConfiguration),
    /// From SDS, where secrets are followed.
    Secret(&'a Secret),
}

impl fmt::Debug for Candidate<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cluster(cluster) => f.debug_tuple("Cluster").field(cluster).finish(),
            Self::Endpoints(endpoints) => f.debug_tuple("Endpoints").field(endpoints).finish(),
            Self::Listener(listener) => f.debug_tuple("Listener").field(listener).finish(),
            Self::Routes(routes) => f.debug_tuple("Routes").field(routes).finish(),
            Self::Secret(secret) => f.debug_tuple("Secret").field(&secret.name).finish(),
        }
    }
}

/// What is to be applied, in this order. Of a secret the `Debug` form says the name only.
#[derive(Clone, PartialEq)]
pub enum Change {
    /// A cluster is new, or its definition changed, and it is warm.
    Cluster {
        /// The definition.
        cluster: Arc<Cluster>,
        /// Its endpoints, for an EDS cluster. `None` when it has no EDS, or when its endpoints did not come in time:
        /// then those of its previous version, if any, stay.
        endpoints: Option<Arc<ClusterLoadAssignment>>,
    },
    /// The endpoints of every cluster with this EDS name changed.
    Endpoints {
        /// The names of the clusters.
        clusters: Vec<String>,
        /// The endpoints.
        endpoints: Arc<ClusterLoadAssignment>,
    },
    /// A listener is new, or its definition changed, and it is warm.
    Listener {
        /// The definition.
        listener: Arc<Listener>,
        /// The route configurations it refers to, as far as they exist.
        routes: Vec<Arc<RouteConfiguration>>,
    },
    /// A route configuration that an active listener refers to changed.
    Routes(Arc<RouteConfiguration>),
    /// A secret is new, before anything that needs it, or it changed.
    Secret(Arc<Secret>),
    /// A listener is gone.
    ListenerRemoved(String),
    /// A cluster is gone.
    ClusterRemoved(String),
}

impl fmt::Debug for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cluster { cluster, endpoints } => {
                let mut shown = f.debug_struct("Cluster");
                shown.field("cluster", cluster).field("endpoints", endpoints).finish()
            }
            Self::Endpoints { clusters, endpoints } => {
                let mut shown = f.debug_struct("Endpoints");
                shown.field("clusters", clusters).field("endpoints", endpoints).finish()
            }
            Self::Listener { listener, routes } => {
                let mut shown = f.debug_struct("Listener");
                shown.field("listener", listener).field("routes", routes).finish()
            }
            Self::Routes(routes) => f.debug_tuple("Routes").field(routes).finish(),
            Self::Secret(secret) => f.debug_tuple("Secret").field(&secret.name).finish(),
            Self::ListenerRemoved(name) => f.debug_tuple("ListenerRemoved").field(name).finish(),
            Self::ClusterRemoved(name) => f.debug_tuple("ClusterRemoved").field(name).finish(),
        }
    }
}

/// What to subscribe to as a consequence.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Follow {
    /// The `ClusterLoadAssignment`s that clusters refer to; the whole set.
    pub endpoints: BTreeSet<String>,
    /// Of those, the ones to ask for again because a cluster was redefined.
    pub endpoints_again: Vec<String>,
    /// The route configurations that listeners refer to; the whole set.
    pub routes: BTreeSet<String>,
    /// The secrets that clusters and listeners refer to, where secrets are followed; the whole set.
    pub secrets: BTreeSet<String>,
}

/// The dependency graph of one client: accepted resources in, changes in a safe order out.
#[derive(Debug, Default)]
pub struct Warming {
    clusters: BTreeMap<String, Slot>,
    listeners: BTreeMap<String, Slot>,
    /// Encoded, because most are never looked at again.
    endpoints: BTreeMap<String, Bytes>,
    routes: BTreeMap<String, Bytes>,
    /// Of secrets only the names: nobody but the consumer has to hold keys.
    secrets: BTreeSet<String>,
    /// Names that the server said do not exist.
    no_endpoints: BTreeSet<String>,
    no_routes: BTreeSet<String>,
    follows_secrets: bool,
    again: Vec<String>,
    /// Whether the first clusters came, and whether all of them were warm once.
    clusters_seen: bool,
    started: bool,
    /// Route configurations that changed and wait for new clusters, and until when they wait.
    held_routes: BTreeSet<String>,
    held_until: Option<Duration>,
}

impl Warming {
    /// Nothing is known yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Secrets are followed too, and waited for.
    #[must_use]
    pub fn with_secrets() -> Self {
        Self { follows_secrets: true, ..Self::default() }
    }

    /// Clusters came or went. A redefined one waits for endpoints that arrive from now on.
    pub fn on_clusters(
        &mut self,
        now: Duration,
        clusters: impl IntoIterator<Item = Arc<Cluster>>,
        removed: &[String],
    ) -> Vec<Change> {
        let mut changes = Vec::new();
        self.clusters_seen = true;
        for cluster in clusters {
            let name = cluster.name.clone();
            let endpoints = endpoints_of(&cluster);
            let mut slot = self.clusters.remove(&name).unwrap_or_default();
            // Endpoints that another cluster brought serve a new one; a redefined one asks for them again.
            let is_new = slot.active.is_none();
            if let Some(eds) =
                endpoints.as_ref().filter(|eds| !is_new || !self.endpoints.contains_key(&eds.name))
            {
                if self.endpoints.contains_key(&eds.name) || self.no_endpoints.contains(&eds.name) {
                    self.again.push(eds.name.clone());
                }
                self.no_endpoints.remove(&eds.name);
            }
            let secrets = if self.follows_secrets { secrets_of_cluster(&cluster) } else { Vec::new() };
            let references = endpoints.into_iter().chain(secrets).collect();
            let waiting = Waiting::new(now, &*cluster, references, |r| match r.kind {
                Kind::Endpoints => !is_new || !self.endpoints.contains_key(&r.name),
                _ => self.is_unknown(r),
            });
            let ready = waiting.missing.is_empty();
            slot.warming = Some(waiting);
            self.clusters.insert(name.clone(), slot);
            if ready {
                changes.extend(self.activate_cluster(&name));
            }
        }
        for name in removed {
            if self.clusters.remove(name).is_some_and(|slot| slot.active.is_some()) {
                changes.push(Change::ClusterRemoved(name.clone()));
            }
        }
        self.forget_unreferenced();
        self.release(now, &mut changes);
        changes
    }

    /// Endpoints came, or do not exist.
    pub fn on_endpoints(
        &mut self,
        now: Duration,
        endpoints: impl IntoIterator<Item = Arc<ClusterLoadAssignment>>,
        removed: &[String],
    ) -> Vec<Change> {
        let mut changes = Vec::new();
        for assignment in endpoints {
            let name = assignment.cluster_name.clone();
            let bytes = Bytes::from(assignment.encode_to_vec());
            let news = self.endpoints.insert(name.clone(), bytes.clone()).is_none_or(|old| old != bytes);
            self.no_endpoints.remove(&name);
            let activated = self.found_for_clusters(Kind::Endpoints, &name, &mut changes);
            let serves = |(cluster, slot): &(&String, &Slot)| {
                slot.serves_with(Kind::Endpoints, &name) && !activated.contains(*cluster)
            };
            let clusters: Vec<_> =
                self.clusters.iter().filter(serves).map(|(cluster, _)| cluster.clone()).collect();
            if news && !clusters.is_empty() {
                changes.push(Change::Endpoints { clusters, endpoints: assignment });
            }
        }
        for name in removed {
            self.no_endpoints.insert(name.clone());
            self.found_for_clusters(Kind::Endpoints, name, &mut changes);
        }
        self.release(now, &mut changes);
        changes
    }

    /// Secrets came. What comes is handed on at once, for it always is news to somebody. That one does not exist is no
    /// news: without it nobody could serve, so whoever waits waits on, and what is in use stays in use.
    pub fn on_secrets(
        &mut self,
        now: Duration,
        secrets: impl IntoIterator<Item = Arc<Secret>>,
    ) -> Vec<Change> {
        let mut changes = Vec::new();
        let mut ready = Vec::new();
        for secret in secrets {
            let name = secret.name.clone();
            changes.push(Change::Secret(secret));
            self.found_for_clusters(Kind::Secret, &name, &mut ready);
            self.found_for_listeners(Kind::Secret, &name);
            self.secrets.insert(name);
        }
        changes.append(&mut ready);
        self.release(now, &mut changes);
        changes
    }

    /// Listeners came or went.
    pub fn on_listeners(
        &mut self,
        now: Duration,
        listeners: impl IntoIterator<Item = Arc<Listener>>,
        removed: &[String],
    ) -> Vec<Change> {
        let mut changes = Vec::new();
        for listener in listeners {
            let name = listener.name.clone();
            let secrets = if self.follows_secrets { secrets_of_listener(&listener) } else { Vec::new() };
            let references = routes_of(&listener).into_iter().chain(secrets).collect();
            let waiting = Waiting::new(now, &*listener, references, |r| self.is_unknown(r));
            self.listeners.entry(name).or_default().warming = Some(waiting);
        }
        for name in removed {
            if self.listeners.remove(name).is_some_and(|slot| slot.active.is_some()) {
                changes.push(Change::ListenerRemoved(name.clone()));
            }
        }
        self.forget_unreferenced();
        self.release(now, &mut changes);
        changes
    }

    /// Route configurations came, or do not exist.
    pub fn on_routes(
        &mut self,
        now: Duration,
        routes: impl IntoIterator<Item = Arc<RouteConfiguration>>,
        removed: &[String],
    ) -> Vec<Change> {
        for routes in routes {
            let name = routes.name.clone();
            let bytes = Bytes::from(routes.encode_to_vec());
            let news = self.routes.insert(name.clone(), bytes.clone()).is_none_or(|old| old != bytes);
            self.no_routes.remove(&name);
            if news {
                self.held_routes.insert(name.clone());
            }
            self.found_for_listeners(Kind::Routes, &name);
        }
        for name in removed {
            self.no_routes.insert(name.clone());
            self.found_for_listeners(Kind::Routes, name);
        }
        let mut changes = Vec::new();
        self.release(now, &mut changes);
        changes
    }

    fn is_unknown(&self, reference: &Reference) -> bool {
        let name = &reference.name;
        match reference.kind {
            Kind::Endpoints => !self.endpoints.contains_key(name) && !self.no_endpoints.contains(name),
            Kind::Routes => !self.routes.contains_key(name) && !self.no_routes.contains(name),
            Kind::Secret => !self.secrets.contains(name),
        }
    }

    /// Hands over the clusters for which this was the last thing missing, and returns their names.
    fn found_for_clusters(&mut self, kind: Kind, name: &str, changes: &mut Vec<Change>) -> Vec<String> {
        let waiting = self.clusters.iter_mut().filter(|(_, slot)| slot.waits(kind, name));
        let ready: Vec<_> =
            waiting.filter_map(|(cluster, slot)| slot.found(kind, name).then(|| cluster.clone())).collect();
        for cluster in &ready {
            changes.extend(self.activate_cluster(cluster));
        }
        ready
    }

    /// The same for listeners, which [`release`](Self::release) hands over.
    fn found_for_listeners(&mut self, kind: Kind, name: &str) {
        for slot in self.listeners.values_mut() {
            slot.found(kind, name);
        }
    }

    /// Hands over routes and listeners that have what they need, unless a new cluster is about to be warm.
    fn release(&mut self, now: Duration, changes: &mut Vec<Change>) {
        let new_cluster = self.clusters.values().any(|slot| slot.active.is_none() && slot.warming.is_some());
        let closed = !self.clusters_seen || new_cluster;
        self.started |= !closed;
        let ready = |slot: &Slot| slot.warming.as_ref().is_some_and(|w| w.missing.is_empty());
        let listeners: Vec<_> =
            self.listeners.iter().filter(|(_, slot)| ready(slot)).map(|(name, _)| name.clone()).collect();
        if listeners.is_empty() && self.held_routes.is_empty() {
            self.held_until = None;
            return;
        }
        if closed {
            let limit = self.started.then(|| *self.held_until.get_or_insert(now + MAX_HOLD));
            if limit.is_none_or(|limit| limit > now) {
                return;
            }
        }
        self.held_until = None;
        for name in std::mem::take(&mut self.held_routes) {
            let used = self.listeners.values().any(|slot| slot.serves_with(Kind::Routes, &name));
            let routes = self.routes.get(&name).filter(|_| used);
            let routes = routes.and_then(|bytes| RouteConfiguration::decode(bytes.clone()).ok());
            changes.extend(routes.map(|routes| Change::Routes(Arc::new(routes))));
        }
        for name in listeners {
            changes.extend(self.activate_listener(&name));
        }
    }

    /// When [`on_timer`](Self::on_timer) has something to say.
    #[must_use]
    pub fn next_timer(&self) -> Option<Duration> {
        let clusters = self.clusters.values().filter_map(|s| s.warming.as_ref()?.until);
        let listeners = self.listeners.values().filter_map(|s| s.warming.as_ref()?.until);
        clusters.chain(listeners).chain(self.held_until).min()
    }

    /// Hands over what has waited long enough, without what is missing.
    pub fn on_timer(&mut self, now: Duration) -> Vec<Change> {
        fn late(slots: &BTreeMap<String, Slot>, now: Duration) -> Vec<String> {
            let over = |slot: &Slot| slot.warming.as_ref().and_then(|w| w.until).is_some_and(|at| at <= now);
            slots.iter().filter(|(_, slot)| over(slot)).map(|(name, _)| name.clone()).collect()
        }
        let mut changes = Vec::new();
        for name in late(&self.clusters, now) {
            changes.extend(self.activate_cluster(&name));
        }
        for name in late(&self.listeners, now) {
            if let Some(waiting) = self.listeners.get_mut(&name).and_then(|slot| slot.warming.as_mut()) {
                waiting.missing.clear();
                waiting.until = None;
            }
        }
        self.release(now, &mut changes);
        changes
    }

    /// What has to be subscribed to now. `endpoints_again` is handed out once.
    pub fn follow(&mut self) -> Follow {
        let endpoints = self.names(Kind::Endpoints).map(str::to_owned).collect();
        let routes = self.names(Kind::Routes).map(str::to_owned).collect();
        let secrets = self.names(Kind::Secret).map(str::to_owned).collect();
        Follow { endpoints, endpoints_again: std::mem::take(&mut self.again), routes, secrets }
    }

    /// Every name of a kind that something refers to.
    fn names(&self, kind: Kind) -> impl Iterator<Item = &str> {
        let clusters = self.clusters.values().flat_map(Slot::references);
        let all = clusters.chain(self.listeners.values().flat_map(Slot::references));
        all.filter(move |r| r.kind == kind).map(|r| r.name.as_str())
    }

    /// Names of clusters and listeners that wait for what they need.
    #[must_use]
    pub fn waiting(&self) -> (Vec<&str>, Vec<&str>) {
        let clusters = self.clusters.iter().filter(|(_, s)| s.warming.is_some()).map(|(n, _)| n.as_str());
        let listeners = self.listeners.iter().filter(|(_, s)| s.warming.is_some()).map(|(n, _)| n.as_str());
        (clusters.collect(), listeners.collect())
    }

    /// The name of something that waits, if anything does.
    #[must_use]
    pub fn next_waiting(&self) -> Option<&str> {
        let clusters = self.clusters.iter().filter(|(_, s)| s.warming.is_some()).map(|(n, _)| n.as_str());
        let listeners = self.listeners.iter().filter(|(_, s)| s.warming.is_some()).map(|(n, _)| n.as_str());
        clusters.chain(listeners).next()
    }

    /// With the endpoints that came; without, where they do not exist or did not come in time.
    fn activate_cluster(&mut self, name: &str) -> Option<Change> {
        let slot = self.clusters.get_mut(name)?;
        let Waiting { resource, references, missing, .. } = slot.warming.take()?;
        let is_there = |r: &&Reference| {
            let came = !missing.contains(&(r.kind, r.name.clone())) && !self.no_endpoints.contains(&r.name);
            r.kind == Kind::Endpoints && came
        };
        let bytes = references.iter().find(is_there).and_then(|r| self.endpoints.get(&r.name));
        let endpoints = bytes.and_then(|b| ClusterLoadAssignment::decode(b.clone()).ok()).map(Arc::new);
        slot.active = Some(references);
        Some(Change::Cluster { cluster: Arc::new(Cluster::decode(resource).ok()?), endpoints })
    }

    fn activate_listener(&mut self, name: &str) -> Option<Change> {
        let slot = self.listeners.get_mut(name)?;
        let waiting = slot.warming.take()?;
        let routes = waiting.references.iter().filter(|r| r.kind == Kind::Routes);
        let known = routes.filter_map(|r| self.routes.get(&r.name));
        let routes = known.filter_map(|b| RouteConfiguration::decode(b.clone()).ok().map(Arc::new)).collect();
        slot.active = Some(waiting.references);
        Some(Change::Listener { listener: Arc::new(Listener::decode(waiting.resource).ok()?), routes })
    }

    /// A resource that nobody refers to dies with its last parent.
    fn forget_unreferenced(&mut self) {
        let used = |kind| self.names(kind).map(str::to_owned).collect::<BTreeSet<_>>();
        let (endpoints, routes, secrets) = (used(Kind::Endpoints), used(Kind::Routes), used(Kind::Secret));
        self.endpoints.retain(|name, _| endpoints.contains(name));
        self.no_endpoints.retain(|name| endpoints.contains(name));
        self.routes.retain(|name, _| routes.contains(name));
        self.held_routes.retain(|name| routes.contains(name));
        self.no_routes.retain(|name| routes.contains(name));
        self.secrets.retain(|name| secrets.contains(name));
    }
}
