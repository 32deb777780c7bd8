//! Small HTTP servers: one handler, plain or over TLS, HTTP/1.1 and HTTP/2, bounded in every direction.

mod body;
mod connections;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

pub(super) use body::Body;
use connections::{Connections, Place};

/// Connections at once. The one that has been idle for the longest time makes room for another.
const MAX_CONNECTIONS: usize = 1024;
/// Requests at once on one HTTP/2 connection; an API server that has more waits or opens another.
const MAX_STREAMS: u32 = 8;
/// What a peer may send on an HTTP/2 connection, and on one stream of it, before it is read.
const WINDOWS: (u32, u32) = (128 << 10, 64 << 10);
/// Largest head of an HTTP/2 request.
const MAX_HEAD: u32 = 16 << 10;
/// Bytes of bodies in memory, of all connections together; who would exceed it waits.
const MAX_BODIES: usize = 64 << 20;
/// Time for a TLS handshake, and for a request's head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// Time for a request's body; the API server has all of it before it begins.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
/// Time for an answer: the API server waits 10 s by default, 30 s at most.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// A connection without a request is closed after this time; the API server closes its own after 90 s.
const IDLE_TIMEOUT: Duration = Duration::from_secs(120);
/// Time for a connection that is told to end to do so.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(1);
/// Pause after a failed accept (out of file descriptors, most likely).
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// A request with its whole body.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) method: Method,
    pub(super) path: String,
    pub(super) query: String,
    pub(super) headers: http::HeaderMap,
    pub(super) body: Body,
    pub(super) peer: SocketAddr,
}

/// An answer.
pub(super) type Answer = Response<Full<Bytes>>;

/// Answers requests.
pub(super) trait Handler: Send + Sync + 'static {
    /// Largest body that is read; a larger one is answered 400.
    fn max_body(&self) -> usize;

    /// Hears of a request whose body could not be read; it is answered already.
    fn unread(&self) {}

    /// Answers one request.
    fn handle(&self, call: Call) -> impl Future<Output = Answer> + Send;
}

/// A text answer.
pub(super) fn text(status: StatusCode, body: impl Into<String>) -> Answer {
    answer(status, "text/plain; charset=utf-8", body.into())
}

/// A JSON answer.
pub(super) fn json(value: &impl serde::Serialize) -> Answer {
    match serde_json::to_vec_pretty(value) {
        Ok(body) => answer(StatusCode::OK, "application/json", body),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    }
}

/// An answer of any type.
pub(super) fn answer(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(body.into()));
    *answer.status_mut() = status;
    answer.headers_mut().insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static(content_type));
    answer
}

/// Serves without TLS until told to stop.
pub(super) async fn serve<H: Handler>(listener: TcpListener, handler: H, stop: watch::Receiver<bool>) {
    accept(listener, None, Arc::new(handler), stop, MAX_CONNECTIONS).await;
}

/// Serves over TLS until told to stop.
pub(super) async fn serve_tls<H: Handler>(
    listener: TcpListener,
    config: Arc<ServerConfig>,
    handler: H,
    stop: watch::Receiver<bool>,
) {
    accept(listener, Some(TlsAcceptor::from(config)), Arc::new(handler), stop, MAX_CONNECTIONS).await;
}

async fn accept<H: Handler>(
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    handler: Arc<H>,
    stop: watch::Receiver<bool>,
    most: usize,
) {
    let mut stopping = std::pin::pin!(super::stopped(stop.clone()));
    let places = Connections::new(most);
    let server = Server { handler, memory: Arc::new(Semaphore::new(MAX_BODIES)), stop };
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = &mut stopping => break,
        };
        while connections.try_join_next().is_some() {}
        let (tcp, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "accept failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let place = tokio::select! {
            place = places.admit() => place,
            () = &mut stopping => break,
        };
        let _ = tcp.set_nodelay(true);
        let (tls, server) = (tls.clone(), server.clone());
        connections.spawn(async move {
            let Some(tls) = tls else {
                server.connection(tcp, false, peer, place).await;
                return;
            };
            let accepted = tokio::select! {
                accepted = tls.accept(tcp) => accepted,
                () = place.over(HEAD_TIMEOUT) => {
                    tracing::debug!(%peer, "TLS handshake took too long");
                    return;
                }
            };
            match accepted {
                Ok(stream) => {
                    let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
                    server.connection(stream, http2, peer, place).await;
                }
                Err(error) => tracing::debug!(%peer, %error, "TLS handshake failed"),
            }
        });
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

/// What the connections of one server share.
struct Server<H> {
    handler: Arc<H>,
    /// A permit for each byte of a body.
    memory: Arc<Semaphore>,
    stop: watch::Receiver<bool>,
}

impl<H> Clone for Server<H> {
    fn clone(&self) -> Self {
        Self { handler: Arc::clone(&self.handler), memory: Arc::clone(&self.memory), stop: self.stop.clone() }
    }
}

impl<H: Handler> Server<H> {
    async fn connection(
        self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        http2: bool,
        peer: SocketAddr,
        place: Place,
    ) {
        let place = Arc::new(place);
        let stopping = super::stopped(self.stop.clone());
        let over = async {
            tokio::select! {
                () = place.over(IDLE_TIMEOUT) => LEAVE_TIMEOUT,
                // Requests under way are answered; the whole server has a deadline for that.
                () = stopping => REQUEST_TIMEOUT,
            }
        };
        let service = {
            let place = Arc::clone(&place);
            service_fn(move |request| self.clone().respond(request, peer, Arc::clone(&place)))
        };
        let io = TokioIo::new(stream);
        let result = if http2 {
            let mut builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            builder
                .timer(TokioTimer::new())
                .max_concurrent_streams(MAX_STREAMS)
                .initial_connection_window_size(WINDOWS.0)
                .initial_stream_window_size(WINDOWS.1)
                .max_header_list_size(MAX_HEAD)
                .keep_alive_interval(super::KEEPALIVE.0)
                .keep_alive_timeout(super::KEEPALIVE.1);
            let connection = std::pin::pin!(builder.serve_connection(io, service));
            drive(connection, |connection| connection.graceful_shutdown(), over).await
        } else {
            let mut builder = hyper::server::conn::http1::Builder::new();
            builder.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
            let connection = std::pin::pin!(builder.serve_connection(io, service));
            drive(connection, |connection| connection.graceful_shutdown(), over).await
        };
        if let Err(error) = result {
            tracing::debug!(%peer, %error, "connection ended");
        }
    }

    async fn respond(
        self,
        request: Request<Incoming>,
        peer: SocketAddr,
        place: Arc<Place>,
    ) -> Result<Answer, Infallible> {
        let _busy = place.busy();
        let (parts, body) = request.into_parts();
        let read = body::read(body, self.handler.max_body(), &self.memory);
        let body = match tokio::time::timeout(BODY_TIMEOUT, read).await {
            Ok(Ok(body)) => body,
            refused => {
                self.handler.unread();
                return Ok(match refused {
                    Ok(Err(error)) => text(StatusCode::BAD_REQUEST, format!("{error}\n")),
                    _ => text(StatusCode::REQUEST_TIMEOUT, "the body took too long\n"),
                });
            }
        };
        let call = Call {
            method: parts.method,
            path: parts.uri.path().to_owned(),
            query: parts.uri.query().unwrap_or_default().to_owned(),
            headers: parts.headers,
            body,
            peer,
        };
        let answer = tokio::time::timeout(REQUEST_TIMEOUT, self.handler.handle(call)).await;
        Ok(answer.unwrap_or_else(|_| text(StatusCode::REQUEST_TIMEOUT, "the answer took too long\n")))
    }
}

/// Runs a connection to its end. When `over` says so it takes no more requests, and has that much time for those under way.
async fn drive<C: Future<Output = hyper::Result<()>>>(
    mut connection: Pin<&mut C>,
    shut: impl FnOnce(Pin<&mut C>),
    over: impl Future<Output = Duration>,
) -> hyper::Result<()> {
    let limit = tokio::select! {
        result = connection.as_mut() => return result,
        limit = over => limit,
    };
    shut(connection.as_mut());
    tokio::time::timeout(limit, connection).await.unwrap_or(Ok(()))
}

#[cfg(test)]
mod tests;
