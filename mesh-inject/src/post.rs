//! What happens to the merged pod before it is compared with the original.

mod cluster_env;
mod metadata;
mod order;
pub(crate) mod probes;
pub(crate) mod prometheus;

pub(crate) use cluster_env::update_cluster_env;
pub(crate) use metadata::write_metadata;
pub(crate) use order::reorder;
