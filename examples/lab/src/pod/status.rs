//! What is known about a pod, and how it looks as `status` of a Kubernetes object.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// A pod's state.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct PodStatus {
    /// Kubernetes' phase.
    pub(crate) phase: Phase,
    /// Whether it takes traffic.
    pub(crate) ready: bool,
    /// Why it does not run, when it does not.
    pub(crate) message: Option<String>,
    /// All containers by name.
    pub(crate) containers: BTreeMap<String, ContainerStatus>,
}

/// Kubernetes' pod phases.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Phase {
    #[default]
    Pending,
    Running,
    Succeeded,
    Failed,
}

/// A container's place in the pod.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Kind {
    #[default]
    App,
    Init,
    Sidecar,
}

/// A container's state.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct ContainerStatus {
    pub(crate) kind: Kind,
    /// The main process in the lab's PID namespace, while it runs.
    pub(crate) pid: Option<i32>,
    /// Whether the postStart hook is done.
    pub(crate) hooked: bool,
    /// Whether the startup probe has succeeded.
    pub(crate) started: bool,
    /// Whether the readiness probe succeeds.
    pub(crate) ready: bool,
    /// How often it was started again.
    pub(crate) restarts: u32,
    /// How it ended last.
    pub(crate) exit_code: Option<i32>,
    /// Why it waits or what the last failed probe said.
    pub(crate) reason: Option<String>,
}

impl PodStatus {
    /// Takes readiness from the containers: everything that runs for the pod's whole life must be ready.
    pub(crate) fn settle(&mut self) {
        self.ready = self.phase == Phase::Running
            && self.containers.values().all(|container| container.kind == Kind::Init || container.ready);
    }

    /// One line for people.
    pub(crate) fn summary(&self) -> String {
        let waiting =
            self.containers.iter().filter(|(_, container)| !container.ready && container.kind != Kind::Init);
        let mut parts: Vec<String> = self.message.iter().cloned().collect();
        parts.extend(waiting.map(|(name, container)| match (&container.reason, container.exit_code) {
            (Some(reason), _) => format!("{name}: {reason}"),
            (None, Some(code)) => format!("{name}: exit code {code}"),
            (None, None) => format!("{name}: not ready"),
        }));
        parts.join("; ")
    }

    /// The `status` of the Pod object.
    pub(crate) fn to_json(&self, ip: Ipv4Addr, node: Ipv4Addr, start_time: &str) -> Value {
        let condition =
            |kind: &str, holds: bool| json!({ "type": kind, "status": if holds { "True" } else { "False" } });
        let list = |init: bool| -> Vec<Value> {
            let containers =
                self.containers.iter().filter(|(_, container)| (container.kind != Kind::App) == init);
            containers.map(|(name, container)| container.to_json(name)).collect()
        };
        let initialized = self.phase != Phase::Pending;
        json!({
            "phase": self.phase,
            "podIP": ip.to_string(),
            "podIPs": [{ "ip": ip.to_string() }],
            "hostIP": node.to_string(),
            "hostIPs": [{ "ip": node.to_string() }],
            "startTime": start_time,
            "conditions": [
                condition("PodScheduled", true),
                condition("Initialized", initialized),
                condition("ContainersReady", self.ready),
                condition("Ready", self.ready),
            ],
            "initContainerStatuses": list(true),
            "containerStatuses": list(false),
        })
    }
}

impl ContainerStatus {
    fn to_json(&self, name: &str) -> Value {
        let state = match (self.pid, self.exit_code) {
            (Some(_), _) => json!({ "running": {} }),
            (None, Some(code)) => json!({ "terminated": { "exitCode": code } }),
            (None, None) => json!({ "waiting": { "reason": "ContainerCreating" } }),
        };
        json!({
            "name": name,
            "ready": self.ready,
            "started": self.started,
            "restartCount": self.restarts,
            "state": state,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_is_ready_when_everything_that_stays_is() {
        let mut status = PodStatus { phase: Phase::Running, ..PodStatus::default() };
        status
            .containers
            .insert(String::from("istio-init"), ContainerStatus { kind: Kind::Init, ..Default::default() });
        status.containers.insert(
            String::from("istio-proxy"),
            ContainerStatus { kind: Kind::Sidecar, ready: true, ..Default::default() },
        );
        status.containers.insert(String::from("app"), ContainerStatus::default());
        status.settle();
        assert!(!status.ready);
        assert_eq!(status.summary(), "app: not ready");
        if let Some(app) = status.containers.get_mut("app") {
            app.ready = true;
        }
        status.settle();
        assert!(status.ready);
        let json =
            status.to_json(Ipv4Addr::new(10, 0, 0, 2), Ipv4Addr::new(10, 0, 0, 1), "2026-01-01T00:00:00Z");
        assert_eq!(json["phase"], "Running");
        assert_eq!(json["conditions"][3], serde_json::json!({ "type": "Ready", "status": "True" }));
        assert_eq!(json["initContainerStatuses"].as_array().map(Vec::len), Some(2));
    }
}
