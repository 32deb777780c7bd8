//! The clusters of a proxy, and the endpoints that were given for them.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering::Relaxed},
};

use arc_swap::ArcSwap;

use super::{ClusterRuntime, outlier};
use crate::{
    config::{Cluster, Discovery, LbPolicy, LoadAssignment, Locality, LocalityEndpoints},
    error::{ApplyError, ConfigError},
    proxy::{ClusterSnapshot, EndpointSnapshot},
    telemetry::Stats,
};

type Table = HashMap<Arc<str>, Arc<ClusterRuntime>>;

/// All clusters. Lookup is lock-free; changes are serialised.
#[derive(Debug, Default)]
pub(crate) struct ClusterManager {
    active: ArcSwap<Table>,
    assignments: Mutex<Assignments>,
}

type Assignments = BTreeMap<Arc<str>, Given>;

/// Endpoints that were given for an EDS service name.
#[derive(Debug)]
enum Given {
    /// No cluster has taken them yet.
    Kept(Arc<LoadAssignment>),
    /// Clusters have made hosts of them, from which they can be told: there is no need to hold them twice.
    InUse,
}

fn refused(kind: &'static str, name: &Arc<str>, source: ConfigError) -> ApplyError {
    ApplyError::Config { kind, name: Arc::clone(name), source }
}

impl ClusterManager {
    fn assignments(&self) -> MutexGuard<'_, Assignments> {
        self.assignments.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn get(&self, name: &str) -> Option<Arc<ClusterRuntime>> {
        self.active.load().get(name).cloned()
    }

    /// Adds or replaces; returns the new cluster, for the tasks that serve it.
    pub(crate) fn apply(&self, config: Cluster, stats: &Stats) -> Result<Arc<ClusterRuntime>, ApplyError> {
        if config.name.is_empty() {
            return Err(refused("cluster", &config.name, ConfigError::Missing { field: "name".into() }));
        }
        validate_cluster(&config).map_err(|e| refused("cluster", &config.name, e))?;
        let mut assignments = self.assignments();
        let old = self.get(&config.name);
        if let Some(old) = old.as_ref().filter(|old| *old.config == config) {
            return Ok(Arc::clone(old));
        }
        let given = match &config.discovery {
            Discovery::Static(assignment) => Some(Arc::clone(assignment)),
            Discovery::Eds { service_name } => self.given(&assignments, service_name),
            // What was resolved before serves until the names are resolved again.
            Discovery::StrictDns { .. } | Discovery::LogicalDns { .. } => {
                old.as_ref().filter(|old| old.config.discovery == config.discovery).map(|old| resolved(old))
            }
            Discovery::OriginalDst { .. } => None,
        };
        let cluster = Arc::new(ClusterRuntime::new(Arc::new(config), old.as_deref(), stats));
        if let Some(given) = given {
            cluster.set_endpoints(&given, old.as_deref());
            if let Discovery::Eds { service_name } = &cluster.config.discovery {
                assignments.insert(Arc::clone(service_name), Given::InUse);
            }
        } else if let Some(old) = &old {
            cluster.adopt_original(old);
        }
        self.change(|table| table.insert(Arc::clone(&cluster.config.name), Arc::clone(&cluster)));
        if let Some(old) = &old {
            self.keep(&mut assignments, old);
        }
        drop(assignments);
        Ok(cluster)
    }

    /// The endpoints of a service name, if any were given.
    fn given(&self, assignments: &Assignments, service: &Arc<str>) -> Option<Arc<LoadAssignment>> {
        match assignments.get(service)? {
            Given::Kept(assignment) => Some(Arc::clone(assignment)),
            Given::InUse => self.one_of(service).map(|cluster| Arc::new(cluster.assignment(service))),
        }
    }

    /// Keeps the endpoints of a cluster that is gone when it was the last one that had them: another may come for them.
    fn keep(&self, assignments: &mut Assignments, gone: &ClusterRuntime) {
        let Discovery::Eds { service_name } = &gone.config.discovery else { return };
        if let Some(given @ Given::InUse) = assignments.get_mut(service_name)
            && self.one_of(service_name).is_none()
        {
            *given = Given::Kept(Arc::new(gone.assignment(service_name)));
        }
    }

    /// An active cluster with this EDS service name.
    fn one_of(&self, service: &str) -> Option<Arc<ClusterRuntime>> {
        self.active.load().values().find(|cluster| has_service(cluster, service)).cloned()
    }

    fn change<R>(&self, f: impl FnOnce(&mut Table) -> R) -> R {
        let mut table = Table::clone(&self.active.load());
        let result = f(&mut table);
        self.active.store(Arc::new(table));
        result
    }

    pub(crate) fn remove(&self, name: &str, stats: &Stats) -> bool {
        let mut assignments = self.assignments();
        let Some(gone) = self.change(|table| table.remove(name)) else { return false };
        self.keep(&mut assignments, &gone);
        drop(assignments);
        gone.retire();
        stats.remove_cluster(gone.config.stat_name());
        true
    }

    pub(crate) fn apply_endpoints(&self, assignment: LoadAssignment) -> Result<(), ApplyError> {
        validate(&assignment).map_err(|e| refused("load assignment", &assignment.cluster_name, e))?;
        let assignment = Arc::new(assignment);
        let mut assignments = self.assignments();
        let name = Arc::clone(&assignment.cluster_name);
        let is_used = self.update(&name, &assignment);
        assignments.insert(name, if is_used { Given::InUse } else { Given::Kept(assignment) });
        drop(assignments);
        Ok(())
    }

    pub(crate) fn remove_endpoints(&self, service: &str) -> bool {
        let mut assignments = self.assignments();
        let known = assignments.remove(service).is_some();
        if known {
            self.update(service, &LoadAssignment::new(service, []));
        }
        drop(assignments);
        known
    }

    /// Returns whether any cluster has them now.
    fn update(&self, service: &str, assignment: &LoadAssignment) -> bool {
        let active = self.active.load();
        let clusters = active.values().filter(|cluster| has_service(cluster, service));
        clusters.inspect(|cluster| cluster.set_endpoints(assignment, None)).count() > 0
    }

    /// EDS service names that clusters wait for.
    pub(crate) fn missing(&self) -> Vec<Arc<str>> {
        let assignments = self.assignments();
        let mut missing: Vec<Arc<str>> = self
            .active
            .load()
            .values()
            .filter_map(|cluster| match &cluster.config.discovery {
                Discovery::Eds { service_name } if !assignments.contains_key(service_name) => {
                    Some(Arc::clone(service_name))
                }
                _ => None,
            })
            .collect();
        missing.sort();
        missing.dedup();
        missing
    }

    pub(crate) fn sweep_idle(&self) {
        for cluster in self.active.load().values() {
            cluster.sweep_idle();
        }
    }

    pub(crate) fn snapshot(&self) -> Vec<ClusterSnapshot> {
        let mut clusters: Vec<_> = self.active.load().values().cloned().collect();
        clusters.sort_by(|a, b| a.config.name.cmp(&b.config.name));
        clusters
            .iter()
            .map(|cluster| ClusterSnapshot {
                config: Arc::clone(&cluster.config),
                warming: !cluster.warm.load(Relaxed),
                endpoints: cluster.hosts().all.iter().map(|host| snapshot(host)).collect(),
            })
            .collect()
    }

    /// Starts the tasks that serve a cluster.
    pub(crate) fn serve(cluster: &Arc<ClusterRuntime>, runtime: &tokio::runtime::Handle) {
        if let Some(config) = cluster.config.outlier_detection {
            runtime.spawn(outlier::run(Arc::downgrade(cluster), config.interval));
        }
        super::dns::serve(cluster, runtime);
    }
}

fn has_service(cluster: &ClusterRuntime, service: &str) -> bool {
    matches!(&cluster.config.discovery, Discovery::Eds { service_name } if **service_name == *service)
}

/// The endpoints that a DNS cluster has now.
fn resolved(cluster: &ClusterRuntime) -> Arc<LoadAssignment> {
    let endpoints = cluster.hosts().all.iter().map(|host| host.endpoint.clone()).collect();
    let localities = vec![LocalityEndpoints { endpoints, ..LocalityEndpoints::default() }];
    Arc::new(LoadAssignment { localities, ..LoadAssignment::new(&cluster.config.name, []) })
}

fn snapshot(host: &super::Host) -> EndpointSnapshot {
    EndpointSnapshot {
        address: host.address(),
        hostname: Arc::clone(&host.endpoint.hostname),
        locality: Locality::clone(&host.locality),
        priority: host.priority,
        weight: host.endpoint.weight,
        health: host.endpoint.health,
        ejected: host.outlier.ejected(),
        rq_active: host.rq_active.load(Relaxed).into(),
        cx_active: host.cx_active.load(Relaxed).into(),
        rq_total: host.rq_total.load(Relaxed),
        rq_error: host.rq_error.load(Relaxed),
        cx_total: host.cx_total.load(Relaxed),
        cx_connect_fail: host.cx_connect_fail.load(Relaxed),
    }
}

/// Refuses values that the data path could not work with.
fn validate_cluster(config: &Cluster) -> Result<(), ConfigError> {
    match config.lb {
        // A table that is not prime may never fill: a host's steps would only reach some of its slots.
        LbPolicy::Maglev { table_size } if table_size > MAGLEV_MOST || !is_prime(table_size) => {
            let why = format!("must be a prime of at most {MAGLEV_MOST}");
            return Err(ConfigError::invalid("maglev.table_size", table_size, why));
        }
        LbPolicy::RingHash { min, max, .. } if max > RING_MOST || min > max => {
            let why = format!("sizes go from the smallest to the largest, at most {RING_MOST}");
            return Err(ConfigError::invalid("ring_hash.minimum_ring_size", format!("{min}..{max}"), why));
        }
        _ => {}
    }
    if !(0.0..=100.0).contains(&config.panic_threshold) {
        let field = "healthy_panic_threshold";
        return Err(ConfigError::invalid(field, config.panic_threshold, "a percentage is from 0 to 100"));
    }
    if let Some(budget) = config.circuit_breakers.retry_budget
        && !(0.0..=100.0).contains(&budget.percent)
    {
        let field = "retry_budget.budget_percent";
        return Err(ConfigError::invalid(field, budget.percent, "a percentage is from 0 to 100"));
    }
    if let Some(detection) = config.outlier_detection
        && detection.interval.is_zero()
    {
        return Err(ConfigError::invalid("outlier_detection.interval", 0, "must be above 0"));
    }
    match &config.discovery {
        Discovery::Static(assignment) => validate(assignment),
        _ => Ok(()),
    }
}

const MAGLEV_MOST: u64 = 5_000_011;
const RING_MOST: u64 = 8 * 1024 * 1024;

fn is_prime(n: u64) -> bool {
    n >= 2 && (2..).take_while(|d| d * d <= n).all(|d| !n.is_multiple_of(d))
}

fn validate(assignment: &LoadAssignment) -> Result<(), ConfigError> {
    let mut levels: Vec<u32> = assignment.localities.iter().map(|l| l.priority).collect();
    levels.sort_unstable();
    levels.dedup();
    // Priorities are contiguous from 0 (Envoy refuses anything else).
    for (expected, level) in (0..).zip(&levels) {
        if *level != expected {
            return Err(ConfigError::invalid("endpoints.priority", level, format!("{expected} is missing")));
        }
    }
    for (i, locality) in assignment.localities.iter().enumerate() {
        if let Some(endpoint) = locality.endpoints.iter().find(|e| e.weight == 0) {
            let field = format!("endpoints[{i}].lb_endpoints.load_balancing_weight");
            return Err(ConfigError::invalid(field, endpoint.weight, "must be at least 1"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
