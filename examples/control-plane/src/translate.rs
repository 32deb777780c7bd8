//! From the mesh and one proxy to what that proxy is told: listeners, routes, clusters and endpoints in Istio's shapes.
//!
//! Pure functions. What many proxies share (everything outbound of one view) is computed and encoded once.

mod clusters;
mod endpoints;
mod http;
mod inbound;
mod matching;
mod names;
mod outbound;
mod policy;
mod proto;
mod rbac;
mod routes;
mod tls;
mod view;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

pub use endpoints::load_assignment;
pub use names::ClusterName;
pub use view::ViewKey;

use view::Program;

use mesh_xds::pb::envoy::config::cluster::v3::Cluster;
use mesh_xds::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use mesh_xds::pb::envoy::config::listener::v3::Listener;
use mesh_xds::pb::envoy::config::route::v3::RouteConfiguration;

use crate::model::{Dependency, Mesh, Service};

/// Port at which a sidecar accepts redirected outbound connections.
pub const OUTBOUND_PORT: u16 = 15001;
/// Port at which a sidecar accepts redirected inbound connections.
pub const INBOUND_PORT: u16 = 15006;

/// A sidecar as the control plane sees it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Proxy {
    /// The workload's namespace.
    pub namespace: String,
    /// The workload's name.
    pub name: String,
    /// The workload's labels.
    pub labels: BTreeMap<String, String>,
    /// Its addresses.
    pub ips: Vec<IpAddr>,
}

/// Everything that one proxy is told.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Resources {
    /// LDS.
    pub listeners: Vec<Listener>,
    /// RDS.
    pub routes: Vec<RouteConfiguration>,
    /// CDS.
    pub clusters: Vec<Cluster>,
    /// EDS.
    pub endpoints: Vec<ClusterLoadAssignment>,
}

/// Translates for one proxy, without caches: what tests and tools want.
pub fn translate(mesh: &Mesh, proxy: &Proxy) -> Resources {
    let world = outbound(mesh, proxy);
    let (listener, own_clusters) = inbound(mesh, proxy);
    let mut listeners = vec![listener];
    listeners.extend(world.listeners(&proxy.ips));
    let mut clusters = world.clusters();
    clusters.extend(own_clusters);
    Resources { listeners, routes: world.routes(), clusters, endpoints: world.endpoints() }
}

/// The client's side of a proxy: the same for every proxy of its [`ViewKey`].
pub fn outbound<'m>(mesh: &'m Mesh, proxy: &Proxy) -> Outbound<'m> {
    Outbound(Program::of(mesh, proxy))
}

/// The server's side of a proxy: `virtualInbound` and the clusters behind it.
pub fn inbound(mesh: &Mesh, proxy: &Proxy) -> (Listener, Vec<Cluster>) {
    inbound::translate(mesh, proxy)
}

/// What the server's side of a proxy depends on: as long as none of it changes, [`inbound`] says the same.
pub fn inbound_dependencies(mesh: &Mesh, proxy: &Proxy) -> BTreeSet<Dependency> {
    inbound::dependencies(mesh, proxy)
}

/// The load assignments of one service as `world` sees it.
pub fn service_endpoints(world: &Outbound<'_>, service: &Service) -> Vec<ClusterLoadAssignment> {
    endpoints::of_service(&world.0, service)
}

/// What the proxies of one view share.
#[derive(Debug, Clone)]
pub struct Outbound<'m>(Program<'m>);

impl Outbound<'_> {
    /// Listeners, for a proxy with these addresses (only headless services' listeners depend on them).
    pub fn listeners(&self, own: &[IpAddr]) -> Vec<Listener> {
        outbound::listeners(&self.0, own)
    }

    /// Route configurations.
    pub fn routes(&self) -> Vec<RouteConfiguration> {
        routes::configurations(&self.0)
    }

    /// Clusters.
    pub fn clusters(&self) -> Vec<Cluster> {
        clusters::outbound(&self.0)
    }

    /// Load assignments.
    pub fn endpoints(&self) -> Vec<ClusterLoadAssignment> {
        endpoints::assignments(&self.0)
    }

    /// The service of this host, if in view.
    pub fn service(&self, host: &str) -> Option<&Service> {
        self.0.service(host).map(|service| &**service)
    }

    /// What all this depends on: as long as none of it changes, now or by coming into view, it says the same.
    pub fn dependencies(&self) -> BTreeSet<Dependency> {
        self.0.dependencies()
    }

    /// Whether listeners depend on which proxy asks.
    pub fn has_headless(&self) -> bool {
        self.0.view.services.iter().any(|service| service.headless())
    }
}

#[cfg(test)]
mod tests;
