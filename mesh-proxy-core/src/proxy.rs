//! A proxy: built once, configured and inspected through a [`Handle`] while it runs.

use std::{sync::Arc, time::Duration};

use crate::{
    error::BuildError,
    filter::HttpFilterFactory,
    original_dst::{NotRedirected, OriginalDestination},
    telemetry::{AccessLogOpener, FileLogs},
    tls::{NoTls, TlsProvider},
};

mod handle;
mod shared;
mod snapshot;

pub use handle::Handle;
pub(crate) use shared::Shared;
pub use snapshot::{ClusterSnapshot, ConnectionSnapshot, EndpointSnapshot, Missing};

/// What identifies this proxy's workload in Istio's metrics. Empty values print as `unknown`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Workload {
    /// Workload (deployment) name.
    pub name: Arc<str>,
    /// Namespace.
    pub namespace: Arc<str>,
    /// Canonical service.
    pub canonical_name: Arc<str>,
    /// Canonical revision.
    pub canonical_revision: Arc<str>,
    /// Cluster ID.
    pub cluster: Arc<str>,
    /// `app` label.
    pub app: Arc<str>,
    /// `version` label.
    pub version: Arc<str>,
}

/// Builds a [`Proxy`].
#[derive(Debug)]
pub struct ProxyBuilder {
    workers: Workers,
    original_dst: Arc<dyn OriginalDestination>,
    tls: Arc<dyn TlsProvider>,
    logs: Arc<dyn AccessLogOpener>,
    factories: Vec<Arc<dyn HttpFilterFactory>>,
    workload: Workload,
    drain_time: Duration,
    log_flush_interval: Duration,
    seed: Option<u64>,
}

#[derive(Debug, Clone, Copy)]
enum Workers {
    Threads(usize),
    CurrentRuntime,
}

impl Default for ProxyBuilder {
    fn default() -> Self {
        Self {
            workers: Workers::Threads(1),
            original_dst: Arc::new(NotRedirected),
            tls: Arc::new(NoTls),
            logs: Arc::new(FileLogs),
            factories: Vec::new(),
            workload: Workload::default(),
            drain_time: Duration::from_secs(45),
            log_flush_interval: Duration::from_secs(1),
            seed: None,
        }
    }
}

impl ProxyBuilder {
    /// Worker threads, each with its own runtime, sockets and pools. Default 1; 0 counts as 1.
    #[must_use]
    pub fn workers(mut self, threads: usize) -> Self {
        self.workers = Workers::Threads(threads.max(1));
        self
    }

    /// No threads: everything runs on the tokio runtime that calls [`build`](Self::build). For tests (paused time
    /// works) and for programs with a runtime of their own.
    #[must_use]
    pub fn on_current_runtime(mut self) -> Self {
        self.workers = Workers::CurrentRuntime;
        self
    }

    /// Where redirected connections wanted to go. Default: nothing is redirected.
    #[must_use]
    pub fn original_destination(mut self, source: Arc<dyn OriginalDestination>) -> Self {
        self.original_dst = source;
        self
    }

    /// TLS configurations. Default: none, TLS fails.
    #[must_use]
    pub fn tls(mut self, provider: Arc<dyn TlsProvider>) -> Self {
        self.tls = provider;
        self
    }

    /// Where access logs go. Default: files and the process's streams.
    #[must_use]
    pub fn access_logs(mut self, opener: Arc<dyn AccessLogOpener>) -> Self {
        self.logs = opener;
        self
    }

    /// How long lines may wait in a worker's buffer. Default 1 s.
    #[must_use]
    pub fn access_log_flush_interval(mut self, interval: Duration) -> Self {
        self.log_flush_interval = interval;
        self
    }

    /// Makes filters for [`HttpFilterKind::Custom`](crate::config::HttpFilterKind::Custom).
    #[must_use]
    pub fn http_filter(mut self, factory: Arc<dyn HttpFilterFactory>) -> Self {
        self.factories.push(factory);
        self
    }

    /// Who we are in Istio's metrics.
    #[must_use]
    pub fn workload(mut self, workload: Workload) -> Self {
        self.workload = workload;
        self
    }

    /// How long connections of a replaced listener or of a drain may live on. Default 45 s.
    #[must_use]
    pub fn drain_time(mut self, time: Duration) -> Self {
        self.drain_time = time;
        self
    }

    /// Seeds load balancing, fractions and jitter, for tests. Default: from the system.
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }

    /// Starts the workers. No listener is open yet.
    ///
    /// # Errors
    /// When a thread or runtime cannot be made, or two factories share a name.
    ///
    /// # Panics
    /// With [`on_current_runtime`](Self::on_current_runtime) outside a tokio runtime.
    pub fn build(self) -> Result<Proxy, BuildError> {
        Proxy::start(self)
    }
}

/// A running proxy. Dropping it stops the workers at once; [`Handle::shutdown`] stops gracefully before.
#[derive(Debug)]
pub struct Proxy {
    handle: Handle,
}

impl Proxy {
    /// A builder with the defaults.
    #[must_use]
    pub fn builder() -> ProxyBuilder {
        ProxyBuilder::default()
    }

    /// The handle for configuration and inspection.
    #[must_use]
    pub fn handle(&self) -> &Handle {
        &self.handle
    }

    fn start(builder: ProxyBuilder) -> Result<Self, BuildError> {
        Ok(Self { handle: Handle { shared: Shared::start(builder)? } })
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.handle.shared.stop_workers();
    }
}
