//! The HTTP side of the data path.

mod exchange;
mod headers;
mod manager;
mod mirror;
mod path;
mod pipeline;
mod reply;
mod retry;
mod router;
mod routes;
mod serve;
mod upgrade;
mod watch;

pub(crate) use headers::host;
pub(crate) use manager::{HttpConnection, ManagerRuntime};
pub(crate) use router::source_hash;
pub(crate) use routes::{RouteSlot, RouteTable, choose_weighted, cluster_name, per_filter};
pub(crate) use serve::serve;
