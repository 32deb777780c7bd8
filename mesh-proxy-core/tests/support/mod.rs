//! An upstream, a client and a collector of log lines, over loopback.
#![allow(dead_code, reason = "each test program uses its own part")]

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use mesh_proxy_core::{
    config::*,
    telemetry::{AccessLogOpener, AccessLogSink},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

/// A raw HTTP/1.1 server that answers every request with what it saw.
#[derive(Debug)]
pub(crate) struct App {
    pub(crate) address: SocketAddr,
    pub(crate) requests: Arc<AtomicUsize>,
    pub(crate) connections: Arc<AtomicUsize>,
    pub(crate) peers: Arc<Mutex<Vec<SocketAddr>>>,
}

/// What an app does with a request.
pub(crate) type Answer = Arc<dyn Fn(usize, &str) -> Option<String> + Send + Sync>;

/// A response with a body.
pub(crate) fn ok(body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nx-app: yes\r\n\r\n{body}", body.len())
}

/// A response with a status and no body.
pub(crate) fn status(code: u16) -> String {
    format!("HTTP/1.1 {code} X\r\ncontent-length: 0\r\n\r\n")
}

/// Reads one request: its head and its body.
pub(crate) async fn read_message(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Option<(String, String)> {
    let end = loop {
        if let Some(at) = buffer.windows(4).position(|w| w == b"\r\n\r\n") {
            break at + 4;
        }
        let mut chunk = [0; 4096];
        match stream.read(&mut chunk).await {
            Ok(0) | Err(_) => return None,
            Ok(n) => buffer.extend_from_slice(&chunk[..n]),
        }
    };
    let head = String::from_utf8_lossy(&buffer[..end]).into_owned();
    buffer.drain(..end);
    let lower = head.to_ascii_lowercase();
    let length = lower
        .lines()
        .find_map(|l| l.strip_prefix("content-length: "))
        .and_then(|v| v.trim().parse::<usize>().ok())
        .unwrap_or(0);
    let chunked = lower.contains("transfer-encoding: chunked");
    loop {
        let done = if chunked { buffer.ends_with(b"0\r\n\r\n") } else { buffer.len() >= length };
        if done {
            break;
        }
        let mut chunk = [0; 4096];
        match stream.read(&mut chunk).await {
            Ok(0) | Err(_) => return None,
            Ok(n) => buffer.extend_from_slice(&chunk[..n]),
        }
    }
    let take = if chunked { buffer.len() } else { length };
    let body = String::from_utf8_lossy(&buffer[..take]).into_owned();
    buffer.drain(..take);
    Some((head, body))
}

impl App {
    /// Starts an app that echoes the head it saw.
    pub(crate) async fn echo() -> Self {
        Self::start(Arc::new(|_, request| Some(ok(request)))).await
    }

    /// Starts an app; `None` closes the connection instead of answering.
    pub(crate) async fn start(answer: Answer) -> Self {
        Self::bind("127.0.0.1:0".parse().unwrap(), answer).await
    }

    /// Starts an app that takes its time before each answer.
    pub(crate) async fn start_slow(delay: Duration, answer: Answer) -> Self {
        Self::serve("127.0.0.1:0".parse().unwrap(), delay, answer).await
    }

    pub(crate) async fn bind(address: SocketAddr, answer: Answer) -> Self {
        Self::serve(address, Duration::ZERO, answer).await
    }

    async fn serve(address: SocketAddr, delay: Duration, answer: Answer) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let app = Self {
            address: listener.local_addr().unwrap(),
            requests: Arc::default(),
            connections: Arc::default(),
            peers: Arc::default(),
        };
        let (requests, connections) = (Arc::clone(&app.requests), Arc::clone(&app.connections));
        let peers = Arc::clone(&app.peers);
        tokio::spawn(async move {
            while let Ok((mut stream, peer)) = listener.accept().await {
                connections.fetch_add(1, Ordering::SeqCst);
                peers.lock().unwrap().push(peer);
                let (requests, answer) = (Arc::clone(&requests), Arc::clone(&answer));
                tokio::spawn(async move {
                    let mut buffer = Vec::new();
                    while let Some((head, body)) = read_message(&mut stream, &mut buffer).await {
                        let n = requests.fetch_add(1, Ordering::SeqCst);
                        if !delay.is_zero() {
                            tokio::time::sleep(delay).await;
                        }
                        let Some(answer) = answer(n, &format!("{head}{body}")) else { return };
                        if stream.write_all(answer.as_bytes()).await.is_err() {
                            return;
                        }
                    }
                });
            }
        });
        app
    }

    pub(crate) fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }

    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

/// A client on one connection.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) stream: TcpStream,
    buffer: Vec<u8>,
}

impl Client {
    pub(crate) async fn connect(to: SocketAddr) -> Self {
        Self { stream: TcpStream::connect(to).await.unwrap(), buffer: Vec::new() }
    }

    /// Sends raw bytes and reads one response.
    pub(crate) async fn send(&mut self, request: &str) -> (String, String) {
        self.stream.write_all(request.as_bytes()).await.unwrap();
        self.response().await.expect("a response")
    }

    pub(crate) async fn response(&mut self) -> Option<(String, String)> {
        let read = read_message(&mut self.stream, &mut self.buffer);
        tokio::time::timeout(Duration::from_secs(120), read).await.expect("a response in time")
    }

    /// Reads until the proxy closes; what it still said.
    pub(crate) async fn closed(&mut self) -> String {
        let mut rest = std::mem::take(&mut self.buffer);
        let _reset_is_an_end_too = self.stream.read_to_end(&mut rest).await;
        String::from_utf8_lossy(&rest).into_owned()
    }

    pub(crate) async fn get(&mut self, path: &str) -> (String, String) {
        self.send(&format!("GET {path} HTTP/1.1\r\nhost: app\r\n\r\n")).await
    }
}

/// One request on a connection of its own.
pub(crate) async fn get(to: SocketAddr, path: &str) -> (String, String) {
    Client::connect(to).await.get(path).await
}

/// The status of a response head.
pub(crate) fn code(response: &(String, String)) -> u16 {
    response.0[9..12].parse().unwrap()
}

/// Collects log lines in memory.
#[derive(Debug, Default, Clone)]
pub(crate) struct Memory(pub(crate) Arc<Mutex<String>>);

impl Memory {
    pub(crate) fn text(&self) -> String {
        self.0.lock().unwrap().clone()
    }
}

impl AccessLogOpener for Memory {
    fn open(&self, _path: &str) -> io::Result<Arc<dyn AccessLogSink>> {
        Ok(Arc::new(self.clone()))
    }
}

impl AccessLogSink for Memory {
    fn write(&self, lines: &[u8]) {
        self.0.lock().unwrap().push_str(&String::from_utf8_lossy(lines));
    }
}

/// A listener on a free loopback port with one plain chain.
pub(crate) fn listener(name: &str, filters: Vec<NetworkFilter>) -> Listener {
    let mut listener = Listener::new(name, "127.0.0.1:0".parse().unwrap());
    listener.filter_chains = vec![FilterChain::new("chain", filters)];
    listener
}

/// A route table with one host for everything.
pub(crate) fn routes(name: &str, routes: Vec<Route>) -> RouteConfiguration {
    let host = VirtualHost {
        name: "all".into(),
        domains: vec!["*".into()],
        routes: routes.into_iter().map(Arc::new).collect(),
        ..VirtualHost::default()
    };
    RouteConfiguration { name: name.into(), virtual_hosts: vec![host], ..RouteConfiguration::default() }
}

/// A connection manager with inline routes.
pub(crate) fn manager(config: RouteConfiguration) -> HttpConnectionManager {
    HttpConnectionManager::new("test", RouteSource::Inline(Arc::new(config)))
}

/// The HTTP filter as a network filter.
pub(crate) fn http(manager: HttpConnectionManager) -> Vec<NetworkFilter> {
    vec![NetworkFilter::Http(Arc::new(manager))]
}

/// A static cluster.
pub(crate) fn cluster(name: &str, to: impl IntoIterator<Item = SocketAddr>) -> Cluster {
    Cluster::new(name, Discovery::Static(Arc::new(LoadAssignment::new(name, to))))
}

/// Waits for a condition.
pub(crate) async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let waited = tokio::time::timeout(Duration::from_secs(20), async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    });
    waited.await.unwrap_or_else(|_| panic!("in time: {what}"));
}
