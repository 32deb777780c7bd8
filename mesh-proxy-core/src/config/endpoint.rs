//! Endpoints of a cluster.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc};

/// The endpoints of one cluster (Envoy's `ClusterLoadAssignment`).
#[derive(Debug, Clone, PartialEq)]
pub struct LoadAssignment {
    /// The EDS service name.
    pub cluster_name: Arc<str>,
    /// Endpoints by locality.
    pub localities: Vec<LocalityEndpoints>,
    /// Percent by which healthy hosts of a priority count for more before traffic spills to the next. Default 140.
    pub overprovisioning_factor: u32,
}

impl LoadAssignment {
    /// One locality, all endpoints alike.
    #[must_use]
    pub fn new(cluster_name: &str, addresses: impl IntoIterator<Item = SocketAddr>) -> Self {
        let endpoints = addresses.into_iter().map(Endpoint::new).collect();
        Self {
            cluster_name: cluster_name.into(),
            localities: vec![LocalityEndpoints { endpoints, ..LocalityEndpoints::default() }],
            overprovisioning_factor: 140,
        }
    }
}

/// Region, zone, sub-zone.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Locality {
    /// Region.
    pub region: Arc<str>,
    /// Zone.
    pub zone: Arc<str>,
    /// Sub-zone.
    pub sub_zone: Arc<str>,
}

/// Endpoints of one locality at one priority.
#[derive(Debug, Clone, PartialEq)]
pub struct LocalityEndpoints {
    /// Where.
    pub locality: Locality,
    /// Weight among the localities of the same priority, with locality-weighted balancing. Default 1.
    pub weight: u32,
    /// 0 is the highest.
    pub priority: u32,
    /// The endpoints.
    pub endpoints: Vec<Endpoint>,
}

impl Default for LocalityEndpoints {
    fn default() -> Self {
        Self { locality: Locality::default(), weight: 1, priority: 0, endpoints: Vec::new() }
    }
}

/// One endpoint.
#[derive(Debug, Clone, PartialEq)]
pub struct Endpoint {
    /// Where it listens.
    pub address: SocketAddr,
    /// Its DNS name, where one was given: with DNS clusters, the name to resolve.
    pub hostname: Arc<str>,
    /// What the control plane knows of its health.
    pub health: EndpointHealth,
    /// Weight, at least 1.
    pub weight: u32,
    /// `envoy.transport_socket_match` metadata (`tlsMode: istio`): chooses the transport socket. Shared,
    /// because most endpoints of a mesh say the same.
    pub transport_match: Arc<BTreeMap<String, String>>,
    /// `istio.workload` metadata: `name;namespace;canonical-name;canonical-revision;cluster`.
    pub workload: Option<Arc<str>>,
}

impl Endpoint {
    /// A healthy endpoint of weight 1.
    #[must_use]
    pub fn new(address: SocketAddr) -> Self {
        Self {
            address,
            hostname: "".into(),
            health: EndpointHealth::Healthy,
            weight: 1,
            transport_match: Arc::default(),
            workload: None,
        }
    }
}

/// Health as the control plane reports it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum EndpointHealth {
    /// Healthy, or unknown, which counts as healthy.
    #[default]
    Healthy,
    /// Usable only when nothing healthy is left.
    Degraded,
    /// Not used outside panic mode.
    Unhealthy,
    /// Going away: no new connections.
    Draining,
}
