//! The server: snapshots in, minimal responses out, to any number of clients.
//!
//! The protocol is plain data: [`DeltaStream`] and [`SotwStream`] take requests and snapshots and return responses,
//! without IO. With the feature `server`, [`AdsServer`] runs them behind tonic.

#[cfg(feature = "server")]
mod ads;
#[cfg(feature = "server")]
mod auth;
#[cfg(feature = "server")]
mod cache;
#[cfg(feature = "server")]
mod clients;
mod config;
#[cfg(feature = "server")]
mod csds;
mod delta;
mod encoded;
#[cfg(feature = "server")]
mod grpc;
mod heartbeats;
#[cfg(feature = "server")]
mod rate;
#[cfg(feature = "server")]
mod requests;
mod response;
mod snapshot;
mod sotw;
mod status;
mod stream;
#[cfg(feature = "server")]
mod task;
mod types;

#[cfg(feature = "server")]
pub use ads::{AdsServer, GroupFn, ServerConfig};
#[cfg(feature = "server")]
pub use auth::{AllowAny, Authorization, Authorizer, Caller, Grant};
#[cfg(feature = "server")]
pub use cache::SnapshotCache;
#[cfg(feature = "server")]
pub use clients::{ClientInfo, ClientStatus, Observer};
pub use config::{StreamError, StreamRules, UnknownNames};
pub use delta::DeltaStream;
pub use encoded::EncodedResource;
pub use response::Response;
pub use snapshot::{Snapshot, SnapshotBuilder, TypeSnapshot};
pub use sotw::SotwStream;
pub use status::{Nack, SyncState, TypeStatus};
pub use stream::{Request, ServerStream, Variant};

#[cfg(feature = "server")]
pub mod services {
    //! The gRPC services one by one, for servers that want only some of them.
    pub use super::csds::Csds;
    pub use super::grpc::{
        Ads, Clusters, DiscoveryService, Endpoints, Extensions, Listeners, Routes, Runtimes, ScopedRoutes,
        Secrets, ServiceKind, VirtualHosts,
    };
}
