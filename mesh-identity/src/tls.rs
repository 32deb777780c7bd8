//! rustls configurations that follow an [`Identity`](crate::Identity) without being rebuilt.
//!
//! The configurations are plain `rustls` types. They read the identity at each handshake: a new SVID or a new root is
//! used by the next handshake, and no live connection notices. Session resumption is off, because a resumed session
//! skips certificate verification and would outlive a change of trust.
//!
//! Defaults: TLS 1.3 only, X25519MLKEM768 first, no ALPN, client certificate required by servers.

mod config;
mod peer;
mod provider;
mod resolver;
mod revocation;
mod verifier;

#[cfg(test)]
mod tests;

pub use self::{
    config::{ClientTls, ServerTls, TlsError, client_config, server_config},
    peer::{ConnectionFacts, peer_identity},
    provider::crypto_provider,
    revocation::ClosedWhenRevoked,
};
pub(crate) use provider::signature_algorithms;
