#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

pub mod body;
pub mod config;
pub mod error;
pub mod filter;
mod filters;
mod http;
mod lifecycle;
mod listener;
mod net;
pub mod original_dst;
pub mod proxy;
mod rbac;
mod registry;
mod tcp;
pub mod telemetry;
pub mod tls;
mod upstream;
mod worker;

pub use body::Body;
pub use error::{ApplyError, BuildError, ConfigError};
pub use proxy::{Handle, Proxy, ProxyBuilder};
#[cfg(feature = "xds")]
pub mod xds;
