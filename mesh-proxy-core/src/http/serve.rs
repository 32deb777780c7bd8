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
    connection.manager.stats.cx_active.dec();
}

async fn serve_http1(connection: &Arc<HttpConnection>, stream: Stream) {
    let config = &connection.manager.config;
    let service = service_fn(|request| {
        let connection = Arc::clone(connection);
        async move { Ok::<_, Infallible>(pipeline::handle(connection, request).await) }
    });
    let mut builder = http1::Builder::new();
    builder.max_headers(config.max_request_headers as usize);
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
        .initial_connection_window_size(config.initial_connection_window)
        .enable_connect_protocol();
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
    let tick = [config.idle_timeout, config.max_connection_duration].into_iter().flatten().min();
    let mut timer = pin!(tokio::time::sleep(tick.unwrap_or(FAR)));
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
                && served == served_before
                && config.idle_timeout == tick;
            let old =
                config.max_connection_duration.is_some_and(|most| connection.info.start.elapsed() >= most);
            served_before = served;
            if (idle || old) && !closing {
                closing = true;
                close(conn.as_mut());
            }
            timer.as_mut().reset(Instant::now() + tick.unwrap_or(FAR));
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
