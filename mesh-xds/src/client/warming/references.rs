//! What clusters and listeners refer to.

use std::time::Duration;

use prost::Name;

use crate::pb::envoy::config::cluster::v3::{Cluster, cluster};
use crate::pb::envoy::config::core::v3::config_source::ConfigSourceSpecifier;
use crate::pb::envoy::config::core::v3::{ConfigSource, TransportSocket, transport_socket};
use crate::pb::envoy::config::listener::v3::{FilterChain, Listener, filter};
use crate::pb::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, http_connection_manager::RouteSpecifier,
};
use crate::pb::envoy::extensions::transport_sockets::tls::v3::common_tls_context::ValidationContextType;
use crate::pb::envoy::extensions::transport_sockets::tls::v3::{
    CommonTlsContext, DownstreamTlsContext, SdsSecretConfig, UpstreamTlsContext,
};

/// Envoy's default for `initial_fetch_timeout`.
const FETCH_TIMEOUT: Duration = Duration::from_secs(15);

/// What kind of resource is referred to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Endpoints,
    Routes,
    Secret,
}

/// A name that something refers to, and how long it may be waited for; `None` is forever.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Reference {
    pub(super) kind: Kind,
    pub(super) name: String,
    pub(super) timeout: Option<Duration>,
}

impl Reference {
    fn new(kind: Kind, name: String, source: Option<&ConfigSource>) -> Self {
        let timeout = match source.and_then(|s| s.initial_fetch_timeout) {
            None => Some(FETCH_TIMEOUT),
            Some(timeout) => Duration::try_from(timeout).ok().filter(|t| !t.is_zero()),
        };
        Self { kind, name, timeout }
    }

    pub(super) fn is(&self, kind: Kind, name: &str) -> bool {
        self.kind == kind && self.name == name
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
    Some(Reference::new(Kind::Endpoints, service.unwrap_or_else(|| cluster.name.clone()), source))
}

/// The route configurations of a listener's HTTP connection managers, each once.
pub(super) fn routes_of(listener: &Listener) -> Vec<Reference> {
    once_each(chains(listener).flat_map(routes_of_chain))
}

/// The secrets of a cluster's transport sockets, each once.
pub(super) fn secrets_of_cluster(cluster: &Cluster) -> Vec<Reference> {
    let matched = cluster.transport_socket_matches.iter().filter_map(|m| m.transport_socket.as_ref());
    once_each(cluster.transport_socket.iter().chain(matched).flat_map(secrets_of))
}

/// The secrets of a listener's transport sockets, each once.
pub(super) fn secrets_of_listener(listener: &Listener) -> Vec<Reference> {
    once_each(chains(listener).filter_map(|chain| chain.transport_socket.as_ref()).flat_map(secrets_of))
}

fn chains(listener: &Listener) -> impl Iterator<Item = &FilterChain> {
    listener.filter_chains.iter().chain(&listener.default_filter_chain)
}

fn once_each(references: impl Iterator<Item = Reference>) -> Vec<Reference> {
    let mut found: Vec<Reference> = Vec::new();
    for reference in references {
        if !found.iter().any(|known| known.is(reference.kind, &reference.name)) {
            found.push(reference);
        }
    }
    found
}

fn routes_of_chain(chain: &FilterChain) -> impl Iterator<Item = Reference> {
    chain.filters.iter().filter_map(|filter| {
        let Some(filter::ConfigType::TypedConfig(any)) = &filter.config_type else { return None };
        let manager: HttpConnectionManager = unpack(any)?;
        match manager.route_specifier? {
            RouteSpecifier::Rds(rds) => {
                let source = rds.config_source.as_ref();
                let routes = Reference::new(Kind::Routes, rds.route_config_name.clone(), source);
                Some(routes).filter(|r| !r.name.is_empty())
            }
            _ => None,
        }
    })
}

/// The secrets of a TLS context that come from the same server: a socket, a file or another server is not ours to watch.
fn secrets_of(socket: &TransportSocket) -> Vec<Reference> {
    let context = match &socket.config_type {
        Some(transport_socket::ConfigType::TypedConfig(any)) => {
            let upstream = || unpack::<UpstreamTlsContext>(any).and_then(|tls| tls.common_tls_context);
            let downstream = || unpack::<DownstreamTlsContext>(any).and_then(|tls| tls.common_tls_context);
            upstream().or_else(downstream)
        }
        None => None,
    };
    let Some(CommonTlsContext { tls_certificate_sds_secret_configs, validation_context_type, .. }) = context
    else {
        return Vec::new();
    };
    let validation = match validation_context_type {
        Some(ValidationContextType::ValidationContextSdsSecretConfig(secret)) => Some(secret),
        Some(ValidationContextType::CombinedValidationContext(combined)) => {
            combined.validation_context_sds_secret_config
        }
        _ => None,
    };
    let secrets = tls_certificate_sds_secret_configs.into_iter().chain(validation);
    let reference = |secret: SdsSecretConfig| {
        let source = secret.sds_config.as_ref()?;
        let ours = matches!(
            source.config_source_specifier,
            Some(ConfigSourceSpecifier::Ads(_) | ConfigSourceSpecifier::Self_(_))
        );
        ours.then(|| Reference::new(Kind::Secret, secret.name.clone(), Some(source)))
    };
    secrets.filter_map(reference).collect()
}

fn unpack<M: prost::Message + Name + Default>(any: &prost_types::Any) -> Option<M> {
    (any.type_url == M::type_url()).then(|| M::decode(any.value.as_slice()).ok())?
}
