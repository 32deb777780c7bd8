//! Secret discovery (SDS): certificates for an Envoy, or from an SDS server, over a Unix socket.
//!
//! Two secrets, named as Istio names them: [`WORKLOAD`] holds chain and key, [`ROOT`] holds the roots of the workload's
//! own trust domain. Private keys leave the process only through [`SdsServer::serve`], a Unix socket of mode 0600 whose
//! peer has the expected user ID; over ADS there is only [`validation_secret`].

mod client;
mod secrets;
mod server;

#[cfg(test)]
mod tests;

pub(crate) use self::client::Secrets;
pub use self::{
    client::SdsSource,
    secrets::{SecretError, validation_secret},
    server::SdsServer,
};

/// The secret with the workload's chain and key.
pub const WORKLOAD: &str = "default";

/// The secret with the roots.
pub const ROOT: &str = "ROOTCA";
