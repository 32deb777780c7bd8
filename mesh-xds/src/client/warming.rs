//! Dependency order: nothing is handed over before what it needs is there.
//!
//! A cluster with endpoints from EDS waits for a `ClusterLoadAssignment` that arrives after it; a listener with routes
//! from RDS waits for those it does not know yet. Until then the previous version serves. `initial_fetch_timeout` of
//! the reference bounds the wait (default 15 s, zero waits forever); after it the resource is handed over without.
//!
//! Listeners and routes that arrive while a cluster is new and not yet warm wait for it too, so that a route never leads
//! to a cluster that is about to exist: on a start for as long as the clusters take, later for at most [`MAX_HOLD`].

mod references;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use prost::Message as _;

use crate::pb::envoy::config::cluster::v3::Cluster;
use crate::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use crate::pb::envoy::config::listener::v3::Listener;
use crate::pb::envoy::config::route::v3::RouteConfiguration;

use references::{Reference, endpoints_of, routes_of};

/// How long listeners and routes are held back for new clusters once the first configuration is complete.
pub const MAX_HOLD: Duration = Duration::from_secs(2);

/// A resource that is offered for acceptance, decoded.
#[derive(Debug, Clone, Copy)]
pub enum Candidate<'a> {
    /// From CDS.
    Cluster(&'a Cluster),
    /// From EDS.
    Endpoints(&'a ClusterLoadAssignment),
    /// From LDS.
    Listener(&'a Listener),
    /// From RDS.
    Routes(&'a RouteConfiguration),
}

/// What is to be applied, in this order.
#[derive(Debug, Clone, PartialEq)]
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
    /// A listener is gone.
    ListenerRemoved(String),
    /// A cluster is gone.
    ClusterRemoved(String),
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
}

/// One cluster or listener: what serves, and what waits to serve.
#[derive(Debug, Clone)]
struct Slot<T> {
    /// The references of the version that serves.
    active: Option<Vec<Reference>>,
    warming: Option<Waiting<T>>,
}

#[derive(Debug, Clone)]
struct Waiting<T> {
    resource: Arc<T>,
    references: Vec<Reference>,
    missing: BTreeSet<String>,
    until: Option<Duration>,
}

impl<T> Default for Slot<T> {
    fn default() -> Self {
        Self { active: None, warming: None }
    }
}

impl<T> Slot<T> {
    fn references(&self) -> impl Iterator<Item = &Reference> {
        self.active.iter().flatten().chain(self.warming.iter().flat_map(|w| &w.references))
    }
}

/// The dependency graph of one client: accepted resources in, changes in a safe order out.
#[derive(Debug, Default)]
pub struct Warming {
    clusters: BTreeMap<String, Slot<Cluster>>,
    listeners: BTreeMap<String, Slot<Listener>>,
    /// Encoded, because most are never looked at again.
    endpoints: BTreeMap<String, Bytes>,
    routes: BTreeMap<String, Bytes>,
    /// Names that the server said do not exist.
    no_endpoints: BTreeSet<String>,
    no_routes: BTreeSet<String>,
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

    /// Clusters came or went. A redefined one waits for endpoints that arrive from now on.
    pub fn on_clusters(
        &mut self,
        now: Duration,
        clusters: Vec<Arc<Cluster>>,
        removed: &[String],
    ) -> Vec<Change> {
        let mut changes = Vec::new();
        self.clusters_seen = true;
        for cluster in clusters {
            let name = cluster.name.clone();
            let reference = endpoints_of(&cluster);
            let slot = self.clusters.entry(name.clone()).or_default();
            let Some(reference) = reference else {
                *slot = Slot { active: Some(Vec::new()), warming: None };
                changes.push(Change::Cluster { cluster, endpoints: None });
                continue;
            };
            let known = self.endpoints.get(&reference.name).filter(|_| slot.active.is_none());
            if let Some(known) = known {
                // Another cluster with the same endpoints brought them already.
                let endpoints = ClusterLoadAssignment::decode(known.clone()).ok().map(Arc::new);
                *slot = Slot { active: Some(vec![reference]), warming: None };
                changes.push(Change::Cluster { cluster, endpoints });
                continue;
            }
            if self.endpoints.contains_key(&reference.name) || self.no_endpoints.contains(&reference.name) {
                self.again.push(reference.name.clone());
            }
            self.no_endpoints.remove(&reference.name);
            let until = reference.timeout.map(|timeout| now + timeout);
            let missing = BTreeSet::from([reference.name.clone()]);
            slot.warming = Some(Waiting { resource: cluster, references: vec![reference], missing, until });
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
        endpoints: Vec<Arc<ClusterLoadAssignment>>,
        removed: &[String],
    ) -> Vec<Change> {
        let mut changes = Vec::new();
        for assignment in endpoints {
            let name = assignment.cluster_name.clone();
            let bytes = Bytes::from(assignment.encode_to_vec());
            let news = self.endpoints.insert(name.clone(), bytes.clone()).is_none_or(|old| old != bytes);
            self.no_endpoints.remove(&name);
            let serving: Vec<_> =
                self.clusters_at(&name, |slot| slot.warming.is_none() && slot.active.is_some());
            for cluster in self.clusters_at(&name, |slot| slot.warming.is_some()) {
                changes.extend(self.activate_cluster(&cluster, Some(assignment.clone())));
            }
            if news && !serving.is_empty() {
                changes.push(Change::Endpoints { clusters: serving, endpoints: assignment });
            }
        }
        for name in removed {
            self.no_endpoints.insert(name.clone());
            for cluster in self.clusters_at(name, |slot| slot.warming.is_some()) {
                changes.extend(self.activate_cluster(&cluster, None));
            }
        }
        self.release(now, &mut changes);
        changes
    }

    /// Listeners came or went.
    pub fn on_listeners(
        &mut self,
        now: Duration,
        listeners: Vec<Arc<Listener>>,
        removed: &[String],
    ) -> Vec<Change> {
        let mut changes = Vec::new();
        for listener in listeners {
            let name = listener.name.clone();
            let references = routes_of(&listener);
            let unknown =
                |r: &&Reference| !self.routes.contains_key(&r.name) && !self.no_routes.contains(&r.name);
            let missing: BTreeSet<_> = references.iter().filter(unknown).map(|r| r.name.clone()).collect();
            let waits = references.iter().filter(|r| missing.contains(&r.name)).map(|r| r.timeout);
            // One reference that may wait forever makes the listener wait forever.
            let timeout = waits.collect::<Option<Vec<_>>>().and_then(|t| t.into_iter().max());
            let until = timeout.map(|timeout| now + timeout);
            let slot = self.listeners.entry(name).or_default();
            slot.warming = Some(Waiting { resource: listener, references, missing, until });
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
        routes: Vec<Arc<RouteConfiguration>>,
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
            self.no_longer_missing(&name);
        }
        for name in removed {
            self.no_routes.insert(name.clone());
            self.no_longer_missing(name);
        }
        let mut changes = Vec::new();
        self.release(now, &mut changes);
        changes
    }

    fn no_longer_missing(&mut self, routes: &str) {
        for waiting in self.listeners.values_mut().filter_map(|slot| slot.warming.as_mut()) {
            waiting.missing.remove(routes);
        }
    }

    /// Hands over routes and listeners that have what they need, unless a new cluster is about to be warm.
    fn release(&mut self, now: Duration, changes: &mut Vec<Change>) {
        let new_cluster = self.clusters.values().any(|slot| slot.active.is_none() && slot.warming.is_some());
        let closed = !self.clusters_seen || new_cluster;
        self.started |= !closed;
        let ready = |slot: &Slot<Listener>| slot.warming.as_ref().is_some_and(|w| w.missing.is_empty());
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
            let used = self.listeners.values().any(|s| s.active.iter().flatten().any(|r| r.name == name));
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
        fn late<T>(slots: &BTreeMap<String, Slot<T>>, now: Duration) -> Vec<String> {
            let over =
                |slot: &Slot<T>| slot.warming.as_ref().and_then(|w| w.until).is_some_and(|at| at <= now);
            slots.iter().filter(|(_, slot)| over(slot)).map(|(name, _)| name.clone()).collect()
        }
        let mut changes = Vec::new();
        for name in late(&self.clusters, now) {
            changes.extend(self.activate_cluster(&name, None));
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
        let endpoints = self.clusters.values().flat_map(Slot::references).map(|r| r.name.clone()).collect();
        let routes = self.listeners.values().flat_map(Slot::references).map(|r| r.name.clone()).collect();
        Follow { endpoints, endpoints_again: std::mem::take(&mut self.again), routes }
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

    fn clusters_at(&self, endpoints: &str, wanted: impl Fn(&Slot<Cluster>) -> bool) -> Vec<String> {
        let refers = |slot: &Slot<Cluster>| slot.references().any(|r| r.name == endpoints);
        let found = self.clusters.iter().filter(|(_, slot)| wanted(slot) && refers(slot));
        found.map(|(name, _)| name.clone()).collect()
    }

    fn activate_cluster(
        &mut self,
        name: &str,
        endpoints: Option<Arc<ClusterLoadAssignment>>,
    ) -> Option<Change> {
        let slot = self.clusters.get_mut(name)?;
        let waiting = slot.warming.take()?;
        slot.active = Some(waiting.references);
        Some(Change::Cluster { cluster: waiting.resource, endpoints })
    }

    fn activate_listener(&mut self, name: &str) -> Option<Change> {
        let slot = self.listeners.get_mut(name)?;
        let waiting = slot.warming.take()?;
        let known = waiting.references.iter().filter_map(|r| self.routes.get(&r.name));
        let routes = known.filter_map(|b| RouteConfiguration::decode(b.clone()).ok().map(Arc::new)).collect();
        slot.active = Some(waiting.references);
        Some(Change::Listener { listener: waiting.resource, routes })
    }

    /// A resource that nobody refers to dies with its last parent.
    fn forget_unreferenced(&mut self) {
        let used: BTreeSet<&str> =
            self.clusters.values().flat_map(Slot::references).map(|r| r.name.as_str()).collect();
        self.endpoints.retain(|name, _| used.contains(name.as_str()));
        self.no_endpoints.retain(|name| used.contains(name.as_str()));
        let used: BTreeSet<&str> =
            self.listeners.values().flat_map(Slot::references).map(|r| r.name.as_str()).collect();
        self.routes.retain(|name, _| used.contains(name.as_str()));
        self.held_routes.retain(|name| used.contains(name.as_str()));
        self.no_routes.retain(|name| used.contains(name.as_str()));
    }
}
