//! The CA on disk, and the server certificate that follows it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use mesh_identity::ca::{Ca, CaPem, IssuancePolicy, RootOptions};
use mesh_identity::{Identity, IdentityPublisher, TrustDomain, WallClock};

use super::{Config, ServeError};
use crate::files::write_atomically;

/// Pause before a failed renewal of the server certificate is tried again.
const RETRY: Duration = Duration::from_secs(10);
const KEY_FILE: &str = "ca-key.pem";
const FILES: [&str; 3] = ["ca-cert.pem", "cert-chain.pem", "root-cert.pem"];

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
}

impl Trust {
    /// Loads the CA of the state directory, or makes one and stores it there (files of mode 0600).
    pub(super) fn open(
        config: &Config,
        trust_domain: TrustDomain,
        clock: WallClock,
    ) -> Result<Self, ServeError> {
        let policy = IssuancePolicy::default().with_default_lifetime(config.workload_ttl);
        let directory = &config.state_dir;
        fs::create_dir_all(directory)
            .map_err(|source| ServeError::File { path: directory.clone(), source })?;
        let ca = match read(directory)? {
            Some(pem) => Ca::load(trust_domain, &pem, policy, clock.clone())?,
            None => {
                let ca = Ca::create(trust_domain, &RootOptions::default(), policy, clock.clone())?;
                store(directory, &ca.to_pem())?;
                tracing::info!(directory = %directory.display(), "made a certificate authority");
                ca
            }
        };
        let (publisher, identity) = Identity::channel(clock);
        let inner = Inner {
            ca: Arc::new(ca),
            identity,
            publisher,
            dns_names: config.dns_names.clone(),
            server_ttl: config.server_ttl,
        };
        inner.issue()?;
        Ok(Self(Arc::new(inner)))
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
fn read(directory: &Path) -> Result<Option<CaPem>, ServeError> {
    let text = |name: &str| -> Result<Option<String>, ServeError> {
        let path = directory.join(name);
        match fs::read_to_string(&path) {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(ServeError::File { path, source }),
        }
    };
    let Some(key) = text(KEY_FILE)? else { return Ok(None) };
    let [certificate, chain, roots] = FILES;
    let need = |name: &str| -> Result<String, ServeError> {
        let missing = || io::Error::new(io::ErrorKind::NotFound, "missing beside the CA's key");
        text(name)?.ok_or_else(|| ServeError::File { path: directory.join(name), source: missing() })
    };
    Ok(Some(CaPem {
        key: key.into(),
        certificate: need(certificate)?,
        chain: text(chain)?.unwrap_or_default(),
        roots: need(roots)?,
    }))
}

/// The key last: while it is missing there is no CA, and a start that was cut short is simply repeated.
fn store(directory: &Path, pem: &CaPem) -> Result<(), ServeError> {
    let [certificate, chain, roots] = FILES;
    let files: [(&str, &str); 4] =
        [(certificate, &pem.certificate), (chain, &pem.chain), (roots, &pem.roots), (KEY_FILE, &pem.key)];
    for (name, content) in files {
        let path: PathBuf = directory.join(name);
        write_atomically(&path, content.as_bytes(), 0o600)
            .map_err(|source| ServeError::File { path, source })?;
    }
    Ok(())
}
