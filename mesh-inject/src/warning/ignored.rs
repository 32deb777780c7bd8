//! Annotations that are there and have no effect, or not the one that their author meant.

use serde_json::Value;

use super::Warning;
use crate::annotation as a;
use crate::overrides::Status;
use crate::pod;
use crate::validate::{is_port_list, parse_bool};
use crate::values::Values;

/// Say which of the pod's annotations were ignored, and why. Upstream ignores the same ones in silence.
pub(crate) fn ignored_annotations(
    original: &Value,
    merged: &Value,
    values: &Values,
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
            of_sidecar(key, value, original, values)
                .or_else(|| of_interception(key, value, original, captured))
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

fn of_sidecar(key: &str, value: &str, original: &Value, values: &Values) -> Option<&'static str> {
    let ignored = match key {
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
