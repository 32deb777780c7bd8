//! What the tests and the benchmark of a running control plane share.
#![allow(dead_code, reason = "each of them uses its own part")]

pub(crate) mod caller;
pub(crate) mod fixture;
