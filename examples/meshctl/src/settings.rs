//! Settings of the injector from flags, files and istiod's own environment.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;
use mesh_inject::{Cluster, Injector, NativeSidecars, Settings};
use serde_json::Value;

use crate::documents;

/// Flags that several subcommands share.
#[derive(Debug, Args)]
pub(crate) struct SettingsArguments {
    /// Values of the installation: `{values, mesh_configmap, default_templates}`, or chart values alone (JSON or YAML).
    #[arg(long, value_name = "FILE")]
    injector_values: Option<PathBuf>,
    /// MeshConfig, merged over the defaults (YAML or JSON).
    #[arg(long, value_name = "FILE")]
    mesh_config: Option<PathBuf>,
    /// Namespace objects (OpenShift's ranges, the Pod Security level, labels), Nodes (kubelets' versions), ProxyConfigs.
    #[arg(long, value_name = "FILE")]
    namespace_file: Option<PathBuf>,
    /// Revision written on injected pods.
    #[arg(long)]
    revision: Option<String>,
    /// Native sidecars (init containers that keep running) or the classic layout.
    #[arg(long, value_name = "BOOL")]
    native_sidecars: Option<bool>,
}

impl SettingsArguments {
    /// The settings: files first, then istiod's environment, then flags.
    pub(crate) fn settings(&self) -> anyhow::Result<Settings> {
        let mut settings = match &self.injector_values {
            None => Settings::default(),
            Some(path) => {
                let document = documents::read_one(path)?;
                Settings::from_document(document).with_context(|| path.display().to_string())?
            }
        };
        if let Some(path) = &self.mesh_config {
            settings = settings.with_mesh(&documents::read_one(path)?);
        }
        settings = settings.with_environment(
            std::env::vars_os()
                .filter_map(|(key, value)| Some((key.into_string().ok()?, value.into_string().ok()?))),
        );
        if let Some(revision) = &self.revision {
            settings.revision.clone_from(revision);
        }
        if let Some(native) = self.native_sidecars {
            settings.native_sidecars = if native { NativeSidecars::Always } else { NativeSidecars::Never };
        }
        Ok(settings)
    }

    /// The injector for files: everything is injected that does not refuse, as offline injection always did.
    pub(crate) fn offline_injector(&self) -> anyhow::Result<Injector> {
        let mut settings = self.settings()?;
        "enabled".clone_into(&mut settings.policy);
        settings.never_inject.clear();
        settings.always_inject.clear();
        Ok(Injector::new(settings)?)
    }

    /// The cluster, as far as files tell.
    pub(crate) fn cluster(&self, objects: &[Value]) -> anyhow::Result<Cluster> {
        let mut cluster = Cluster::default();
        let more = match &self.namespace_file {
            Some(path) => documents::objects(documents::read(path)?),
            None => Vec::new(),
        };
        for object in objects.iter().chain(&more) {
            match object.get("kind").and_then(Value::as_str) {
                Some("Namespace") => cluster.add_namespace(object.clone()),
                Some("Node") => cluster.add_node(object),
                Some("ProxyConfig") => cluster.proxy_configs.push(object.clone()),
                _ => {}
            }
        }
        Ok(cluster)
    }
}
