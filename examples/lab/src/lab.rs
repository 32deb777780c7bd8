//! A running lab: control plane, injection, pods.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rand::Rng as _;
use serde_json::{Value, json};

use crate::admission::{self, Admitted};
use crate::cluster::{Cluster, Paths};
use crate::control_plane::ControlPlane;
use crate::error::{LabError, Result};
use crate::kubelet::{Kubelet, Pod};
use crate::objects::Key;
use crate::state::write_atomically;

/// How long the control plane may take to serve.
pub(crate) const CONTROL_PLANE_LIMIT: Duration = Duration::from_secs(15);
/// File with the listing, in the lab's folder.
pub(crate) const LISTING: &str = "listing.json";

/// Everything that runs.
#[derive(Debug)]
pub(crate) struct Lab {
    pub(crate) cluster: Arc<Cluster>,
    pub(crate) kubelet: Arc<Kubelet>,
    pub(crate) control_plane: ControlPlane,
}

impl Lab {
    /// Prepares node and control plane for the objects in `paths.config`; nothing runs yet.
    pub(crate) async fn create(paths: Paths, restart_policy: &'static str) -> Result<(Self, Vec<LabError>)> {
        let (cluster, problems) = Cluster::open(paths)?;
        let cluster = Arc::new(cluster);
        let kubelet = Arc::new(Kubelet::create(Arc::clone(&cluster)).await?);
        let control_plane =
            ControlPlane::create(Arc::clone(&cluster), Arc::clone(&kubelet), restart_policy).await?;
        Ok((Self { cluster, kubelet, control_plane }, problems))
    }

    /// Admits a pod and starts it; returns what admission did, too.
    pub(crate) async fn create_pod(&self, key: &Key, pod: &Value) -> Result<(Arc<Pod>, Option<usize>)> {
        let Admitted { pod, operations } = self.admit(key, pod).await?;
        let place = self.kubelet.place().await?;
        let started = self.kubelet.start(pod, place, true).await?;
        Ok((started, operations))
    }

    /// What would run for `pod`.
    pub(crate) async fn admit(&self, key: &Key, pod: &Value) -> Result<Admitted> {
        let mut pod = pod.clone();
        let metadata = &mut pod["metadata"];
        metadata["namespace"] = json!(key.namespace);
        metadata["uid"] = json!(random_uid());
        if pod["spec"]["serviceAccountName"].is_null() {
            pod["spec"]["serviceAccountName"] = json!("default");
        }
        let namespace = self.cluster.namespace(&key.namespace);
        admission::admit(&self.cluster.webhooks()?, &namespace, &pod, self.control_plane.ip()).await
    }

    /// Writes what `ps`, `exec` and `logs` read.
    pub(crate) fn write_listing(&self, state: &Path) -> Result<()> {
        let listing = serde_json::to_vec(&self.kubelet.listing())
            .map_err(|error| LabError::process("listing", error.to_string()))?;
        write_atomically(&state.join(LISTING), &listing)
    }
}

/// A random UUID (RFC 9562 version 4).
fn random_uid() -> String {
    let bits: u128 = rand::rng().random();
    let bits = (bits & !(0xf << 76) & !(0x3 << 62)) | (0x4 << 76) | (0x2 << 62);
    let hex = format!("{bits:032x}");
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uids_are_version_4_and_differ() {
        let (one, two) = (random_uid(), random_uid());
        assert_ne!(one, two);
        assert_eq!((one.len(), one.as_bytes()[14], one.matches('-').count()), (36, b'4', 4));
        assert!(matches!(one.as_bytes()[19], b'8' | b'9' | b'a' | b'b'));
    }
}
