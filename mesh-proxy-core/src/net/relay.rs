//! Bytes between two streams until both directions have ended.

use std::{
    io,
    pin::Pin,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};

/// Copy buffers, per direction.
const BUFFER: usize = 16 * 1024;
/// Looks at the counters per idle timeout: it may be late by a quarter.
const LOOKS: u32 = 4;

/// What moved, readable while it moves.
#[derive(Debug, Default)]
pub(crate) struct Moved {
    /// Bytes read from the first stream.
    pub(crate) received: AtomicU64,
    /// Bytes read from the second.
    pub(crate) sent: AtomicU64,
}

/// Why a relay ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    /// Both directions ended, or one failed.
    Closed,
    /// Nothing moved for the idle timeout.
    Idle,
}

/// Copies in both directions, passing half-closes on, until both have ended or nothing moved for `idle_timeout`.
/// Cancelling drops what is in the buffers.
pub(crate) async fn relay<A, B>(
    client: &mut A,
    upstream: &mut B,
    idle_timeout: Option<Duration>,
    moved: &Moved,
) -> Ended
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    let mut client = Counted { inner: client, count: &moved.received };
    let mut upstream = Counted { inner: upstream, count: &moved.sent };
    let ended = {
        let copy = tokio::io::copy_bidirectional_with_sizes(&mut client, &mut upstream, BUFFER, BUFFER);
        tokio::select! {
            result = copy => {
                if let Err(error) = result {
                    tracing::debug!(%error, "relay ended");
                }
                Ended::Closed
            }
            () = idle(idle_timeout, moved) => Ended::Idle,
        }
    };
    let _peer_may_be_gone = tokio::join!(client.shutdown(), upstream.shutdown());
    ended
}

/// Resolves when neither counter moved for `limit`; looked at now and then, so that traffic costs no timers.
async fn idle(limit: Option<Duration>, moved: &Moved) {
    let Some(limit) = limit.filter(|l| !l.is_zero()) else { return std::future::pending().await };
    let mut last = (0, 0);
    let mut quiet = 0;
    while quiet < LOOKS {
        tokio::time::sleep(limit / LOOKS).await;
        let now = (moved.received.load(Relaxed), moved.sent.load(Relaxed));
        quiet = if now == last { quiet + 1 } else { 0 };
        last = now;
    }
}

/// Counts bytes read.
struct Counted<'a, S> {
    inner: &'a mut S,
    count: &'a AtomicU64,
}

impl<S: AsyncRead + Unpin> AsyncRead for Counted<'_, S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        ready!(Pin::new(&mut *this.inner).poll_read(cx, buf))?;
        this.count.fetch_add((buf.filled().len() - before) as u64, Relaxed);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Counted<'_, S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.get_mut().inner).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.get_mut().inner).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.get_mut().inner).poll_shutdown(cx)
    }
}
