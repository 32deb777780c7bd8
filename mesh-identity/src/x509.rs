//! X.509-SVIDs: reading, checking against the standard, verifying a peer's chain.
//!
//! Reading is done with `x509-parser`, path validation with `rustls-webpki`; there is no cryptography of our own here.
//! Each refusal is its own [`X509Error`] that names the section of the standard.

mod credential;
mod error;
mod facts;
mod pem;
mod verify;

#[cfg(test)]
mod tests;

pub use self::{
    credential::{Credential, PrivateKey},
    error::X509Error,
    facts::{CertificateFacts, KeyUsageFacts, check_leaf, check_signer},
    pem::{certificates_from_pem, certificates_to_pem, crl_to_pem, crls_from_pem, private_key_from_pem},
    verify::{PeerIdentity, PeerUsage, verify_chain},
};

pub(crate) use self::{facts::hex, verify::verify_path};

/// The most bytes of PEM that are read at once: a bundle of hundreds of roots fits, an attack does not.
pub const MAX_PEM_BYTES: usize = 1 << 20;

/// The most certificates of one chain: a leaf, a few intermediates, and roots that some CAs append.
pub const MAX_CHAIN: usize = 16;

/// The most bytes of one certificate. Real SVIDs have under 2 KiB, post-quantum signatures under 20 KiB.
pub const MAX_CERTIFICATE_BYTES: usize = 64 << 10;

/// The most subject alternative names of one certificate.
pub const MAX_SANS: usize = 128;
