//! Circuit breakers: limits shared by all workers, taken as permits.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering::Relaxed},
};

use super::ClusterRuntime;
use crate::config::CircuitBreakers;

/// What is limited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Resource {
    Connection,
    Pending,
    Request,
    Retry,
}

/// Counts in use.
#[derive(Debug, Default)]
pub(crate) struct Breakers {
    connections: AtomicU32,
    pending: AtomicU32,
    requests: AtomicU32,
    retries: AtomicU32,
}

impl Breakers {
    fn count(&self, resource: Resource) -> &AtomicU32 {
        match resource {
            Resource::Connection => &self.connections,
            Resource::Pending => &self.pending,
            Resource::Request => &self.requests,
            Resource::Retry => &self.retries,
        }
    }

    fn limit(&self, resource: Resource, limits: &CircuitBreakers) -> u32 {
        match resource {
            Resource::Connection => limits.max_connections,
            Resource::Pending => limits.max_pending_requests,
            Resource::Request => limits.max_requests,
            Resource::Retry => match limits.retry_budget {
                None => limits.max_retries,
                Some(budget) => {
                    let active = f64::from(self.requests.load(Relaxed));
                    ((active * budget.percent / 100.0) as u32).max(budget.min_concurrency)
                }
            },
        }
    }
}

/// A place under a limit; given back on drop.
#[derive(Debug)]
pub(crate) struct Permit {
    cluster: Arc<ClusterRuntime>,
    resource: Resource,
}

impl Permit {
    /// Takes a place, unless the limit is reached.
    pub(crate) fn acquire(cluster: &Arc<ClusterRuntime>, resource: Resource) -> Option<Self> {
        let count = cluster.breakers.count(resource);
        let limit = cluster.breakers.limit(resource, &cluster.config.circuit_breakers);
        if count.fetch_add(1, Relaxed) >= limit {
            count.fetch_sub(1, Relaxed);
            return None;
        }
        Some(Self { cluster: Arc::clone(cluster), resource })
    }

    /// Takes a place whatever the limit says (a pool's first connection).
    pub(crate) fn force(cluster: &Arc<ClusterRuntime>, resource: Resource) -> Self {
        cluster.breakers.count(resource).fetch_add(1, Relaxed);
        Self { cluster: Arc::clone(cluster), resource }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.cluster.breakers.count(self.resource).fetch_sub(1, Relaxed);
    }
}
