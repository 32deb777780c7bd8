use std::{
    future::Future,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use http::Uri;
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

/// How long name resolution, TCP and TLS together may take by default.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);

/// Connects tonic (or hyper) over TCP and our TLS: a `tower` service from a URI to a connected stream, for
/// `tonic::transport::Endpoint::connect_with_connector_lazy`.
///
/// The client configuration needs `h2` in its ALPN list for gRPC. The URI must have the scheme `http`, so that tonic
/// itself does not look for TLS settings; its host and port are where the connection goes.
#[derive(Debug, Clone)]
pub struct TlsConnector {
    config: Arc<ClientConfig>,
    server_name: Option<String>,
    address: Option<String>,
    timeout: Duration,
}

impl TlsConnector {
    /// Connects with this configuration; the server name (SNI, and what a DNS verifier checks) is the URI's host.
    pub fn new(config: Arc<ClientConfig>) -> Self {
        Self { config, server_name: None, address: None, timeout: DEFAULT_TIMEOUT }
    }

    /// Uses this server name in place of the URI's host.
    #[must_use]
    pub fn server_name(mut self, name: impl Into<String>) -> Self {
        self.server_name = Some(name.into());
        self
    }

    /// Connects to this `host:port` in place of the URI's; the server name stays as it is.
    #[must_use]
    pub fn address(mut self, address: impl Into<String>) -> Self {
        self.address = Some(address.into());
        self
    }

    /// Limits name resolution, TCP and TLS together; default 10 s.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Opens one connection. Cancel safe: a dropped future closes it.
    ///
    /// # Errors
    /// A URI without host, a host that is no server name, or a failed or late connection or handshake.
    pub async fn connect(&self, uri: &Uri) -> Result<TlsStream<TcpStream>, ConnectError> {
        let host = uri.host().ok_or(ConnectError::NoHost)?;
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let name = self.server_name.as_deref().unwrap_or(bare);
        let server_name = ServerName::try_from(name.to_owned())
            .map_err(|_| ConnectError::ServerName { name: name.to_owned() })?;
        let address = match &self.address {
            Some(address) => address.clone(),
            None => format!("{host}:{}", uri.port_u16().unwrap_or(443)),
        };
        let connect = async {
            let tcp = TcpStream::connect(&address).await?;
            tcp.set_nodelay(true)?;
            tokio_rustls::TlsConnector::from(self.config.clone()).connect(server_name, tcp).await
        };
        let failed =
            |source: io::Error| ConnectError::Io { address: address.clone(), source: Arc::new(source) };
        match tokio::time::timeout(self.timeout, connect).await {
            Ok(outcome) => outcome.map_err(failed),
            Err(_) => Err(failed(io::ErrorKind::TimedOut.into())),
        }
    }
}

impl tower_service::Service<Uri> for TlsConnector {
    type Response = TokioIo<TlsStream<TcpStream>>;
    type Error = ConnectError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let connector = self.clone();
        Box::pin(async move { connector.connect(&uri).await.map(TokioIo::new) })
    }
}

/// Why a connection could not be opened.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The URI has no host.
    #[error("the URI has no host")]
    NoHost,
    /// The host is neither a DNS name nor an IP address.
    #[error("{name:?} is neither a DNS name nor an IP address")]
    ServerName {
        /// The host.
        name: String,
    },
    /// TCP or TLS failed.
    #[error("cannot connect to {address}: {source}")]
    Io {
        /// Where to.
        address: String,
        /// What failed; for TLS it holds a `rustls::Error`.
        source: Arc<io::Error>,
    },
}

impl ConnectError {
    /// A stable label of low cardinality, for metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NoHost | Self::ServerName { .. } => "address",
            Self::Io { source, .. } => match source.kind() {
                io::ErrorKind::TimedOut => "timeout",
                io::ErrorKind::InvalidData => "tls",
                _ => "connect",
            },
        }
    }
}
