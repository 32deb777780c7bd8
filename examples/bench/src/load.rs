//! The load over keep-alive connections: a closed loop, or a given rate. Every answer is read whole and must be 200.
//!
//! At a given rate each connection has its own timetable. A request that has to wait because the one before it is late
//! is counted from the time it was due. The timer ticks each millisecond, so requests come in small bursts, to all alike.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, bail};
use hdrhistogram::Histogram;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::LocalSet;
use tokio::time::{Instant, sleep, sleep_until};

use crate::backend::head_end;

/// Number of routes in every configuration; connections are spread over them.
pub(crate) const ROUTES: usize = 50;
/// Largest answer that makes sense here.
const MAX_ANSWER: usize = 64 << 10;

/// What a load saw.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) requests: u64,
    pub(crate) errors: u64,
    pub(crate) elapsed: Duration,
    /// Microseconds.
    pub(crate) latency: Histogram<u64>,
}

struct Shared {
    counting: bool,
    stop: bool,
    requests: u64,
    errors: u64,
    first_error: Option<String>,
    latency: Histogram<u64>,
}

impl Shared {
    /// Counts a result; `Err` when the connection cannot be used again.
    fn record(&mut self, result: anyhow::Result<()>, took: Duration) -> Result<(), ()> {
        match result {
            Ok(()) if self.counting => {
                self.requests += 1;
                let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
                self.latency.saturating_record(micros.max(1));
                Ok(())
            }
            Ok(()) => Ok(()),
            Err(error) => {
                self.errors += 1;
                self.first_error.get_or_insert_with(|| format!("{error:#}"));
                Err(())
            }
        }
    }
}

/// One request for the given route.
pub(crate) fn request(route: usize) -> String {
    format!(
        "GET /r{:02}/items/1 HTTP/1.1\r\nhost: bench.example\r\nuser-agent: mesh-bench\r\naccept: */*\r\n\r\n",
        route % ROUTES
    )
}

/// Sends one request on a new connection; for readiness checks.
pub(crate) async fn once(address: SocketAddr) -> anyhow::Result<()> {
    let mut stream = TcpStream::connect(address).await?;
    let mut buffer = Vec::new();
    exchange(&mut stream, request(0).as_bytes(), &mut buffer).await
}

/// What to send.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Load {
    pub(crate) address: SocketAddr,
    pub(crate) connections: usize,
    /// Requests per second over all connections; a closed loop without it.
    pub(crate) rate: Option<f64>,
    /// Load before counting begins.
    pub(crate) warm_up: Duration,
    /// How long is counted.
    pub(crate) window: Duration,
}

/// Loads for `warm_up`, then samples, loads for `window` and samples again.
pub(crate) async fn run<T>(
    load: Load,
    mut sample: impl FnMut() -> anyhow::Result<T>,
) -> anyhow::Result<(Outcome, T, T)> {
    let shared = Rc::new(RefCell::new(Shared {
        counting: false,
        stop: false,
        requests: 0,
        errors: 0,
        first_error: None,
        latency: Histogram::new_with_bounds(1, 60_000_000, 3)?,
    }));
    let local = LocalSet::new();
    let mut tasks = Vec::new();
    let origin = Instant::now();
    for index in 0..load.connections {
        let timetable = load.rate.map(|rate| Timetable::new(origin, load.connections, index, rate));
        tasks.push(local.spawn_local(connection(load.address, index, timetable, Rc::clone(&shared))));
    }
    let driver = Rc::clone(&shared);
    let (elapsed, before, after) = local
        .run_until(async move {
            sleep(load.warm_up).await;
            let before = sample()?;
            let start = Instant::now();
            driver.borrow_mut().counting = true;
            sleep(load.window).await;
            driver.borrow_mut().counting = false;
            let (elapsed, after) = (start.elapsed(), sample()?);
            driver.borrow_mut().stop = true;
            for task in tasks {
                task.await?;
            }
            anyhow::Ok((elapsed, before, after))
        })
        .await?;
    drop(local);
    let shared = Rc::into_inner(shared).context("a connection is still running")?.into_inner();
    if shared.requests == 0 {
        bail!("no request succeeded: {}", shared.first_error.unwrap_or_default());
    }
    if let Some(error) = shared.first_error {
        eprintln!("  {} errors, the first: {error}", shared.errors);
    }
    Ok((
        Outcome { requests: shared.requests, errors: shared.errors, elapsed, latency: shared.latency },
        before,
        after,
    ))
}

/// When one connection sends.
struct Timetable {
    next: Instant,
    interval: Duration,
}

impl Timetable {
    fn new(origin: Instant, connections: usize, index: usize, rate: f64) -> Self {
        let interval = Duration::from_secs_f64(connections as f64 / rate.max(1.0));
        Self { next: origin + interval.mul_f64(index as f64 / connections as f64), interval }
    }

    /// Waits until the next request is due; gives the time from which it counts.
    async fn due(&mut self) -> Instant {
        let due = self.next;
        self.next += self.interval;
        if Instant::now() >= due {
            return due;
        }
        sleep_until(due).await;
        Instant::now()
    }
}

async fn connection(
    address: SocketAddr,
    index: usize,
    mut timetable: Option<Timetable>,
    shared: Rc<RefCell<Shared>>,
) {
    let request = request(index);
    let mut buffer = Vec::with_capacity(4 << 10);
    let mut stream = None;
    while !shared.borrow().stop {
        let start = match &mut timetable {
            Some(timetable) => timetable.due().await,
            None => Instant::now(),
        };
        let result = async {
            let open = match &mut stream {
                Some(open) => open,
                None => {
                    let new = TcpStream::connect(address).await?;
                    new.set_nodelay(true)?;
                    stream.insert(new)
                }
            };
            exchange(open, request.as_bytes(), &mut buffer).await
        }
        .await;
        if shared.borrow_mut().record(result, start.elapsed()).is_err() {
            (stream, buffer) = (None, Vec::new());
            sleep(Duration::from_millis(5)).await;
        }
    }
}

async fn exchange(stream: &mut TcpStream, request: &[u8], buffer: &mut Vec<u8>) -> anyhow::Result<()> {
    stream.write_all(request).await?;
    buffer.clear();
    loop {
        if stream.read_buf(buffer).await? == 0 {
            bail!("the connection was closed after {} bytes", buffer.len());
        }
        if buffer.len() > MAX_ANSWER {
            bail!("the answer is too long");
        }
        if let Some(end) = head_end(buffer)
            && buffer.len() >= end + body_length(buffer.get(..end).unwrap_or_default())?
        {
            return Ok(());
        }
    }
}

fn body_length(head: &[u8]) -> anyhow::Result<usize> {
    let head = std::str::from_utf8(head)?;
    if !head.starts_with("HTTP/1.1 200") {
        bail!("{}", head.lines().next().unwrap_or_default());
    }
    for line in head.lines() {
        if let Some((name, value)) = line.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            return Ok(value.trim().parse()?);
        }
    }
    bail!("the answer has no content-length")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend;
    use tokio::net::TcpListener;

    #[tokio::test]
    async fn load_counts_only_its_window() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn(backend::serve(listener));
        let mut samples = 0;
        let (outcome, first, second) = run(load(address, None), || {
            samples += 1;
            Ok(samples)
        })
        .await
        .unwrap();
        assert_eq!((first, second, outcome.errors), (1, 2, 0));
        assert_eq!(outcome.latency.len(), outcome.requests);
        server.abort();
    }

    fn load(address: SocketAddr, rate: Option<f64>) -> Load {
        let (warm_up, window) = (Duration::from_millis(20), Duration::from_millis(100));
        Load { address, connections: 3, rate, warm_up, window }
    }

    #[tokio::test]
    async fn a_rate_is_not_exceeded() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn(backend::serve(listener));
        let (outcome, (), ()) = run(load(address, Some(300.0)), || Ok(())).await.unwrap();
        // 100 ms at 300 per second, and what was late from the warm-up.
        assert!(outcome.requests <= 40, "{}", outcome.requests);
        server.abort();
    }

    #[test]
    fn only_200_counts() {
        assert!(body_length(b"HTTP/1.1 503 x\r\ncontent-length: 1\r\n\r\n").is_err());
        assert_eq!(body_length(b"HTTP/1.1 200 OK\r\nContent-Length: 109\r\n\r\n").unwrap(), 109);
    }
}
