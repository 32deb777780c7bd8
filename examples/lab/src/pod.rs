//! A pod as the kubelet sees it: what the patched object says, and what runs because of it.

pub(crate) mod container;
pub(crate) mod environment;
pub(crate) mod lifecycle;
pub(crate) mod probe;
pub(crate) mod process;
pub(crate) mod spec;
pub(crate) mod status;
pub(crate) mod volumes;
