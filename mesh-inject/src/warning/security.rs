//! Whether the injected containers meet the Pod Security level that the namespace enforces.

use serde_json::Value;

use super::Warning;
use crate::annotation as a;
use crate::json::at;
use crate::pod;

/// Capabilities that the baseline level lets a container add.
const BASELINE: [&str; 13] = [
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];

/// One warning for each container that the templates bring and the level forbids. `template`: the names of what they bring.
pub(super) fn warn(
    original: &Value,
    merged: &Value,
    template: &Value,
    (namespace, level): (&str, &str),
    warnings: &mut Vec<Warning>,
) {
    let restricted = match level {
        "restricted" => true,
        "baseline" => false,
        _ => return,
    };
    for list in ["initContainers", "containers"] {
        let brought = pod::by_name(pod::list(template, list));
        let own = pod::by_name(pod::list(original, list));
        for container in pod::list(merged, list) {
            let name = pod::name_of(container);
            // A template may also change the application's own containers; their context is the application's business.
            let ours = brought.contains_key(name) && (name == a::PROXY_CONTAINER || !own.contains_key(name));
            let Some(problem) = ours.then(|| problem(merged, container, restricted)).flatten() else {
                continue;
            };
            let (namespace, level) = (namespace.to_owned(), level.to_owned());
            warnings.push(if name == a::INIT_CONTAINER {
                Warning::PodSecurity { namespace, level }
            } else {
                Warning::PodSecurityOf { namespace, level, container: name.to_owned(), problem }
            });
        }
    }
}

/// The first thing about a container that the level forbids.
fn problem(merged: &Value, container: &Value, restricted: bool) -> Option<String> {
    let field = |name: &str| at(container, ["securityContext", name]).filter(|value| !value.is_null());
    let or_pod = |name: &str| field(name).or_else(|| at(merged, ["spec", "securityContext", name]));
    let capabilities = |what: &str| {
        let list = field("capabilities").and_then(|all| all.get(what)).and_then(Value::as_array);
        list.into_iter().flatten().filter_map(Value::as_str)
    };
    if field("privileged") == Some(&Value::Bool(true)) {
        return Some("it is privileged".to_owned());
    }
    let allowed = |capability: &&str| {
        if restricted { *capability == "NET_BIND_SERVICE" } else { BASELINE.contains(capability) }
    };
    if let Some(capability) = capabilities("add").find(|capability| !allowed(capability)) {
        return Some(format!("it adds the capability {capability}"));
    }
    if !restricted {
        return None;
    }
    if or_pod("runAsUser").and_then(Value::as_i64) == Some(0) {
        return Some("it runs as user 0".to_owned());
    }
    if or_pod("runAsNonRoot") != Some(&Value::Bool(true)) {
        return Some("runAsNonRoot is not set".to_owned());
    }
    if field("allowPrivilegeEscalation") != Some(&Value::Bool(false)) {
        return Some("it does not refuse privilege escalation".to_owned());
    }
    if !capabilities("drop").any(|capability| capability == "ALL") {
        return Some("it does not drop all capabilities".to_owned());
    }
    let profile = or_pod("seccompProfile").and_then(|profile| profile.get("type")).and_then(Value::as_str);
    (!matches!(profile, Some("RuntimeDefault" | "Localhost"))).then(|| "it has no seccomp profile".to_owned())
}
