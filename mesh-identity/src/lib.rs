#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

pub mod auth;
pub mod authorizer;
pub mod bundle;
pub mod ca;
pub mod clock;
#[cfg(test)]
mod definitions;
#[doc(hidden)]
pub mod fuzzing;
pub mod grpc;
pub mod id;
pub mod identity;
pub mod istio_ca;
pub mod jwt;
#[cfg(feature = "sds")]
pub mod sds;
pub mod source;
pub mod tls;
pub mod workload_api;
pub mod x509;

pub use authorizer::Authorizer;
pub use bundle::{BundleSet, TrustBundle};
pub use ca::Ca;
pub use clock::WallClock;
pub use id::{SpiffeId, SpiffeIdError, SpiffeIdRef, TrustDomain};
pub use identity::{Identity, IdentityPublisher, IdentitySnapshot, IdentityState};
pub use source::{RenewalPolicy, SvidFetcher, SvidSource};
pub use tls::{ClientTls, ServerTls, client_config, server_config};
pub use x509::{Credential, PeerIdentity, X509Error};
