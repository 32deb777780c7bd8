//! The control plane: resources in; xDS, certificates and injection out.
#![forbid(unsafe_code)]

pub mod model;
pub mod resources;
pub mod store;
pub mod translate;
