//! Variables of a container: literal values with `$(NAME)` references, fields of the pod, resources, ConfigMaps.

use std::collections::BTreeMap;
use std::fs;

use serde_json::Value;

use super::spec::{ContainerSpec, EnvSource, EnvVar, PodSpec, ResourceFieldRef};
use crate::error::{LabError, Result};
use crate::sandbox::PATH;

/// Looks up the data of a ConfigMap or Secret of the pod's namespace: kind, name.
pub(crate) type Data<'a> = &'a dyn Fn(&str, &str) -> Option<BTreeMap<String, Vec<u8>>>;

/// What variables may refer to.
pub(crate) struct Facts<'a> {
    /// `Pod namespace/name`, for errors.
    pub(crate) object: &'a str,
    /// The object, with `status.podIP` and `spec.nodeName` filled in.
    pub(crate) pod: &'a Value,
    pub(crate) spec: &'a PodSpec,
    pub(crate) data: Data<'a>,
    pub(crate) capacity: Capacity,
}

/// What stands in for an absent limit: CPUs and bytes of the machine.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Capacity {
    pub(crate) cpus: u64,
    pub(crate) memory: u64,
}

impl Capacity {
    /// This machine's.
    pub(crate) fn of_machine() -> Self {
        let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let total = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
        let kib = total.and_then(|line| line.trim().trim_end_matches("kB").trim().parse::<u64>().ok());
        let cpus = std::thread::available_parallelism().map_or(1, |count| count.get() as u64);
        Self { cpus, memory: kib.unwrap_or(0) * 1024 }
    }
}

/// The whole environment of a container's process.
pub(crate) fn resolve(facts: &Facts<'_>, container: &ContainerSpec) -> Result<BTreeMap<String, String>> {
    let hostname = text(facts.pod, "/metadata/name").unwrap_or_default();
    let mut env = BTreeMap::from([
        (String::from("PATH"), String::from(PATH)),
        (String::from("HOSTNAME"), hostname),
        (String::from("HOME"), String::from("/")),
    ]);
    for from in &container.env_from {
        for (kind, reference) in [("ConfigMap", &from.config_map_ref), ("Secret", &from.secret_ref)] {
            let Some(reference) = reference else { continue };
            match (facts.data)(kind, &reference.name) {
                Some(data) => env.extend(data.into_iter().map(|(key, value)| {
                    (format!("{}{key}", from.prefix), String::from_utf8_lossy(&value).into_owned())
                })),
                None if reference.optional => {}
                None => return Err(missing(facts, container, &format!("{kind} {}", reference.name))),
            }
        }
    }
    for variable in &container.env {
        if let Some(value) = one(facts, container, variable, &env)? {
            env.insert(variable.name.clone(), value);
        }
    }
    Ok(env)
}

/// Replaces `$(NAME)` by the variable's value; unknown names stay, `$$` is a dollar sign.
pub(crate) fn expand(text: &str, env: &BTreeMap<String, String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some((name, after)) = rest.strip_prefix('(').and_then(|open| open.split_once(')')) {
            match env.get(name) {
                Some(value) => out.push_str(value),
                None => out.push_str(&format!("$({name})")),
            }
            rest = after;
        } else {
            out.push('$');
        }
    }
    out.push_str(rest);
    out
}

fn one(
    facts: &Facts<'_>,
    container: &ContainerSpec,
    variable: &EnvVar,
    env: &BTreeMap<String, String>,
) -> Result<Option<String>> {
    let Some(source) = &variable.value_from else {
        return Ok(Some(expand(variable.value.as_deref().unwrap_or(""), env)));
    };
    if let Some(field) = &source.field_ref {
        let value = field_value(facts.pod, &field.field_path);
        return value.map(Some).ok_or_else(|| missing(facts, container, &field.field_path));
    }
    if let Some(resource) = &source.resource_field_ref {
        let value = resource_value(facts.spec, facts.capacity, Some(container), resource);
        let unknown = || missing(facts, container, &format!("resource {}", resource.resource));
        return value.map(Some).ok_or_else(unknown);
    }
    key_value(facts, container, source)
}

fn key_value(facts: &Facts<'_>, container: &ContainerSpec, source: &EnvSource) -> Result<Option<String>> {
    for (kind, reference) in [("ConfigMap", &source.config_map_key_ref), ("Secret", &source.secret_key_ref)] {
        let Some(reference) = reference else { continue };
        let value = (facts.data)(kind, &reference.name).and_then(|mut data| data.remove(&reference.key));
        return match value {
            Some(value) => Ok(Some(String::from_utf8_lossy(&value).into_owned())),
            None if reference.optional => Ok(None),
            None => {
                Err(missing(facts, container, &format!("{kind} {} key {}", reference.name, reference.key)))
            }
        };
    }
    Err(missing(facts, container, "a known valueFrom"))
}

/// The value of a downward API field path; `None` when there is no such field.
pub(crate) fn field_value(pod: &Value, path: &str) -> Option<String> {
    if let Some((map, key)) = path.strip_suffix("']").and_then(|path| path.split_once("['")) {
        let found = pod.pointer(&format!("/{}", map.replace('.', "/")))?.get(key);
        return Some(found.and_then(Value::as_str).unwrap_or("").to_owned());
    }
    let ips = |field: &str| {
        let list = pod.pointer(&format!("/status/{field}"))?.as_array()?;
        Some(list.iter().filter_map(|ip| ip["ip"].as_str()).collect::<Vec<_>>().join(","))
    };
    match path {
        "status.podIPs" => ips("podIPs"),
        "status.hostIPs" => ips("hostIPs"),
        "metadata.labels" | "metadata.annotations" => {
            let map = pod.pointer(&format!("/{}", path.replace('.', "/")));
            Some(downward_map(map.unwrap_or(&Value::Null)))
        }
        "spec.serviceAccountName" => {
            Some(text(pod, "/spec/serviceAccountName").unwrap_or_else(|| String::from("default")))
        }
        "metadata.name" | "metadata.namespace" | "metadata.uid" | "spec.nodeName" | "status.podIP"
        | "status.hostIP" => text(pod, &format!("/{}", path.replace('.', "/"))),
        _ => None,
    }
}

/// A map in the form of a downward API file: `key="value"` lines, values quoted as Go does.
pub(crate) fn downward_map(map: &Value) -> String {
    let lines = map.as_object().into_iter().flatten().map(|(key, value)| {
        let quoted: String = value.as_str().unwrap_or("").chars().map(quote).collect();
        format!("{key}=\"{quoted}\"")
    });
    lines.collect::<Vec<_>>().join("\n")
}

fn quote(character: char) -> String {
    match character {
        '"' => String::from("\\\""),
        '\\' => String::from("\\\\"),
        '\n' => String::from("\\n"),
        '\t' => String::from("\\t"),
        '\r' => String::from("\\r"),
        other => String::from(other),
    }
}

/// The value of a container's resource, of `own` unless another container is named; `None` when there is no such one.
pub(crate) fn resource_value(
    spec: &PodSpec,
    capacity: Capacity,
    own: Option<&ContainerSpec>,
    wanted: &ResourceFieldRef,
) -> Option<String> {
    let owner = match &wanted.container_name {
        None => own?,
        Some(name) => {
            let mut all = spec.init_containers.iter().chain(&spec.containers);
            all.find(|other| other.name == *name)?
        }
    };
    let (kind, resource) = wanted.resource.split_once('.')?;
    let quantities = match kind {
        "limits" => &owner.resources.limits,
        "requests" => &owner.resources.requests,
        _ => return None,
    };
    let node = match resource {
        "cpu" => capacity.cpus as f64,
        "memory" => capacity.memory as f64,
        _ => 0.0,
    };
    let amount = match quantities.get(resource) {
        Some(quantity) => parse_quantity(quantity)?,
        None if kind == "limits" => node,
        None => 0.0,
    };
    // A divisor of zero is Kubernetes' way to say "not given".
    let divisor =
        wanted.divisor.as_ref().and_then(parse_quantity).filter(|value| *value > 0.0).unwrap_or(1.0);
    Some(format!("{}", (amount / divisor).ceil()))
}

/// A Kubernetes quantity in its base unit.
pub(crate) fn parse_quantity(quantity: &Value) -> Option<f64> {
    let text = match quantity {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        _ => return None,
    };
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let factor = match &text[digits.len()..] {
        "" => 1.0,
        "m" => 0.001,
        "k" => 1e3,
        "M" => 1e6,
        "G" => 1e9,
        "T" => 1e12,
        "Ki" => 1024.0,
        "Mi" => 1024.0 * 1024.0,
        "Gi" => 1024.0 * 1024.0 * 1024.0,
        "Ti" => 1024.0 * 1024.0 * 1024.0 * 1024.0,
        _ => return None,
    };
    digits.parse::<f64>().ok().map(|number| number * factor)
}

fn text(pod: &Value, pointer: &str) -> Option<String> {
    pod.pointer(pointer).and_then(Value::as_str).map(str::to_owned)
}

fn missing(facts: &Facts<'_>, container: &ContainerSpec, what: &str) -> LabError {
    LabError::Object {
        object: facts.object.to_owned(),
        field: format!("containers[{}].env", container.name),
        message: format!("{what} is not there"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn environment(container: Value) -> Result<BTreeMap<String, String>> {
        let pod = json!({
            "metadata": { "name": "a-1", "namespace": "shop", "uid": "u", "labels": { "app": "a", "q": "x\"y" } },
            "spec": { "containers": [container], "nodeName": "node" },
            "status": { "podIP": "10.0.0.9", "hostIP": "10.0.0.1" },
        });
        let spec = PodSpec::parse("Pod shop/a-1", &pod).unwrap();
        let data = |kind: &str, name: &str| {
            (kind == "ConfigMap" && name == "settings")
                .then(|| BTreeMap::from([(String::from("level"), b"high".to_vec())]))
        };
        let facts = Facts {
            object: "Pod shop/a-1",
            pod: &pod,
            spec: &spec,
            data: &data,
            capacity: Capacity { cpus: 2, memory: 4096 },
        };
        resolve(&facts, &spec.containers[0])
    }

    #[test]
    fn references_resolve_in_order_and_unknown_ones_stay() {
        let env = environment(json!({ "name": "c", "env": [
            { "name": "NS", "valueFrom": { "fieldRef": { "fieldPath": "metadata.namespace" } } },
            { "name": "DOMAIN", "value": "$(NS).svc $(LATER) $$(NS) $" },
            { "name": "LATER", "value": "x" },
            { "name": "APP", "valueFrom": { "fieldRef": { "fieldPath": "metadata.labels['app']" } } },
            { "name": "NONE", "valueFrom": { "fieldRef": { "fieldPath": "metadata.labels['none']" } } },
            { "name": "IP", "valueFrom": { "fieldRef": { "fieldPath": "status.podIP" } } },
            { "name": "SA", "valueFrom": { "fieldRef": { "fieldPath": "spec.serviceAccountName" } } },
            { "name": "LEVEL", "valueFrom": { "configMapKeyRef": { "name": "settings", "key": "level" } } },
            { "name": "GONE", "valueFrom": { "configMapKeyRef": { "name": "x", "key": "y", "optional": true } } },
        ] }))
        .unwrap();
        assert_eq!(env["DOMAIN"], "shop.svc $(LATER) $(NS) $");
        assert_eq!((env["APP"].as_str(), env["NONE"].as_str()), ("a", ""));
        assert_eq!((env["IP"].as_str(), env["SA"].as_str()), ("10.0.0.9", "default"));
        assert_eq!(env["LEVEL"], "high");
        assert!(!env.contains_key("GONE"));
    }

    #[test]
    fn resources_are_divided_and_rounded_up() {
        let env = environment(json!({ "name": "c",
            "resources": { "limits": { "cpu": "1500m", "memory": "1Ki" } },
            "env": [
                { "name": "CPU", "valueFrom": { "resourceFieldRef": { "resource": "limits.cpu", "divisor": "1" } } },
                { "name": "MEM", "valueFrom": { "resourceFieldRef": { "resource": "limits.memory", "divisor": "0" } } },
            ] }))
        .unwrap();
        assert_eq!((env["CPU"].as_str(), env["MEM"].as_str()), ("2", "1024"));
        let absent = environment(json!({ "name": "c", "env": [
            { "name": "CPU", "valueFrom": { "resourceFieldRef": { "resource": "limits.cpu" } } } ] }))
        .unwrap();
        assert_eq!(absent["CPU"], "2", "the machine's");
    }

    #[test]
    fn what_is_not_there_is_named() {
        let error = environment(json!({ "name": "c", "env": [
            { "name": "X", "valueFrom": { "fieldRef": { "fieldPath": "status.moon" } } } ] }))
        .unwrap_err();
        assert_eq!(error.to_string(), "Pod shop/a-1: containers[c].env: status.moon is not there");
    }

    #[test]
    fn downward_files_quote_values() {
        assert_eq!(downward_map(&json!({ "a": "1", "q": "x\"y\n" })), "a=\"1\"\nq=\"x\\\"y\\n\"");
    }
}
