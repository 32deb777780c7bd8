//! Objects that the control plane itself writes: the root certificate for every namespace, the CA's revocation lists once
//! there are any, and the webhook configurations with the root. Configurations of its revision that somebody else put beside
//! them get the certificate as well.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use mesh_identity::ca::Ca;
use mesh_identity::x509::{MAX_PEM_BYTES, crl_to_pem};
use mesh_inject::offline::{parse_documents, to_yaml};
use mesh_inject::{WebhookOptions, patch_ca_bundle};
use serde_json::{Value, json};

use super::ServeError;
use super::push::MeshSource;
use crate::files::write_atomically;
use crate::model::MeshSettings;

/// How often the published files are compared with what they should be: somebody may delete or overwrite them, or add a
/// configuration of their own.
const LOOK: Duration = Duration::from_secs(1);
/// Pause after a failure.
const RETRY: Duration = Duration::from_secs(5);
/// What names of files with webhook configurations begin with.
const CONFIGURATION: &str = "MutatingWebhookConfiguration.";

/// The ConfigMap with the roots, and the one with the revocation lists: both are mounted into every sidecar.
const ROOTS: &str = "istio-ca-root-cert";
const REVOKED: &str = "istio-ca-crl";

/// Keeps the published objects as they should be.
pub(super) struct Publisher {
    directory: PathBuf,
    ca: Arc<Ca>,
    mesh: MeshSource,
    root_namespace: String,
    webhooks: Vec<WebhookOptions>,
}

/// The objects as text, and what configurations of others are patched with.
struct Wanted {
    files: Vec<(String, String)>,
    /// Nothing is revoked: lists of before are withdrawn.
    nothing_revoked: bool,
    revision: String,
    roots: String,
}

impl Publisher {
    /// `webhooks`: the configurations of this control plane; the first one names its revision.
    pub(super) fn new(
        directory: PathBuf,
        ca: Arc<Ca>,
        mesh: MeshSource,
        settings: &MeshSettings,
        webhooks: Vec<WebhookOptions>,
    ) -> Self {
        Self { directory, ca, mesh, root_namespace: settings.root_namespace.clone(), webhooks }
    }

    /// Writes what differs from what is there.
    pub(super) async fn write(&self) -> Result<(), ServeError> {
        self.compare(Arc::new(self.wanted())).await
    }

    async fn compare(&self, wanted: Arc<Wanted>) -> Result<(), ServeError> {
        let directory = self.directory.clone();
        let written = tokio::task::spawn_blocking(move || wanted.write(&directory));
        written.await.unwrap_or_else(|error| {
            Err(ServeError::Io { what: "publish objects".to_owned(), source: io::Error::other(error) })
        })
    }

    /// Writes again whenever roots or namespaces change, or the files are not what they should be.
    pub(super) async fn follow(self) {
        let (mut roots, mut mesh) = (self.ca.watch_bundle(), self.mesh.follow());
        let mut wanted = Arc::new(self.wanted());
        let mut pause = LOOK;
        loop {
            let changed = tokio::select! {
                changed = roots.changed() => changed,
                changed = mesh.changed() => changed,
                () = tokio::time::sleep(pause) => {
                    pause = self.look(&wanted).await;
                    continue;
                }
            };
            if changed.is_err() {
                return;
            }
            wanted = Arc::new(self.wanted());
            pause = self.look(&wanted).await;
        }
    }

    /// Compares, and says when to do so again.
    async fn look(&self, wanted: &Arc<Wanted>) -> Duration {
        match self.compare(Arc::clone(wanted)).await {
            Ok(()) => LOOK,
            Err(error) => {
                tracing::error!(%error, "published objects not written");
                RETRY
            }
        }
    }

    fn wanted(&self) -> Wanted {
        let roots = self.ca.to_pem().roots;
        let mesh = self.mesh.current();
        let mut namespaces = mesh.namespaces.clone();
        namespaces.insert(self.root_namespace.clone());
        let mut files: Vec<(String, String)> = namespaces
            .iter()
            .map(|namespace| config_map(namespace, ROOTS, "root-cert.pem", &roots))
            .collect();
        let lists: String = self.ca.bundle().crl_ders().iter().map(|der| crl_to_pem(der)).collect();
        if lists.len() > MAX_PEM_BYTES {
            // Neither an API server nor a sidecar would take it.
            let bytes = lists.len();
            tracing::error!(
                bytes,
                limit = MAX_PEM_BYTES,
                "revocation lists too long, those of before stay published"
            );
        } else if !lists.is_empty() {
            files.extend(
                namespaces.iter().map(|namespace| config_map(namespace, REVOKED, "ca-crl.pem", &lists)),
            );
        }
        for options in &self.webhooks {
            let options = WebhookOptions { ca_bundle: Some(roots.clone()), ..options.clone() };
            files.push((format!("{CONFIGURATION}{}.yaml", options.object_name()), to_yaml(&options.build())));
        }
        let revision = self.webhooks.first().map(|options| options.revision.clone()).unwrap_or_default();
        Wanted { files, nothing_revoked: lists.is_empty(), revision, roots }
    }
}

/// File name and text of a ConfigMap with one key.
fn config_map(namespace: &str, name: &str, key: &str, value: &str) -> (String, String) {
    let object: Value = json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": namespace, "labels": {"istio.io/config": "true"}},
        "data": {key: value},
    });
    (format!("ConfigMap.{namespace}.{name}.yaml"), to_yaml(&object))
}

impl Wanted {
    fn write(&self, directory: &Path) -> Result<(), ServeError> {
        fs::create_dir_all(directory).map_err(failed(directory))?;
        for (name, text) in &self.files {
            let path = directory.join(name);
            if !fs::read(&path).is_ok_and(|known| known == text.as_bytes()) {
                write_atomically(&path, text.as_bytes(), 0o644).map_err(failed(&path))?;
            }
        }
        for entry in fs::read_dir(directory).map_err(failed(directory))? {
            let path = entry.map_err(failed(directory))?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let theirs = name.starts_with(CONFIGURATION) && !self.files.iter().any(|(own, _)| own == name);
            if theirs {
                self.patch(&path)?;
            }
            let lists = name.starts_with("ConfigMap.") && name.ends_with(".istio-ca-crl.yaml");
            if lists && self.nothing_revoked {
                fs::remove_file(&path).map_err(failed(&path))?;
            }
        }
        Ok(())
    }

    /// Puts the CA bundle into a configuration that somebody else wrote for this revision.
    fn patch(&self, path: &Path) -> Result<(), ServeError> {
        let read = fs::metadata(path).and_then(|known| known.modified()).and_then(|modified| {
            // Perhaps half written: the next look will tell.
            let settled = modified.elapsed().is_ok_and(|age| age >= LOOK / 2);
            if settled { fs::read_to_string(path).map(Some) } else { Ok(None) }
        });
        let text = match read {
            Ok(Some(text)) => text,
            Ok(None) => return Ok(()),
            // Gone since it was listed.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(failed(path)(error)),
        };
        let mut documents = parse_documents(&text).map_err(|error| failed(path)(io::Error::other(error)))?;
        let mut changed = false;
        for document in &mut documents {
            changed |= patch_ca_bundle(document, &self.revision, &self.roots);
        }
        if changed {
            let text = documents.iter().map(to_yaml).collect::<Vec<_>>().join("---\n");
            write_atomically(path, text.as_bytes(), 0o644).map_err(failed(path))?;
            tracing::info!(path = %path.display(), "CA bundle patched");
        }
        Ok(())
    }
}

fn failed(path: &Path) -> impl Fn(io::Error) -> ServeError {
    let path = path.to_owned();
    move |source| ServeError::File { path: path.clone(), source }
}
