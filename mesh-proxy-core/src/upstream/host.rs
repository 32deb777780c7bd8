//! One endpoint at run time: load, health, connections.

use std::{
    net::SocketAddr,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed},
    },
};

use super::pool::WorkerPool;
use crate::{
    config::{Endpoint, Locality, TransportSocket},
    telemetry::ClusterStats,
};

/// An endpoint. Lives as long as its cluster lists it or a request or connection uses it.
#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) endpoint: Endpoint,
    /// Shared by the hosts of one locality.
    pub(crate) locality: Arc<Locality>,
    pub(crate) priority: u32,
    pub(crate) transport: TransportSocket,
    pub(crate) rq_active: AtomicU32,
    pub(crate) rq_total: AtomicU64,
    pub(crate) rq_error: AtomicU64,
    pub(crate) cx_active: AtomicU32,
    pub(crate) cx_total: AtomicU64,
    pub(crate) cx_connect_fail: AtomicU64,
    pub(crate) outlier: super::outlier::HostHealth,
    /// Milliseconds on the cluster's clock from which its weight is ramped up.
    pub(crate) warms_since_ms: AtomicU64,
    /// No longer in its cluster: connections are not pooled any more.
    pub(crate) removed: AtomicBool,
    pools: OnceLock<Box<[WorkerPool]>>,
}

impl Host {
    pub(crate) fn new(
        endpoint: Endpoint,
        locality: Arc<Locality>,
        priority: u32,
        transport: TransportSocket,
        now_ms: u64,
    ) -> Self {
        Self {
            endpoint,
            locality,
            priority,
            transport,
            rq_active: AtomicU32::new(0),
            rq_total: AtomicU64::new(0),
            rq_error: AtomicU64::new(0),
            cx_active: AtomicU32::new(0),
            cx_total: AtomicU64::new(0),
            cx_connect_fail: AtomicU64::new(0),
            outlier: super::outlier::HostHealth::default(),
            warms_since_ms: AtomicU64::new(now_ms),
            removed: AtomicBool::new(false),
            pools: OnceLock::new(),
        }
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.endpoint.address
    }

    /// This worker's pool; allocated with the host's first connection.
    pub(crate) fn pool(&self, worker: usize, workers: usize) -> &WorkerPool {
        let pools = self.pools.get_or_init(|| (0..workers).map(|_| WorkerPool::default()).collect());
        &pools[worker]
    }

    /// Stops pooling and closes what is idle.
    pub(crate) fn retire(&self) {
        self.removed.store(true, Relaxed);
        for pool in self.pools.get().into_iter().flatten() {
            pool.close_idle();
        }
    }

    /// Closes connections idle for longer than `limit`.
    pub(crate) fn close_idle_since(&self, limit: std::time::Duration) {
        for pool in self.pools.get().into_iter().flatten() {
            pool.close_idle_since(limit);
        }
    }

    /// Whether any connection is pooled.
    pub(crate) fn has_connections(&self) -> bool {
        self.cx_active.load(Relaxed) > 0
    }
}

/// Counts a request in flight on a host.
#[derive(Debug)]
pub(crate) struct ActiveRequest {
    host: Arc<Host>,
    stats: Arc<ClusterStats>,
}

impl ActiveRequest {
    pub(crate) fn new(host: &Arc<Host>, stats: &Arc<ClusterStats>) -> Self {
        host.rq_active.fetch_add(1, Relaxed);
        host.rq_total.fetch_add(1, Relaxed);
        stats.rq_active.inc();
        Self { host: Arc::clone(host), stats: Arc::clone(stats) }
    }
}

impl Drop for ActiveRequest {
    fn drop(&mut self) {
        self.host.rq_active.fetch_sub(1, Relaxed);
        self.stats.rq_active.dec();
    }
}
