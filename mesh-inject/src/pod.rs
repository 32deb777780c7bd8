//! A Pod as JSON: the shape that the injector relies on, and typed views of the parts it reads.
//!
//! Pods stay `serde_json::Value` throughout, so that fields this crate has never heard of survive.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use crate::error::InjectError;
use crate::json::type_name;

/// Check that everything the injector walks over has the type it expects. Fields that it does not touch are not
/// looked at: the API server has its own opinion about them.
pub(crate) fn check(pod: &Value) -> Result<(), InjectError> {
    object("pod", pod)?;
    if let Some(metadata) = present(pod, "metadata") {
        object("metadata", metadata)?;
        for field in ["name", "generateName", "namespace"] {
            if let Some(value) = present(metadata, field) {
                string(&format!("metadata.{field}"), value)?;
            }
        }
        for field in ["labels", "annotations"] {
            if let Some(value) = present(metadata, field) {
                let path = format!("metadata.{field}");
                for (key, value) in object(&path, value)? {
                    if !value.is_string() {
                        return Err(invalid(&format!("{path}[{key}]"), "a string", value));
                    }
                }
            }
        }
        for (_, path, item) in items(metadata, "metadata", "ownerReferences")? {
            object(&path, item)?;
        }
    }
    let Some(spec) = present(pod, "spec") else { return Ok(()) };
    object("spec", spec)?;
    if let Some(value) = present(spec, "hostNetwork")
        && !value.is_boolean()
    {
        return Err(invalid("spec.hostNetwork", "a boolean", value));
    }
    if let Some(value) = present(spec, "securityContext") {
        object("spec.securityContext", value)?;
    }
    let mut names = BTreeSet::new();
    for list in ["initContainers", "containers", "ephemeralContainers"] {
        for (_, path, item) in items(spec, "spec", list)? {
            let name = container(&path, item)?;
            if !names.insert(name) {
                return Err(InjectError::InvalidPod {
                    field: format!("{path}.name"),
                    expected: "a name of its own",
                    found: format!("{name:?} a second time"),
                });
            }
        }
    }
    named(spec, "spec", "volumes")?;
    for (_, path, item) in items(spec, "spec", "imagePullSecrets")? {
        object(&path, item)?;
    }
    Ok(())
}

fn container<'a>(path: &str, container: &'a Value) -> Result<&'a str, InjectError> {
    let name = name(path, container)?;
    for field in ["image", "restartPolicy", "imagePullPolicy", "workingDir"] {
        if let Some(value) = present(container, field) {
            string(&format!("{path}.{field}"), value)?;
        }
    }
    for field in
        ["securityContext", "resources", "lifecycle", "livenessProbe", "readinessProbe", "startupProbe"]
    {
        if let Some(value) = present(container, field) {
            object(&format!("{path}.{field}"), value)?;
        }
    }
    for field in ["args", "command"] {
        for (_, path, item) in items(container, path, field)? {
            string(&path, item)?;
        }
    }
    named(container, path, "env")?;
    for (_, path, item) in items(container, path, "volumeMounts")? {
        object(&path, item)?;
        string(&format!("{path}.mountPath"), item.get("mountPath").unwrap_or(&Value::Null))?;
    }
    for (_, path, item) in items(container, path, "volumeDevices")? {
        object(&path, item)?;
        string(&format!("{path}.devicePath"), item.get("devicePath").unwrap_or(&Value::Null))?;
    }
    for (_, path, item) in items(container, path, "ports")? {
        object(&path, item)?;
        let port = item.get("containerPort").unwrap_or(&Value::Null);
        if !port.as_i64().is_some_and(|port| (1..=65535).contains(&port)) {
            return Err(invalid(&format!("{path}.containerPort"), "a port number", port));
        }
    }
    Ok(name)
}

fn named(parent: &Value, path: &str, list: &str) -> Result<(), InjectError> {
    for (_, path, item) in items(parent, path, list)? {
        name(&path, item)?;
    }
    Ok(())
}

fn name<'a>(path: &str, item: &'a Value) -> Result<&'a str, InjectError> {
    object(path, item)?;
    let name = item.get("name").unwrap_or(&Value::Null);
    match name.as_str() {
        Some("") | None => Err(invalid(&format!("{path}.name"), "a name", name)),
        Some(name) => Ok(name),
    }
}

fn items<'a>(
    parent: &'a Value,
    path: &str,
    list: &str,
) -> Result<impl Iterator<Item = (usize, String, &'a Value)> + use<'a>, InjectError> {
    let path = format!("{path}.{list}");
    let items: &[Value] = match present(parent, list) {
        None => &[],
        Some(Value::Array(items)) => items,
        Some(other) => return Err(invalid(&path, "a list", other)),
    };
    Ok(items.iter().enumerate().map(move |(i, item)| (i, format!("{path}[{i}]"), item)))
}

fn present<'a>(parent: &'a Value, field: &str) -> Option<&'a Value> {
    parent.get(field).filter(|value| !value.is_null())
}

fn object<'a>(path: &str, value: &'a Value) -> Result<&'a Map<String, Value>, InjectError> {
    value.as_object().ok_or_else(|| invalid(path, "an object", value))
}

fn string(path: &str, value: &Value) -> Result<(), InjectError> {
    if value.is_string() { Ok(()) } else { Err(invalid(path, "a string", value)) }
}

fn invalid(field: &str, expected: &'static str, found: &Value) -> InjectError {
    let found = match found {
        Value::Null | Value::Array(_) | Value::Object(_) => type_name(found).to_owned(),
        scalar => format!("{scalar:.80}"),
    };
    InjectError::InvalidPod { field: field.to_owned(), expected, found }
}

/// Items of a list under `spec`; empty when there is none.
pub(crate) fn list<'a>(pod: &'a Value, field: &str) -> &'a [Value] {
    pod.get("spec").and_then(|spec| spec.get(field)).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// The `spec.containers`.
pub(crate) fn containers(pod: &Value) -> &[Value] {
    list(pod, "containers")
}

/// The `spec.initContainers`.
pub(crate) fn init_containers(pod: &Value) -> &[Value] {
    list(pod, "initContainers")
}

/// A list under `spec`, made if it is not there.
pub(crate) fn list_mut<'a>(pod: &'a mut Value, field: &str) -> &'a mut Vec<Value> {
    array_mut(entry(object_mut(entry(as_map(pod), "spec")), field))
}

/// A map under `metadata`, made if it is not there.
pub(crate) fn meta_mut<'a>(pod: &'a mut Value, field: &str) -> &'a mut Map<String, Value> {
    object_mut(entry(object_mut(entry(as_map(pod), "metadata")), field))
}

/// The object behind a value; anything that is not an object becomes an empty one.
pub(crate) fn as_map(value: &mut Value) -> &mut Map<String, Value> {
    object_mut(value)
}

fn entry<'a>(map: &'a mut Map<String, Value>, key: &str) -> &'a mut Value {
    map.entry(key.to_owned()).or_insert(Value::Null)
}

fn object_mut(value: &mut Value) -> &mut Map<String, Value> {
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    match value {
        Value::Object(map) => map,
        _ => unreachable!("made an object just above"),
    }
}

/// The list behind a value; anything that is not a list becomes an empty one.
pub(crate) fn array_mut(value: &mut Value) -> &mut Vec<Value> {
    if !value.is_array() {
        *value = Value::Array(Vec::new());
    }
    match value {
        Value::Array(items) => items,
        _ => unreachable!("made a list just above"),
    }
}

/// Value of an annotation.
pub(crate) fn annotation<'a>(pod: &'a Value, key: &str) -> Option<&'a str> {
    pod.get("metadata")?.get("annotations")?.get(key)?.as_str()
}

/// Value of a label.
pub(crate) fn label<'a>(pod: &'a Value, key: &str) -> Option<&'a str> {
    pod.get("metadata")?.get("labels")?.get(key)?.as_str()
}

/// `name` of a container, volume or environment entry.
pub(crate) fn name_of(item: &Value) -> &str {
    item.get("name").and_then(Value::as_str).unwrap_or_default()
}

/// The item with that name.
pub(crate) fn find<'a>(items: &'a [Value], name: &str) -> Option<&'a Value> {
    items.iter().find(|item| name_of(item) == name)
}

/// The sidecar, wherever it stands (ordinary containers first).
pub(crate) fn sidecar(pod: &Value) -> Option<&Value> {
    let name = crate::annotation::PROXY_CONTAINER;
    find(containers(pod), name).or_else(|| find(init_containers(pod), name))
}

/// The sidecar, wherever it stands, to be changed.
pub(crate) fn sidecar_mut(pod: &mut Value) -> Option<&mut Map<String, Value>> {
    let name = crate::annotation::PROXY_CONTAINER;
    let field = if find(containers(pod), name).is_some() {
        "containers"
    } else if find(init_containers(pod), name).is_some() {
        "initContainers"
    } else {
        return None;
    };
    list_mut(pod, field).iter_mut().find(|item| name_of(item) == name).and_then(Value::as_object_mut)
}

/// Environment of a container, made if it is not there.
pub(crate) fn env_mut(container: &mut Map<String, Value>) -> &mut Vec<Value> {
    array_mut(entry(container, "env"))
}

/// The environment entry's literal value.
pub(crate) fn env_value<'a>(container: &'a Value, name: &str) -> Option<&'a str> {
    let env = container.get("env")?.as_array()?;
    find(env, name)?.get("value")?.as_str()
}
