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
        for (name, value) in entries {
            let entry = json!({"name": name, "value": value});
            match env.iter_mut().find(|known| pod::name_of(known) == name) {
                Some(known) => *known = entry,
                None => env.push(entry),
            }
        }
    }
}
