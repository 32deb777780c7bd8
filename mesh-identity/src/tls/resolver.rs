use std::sync::Arc;

use rustls::{
    SignatureScheme,
    client::ResolvesClientCert,
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};

use crate::identity::Identity;

/// Presents the identity's credential as it is at each handshake; none when it expired.
#[derive(Debug)]
pub(super) struct FollowIdentity(pub(super) Identity);

impl FollowIdentity {
    fn certified_key(&self) -> Option<Arc<CertifiedKey>> {
        self.0.valid_credential().map(|credential| credential.certified_key().clone())
    }
}

impl ResolvesServerCert for FollowIdentity {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.certified_key()
    }
}

impl ResolvesClientCert for FollowIdentity {
    fn resolve(&self, _roots: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.certified_key()
    }

    fn has_certs(&self) -> bool {
        true
    }
}
