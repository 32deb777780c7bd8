//! The way to the control plane: one TLS port for certificates and xDS.
//!
//! The server is known by its DNS name under the mounted roots, which are read at each connection because the kubelet
//! replaces them. We show our SVID once we have one, and the projected service-account token until then.

use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use mesh_identity::grpc::TlsConnector;
use mesh_identity::istio_ca::{IstioCaClient, IstioCaFetcher, TokenFile};
use mesh_identity::source::{RenewalPolicy, SvidSource};
use mesh_identity::{ClientTls, Identity, SpiffeId, WallClock};
use thiserror::Error;
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tonic::transport::{Channel, Endpoint};

use crate::environment::Environment;

/// How long TCP and TLS together may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How often an idle connection is asked whether it lives; a half-open one would freeze the configuration.
const KEEPALIVE: Duration = Duration::from_secs(30);
/// How long the answer may take.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// Why the control plane cannot be addressed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ControlPlaneError {
    /// The address is not `host:port`.
    #[error("{address:?} is not host:port: {problem}")]
    Address {
        /// The address.
        address: String,
        /// What is wrong.
        problem: String,
    },
    /// Trust domain, namespace and service account make no SPIFFE ID.
    #[error("{id:?} is no SPIFFE ID: {problem}")]
    Identity {
        /// What they make.
        id: String,
        /// What is wrong.
        problem: String,
    },
}

/// Opens connections: a `tower` service for tonic.
#[derive(Debug, Clone)]
pub struct Connector {
    roots: PathBuf,
    identity: Option<Identity>,
}

impl Connector {
    /// Trusts the roots of this file; presents `identity` once it is valid.
    pub fn new(roots: PathBuf, identity: Option<Identity>) -> Self {
        Self { roots, identity }
    }

    /// Connects to the host and port of `uri`. Cancel safe.
    ///
    /// # Errors
    /// The roots cannot be read, or TCP or TLS failed.
    pub async fn open(&self, uri: &http::Uri) -> std::io::Result<TlsStream<TcpStream>> {
        let roots = std::fs::read(&self.roots).map_err(|error| {
            std::io::Error::new(error.kind(), format!("{}: {error}", self.roots.display()))
        })?;
        let mut tls =
            ClientTls::dns(&roots, WallClock::system()).map_err(std::io::Error::other)?.alpn(["h2"]);
        if let Some(identity) = &self.identity {
            tls = tls.presenting(identity.clone());
        }
        let config = tls.build().map_err(std::io::Error::other)?;
        let connector = TlsConnector::new(config).timeout(CONNECT_TIMEOUT);
        connector.connect(uri).await.map_err(std::io::Error::other)
    }
}

impl tower_service::Service<http::Uri> for Connector {
    type Response = TokioIo<TlsStream<TcpStream>>;
    type Error = std::io::Error;
    type Future = Pin<Box<dyn Future<Output = std::io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: http::Uri) -> Self::Future {
        let connector = self.clone();
        Box::pin(async move { connector.open(&uri).await.map(TokioIo::new) })
    }
}

/// A channel that connects when it is first used, and again when it broke.
///
/// # Errors
/// The address is not `host:port`.
pub fn channel(address: &str, connector: Connector) -> Result<Channel, ControlPlaneError> {
    let invalid = |problem: String| ControlPlaneError::Address { address: address.to_owned(), problem };
    if !address.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok()) {
        return Err(invalid("a host, a colon and a port are needed".into()));
    }
    // Scheme http: TLS is ours, tonic must not look for its own.
    let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(|e| invalid(e.to_string()))?;
    let endpoint = endpoint
        .http2_keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true);
    Ok(endpoint.connect_with_connector_lazy(connector))
}

/// Starts fetching and renewing this workload's certificate.
///
/// # Errors
/// The addresses or names of the environment cannot be used.
pub fn start_identity(env: &Environment) -> Result<SvidSource, ControlPlaneError> {
    let id = SpiffeId::parse(&env.spiffe_id())
        .map_err(|e| ControlPlaneError::Identity { id: env.spiffe_id(), problem: e.to_string() })?;
    let channel = channel(&env.ca_address, Connector::new(env.root_cert_file.clone(), None))?;
    let mut client = IstioCaClient::new(channel, TokenFile(env.token_file.clone())).attempts(1);
    if let Some(cluster) = env.var("ISTIO_META_CLUSTER_ID") {
        client = client.cluster_id(cluster);
    }
    let roots = env.root_cert_file.clone();
    let fetcher = IstioCaFetcher::new(client, id, WallClock::system())
        .lifetime(env.secret_ttl)
        .also_trust(move || std::fs::read(&roots))
        .also_revoke(&env.crl_file);
    let mut policy = RenewalPolicy::default();
    policy.backoff_first = Duration::from_millis(100);
    policy.backoff_max = Duration::from_secs(10);
    if let Some(ratio) = env.var("SECRET_GRACE_PERIOD_RATIO").and_then(|r| r.parse::<f64>().ok()) {
        policy.renew_at = (1.0 - ratio).clamp(0.05, 0.95);
    }
    Ok(SvidSource::spawn(fetcher, policy, WallClock::system()))
}
