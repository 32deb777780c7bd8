//! One upstream connection: TCP, then TLS, both within the connect timeout.

use std::{fmt, io, net::SocketAddr, sync::Arc};

use rustls::ClientConfig;
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, TlsStream};

use super::{ClusterRuntime, Host};
use crate::{
    config::TransportSocket,
    net::{self, Stream},
    proxy::Shared,
    tls::{self, TlsSession},
};

/// Why there is no connection.
#[derive(Debug)]
pub(crate) enum ConnectError {
    /// `connect_timeout` is over.
    Timeout,
    /// TCP.
    Tcp(io::Error),
    /// The TLS handshake, or no TLS configuration.
    Tls(String),
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Timeout => f.write_str("delayed connect error: Connection timed out"),
            Self::Tcp(error) => match error.kind() {
                io::ErrorKind::ConnectionRefused => f.write_str("delayed connect error: Connection refused"),
                _ => write!(f, "delayed connect error: {error}"),
            },
            Self::Tls(reason) => write!(f, "TLS_error: {reason}"),
        }
    }
}

/// What one request or connection asks of the transport.
#[derive(Debug, Default, Clone)]
pub(crate) struct ConnectOptions {
    /// ALPN instead of the transport's own (`istio.alpn`).
    pub(crate) alpn: Option<Arc<[Arc<str>]>>,
    /// Server name for `auto_sni`.
    pub(crate) host_name: Option<Arc<str>>,
}

/// Connects to `host`.
pub(crate) async fn connect(
    shared: &Shared,
    cluster: &ClusterRuntime,
    host: &Host,
    options: &ConnectOptions,
) -> Result<(Stream, Option<TlsSession>), ConnectError> {
    use std::sync::atomic::Ordering::Relaxed;
    host.cx_total.fetch_add(1, Relaxed);
    cluster.stats.cx_total.inc();
    let attempt = async {
        let tcp = net::connect(host.address(), &cluster.config.bind, cluster.config.tcp_keepalive)
            .await
            .map_err(ConnectError::Tcp)?;
        match &host.transport {
            TransportSocket::Raw => Ok((Stream::Plain(tcp), None)),
            TransportSocket::Tls(_) => handshake(shared, host, options, tcp).await,
        }
    };
    let outcome = match tokio::time::timeout(cluster.config.connect_timeout, attempt).await {
        Ok(outcome) => outcome,
        Err(_elapsed) => {
            cluster.stats.cx_connect_timeout.inc();
            Err(ConnectError::Timeout)
        }
    };
    if let Err(error) = &outcome {
        host.cx_connect_fail.fetch_add(1, Relaxed);
        cluster.stats.cx_connect_fail.inc();
        if matches!(error, ConnectError::Tls(_)) {
            cluster.stats.ssl_fail.inc();
        }
        tracing::debug!(cluster = %cluster.config.name, host = %host.address(), %error, "upstream connection failed");
    }
    outcome
}

async fn handshake(
    shared: &Shared,
    host: &Host,
    options: &ConnectOptions,
    tcp: TcpStream,
) -> Result<(Stream, Option<TlsSession>), ConnectError> {
    let TransportSocket::Tls(context) = &host.transport else {
        return Ok((Stream::Plain(tcp), None));
    };
    let config = shared.options.tls.client_config(context).map_err(|e| ConnectError::Tls(e.to_string()))?;
    let alpn = options.alpn.as_deref().unwrap_or(&context.alpn);
    let config = with_alpn(config, alpn);
    let sni = match &options.host_name {
        Some(name) if context.auto_sni => name,
        _ => &context.sni,
    };
    let name = tls::server_name(sni, host.address().ip()).map_err(|e| ConnectError::Tls(e.to_string()))?;
    let stream =
        TlsConnector::from(config).connect(name, tcp).await.map_err(|e| ConnectError::Tls(e.to_string()))?;
    let session = tls::describe(stream.get_ref().1, shared.options.tls.local_identity());
    Ok((Stream::Tls(Box::new(TlsStream::Client(stream))), Some(session)))
}

/// The configuration with this ALPN; copied only when it differs. `istio-peer-exchange` is never offered: we do not
/// speak its preface.
fn with_alpn(config: Arc<ClientConfig>, alpn: &[Arc<str>]) -> Arc<ClientConfig> {
    let offered = || alpn.iter().filter(|p| &***p != "istio-peer-exchange");
    if config.alpn_protocols.iter().map(Vec::as_slice).eq(offered().map(|p| p.as_bytes())) {
        return config;
    }
    let mut config = Arc::unwrap_or_clone(config);
    config.alpn_protocols = offered().map(|p| p.as_bytes().to_vec()).collect();
    Arc::new(config)
}

/// Our address on a connection.
pub(crate) fn local_of(stream: &Stream) -> SocketAddr {
    stream.local_addr().unwrap_or_else(|_| SocketAddr::from(([0, 0, 0, 0], 0)))
}
