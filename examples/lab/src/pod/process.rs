//! From a container's spec to the process that it is.

use std::collections::BTreeMap;

use super::environment::expand;
use super::spec::{ContainerSpec, PodSpec};
use crate::error::{LabError, Result};
use crate::sandbox::{DEFAULT_CAPABILITIES, Process};

/// Images that map to a program of the multi-call binary.
const IMAGES: [&str; 4] = ["mesh-init", "mesh-sidecar", "mesh-control", "mesh-echo"];

/// The process of `container`, with `env` resolved already.
pub(crate) fn of(
    object: &str,
    pod: &PodSpec,
    container: &ContainerSpec,
    env: BTreeMap<String, String>,
) -> Result<Process> {
    let bad = |field: &str, message: String| LabError::Object {
        object: object.to_owned(),
        field: format!("containers[{}].{field}", container.name),
        message,
    };
    let mut argv: Vec<String> = container.command.iter().map(|word| expand(word, &env)).collect();
    if argv.is_empty() {
        let program = program(&container.image).ok_or_else(|| {
            bad(
                "image",
                format!("{:?} has no program here; set `command` to one of the machine's", container.image),
            )
        })?;
        // Not by the program's own name: a role that starts itself again finds these words in its command line.
        argv.extend(["mesh-lab", "role", program].map(String::from));
    }
    argv.extend(container.args.iter().map(|word| expand(word, &env)));
    let (own, shared) = (&container.security_context, &pod.security_context);
    let uid = own.run_as_user.or(shared.run_as_user).unwrap_or(0);
    if uid == 0 && own.run_as_non_root.or(shared.run_as_non_root) == Some(true) {
        return Err(bad("securityContext.runAsNonRoot", String::from("would run as root")));
    }
    let mut groups = shared.supplemental_groups.clone();
    groups.extend(shared.fs_group);
    Ok(Process {
        argv,
        env,
        cwd: container.working_dir.clone().unwrap_or_else(|| String::from("/")),
        uid,
        gid: own.run_as_group.or(shared.run_as_group).unwrap_or(0),
        groups,
        capabilities: capabilities(container),
        no_new_privileges: own.allow_privilege_escalation == Some(false) && !own.privileged,
    })
}

/// The program that an image stands for: its last path segment without tag and digest.
pub(crate) fn program(image: &str) -> Option<&str> {
    let name = image.rsplit('/').next().unwrap_or(image);
    let name = name.split(['@', ':']).next().unwrap_or(name);
    IMAGES.into_iter().find(|program| *program == name)
}

fn capabilities(container: &ContainerSpec) -> Vec<String> {
    let context = &container.security_context;
    if context.privileged {
        let mut all: Vec<String> = caps::all().iter().map(ToString::to_string).collect();
        all.sort();
        return all;
    }
    let is_all = |name: &String| name.eq_ignore_ascii_case("ALL");
    let changes = &context.capabilities;
    let mut set: Vec<String> = if changes.add.iter().any(is_all) {
        caps::all().iter().map(ToString::to_string).collect()
    } else if changes.drop.iter().any(is_all) {
        Vec::new()
    } else {
        DEFAULT_CAPABILITIES.map(String::from).to_vec()
    };
    let dropped: Vec<String> = changes.drop.iter().map(|name| caps::to_canonical(name)).collect();
    set.retain(|name| !dropped.contains(name));
    set.extend(changes.add.iter().filter(|name| !is_all(name)).map(|name| caps::to_canonical(name)));
    set.sort();
    set.dedup();
    set
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn process(container: Value) -> Result<Process> {
        let pod = json!({ "spec": { "containers": [container] } });
        let spec = PodSpec::parse("Pod n/a", &pod).unwrap();
        of(
            "Pod n/a",
            &spec,
            &spec.containers[0],
            BTreeMap::from([(String::from("NS"), String::from("shop"))]),
        )
    }

    #[test]
    fn an_image_maps_to_a_program_by_its_last_segment() {
        assert_eq!(program("registry:5000/mesh/mesh-init:1.0"), Some("mesh-init"));
        assert_eq!(program("mesh-echo@sha256:00"), Some("mesh-echo"));
        assert_eq!(program("docker.io/library/nginx"), None);
        let argv = |container| process(container).unwrap().argv;
        assert_eq!(
            argv(json!({ "name": "c", "image": "x/mesh-sidecar:1", "args": ["proxy", "$(NS).svc"] })),
            ["mesh-lab", "role", "mesh-sidecar", "proxy", "shop.svc"]
        );
        assert_eq!(
            argv(json!({ "name": "c", "image": "nginx", "command": ["sleep"], "args": ["1"] })),
            ["sleep", "1"]
        );
        assert!(process(json!({ "name": "c", "image": "nginx" })).is_err());
    }

    #[test]
    fn capabilities_are_dropped_then_added() {
        let set = |context: Value| {
            process(json!({ "name": "c", "image": "mesh-echo", "securityContext": context }))
                .unwrap()
                .capabilities
        };
        assert_eq!(set(json!({})).len(), DEFAULT_CAPABILITIES.len());
        assert!(set(json!({ "capabilities": { "drop": ["ALL"] } })).is_empty());
        assert_eq!(
            set(json!({ "capabilities": { "drop": ["ALL"], "add": ["NET_ADMIN", "NET_RAW"] } })),
            ["CAP_NET_ADMIN", "CAP_NET_RAW"]
        );
        assert!(
            !set(json!({ "capabilities": { "drop": ["NET_RAW"] } })).contains(&String::from("CAP_NET_RAW"))
        );
        assert!(set(json!({ "privileged": true })).contains(&String::from("CAP_SYS_ADMIN")));
    }

    #[test]
    fn users_come_from_the_container_and_root_can_be_refused() {
        let context = json!({ "runAsUser": 1337, "runAsGroup": 1337, "allowPrivilegeEscalation": false });
        let process_1337 =
            process(json!({ "name": "c", "image": "mesh-echo", "securityContext": context })).unwrap();
        assert_eq!((process_1337.uid, process_1337.gid, process_1337.no_new_privileges), (1337, 1337, true));
        let refused =
            json!({ "name": "c", "image": "mesh-echo", "securityContext": { "runAsNonRoot": true } });
        assert!(process(refused).unwrap_err().to_string().contains("runAsNonRoot"));
    }
}
