//! The running control plane: every port, every task, from one [`Config`].
//!
//! Order of start: CA, resources, first translation, ports. A client that resumes after a restart therefore finds
//! the same CA and the same content hashes at once, and nothing is pushed that it already has.

mod access;
mod debug;
mod error;
mod http;
mod inject;
mod injection_metrics;
mod injector;
mod monitor;
mod node;
mod publish;
mod push;
mod revocation;
mod trust;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

pub use error::ServeError;
pub use injector::InjectorConfig;

use mesh_identity::auth::{
    Authenticators, ClientCertificateAuthenticator, JwksTokenVerifier, ServiceAccountAuthenticator,
};
use mesh_identity::grpc::{IncomingOptions, tls_incoming};
use mesh_identity::istio_ca::IstioCaServer;
use mesh_identity::{Identity, ServerTls, TrustDomain, WallClock};
use mesh_xds::server::{AdsServer, ServerConfig, SnapshotCache, StreamRules};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_stream::wrappers::TcpListenerStream;

use crate::model::MeshSettings;
use crate::store::{self, POLL_INTERVAL, State, Store, StoreConfig};

/// How long running requests may take once the process is told to stop.
const DRAIN_DEADLINE: Duration = Duration::from_secs(5);
/// HTTP/2 pings on idle connections; a peer that does not answer in the second time is gone.
const KEEPALIVE: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(10));

/// Everything that the control plane is told.
#[derive(Debug, Clone)]
pub struct Config {
    /// People's YAML.
    pub config_dirs: Vec<PathBuf>,
    /// What an API server and kubelets would add.
    pub status_dirs: Vec<PathBuf>,
    /// Where objects that the control plane itself writes go; nowhere if absent.
    pub publish_dir: Option<PathBuf>,
    /// Where the CA lives.
    pub state_dir: PathBuf,
    /// Keys, issuer and audience of service-account tokens; without them only certificates authenticate.
    pub tokens: Option<TokenConfig>,
    /// Address of every port but the plaintext one.
    pub listen: IpAddr,
    /// xDS and certificates over TLS; 0 picks one.
    pub xds_port: u16,
    /// Injection webhook over TLS; 0 picks one.
    pub webhook_port: u16,
    /// Readiness, metrics and debugging; 0 picks one.
    pub monitoring_port: u16,
    /// xDS without TLS and without authentication, on loopback only; off if absent.
    pub plaintext_port: Option<u16>,
    /// Trust domain, root namespace and DNS suffix.
    pub mesh: MeshSettings,
    /// What the injection webhook is told beside that.
    pub injector: InjectorConfig,
    /// Names in the server certificate; those of the service that the webhook configuration names are added.
    pub dns_names: Vec<String>,
    /// Lifetime of workload certificates that ask for none.
    pub workload_ttl: Duration,
    /// How long another root that is plugged in is trusted before its signer signs; `None` is one `workload_ttl`.
    pub root_grace: Option<Duration>,
    /// Lifetime of the server certificate; renewed at half of it.
    pub server_ttl: Duration,
    /// Whether the debugging pages are open to every address rather than to loopback and the root namespace only.
    pub open_debug: bool,
}

/// How service-account tokens are verified.
#[derive(Debug, Clone)]
pub struct TokenConfig {
    /// A JWKS document.
    pub jwks: PathBuf,
    /// Required issuer.
    pub issuer: String,
    /// Required audience.
    pub audience: String,
}

impl Config {
    /// Names under which workloads of a mesh with this root namespace and DNS suffix reach the control plane.
    pub fn default_dns_names(mesh: &MeshSettings) -> Vec<String> {
        let mut names = service_names("istiod", &mesh.root_namespace, &mesh.domain);
        names.extend(["istio-pilot.istio-system.svc".to_owned(), "localhost".to_owned()]);
        names
    }
}

/// Every name of a service.
fn service_names(service: &str, namespace: &str, domain: &str) -> Vec<String> {
    vec![
        format!("{service}.{namespace}.svc"),
        format!("{service}.{namespace}"),
        format!("{service}.{namespace}.svc.{domain}"),
        service.to_owned(),
    ]
}

/// Where a running control plane listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Addresses {
    /// xDS and certificates.
    pub xds: SocketAddr,
    /// Webhook.
    pub webhook: SocketAddr,
    /// Monitoring.
    pub monitoring: SocketAddr,
    /// Plaintext xDS.
    pub plaintext: Option<SocketAddr>,
}

/// A running control plane. Dropping it aborts its tasks; [`stop`](Self::stop) ends them in order.
#[derive(Debug)]
pub struct ControlPlane {
    addresses: Addresses,
    ads: AdsServer,
    plaintext: Option<AdsServer>,
    stopping: watch::Sender<bool>,
    servers: JoinSet<()>,
    background: JoinSet<()>,
}

/// What the parts of a running control plane share.
pub(crate) struct Shared {
    pub(crate) config: Config,
    pub(crate) ads: AdsServer,
    pub(crate) state: watch::Receiver<Arc<State>>,
    pub(crate) engine: push::Engine,
    pub(crate) mesh: push::MeshSource,
    pub(crate) authenticators: Authenticators,
    /// The server's own.
    pub(crate) identity: Identity,
    pub(crate) metrics: monitor::Metrics,
}

impl ControlPlane {
    /// Starts everything; returns once every port is bound and the first translation is done.
    ///
    /// # Errors
    /// A CA that cannot be loaded or stored, keys or settings that cannot be read, a port that cannot be bound.
    pub async fn start(mut config: Config) -> Result<Self, ServeError> {
        let settings = injector::settings(&config)?;
        let (service, namespace) = injector::service(&settings);
        for name in service_names(&service, &namespace, &config.mesh.domain) {
            if !config.dns_names.contains(&name) {
                config.dns_names.push(name);
            }
        }
        let clock = WallClock::system();
        let trust_domain = TrustDomain::parse_kubernetes(&config.mesh.trust_domain)
            .map_err(|error| ServeError::config("--trust-domain", &config.mesh.trust_domain, error))?;
        let (trust, revoked) = trust::Trust::open(&config, trust_domain.clone(), clock.clone()).await?;
        let authenticators = authenticators(&config, &trust_domain, clock)?;

        let store = Store::new(StoreConfig {
            config_dirs: config.config_dirs.clone(),
            status_dirs: config.status_dirs.clone(),
            domain: config.mesh.domain.clone(),
            last_good: Some(config.state_dir.join("last-good.json")),
        });
        let state = store::watch(store, POLL_INTERVAL).await;

        let metrics = monitor::Metrics::default();
        let cache = SnapshotCache::new();
        let (engine, mesh, observer) =
            push::start(state.clone(), config.mesh.clone(), cache.clone(), metrics.clone());
        let mut server = ServerConfig::default();
        server.rules = StreamRules::default().with_empty_unknowns();
        server.rules.identifier = "mesh-control".to_owned();
        let gate = access::Gate::new(authenticators.clone(), mesh.clone());
        let ads = AdsServer::with_observer(cache.clone(), gate, server.clone(), observer.clone());

        let shared = Arc::new(Shared {
            config: config.clone(),
            ads: ads.clone(),
            state: state.clone(),
            engine: engine.clone(),
            mesh: mesh.clone(),
            authenticators: authenticators.clone(),
            identity: trust.identity(),
            metrics: metrics.clone(),
        });
        let (stopping, stop) = watch::channel(false);
        let mut servers = JoinSet::new();
        let mut background = JoinSet::new();

        let xds = bind(config.listen, config.xds_port, "xDS").await?;
        let webhook = bind(config.listen, config.webhook_port, "webhook").await?;
        let monitoring = bind(config.listen, config.monitoring_port, "monitoring").await?;
        let mut addresses = Addresses {
            xds: local(&xds)?,
            webhook: local(&webhook)?,
            monitoring: local(&monitoring)?,
            plaintext: None,
        };

        let peers = mesh_identity::Authorizer::trust_domain(trust_domain);
        let tls = ServerTls::new(trust.identity(), peers)
            .optional_client_certificate()
            .alpn(["h2"])
            .build_incoming()?;
        let certificates = IstioCaServer::new(trust.ca(), authenticators).own_names_only().into_service();
        let routes = ads.routes().add_service(certificates);
        let incoming = tls_incoming(xds, tls, IncomingOptions::default());
        let done = stopped(stop.clone());
        servers.spawn(async move {
            let server = grpc().add_routes(routes).serve_with_incoming_shutdown(incoming, done);
            if let Err(error) = server.await {
                tracing::error!(%error, "the xDS server ended");
            }
        });
        let mut plaintext = None;
        if let Some(port) = config.plaintext_port {
            let listener = bind(IpAddr::V4(Ipv4Addr::LOCALHOST), port, "plaintext xDS").await?;
            addresses.plaintext = Some(local(&listener)?);
            // A server of its own: the same snapshots, nobody asked who he is.
            let open = access::Open::new(mesh.clone());
            let ads = AdsServer::with_observer(cache, open, server, observer);
            plaintext = Some(ads.clone());
            let done = stopped(stop.clone());
            servers.spawn(async move {
                let incoming = TcpListenerStream::new(listener);
                let server = grpc().add_routes(ads.routes()).serve_with_incoming_shutdown(incoming, done);
                if let Err(error) = server.await {
                    tracing::error!(%error, "the plaintext xDS server ended");
                }
            });
        }
        let webhooks = mesh_inject::WebhookOptions::of_settings(&settings);
        let injector = inject::Webhook::new(&shared, settings)?;
        let tls = ServerTls::without_client_certificate(trust.identity()).alpn(["h2", "http/1.1"]).build()?;
        servers.spawn(http::serve_tls(webhook, tls, injector, stop.clone()));

        background.spawn(push::follow(state, engine));
        background.spawn(trust.clone().renew());
        background.spawn(revoked.follow(trust::LOOK));
        if let Some(dir) = &config.publish_dir {
            let publisher = publish::Publisher::new(dir.clone(), trust.ca(), mesh, &config.mesh, webhooks);
            publisher.write().await?;
            background.spawn(publisher.follow());
        }
        servers.spawn(http::serve(monitoring, monitor::Pages::new(shared), stop));
        tracing::info!(
            xds = %addresses.xds,
            webhook = %addresses.webhook,
            monitoring = %addresses.monitoring,
            "serving"
        );
        Ok(Self { addresses, ads, plaintext, stopping, servers, background })
    }

    /// Where it listens.
    pub fn addresses(&self) -> Addresses {
        self.addresses
    }

    /// The xDS server, for status.
    pub fn ads(&self) -> &AdsServer {
        &self.ads
    }

    /// Ends every stream with `UNAVAILABLE` (clients keep what they have and come back), lets requests finish within
    /// five seconds, and stops.
    pub async fn stop(mut self) {
        self.stopping.send_replace(true);
        self.ads.shut_down();
        if let Some(plaintext) = &self.plaintext {
            plaintext.shut_down();
        }
        let finish = async { while self.servers.join_next().await.is_some() {} };
        if tokio::time::timeout(DRAIN_DEADLINE, finish).await.is_err() {
            tracing::warn!("connections were still open at the deadline");
        }
        self.background.shutdown().await;
    }
}

fn authenticators(
    config: &Config,
    trust_domain: &TrustDomain,
    clock: WallClock,
) -> Result<Authenticators, ServeError> {
    let mut all = Authenticators::new().with(ClientCertificateAuthenticator::new(trust_domain.clone()));
    match &config.tokens {
        Some(tokens) => {
            let verifier =
                JwksTokenVerifier::from_file(&tokens.jwks, &tokens.issuer, [tokens.audience.clone()], clock)
                    .map_err(|error| {
                        ServeError::config("--jwks", &tokens.jwks.display().to_string(), error)
                    })?;
            all = all.with(ServiceAccountAuthenticator::new(trust_domain.clone(), verifier));
        }
        None => tracing::warn!("no --jwks: tokens are refused, only client certificates authenticate"),
    }
    Ok(all)
}

fn grpc() -> tonic::transport::Server {
    tonic::transport::Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE.0))
        .http2_keepalive_timeout(Some(KEEPALIVE.1))
}

async fn bind(ip: IpAddr, port: u16, what: &'static str) -> Result<TcpListener, ServeError> {
    let address = SocketAddr::new(ip, port);
    TcpListener::bind(address).await.map_err(|source| ServeError::Bind { what, address, source })
}

fn local(listener: &TcpListener) -> Result<SocketAddr, ServeError> {
    listener.local_addr().map_err(|source| ServeError::Io { what: "read a bound address".to_owned(), source })
}

async fn stopped(mut stop: watch::Receiver<bool>) {
    // An error means that the sender is gone, which is a stop as well.
    let _ = stop.wait_for(|stop| *stop).await;
}
