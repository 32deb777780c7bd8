//! The server: answers with what it saw and counts what it answered.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};

/// The first bytes of an HTTP/2 connection with prior knowledge (RFC 9113 section 3.4).
const H2_PREFACE: &[u8] = b"PRI * HTTP/2.0";
/// Answered like any other path, but not counted.
const HEALTH: &str = "/healthz";
/// The longest delay that `/delay/MS` honours.
const MAX_DELAY: Duration = Duration::from_secs(60);

/// What the environment says.
#[derive(Debug, Clone)]
pub(crate) struct ServerConfig {
    port: u16,
    admin_port: u16,
    tcp_port: Option<u16>,
    pod: String,
    namespace: String,
    version: String,
}

/// Why the server did not start or had to stop.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ServeError {
    /// A variable does not hold a port number.
    #[error("{name}={value:?} is not a port number")]
    Port { name: &'static str, value: String },
    /// An address could not be bound.
    #[error("cannot listen on {address}: {source}")]
    Bind { address: SocketAddr, source: std::io::Error },
    /// The signal handlers could not be installed.
    #[error("cannot handle signals: {0}")]
    Signals(#[from] std::io::Error),
}

impl ServerConfig {
    /// Reads the variables through `get`.
    pub(crate) fn from_vars(get: impl Fn(&str) -> Option<String>) -> Result<Self, ServeError> {
        let port = |name: &'static str| match get(name) {
            None => Ok(None),
            Some(value) => {
                value.trim().parse::<u16>().map(Some).map_err(|_| ServeError::Port { name, value })
            }
        };
        Ok(Self {
            port: port("PORT")?.unwrap_or(9080),
            admin_port: port("ADMIN_PORT")?.unwrap_or(9079),
            tcp_port: port("TCP_PORT")?,
            pod: get("POD_NAME").or_else(|| get("HOSTNAME")).unwrap_or_else(|| String::from("unknown")),
            namespace: get("POD_NAMESPACE").unwrap_or_else(|| String::from("default")),
            version: get("VERSION").unwrap_or_else(|| String::from("unknown")),
        })
    }
}

#[derive(Debug)]
struct Counters {
    config: ServerConfig,
    connections: AtomicU64,
    requests: AtomicU64,
}

impl Counters {
    fn to_json(&self) -> Value {
        json!({
            "pod": self.config.pod,
            "version": self.config.version,
            "connections": self.connections.load(Ordering::Relaxed),
            "requests": self.requests.load(Ordering::Relaxed),
        })
    }
}

/// Serves until SIGTERM or SIGINT.
pub(crate) async fn serve(config: ServerConfig) -> Result<(), ServeError> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let app = bind_any(config.port).await?;
    let admin = bind(SocketAddr::from((Ipv4Addr::LOCALHOST, config.admin_port))).await?;
    if let Some(port) = config.tcp_port {
        tokio::spawn(echo_bytes(bind_any(port).await?));
    }
    let counters = Arc::new(Counters { config, connections: AtomicU64::new(0), requests: AtomicU64::new(0) });
    println!("listening on {}", counters.config.port);
    tokio::spawn(accept(app, Arc::clone(&counters), false));
    tokio::spawn(accept(admin, counters, true));
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}

async fn bind(address: SocketAddr) -> Result<TcpListener, ServeError> {
    TcpListener::bind(address).await.map_err(|source| ServeError::Bind { address, source })
}

/// Both families where the kernel has IPv6, IPv4 alone otherwise.
async fn bind_any(port: u16) -> Result<TcpListener, ServeError> {
    match bind(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port))).await {
        Ok(listener) => Ok(listener),
        Err(_) => bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port))).await,
    }
}

async fn accept(listener: TcpListener, counters: Arc<Counters>, admin: bool) {
    loop {
        // An error here is one connection's (aborted, out of descriptors); yield so that it cannot spin.
        let Ok((stream, remote)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        // A dual-stack socket sees IPv4 callers as mapped addresses; people know the plain ones.
        let remote = SocketAddr::new(remote.ip().to_canonical(), remote.port());
        let counters = Arc::clone(&counters);
        tokio::spawn(async move { connection(stream, remote, &counters, admin).await });
    }
}

async fn connection(stream: TcpStream, remote: SocketAddr, counters: &Arc<Counters>, admin: bool) {
    if !admin {
        counters.connections.fetch_add(1, Ordering::Relaxed);
    }
    let _ = stream.set_nodelay(true);
    let local = stream.local_addr().ok();
    let Some(h2) = is_h2(&stream).await else { return };
    let service = service_fn(|request| {
        let counters = Arc::clone(counters);
        async move {
            let answer = if admin {
                counters_answer(&request, &counters)
            } else {
                answer(request, &counters, remote, local).await
            };
            Ok::<_, Infallible>(answer)
        }
    });
    let io = TokioIo::new(stream);
    // Errors on a connection are the peer's: nothing to do but to drop it.
    if h2 {
        let _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
            .serve_connection(io, service)
            .await;
    } else {
        let _ = hyper::server::conn::http1::Builder::new().serve_connection(io, service).await;
    }
}

/// Whether the first bytes are the HTTP/2 preface; `None` when the peer closed before saying anything.
async fn is_h2(stream: &TcpStream) -> Option<bool> {
    let mut first = [0_u8; H2_PREFACE.len()];
    loop {
        let count = stream.peek(&mut first).await.ok().filter(|count| *count > 0)?;
        let seen = &first[..count];
        if !H2_PREFACE.starts_with(seen) {
            return Some(false);
        }
        if count == H2_PREFACE.len() {
            return Some(true);
        }
        // A prefix of the preface: wait for more without spinning.
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

fn counters_answer(request: &Request<Incoming>, counters: &Counters) -> Response<Full<Bytes>> {
    match request.uri().path() {
        "/counters" => respond(StatusCode::OK, &counters.to_json()),
        _ => respond(StatusCode::NOT_FOUND, &json!({ "error": "try /counters" })),
    }
}

async fn answer(
    request: Request<Incoming>,
    counters: &Counters,
    remote: SocketAddr,
    local: Option<SocketAddr>,
) -> Response<Full<Bytes>> {
    // Probes are not traffic.
    let counted = u64::from(request.uri().path() != HEALTH);
    let number = counters.requests.fetch_add(counted, Ordering::Relaxed) + counted;
    let (parts, body) = request.into_parts();
    let received = match body.collect().await {
        Ok(body) => body.to_bytes().len(),
        Err(error) => return respond(StatusCode::BAD_REQUEST, &json!({ "error": error.to_string() })),
    };
    let mut headers: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for (name, value) in &parts.headers {
        headers
            .entry(name.as_str())
            .or_default()
            .push(String::from_utf8_lossy(value.as_bytes()).into_owned());
    }
    let (status, delay) = directive(parts.uri.path());
    if let Some(delay) = delay {
        tokio::time::sleep(delay).await;
    }
    respond(
        status,
        &json!({
            "pod": counters.config.pod,
            "namespace": counters.config.namespace,
            "version": counters.config.version,
            "method": parts.method.as_str(),
            "path": parts.uri.path_and_query().map_or("/", |path| path.as_str()),
            "authority": parts.uri.authority().map(http::uri::Authority::as_str),
            "protocol": format!("{:?}", parts.version),
            "remote": remote.to_string(),
            "local": local.map(|local| local.to_string()),
            "headers": headers,
            "body_bytes": received,
            "request": number,
        }),
    )
}

/// What a path asks for: `/status/CODE` or `/delay/MS`, anything else is 200 at once.
fn directive(path: &str) -> (StatusCode, Option<Duration>) {
    let mut words = path.trim_start_matches('/').splitn(3, '/');
    match (words.next(), words.next()) {
        (Some("status"), Some(code)) => {
            let status = code.parse::<u16>().ok().filter(|code| (200..600).contains(code));
            (status.and_then(|code| StatusCode::from_u16(code).ok()).unwrap_or(StatusCode::BAD_REQUEST), None)
        }
        (Some("delay"), Some(millis)) => match millis.parse::<u64>() {
            Ok(millis) => (StatusCode::OK, Some(Duration::from_millis(millis).min(MAX_DELAY))),
            Err(_) => (StatusCode::BAD_REQUEST, None),
        },
        _ => (StatusCode::OK, None),
    }
}

fn respond(status: StatusCode, body: &Value) -> Response<Full<Bytes>> {
    let version = body.get("version").and_then(Value::as_str).and_then(|version| version.parse().ok());
    let mut response = Response::new(Full::new(Bytes::from(body.to_string())));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
    if let Some(version) = version {
        response.headers_mut().insert("x-echo-version", version);
    }
    response
}

async fn echo_bytes(listener: TcpListener) {
    loop {
        let Ok((mut stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        tokio::spawn(async move {
            let (mut read, mut write) = stream.split();
            let _ = tokio::io::copy(&mut read, &mut write).await;
            let _ = write.shutdown().await;
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_may_ask_for_a_status_or_a_delay() {
        assert_eq!(directive("/"), (StatusCode::OK, None));
        assert_eq!(directive("/status/503"), (StatusCode::SERVICE_UNAVAILABLE, None));
        assert_eq!(directive("/status/99"), (StatusCode::BAD_REQUEST, None));
        assert_eq!(directive("/delay/20"), (StatusCode::OK, Some(Duration::from_millis(20))));
        assert_eq!(directive("/delay/999999999"), (StatusCode::OK, Some(MAX_DELAY)));
    }

    #[test]
    fn a_port_must_be_a_number() {
        let error =
            ServerConfig::from_vars(|name| (name == "PORT").then(|| String::from("http"))).unwrap_err();
        assert_eq!(error.to_string(), "PORT=\"http\" is not a port number");
        let config = ServerConfig::from_vars(|_| None).unwrap();
        assert_eq!((config.port, config.admin_port, config.tcp_port), (9080, 9079, None));
    }
}
