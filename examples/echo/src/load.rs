//! Many requests: counts by version and status, failures by reason, latencies; bounded in number and time.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use crate::client::{Answer, Connection};

pub use crate::client::{Target, TargetError};

/// Distinct failure reasons that are kept apart; the rest is counted together.
const MAX_REASONS: usize = 32;

/// How connections are used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Connections {
    /// A connection for every request.
    Fresh,
    /// One connection per worker, as long as the server keeps it.
    Keepalive,
    /// Alternately.
    Mixed,
}

/// A run.
#[derive(Debug, Clone)]
pub struct LoadConfig {
    /// Where to.
    pub target: Target,
    /// How many requests; `None`: until stopped.
    pub requests: Option<u64>,
    /// How connections are used.
    pub connections: Connections,
    /// Requests in flight at once.
    pub concurrency: u16,
    /// Requests per second over all workers.
    pub rate: Option<f64>,
    /// Time for one request, connecting included.
    pub timeout: Duration,
    /// Time for the whole run.
    pub limit: Duration,
}

/// Latencies in microseconds, exact.
#[derive(Debug, Clone, Default)]
pub struct Latencies {
    micros: Vec<u32>,
}

impl Latencies {
    /// Adds one.
    pub fn record(&mut self, micros: u32) {
        self.micros.push(micros);
    }

    /// The smallest recorded value that at least `percent` % of all values do not exceed; 0 when nothing was recorded.
    #[must_use]
    pub fn percentile(&self, percent: f64) -> u32 {
        let mut sorted = self.micros.clone();
        sorted.sort_unstable();
        let rank = (percent / 100.0 * sorted.len() as f64).ceil() as usize;
        sorted.get(rank.clamp(1, sorted.len().max(1)) - 1).copied().unwrap_or(0)
    }
}

/// What happened.
#[derive(Debug, Clone, Default)]
pub struct Report {
    requests: u64,
    fresh: u64,
    reused: u64,
    by_version: BTreeMap<String, u64>,
    by_status: BTreeMap<u16, u64>,
    failures: BTreeMap<String, u64>,
    latencies: Latencies,
    elapsed: Duration,
}

impl Report {
    /// Requests without a 2xx answer.
    #[must_use]
    pub fn failed(&self) -> u64 {
        self.failures.values().sum()
    }

    /// One JSON object.
    #[must_use]
    pub fn to_json(&self, name: &str) -> Value {
        json!({
            "name": name,
            "requests": self.requests,
            "fresh": self.fresh,
            "reused": self.reused,
            "by_version": self.by_version,
            "by_status": self.by_status,
            "failed": self.failed(),
            "failures": self.failures,
            "latency_us": {
                "p50": self.latencies.percentile(50.0),
                "p90": self.latencies.percentile(90.0),
                "p99": self.latencies.percentile(99.0),
                "max": self.latencies.percentile(100.0),
            },
            "elapsed_ms": u64::try_from(self.elapsed.as_millis()).unwrap_or(u64::MAX),
        })
    }

    fn add(&mut self, fresh: bool, outcome: Result<Answer, String>, took: Duration) {
        self.requests += 1;
        *(if fresh { &mut self.fresh } else { &mut self.reused }) += 1;
        match outcome {
            Ok(Answer::Response { status, version, body }) => {
                *self.by_status.entry(status).or_default() += 1;
                if (200..300).contains(&status) {
                    *self.by_version.entry(version.unwrap_or_else(|| String::from("?"))).or_default() += 1;
                    self.latencies.record(u32::try_from(took.as_micros()).unwrap_or(u32::MAX));
                } else {
                    let body: String = body.chars().filter(|c| !c.is_control()).take(120).collect();
                    self.add_failure(format!("status {status}: {body}"));
                }
            }
            Ok(Answer::Failure { reason }) | Err(reason) => self.add_failure(reason),
        }
    }

    fn add_failure(&mut self, reason: String) {
        let full = self.failures.len() >= MAX_REASONS && !self.failures.contains_key(&reason);
        let reason = if full { String::from("other") } else { reason };
        *self.failures.entry(reason).or_default() += 1;
    }
}

impl fmt::Display for Report {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            out,
            "{} requests, {} on fresh connections, {} failed",
            self.requests,
            self.fresh,
            self.failed()
        )?;
        for (version, count) in &self.by_version {
            writeln!(out, "  version {version}: {count}")?;
        }
        for (reason, count) in &self.failures {
            writeln!(out, "  failed {count} x {reason}")?;
        }
        let latency = |percent| self.latencies.percentile(percent);
        write!(out, "  p50 {} us, p99 {} us", latency(50.0), latency(99.0))
    }
}

/// A run in progress.
#[derive(Debug)]
pub struct Load {
    shared: Arc<Shared>,
    workers: Vec<tokio::task::JoinHandle<()>>,
    started: Instant,
}

#[derive(Debug)]
struct Shared {
    config: LoadConfig,
    stopped: AtomicBool,
    issued: AtomicU64,
    report: Mutex<Report>,
}

impl Load {
    /// Starts the workers on the current runtime.
    #[must_use]
    pub fn start(config: LoadConfig) -> Self {
        let shared = Arc::new(Shared {
            stopped: AtomicBool::new(false),
            issued: AtomicU64::new(0),
            report: Mutex::new(Report::default()),
            config,
        });
        let workers =
            (0..shared.config.concurrency).map(|_| tokio::spawn(work(Arc::clone(&shared)))).collect();
        Self { shared, workers, started: Instant::now() }
    }

    /// What happened up to now.
    #[must_use]
    pub fn progress(&self) -> Report {
        let mut report = self.shared.report.lock().unwrap_or_else(PoisonError::into_inner).clone();
        report.elapsed = self.started.elapsed();
        report
    }

    /// Issues nothing more, waits for what is in flight, and reports.
    pub async fn stop(self) -> Report {
        self.shared.stopped.store(true, Ordering::Relaxed);
        self.finish().await
    }

    /// Waits until the configured number of requests or the time limit is reached, and reports.
    pub async fn finish(mut self) -> Report {
        for worker in std::mem::take(&mut self.workers) {
            let _ = worker.await;
        }
        self.progress()
    }
}

/// Runs `config` to its end.
pub async fn run(config: LoadConfig) -> Report {
    Load::start(config).finish().await
}

async fn work(shared: Arc<Shared>) {
    let config = &shared.config;
    let deadline = Instant::now() + config.limit;
    let mut pace = config.rate.map(|rate| {
        let mut pace = interval(Duration::from_secs_f64(f64::from(config.concurrency) / rate));
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        pace
    });
    let mut kept: Option<Connection> = None;
    loop {
        if let Some(pace) = &mut pace {
            pace.tick().await;
        }
        if shared.stopped.load(Ordering::Relaxed) || Instant::now() >= deadline {
            return;
        }
        let number = shared.issued.fetch_add(1, Ordering::Relaxed);
        if config.requests.is_some_and(|requests| number >= requests) {
            return;
        }
        let wants_fresh = match config.connections {
            Connections::Fresh => true,
            Connections::Keepalive => false,
            Connections::Mixed => number.is_multiple_of(2),
        };
        let began = Instant::now();
        let mut fresh = true;
        let outcome = timeout(config.timeout, async {
            if wants_fresh {
                return Connection::open(&config.target).await?.exchange(&config.target).await;
            }
            let mut connection = match kept.take() {
                Some(connection) => {
                    fresh = false;
                    connection
                }
                None => Connection::open(&config.target).await?,
            };
            let answer = connection.exchange(&config.target).await?;
            if connection.reusable().await {
                kept = Some(connection);
            }
            Ok(answer)
        })
        .await
        .unwrap_or_else(|_| Err(String::from("timeout")));
        let took = began.elapsed();
        shared.report.lock().unwrap_or_else(PoisonError::into_inner).add(fresh, outcome, took);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_exact() {
        let mut seen = Latencies::default();
        assert_eq!(seen.percentile(50.0), 0);
        for micros in (1..=1000).rev() {
            seen.record(micros);
        }
        assert_eq!(seen.percentile(0.0), 1);
        assert_eq!(seen.percentile(50.0), 500);
        assert_eq!(seen.percentile(99.0), 990);
        assert_eq!(seen.percentile(100.0), 1000);
    }

    #[test]
    fn failures_are_bounded_and_named() {
        let mut report = Report::default();
        for number in 0..100 {
            report.add(true, Err(format!("reason {number}")), Duration::ZERO);
        }
        report.add(
            false,
            Ok(Answer::Response { status: 503, version: None, body: String::from("no\nhealthy") }),
            Duration::ZERO,
        );
        assert_eq!(report.failed(), 101);
        assert!(report.failures.len() <= MAX_REASONS + 1);
        assert_eq!((report.fresh, report.reused), (100, 1));
        assert_eq!(report.to_json("x")["by_status"]["503"], 1);
    }
}
