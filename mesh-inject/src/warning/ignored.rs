//! Annotations that are there and have no effect, or not the one that their author meant.

use serde_json::Value;

use super::Warning;
use crate::annotation as a;
use crate::overrides::Status;
use crate::pod;
use crate::template::resource_attributes_asked;
use crate::validate::{is_port_list, parse_bool};
use crate::values::Values;

/// What decided about the pod's annotations.
pub(crate) struct Used<'a> {
    pub(crate) values: &'a Values,
    pub(crate) mesh: &'a Value,
    /// Names of the templates.
    pub(crate) templates: &'a [String],
    /// Whether one of them is not built in; nobody knows what it reads.
    pub(crate) foreign: bool,
}

impl Used<'_> {
    /// Whether only templates were used that do not read this annotation.
    fn unread(&self, key: &str) -> bool {
        let reads = |template: &String| match template.as_str() {
            "gateway" => !NOT_IN_GATEWAY.contains(&key) && !NOT_IN_GRPC.contains(&key),
            "grpc-agent" => !NOT_IN_GRPC.contains(&key),
            "grpc-simple" => false,
            _ => true,
        };
        !self.foreign && !self.templates.iter().any(reads)
    }
}

/// What neither the `gateway` nor the `grpc-agent` template reads.
const NOT_IN_GRPC: [&str; 8] = [
    a::USER_VOLUME,
    a::USER_VOLUME_MOUNT,
    a::CAP_NET_BIND_SERVICE,
    a::NATIVE_SIDECAR,
    a::DATADOG_ENV,
    a::OTEL_NAMESPACE,
    a::OTEL_VERSION,
    a::OTEL_INSTANCE,
];

/// What the `gateway` template does not read in addition.
const NOT_IN_GATEWAY: [&str; 7] = [
    a::PROXY_CPU,
    a::PROXY_MEMORY,
    a::PROXY_CPU_LIMIT,
    a::PROXY_MEMORY_LIMIT,
    a::READINESS_INITIAL_DELAY,
    a::READINESS_PERIOD,
    a::READINESS_FAILURES,
];

/// Say which of the pod's annotations were ignored, and why. Upstream ignores the same ones in silence.
pub(crate) fn ignored_annotations(
    original: &Value,
    merged: &Value,
    used: &Used<'_>,
    warnings: &mut Vec<Warning>,
) {
    let annotations = original.get("metadata").and_then(|metadata| metadata.get("annotations"));
    let Some(annotations) = annotations.and_then(Value::as_object) else { return };
    let has_sidecar = pod::sidecar(merged).is_some();
    let captured = [a::INIT_CONTAINER, a::VALIDATION_CONTAINER]
        .iter()
        .any(|name| pod::find(pod::init_containers(merged), name).is_some());
    for (key, value) in annotations {
        let Some(value) = value.as_str() else { continue };
        let message = if key == a::STATUS {
            unreadable_status(original)
        } else if !has_sidecar {
            None
        } else {
            of_sidecar(key, value, original, used).or_else(|| of_interception(key, value, original, captured))
        };
        if let Some(message) = message {
            warnings.push(Warning::IgnoredAnnotation {
                annotation: key.clone(),
                value: value.to_owned(),
                message: message.to_owned(),
            });
        }
    }
}

fn unreadable_status(original: &Value) -> Option<&'static str> {
    Status::of(original).is_none().then_some("cannot be read; the pod is taken as not injected yet")
}

fn of_sidecar(key: &str, value: &str, original: &Value, used: &Used<'_>) -> Option<&'static str> {
    let values = used.values;
    if used.unread(key) {
        return Some("the templates of this pod do not read it, so it has no effect");
    }
    let ignored = match key {
        a::PROXY_IMAGE_TYPE
            if pod::annotation(original, a::PROXY_IMAGE).is_some_and(|image| image.contains('/')) =>
        {
            "sidecar.istio.io/proxyImage names a full image and wins"
        }
        a::DATADOG_ENV if values.tracer != "datadog" => {
            "the mesh's tracer is not datadog, so it has no effect"
        }
        a::OTEL_NAMESPACE | a::OTEL_VERSION | a::OTEL_INSTANCE if !resource_attributes_asked(used.mesh) => {
            "no extension provider of the mesh asks for resource attributes, so it has no effect"
        }
        a::PROXY_IMAGE if !value.contains('/') => "not a full image (no '/'), so it has no effect",
        a::NATIVE_SIDECAR if !matches!(value, "" | "true" | "false") => {
            "neither \"true\" nor \"false\"; it is read as \"true\""
        }
        a::REWRITE_PROBES if parse_bool(value).is_none() => "not a boolean, so it has no effect",
        a::CAP_NET_BIND_SERVICE if !matches!(value, "true" | "false") => {
            "neither \"true\" nor \"false\"; it is read as \"false\""
        }
        a::READINESS_INITIAL_DELAY | a::READINESS_PERIOD | a::READINESS_FAILURES
            if pod::annotation(original, a::STATUS_PORT).unwrap_or(&values.status_port) == "0" =>
        {
            "the status port is 0, so the sidecar has no probes"
        }
        a::CNI_NETWORKS if values.cni_enabled && values.cni_provider == "multus" && broken_list(value) => {
            "not a JSON list; the network of the CNI plugin is not added"
        }
        _ => return None,
    };
    Some(ignored)
}

fn of_interception(key: &str, value: &str, original: &Value, captured: bool) -> Option<&'static str> {
    if key == a::KUBEVIRT_INTERFACES && pod::annotation(original, a::REROUTE_INTERFACES).is_some() {
        return Some("istio.io/reroute-virtual-interfaces is set as well and wins");
    }
    if key == a::INCLUDE_OUTBOUND_PORTS && !is_port_list(value) {
        return Some("not a list of ports; it is passed on as it is, and the rules will be refused");
    }
    let about_traffic = key.starts_with("traffic.sidecar.istio.io/") || key == a::REROUTE_INTERFACES;
    let switched_off = pod::annotation(original, a::INTERCEPTION_MODE) == Some("NONE");
    ((about_traffic || (key == a::INTERCEPTION_MODE && !switched_off)) && !captured)
        .then_some("nothing redirects this pod's traffic, so it has no effect")
}

/// Meant as a JSON list, and not one.
fn broken_list(value: &str) -> bool {
    value.contains(']') && !matches!(serde_json::from_str(value), Ok(Value::Array(_)))
}
