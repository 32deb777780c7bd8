use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures_util::Stream;
use rustls::{ServerConfig, pki_types::CertificateDer};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{Semaphore, mpsc},
    task::JoinHandle,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tonic::transport::server::Connected;

use crate::x509::PeerIdentity;

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
pub fn tls_incoming(listener: TcpListener, config: Arc<ServerConfig>, options: IncomingOptions) -> Incoming {
    let (ready, connections) = mpsc::channel(64);
    let acceptor = TlsAcceptor::from(config);
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
            let (acceptor, ready) = (acceptor.clone(), ready.clone());
            tokio::spawn(async move {
                let _slot = slot;
                let _ = tcp.set_nodelay(true);
                match tokio::time::timeout(options.handshake_timeout, acceptor.accept(tcp)).await {
                    Ok(Ok(stream)) => {
                        // The receiver is gone when the server stopped: drop the connection.
                        let _ = ready.send(TlsIo { stream, address }).await;
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

/// A server's TLS connection, its handshake over.
#[derive(Debug)]
pub struct TlsIo {
    stream: TlsStream<TcpStream>,
    address: SocketAddr,
}

impl TlsIo {
    /// The TLS stream.
    pub fn into_inner(self) -> TlsStream<TcpStream> {
        self.stream
    }
}

/// Who is at the other end of a connection: in the extensions of each request.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct PeerInfo {
    /// The peer's address.
    pub address: SocketAddr,
    /// The client certificate chain, leaf first, which the handshake verified; `None` when the client gave none.
    pub chain: Option<Arc<Vec<CertificateDer<'static>>>>,
    /// The identity of that chain.
    pub identity: Option<Arc<PeerIdentity>>,
}

impl Connected for TlsIo {
    type ConnectInfo = PeerInfo;
    fn connect_info(&self) -> PeerInfo {
        let chain = self.stream.get_ref().1.peer_certificates().map(|chain| Arc::new(chain.to_vec()));
        let identity = chain.as_ref().and_then(|chain| PeerIdentity::of_verified_chain(chain).ok());
        PeerInfo { address: self.address, chain, identity: identity.map(Arc::new) }
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
