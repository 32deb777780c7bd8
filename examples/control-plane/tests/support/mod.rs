//! What the tests and the benchmark of a running control plane share; each uses its part.
#![allow(dead_code)]

pub(crate) mod caller;
pub(crate) mod fixture;
