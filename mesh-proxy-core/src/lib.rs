#![doc = include_str!("../README.md")]
#![deny(unsafe_code)]

pub mod body;
pub mod config;
pub mod error;
pub mod filter;
pub mod http;
pub mod original_dst;
pub mod proxy;
pub mod telemetry;
pub mod tls;

pub use body::Body;
pub use error::{ApplyError, BuildError, ConfigError};
pub use proxy::{Handle, Proxy, ProxyBuilder};
