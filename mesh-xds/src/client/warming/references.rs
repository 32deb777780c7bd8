//! What clusters and listeners refer to.

use std::time::Duration;

use prost::Message as _;

use crate::pb::envoy::config::cluster::v3::{Cluster, cluster};
use crate::pb::envoy::config::core::v3::ConfigSource;
use crate::pb::envoy::config::listener::v3::{FilterChain, Listener, filter};
use crate::pb::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, http_connection_manager::RouteSpecifier,
};

const HCM: &str =
    "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
/// Envoy's default for `initial_fetch_timeout`.
const FETCH_TIMEOUT: Duration = Duration::from_secs(15);

/// A name that something refers to, and how long it may be waited for; `None` is forever.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Reference {
    pub(super) name: String,
    pub(super) timeout: Option<Duration>,
}

impl Reference {
    fn new(name: String, source: Option<&ConfigSource>) -> Self {
        let timeout = match source.and_then(|s| s.initial_fetch_timeout) {
            None => Some(FETCH_TIMEOUT),
            Some(timeout) => Duration::try_from(timeout).ok().filter(|t| !t.is_zero()),
        };
        Self { name, timeout }
    }
}

/// The `ClusterLoadAssignment` of an EDS cluster.
pub(super) fn endpoints_of(cluster: &Cluster) -> Option<Reference> {
    let eds = cluster::DiscoveryType::Eds as i32;
    if !matches!(cluster.cluster_discovery_type, Some(cluster::ClusterDiscoveryType::Type(t)) if t == eds) {
        return None;
    }
    let config = cluster.eds_cluster_config.as_ref();
    let service = config.map(|c| c.service_name.clone()).filter(|name| !name.is_empty());
    let source = config.and_then(|c| c.eds_config.as_ref());
    Some(Reference::new(service.unwrap_or_else(|| cluster.name.clone()), source))
}

/// The route configurations of a listener's HTTP connection managers, each once.
pub(super) fn routes_of(listener: &Listener) -> Vec<Reference> {
    let mut found: Vec<Reference> = Vec::new();
    for chain in listener.filter_chains.iter().chain(&listener.default_filter_chain) {
        for reference in routes_of_chain(chain) {
            if found.iter().all(|known| known.name != reference.name) {
                found.push(reference);
            }
        }
    }
    found
}

fn routes_of_chain(chain: &FilterChain) -> impl Iterator<Item = Reference> {
    chain.filters.iter().filter_map(|filter| {
        let Some(filter::ConfigType::TypedConfig(any)) = &filter.config_type else { return None };
        if any.type_url != HCM {
            return None;
        }
        let manager = HttpConnectionManager::decode(any.value.as_slice()).ok()?;
        match manager.route_specifier? {
            RouteSpecifier::Rds(rds) => {
                let source = rds.config_source.as_ref();
                Some(Reference::new(rds.route_config_name.clone(), source)).filter(|r| !r.name.is_empty())
            }
            _ => None,
        }
    })
}
