//! Outlier detection: hosts that fail in a row are taken out for a while.

use std::{
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::time::Instant;

use super::{ClusterRuntime, Host};

/// How a request to a host ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// A response with this status.
    Status(u16),
    /// No response: connecting failed, reset, timeout.
    LocalOrigin,
}

/// A host's health as seen by its own traffic.
#[derive(Debug, Default)]
pub(crate) struct HostHealth {
    ejected: AtomicBool,
    consecutive_5xx: AtomicU32,
    consecutive_gateway: AtomicU32,
    consecutive_local: AtomicU32,
    ejections: AtomicU32,
    /// Milliseconds since the cluster's start at which the ejection ends.
    until_ms: AtomicU64,
}

impl HostHealth {
    pub(crate) fn ejected(&self) -> bool {
        self.ejected.load(Relaxed)
    }
}

/// Records an outcome; ejects when a limit is reached.
pub(crate) fn record(cluster: &Arc<ClusterRuntime>, host: &Host, outcome: Outcome) {
    let Some(config) = cluster.config.outlier_detection else { return };
    let health = &host.outlier;
    let hit = |count: &AtomicU32, limit: u32| limit > 0 && count.fetch_add(1, Relaxed) + 1 >= limit;
    let eject = match outcome {
        Outcome::Status(status) => {
            health.consecutive_local.store(0, Relaxed);
            let gateway = if (502..=504).contains(&status) {
                hit(&health.consecutive_gateway, config.consecutive_gateway)
            } else {
                health.consecutive_gateway.store(0, Relaxed);
                false
            };
            let any = if status >= 500 {
                hit(&health.consecutive_5xx, config.consecutive_5xx)
            } else {
                health.consecutive_5xx.store(0, Relaxed);
                false
            };
            gateway || any
        }
        Outcome::LocalOrigin if config.split_local_origin => {
            hit(&health.consecutive_local, config.consecutive_local_origin)
        }
        // Without the split a local error counts as a 5xx gateway error.
        Outcome::LocalOrigin => {
            let gateway = hit(&health.consecutive_gateway, config.consecutive_gateway);
            hit(&health.consecutive_5xx, config.consecutive_5xx) || gateway
        }
    };
    if eject && !health.ejected() {
        try_eject(cluster, host);
    }
}

fn try_eject(cluster: &Arc<ClusterRuntime>, host: &Host) {
    let Some(config) = cluster.config.outlier_detection else { return };
    let hosts = cluster.hosts();
    let ejected = hosts.all.iter().filter(|h| h.outlier.ejected()).count();
    // At least one host may be ejected, whatever the percentage.
    let most = (hosts.all.len() * config.max_ejection_percent as usize / 100).max(1);
    if ejected >= most {
        cluster.stats.outlier_overflow.inc();
        return;
    }
    let times = host.outlier.ejections.fetch_add(1, Relaxed) + 1;
    let length =
        (config.base_ejection_time * times).min(config.max_ejection_time.max(config.base_ejection_time));
    host.outlier.until_ms.store(cluster.age_ms() + length.as_millis() as u64, Relaxed);
    host.outlier.ejected.store(true, Relaxed);
    for count in
        [&host.outlier.consecutive_5xx, &host.outlier.consecutive_gateway, &host.outlier.consecutive_local]
    {
        count.store(0, Relaxed);
    }
    cluster.stats.outlier_ejections.inc();
    cluster.stats.outlier_active.inc();
    cluster.rebuild();
}

/// Brings ejected hosts back and lets good behaviour be forgotten forgiving; called every interval.
pub(crate) fn sweep(cluster: &Arc<ClusterRuntime>) {
    let now = cluster.age_ms();
    let mut changed = false;
    for host in &cluster.hosts().all {
        let health = &host.outlier;
        if health.ejected() {
            if health.until_ms.load(Relaxed) <= now {
                health.ejected.store(false, Relaxed);
                host.warms_since_ms.store(now, Relaxed);
                cluster.stats.outlier_active.dec();
                changed = true;
            }
        } else {
            let count = health.ejections.load(Relaxed);
            if count > 0 {
                health.ejections.store(count - 1, Relaxed);
            }
        }
    }
    if changed {
        cluster.rebuild();
    }
}

/// Sweeps until the cluster is gone.
pub(crate) async fn run(cluster: Weak<ClusterRuntime>, interval: Duration) {
    let mut next = Instant::now() + interval;
    loop {
        tokio::time::sleep_until(next).await;
        let Some(cluster) = cluster.upgrade() else { return };
        sweep(&cluster);
        next += interval;
    }
}
