//! What handle and workers share.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use super::{ClusterSnapshot, ConnectionSnapshot, Missing, ProxyBuilder};
use crate::{
    config::{Cluster, Discovery, Listener, LoadAssignment, RouteConfiguration},
    error::{ApplyError, BuildError},
    telemetry::Stats,
};

#[derive(Debug)]
pub(crate) struct Shared {
    stats: Arc<Stats>,
    tables: Mutex<Tables>,
}

#[derive(Debug, Default)]
struct Tables {
    listeners: BTreeMap<Arc<str>, Arc<Listener>>,
    routes: BTreeMap<Arc<str>, Arc<RouteConfiguration>>,
    clusters: BTreeMap<Arc<str>, Arc<Cluster>>,
    endpoints: BTreeMap<Arc<str>, Arc<LoadAssignment>>,
}

impl Shared {
    pub(super) fn start(_builder: ProxyBuilder) -> Result<Arc<Self>, BuildError> {
        Ok(Arc::new(Self { stats: Arc::default(), tables: Mutex::default() }))
    }

    fn tables(&self) -> MutexGuard<'_, Tables> {
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn apply_listener(&self, listener: Listener) -> Result<(), ApplyError> {
        self.tables().listeners.insert(Arc::clone(&listener.name), Arc::new(listener));
        Ok(())
    }

    pub(super) fn remove_listener(&self, name: &str) -> bool {
        self.tables().listeners.remove(name).is_some()
    }

    pub(super) fn apply_routes(&self, routes: RouteConfiguration) -> Result<(), ApplyError> {
        self.tables().routes.insert(Arc::clone(&routes.name), Arc::new(routes));
        Ok(())
    }

    pub(super) fn remove_routes(&self, name: &str) -> bool {
        self.tables().routes.remove(name).is_some()
    }

    pub(super) fn apply_cluster(&self, cluster: Cluster) -> Result<(), ApplyError> {
        self.tables().clusters.insert(Arc::clone(&cluster.name), Arc::new(cluster));
        Ok(())
    }

    pub(super) fn remove_cluster(&self, name: &str) -> bool {
        self.tables().clusters.remove(name).is_some()
    }

    pub(super) fn apply_endpoints(&self, endpoints: LoadAssignment) -> Result<(), ApplyError> {
        self.tables().endpoints.insert(Arc::clone(&endpoints.cluster_name), Arc::new(endpoints));
        Ok(())
    }

    pub(super) fn remove_endpoints(&self, service_name: &str) -> bool {
        self.tables().endpoints.remove(service_name).is_some()
    }

    pub(super) fn missing(&self) -> Missing {
        let tables = self.tables();
        let routes = tables.listeners.values().flat_map(|l| l.route_names());
        let endpoints = tables.clusters.values().filter_map(|c| match &c.discovery {
            Discovery::Eds { service_name } => Some(service_name),
            _ => None,
        });
        Missing {
            routes: routes.filter(|name| !tables.routes.contains_key(name)).collect(),
            endpoints: endpoints.filter(|name| !tables.endpoints.contains_key(*name)).cloned().collect(),
        }
    }

    pub(super) fn listeners(&self) -> Vec<Arc<Listener>> {
        self.tables().listeners.values().cloned().collect()
    }

    pub(super) fn bound_addresses(&self, _listener: &str) -> Vec<SocketAddr> {
        Vec::new()
    }

    pub(super) fn routes(&self) -> Vec<Arc<RouteConfiguration>> {
        self.tables().routes.values().cloned().collect()
    }

    pub(super) fn clusters(&self) -> Vec<ClusterSnapshot> {
        let clusters = self.tables().clusters.values().cloned().collect::<Vec<_>>();
        clusters
            .into_iter()
            .map(|config| ClusterSnapshot { config, endpoints: Vec::new(), warming: false })
            .collect()
    }

    pub(super) fn connections(&self) -> Vec<ConnectionSnapshot> {
        Vec::new()
    }

    pub(super) fn stats(&self) -> &Arc<Stats> {
        &self.stats
    }

    pub(super) fn prometheus(&self) -> String {
        self.stats.prometheus()
    }

    pub(super) fn drain(&self, _inbound_only: bool) {}

    pub(super) async fn shutdown(&self, _deadline: Duration) -> usize {
        0
    }
}
