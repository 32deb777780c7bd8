//! Where injected containers stand.

use serde_json::Value;

use crate::annotation as a;
use crate::pod;

/// Put the sidecar last (first when applications wait for it) and the init containers where they must run.
pub(crate) fn reorder(merged: &mut Value, hold: bool) {
    let containers = pod::containers(merged);
    if pod::find(containers, a::PROXY_CONTAINER).is_some() {
        move_to(pod::list_mut(merged, "containers"), a::PROXY_CONTAINER, hold);
    }
    if pod::init_containers(merged).is_empty() {
        return;
    }
    let native = pod::find(pod::init_containers(merged), a::PROXY_CONTAINER).is_some();
    let list = pod::list_mut(merged, "initContainers");
    if native {
        for name in [a::CORE_DUMP_CONTAINER, a::PROXY_CONTAINER, a::VALIDATION_CONTAINER, a::INIT_CONTAINER] {
            move_to(list, name, true);
        }
    } else {
        move_to(list, a::VALIDATION_CONTAINER, true);
        move_to(list, a::INIT_CONTAINER, false);
        move_to(list, a::CORE_DUMP_CONTAINER, false);
    }
}

fn move_to(list: &mut Vec<Value>, name: &str, first: bool) {
    if let Some(at) = list.iter().position(|item| pod::name_of(item) == name) {
        let item = list.remove(at);
        list.insert(if first { 0 } else { list.len() }, item);
    }
}
