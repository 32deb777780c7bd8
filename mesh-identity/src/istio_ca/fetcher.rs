use std::{fmt, io, path::PathBuf, sync::Arc, time::Duration};

use rustls::pki_types::CertificateDer;

use super::{client::IstioCaClient, crl_file::CrlFile};
use crate::{
    bundle::{BundleSet, TrustBundle},
    ca::{CertificateRequest, KeyKind},
    clock::WallClock,
    id::SpiffeId,
    source::{FetchError, FetchedSvid, SvidFetcher},
    x509::{CertificateFacts, Credential, PeerUsage, X509Error, certificates_from_pem, verify_chain},
};

type RootsReader = Arc<dyn Fn() -> io::Result<Vec<u8>> + Send + Sync>;

/// Fetches SVIDs from Istio's certificate service: a new key each time, a request, then a close look at the answer.
///
/// The answer must carry the new key, one URI name that is the expected ID, and a chain that verifies up to the roots
/// that come with it. Roots are those at the end of the answer, and, when [`IstioCaFetcher::also_trust`] is set, those
/// of a PEM text that is read anew each time (the mounted root certificate).
#[derive(Clone)]
pub struct IstioCaFetcher {
    client: IstioCaClient,
    id: SpiffeId,
    lifetime: Option<Duration>,
    key_kind: KeyKind,
    more_roots: Option<RootsReader>,
    crls: Option<Arc<CrlFile>>,
    clock: WallClock,
}

impl IstioCaFetcher {
    /// Fetches SVIDs for `id`, which is what the server must give.
    pub fn new(client: IstioCaClient, id: SpiffeId, clock: WallClock) -> Self {
        Self { client, id, lifetime: None, key_kind: KeyKind::EcP256, more_roots: None, crls: None, clock }
    }

    /// Asks for this lifetime; the default leaves it to the server.
    #[must_use]
    pub fn lifetime(mut self, lifetime: Duration) -> Self {
        self.lifetime = Some(lifetime);
        self
    }

    /// The type of the new keys; default P-256.
    #[must_use]
    pub fn key_kind(mut self, kind: KeyKind) -> Self {
        self.key_kind = kind;
        self
    }

    /// Also trusts the roots of the PEM text that `read` gives, read at each fetch. A text that cannot be read is
    /// logged and left out.
    #[must_use]
    pub fn also_trust(mut self, read: impl Fn() -> io::Result<Vec<u8>> + Send + Sync + 'static) -> Self {
        self.more_roots = Some(Arc::new(read));
        self
    }

    /// Refuses what the revocation lists of this PEM file name, also on connections that are open (see
    /// [`ClosedWhenRevoked`](crate::tls::ClosedWhenRevoked)). The file is looked at four times a second, without asking
    /// the CA for anything; it may be missing, and one that cannot be used leaves the lists of before.
    #[must_use]
    pub fn also_revoke(mut self, file: impl Into<PathBuf>) -> Self {
        self.crls = Some(Arc::new(CrlFile::new(file.into())));
        self
    }

    fn examine(
        &self,
        answer: Vec<CertificateDer<'static>>,
        key: crate::x509::PrivateKey,
    ) -> Result<(Credential, TrustBundle), X509Error> {
        let mut roots = Vec::new();
        let mut chain = Vec::new();
        let last = answer.len().saturating_sub(1);
        for (index, certificate) in answer.into_iter().enumerate() {
            let is_root = index == last || (index > 0 && CertificateFacts::read(&certificate)?.self_issued);
            if is_root { roots.push(certificate) } else { chain.push(certificate) }
        }
        let mut bundle = TrustBundle::new(self.id.trust_domain(), roots)?;
        let verified_by = BundleSet::from(bundle.clone());
        let (leaf, intermediates) = chain.split_first().ok_or(X509Error::NoCertificate)?;
        let now = self.clock.unix_time();
        let peer = verify_chain(leaf, intermediates, &verified_by, PeerUsage::Client, now)?;
        if peer.id != self.id {
            return Err(X509Error::Denied { id: peer.id, expected: self.id.to_string() });
        }
        let credential = Credential::svid(chain, key)?;
        self.add_more_roots(&mut bundle);
        Ok((credential, bundle))
    }

    fn add_more_roots(&self, bundle: &mut TrustBundle) {
        let Some(read) = &self.more_roots else { return };
        let added = read().map_err(|e| e.to_string()).and_then(|pem| {
            for root in certificates_from_pem(&pem).map_err(|e| e.to_string())? {
                bundle.add_root(root).map_err(|e| e.to_string())?;
            }
            Ok(())
        });
        if let Err(error) = added {
            tracing::warn!(error, "additional roots are not used");
        }
    }
}

impl fmt::Debug for IstioCaFetcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IstioCaFetcher")
            .field("client", &self.client)
            .field("id", &self.id)
            .field("lifetime", &self.lifetime)
            .finish_non_exhaustive()
    }
}

impl SvidFetcher for IstioCaFetcher {
    async fn fetch(&self) -> Result<FetchedSvid, FetchError> {
        let new = CertificateRequest::generate(self.key_kind, &self.id);
        let (csr, key) = new.map_err(|e| FetchError::new(e.reason(), e))?.into_parts();
        let answer = self.client.create_certificate(&csr, self.lifetime).await;
        let answer = answer.map_err(|e| FetchError::new(e.reason(), e))?;
        let (credential, mut bundle) =
            self.examine(answer, key).map_err(|e| FetchError::new(e.reason(), e))?;
        if let Some(crls) = &self.crls {
            bundle = crls.add_to(bundle).await;
        }
        Ok(FetchedSvid { credential: Arc::new(credential), bundles: bundle.into() })
    }

    async fn bundles_changed(&self, current: &BundleSet) -> BundleSet {
        match &self.crls {
            Some(crls) => crls.changed(current).await,
            None => std::future::pending().await,
        }
    }
}
