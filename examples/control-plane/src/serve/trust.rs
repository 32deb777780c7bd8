//! The CA on disk, and the server certificate that follows it.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use mesh_identity::ca::{Ca, CaFiles, CaFilesFollower, CaPem, IssuancePolicy, RootOptions};
use mesh_identity::{Identity, IdentityPublisher, TrustDomain, WallClock};

use super::{Config, ServeError, revocation};
use crate::files::write_atomically;

/// Pause before a failed renewal of the server certificate is tried again.
const RETRY: Duration = Duration::from_secs(10);
/// How often the CA's files are read again.
pub(super) const LOOK: Duration = Duration::from_secs(1);

/// The CA and the control plane's own certificate.
#[derive(Debug, Clone)]
pub(super) struct Trust(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    ca: Arc<Ca>,
    identity: Identity,
    publisher: IdentityPublisher,
    dns_names: Vec<String>,
    server_ttl: Duration,
    /// Takes over the signer when somebody plugs in another.
    _follower: CaFilesFollower,
}

impl Trust {
    /// Loads the CA of the state directory, or makes one and stores it there (files of mode 0600). From then on it
    /// follows the files: another key and certificate in their place are taken over without a restart. Under another
    /// root they sign only after the grace in which every workload learns to trust it.
    pub(super) async fn open(
        config: &Config,
        trust_domain: TrustDomain,
        clock: WallClock,
    ) -> Result<(Self, revocation::Follower), ServeError> {
        let mut policy = IssuancePolicy::default().with_default_lifetime(config.workload_ttl);
        policy.root_grace = config.root_grace;
        let directory = &config.state_dir;
        fs::create_dir_all(directory)
            .map_err(|source| ServeError::File { path: directory.clone(), source })?;
        let files = CaFiles::in_directory(directory);
        let (ca, pem) = match read(&files).await? {
            Some(pem) => (Ca::load(trust_domain, &pem, policy, clock.clone())?, pem),
            None => {
                let ca = Ca::create(trust_domain, &RootOptions::default(), policy, clock.clone())?;
                let pem = ca.to_pem();
                store(&files, &pem)?;
                tracing::info!(directory = %directory.display(), "made a certificate authority");
                (ca, pem)
            }
        };
        let ca = Arc::new(ca);
        let revoked = revocation::Follower::start(Arc::clone(&ca), directory.join(revocation::FILE))?;
        let follower = ca.follow_files(files, &pem, LOOK);
        let (publisher, identity) = Identity::channel(clock);
        let inner = Inner {
            ca,
            identity,
            publisher,
            dns_names: config.dns_names.clone(),
            server_ttl: config.server_ttl,
            _follower: follower,
        };
        inner.issue()?;
        Ok((Self(Arc::new(inner)), revoked))
    }

    pub(super) fn ca(&self) -> Arc<Ca> {
        Arc::clone(&self.0.ca)
    }

    /// The live server identity; configurations made from it follow every renewal.
    pub(super) fn identity(&self) -> Identity {
        self.0.identity.clone()
    }

    /// Renews the server certificate at half its life, and at once when the roots change.
    pub(super) async fn renew(self) {
        let mut bundle = self.0.ca.watch_bundle();
        let mut pause = self.0.server_ttl / 2;
        loop {
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                changed = bundle.changed() => {
                    if changed.is_err() {
                        return;
                    }
                }
            }
            pause = match self.0.issue() {
                Ok(()) => self.0.server_ttl / 2,
                Err(error) => {
                    tracing::error!(%error, "server certificate not renewed; the old one serves");
                    RETRY.min(self.0.server_ttl / 4)
                }
            };
        }
    }
}

impl Inner {
    fn issue(&self) -> Result<(), ServeError> {
        let credential = self.ca.issue_server_certificate(&self.dns_names, Some(self.server_ttl))?;
        self.publisher.publish(Some(Arc::new(credential)), self.ca.bundle_set());
        tracing::info!(names = ?self.dns_names, "server certificate issued");
        Ok(())
    }
}

/// `None` where there is no CA yet. A half of one is an error: making another would cut off every workload.
async fn read(files: &CaFiles) -> Result<Option<CaPem>, ServeError> {
    let present =
        files.key.try_exists().map_err(|source| ServeError::File { path: files.key.clone(), source })?;
    if !present {
        return Ok(None);
    }
    Ok(Some(files.read().await?))
}

/// The key last: while it is missing there is no CA, and a start that was cut short is simply repeated.
fn store(files: &CaFiles, pem: &CaPem) -> Result<(), ServeError> {
    let contents: [(&Path, &str); 4] = [
        (&files.certificate, &pem.certificate),
        (&files.chain, &pem.chain),
        (&files.roots, &pem.roots),
        (&files.key, &pem.key),
    ];
    for (path, content) in contents {
        write_atomically(path, content.as_bytes(), 0o600)
            .map_err(|source| ServeError::File { path: path.to_owned(), source })?;
    }
    Ok(())
}
