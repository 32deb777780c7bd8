//! An xDS server in a process of its own, so that a test can kill it as an operating system does.
//!
//! The test program executes itself again with [`VARIABLE`] set. The parent writes a line for each change and for each
//! question, the child answers on its standard output, and it ends when its input does.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use mesh_xds::server::{AdsServer, AllowAny, ServerConfig, Snapshot, SnapshotCache, StreamRules};
use tokio::net::TcpListener;

const VARIABLE: &str = "MESH_XDS_TEST_SERVER";
const GROUP: &str = "all";

/// What the child knows of its clients.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) clients: usize,
    /// Types that clients have asked for, summed over the clients.
    pub(crate) asked: usize,
    /// Of those, the ones whose last response the client accepted.
    pub(crate) synced: usize,
    /// Responses that were sent to Delta clients.
    pub(crate) delta_responses: u64,
}

/// The parent's end.
pub(crate) struct ServerProcess {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl ServerProcess {
    /// Starts a server on `port` with the content of `round`; returns when it listens. `content` is whatever the child's
    /// own content function takes.
    pub(crate) fn start(port: u16, round: u64, content: &str) -> std::io::Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .env(VARIABLE, format!("{port} {round} {content}"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let (input, output) = (child.stdin.take(), child.stdout.take());
        let mut this = Self {
            child,
            input: input.ok_or_else(closed)?,
            output: BufReader::new(output.ok_or_else(closed)?),
        };
        match this.line()?.as_str() {
            "listening" => Ok(this),
            other => Err(std::io::Error::other(format!("the server says {other:?}"))),
        }
    }

    /// Puts the snapshot of a round.
    pub(crate) fn set(&mut self, round: u64) -> std::io::Result<()> {
        writeln!(self.input, "{round}")
    }

    pub(crate) fn counts(&mut self) -> std::io::Result<Counts> {
        writeln!(self.input, "?")?;
        let line = self.line()?;
        let numbers: Vec<u64> = line.split(' ').filter_map(|n| n.parse().ok()).collect();
        let [clients, asked, synced, delta_responses] = numbers[..] else { return Err(closed()) };
        let size = |n| usize::try_from(n).unwrap_or(usize::MAX);
        Ok(Counts { clients: size(clients), asked: size(asked), synced: size(synced), delta_responses })
    }

    /// SIGKILL: the process says nothing to anybody any more.
    pub(crate) fn kill(mut self) -> std::io::Result<()> {
        self.child.kill()?;
        self.child.wait().map(drop)
    }

    fn line(&mut self) -> std::io::Result<String> {
        let mut line = String::new();
        match self.output.read_line(&mut line)? {
            0 => Err(closed()),
            _ => Ok(line.trim_end().to_owned()),
        }
    }
}

impl Drop for ServerProcess {
    fn drop(&mut self) {
        // It is dead already where the test killed it.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn closed() -> std::io::Error {
    std::io::Error::other("the server's process has ended")
}

/// A port that nothing uses and that no outgoing connection is given, so that it is still free after a kill. Another one
/// each time.
pub(crate) fn quiet_port() -> std::io::Result<u16> {
    static GIVEN: AtomicU16 = AtomicU16::new(0);
    let first = 20_000 + u16::try_from(std::process::id() % 9_000).unwrap_or(0);
    let next = || first + GIVEN.fetch_add(1, Ordering::Relaxed);
    let free = |port: &u16| std::net::TcpListener::bind(("127.0.0.1", *port)).is_ok();
    let mut ports = std::iter::repeat_with(next).take(1_000);
    ports.find(free).ok_or_else(|| std::io::Error::other("no free port"))
}

/// The child's whole life, in the child; nothing in the parent. Call it first in `main`.
pub(crate) fn run_if_child(content: fn(u64, &str) -> Snapshot) {
    let Ok(arguments) = std::env::var(VARIABLE) else { return };
    let ended = serve(&arguments, content);
    std::process::exit(i32::from(ended.is_err()));
}

fn serve(arguments: &str, content: fn(u64, &str) -> Snapshot) -> Result<(), Box<dyn std::error::Error>> {
    let mut parts = arguments.splitn(3, ' ');
    let mut part = || parts.next().ok_or("an argument is missing");
    let (port, round, what) = (part()?.parse::<u16>()?, part()?.parse()?, part()?.to_owned());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let cache = SnapshotCache::new();
    cache.set(GROUP, content(round, &what));
    let mut config = ServerConfig::default();
    config.group = Arc::new(|_| GROUP.to_owned());
    config.rules = StreamRules::default().with_empty_unknowns();
    let ads = AdsServer::new(cache.clone(), AllowAny, config);
    let listener = runtime.block_on(TcpListener::bind(("127.0.0.1", port)))?;
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
    let server = tonic::transport::Server::builder().add_routes(ads.routes());
    runtime.spawn(server.serve_with_incoming(incoming));
    println!("listening");
    for line in std::io::stdin().lines() {
        match line?.parse() {
            Ok(round) => drop(cache.set(GROUP, content(round, &what))),
            Err(_) => {
                let Counts { clients, asked, synced, delta_responses } = counts(&ads);
                println!("{clients} {asked} {synced} {delta_responses}");
            }
        }
    }
    Ok(())
}

fn counts(ads: &AdsServer) -> Counts {
    let mut counts = Counts::default();
    for client in ads.clients() {
        counts.clients += 1;
        for status in client.types.values() {
            counts.asked += 1;
            counts.synced += usize::from(status.nonce_sent == status.nonce_acked);
            counts.delta_responses += if client.client.delta { status.responses } else { 0 };
        }
    }
    counts
}
