use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use aws_lc_rs::digest::{Context, Digest, SHA256};
use tokio::{sync::watch, task::JoinHandle, time::Instant};
use zeroize::Zeroizing;

use super::{Ca, CaError, CaPem, RootRotation};
use crate::x509::MAX_PEM_BYTES;

/// The files of a plugged-in CA, PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CaFiles {
    /// The signing key: PKCS#8, SEC1 or PKCS#1.
    pub key: PathBuf,
    /// The signing certificate.
    pub certificate: PathBuf,
    /// Intermediates above it; may be missing.
    pub chain: PathBuf,
    /// The roots to trust.
    pub roots: PathBuf,
}

/// How following the files goes, as data for metrics and admin pages.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct CaFilesStatus {
    /// How many changes of the files were taken over: their signer signs.
    pub reloads: u64,
    /// Whether a signer under another root waits until everybody trusts that root.
    pub waiting: bool,
    /// How many different changes were refused; the signer before them stays.
    pub refusals: u64,
    /// Why the files as they are now are not in use; `None` when they are.
    pub last_error: Option<CaFilesError>,
}

/// Why the files of a plugged-in CA are not used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CaFilesError {
    /// A file cannot be read.
    #[error("{}: {detail}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        detail: String,
    },
    /// A file is larger than is read.
    #[error("{} has {bytes} bytes; at most {max} are read", path.display(), max = MAX_PEM_BYTES)]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its length.
        bytes: u64,
    },
    /// A file is not text.
    #[error("{} is not PEM: it is not text", path.display())]
    NotText {
        /// The file.
        path: PathBuf,
    },
    /// The files do not make a CA, or it cannot be taken over now.
    #[error(transparent)]
    Ca {
        /// What is wrong.
        #[from]
        source: CaError,
    },
}

impl CaFilesError {
    /// A stable label of low cardinality, for metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Read { .. } => "file",
            Self::TooLarge { .. } => "too_large",
            Self::NotText { .. } => "pem",
            Self::Ca { source } => source.reason(),
        }
    }
}

impl CaFiles {
    /// The names of Istio's `cacerts` secret within a directory: `ca-key.pem`, `ca-cert.pem`, `cert-chain.pem`,
    /// `root-cert.pem`.
    pub fn in_directory(directory: impl AsRef<Path>) -> Self {
        let file = |name: &str| directory.as_ref().join(name);
        Self {
            key: file("ca-key.pem"),
            certificate: file("ca-cert.pem"),
            chain: file("cert-chain.pem"),
            roots: file("root-cert.pem"),
        }
    }

    /// Reads the files. Whether they make a CA shows in [`Ca::load`].
    ///
    /// # Errors
    /// A file that is missing (the chain may be), too large, or not text.
    pub async fn read(&self) -> Result<CaPem, CaFilesError> {
        let chain = match read(&self.chain).await {
            Err(CaFilesError::Read { .. }) if is_missing(&self.chain).await => Zeroizing::default(),
            outcome => outcome?,
        };
        Ok(CaPem {
            key: read(&self.key).await?,
            certificate: read(&self.certificate).await?.to_string(),
            chain: chain.to_string(),
            roots: read(&self.roots).await?.to_string(),
        })
    }
}

async fn is_missing(path: &Path) -> bool {
    tokio::fs::metadata(path).await.is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
}

async fn read(path: &Path) -> Result<Zeroizing<String>, CaFilesError> {
    let failed = |e: io::Error| CaFilesError::Read { path: path.to_owned(), detail: e.to_string() };
    let bytes = tokio::fs::metadata(path).await.map_err(failed)?.len();
    if bytes > MAX_PEM_BYTES as u64 {
        return Err(CaFilesError::TooLarge { path: path.to_owned(), bytes });
    }
    let content = Zeroizing::new(tokio::fs::read(path).await.map_err(failed)?);
    let text = std::str::from_utf8(&content).map_err(|_| CaFilesError::NotText { path: path.to_owned() })?;
    Ok(Zeroizing::new(text.to_owned()))
}

/// A task that takes over the signer of a plugged-in CA when its files change. Dropping it stops following.
#[derive(Debug)]
pub struct CaFilesFollower {
    status: watch::Receiver<CaFilesStatus>,
    task: JoinHandle<()>,
}

impl CaFilesFollower {
    /// How following goes.
    pub fn status(&self) -> CaFilesStatus {
        self.status.borrow().clone()
    }

    /// Follows how following goes.
    pub fn watch_status(&self) -> watch::Receiver<CaFilesStatus> {
        self.status.clone()
    }
}

impl Drop for CaFilesFollower {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Ca {
    /// Reads `files` again every `interval`, and takes over what they hold as soon as they hold something new and good
    /// ([`Ca::replace_signer`]). Files that are bad, half written or of a pair that does not fit leave the signer as it
    /// is; they are tried again until they are good. `loaded` is what the CA was made of.
    ///
    /// Contents are compared, not times or inodes, so that files replaced by rename or through a symbolic link (as
    /// kubelets do) are noticed. A new signer under a root that is trusted signs at once. Under another root it waits for
    /// [`IssuancePolicy::root_grace`](super::IssuancePolicy#structfield.root_grace) while both roots are trusted, unless the former
    /// signer has too little time left to sign. The former root stays trusted for
    /// [`IssuancePolicy::max_lifetime`](super::IssuancePolicy#structfield.max_lifetime) after that, when its last certificate is
    /// over, and is then retired, or by [`Ca::retire_root`] before; until then a third root is refused with
    /// [`CaError::Rotation`]. Only this process knows of the waiting: a CA that is loaded anew signs at once with what the
    /// files hold, and trusts what they hold.
    ///
    /// Must be called within a tokio runtime.
    pub fn follow_files(
        self: &Arc<Self>,
        files: CaFiles,
        loaded: &CaPem,
        interval: Duration,
    ) -> CaFilesFollower {
        let (status_out, status) = watch::channel(CaFilesStatus::default());
        let following = Following {
            ca: self.clone(),
            files,
            in_use: digest(loaded),
            staged: None,
            activated: None,
            refused: None,
            status: status_out,
        };
        let task = tokio::spawn(following.run(interval));
        CaFilesFollower { status, task }
    }
}

struct Following {
    ca: Arc<Ca>,
    files: CaFiles,
    /// What the signer was made of, the one that waits if one does; a digest, so that no second copy of the key stays
    /// in memory.
    in_use: Digest,
    /// Since when a signer under another root waits.
    staged: Option<Instant>,
    /// Since when the former signer signs no more, while its root is still trusted.
    activated: Option<Instant>,
    /// What was refused last and reported.
    refused: Option<CaFilesError>,
    status: watch::Sender<CaFilesStatus>,
}

impl Following {
    async fn run(mut self, interval: Duration) {
        loop {
            tokio::time::sleep(interval).await;
            self.retire_in_time();
            self.look().await;
            self.activate_in_time();
        }
    }

    async fn look(&mut self) {
        let outcome = match self.files.read().await {
            Ok(pem) => {
                let found = digest(&pem);
                if found.as_ref() == self.in_use.as_ref() {
                    // Somebody put the files back as they were.
                    self.refused = None;
                    self.status.send_if_modified(|status| status.last_error.take().is_some());
                    return;
                }
                self.ca.replace_signer(&pem).map(|()| found).map_err(CaFilesError::from)
            }
            Err(error) => Err(error),
        };
        match outcome {
            Ok(found) => {
                self.in_use = found;
                self.refused = None;
                self.staged = (self.ca.root_rotation() == RootRotation::Prepared).then(Instant::now);
                if self.staged.is_some() {
                    let (certificate, grace) =
                        (self.files.certificate.display(), self.ca.policy().root_grace());
                    tracing::info!(%certificate, ?grace, "the new CA files have another root: trusted, signing later");
                    self.status.send_modify(|status| {
                        status.waiting = true;
                        status.last_error = None;
                    });
                } else {
                    self.taken_over();
                }
            }
            Err(error) if self.refused.as_ref() != Some(&error) => {
                tracing::error!(reason = error.reason(), %error, "CA files not used, the former signer stays");
                self.refused = Some(error.clone());
                self.status.send_modify(|status| {
                    status.refusals += 1;
                    status.last_error = Some(error);
                });
            }
            // Said already.
            Err(_) => {}
        }
    }

    /// Lets the signer that waits sign when everybody had the time to learn its root, or when the former one cannot go
    /// on: a few who have not learned it are better than nobody who gets a certificate.
    fn activate_in_time(&mut self) {
        let Some(since) = self.staged else { return };
        if self.ca.root_rotation() == RootRotation::Prepared {
            if since.elapsed() < self.ca.policy().root_grace() && self.ca.can_sign() {
                return;
            }
            // Only somebody who took the step at this moment makes it fail.
            if let Err(error) = self.ca.activate_root() {
                tracing::debug!(%error, "the new signer signs already");
            }
        }
        self.staged = None;
        self.taken_over();
    }

    /// Forgets the former root when no certificate under it can be valid any more.
    fn retire_in_time(&mut self) {
        let Some(since) = self.activated else { return };
        if since.elapsed() <= self.ca.policy().max_lifetime {
            return;
        }
        self.activated = None;
        // Only somebody who took the step before makes it fail.
        if let Err(error) = self.ca.retire_root() {
            tracing::debug!(%error, "the former root is retired already");
        }
    }

    fn taken_over(&mut self) {
        self.activated = (self.ca.root_rotation() == RootRotation::Activated).then(Instant::now);
        tracing::info!(certificate = %self.files.certificate.display(), "signing with the new CA files");
        self.status.send_modify(|status| {
            status.reloads += 1;
            status.waiting = false;
            if self.refused.is_none() {
                status.last_error = None;
            }
        });
    }
}

fn digest(pem: &CaPem) -> Digest {
    let mut context = Context::new(&SHA256);
    for text in [pem.key.as_str(), &pem.certificate, &pem.chain, &pem.roots] {
        context.update(&(text.len() as u64).to_be_bytes());
        context.update(text.as_bytes());
    }
    context.finish()
}
