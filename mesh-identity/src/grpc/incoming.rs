use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use futures_util::Stream;
use rustls::{
    ServerConfig, ServerConnection,
    pki_types::{CertificateDer, UnixTime},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{Semaphore, mpsc},
    task::JoinHandle,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tonic::transport::server::Connected;

use crate::{id::SpiffeId, identity::Identity, tls::ClosedWhenRevoked, x509::PeerIdentity};

/// How a listener treats handshakes.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct IncomingOptions {
    /// How long a handshake may take; default 10 s.
    pub handshake_timeout: Duration,
    /// How many handshakes may be under way; default 1024. Later connections wait in the kernel's queue.
    pub max_handshakes: usize,
}

impl Default for IncomingOptions {
    fn default() -> Self {
        Self { handshake_timeout: Duration::from_secs(10), max_handshakes: 1024 }
    }
}

/// Accepts TLS connections, for `tonic::transport::Server::serve_with_incoming`.
///
/// Handshakes run side by side, so that a slow peer delays nobody; a failed one is logged and dropped. Handlers find a
/// [`PeerInfo`] in the request's extensions. Must be called within a tokio runtime. Dropping the stream stops accepting.
pub fn tls_incoming(
    listener: TcpListener,
    config: impl Into<IncomingTls>,
    options: IncomingOptions,
) -> Incoming {
    let (ready, connections) = mpsc::channel(64);
    let tls = config.into();
    let acceptor = TlsAcceptor::from(tls.config.clone());
    let handshakes = Arc::new(Semaphore::new(options.max_handshakes));
    let accepting = tokio::spawn(async move {
        loop {
            let Ok(slot) = handshakes.clone().acquire_owned().await else { return };
            let (tcp, address) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "accept failed");
                    // Out of file descriptors, most likely: give others time to close some.
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            };
            let (acceptor, ready, tls) = (acceptor.clone(), ready.clone(), tls.clone());
            tokio::spawn(async move {
                let _slot = slot;
                let _ = tcp.set_nodelay(true);
                match tokio::time::timeout(options.handshake_timeout, acceptor.accept(tcp)).await {
                    Ok(Ok(stream)) => {
                        // The receiver is gone when the server stopped: drop the connection.
                        let _ = ready.send(tls.finish(stream, address)).await;
                    }
                    Ok(Err(error)) => tracing::debug!(%address, %error, "TLS handshake failed"),
                    Err(_) => tracing::debug!(%address, "TLS handshake timed out"),
                }
            });
        }
    });
    Incoming { connections, accepting }
}

/// The stream of [`tls_incoming`].
#[derive(Debug)]
pub struct Incoming {
    connections: mpsc::Receiver<TlsIo>,
    accepting: JoinHandle<()>,
}

impl Stream for Incoming {
    type Item = io::Result<TlsIo>;
    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.connections.poll_recv(cx).map(|connection| connection.map(Ok))
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// How [`tls_incoming`] does TLS: a plain rustls configuration, or what
/// [`ServerTls::build_incoming`](crate::ServerTls::build_incoming) gives.
#[derive(Debug, Clone)]
pub struct IncomingTls {
    config: Arc<ServerConfig>,
    revocations: Option<Identity>,
}

impl IncomingTls {
    pub(crate) fn new(config: Arc<ServerConfig>, revocations: Option<Identity>) -> Self {
        Self { config, revocations }
    }

    /// Reads who the peer is by the configuration's clock, and watches for its revocation.
    fn finish(&self, stream: TlsStream<TcpStream>, address: SocketAddr) -> TlsIo {
        let peer = PeerInfo::of(stream.get_ref().1, address, self.config.time_provider.current_time());
        let stream = match &self.revocations {
            Some(identity) => {
                let watched = peer.identity.as_deref().cloned();
                ClosedWhenRevoked::new(stream, identity, watched)
            }
            None => ClosedWhenRevoked::unwatched(stream),
        };
        TlsIo { stream, peer }
    }
}

impl From<Arc<ServerConfig>> for IncomingTls {
    fn from(config: Arc<ServerConfig>) -> Self {
        Self::new(config, None)
    }
}

/// A server's TLS connection, its handshake over.
#[derive(Debug)]
pub struct TlsIo {
    stream: ClosedWhenRevoked<TlsStream<TcpStream>>,
    peer: PeerInfo,
}

/// Who is at the other end of a connection: in the extensions of each request.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct PeerInfo {
    /// The peer's address.
    pub address: SocketAddr,
    /// The client certificate chain, leaf first, which the handshake verified; `None` when the client gave none, or
    /// an expired one.
    pub chain: Option<Arc<Vec<CertificateDer<'static>>>>,
    /// The identity of that chain.
    pub identity: Option<Arc<PeerIdentity>>,
    /// The certificate that the client gave was good once, but its time was over at the handshake: a reason to tell,
    /// never an identity. See [`ServerTls::build_incoming`](crate::ServerTls::build_incoming).
    pub expired: Option<Arc<ExpiredCertificate>>,
}

/// A client certificate whose time is over. The name is for the log: nobody vouches for it any more.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ExpiredCertificate {
    /// The SPIFFE ID that it was for.
    pub id: SpiffeId,
    /// The last moment of its validity.
    pub not_after: SystemTime,
}

impl PeerInfo {
    fn of(connection: &ServerConnection, address: SocketAddr, now: Option<UnixTime>) -> Self {
        let nobody = Self { address, chain: None, identity: None, expired: None };
        let Some(chain) = connection.peer_certificates() else { return nobody };
        let identity = PeerIdentity::of_verified_chain(chain).ok();
        if let Some(PeerIdentity { id, not_after, .. }) = &identity {
            // The same seconds that path validation compares. Without a time, nothing is known to be valid.
            let last = not_after.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
            if now.is_none_or(|now| now.as_secs() > last) {
                let expired = ExpiredCertificate { id: id.clone(), not_after: *not_after };
                tracing::info!(%address, %id, reason = "expired", "client certificate refused");
                return Self { expired: Some(Arc::new(expired)), ..nobody };
            }
        }
        Self { chain: Some(Arc::new(chain.to_vec())), identity: identity.map(Arc::new), ..nobody }
    }
}

impl Connected for TlsIo {
    type ConnectInfo = PeerInfo;
    fn connect_info(&self) -> PeerInfo {
        self.peer.clone()
    }
}

impl AsyncRead for TlsIo {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for TlsIo {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
