//! The SPIFFE Workload API: both ends.
//!
//! The server listens on a Unix socket and knows its callers by the kernel's word (process, user and group), which an
//! [`Attestor`] turns into identities. The client keeps an [`Identity`](crate::Identity) up to date from the stream.

mod client;
mod pb;
mod server;

#[cfg(test)]
mod tests;

#[cfg(test)]
pub(crate) use self::client::message_of;
pub(crate) use self::client::{read_message, split};
pub use self::{
    client::{WorkloadApiClient, WorkloadApiError, WorkloadApiSource, X509Context, X509Contexts},
    server::{
        AttestError, Attested, Attestor, PeerCredentials, WorkloadApiServer, WorkloadApiService, serve_unix,
    },
};

/// The metadata that each call must carry (SPIFFE Workload API 4.1): without it a browser or a confused proxy could be
/// made to call.
const SECURITY_HEADER: &str = "workload.spiffe.io";
