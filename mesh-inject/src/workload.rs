//! Which workload does a pod belong to?

use serde_json::Value;

use crate::pod::label;

/// The workload that a pod belongs to, as the mesh names it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Workload {
    /// Name, for example that of the Deployment.
    pub name: String,
    /// Namespace.
    pub namespace: String,
    /// API version, for example `apps/v1`.
    pub api_version: String,
    /// Kind, for example `Deployment`.
    pub kind: String,
}

impl Workload {
    /// Derive it from the pod's own metadata: the controlling owner, seen through ReplicaSets, ReplicationControllers
    /// and Jobs to the Deployment, Rollout, DeploymentConfig or CronJob behind them.
    #[must_use]
    pub fn of_pod(pod: &Value, namespace: &str) -> Self {
        let text = |value: &Value, field: &str| {
            value.get(field).and_then(Value::as_str).unwrap_or_default().to_owned()
        };
        let metadata = pod.get("metadata").unwrap_or(&Value::Null);
        let mut workload = Self {
            name: text(metadata, "name"),
            namespace: namespace.to_owned(),
            api_version: "v1".to_owned(),
            kind: "Pod".to_owned(),
        };
        let pod_name = workload.name.clone();
        let owners = metadata.get("ownerReferences").and_then(Value::as_array);
        let controller = owners
            .into_iter()
            .flatten()
            .find(|owner| owner.get("controller").and_then(Value::as_bool) == Some(true));
        if let Some(owner) = controller
            && !text(metadata, "generateName").is_empty()
        {
            workload.api_version = text(owner, "apiVersion");
            workload.kind = text(owner, "kind");
            workload.name = text(owner, "name");
            workload.see_through(pod);
        }
        if workload.name.is_empty() {
            workload.name = pod_name;
        }
        workload
    }

    fn see_through(&mut self, pod: &Value) {
        match self.kind.as_str() {
            "ReplicaSet" => {
                let template = label(pod, "pod-template-hash").filter(|hash| self.name.ends_with(*hash));
                if let Some(hash) = template {
                    let name = self.name.strip_suffix(hash).unwrap_or(&self.name);
                    self.name = name.strip_suffix('-').unwrap_or(name).to_owned();
                    "Deployment".clone_into(&mut self.kind);
                } else if let Some(hash) =
                    label(pod, "rollouts-pod-template-hash").filter(|hash| self.name.ends_with(*hash))
                {
                    let name = self.name.strip_suffix(hash).unwrap_or(&self.name);
                    self.name = name.strip_suffix('-').unwrap_or(name).to_owned();
                    "Rollout".clone_into(&mut self.kind);
                    "v1alpha1".clone_into(&mut self.api_version);
                }
            }
            "ReplicationController" => {
                if let Some(name) = label(pod, "deploymentconfig").filter(|name| !name.is_empty()) {
                    self.name = name.to_owned();
                    "DeploymentConfig".clone_into(&mut self.kind);
                }
            }
            "Job" => {
                let cron = self.name.rsplit_once('-').filter(|(stem, time)| {
                    !stem.is_empty()
                        && (8..=10).contains(&time.len())
                        && time.bytes().all(|b| b.is_ascii_digit())
                });
                if let Some((stem, _)) = cron {
                    self.name = stem.to_owned();
                    "CronJob".clone_into(&mut self.kind);
                    "batch/v1".clone_into(&mut self.api_version);
                }
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(kind: &str, owner: &str, labels: Value) -> Workload {
        Workload::of_pod(
            &json!({"metadata":{"generateName":"x-","labels":labels,
                "ownerReferences":[{"kind":kind,"name":owner,"apiVersion":"apps/v1","controller":true}]}}),
            "ns",
        )
    }

    #[test]
    fn owners_are_seen_through() {
        let named = |w: &Workload| (w.kind.clone(), w.name.clone(), w.api_version.clone());
        let expect = |a: &str, b: &str, c: &str| (a.to_owned(), b.to_owned(), c.to_owned());
        assert_eq!(
            named(&pod("ReplicaSet", "web-abc12", json!({"pod-template-hash":"abc12"}))),
            expect("Deployment", "web", "apps/v1")
        );
        assert_eq!(
            named(&pod("ReplicaSet", "web-abc12", json!({"rollouts-pod-template-hash":"abc12"}))),
            expect("Rollout", "web", "v1alpha1")
        );
        assert_eq!(named(&pod("ReplicaSet", "web", json!({}))), expect("ReplicaSet", "web", "apps/v1"));
        assert_eq!(
            named(&pod("Job", "nightly-28381920", json!({}))),
            expect("CronJob", "nightly", "batch/v1")
        );
        assert_eq!(named(&pod("Job", "nightly-1", json!({}))), expect("Job", "nightly-1", "apps/v1"));
        assert_eq!(
            named(&pod("ReplicationController", "dc-1", json!({"deploymentconfig":"dc"}))),
            expect("DeploymentConfig", "dc", "apps/v1")
        );
        assert_eq!(Workload::of_pod(&json!({"metadata":{"name":"solo"}}), "ns").name, "solo");
    }
}
