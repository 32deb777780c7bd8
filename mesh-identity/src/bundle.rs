//! Trust bundles: which roots stand for which trust domain.

mod json;
mod set;

#[cfg(test)]
mod tests;

use std::{sync::Arc, time::Duration};

use rustls::pki_types::{CertificateDer, TrustAnchor};
use webpki::{CertRevocationList, OwnedCertRevocationList};

pub use self::{
    json::{BundleJsonError, MAX_BUNDLE_JSON_BYTES},
    set::{BundleDiff, BundleSet},
};
use crate::{
    id::TrustDomain,
    jwt::JwkSet,
    x509::{CertificateFacts, X509Error, certificates_from_pem, certificates_to_pem, check_signer},
};

/// The most roots of one trust domain: rotations overlap by two or three.
pub const MAX_ROOTS: usize = 64;

/// The roots of one trust domain: X.509 authorities, JWT authorities, revocation lists.
#[derive(Debug, Clone)]
pub struct TrustBundle {
    trust_domain: TrustDomain,
    roots: Vec<CertificateDer<'static>>,
    anchors: Vec<TrustAnchor<'static>>,
    crls: Arc<[CertRevocationList<'static>]>,
    crl_ders: Vec<Arc<[u8]>>,
    jwt_authorities: JwkSet,
    sequence: Option<u64>,
    refresh_hint: Option<Duration>,
}

impl TrustBundle {
    /// A bundle without roots: nobody of this trust domain is trusted.
    pub fn empty(trust_domain: TrustDomain) -> Self {
        Self {
            trust_domain,
            roots: Vec::new(),
            anchors: Vec::new(),
            crls: Arc::new([]),
            crl_ders: Vec::new(),
            jwt_authorities: JwkSet::default(),
            sequence: None,
            refresh_hint: None,
        }
    }

    /// A bundle of X.509 roots. Repeated roots count once.
    ///
    /// # Errors
    /// A root that breaks the rules of a signing certificate (X.509-SVID 3.2, 4), or more than [`MAX_ROOTS`].
    pub fn new(
        trust_domain: TrustDomain,
        roots: impl IntoIterator<Item = CertificateDer<'static>>,
    ) -> Result<Self, X509Error> {
        let mut bundle = Self::empty(trust_domain);
        for root in roots {
            bundle.add_root(root)?;
        }
        Ok(bundle)
    }

    /// A bundle from PEM: every certificate of the text is a root.
    ///
    /// # Errors
    /// As [`TrustBundle::new`], malformed PEM, and a text without a certificate.
    pub fn from_pem(trust_domain: TrustDomain, pem: &[u8]) -> Result<Self, X509Error> {
        let roots = certificates_from_pem(pem)?;
        if roots.is_empty() {
            return Err(X509Error::NoCertificate);
        }
        Self::new(trust_domain, roots)
    }

    /// Adds a root unless it is already there; says whether it was new.
    ///
    /// # Errors
    /// As [`TrustBundle::new`].
    pub fn add_root(&mut self, root: CertificateDer<'static>) -> Result<bool, X509Error> {
        if self.roots.contains(&root) {
            return Ok(false);
        }
        if self.roots.len() >= MAX_ROOTS {
            return Err(X509Error::TooManyRoots { count: self.roots.len() + 1 });
        }
        check_signer(&CertificateFacts::read(&root)?)?;
        let anchor = webpki::anchor_from_trusted_cert(&root)?.to_owned();
        self.anchors.push(anchor);
        self.roots.push(root);
        Ok(true)
    }

    /// Removes a root; says whether it was there.
    pub fn remove_root(&mut self, root: &CertificateDer<'_>) -> bool {
        let Some(at) = self.roots.iter().position(|known| known == root) else { return false };
        self.roots.remove(at);
        self.anchors.remove(at);
        true
    }

    /// Replaces the revocation lists (DER).
    ///
    /// # Errors
    /// A list that cannot be parsed; the old lists then stay.
    pub fn set_crls(&mut self, crls: impl IntoIterator<Item = Vec<u8>>) -> Result<(), X509Error> {
        let mut parsed: Vec<CertRevocationList<'static>> = Vec::new();
        let mut ders = Vec::new();
        for der in crls {
            let crl = OwnedCertRevocationList::from_der(&der)
                .map_err(|e| X509Error::Crl { detail: e.to_string() })?;
            parsed.push(crl.into());
            ders.push(Arc::from(der));
        }
        self.crls = parsed.into();
        self.crl_ders = ders;
        Ok(())
    }

    /// Replaces the keys that JWT-SVIDs of this trust domain are checked with.
    pub fn set_jwt_authorities(&mut self, keys: JwkSet) {
        self.jwt_authorities = keys;
    }

    /// Sets what the SPIFFE bundle document says about itself: a growing number, and when to look again.
    pub fn set_document_facts(&mut self, sequence: Option<u64>, refresh_hint: Option<Duration>) {
        self.sequence = sequence;
        self.refresh_hint = refresh_hint;
    }

    /// The trust domain.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The X.509 roots.
    pub fn roots(&self) -> &[CertificateDer<'static>] {
        &self.roots
    }

    /// The X.509 roots as PEM.
    pub fn to_pem(&self) -> String {
        certificates_to_pem(&self.roots)
    }

    /// The roots in the form that path validation takes.
    pub fn anchors(&self) -> &[TrustAnchor<'static>] {
        &self.anchors
    }

    /// The revocation lists in the form that path validation takes.
    pub fn crls(&self) -> &[CertRevocationList<'static>] {
        &self.crls
    }

    /// The revocation lists, DER.
    pub fn crl_ders(&self) -> &[Arc<[u8]>] {
        &self.crl_ders
    }

    /// The keys that JWT-SVIDs of this trust domain are checked with.
    pub fn jwt_authorities(&self) -> &JwkSet {
        &self.jwt_authorities
    }

    /// The document's sequence number, which grows with each change.
    pub fn sequence(&self) -> Option<u64> {
        self.sequence
    }

    /// How often the document's publisher wants it to be read again.
    pub fn refresh_hint(&self) -> Option<Duration> {
        self.refresh_hint
    }

    /// Whether a revocation list names the certificate with this issuer (DER name) and serial (hexadecimal).
    pub fn is_revoked(&self, issuer: &[u8], serial: &str) -> bool {
        let Some(serial) = serial_bytes(serial) else { return false };
        self.crls
            .iter()
            .filter(|crl| der_content(issuer) == Some(crl.issuer()))
            .any(|crl| matches!(crl.find_serial(&serial), Ok(Some(_))))
    }
}

/// Equal when roots, revocation lists and JWT keys are the same in the same order.
impl PartialEq for TrustBundle {
    fn eq(&self, other: &Self) -> bool {
        self.trust_domain == other.trust_domain
            && self.roots == other.roots
            && self.crl_ders == other.crl_ders
            && self.jwt_authorities == other.jwt_authorities
            && self.sequence == other.sequence
            && self.refresh_hint == other.refresh_hint
    }
}

impl Eq for TrustBundle {}

/// A DER value without its outer tag and length: how the parser of revocation lists keeps names.
fn der_content(der: &[u8]) -> Option<&[u8]> {
    let (_, rest) = der.split_first()?;
    let (&length, rest) = rest.split_first()?;
    let skipped = if length & 0x80 == 0 { 0 } else { usize::from(length & 0x7f) };
    rest.get(skipped..)
}

/// The bytes of a serial as DER has them: a zero byte first when the number would look negative.
pub(crate) fn serial_bytes(hex: &str) -> Option<Vec<u8>> {
    if hex.is_empty() || !hex.len().is_multiple_of(2) || !hex.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    let mut bytes = (0..hex.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&hex[at..at + 2], 16))
        .collect::<Result<Vec<_>, _>>()
        .ok()?;
    if bytes.first().is_some_and(|b| b & 0x80 != 0) {
        bytes.insert(0, 0);
    }
    Some(bytes)
}
