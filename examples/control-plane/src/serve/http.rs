//! Small HTTP servers: one handler, plain or over TLS, HTTP/1.1 and HTTP/2, bounded in every direction.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

/// Connections at once; more wait in the kernel's queue.
const MAX_CONNECTIONS: usize = 1024;
/// Time for a TLS handshake, and for a request's head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// Time for a request's body and its answer: the API server waits 10 s by default, 30 s at most.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// Pause after a failed accept (out of file descriptors, most likely).
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// A request with its whole body.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) method: Method,
    pub(super) path: String,
    pub(super) query: String,
    pub(super) headers: http::HeaderMap,
    pub(super) body: Bytes,
    pub(super) peer: SocketAddr,
}

/// An answer.
pub(super) type Answer = Response<Full<Bytes>>;

/// Answers requests.
pub(super) trait Handler: Send + Sync + 'static {
    /// Largest body that is read; a larger one is answered 413.
    fn max_body(&self) -> usize;

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
    accept(listener, None, Arc::new(handler), stop).await;
}

/// Serves over TLS until told to stop.
pub(super) async fn serve_tls<H: Handler>(
    listener: TcpListener,
    config: Arc<ServerConfig>,
    handler: H,
    stop: watch::Receiver<bool>,
) {
    accept(listener, Some(TlsAcceptor::from(config)), Arc::new(handler), stop).await;
}

async fn accept<H: Handler>(
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    handler: Arc<H>,
    stop: watch::Receiver<bool>,
) {
    let mut stopping = std::pin::pin!(super::stopped(stop.clone()));
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
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
        let _ = tcp.set_nodelay(true);
        let (tls, handler, stop) = (tls.clone(), Arc::clone(&handler), stop.clone());
        connections.spawn(async move {
            let _slot = slot;
            let Some(tls) = tls else {
                connection(tcp, false, peer, handler, stop).await;
                return;
            };
            match tokio::time::timeout(HEAD_TIMEOUT, tls.accept(tcp)).await {
                Ok(Ok(stream)) => {
                    let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
                    connection(stream, http2, peer, handler, stop).await;
                }
                Ok(Err(error)) => tracing::debug!(%peer, %error, "TLS handshake failed"),
                Err(_) => tracing::debug!(%peer, "TLS handshake timed out"),
            }
        });
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

async fn connection<H: Handler>(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    http2: bool,
    peer: SocketAddr,
    handler: Arc<H>,
    stop: watch::Receiver<bool>,
) {
    let stopping = super::stopped(stop);
    let service = service_fn(move |request| respond(Arc::clone(&handler), request, peer));
    let io = TokioIo::new(stream);
    // Both kinds finish the requests under way and take no more.
    let result = if http2 {
        let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .serve_connection(io, service);
        let mut connection = std::pin::pin!(connection);
        tokio::select! {
            result = connection.as_mut() => result,
            () = stopping => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        }
    } else {
        let connection = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .serve_connection(io, service);
        let mut connection = std::pin::pin!(connection);
        tokio::select! {
            result = connection.as_mut() => result,
            () = stopping => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        }
    };
    if let Err(error) = result {
        tracing::debug!(%peer, %error, "connection ended");
    }
}

async fn respond<H: Handler>(
    handler: Arc<H>,
    request: Request<Incoming>,
    peer: SocketAddr,
) -> Result<Answer, Infallible> {
    let (parts, body) = request.into_parts();
    let work = async {
        let body = match Limited::new(body, handler.max_body()).collect().await {
            Ok(body) => body.to_bytes(),
            Err(error) if error.is::<http_body_util::LengthLimitError>() => {
                let limit = handler.max_body();
                return text(StatusCode::PAYLOAD_TOO_LARGE, format!("the body exceeds {limit} bytes\n"));
            }
            Err(error) => return text(StatusCode::BAD_REQUEST, format!("{error}\n")),
        };
        let call = Call {
            method: parts.method,
            path: parts.uri.path().to_owned(),
            query: parts.uri.query().unwrap_or_default().to_owned(),
            headers: parts.headers,
            body,
            peer,
        };
        handler.handle(call).await
    };
    let answer = tokio::time::timeout(REQUEST_TIMEOUT, work).await;
    Ok(answer.unwrap_or_else(|_| text(StatusCode::REQUEST_TIMEOUT, "the request took too long\n")))
}
