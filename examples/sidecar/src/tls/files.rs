//! Certificates and roots in files.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use mesh_identity::x509::{PrivateKey, certificates_from_pem, private_key_from_pem};
use mesh_identity::{BundleSet, Credential, Identity, TrustBundle, TrustDomain, WallClock, X509Error};
use mesh_proxy_core::tls::TlsUnavailable;
use tokio::time::Instant;

/// How often files are looked at for changes.
const CHECK_EVERY: Duration = Duration::from_secs(1);

/// Identities read from files, again when a file changes.
#[derive(Debug, Default)]
pub(super) struct Files {
    known: Mutex<Known>,
    generation: AtomicU64,
}

#[derive(Debug, Default)]
struct Known {
    certificates: BTreeMap<(PathBuf, PathBuf), Identity>,
    roots: BTreeMap<(PathBuf, BTreeSet<TrustDomain>), Identity>,
    stamps: BTreeMap<PathBuf, Option<SystemTime>>,
    checked: Option<Instant>,
}

impl Files {
    /// Grows when a file that was read has changed; what was built from it is then stale.
    pub(super) fn generation(&self) -> u64 {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if !known.stamps.is_empty() && known.checked.is_none_or(|at| now.duration_since(at) >= CHECK_EVERY) {
            known.checked = Some(now);
            if known.stamps.iter().any(|(path, stamp)| modified(path) != *stamp) {
                *known = Known { checked: known.checked, ..Known::default() };
                self.generation.fetch_add(1, Ordering::Relaxed);
            }
        }
        self.generation.load(Ordering::Relaxed)
    }

    /// The certificate of two files.
    pub(super) fn certificate(&self, chain: &Path, key: &Path) -> Result<Identity, TlsUnavailable> {
        let place = (chain.to_owned(), key.to_owned());
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(identity) = known.certificates.get(&place) {
            return Ok(identity.clone());
        }
        let pem = read(chain)?;
        let secret: PrivateKey = private_key_from_pem(&read(key)?).map_err(|e| unavailable(key, &e))?;
        let certificates = certificates_from_pem(&pem).map_err(|e| unavailable(chain, &e))?;
        // A SPIFFE leaf where it is one, else a plain server certificate.
        let credential = Credential::svid(certificates.clone(), secret.clone())
            .or_else(|_| Credential::server_certificate(certificates, secret))
            .map_err(|e| unavailable(chain, &e))?;
        let identity = Identity::fixed(Some(credential), BundleSet::new(), WallClock::system());
        for path in [chain, key] {
            known.stamps.insert(path.to_owned(), modified(path));
        }
        known.certificates.insert(place, identity.clone());
        Ok(identity)
    }

    /// The roots of a file, trusted for these domains.
    pub(super) fn roots(
        &self,
        path: &Path,
        domains: BTreeSet<TrustDomain>,
    ) -> Result<Identity, TlsUnavailable> {
        let place = (path.to_owned(), domains);
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(identity) = known.roots.get(&place) {
            return Ok(identity.clone());
        }
        let pem = read(path)?;
        let identity = bundles(&pem, place.1.clone()).map_err(|e| unavailable(path, &e))?;
        known.stamps.insert(path.to_owned(), modified(path));
        known.roots.insert(place, identity.clone());
        Ok(identity)
    }

    /// Any certificate that was read, to say who we are.
    pub(super) fn any_certificate(&self) -> Option<Identity> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).certificates.values().next().cloned()
    }
}

/// Roots of a PEM text, trusted for these domains.
pub(super) fn roots_of_text(pem: &str, domains: BTreeSet<TrustDomain>) -> Result<Identity, X509Error> {
    bundles(pem.as_bytes(), domains)
}

fn bundles(pem: &[u8], domains: BTreeSet<TrustDomain>) -> Result<Identity, X509Error> {
    let set: BundleSet =
        domains.into_iter().map(|domain| TrustBundle::from_pem(domain, pem)).collect::<Result<_, _>>()?;
    Ok(Identity::fixed(None, set, WallClock::system()))
}

fn read(path: &Path) -> Result<Vec<u8>, TlsUnavailable> {
    fs::read(path).map_err(|e| unavailable(path, &e))
}

fn modified(path: &Path) -> Option<SystemTime> {
    fs::metadata(path).and_then(|m| m.modified()).ok()
}

fn unavailable(path: &Path, reason: &dyn std::fmt::Display) -> TlsUnavailable {
    TlsUnavailable { secret: path.display().to_string(), reason: reason.to_string() }
}
