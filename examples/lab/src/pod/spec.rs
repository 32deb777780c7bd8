//! The fields of a Pod that this kubelet honours; others are left alone in the object.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use crate::error::{LabError, Result};

/// `spec`.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PodSpec {
    #[serde(default)]
    pub(crate) init_containers: Vec<ContainerSpec>,
    pub(crate) containers: Vec<ContainerSpec>,
    #[serde(default)]
    pub(crate) volumes: Vec<Volume>,
    #[serde(default)]
    pub(crate) restart_policy: RestartPolicy,
    pub(crate) termination_grace_period_seconds: Option<u64>,
    pub(crate) service_account_name: Option<String>,
    #[serde(default)]
    pub(crate) security_context: SecurityContext,
}

/// When a container that ended is started again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
pub(crate) enum RestartPolicy {
    #[default]
    Always,
    OnFailure,
    Never,
}

/// One container.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ContainerSpec {
    pub(crate) name: String,
    #[serde(default)]
    pub(crate) image: String,
    #[serde(default)]
    pub(crate) command: Vec<String>,
    #[serde(default)]
    pub(crate) args: Vec<String>,
    pub(crate) working_dir: Option<String>,
    #[serde(default)]
    pub(crate) env: Vec<EnvVar>,
    #[serde(default)]
    pub(crate) env_from: Vec<EnvFrom>,
    #[serde(default)]
    pub(crate) ports: Vec<ContainerPort>,
    #[serde(default)]
    pub(crate) resources: Resources,
    #[serde(default)]
    pub(crate) volume_mounts: Vec<VolumeMount>,
    pub(crate) startup_probe: Option<Probe>,
    pub(crate) readiness_probe: Option<Probe>,
    pub(crate) liveness_probe: Option<Probe>,
    #[serde(default)]
    pub(crate) lifecycle: Lifecycle,
    #[serde(default)]
    pub(crate) security_context: SecurityContext,
    /// `Always` makes an init container a native sidecar.
    pub(crate) restart_policy: Option<RestartPolicy>,
}

/// One variable.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct EnvVar {
    pub(crate) name: String,
    pub(crate) value: Option<String>,
    pub(crate) value_from: Option<EnvSource>,
}

/// Where a variable's value comes from.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct EnvSource {
    pub(crate) field_ref: Option<FieldRef>,
    pub(crate) resource_field_ref: Option<ResourceFieldRef>,
    pub(crate) config_map_key_ref: Option<KeyRef>,
    pub(crate) secret_key_ref: Option<KeyRef>,
}

/// All keys of an object as variables.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct EnvFrom {
    #[serde(default)]
    pub(crate) prefix: String,
    pub(crate) config_map_ref: Option<KeyRef>,
    pub(crate) secret_ref: Option<KeyRef>,
}

/// A field of the pod.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct FieldRef {
    pub(crate) field_path: String,
}

/// A resource of a container.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ResourceFieldRef {
    pub(crate) container_name: Option<String>,
    pub(crate) resource: String,
    pub(crate) divisor: Option<Value>,
}

/// A key of a ConfigMap or Secret.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct KeyRef {
    pub(crate) name: String,
    #[serde(default)]
    pub(crate) key: String,
    #[serde(default)]
    pub(crate) optional: bool,
}

/// A named port.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ContainerPort {
    pub(crate) name: Option<String>,
    pub(crate) container_port: u16,
}

/// Quantities by resource name.
#[derive(Debug, Clone, Default, Deserialize)]
pub(crate) struct Resources {
    #[serde(default)]
    pub(crate) limits: BTreeMap<String, Value>,
    #[serde(default)]
    pub(crate) requests: BTreeMap<String, Value>,
}

/// Where a volume appears.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct VolumeMount {
    pub(crate) name: String,
    pub(crate) mount_path: String,
    #[serde(default)]
    pub(crate) sub_path: String,
    #[serde(default)]
    pub(crate) read_only: bool,
}

/// A volume; no source at all is an `emptyDir`, as the API server would default it.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Volume {
    pub(crate) name: String,
    #[serde(flatten)]
    pub(crate) source: BTreeMap<String, Value>,
}

/// Pod and container level together; a container's own value wins.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct SecurityContext {
    pub(crate) run_as_user: Option<u32>,
    pub(crate) run_as_group: Option<u32>,
    pub(crate) run_as_non_root: Option<bool>,
    #[serde(default)]
    pub(crate) supplemental_groups: Vec<u32>,
    pub(crate) fs_group: Option<u32>,
    #[serde(default)]
    pub(crate) capabilities: Capabilities,
    #[serde(default)]
    pub(crate) privileged: bool,
    #[serde(default)]
    pub(crate) read_only_root_filesystem: bool,
    pub(crate) allow_privilege_escalation: Option<bool>,
}

/// Changes to the default capability set.
#[derive(Debug, Clone, Default, Deserialize)]
pub(crate) struct Capabilities {
    #[serde(default)]
    pub(crate) add: Vec<String>,
    #[serde(default)]
    pub(crate) drop: Vec<String>,
}

/// Hooks.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Lifecycle {
    pub(crate) post_start: Option<Handler>,
    pub(crate) pre_stop: Option<Handler>,
}

/// What a probe or hook does.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Handler {
    pub(crate) exec: Option<ExecAction>,
    pub(crate) http_get: Option<HttpGet>,
    pub(crate) tcp_socket: Option<TcpSocket>,
    pub(crate) sleep: Option<SleepAction>,
}

/// A command in the container.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct ExecAction {
    #[serde(default)]
    pub(crate) command: Vec<String>,
}

/// A wait.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct SleepAction {
    pub(crate) seconds: u64,
}

/// An HTTP request to the pod.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct HttpGet {
    #[serde(default)]
    pub(crate) path: String,
    pub(crate) port: Port,
    pub(crate) host: Option<String>,
    pub(crate) scheme: Option<String>,
    #[serde(default)]
    pub(crate) http_headers: Vec<HttpHeader>,
}

/// A header of a probe.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct HttpHeader {
    pub(crate) name: String,
    #[serde(default)]
    pub(crate) value: String,
}

/// A connection to the pod.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct TcpSocket {
    pub(crate) port: Port,
    pub(crate) host: Option<String>,
}

/// A port by number or by name.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub(crate) enum Port {
    Number(u16),
    Name(String),
}

/// A probe; zero or absent times take Kubernetes' defaults.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Probe {
    #[serde(flatten)]
    pub(crate) handler: Handler,
    #[serde(default)]
    pub(crate) initial_delay_seconds: u64,
    #[serde(default)]
    pub(crate) period_seconds: u64,
    #[serde(default)]
    pub(crate) timeout_seconds: u64,
    #[serde(default)]
    pub(crate) success_threshold: u32,
    #[serde(default)]
    pub(crate) failure_threshold: u32,
}

impl PodSpec {
    /// Reads `spec` of a Pod object.
    pub(crate) fn parse(object: &str, pod: &Value) -> Result<Self> {
        let spec = pod.get("spec").cloned().unwrap_or(Value::Null);
        serde_json::from_value(spec).map_err(|error| LabError::Object {
            object: object.to_owned(),
            field: String::from("spec"),
            message: error.to_string(),
        })
    }

    /// The service account, `default` when none is named.
    pub(crate) fn service_account(&self) -> &str {
        self.service_account_name.as_deref().unwrap_or("default")
    }

    /// Seconds between asking a container to stop and killing it.
    pub(crate) fn grace_seconds(&self) -> u64 {
        self.termination_grace_period_seconds.unwrap_or(30)
    }
}

impl ContainerSpec {
    /// Whether this init container runs beside the others.
    pub(crate) fn is_sidecar(&self) -> bool {
        self.restart_policy == Some(RestartPolicy::Always)
    }

    /// The number of a port.
    pub(crate) fn port(&self, port: &Port) -> Option<u16> {
        match port {
            Port::Number(number) => Some(*number),
            Port::Name(name) => self
                .ports
                .iter()
                .find(|port| port.name.as_deref() == Some(name))
                .map(|port| port.container_port)
                .or_else(|| name.parse().ok()),
        }
    }
}
