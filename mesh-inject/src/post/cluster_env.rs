//! Environment that comes from the webhook's own address.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::pod;

/// Put these entries at the end of the sidecar's environment, in the place of any of the same name.
pub(crate) fn update_cluster_env(merged: &mut Value, entries: &BTreeMap<String, String>) {
    if entries.is_empty() {
        return;
    }
    if let Some(proxy) = pod::sidecar_mut(merged) {
        let env = pod::env_mut(proxy);
        env.retain(|entry| !entries.contains_key(pod::name_of(entry)));
        env.extend(entries.iter().map(|(name, value)| json!({"name": name, "value": value})));
    }
}
