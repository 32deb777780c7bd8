use std::{collections::BTreeSet, time::SystemTime};

use rustls::pki_types::{CertificateDer, TrustAnchor, UnixTime};
use webpki::{
    CertRevocationList, EndEntityCert, KeyUsage, RevocationCheckDepth, RevocationOptionsBuilder,
    UnknownStatusPolicy, VerifiedPath,
};

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
    /// The first moment at which the leaf and every signing certificate between it and the root are valid.
    pub not_before: SystemTime,
    /// The last moment at which they all are.
    pub not_after: SystemTime,
}

impl PeerIdentity {
    /// Reads the identity of a chain that a handshake has already verified.
    ///
    /// # Errors
    /// A leaf that is not an X.509-SVID, for example a plain server certificate.
    pub fn of_verified_chain(chain: &[CertificateDer<'_>]) -> Result<Self, X509Error> {
        let (leaf, others) = chain.split_first().ok_or(X509Error::NoCertificate)?;
        let facts = CertificateFacts::read(leaf)?;
        let id = check_leaf(&facts)?;
        // The handshake is over and its path is not known any more: all that may have been on it counts.
        let others = others.iter().map(|one| CertificateFacts::read(one)).collect::<Result<Vec<_>, _>>()?;
        let mut above: Vec<&CertificateFacts> = Vec::new();
        let mut next = vec![&facts];
        while let Some(below) = next.pop() {
            for one in others.iter().filter(|one| one.subject == below.issuer && !one.self_issued) {
                if !above.iter().any(|known| std::ptr::eq(*known, one)) {
                    above.push(one);
                    next.push(one);
                }
            }
        }
        Ok(Self::new(id, &facts, above))
    }

    fn new<'a>(
        id: SpiffeId,
        leaf: &CertificateFacts,
        above: impl IntoIterator<Item = &'a CertificateFacts>,
    ) -> Self {
        let whole = (leaf.not_before, leaf.not_after);
        let (not_before, not_after) = above
            .into_iter()
            .fold(whole, |(from, until), one| (from.max(one.not_before), until.min(one.not_after)));
        Self { id, serial: leaf.serial.clone(), issuer: leaf.issuer.clone(), not_before, not_after }
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
/// The intermediates may come in any order, and others may stand among them: TLS 1.3 wants that to be taken (RFC 8446
/// 4.4.2), and agents append all roots of a domain. Only those of the path count.
///
/// Revocation lists of the bundle are consulted for the whole path; a certificate that no list covers counts as good. A
/// list covers what its issuer's key signed: one that only shares the issuer's name says nothing.
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
    let mut above = Vec::with_capacity(intermediates.len());
    for intermediate in intermediates {
        let facts = CertificateFacts::read(intermediate)?;
        check_signer(&facts)?;
        above.push(facts);
    }
    let path = verify_path(leaf, intermediates, bundle.anchors(), bundle.crls(), usage, now)?;
    Ok(PeerIdentity::new(id, &facts, path.into_iter().filter_map(|place| above.get(place))))
}

/// Validates a path to an anchor; gives the places of the intermediates that it goes over.
pub(crate) fn verify_path(
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    anchors: &[TrustAnchor<'_>],
    crls: &[CertRevocationList<'static>],
    usage: PeerUsage,
    now: UnixTime,
) -> Result<Vec<usize>, X509Error> {
    let path = PathCheck { leaf: EndEntityCert::try_from(leaf)?, usage, now };
    let crls: Vec<_> = crls.iter().collect();
    let issuers: BTreeSet<_> = crls.iter().map(|crl| crl.issuer()).collect();
    let with_lists = path.verify(intermediates, anchors, &crls);
    if crls.is_empty() || (with_lists.is_ok() && issuers.len() == crls.len()) {
        return Ok(places(&with_lists?, intermediates));
    }
    // webpki takes the first list with an issuer's name for the issuer's own. But a signer and the one that replaced it
    // can have one name and two keys: each list is then asked alone, and says nothing where the key is another. Of the
    // path that is good without lists, so that errors of another one do not cover it.
    let without_lists = path.verify(intermediates, anchors, &[])?;
    let above: Vec<_> =
        without_lists.intermediate_certificates().map(|certificate| certificate.der()).collect();
    let anchor = std::slice::from_ref(without_lists.anchor());
    for crl in crls {
        match path.verify(&above, anchor, &[crl]) {
            Err(error) if !is_of_another_key(&error) => return Err(error.into()),
            _ => {}
        }
    }
    Ok(places(&without_lists, intermediates))
}

struct PathCheck<'a> {
    leaf: EndEntityCert<'a>,
    usage: PeerUsage,
    now: UnixTime,
}

impl PathCheck<'_> {
    fn verify<'p>(
        &'p self,
        intermediates: &'p [CertificateDer<'p>],
        anchors: &'p [TrustAnchor<'p>],
        crls: &[&CertRevocationList<'_>],
    ) -> Result<VerifiedPath<'p>, webpki::Error> {
        let algorithms = crate::tls::signature_algorithms().all;
        let usage = match self.usage {
            PeerUsage::Client => KeyUsage::client_auth(),
            PeerUsage::Server => KeyUsage::server_auth(),
        };
        let revocation = RevocationOptionsBuilder::new(crls).ok().map(|options| {
            let options = options.with_depth(RevocationCheckDepth::Chain);
            options.with_status_policy(UnknownStatusPolicy::Allow).build()
        });
        self.leaf.verify_for_usage(algorithms, anchors, intermediates, self.now, usage, revocation, None)
    }
}

fn places(path: &VerifiedPath<'_>, intermediates: &[CertificateDer<'_>]) -> Vec<usize> {
    let place =
        |certificate: &webpki::Cert<'_>| intermediates.iter().position(|one| *one == certificate.der());
    path.intermediate_certificates().filter_map(place).collect()
}

/// Whether a revocation list is not the issuer's, though it has its name.
fn is_of_another_key(error: &webpki::Error) -> bool {
    use webpki::Error as E;
    matches!(
        error,
        E::InvalidCrlSignatureForPublicKey | E::UnsupportedCrlSignatureAlgorithmForPublicKeyContext(_)
    )
}
