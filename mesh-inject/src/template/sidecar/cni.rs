//! Annotations through which a CNI plugin learns what the init container would have done.

use serde_json::{Map, Value, json};

use super::init;
use crate::annotation as a;
use crate::template::TemplateContext;

pub(super) fn annotations(context: &TemplateContext<'_>, annotations: &mut Map<String, Value>) {
    let values = context.values;
    let mut set = |key: &str, value: &str| annotations.insert(key.to_owned(), json!(value));
    if values.cni_provider == "multus" {
        let existing = context.annotation(a::CNI_NETWORKS).unwrap_or_default();
        set(a::CNI_NETWORKS, &append_multus_network(existing, NETWORK));
    }
    set(a::INTERCEPTION_MODE, context.interception_mode());
    set(
        a::INCLUDE_OUTBOUND_RANGES,
        context.annotation_or(a::INCLUDE_OUTBOUND_RANGES, &values.include_ip_ranges),
    );
    let excluded = context.annotation_or(a::EXCLUDE_OUTBOUND_RANGES, &values.exclude_ip_ranges);
    if !excluded.is_empty() {
        set(a::EXCLUDE_OUTBOUND_RANGES, excluded);
    }
    set(
        a::INCLUDE_INBOUND_PORTS,
        context.annotation_or(a::INCLUDE_INBOUND_PORTS, &values.include_inbound_ports),
    );
    set(a::EXCLUDE_INBOUND_PORTS, &init::excluded_inbound(context));
    for (key, default) in [
        (a::INCLUDE_OUTBOUND_PORTS, &values.include_outbound_ports),
        (a::EXCLUDE_OUTBOUND_PORTS, &values.exclude_outbound_ports),
    ] {
        let annotated = context.annotation(key);
        if annotated.is_some() || !default.is_empty() {
            set(key, annotated.unwrap_or(default));
        }
    }
    for key in [a::KUBEVIRT_INTERFACES, a::EXCLUDE_INTERFACES, a::REROUTE_INTERFACES] {
        if let Some(value) = context.annotation(key).filter(|value| !value.is_empty()) {
            set(key, value);
        }
    }
}

/// What the plugin is asked for.
const NETWORK: &str = "default/istio-cni";

/// The value of Multus' annotation without what [`annotations`] put at its end; `None` if that is not there.
pub(crate) fn without_multus_network(value: &str) -> Option<String> {
    if value == NETWORK {
        return Some(String::new());
    }
    if let Some(rest) = value.strip_suffix(NETWORK).and_then(|rest| rest.strip_suffix(", ")) {
        return Some(rest.to_owned());
    }
    let entry = "{\"name\": \"istio-cni\", \"namespace\": \"default\"}";
    let end = value.rfind(']')?;
    let before = value[..end].strip_suffix(entry)?;
    let before = before.strip_suffix(", ").unwrap_or(before);
    Some(format!("{before}{}", &value[end..]))
}

/// Add a network to the value of Multus' annotation, in whichever of its two forms it is written.
fn append_multus_network(existing: &str, network: &str) -> String {
    if existing.is_empty() {
        return network.to_owned();
    }
    let Some(end) = existing.rfind(']') else {
        if existing.split(',').any(|item| item.trim() == network) {
            return existing.to_owned();
        }
        return format!("{existing}, {network}");
    };
    let Ok(Value::Array(items)) = serde_json::from_str::<Value>(existing) else { return existing.to_owned() };
    let (namespace, name) = network.split_once('/').unwrap_or(("", network));
    let field =
        |item: &Value, key: &str| item.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    if items.iter().any(|item| field(item, "name") == name && field(item, "namespace") == namespace) {
        return existing.to_owned();
    }
    let entry = if namespace.is_empty() {
        format!("{{\"name\": \"{name}\"}}")
    } else {
        format!("{{\"name\": \"{name}\", \"namespace\": \"{namespace}\"}}")
    };
    let separator = if items.is_empty() { "" } else { ", " };
    format!("{}{separator}{entry}{}", &existing[..end], &existing[end..])
}

#[cfg(test)]
mod tests {
    use super::{append_multus_network, without_multus_network};

    #[test]
    fn both_forms() {
        let add = |existing: &str| append_multus_network(existing, "default/istio-cni");
        assert_eq!(add(""), "default/istio-cni");
        assert_eq!(add("a, b"), "a, b, default/istio-cni");
        assert_eq!(add("a, default/istio-cni"), "a, default/istio-cni");
        assert_eq!(add("[]"), r#"[{"name": "istio-cni", "namespace": "default"}]"#);
        assert_eq!(
            add(r#"[{"name":"a"}]"#),
            r#"[{"name":"a"}, {"name": "istio-cni", "namespace": "default"}]"#
        );
        assert_eq!(add("[{]"), "[{]");
        for existing in ["", "a, b", "[]", r#"[{"name":"a"}]"#] {
            assert_eq!(without_multus_network(&add(existing)).as_deref(), Some(existing));
        }
        assert_eq!(without_multus_network("a, default/istio-cni2"), None);
        assert_eq!(without_multus_network("[{]"), None);
    }
}
