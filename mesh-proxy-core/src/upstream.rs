//! Upstream: clusters, their hosts, choosing among them, connecting to them.

mod breaker;
mod cluster;
mod connect;
mod dns;
mod hash_lb;
mod host;
mod host_set;
mod manager;
mod outlier;
mod pool;
mod slow_start;

pub(crate) use breaker::{Permit, Resource};
pub(crate) use cluster::{ClusterRuntime, Pick};
pub(crate) use connect::{ConnectError, ConnectOptions, connect};
pub(crate) use host::{ActiveRequest, Host};
pub(crate) use manager::ClusterManager;
pub(crate) use outlier::{Outcome, record};
pub(crate) use pool::{Lease, PoolError, Protocol, checkout};
