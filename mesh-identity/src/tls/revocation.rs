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
/// peer it changes nothing. Of two tasks that share the stream, one that reads and one that writes, both are woken.
pub struct ClosedWhenRevoked<S> {
    stream: S,
    watch: Option<Watch>,
    closed: bool,
}

/// One future for each direction: a future wakes only the task that polled it last.
struct Watch {
    peer: PeerIdentity,
    reading: BoxFuture<'static, ()>,
    writing: BoxFuture<'static, ()>,
}

#[derive(Clone, Copy)]
enum Direction {
    Read,
    Write,
}

impl<S> ClosedWhenRevoked<S> {
    /// Watches the bundles of `identity` for the end of `peer`, who is at the other end of `stream`.
    pub fn new(stream: S, identity: &Identity, peer: Option<PeerIdentity>) -> Self {
        let watch = peer.map(|peer| {
            let revoked = || -> BoxFuture<'static, ()> {
                let (identity, peer) = (identity.clone(), peer.clone());
                Box::pin(async move { identity.revoked(&peer).await })
            };
            let (reading, writing) = (revoked(), revoked());
            Watch { peer, reading, writing }
        });
        Self { stream, watch, closed: false }
    }

    /// The same type, watching nobody.
    pub(crate) fn unwatched(stream: S) -> Self {
        Self { stream, watch: None, closed: false }
    }

    /// The stream within.
    pub fn get_ref(&self) -> &S {
        &self.stream
    }

    /// The stream within, no longer watched.
    pub fn into_inner(self) -> S {
        self.stream
    }

    /// Looks at the revocation lists and registers the task of this direction to be woken by the next one.
    fn check(&mut self, direction: Direction, cx: &mut Context<'_>) -> io::Result<()> {
        if let (false, Some(watch)) = (self.closed, &mut self.watch) {
            let revoked = match direction {
                Direction::Read => &mut watch.reading,
                Direction::Write => &mut watch.writing,
            };
            self.closed = revoked.as_mut().poll(cx).is_ready();
            if self.closed {
                let PeerIdentity { id, serial, .. } = &watch.peer;
                tracing::warn!(%id, serial, "peer revoked, connection closed");
            }
        }
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
        self.check(Direction::Read, cx)?;
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for ClosedWhenRevoked<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.check(Direction::Write, cx)?;
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.check(Direction::Write, cx)?;
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check(Direction::Write, cx)?;
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
