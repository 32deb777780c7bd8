use std::{path::PathBuf, sync::Arc};

use super::{FetchError, FetchedSvid, SvidFetcher};
use crate::{identity::parse_pem, x509::MAX_PEM_BYTES};

/// Reads an SVID from PEM files that somebody else renews. Files replaced by rename or through a symbolic link, as
/// kubelets do, are read as a whole; a pair that does not fit together is an error and is read again later.
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
}

async fn read(path: &PathBuf) -> Result<Vec<u8>, FetchError> {
    let failed = |e: std::io::Error| FetchError::new("file", format!("{}: {e}", path.display()));
    let length = tokio::fs::metadata(path).await.map_err(failed)?.len();
    if length > MAX_PEM_BYTES as u64 {
        return Err(FetchError::new("too_large", format!("{} has {length} bytes", path.display())));
    }
    tokio::fs::read(path).await.map_err(failed)
}
