//! Small HTTP/1.1 plumbing of the agent: one server loop for its ports, one client call for its hooks and probes.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Either, Full, Limited};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::mpsc;

/// Largest request body that the agent's servers read.
const MAX_REQUEST_BODY: usize = 64 << 10;
/// How long a client may take to send its request head, and to stay idle.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
/// Largest number of connections per server; more wait in the kernel's queue.
const MAX_CONNECTIONS: usize = 128;

/// What the agent's servers answer: a body in memory, or one that is still being made.
pub type Reply = Response<Either<Full<Bytes>, ChannelBody>>;
type ReplyFuture = Pin<Box<dyn Future<Output = Reply> + Send>>;

/// A request with its peer.
#[derive(Debug)]
pub struct Call {
    /// Method.
    pub method: Method,
    /// Path without query.
    pub path: String,
    /// Query without `?`, empty when absent.
    pub query: String,
    /// Headers.
    pub headers: http::HeaderMap,
    /// Body.
    pub body: Bytes,
    /// Who connected.
    pub peer: SocketAddr,
}

impl Call {
    /// The value of a query parameter; `Some("")` when it has none.
    pub fn param(&self, name: &str) -> Option<String> {
        self.params().find(|(k, _)| k == name).map(|(_, v)| v)
    }

    /// All query parameters, percent-decoded.
    pub fn params(&self) -> impl Iterator<Item = (String, String)> {
        parse_query(&self.query).into_iter()
    }
}

/// Splits a query string.
pub fn parse_query(query: &str) -> Vec<(String, String)> {
    query
        .split('&')
        .filter(|part| !part.is_empty())
        .map(|part| {
            let (key, value) = part.split_once('=').unwrap_or((part, ""));
            (percent_decode(key), percent_decode(value))
        })
        .collect()
}

fn percent_decode(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        let digits = (byte == b'%').then(|| {
            let mut ahead = bytes.clone();
            let high = ahead.next().and_then(|b| char::from(b).to_digit(16))?;
            let low = ahead.next().and_then(|b| char::from(b).to_digit(16))?;
            u8::try_from(high * 16 + low).ok()
        });
        match digits.flatten() {
            Some(decoded) => {
                out.push(decoded);
                bytes.nth(1);
            }
            None => out.push(if byte == b'+' { b' ' } else { byte }),
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// Answers calls.
pub trait Handler: Send + Sync + 'static {
    /// Answers one call.
    fn call(self: Arc<Self>, call: Call) -> impl Future<Output = Reply> + Send;
}

/// Serves HTTP/1.1 on `listener` until the future is dropped.
pub async fn serve<H: Handler>(listener: TcpListener, handler: Arc<H>) {
    let slots = Arc::new(tokio::sync::Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(permit) = Arc::clone(&slots).acquire_owned().await else { return };
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "accept failed");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let handler = Arc::clone(&handler);
        tokio::spawn(async move {
            serve_connection(stream, peer, handler).await;
            drop(permit);
        });
    }
}

async fn serve_connection<H: Handler>(stream: TcpStream, peer: SocketAddr, handler: Arc<H>) {
    let service = service_fn(move |request: Request<Incoming>| {
        let handler = Arc::clone(&handler);
        let reply: ReplyFuture = Box::pin(async move {
            let (parts, body) = request.into_parts();
            let Ok(body) = Limited::new(body, MAX_REQUEST_BODY).collect().await else {
                return text(StatusCode::PAYLOAD_TOO_LARGE, "the body is too large\n");
            };
            let call = Call {
                method: parts.method,
                path: parts.uri.path().to_owned(),
                query: parts.uri.query().unwrap_or_default().to_owned(),
                headers: parts.headers,
                body: body.to_bytes(),
                peer,
            };
            handler.call(call).await
        });
        async move { Ok::<_, Infallible>(reply.await) }
    });
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(64 << 10)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%peer, %error, "agent connection ended");
    }
}

/// A body that is made elsewhere, chunk by chunk; an error cuts the answer off.
#[derive(Debug)]
pub struct ChannelBody(pub mpsc::Receiver<io::Result<Bytes>>);

impl hyper::body::Body for ChannelBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        self.get_mut().0.poll_recv(cx).map(|chunk| chunk.map(|chunk| chunk.map(Frame::data)))
    }
}

/// A JSON reply whose text comes through a channel.
pub fn streamed_json(chunks: mpsc::Receiver<io::Result<Bytes>>) -> Reply {
    json("").map(|_| Either::Right(ChannelBody(chunks)))
}

/// A plain text reply.
pub fn text(status: StatusCode, body: impl Into<Bytes>) -> Reply {
    reply(status, "text/plain; charset=UTF-8", body)
}

/// A JSON reply.
pub fn json(body: impl Into<Bytes>) -> Reply {
    reply(StatusCode::OK, "application/json", body)
}

/// A reply with a content type.
pub fn reply(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Reply {
    let mut reply = Response::new(Either::Left(Full::new(body.into())));
    *reply.status_mut() = status;
    let headers = reply.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, max-age=0"));
    headers.insert("x-content-type-options", HeaderValue::from_static("nosniff"));
    reply
}

/// One request of ours: connect, send, read the answer up to `limit` bytes.
#[derive(Debug, Clone)]
pub struct Outgoing {
    /// Where to connect.
    pub address: SocketAddr,
    /// Address to connect from.
    pub source: Option<IpAddr>,
    /// Most bytes of the answer's body that are kept; more is an error.
    pub limit: usize,
}

impl Outgoing {
    /// Connects from the configured source.
    ///
    /// # Errors
    /// Any socket error.
    pub async fn connect(&self) -> io::Result<TcpStream> {
        let socket = if self.address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        if let Some(source) = self.source {
            socket.bind(SocketAddr::new(source, 0))?;
        }
        socket.connect(self.address).await
    }

    /// Sends a request and reads the whole answer. Cancel safe: dropping it closes the connection.
    ///
    /// # Errors
    /// The connection failed, the peer does not speak HTTP/1.1 or the answer is too long.
    pub async fn send(&self, request: Request<Full<Bytes>>) -> io::Result<Response<Bytes>> {
        self.exchange(self.connect().await?, request).await
    }

    /// As [`Self::send`], on a stream that is already connected.
    ///
    /// # Errors
    /// The peer does not speak HTTP/1.1 or the answer is too long.
    pub async fn exchange<S>(&self, stream: S, request: Request<Full<Bytes>>) -> io::Result<Response<Bytes>>
    where
        S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
    {
        let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream));
        let (mut sender, connection) = handshake.await.map_err(io::Error::other)?;
        let exchange = async {
            let (parts, body) = sender.send_request(request).await.map_err(io::Error::other)?.into_parts();
            let body = Limited::new(body, self.limit).collect().await.map_err(io::Error::other)?.to_bytes();
            Ok(Response::from_parts(parts, body))
        };
        tokio::pin!(exchange);
        tokio::select! {
            biased;
            done = &mut exchange => done,
            _ended = connection => exchange.await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Echo;

    impl Handler for Echo {
        async fn call(self: Arc<Self>, call: Call) -> Reply {
            text(StatusCode::OK, format!("{} {} {:?}", call.method, call.path, call.param("x")))
        }
    }

    #[tokio::test]
    async fn request_and_reply() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn(serve(listener, Arc::new(Echo)));
        let out = Outgoing { address, source: None, limit: 1 << 10 };
        let request = Request::post("/a?y&x=1%2f+2").header("host", "h").body(Full::default()).unwrap();
        let answer = out.send(request).await.unwrap();
        assert_eq!(answer.body().as_ref(), b"POST /a Some(\"1/ 2\")");
        let short = Outgoing { limit: 3, ..out };
        let request = Request::get("/").header("host", "h").body(Full::default()).unwrap();
        assert!(short.send(request).await.is_err(), "the bound holds");
        server.abort();
    }

    #[test]
    fn broken_escapes_stay() {
        assert_eq!(
            parse_query("a=%zz&b=%4&c=%41%"),
            [("a".into(), "%zz".into()), ("b".into(), "%4".into()), ("c".into(), "A%".into())]
        );
    }
}
