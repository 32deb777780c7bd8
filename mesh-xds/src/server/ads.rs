//! The server as a value: configuration in, gRPC services out.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tonic::service::Routes;

use crate::pb::envoy::config::core::v3::Node;

use super::auth::Authorizer;
use super::cache::SnapshotCache;
use super::clients::{ClientStatus, Observer, Registry};
use super::config::StreamRules;
use super::grpc::{
    Ads, Clusters, DiscoveryService, Endpoints, Extensions, Listeners, Routes as RouteService, Runtimes,
    ScopedRoutes, Secrets, VirtualHosts,
};

/// Maps a node to the group whose snapshots it receives.
pub type GroupFn = Arc<dyn Fn(&Node) -> String + Send + Sync>;

/// How an [`AdsServer`] treats its clients.
#[derive(Clone)]
#[non_exhaustive]
pub struct ServerConfig {
    /// The protocol rules of every stream.
    pub rules: StreamRules,
    /// The group of a node. Default: its id, so that every node has snapshots of its own.
    pub group: GroupFn,
    /// The largest request that is read. Default 4 MiB; a larger one ends its stream with `RESOURCE_EXHAUSTED`.
    pub max_request_bytes: usize,
    /// How long a stream may say nothing before its first request. Default 10 s, then `DEADLINE_EXCEEDED`.
    pub first_request_timeout: Duration,
    /// How long the [`Authorizer`] may take for a stream. Default 10 s, then `UNAVAILABLE`: the client comes again.
    pub authorization_timeout: Duration,
    /// How long a stream lives before it is ended with `UNAVAILABLE`, so that clients spread over replicas again;
    /// each stream deviates by up to 10 %. Default: forever.
    pub max_stream_age: Option<Duration>,
    /// How many new streams are accepted per second, with bursts of the same size; more get `RESOURCE_EXHAUSTED`.
    /// Default: unlimited.
    pub streams_per_second: Option<u32>,
    /// How many requests per second one stream may make, with bursts of ten times as many; a faster client is read
    /// more slowly. Default 1,000.
    pub requests_per_second: u32,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            rules: StreamRules::default(),
            group: Arc::new(|node| node.id.clone()),
            max_request_bytes: 4 << 20,
            first_request_timeout: Duration::from_secs(10),
            authorization_timeout: Duration::from_secs(10),
            max_stream_age: None,
            streams_per_second: None,
            requests_per_second: 1_000,
        }
    }
}

impl fmt::Debug for ServerConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerConfig")
            .field("rules", &self.rules)
            .field("max_request_bytes", &self.max_request_bytes)
            .field("first_request_timeout", &self.first_request_timeout)
            .field("authorization_timeout", &self.authorization_timeout)
            .field("max_stream_age", &self.max_stream_age)
            .field("streams_per_second", &self.streams_per_second)
            .field("requests_per_second", &self.requests_per_second)
            .finish_non_exhaustive()
    }
}

/// An xDS server over a [`SnapshotCache`]: ADS, and the services for single types, Delta and State-of-the-World.
///
/// Cheap to clone; clones are the same server.
#[derive(Clone)]
pub struct AdsServer {
    pub(super) shared: Arc<Shared>,
}

/// What all streams of a server share.
pub(super) struct Shared {
    pub(super) cache: SnapshotCache,
    pub(super) authorizer: Box<dyn Authorizer>,
    pub(super) observer: Box<dyn Observer>,
    pub(super) config: ServerConfig,
    pub(super) rules: Arc<StreamRules>,
    pub(super) registry: Registry,
    pub(super) admission: super::rate::SharedBucket,
    pub(super) stopping: watch::Sender<bool>,
}

impl AdsServer {
    /// A server that answers from `cache` whoever `authorizer` lets in.
    #[must_use]
    pub fn new(cache: SnapshotCache, authorizer: impl Authorizer, config: ServerConfig) -> Self {
        Self::with_observer(cache, authorizer, config, ())
    }

    /// As [`new`](Self::new), with an observer that is told about clients coming, going and rejecting.
    #[must_use]
    pub fn with_observer(
        cache: SnapshotCache,
        authorizer: impl Authorizer,
        config: ServerConfig,
        observer: impl Observer,
    ) -> Self {
        let rules = Arc::new(config.rules.clone());
        let admission = super::rate::SharedBucket::new(config.streams_per_second);
        Self {
            shared: Arc::new(Shared {
                cache,
                authorizer: Box::new(authorizer),
                observer: Box::new(observer),
                config,
                rules,
                registry: Registry::default(),
                admission,
                stopping: watch::Sender::new(false),
            }),
        }
    }

    /// The aggregated service, to be added to a tonic server or router.
    #[must_use]
    pub fn ads(&self) -> DiscoveryService<Ads> {
        DiscoveryService::new(self.clone())
    }

    /// Every service: ADS, CDS, EDS, LDS, RDS, SRDS, VHDS, SDS, ECDS and RTDS.
    #[must_use]
    pub fn routes(&self) -> Routes {
        Routes::new(self.ads())
            .add_service(DiscoveryService::<Clusters>::new(self.clone()))
            .add_service(DiscoveryService::<Endpoints>::new(self.clone()))
            .add_service(DiscoveryService::<Listeners>::new(self.clone()))
            .add_service(DiscoveryService::<RouteService>::new(self.clone()))
            .add_service(DiscoveryService::<ScopedRoutes>::new(self.clone()))
            .add_service(DiscoveryService::<VirtualHosts>::new(self.clone()))
            .add_service(DiscoveryService::<Secrets>::new(self.clone()))
            .add_service(DiscoveryService::<Extensions>::new(self.clone()))
            .add_service(DiscoveryService::<Runtimes>::new(self.clone()))
    }

    /// The cache that the server answers from.
    #[must_use]
    pub fn cache(&self) -> &SnapshotCache {
        &self.shared.cache
    }

    /// Every connected client and what it has.
    #[must_use]
    pub fn clients(&self) -> Vec<ClientStatus> {
        self.shared.registry.status()
    }

    /// How many clients are connected.
    #[must_use]
    pub fn client_count(&self) -> usize {
        self.shared.registry.len()
    }

    /// Ends every stream with `UNAVAILABLE` and refuses new ones. Clients keep what they have and reconnect elsewhere.
    pub fn shut_down(&self) {
        self.shared.stopping.send_replace(true);
    }
}

impl fmt::Debug for AdsServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AdsServer").field("clients", &self.client_count()).finish_non_exhaustive()
    }
}
