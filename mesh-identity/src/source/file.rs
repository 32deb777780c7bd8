use std::{path::PathBuf, sync::Arc, time::Duration};

use super::{FetchError, FetchedSvid, Stamp, SvidFetcher};
use crate::{identity::parse_pem, x509::MAX_PEM_BYTES};

/// How often the files are looked at.
const LOOK: Duration = Duration::from_secs(1);
/// How long they must stay as they are before they are read: several are replaced one after the other.
const SETTLED: Duration = Duration::from_millis(100);

/// Reads an SVID from PEM files that somebody else renews, within about a second of their change. Files replaced by
/// rename or through a symbolic link, as kubelets do, are read as a whole; a pair that does not fit together is an error
/// and is read again later.
#[derive(Debug, Clone)]
pub struct FileFetcher {
    /// The chain, leaf first.
    pub chain: PathBuf,
    /// The private key.
    pub key: PathBuf,
    /// The roots of the leaf's own trust domain.
    pub roots: PathBuf,
}

impl SvidFetcher for FileFetcher {
    async fn fetch(&self) -> Result<FetchedSvid, FetchError> {
        let (chain, key, roots) = tokio::try_join!(read(&self.chain), read(&self.key), read(&self.roots))?;
        let (credential, bundles) = parse_pem(&chain, &zeroize::Zeroizing::new(key), &roots)
            .map_err(|e| FetchError::new(e.reason(), e))?;
        Ok(FetchedSvid { credential: Arc::new(credential), bundles })
    }

    async fn changed(&self) {
        let before = self.stamps().await;
        loop {
            tokio::time::sleep(LOOK).await;
            let mut changed = self.stamps().await;
            if changed == before {
                continue;
            }
            loop {
                tokio::time::sleep(SETTLED).await;
                let later = self.stamps().await;
                if later == changed {
                    return;
                }
                changed = later;
            }
        }
    }
}

impl FileFetcher {
    async fn stamps(&self) -> [Option<Stamp>; 3] {
        let (chain, key, roots) =
            tokio::join!(Stamp::of(&self.chain), Stamp::of(&self.key), Stamp::of(&self.roots));
        [chain, key, roots]
    }
}

async fn read(path: &PathBuf) -> Result<Vec<u8>, FetchError> {
    let failed = |e: std::io::Error| FetchError::new("file", format!("{}: {e}", path.display()));
    let length = tokio::fs::metadata(path).await.map_err(failed)?.len();
    if length > MAX_PEM_BYTES as u64 {
        return Err(FetchError::new("too_large", format!("{} has {length} bytes", path.display())));
    }
    tokio::fs::read(path).await.map_err(failed)
}
