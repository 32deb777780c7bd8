//! A small, read-only client of a Kubernetes API server: just enough to ask why a pod is or is not injected.

mod client;
mod credentials;
mod error;
mod kubeconfig;

use std::path::PathBuf;

use clap::Args;

pub(crate) use client::{Client, path_segment};
pub(crate) use credentials::Connection;
pub(crate) use error::KubernetesError;

/// Where the API server is and who asks.
#[derive(Debug, Args)]
pub(crate) struct ClusterArguments {
    /// kubeconfig instead of those in KUBECONFIG, `~/.kube/config`, or the service account of the pod that this runs in.
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig instead of its current one.
    #[arg(long, value_name = "NAME")]
    context: Option<String>,
}

impl ClusterArguments {
    /// The connection that these arguments and the environment describe, looked for in kubectl's order: `--kubeconfig`,
    /// `KUBECONFIG`, `~/.kube/config`, the service account of the pod.
    ///
    /// # Errors
    /// [`KubernetesError`], naming the file and the field that cannot be used.
    pub(crate) fn connection(&self) -> Result<Connection, KubernetesError> {
        let variable = std::env::var_os("KUBECONFIG").filter(|paths| !paths.is_empty());
        let home = std::env::home_dir().map(|home| home.join(".kube/config"));
        let paths = match (&self.kubeconfig, variable) {
            (Some(path), _) => vec![path.clone()],
            (None, Some(paths)) => std::env::split_paths(&paths).collect(),
            (None, None) => home.into_iter().filter(|path| path.is_file()).collect(),
        };
        if paths.is_empty() {
            return credentials::in_cluster(
                |name| std::env::var(name).ok(),
                credentials::SERVICE_ACCOUNT.as_ref(),
            );
        }
        kubeconfig::Kubeconfig::read(&paths)?.connection(self.context.as_deref())
    }
}
