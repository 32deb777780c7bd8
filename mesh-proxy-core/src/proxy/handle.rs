//! The live side of a proxy: configuration in, facts out.

use std::{sync::Arc, time::Duration};

use super::{ClusterSnapshot, ConnectionSnapshot, Missing, shared::Shared};
use crate::{
    config::{Cluster, Listener, LoadAssignment, RouteConfiguration},
    error::ApplyError,
    telemetry::Stats,
};

/// Configures and inspects a running proxy. Cheap to clone; every method may be called from any thread, none blocks on
/// traffic. An error leaves what was active untouched.
#[derive(Debug, Clone)]
pub struct Handle {
    pub(crate) shared: Arc<Shared>,
}

impl Handle {
    /// Adds or replaces a listener. Sockets are bound before this returns. Connections on filter chains that did not
    /// change live on; those on changed chains are drained.
    ///
    /// # Errors
    /// When the configuration is not valid or the address cannot be bound.
    pub fn apply_listener(&self, listener: Listener) -> Result<(), ApplyError> {
        self.shared.apply_listener(listener)
    }

    /// Removes a listener: closes its sockets and drains its connections. False when there is none of this name.
    pub fn remove_listener(&self, name: &str) -> bool {
        self.shared.remove_listener(name)
    }

    /// Adds or replaces a route configuration. Live connections use it from their next request on.
    ///
    /// # Errors
    /// When it is not valid as a whole (duplicate domains). A single bad action makes that route answer 500.
    pub fn apply_routes(&self, routes: RouteConfiguration) -> Result<(), ApplyError> {
        self.shared.apply_routes(routes)
    }

    /// Removes a route configuration; its listeners answer 404 from then on.
    pub fn remove_routes(&self, name: &str) -> bool {
        self.shared.remove_routes(name)
    }

    /// Adds or replaces a cluster. Endpoints that stay keep their connections unless the transport changed. Assignments
    /// applied earlier under its EDS service name are used at once.
    ///
    /// # Errors
    /// When it is not valid.
    pub fn apply_cluster(&self, cluster: Cluster) -> Result<(), ApplyError> {
        self.shared.apply_cluster(cluster)
    }

    /// Removes a cluster; requests in flight finish.
    pub fn remove_cluster(&self, name: &str) -> bool {
        self.shared.remove_cluster(name)
    }

    /// Sets the endpoints for every EDS cluster with this service name, now or later.
    ///
    /// # Errors
    /// When it is not valid.
    pub fn apply_endpoints(&self, endpoints: LoadAssignment) -> Result<(), ApplyError> {
        self.shared.apply_endpoints(endpoints)
    }

    /// Forgets the endpoints of this service name; its clusters have none from then on.
    pub fn remove_endpoints(&self, service_name: &str) -> bool {
        self.shared.remove_endpoints(service_name)
    }

    /// What the active configuration refers to but has not been given: ready means that this is empty.
    #[must_use]
    pub fn missing(&self) -> Missing {
        self.shared.missing()
    }

    /// Active listeners, by name.
    #[must_use]
    pub fn listeners(&self) -> Vec<Arc<Listener>> {
        self.shared.listeners()
    }

    /// Addresses that a listener really listens on (port 0 resolved); empty for listeners without sockets.
    #[must_use]
    pub fn bound_addresses(&self, listener: &str) -> Vec<std::net::SocketAddr> {
        self.shared.bound_addresses(listener)
    }

    /// Active dynamic route configurations, by name.
    #[must_use]
    pub fn routes(&self) -> Vec<Arc<RouteConfiguration>> {
        self.shared.routes()
    }

    /// Active clusters with their endpoints, by name.
    #[must_use]
    pub fn clusters(&self) -> Vec<ClusterSnapshot> {
        self.shared.clusters()
    }

    /// Live TLS and plain sessions: downstream connections, and upstream connections with their cluster.
    #[must_use]
    pub fn connections(&self) -> Vec<ConnectionSnapshot> {
        self.shared.connections()
    }

    /// Ends every live connection, in either direction, whose peer [`TlsProvider::is_revoked`] names, and says how many.
    /// Call it when a revocation list came; new connections are looked at by themselves.
    ///
    /// [`TlsProvider::is_revoked`]: crate::tls::TlsProvider::is_revoked
    pub fn close_revoked(&self) -> usize {
        self.shared.close_revoked()
    }

    /// Statistics under Envoy's names.
    #[must_use]
    pub fn stats(&self) -> &Arc<Stats> {
        self.shared.stats()
    }

    /// Prometheus text: Istio's standard metrics, then the statistics under `envoy_` names.
    #[must_use]
    pub fn prometheus(&self) -> String {
        self.shared.prometheus()
    }

    /// Writes buffered access-log lines and waits for it (at most 5 s).
    pub fn flush_access_logs(&self) {
        self.shared.flush_logs();
    }

    /// Drains inbound listeners (or all): new connections are still accepted, every response says
    /// `connection: close` or GOAWAY. Outbound traffic goes on. Cannot be undone.
    pub fn drain(&self, inbound_only: bool) {
        self.shared.drain(inbound_only);
    }

    /// Stops accepting, waits for requests in flight until the deadline, then closes what is left. Returns the number
    /// of connections that had to be cut. Cancel safe: a second call goes on waiting.
    pub async fn shutdown(&self, deadline: Duration) -> usize {
        self.shared.shutdown(deadline).await
    }
}
