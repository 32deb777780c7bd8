//! Objects that the control plane itself writes: the root certificate for every namespace, and the webhook
//! configuration with it.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use mesh_identity::ca::Ca;
use mesh_inject::WebhookOptions;
use serde_json::{Value, json};

use super::ServeError;
use super::push::MeshSource;
use crate::files::write_atomically;
use crate::model::MeshSettings;

/// Pause before failed writes are tried again.
const RETRY: Duration = Duration::from_secs(5);

/// Keeps the published objects as they should be.
pub(super) struct Publisher {
    directory: PathBuf,
    ca: Arc<Ca>,
    mesh: MeshSource,
    root_namespace: String,
}

impl Publisher {
    pub(super) fn new(directory: PathBuf, ca: Arc<Ca>, mesh: MeshSource, settings: &MeshSettings) -> Self {
        Self { directory, ca, mesh, root_namespace: settings.root_namespace.clone() }
    }

    /// Writes what differs from what is there.
    pub(super) async fn write(&self) -> Result<(), ServeError> {
        let objects = self.objects();
        let directory = self.directory.clone();
        let written = tokio::task::spawn_blocking(move || {
            let failed = |path: &PathBuf| {
                let path = path.clone();
                move |source| ServeError::File { path, source }
            };
            fs::create_dir_all(&directory).map_err(failed(&directory))?;
            for (name, object) in objects {
                let path = directory.join(name);
                let text = mesh_inject::offline::to_yaml(&object);
                if fs::read(&path).is_ok_and(|known| known == text.as_bytes()) {
                    continue;
                }
                write_atomically(&path, text.as_bytes(), 0o644).map_err(failed(&path))?;
            }
            Ok(())
        });
        written.await.unwrap_or_else(|error| {
            Err(ServeError::Io { what: "publish objects".to_owned(), source: io::Error::other(error) })
        })
    }

    /// Writes again whenever roots or namespaces change.
    pub(super) async fn follow(self) {
        let (mut roots, mut mesh) = (self.ca.watch_bundle(), self.mesh.follow());
        let mut failed = false;
        loop {
            tokio::select! {
                changed = roots.changed() => if changed.is_err() { return },
                changed = mesh.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(RETRY), if failed => {}
            }
            let result = self.write().await;
            failed = result.is_err();
            if let Err(error) = result {
                tracing::error!(%error, "published objects not written");
            }
        }
    }

    fn objects(&self) -> Vec<(String, Value)> {
        let roots = self.ca.to_pem().roots;
        let mesh = self.mesh.current();
        let mut namespaces = mesh.namespaces.clone();
        namespaces.insert(self.root_namespace.clone());
        let mut objects: Vec<(String, Value)> = namespaces
            .iter()
            .map(|namespace| {
                let object = json!({
                    "apiVersion": "v1",
                    "kind": "ConfigMap",
                    "metadata": {
                        "name": "istio-ca-root-cert",
                        "namespace": namespace,
                        "labels": {"istio.io/config": "true"},
                    },
                    "data": {"root-cert.pem": roots},
                });
                (format!("ConfigMap.{namespace}.istio-ca-root-cert.yaml"), object)
            })
            .collect();
        let options = WebhookOptions {
            namespace: self.root_namespace.clone(),
            ca_bundle: Some(roots),
            ..WebhookOptions::default()
        };
        let name = format!("MutatingWebhookConfiguration.{}.yaml", options.object_name());
        objects.push((name, options.build()));
        objects
    }
}
