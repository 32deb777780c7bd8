//! The agent: what its servers, its control-plane client and its shutdown share.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, SystemTime};

use mesh_identity::source::SvidSource;
use mesh_identity::{Identity, TrustDomain};
use mesh_proxy_core::{Handle, Proxy};
use mesh_xds::client::AdsClient;
use mesh_xds::pb::envoy::config::bootstrap::v3::Bootstrap;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::app_probe::AppProbes;
use crate::dump::Reexec;
use crate::environment::Environment;
use crate::logging::Logging;
use crate::resources::Resources;

/// Shared by everything that runs in the agent's thread.
#[derive(Debug)]
pub struct Agent {
    /// The data path; it runs for as long as this lives.
    pub proxy: Proxy,
    /// Its configuration and inspection.
    pub handle: Handle,
    /// Log levels.
    pub logging: Logging,
    /// When this process started.
    pub started: Started,
    /// What the control plane or the bootstrap file gave.
    pub resources: Resources,
    /// The bootstrap as Envoy's tools expect it.
    pub bootstrap: Bootstrap,
    /// The workload's identity, none with a static bootstrap.
    pub svid: Option<SvidSource>,
    /// The pod's facts, none with a static bootstrap.
    pub pod: Option<Pod>,
    /// How to start a child.
    pub reexec: Reexec,
    /// The ADS client, once it runs.
    pub ads: OnceLock<AdsClient>,
    /// Readiness and shutdown.
    pub life: Life,
}

/// The pod that the sidecar was injected into.
#[derive(Debug)]
pub struct Pod {
    /// Its facts.
    pub env: Environment,
    /// Probes of the application.
    pub probes: AppProbes,
    /// Its trust domain.
    pub trust_domain: TrustDomain,
}

/// How far the agent has come.
#[derive(Debug)]
pub struct Life {
    ready: OnceLock<Duration>,
    listeners_seen: AtomicBool,
    clusters_seen: AtomicBool,
    not_applied: Mutex<BTreeSet<String>>,
    draining: AtomicBool,
    stop: watch::Sender<bool>,
    readiness: watch::Sender<bool>,
}

/// Envoy's server states, by their names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Something is missing.
    Initializing,
    /// Serving.
    Live,
    /// On the way out.
    Draining,
}

impl State {
    /// Envoy's name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Live => "LIVE",
            Self::Draining => "DRAINING",
            Self::Initializing => "INITIALIZING",
        }
    }

    /// Envoy's `server.state` gauge.
    pub const fn number(self) -> i64 {
        match self {
            Self::Live => 0,
            Self::Draining => 1,
            Self::Initializing => 3,
        }
    }
}

impl Default for Life {
    fn default() -> Self {
        Self {
            ready: OnceLock::new(),
            listeners_seen: AtomicBool::new(false),
            clusters_seen: AtomicBool::new(false),
            not_applied: Mutex::default(),
            draining: AtomicBool::new(false),
            stop: watch::channel(false).0,
            readiness: watch::channel(false).0,
        }
    }
}

impl Life {
    /// LDS was accepted, at least in part.
    pub fn saw_listeners(&self) {
        self.listeners_seen.store(true, Ordering::Relaxed);
    }

    /// CDS was accepted, at least in part.
    pub fn saw_clusters(&self) {
        self.clusters_seen.store(true, Ordering::Relaxed);
    }

    /// Notes whether an accepted resource is really in force (a port may be taken); readiness waits for those that are not.
    pub fn note_applied(&self, resource: String, applied: bool) {
        let mut failed = self.not_applied.lock().unwrap_or_else(PoisonError::into_inner);
        if applied {
            failed.remove(&resource);
        } else {
            failed.insert(resource);
        }
    }

    /// From exec to readiness, once ready.
    pub fn ready_after(&self) -> Option<Duration> {
        self.ready.get().copied()
    }

    /// Whether draining has begun.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// Begins draining; true the first time.
    pub fn begin_drain(&self) -> bool {
        !self.draining.swap(true, Ordering::Relaxed)
    }

    /// Where the agent stands.
    pub fn state(&self) -> State {
        if self.is_draining() {
            State::Draining
        } else if self.ready.get().is_some() {
            State::Live
        } else {
            State::Initializing
        }
    }

    /// Asks the process to end (`/quitquitquit`, SIGTERM).
    pub fn stop(&self) {
        self.stop.send_replace(true);
    }

    /// Waits until somebody asks the process to end.
    pub async fn stopped(&self) {
        let mut stop = self.stop.subscribe();
        // The sender lives in `self`.
        let _never_closed = stop.wait_for(|stop| *stop).await;
    }

    /// Waits until the agent is ready for the first time.
    pub async fn became_ready(&self) {
        let mut ready = self.readiness.subscribe();
        let _never_closed = ready.wait_for(|ready| *ready).await;
    }
}

impl Agent {
    /// The live identity.
    pub fn identity(&self) -> Option<&Identity> {
        self.svid.as_ref().map(SvidSource::identity)
    }

    /// What readiness still waits for; empty means ready.
    pub fn waiting_for(&self) -> Vec<String> {
        let mut missing = Vec::new();
        if !self.life.listeners_seen.load(Ordering::Relaxed) {
            missing.push("listeners (LDS)".to_owned());
        }
        if !self.life.clusters_seen.load(Ordering::Relaxed) {
            missing.push("clusters (CDS)".to_owned());
        }
        if self.identity().is_some_and(|identity| !identity.is_ready()) {
            missing.push("identity".to_owned());
        }
        let failed = self.life.not_applied.lock().unwrap_or_else(PoisonError::into_inner);
        missing.extend(failed.iter().cloned());
        drop(failed);
        let referenced = self.handle.missing();
        missing.extend(referenced.routes.iter().map(|name| format!("routes {name}")));
        missing.extend(referenced.endpoints.iter().map(|name| format!("endpoints {name}")));
        missing
    }

    /// Looks whether the agent has become ready; says so once. Called after everything that could have made it so.
    pub fn check_ready(&self) {
        if self.life.ready.get().is_some() || !self.waiting_for().is_empty() {
            return;
        }
        let after = self.started.elapsed();
        if self.life.ready.set(after).is_ok() {
            let stats = self.handle.stats();
            stats.gauge("listener_manager.workers_started").set(1);
            stats.gauge("server.live").set(1);
            stats.gauge("server.state").set(State::Live.number());
            stats.gauge("server.initialization_time_ms").set(millis(after));
            tracing::info!(ready_ms = millis(after), "ready");
            self.life.readiness.send_replace(true);
        }
    }

    /// Whether the kubelet should hear 200.
    pub fn is_ready(&self) -> bool {
        self.life.state() == State::Live
            && self
                .identity()
                .is_none_or(|identity| matches!(identity.state(), mesh_identity::IdentityState::Valid { .. }))
    }

    /// Begins to drain: new inbound connections are still taken, every answer asks to close.
    pub fn drain(&self, inbound_only: bool) {
        if self.life.begin_drain() {
            tracing::info!(inbound_only, "draining");
            self.handle.stats().gauge("server.state").set(State::Draining.number());
        }
        self.handle.drain(inbound_only);
    }
}

/// Milliseconds as a number for logs and gauges.
pub fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

/// When the process was executed.
#[derive(Debug, Clone, Copy)]
pub struct Started {
    origin: Instant,
    before: Duration,
    wall: SystemTime,
}

impl Started {
    /// Now, plus what the kernel says has passed since exec (its clock ticks every 10 ms).
    pub fn of_process() -> Self {
        let before = since_exec().unwrap_or_default();
        let wall = SystemTime::now();
        Self { origin: Instant::now(), before, wall: wall.checked_sub(before).unwrap_or(wall) }
    }

    /// Time since exec.
    pub fn elapsed(&self) -> Duration {
        self.before + self.origin.elapsed()
    }

    /// The moment of exec.
    pub const fn wall(&self) -> SystemTime {
        self.wall
    }
}

fn since_exec() -> Option<Duration> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    let uptime = std::fs::read_to_string("/proc/uptime").ok()?;
    let start: u64 = stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()?;
    let up: f64 = uptime.split_whitespace().next()?.parse().ok()?;
    let since = (up * 1000.0) as u64;
    Some(Duration::from_millis(since.saturating_sub(start * 10)))
}

/// An agent as its servers hold it.
pub type SharedAgent = Arc<Agent>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_knows_when_we_started() {
        assert!(since_exec().is_some());
        assert!(Started::of_process().wall() <= SystemTime::now());
    }
}
