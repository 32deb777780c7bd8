//! YAML overlays: `"*"` as the name of a container.

use serde_json::Value;

use crate::annotation::PROXY_CONTAINER;
use crate::pod;

/// Replace every container named `"*"` by one for each application container.
pub(super) fn expand(overlay: &Value, pod_in: &Value) -> Value {
    let mut result = overlay.clone();
    for list in ["containers", "initContainers"] {
        if !pod::list(&result, list).iter().any(|item| pod::name_of(item) == "*") {
            continue;
        }
        let items = std::mem::take(pod::list_mut(&mut result, list));
        let mut expanded = Vec::with_capacity(items.len());
        for item in items {
            if pod::name_of(&item) != "*" {
                expanded.push(item);
                continue;
            }
            for container in pod::list(pod_in, list) {
                let name = pod::name_of(container);
                if name != PROXY_CONTAINER {
                    let mut copy = item.clone();
                    pod::as_map(&mut copy).insert("name".to_owned(), Value::from(name));
                    expanded.push(copy);
                }
            }
        }
        *pod::list_mut(&mut result, list) = expanded;
    }
    result
}
