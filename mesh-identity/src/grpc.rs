//! tonic over our rustls configurations.
//!
//! tonic's own TLS settings hold one static identity. These two pieces give it rustls configurations that follow
//! rotation: [`TlsConnector`] for clients, [`tls_incoming`] for servers.

mod connect;
mod incoming;

#[cfg(test)]
mod tests;

pub use self::{
    connect::{ConnectError, TlsConnector},
    incoming::{ExpiredCertificate, Incoming, IncomingOptions, IncomingTls, PeerInfo, TlsIo, tls_incoming},
};
