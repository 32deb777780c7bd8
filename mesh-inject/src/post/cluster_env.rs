//! Environment that comes from the webhook's own address.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::pod;

/// Put these entries at the end of the sidecar's environment, instead of any of the same name. On a pod that was injected
/// before, entries that are there keep their place, so that a second injection changes nothing.
pub(crate) fn update_cluster_env(
    merged: &mut Value,
    entries: &BTreeMap<String, String>,
    injected_before: bool,
) {
    if entries.is_empty() {
        return;
    }
    if let Some(proxy) = pod::sidecar_mut(merged) {
        let env = pod::env_mut(proxy);
        if !injected_before {
            env.retain(|entry| !entries.contains_key(pod::name_of(entry)));
        }
        let mut missing: BTreeMap<&str, &str> =
            entries.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        for known in env.iter_mut() {
            if let Some((name, value)) = missing.remove_entry(pod::name_of(known)) {
                *known = json!({"name": name, "value": value});
            }
        }
        env.extend(missing.into_iter().map(|(name, value)| json!({"name": name, "value": value})));
    }
}
