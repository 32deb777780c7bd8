//! What a person should know about a pod that is injected all the same.

mod ignored;
mod security;

use std::fmt;

use serde::Serialize;
use serde_json::Value;

use crate::annotation as a;
use crate::cluster::Cluster;
use crate::json::at;
use crate::pod;
use crate::workload::Workload;

pub(crate) use ignored::{Used, ignored_annotations};

/// Something that will probably surprise the owner of the pod. Shown by `kubectl` when the pod is created.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase", tag = "warning")]
#[non_exhaustive]
pub enum Warning {
    /// An annotation or part of it has no effect.
    IgnoredAnnotation {
        /// The annotation.
        annotation: String,
        /// Its value.
        value: String,
        /// Why it has no effect.
        message: String,
    },
    /// A note of the decision: something was ignored on the way.
    Decision {
        /// What.
        message: String,
    },
    /// A Job whose sidecar is an ordinary container never completes.
    JobWithoutNativeSidecar {
        /// Kind of the owner.
        kind: String,
    },
    /// A container runs as the proxy's user, so its traffic bypasses the proxy.
    ProxyUser {
        /// Path of the field.
        field: String,
        /// The user.
        user: i64,
    },
    /// A container asks for a port of the node.
    HostPort {
        /// Name of the container.
        container: String,
        /// The port.
        port: i64,
    },
    /// A container uses a port that the proxy listens on.
    ProxyPort {
        /// Name of the container.
        container: String,
        /// The port.
        port: i64,
    },
    /// The namespace enforces a Pod Security level that the init container cannot meet.
    PodSecurity {
        /// The namespace.
        namespace: String,
        /// The level.
        level: String,
    },
    /// Another injected container does not meet the Pod Security level that the namespace enforces.
    PodSecurityOf {
        /// The namespace.
        namespace: String,
        /// The level.
        level: String,
        /// Name of the container.
        container: String,
        /// What the level forbids about it.
        problem: String,
    },
    /// The resolver of the pod is not the cluster's, so names of services may not resolve.
    DnsPolicy {
        /// The policy.
        policy: String,
    },
    /// A probe names a port that its container does not declare; it is left as it is and will fail.
    UnknownProbePort {
        /// Name of the container.
        container: String,
        /// The probe.
        probe: String,
        /// Name of the port.
        port: String,
    },
    /// There is no agent that could answer probes, so they go to the application itself.
    ProbesLeftAlone {
        /// Names of the containers.
        containers: Vec<String>,
        /// The status port that was asked for.
        port: i64,
    },
    /// In the classic layout, init containers run before the sidecar: without a network that works through the mesh.
    InitContainersOutsideMesh {
        /// Names of the containers.
        containers: Vec<String>,
    },
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::IgnoredAnnotation { annotation, value, message } => {
                write!(f, "annotation {annotation}={value:.200}: {message}")
            }
            Self::Decision { message } => f.write_str(message),
            Self::JobWithoutNativeSidecar { kind } => write!(
                f,
                "this {kind} will not complete: its sidecar is an ordinary container that keeps running; use native sidecars (annotation {}=true) or POST /quitquitquit to 127.0.0.1:15020 at the end",
                a::NATIVE_SIDECAR
            ),
            Self::ProxyUser { field, user } => write!(
                f,
                "{field} is {user}, the user of the sidecar; traffic of that user bypasses the mesh: use another"
            ),
            Self::HostPort { container, port } => write!(
                f,
                "container {container}: hostPort {port} is reached through the node and passes the sidecar as inbound traffic without a mesh identity"
            ),
            Self::ProxyPort { container, port } => {
                write!(
                    f,
                    "container {container}: port {port} belongs to the sidecar; one of the two will fail to listen"
                )
            }
            Self::PodSecurity { namespace, level } => write!(
                f,
                "namespace {namespace} enforces Pod Security level {level}, which forbids the capabilities of {}; the pod will be rejected unless rules are written by a CNI plugin",
                a::INIT_CONTAINER
            ),
            Self::PodSecurityOf { namespace, level, container, problem } => write!(
                f,
                "namespace {namespace} enforces Pod Security level {level}, which container {container} does not meet ({problem}); the pod will be rejected"
            ),
            Self::DnsPolicy { policy } => {
                write!(
                    f,
                    "spec.dnsPolicy is {policy}: service names may not resolve; ClusterFirst is expected"
                )
            }
            Self::UnknownProbePort { container, probe, port } => {
                write!(
                    f,
                    "container {container}: {probe} names port {port:?}, which the container does not declare; it is not rewritten"
                )
            }
            Self::ProbesLeftAlone { containers, port } => write!(
                f,
                "the status port is {port}, where no agent answers: probes of {} are not rewritten and need a port that accepts plain traffic",
                containers.join(", ")
            ),
            Self::InitContainersOutsideMesh { containers } => write!(
                f,
                "init containers {} run before the sidecar and without the mesh; native sidecars avoid that",
                containers.join(", ")
            ),
        }
    }
}

/// Look at the original pod and the injected one for what will surprise people. `template`: the names of what the templates
/// brought.
pub(crate) fn inspect(
    original: &Value,
    merged: &Value,
    template: &Value,
    namespace: &str,
    workload: &Workload,
    cluster: &Cluster,
    warnings: &mut Vec<Warning>,
) {
    let native = pod::find(pod::init_containers(merged), a::PROXY_CONTAINER).is_some();
    let classic = pod::find(pod::containers(merged), a::PROXY_CONTAINER).is_some();
    let redirected = pod::find(pod::init_containers(merged), a::INIT_CONTAINER).is_some();
    let captured = redirected || pod::find(pod::init_containers(merged), a::VALIDATION_CONTAINER).is_some();
    if classic && matches!(workload.kind.as_str(), "Job" | "CronJob") {
        warnings.push(Warning::JobWithoutNativeSidecar { kind: workload.kind.clone() });
    }
    if captured {
        warnings.extend(user_clashes(original));
    }
    if native || classic {
        ports(original, warnings);
        let policy = at(original, ["spec", "dnsPolicy"]).and_then(Value::as_str).unwrap_or_default();
        if !matches!(policy, "" | "ClusterFirst") {
            warnings.push(Warning::DnsPolicy { policy: policy.to_owned() });
        }
    }
    if classic && redirected {
        let app = |c: &&Value| !matches!(pod::name_of(c), a::INIT_CONTAINER | a::VALIDATION_CONTAINER);
        let outside: Vec<String> =
            pod::init_containers(original).iter().filter(app).map(|c| pod::name_of(c).to_owned()).collect();
        if !outside.is_empty() {
            warnings.push(Warning::InitContainersOutsideMesh { containers: outside });
        }
    }
    let level =
        cluster.namespaces.get(namespace).and_then(|object| pod::label(object, a::POD_SECURITY_ENFORCE));
    if let Some(level) = level {
        security::warn(original, merged, template, (namespace, level), warnings);
    }
}

/// Containers of the application that run as the proxy's user.
pub(crate) fn user_clashes(original: &Value) -> Vec<Warning> {
    let mut clashes = Vec::new();
    let mut of_pod = false;
    let pod_user = at(original, ["spec", "securityContext", "runAsUser"]).and_then(Value::as_i64);
    for list in ["initContainers", "containers"] {
        for (i, container) in pod::list(original, list).iter().enumerate() {
            let injected = [a::PROXY_CONTAINER, a::INIT_CONTAINER, a::VALIDATION_CONTAINER];
            if injected.contains(&pod::name_of(container)) {
                continue;
            }
            let own = at(container, ["securityContext", "runAsUser"]).and_then(Value::as_i64);
            if own.or(pod_user) != Some(a::PROXY_ID) {
                continue;
            }
            let field = match own {
                Some(_) => format!("spec.{list}[{i}].securityContext.runAsUser"),
                // Said once for all containers that inherit it.
                None if of_pod => continue,
                None => {
                    of_pod = true;
                    "spec.securityContext.runAsUser".to_owned()
                }
            };
            clashes.push(Warning::ProxyUser { field, user: a::PROXY_ID });
        }
    }
    clashes
}

fn ports(original: &Value, warnings: &mut Vec<Warning>) {
    const OWN: [i64; 8] = [15000, 15001, 15004, 15006, 15008, 15020, 15021, 15090];
    for container in pod::containers(original) {
        let name = pod::name_of(container);
        if name == a::PROXY_CONTAINER {
            continue;
        }
        for port in container.get("ports").and_then(Value::as_array).into_iter().flatten() {
            if let Some(port) = port.get("hostPort").and_then(Value::as_i64).filter(|port| *port != 0) {
                warnings.push(Warning::HostPort { container: name.to_owned(), port });
            }
            if let Some(port) =
                port.get("containerPort").and_then(Value::as_i64).filter(|port| OWN.contains(port))
            {
                warnings.push(Warning::ProxyPort { container: name.to_owned(), port });
            }
        }
    }
}
