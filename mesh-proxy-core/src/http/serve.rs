//! A connection that speaks HTTP, from its first byte to its last.

use std::{
    convert::Infallible,
    future::Future,
    pin::pin,
    sync::{Arc, atomic::Ordering::Relaxed},
    task::Poll,
    time::Duration,
};

use hyper::{
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::time::Instant;

use super::{HttpConnection, pipeline};
use crate::{
    lifecycle::{CLOSING, KILLED},
    net::Stream,
};

/// hyper's smallest buffer for a head.
const MIN_BUFFER: usize = 8192;
/// Longer than any connection lives.
const FAR: Duration = Duration::from_secs(365 * 24 * 3600);

/// Serves a connection until it ends or its chain is closed.
pub(crate) async fn serve(connection: Arc<HttpConnection>, stream: Stream, http2: bool) {
    let stats = &connection.manager.stats;
    stats.cx_total.inc();
    stats.cx_active.inc();
    if http2 {
        serve_http2(&connection, stream).await;
    } else {
        serve_http1(&connection, stream).await;
    }
    if let Some(tunnel) = connection.take_tunnel() {
        let _how_it_ended = tunnel.await;
    }
    connection.manager.stats.cx_active.dec();
}

async fn serve_http1(connection: &Arc<HttpConnection>, stream: Stream) {
    let config = &connection.manager.config;
    let service = service_fn(|request| {
        let connection = Arc::clone(connection);
        async move { Ok::<_, Infallible>(pipeline::handle(connection, request).await) }
    });
    let mut builder = http1::Builder::new();
    builder
        .max_headers(config.max_request_headers as usize)
        .max_buf_size((config.max_request_headers_bytes as usize).max(MIN_BUFFER));
    if let Some(limit) = config.request_headers_timeout {
        builder.timer(TokioTimer::new()).header_read_timeout(limit);
    }
    let served = builder.serve_connection(TokioIo::new(stream), service).with_upgrades();
    let mut served = pin!(served);
    let error = drive(connection, served.as_mut(), |conn| conn.graceful_shutdown()).await;
    note(connection, error);
}

async fn serve_http2(connection: &Arc<HttpConnection>, stream: Stream) {
    let config = &connection.manager.config;
    let service = service_fn(|request| {
        let connection = Arc::clone(connection);
        async move { Ok::<_, Infallible>(pipeline::handle(connection, request).await) }
    });
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .max_concurrent_streams(config.max_concurrent_streams)
        .max_header_list_size(config.max_request_headers_bytes)
        .initial_stream_window_size(config.initial_stream_window)
        .initial_connection_window_size(config.initial_connection_window);
    let served = builder.serve_connection(TokioIo::new(stream), service);
    let mut served = pin!(served);
    let error = drive(connection, served.as_mut(), |conn| conn.graceful_shutdown()).await;
    note(connection, error);
}

fn note(connection: &HttpConnection, error: Option<hyper::Error>) {
    let Some(error) = error else { return };
    if error.is_parse() {
        connection.manager.stats.cx_protocol_error.inc();
    }
    tracing::debug!(peer = %connection.info.peer, %error, "downstream connection ended with an error");
}

/// Polls the codec; closes it gracefully when its chain is closing, drops it when the chain is killed.
async fn drive<C>(
    connection: &HttpConnection,
    mut conn: std::pin::Pin<&mut C>,
    close: impl Fn(std::pin::Pin<&mut C>),
) -> Option<hyper::Error>
where
    C: Future<Output = Result<(), hyper::Error>>,
{
    let lifecycle = &connection.lifecycle;
    let config = &connection.manager.config;
    let mut closing = false;
    let mut served_before = 0;
    // One timer for a connection's whole life, looked at when it fires: requests do not touch it.
    let end = config.max_connection_duration.map(|most| connection.info.start + most);
    let next = |closing: bool| {
        let idle = Instant::now() + config.idle_timeout.unwrap_or(FAR);
        end.filter(|_| !closing).map_or(idle, |end| idle.min(end))
    };
    let mut timer = pin!(tokio::time::sleep_until(next(false)));
    loop {
        let changed = lifecycle.changed();
        let mut changed = pin!(changed);
        changed.as_mut().enable();
        let stage = lifecycle.stage();
        if stage >= KILLED {
            return None;
        }
        if timer.is_elapsed() {
            let served = connection.requests.load(Relaxed);
            let idle = config.idle_timeout.is_some()
                && connection.active.load(Relaxed) == 0
                && served == served_before;
            let old = end.is_some_and(|end| end <= Instant::now());
            served_before = served;
            if idle && closing {
                // Asked to go a whole timeout ago: a head that never ends, or a client that does not read.
                return None;
            }
            if (idle || old) && !closing {
                closing = true;
                close(conn.as_mut());
            }
            timer.as_mut().reset(next(closing));
        }
        if stage >= CLOSING && !closing {
            closing = true;
            close(conn.as_mut());
        }
        // The bell is looked at once, which leaves our waker there, and again only when the stage moved.
        let mut registered = false;
        let ended = std::future::poll_fn(|cx| {
            if let Poll::Ready(result) = conn.as_mut().poll(cx) {
                return Poll::Ready(Some(result));
            }
            if !registered || timer.is_elapsed() || lifecycle.stage() != stage {
                registered = true;
                if timer.as_mut().poll(cx).is_ready() || changed.as_mut().poll(cx).is_ready() {
                    return Poll::Ready(None);
                }
            }
            Poll::Pending
        })
        .await;
        if let Some(result) = ended {
            return result.err();
        }
    }
}
