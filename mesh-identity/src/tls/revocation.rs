use std::{
    fmt, io,
    pin::Pin,
    task::{Context, Poll},
};

use futures_util::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::{identity::Identity, x509::PeerIdentity};

/// A connection that ends when its peer's certificate is revoked: pending and later reads and writes fail with
/// `ConnectionAborted` as soon as `identity` holds a revocation list that names the certificate.
///
/// TLS itself looks at revocation lists only during the handshake. Works around any stream of either end; without a
/// peer it changes nothing. Of two tasks that share the stream, the one that polled last is woken.
pub struct ClosedWhenRevoked<S> {
    stream: S,
    revoked: Option<BoxFuture<'static, ()>>,
    closed: bool,
}

impl<S> ClosedWhenRevoked<S> {
    /// Watches the bundles of `identity` for the end of `peer`, who is at the other end of `stream`.
    pub fn new(stream: S, identity: &Identity, peer: Option<PeerIdentity>) -> Self {
        let identity = identity.clone();
        let revoked = peer.map(|peer| -> BoxFuture<'static, ()> {
            Box::pin(async move {
                identity.revoked(&peer).await;
                tracing::warn!(id = %peer.id, serial = peer.serial, "peer revoked, connection closed");
            })
        });
        Self { stream, revoked, closed: false }
    }

    /// The same type, watching nobody.
    pub(crate) fn unwatched(stream: S) -> Self {
        Self { stream, revoked: None, closed: false }
    }

    /// The stream within.
    pub fn get_ref(&self) -> &S {
        &self.stream
    }

    /// The stream within, no longer watched.
    pub fn into_inner(self) -> S {
        self.stream
    }

    /// Looks at the revocation lists and registers the task to be woken by the next one.
    fn check(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        // Not polled again once it is done.
        self.closed = self.closed || self.revoked.as_mut().is_some_and(|it| it.as_mut().poll(cx).is_ready());
        if !self.closed {
            return Ok(());
        }
        Err(io::Error::new(io::ErrorKind::ConnectionAborted, "the peer's certificate is revoked"))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for ClosedWhenRevoked<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check(cx)?;
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for ClosedWhenRevoked<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.check(cx)?;
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.check(cx)?;
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check(cx)?;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    /// Always allowed: it says goodbye.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl<S: fmt::Debug> fmt::Debug for ClosedWhenRevoked<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClosedWhenRevoked")
            .field("stream", &self.stream)
            .field("closed", &self.closed)
            .finish_non_exhaustive()
    }
}
