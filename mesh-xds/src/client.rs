//! The client: one ADS stream, any number of types.
//!
//! - [`ClientCore`] is the protocol without IO: subscriptions and responses in, requests and deliveries out, Delta and
//!   State-of-the-World.
//! - [`Warming`] is the dependency order without IO: a cluster is handed over when its endpoints are there, a listener
//!   when its routes are.
//! - With the feature `client`, [`AdsClient`] runs both over tonic.

mod backoff;
mod core;
mod state;
mod subscription;
mod warming;

#[cfg(feature = "client")]
mod ads;
#[cfg(feature = "client")]
mod configuration;
#[cfg(feature = "client")]
mod connector;
#[cfg(feature = "client")]
mod run;
#[cfg(feature = "client")]
mod watch;

pub use self::core::{ClientCore, ClientRequest, ClientResponse, Delivery, Lapse, LapseReason, Received};
pub use backoff::Backoff;
pub use state::{RejectedVersion, Rejection, ResourceState, ResourceStatus};
pub use subscription::{Names, Protocol};
pub use warming::{Candidate, Change, Follow, MAX_HOLD, Warming};

#[cfg(feature = "client")]
pub use ads::{AdsClient, AdsClientBuilder, ClientError, ConnectionState};
#[cfg(feature = "client")]
pub use configuration::Configuration;
#[cfg(feature = "client")]
pub use connector::{Connector, Io, Target};
#[cfg(feature = "client")]
pub use watch::{Update, Upsert, Watch};
