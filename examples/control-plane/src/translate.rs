//! From the mesh and one proxy to what that proxy is told: listeners, routes, clusters and endpoints in Istio's shapes.
//!
//! Pure functions. What many proxies share (everything outbound of one [`View`]) is computed and encoded once.

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

use std::collections::BTreeMap;
use std::net::IpAddr;

pub use endpoints::load_assignment;
pub use names::ClusterName;
pub use view::{Program, View, ViewKey};

use mesh_xds::pb::envoy::config::cluster::v3::Cluster;
use mesh_xds::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use mesh_xds::pb::envoy::config::listener::v3::Listener;
use mesh_xds::pb::envoy::config::route::v3::RouteConfiguration;

use crate::model::Mesh;

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
    let program = Program::of(mesh, proxy);
    let mut listeners = vec![inbound::listener(mesh, proxy)];
    listeners.extend(outbound::listeners(&program, &proxy.ips));
    let mut clusters = clusters::outbound(&program);
    clusters.extend(inbound::clusters(mesh, proxy));
    Resources {
        listeners,
        routes: routes::configurations(&program),
        clusters,
        endpoints: endpoints::assignments(&program),
    }
}

#[cfg(test)]
mod tests;
