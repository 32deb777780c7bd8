//! A Pod as JSON: the shape that the injector relies on, and typed views of the parts it reads.
//!
//! Pods stay `serde_json::Value` throughout, so that fields this crate has never heard of survive.

use std::collections::{BTreeSet, HashMap};
use std::fmt;

use serde_json::{Map, Value};

use crate::error::InjectError;
use crate::json::type_name;

/// Check that everything the injector walks over has the type it expects. Fields that it does not touch are not
/// looked at: the API server has its own opinion about them.
pub(crate) fn check(pod: &Value) -> Result<(), InjectError> {
    let root = Place { parent: None, step: Step::Field("pod") };
    object(&root, pod)?;
    let metadata_place = Place { parent: None, step: Step::Field("metadata") };
    if let Some(metadata) = present(pod, "metadata") {
        object(&metadata_place, metadata)?;
        for field in ["name", "generateName", "namespace"] {
            if let Some(value) = present(metadata, field) {
                string(&metadata_place.field(field), value)?;
            }
        }
        for field in ["labels", "annotations"] {
            if let Some(value) = present(metadata, field) {
                let place = metadata_place.field(field);
                for (key, value) in object(&place, value)? {
                    string(&place.key(key), value)?;
                }
            }
        }
        let place = metadata_place.field("ownerReferences");
        for (i, item) in items(&place, metadata, "ownerReferences")?.iter().enumerate() {
            object(&place.index(i), item)?;
        }
    }
    let Some(spec) = present(pod, "spec") else { return Ok(()) };
    let spec_place = Place { parent: None, step: Step::Field("spec") };
    object(&spec_place, spec)?;
    if let Some(value) = present(spec, "hostNetwork")
        && !value.is_boolean()
    {
        return Err(spec_place.field("hostNetwork").invalid("a boolean", value));
    }
    if let Some(value) = present(spec, "securityContext") {
        object(&spec_place.field("securityContext"), value)?;
    }
    let mut names = BTreeSet::new();
    for list in ["initContainers", "containers", "ephemeralContainers"] {
        let place = spec_place.field(list);
        for (i, item) in items(&place, spec, list)?.iter().enumerate() {
            let place = place.index(i);
            let name = container(&place, item)?;
            if !names.insert(name) {
                return Err(InjectError::InvalidPod {
                    field: format!("{place}.name"),
                    expected: "a name of its own",
                    found: format!("{name:?} a second time"),
                });
            }
        }
    }
    named(&spec_place, spec, "volumes")?;
    let place = spec_place.field("imagePullSecrets");
    for (i, item) in items(&place, spec, "imagePullSecrets")?.iter().enumerate() {
        object(&place.index(i), item)?;
    }
    Ok(())
}

/// A place in the pod; its text is only made when something is wrong there.
#[derive(Clone, Copy)]
struct Place<'a> {
    parent: Option<&'a Self>,
    step: Step<'a>,
}

#[derive(Clone, Copy)]
enum Step<'a> {
    Field(&'static str),
    Key(&'a str),
    Index(usize),
}

impl<'a> Place<'a> {
    fn field(&'a self, name: &'static str) -> Self {
        Self { parent: Some(self), step: Step::Field(name) }
    }

    fn key(&'a self, key: &'a str) -> Self {
        Self { parent: Some(self), step: Step::Key(key) }
    }

    fn index(&'a self, index: usize) -> Self {
        Self { parent: Some(self), step: Step::Index(index) }
    }

    fn invalid(&self, expected: &'static str, found: &Value) -> InjectError {
        let found = match found {
            Value::Null | Value::Array(_) | Value::Object(_) => type_name(found).to_owned(),
            scalar => format!("{scalar:.80}"),
        };
        InjectError::InvalidPod { field: self.to_string(), expected, found }
    }
}

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(parent) = self.parent {
            parent.fmt(f)?;
        }
        match self.step {
            Step::Field(name) if self.parent.is_none() => f.write_str(name),
            Step::Field(name) => write!(f, ".{name}"),
            Step::Key(key) => write!(f, "[{key}]"),
            Step::Index(index) => write!(f, "[{index}]"),
        }
    }
}

fn container<'v>(place: &Place<'_>, container: &'v Value) -> Result<&'v str, InjectError> {
    let name = name(place, container)?;
    for field in ["image", "restartPolicy", "imagePullPolicy", "workingDir"] {
        if let Some(value) = present(container, field) {
            string(&place.field(field), value)?;
        }
    }
    for field in
        ["securityContext", "resources", "lifecycle", "livenessProbe", "readinessProbe", "startupProbe"]
    {
        if let Some(value) = present(container, field) {
            object(&place.field(field), value)?;
        }
    }
    for field in ["args", "command"] {
        let place = place.field(field);
        for (i, item) in items(&place, container, field)?.iter().enumerate() {
            string(&place.index(i), item)?;
        }
    }
    named(place, container, "env")?;
    for (field, key) in [("volumeMounts", "mountPath"), ("volumeDevices", "devicePath")] {
        let place = place.field(field);
        for (i, item) in items(&place, container, field)?.iter().enumerate() {
            let place = place.index(i);
            object(&place, item)?;
            string(&place.field(key), item.get(key).unwrap_or(&Value::Null))?;
        }
    }
    let ports = place.field("ports");
    for (i, item) in items(&ports, container, "ports")?.iter().enumerate() {
        let place = ports.index(i);
        object(&place, item)?;
        let port = item.get("containerPort").unwrap_or(&Value::Null);
        if !port.as_i64().is_some_and(|port| (1..=65535).contains(&port)) {
            return Err(place.field("containerPort").invalid("a port number", port));
        }
    }
    Ok(name)
}

fn named(parent: &Place<'_>, holder: &Value, list: &'static str) -> Result<(), InjectError> {
    let place = parent.field(list);
    for (i, item) in items(&place, holder, list)?.iter().enumerate() {
        name(&place.index(i), item)?;
    }
    Ok(())
}

fn name<'v>(place: &Place<'_>, item: &'v Value) -> Result<&'v str, InjectError> {
    object(place, item)?;
    let name = item.get("name").unwrap_or(&Value::Null);
    match name.as_str() {
        Some("") | None => Err(place.field("name").invalid("a name", name)),
        Some(name) => Ok(name),
    }
}

fn items<'v>(place: &Place<'_>, holder: &'v Value, list: &str) -> Result<&'v [Value], InjectError> {
    match present(holder, list) {
        None => Ok(&[]),
        Some(Value::Array(items)) => Ok(items),
        Some(other) => Err(place.invalid("a list", other)),
    }
}

fn present<'v>(holder: &'v Value, field: &str) -> Option<&'v Value> {
    holder.get(field).filter(|value| !value.is_null())
}

fn object<'v>(place: &Place<'_>, value: &'v Value) -> Result<&'v Map<String, Value>, InjectError> {
    value.as_object().ok_or_else(|| place.invalid("an object", value))
}

fn string(place: &Place<'_>, value: &Value) -> Result<(), InjectError> {
    if value.is_string() { Ok(()) } else { Err(place.invalid("a string", value)) }
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

/// The items by name; of several with one name the first.
pub(crate) fn by_name(items: &[Value]) -> HashMap<&str, &Value> {
    let mut found = HashMap::with_capacity(items.len());
    for item in items {
        found.entry(name_of(item)).or_insert(item);
    }
    found
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
