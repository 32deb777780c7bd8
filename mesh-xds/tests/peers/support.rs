//! Processes, a backend, and our server.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use libtest_mimic::Failed;
use mesh_xds::server::{AdsServer, AllowAny, ServerConfig, SnapshotCache, StreamRules};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// How long anything may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A program that may be installed.
pub(crate) struct Peer {
    pub(crate) name: &'static str,
    pub(crate) path: Option<PathBuf>,
}

pub(crate) fn envoy() -> Peer {
    let given = std::env::var_os("MESH_ENVOY").map(PathBuf::from);
    let on_path =
        || std::env::split_paths(&std::env::var_os("PATH")?).map(|d| d.join("envoy")).find(|p| p.is_file());
    Peer { name: "envoy", path: given.filter(|p| p.is_file()).or_else(on_path) }
}

pub(crate) fn python() -> Peer {
    let given = std::env::var_os("MESH_PYTHON").map_or_else(|| PathBuf::from("python3"), PathBuf::from);
    let check = Command::new(&given).args(["-c", "import grpc"]).stderr(Stdio::null()).status();
    Peer { name: "python3 with grpcio", path: check.is_ok_and(|s| s.success()).then_some(given) }
}

/// Runs a trial on a runtime of its own.
pub(crate) fn block_on(trial: impl Future<Output = Result<(), Failed>>) -> Result<(), Failed> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?.block_on(trial)
}

/// A child process that ends with its owner, and a folder for its files.
pub(crate) struct Process {
    pub(crate) child: Child,
    pub(crate) log: PathBuf,
    _folder: tempfile::TempDir,
}

impl Process {
    pub(crate) fn start(program: &Path, args: &[&str], files: &[(&str, &str)]) -> Result<Self, Failed> {
        let folder = tempfile::tempdir()?;
        for (name, text) in files {
            std::fs::write(folder.path().join(name), text)?;
        }
        let log = folder.path().join("log");
        let output = std::fs::File::create(&log)?;
        let child = Command::new(program)
            .args(args)
            .current_dir(folder.path())
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()?;
        Ok(Self { child, log, _folder: folder })
    }

    pub(crate) fn output(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A port that was free a moment ago.
pub(crate) async fn free_port() -> std::io::Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0").await?.local_addr()?.port())
}

/// Answers every HTTP/1.1 request with its own name.
pub(crate) async fn backend(name: &'static str) -> std::io::Result<u16> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let port = listener.local_addr()?.port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut request = Vec::new();
                let mut buffer = [0; 4096];
                while let Ok(n @ 1..) = stream.read(&mut buffer).await {
                    request.extend_from_slice(&buffer[..n]);
                    if !request.windows(4).any(|w| w == b"\r\n\r\n") {
                        continue;
                    }
                    request.clear();
                    let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{name}", name.len());
                    if stream.write_all(answer.as_bytes()).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    Ok(port)
}

/// One GET on a connection of its own; the status code and the body.
pub(crate) async fn get(port: u16, path: &str) -> std::io::Result<(u16, String)> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: peer\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or(0);
    let body = if head.to_ascii_lowercase().contains("transfer-encoding: chunked") {
        unchunk(body)
    } else {
        body.to_owned()
    };
    Ok((status, body))
}

fn unchunk(mut body: &str) -> String {
    let mut text = String::new();
    while let Some((size, rest)) = body.split_once("\r\n") {
        let Ok(size) = usize::from_str_radix(size.trim(), 16) else { break };
        text.push_str(rest.get(..size).unwrap_or(rest));
        body = rest.get(size + 2..).unwrap_or("");
    }
    text
}

/// Waits for a condition, with a deadline.
pub(crate) async fn until<F: Future<Output = bool>>(
    what: &str,
    mut check: impl FnMut() -> F,
) -> Result<(), Failed> {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !check().await {
        if tokio::time::Instant::now() > deadline {
            return Err(format!("{what}: not within {PATIENCE:?}").into());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

/// Our server on a port, on a runtime of its own so that it can be killed.
pub(crate) struct Server {
    pub(crate) ads: AdsServer,
    pub(crate) port: u16,
    runtime: Option<tokio::runtime::Runtime>,
}

impl Server {
    pub(crate) async fn start(cache: SnapshotCache, port: u16) -> Result<Self, Failed> {
        let mut config = ServerConfig::default();
        config.group = Arc::new(|_| "all".to_owned());
        config.rules = StreamRules::default().with_empty_unknowns();
        let ads = AdsServer::new(cache, AllowAny, config);
        let listener = std::net::TcpListener::bind(("127.0.0.1", port))?;
        listener.set_nonblocking(true)?;
        let port = listener.local_addr()?.port();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let routes = ads.routes();
        runtime.spawn(async move {
            let Ok(listener) = TcpListener::from_std(listener) else { return };
            let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
            let _ =
                tonic::transport::Server::builder().add_routes(routes).serve_with_incoming(incoming).await;
        });
        Ok(Self { ads, port, runtime: Some(runtime) })
    }

    /// Ends as a process that is killed does: connections break, nothing is said.
    pub(crate) fn kill(self) {
        drop(self);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
