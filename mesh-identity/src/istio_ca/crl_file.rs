use std::{
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use crate::{
    bundle::{BundleSet, TrustBundle},
    id::TrustDomain,
    source::Stamp,
    x509::{MAX_PEM_BYTES, X509Error, crls_from_pem},
};

/// How often the file is looked at: a revoked peer's connections are closed within a second of the list's arrival.
const LOOK: Duration = Duration::from_millis(250);

/// Revocation lists in a file that may be missing: the mounted `istio-ca-crl`.
#[derive(Debug)]
pub(super) struct CrlFile {
    path: PathBuf,
    known: Mutex<Known>,
}

/// What was read last.
#[derive(Debug, Default)]
struct Known {
    stamp: Option<Stamp>,
    /// DER. Stays when the file cannot be used.
    lists: Arc<[Vec<u8>]>,
}

impl CrlFile {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, known: Mutex::default() }
    }

    /// Waits until the lists are not those of the bundles, and gives the bundles with them. Cancel safe.
    pub(super) async fn changed(&self, current: &BundleSet) -> BundleSet {
        loop {
            tokio::time::sleep(LOOK).await;
            let lists = self.read().await;
            let holds = |bundle: &TrustBundle| bundle.crl_ders().iter().map(|der| &**der).eq(lists.iter());
            if !current.iter().all(holds) {
                return current.iter().cloned().map(|bundle| with_lists(bundle, &lists)).collect();
            }
        }
    }

    /// The bundle with the lists as they are now.
    pub(super) async fn add_to(&self, bundle: TrustBundle) -> TrustBundle {
        with_lists(bundle, &self.read().await)
    }

    /// Reads the file if it changed. Without a file there are no lists; one that cannot be used is said once and leaves
    /// the lists of before: a half-written file must not let anybody in again.
    async fn read(&self) -> Arc<[Vec<u8>]> {
        let stamp = Stamp::of(&self.path).await;
        if self.lock().stamp == stamp {
            return self.lock().lists.clone();
        }
        let lists = match &stamp {
            None => Ok(Vec::new()),
            Some(_) => load(&self.path).await,
        };
        let mut known = self.lock();
        known.stamp = stamp;
        match lists {
            Ok(lists) => {
                tracing::info!(file = %self.path.display(), lists = lists.len(), "revocation lists read");
                known.lists = lists.into();
            }
            Err(error) => {
                tracing::error!(file = %self.path.display(), error, "revocation lists not used, the former stay");
            }
        }
        known.lists.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        // No code panics while it holds the lock; a poisoned one is still consistent.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn load(path: &Path) -> Result<Vec<Vec<u8>>, String> {
    let describe = |error: io::Error| error.to_string();
    let bytes = tokio::fs::metadata(path).await.map_err(describe)?.len();
    if bytes > MAX_PEM_BYTES as u64 {
        return Err(
            X509Error::PemTooLarge { bytes: usize::try_from(bytes).unwrap_or(usize::MAX) }.to_string()
        );
    }
    let lists = crls_from_pem(&tokio::fs::read(path).await.map_err(describe)?).map_err(|e| e.to_string())?;
    // Whether each can be parsed does not depend on the trust domain.
    let nobody = TrustDomain::parse("invalid").map_err(|e| e.to_string())?;
    TrustBundle::empty(nobody).set_crls(lists.iter().cloned()).map_err(|e| e.to_string())?;
    Ok(lists)
}

fn with_lists(mut bundle: TrustBundle, lists: &[Vec<u8>]) -> TrustBundle {
    if let Err(error) = bundle.set_crls(lists.iter().cloned()) {
        // They were parsed when they were read.
        tracing::error!(%error, "revocation lists not used");
    }
    bundle
}
