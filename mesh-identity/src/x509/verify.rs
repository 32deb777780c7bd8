use std::time::SystemTime;

use rustls::pki_types::{CertificateDer, UnixTime};
use webpki::{EndEntityCert, KeyUsage, RevocationCheckDepth, RevocationOptionsBuilder, UnknownStatusPolicy};

use super::{CertificateFacts, MAX_CHAIN, X509Error, check_leaf, check_signer};
use crate::{
    bundle::BundleSet,
    id::{SpiffeId, TrustDomain},
};

/// Who the peer of a connection is, by its X.509-SVID.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerIdentity {
    /// The peer's SPIFFE ID.
    pub id: SpiffeId,
    /// The leaf's serial number in lower-case hexadecimal digits.
    pub serial: String,
    /// The leaf's issuer, a DER name: with the serial it names the certificate for revocation.
    pub issuer: Vec<u8>,
    /// The first moment of the leaf's validity.
    pub not_before: SystemTime,
    /// The last moment of the leaf's validity.
    pub not_after: SystemTime,
}

impl PeerIdentity {
    /// Reads the identity of a chain that a handshake has already verified.
    ///
    /// # Errors
    /// A leaf that is not an X.509-SVID, for example a plain server certificate.
    pub fn of_verified_chain(chain: &[CertificateDer<'_>]) -> Result<Self, X509Error> {
        let facts = CertificateFacts::read(chain.first().ok_or(X509Error::NoCertificate)?)?;
        let id = check_leaf(&facts)?;
        Ok(Self::new(id, facts))
    }

    fn new(id: SpiffeId, facts: CertificateFacts) -> Self {
        let CertificateFacts { serial, issuer, not_before, not_after, .. } = facts;
        Self { id, serial, issuer, not_before, not_after }
    }

    /// The peer's trust domain.
    pub fn trust_domain(&self) -> TrustDomain {
        self.id.trust_domain()
    }
}

/// What the peer uses its certificate for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum PeerUsage {
    /// The peer is a TLS client.
    Client,
    /// The peer is a TLS server.
    Server,
}

/// Verifies a chain to the X.509-SVID standard (section 5): the leaf's own rules, each signing certificate's rules,
/// and a valid path to a root of the trust domain that the leaf names, at time `now`.
///
/// Revocation lists of the bundle are consulted for the whole path; a certificate that no list covers counts as good.
///
/// # Errors
/// The rule that was broken.
pub fn verify_chain(
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    bundles: &BundleSet,
    usage: PeerUsage,
    now: UnixTime,
) -> Result<PeerIdentity, X509Error> {
    if intermediates.len() >= MAX_CHAIN {
        return Err(X509Error::ChainTooLong { count: intermediates.len() + 1 });
    }
    let facts = CertificateFacts::read(leaf)?;
    let id = check_leaf(&facts)?;
    let bundle = bundles
        .get(id.trust_domain_str())
        .ok_or_else(|| X509Error::NoBundle { trust_domain: id.trust_domain() })?;
    for intermediate in intermediates {
        check_signer(&CertificateFacts::read(intermediate)?)?;
    }
    verify_path(leaf, intermediates, bundle.anchors(), bundle.crls(), usage, now)?;
    Ok(PeerIdentity::new(id, facts))
}

pub(crate) fn verify_path(
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    anchors: &[rustls::pki_types::TrustAnchor<'_>],
    crls: &[webpki::CertRevocationList<'static>],
    usage: PeerUsage,
    now: UnixTime,
) -> Result<(), X509Error> {
    let end_entity = EndEntityCert::try_from(leaf)?;
    let crls: Vec<_> = crls.iter().collect();
    let revocation = RevocationOptionsBuilder::new(&crls).ok().map(|options| {
        options.with_depth(RevocationCheckDepth::Chain).with_status_policy(UnknownStatusPolicy::Allow).build()
    });
    let usage = match usage {
        PeerUsage::Client => KeyUsage::client_auth(),
        PeerUsage::Server => KeyUsage::server_auth(),
    };
    let algorithms = crate::tls::signature_algorithms();
    end_entity.verify_for_usage(algorithms.all, anchors, intermediates, now, usage, revocation, None)?;
    Ok(())
}
