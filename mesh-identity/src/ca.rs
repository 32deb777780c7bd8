//! A certificate authority: creates or loads a root or an intermediate, signs requests under a policy.
//!
//! What a requester asks for is not evidence. The name in a certificate comes from the authenticated caller; of the
//! request only the public key is used, after its signature proved possession of the private key.

mod error;
mod files;
mod options;
mod request;
mod revocation;
mod rotation;
mod signer;

#[cfg(test)]
mod tests;

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use rustls::pki_types::CertificateDer;
use tokio::sync::watch;

pub use self::{
    error::CaError,
    files::{CaFiles, CaFilesError, CaFilesFollower, CaFilesStatus},
    options::{CaPem, IssuancePolicy, KeyKind, RootOptions},
    request::{CertificateRequest, MAX_CSR_BYTES, NewRequest, SigningRequest},
    revocation::Revocation,
    rotation::RootRotation,
};
use self::{rotation::Roots, signer::Signer};
use crate::{
    bundle::{BundleSet, TrustBundle},
    clock::WallClock,
    id::{SpiffeId, TrustDomain},
    x509::{Credential, X509Error, certificates_to_pem},
};

/// A certificate that the CA signed.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Issued {
    /// Leaf first, then the CA's intermediates, without the root.
    pub chain: Vec<CertificateDer<'static>>,
    /// The roots that the CA trusts, the one behind `chain` last.
    pub roots: Vec<CertificateDer<'static>>,
    /// The leaf's serial number in lower-case hexadecimal digits.
    pub serial: String,
    /// The last moment of validity.
    pub not_after: std::time::SystemTime,
}

impl Issued {
    /// Each certificate as its own PEM text: leaf, intermediates, roots, the signer's own root last. This is the order
    /// of Istio's certificate service.
    pub fn to_pem_list(&self) -> Vec<String> {
        self.chain.iter().chain(&self.roots).map(|certificate| certificates_to_pem([certificate])).collect()
    }
}

/// A certificate authority of one trust domain. Shared by reference; signing takes no lock while it computes.
#[derive(Debug)]
pub struct Ca {
    trust_domain: TrustDomain,
    policy: IssuancePolicy,
    clock: WallClock,
    roots: Mutex<Roots>,
    bundle: watch::Sender<TrustBundle>,
}

impl Ca {
    /// Creates a self-signed root.
    ///
    /// # Errors
    /// A lifetime that does not fit a certificate, or no randomness.
    pub fn create(
        trust_domain: TrustDomain,
        options: &RootOptions,
        policy: IssuancePolicy,
        clock: WallClock,
    ) -> Result<Self, CaError> {
        let signer = Signer::self_signed(&trust_domain, options, clock.now())?;
        Self::with_signer(trust_domain, signer, Vec::new(), policy, clock)
    }

    /// Loads a CA from PEM: its own key, its certificate, intermediates above it, and the roots to trust.
    ///
    /// A self-signed CA has no chain, and its certificate is its root. A plugged-in intermediate has a chain up to
    /// (not including) the root, and the root in `roots`.
    ///
    /// # Errors
    /// Malformed PEM, a key that is not the certificate's, a certificate that may not sign, no root behind the
    /// certificate, or a certificate whose time is over.
    pub fn load(
        trust_domain: TrustDomain,
        pem: &CaPem,
        policy: IssuancePolicy,
        clock: WallClock,
    ) -> Result<Self, CaError> {
        let (signer, roots) = Signer::load(pem, &clock)?;
        Self::with_signer(trust_domain, signer, roots, policy, clock)
    }

    fn with_signer(
        trust_domain: TrustDomain,
        signer: Signer,
        other_roots: Vec<CertificateDer<'static>>,
        policy: IssuancePolicy,
        clock: WallClock,
    ) -> Result<Self, CaError> {
        let roots = Roots::new(signer, other_roots);
        let bundle = TrustBundle::new(trust_domain.clone(), roots.trusted())?;
        let (bundle, _) = watch::channel(bundle);
        Ok(Self { trust_domain, policy, clock, roots: Mutex::new(roots), bundle })
    }

    /// The trust domain.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// What the CA issues.
    pub fn policy(&self) -> &IssuancePolicy {
        &self.policy
    }

    /// The clock that validity starts from.
    pub fn clock(&self) -> &WallClock {
        &self.clock
    }

    /// The roots and revocation lists as they are now.
    pub fn bundle(&self) -> TrustBundle {
        self.bundle.borrow().clone()
    }

    /// Follows the roots and revocation lists.
    pub fn watch_bundle(&self) -> watch::Receiver<TrustBundle> {
        self.bundle.subscribe()
    }

    /// Key, certificate, chain and roots as PEM, to be stored with mode 0600 and loaded by [`Ca::load`]. Without what was
    /// revoked: see [`Ca::revoked_serials`].
    pub fn to_pem(&self) -> CaPem {
        let roots = self.lock();
        roots.signer().to_pem(&roots.trusted())
    }

    /// Signs a request for the identity of an authenticated caller.
    ///
    /// # Errors
    /// A request that is malformed, does not prove possession, or has a key that the policy does not allow; a lifetime
    /// over the policy's; an identity of another trust domain; a CA that is about to expire.
    pub fn sign(&self, request: &SigningRequest<'_>) -> Result<Issued, CaError> {
        if request.id.trust_domain_str() != self.trust_domain.as_str() {
            return Err(CaError::ForeignTrustDomain { id: request.id.clone() });
        }
        if request.id.path().is_empty() {
            return Err(CaError::NoPath);
        }
        let key = CertificateRequest::from_pem(request.csr_pem)?.into_key(&self.policy)?;
        let lifetime = self.policy.lifetime(request.lifetime)?;
        let (signer, roots) = self.signer_and_roots();
        signer.issue_svid(&key, request.id, lifetime, &self.policy, self.clock.now(), roots)
    }

    /// Issues an SVID with a key made here, for processes that hold the CA themselves.
    ///
    /// # Errors
    /// As [`Ca::sign`].
    pub fn issue_svid(&self, id: &SpiffeId, lifetime: Option<Duration>) -> Result<Credential, CaError> {
        let request = CertificateRequest::generate(KeyKind::EcP256, id)?;
        let (csr_pem, key) = request.into_parts();
        let issued = self.sign(&SigningRequest { csr_pem: &csr_pem, id, lifetime })?;
        Ok(Credential::svid(issued.chain, key)?)
    }

    /// Issues a server certificate for DNS names, with a key made here: the control plane's own.
    ///
    /// # Errors
    /// No name, a name that is not a DNS name, or as [`Ca::sign`].
    pub fn issue_server_certificate(
        &self,
        dns_names: &[String],
        lifetime: Option<Duration>,
    ) -> Result<Credential, CaError> {
        let lifetime = self.policy.lifetime(lifetime)?;
        let (signer, _) = self.signer_and_roots();
        signer.issue_server(dns_names, lifetime, &self.policy, self.clock.now())
    }

    /// The bundle as a set, as an [`Identity`](crate::Identity) takes it.
    pub fn bundle_set(&self) -> BundleSet {
        self.bundle().into()
    }

    fn signer_and_roots(&self) -> (Arc<Signer>, Vec<CertificateDer<'static>>) {
        let roots = self.lock();
        (roots.signer().clone(), roots.for_response())
    }

    fn lock(&self) -> MutexGuard<'_, Roots> {
        // No code panics while it holds the lock; a poisoned one is still consistent.
        self.roots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Rebuilds the published bundle from the roots.
    fn publish(&self, roots: &Roots) -> Result<(), X509Error> {
        let mut bundle = TrustBundle::new(self.trust_domain.clone(), roots.trusted())?;
        bundle.set_crls(roots.crls())?;
        self.bundle.send_replace(bundle);
        Ok(())
    }
}
