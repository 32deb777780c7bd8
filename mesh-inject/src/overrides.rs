//! What the user wrote for a container that is injected wins over the template, and is remembered on the pod.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};

use serde_json::{Map, Value, json};

use crate::annotation as a;
use crate::error::InjectError;
use crate::pod;
use crate::strategic::{self, Directives};

/// What an earlier injection wrote into `sidecar.istio.io/status`.
#[derive(Debug, Default)]
pub(crate) struct Status {
    pub(crate) containers: HashSet<String>,
    pub(crate) init_containers: HashSet<String>,
}

impl Status {
    /// Read it; `None` when there is none or it is not JSON of the right shape.
    pub(crate) fn of(pod_in: &Value) -> Option<Self> {
        let status: Value = serde_json::from_str(pod::annotation(pod_in, a::STATUS)?).ok()?;
        let names = |field: &str| match status.get(field) {
            None | Some(Value::Null) => Some(HashSet::new()),
            Some(Value::Array(items)) => items.iter().map(|item| item.as_str().map(str::to_owned)).collect(),
            Some(_) => None,
        };
        status.is_object().then_some(())?;
        Some(Self { containers: names("containers")?, init_containers: names("initContainers")? })
    }

    /// Whether a container of this name is the injector's own work.
    pub(crate) fn names(&self, container: &str) -> bool {
        self.containers.contains(container) || self.init_containers.contains(container)
    }
}

/// What the user wrote for injected containers: `proxy.istio.io/overrides`.
#[derive(Debug, Default, Clone)]
pub(crate) struct Overrides {
    pub(crate) containers: Vec<Value>,
    pub(crate) init_containers: Vec<Value>,
}

impl Overrides {
    /// Read them from the pod's annotation.
    pub(crate) fn of(pod_in: &Value) -> Result<Self, InjectError> {
        let Some(text) = pod::annotation(pod_in, a::OVERRIDES) else { return Ok(Self::default()) };
        let wrong = |message: String| InjectError::InvalidAnnotations {
            violations: vec![crate::error::AnnotationViolation {
                annotation: a::OVERRIDES.to_owned(),
                value: text.to_owned(),
                message,
            }],
        };
        let parsed = crate::json::parse(text.as_bytes()).map_err(|error| wrong(error.to_string()))?;
        // The containers go through the same door as the pod's own.
        pod::check(&json!({"spec": {"containers": parsed.get("containers")}}))
            .map_err(|e| wrong(e.to_string()))?;
        pod::check(&json!({"spec": {"initContainers": parsed.get("initContainers")}}))
            .map_err(|e| wrong(e.to_string()))?;
        let list = |field: &str| parsed.get(field).and_then(Value::as_array).cloned().unwrap_or_default();
        Ok(Self { containers: list("containers"), init_containers: list("initContainers") })
    }

    fn render(&self) -> String {
        let mut object = Map::new();
        if !self.containers.is_empty() {
            object.insert("containers".to_owned(), Value::Array(self.containers.clone()));
        }
        if !self.init_containers.is_empty() {
            object.insert("initContainers".to_owned(), Value::Array(self.init_containers.clone()));
        }
        crate::proxy_config::canonical(&Value::Object(object))
    }
}

/// The pod as a template may see it: without what an earlier injection added, with what the user wrote.
pub(crate) fn template_input<'a>(
    original: &'a Value,
    previous: &Overrides,
    status_port: i64,
) -> Cow<'a, Value> {
    let status = Status::of(original);
    if status.is_none() && previous.containers.is_empty() && previous.init_containers.is_empty() {
        return Cow::Borrowed(original);
    }
    let mut pod_in = original.clone();
    if let Some(status) = status {
        for (field, names) in
            [("containers", &status.containers), ("initContainers", &status.init_containers)]
        {
            if !pod::list(&pod_in, field).is_empty() {
                pod::list_mut(&mut pod_in, field).retain(|item| !names.contains(pod::name_of(item)));
            }
        }
        let annotations = pod::meta_mut(&mut pod_in, "annotations");
        let port = status_port.to_string();
        if annotations.get("prometheus.io/port").and_then(Value::as_str) == Some(&port) {
            for key in ["prometheus.io/port", "prometheus.io/path", "prometheus.io/scrape"] {
                annotations.remove(key);
            }
        }
        annotations.remove(a::STATUS);
    }
    if put_back(&mut pod_in, previous) {
        keep_order(&mut pod_in, original);
    }
    Cow::Owned(pod_in)
}

/// Put remembered containers that are missing back where the user had them; whether there was any.
fn put_back(pod_in: &mut Value, previous: &Overrides) -> bool {
    let fields = ["containers", "initContainers"];
    let mut present = fields.map(|field| {
        pod::list(pod_in, field).iter().map(|item| pod::name_of(item).to_owned()).collect::<HashSet<_>>()
    });
    let mut returned = false;
    for (list, remembered) in [&previous.containers, &previous.init_containers].into_iter().enumerate() {
        for container in remembered {
            let name = pod::name_of(container);
            // Upstream moves a sidecar that the user declared among the ordinary containers; it came from there.
            let moved = name == a::PROXY_CONTAINER && container.get("restartPolicy").is_none();
            let list = if moved { 0 } else { list };
            if present[list].insert(name.to_owned()) {
                pod::list_mut(pod_in, fields[list]).push(container.clone());
                returned = true;
            }
        }
    }
    returned
}

/// What came back stands where it stands in the pod.
fn keep_order(pod_in: &mut Value, original: &Value) {
    for field in ["containers", "initContainers"] {
        if !pod::list(pod_in, field).is_empty() {
            let order: HashMap<&str, usize> = pod::list(original, field)
                .iter()
                .enumerate()
                .map(|(at, item)| (pod::name_of(item), at))
                .collect();
            let rank = |item: &Value| order.get(pod::name_of(item)).copied().unwrap_or(usize::MAX);
            pod::list_mut(pod_in, field).sort_by_key(rank);
        }
    }
}

/// Merge what the user wrote for the template's containers over the result.
pub(crate) fn reapply(
    merged: &mut Value,
    template: &Value,
    original: &Value,
    previous: &Overrides,
) -> Result<(), InjectError> {
    let status = Status::of(original).unwrap_or_default();
    let ordinary = pod::by_name(pod::containers(original));
    let initial = pod::by_name(pod::init_containers(original));
    let mut all = previous.clone();
    let mut news = false;
    for (field, before, known, all) in [
        ("containers", &status.containers, &previous.containers, &mut all.containers),
        ("initContainers", &status.init_containers, &previous.init_containers, &mut all.init_containers),
    ] {
        let known = pod::by_name(known);
        let mut users = Vec::new();
        for container in pod::list(template, field) {
            let name = pod::name_of(container);
            let from_annotation = known.get(name).copied();
            // What stands in the pod under the name of an earlier injection is the injector's own work.
            let from_pod = || {
                let inits = initial.get(name).filter(|_| field == "initContainers");
                ordinary.get(name).or(inits).copied().filter(|_| !before.contains(name))
            };
            let Some(user) = from_annotation.or_else(from_pod) else { continue };
            let mut user = user.clone();
            if user.get("image").and_then(Value::as_str) == Some("auto") {
                pod::as_map(&mut user).remove("image");
            }
            // What an earlier injection remembered stays; containers that appeared since join it. A layout that changed
            // since may have moved the injector's own container: not a thing to remember.
            if from_annotation.is_none() && !status.names(name) {
                all.push(user.clone());
                news = true;
            }
            users.push(user);
        }
        write_over(merged, field, &users)?;
    }
    if news {
        pod::meta_mut(merged, "annotations").insert(a::OVERRIDES.to_owned(), Value::String(all.render()));
    }
    Ok(())
}

/// Merge these containers into those of the same name.
fn write_over(merged: &mut Value, field: &str, users: &[Value]) -> Result<(), InjectError> {
    if users.is_empty() {
        return Ok(());
    }
    let mut users = users.iter().map(|user| (pod::name_of(user), user)).collect::<HashMap<_, _>>();
    for container in pod::list_mut(merged, field) {
        if let Some(user) = users.remove(pod::name_of(container)) {
            strategic::merge(container, written(user), Directives::Drop).map_err(|error| match error {
                InjectError::Merge { field: inside, message } => {
                    InjectError::Merge { field: format!("spec.{field}.{inside}"), message }
                }
                other => other,
            })?;
        }
    }
    Ok(())
}

/// The fields of a container that say something: empty lists and empty text do not.
fn written(container: &Value) -> Value {
    let Value::Object(map) = container else { return container.clone() };
    let says_something = |value: &Value| match value {
        Value::Array(items) => !items.is_empty(),
        Value::String(text) => !text.is_empty(),
        Value::Null => false,
        _ => true,
    };
    let kept = map.iter().filter(|(_, value)| says_something(value));
    Value::Object(kept.map(|(key, value)| (key.clone(), value.clone())).collect())
}

/// When the user runs the proxy as another user, the rules must exempt that user.
pub(crate) fn adjust_init_user(merged: &mut Value, original: &Value, previous: &Overrides, proxy_mode: &str) {
    let name = a::PROXY_CONTAINER;
    let status = Status::of(original).unwrap_or_default();
    let own_work = status.names(name);
    let user_proxy = pod::find(&previous.containers, name)
        .or_else(|| pod::find(&previous.init_containers, name))
        .or_else(|| pod::sidecar(original).filter(|_| !own_work));
    let Some(user_proxy) = user_proxy else { return };
    let security =
        |field: &str| user_proxy.pointer(&format!("/securityContext/{field}")).and_then(Value::as_i64);
    let (user, group) = (security("runAsUser"), security("runAsGroup"));
    if user.is_none() && group.is_none() {
        return;
    }
    let tproxy = proxy_mode == "TPROXY" || pod::annotation(merged, a::INTERCEPTION_MODE) == Some("TPROXY");
    let init = [a::INIT_CONTAINER, a::VALIDATION_CONTAINER];
    let Some(at) = pod::init_containers(merged).iter().position(|c| init.contains(&pod::name_of(c))) else {
        return;
    };
    if tproxy
        && user.is_some()
        && let Some(proxy) = pod::sidecar_mut(merged)
    {
        let security = proxy.entry("securityContext").or_insert(Value::Null);
        pod::as_map(security).insert("runAsUser".to_owned(), json!(0));
    }
    let container = pod::as_map(&mut pod::list_mut(merged, "initContainers")[at]);
    if !tproxy && container.get("name").and_then(Value::as_str) == Some(a::VALIDATION_CONTAINER) {
        let security = pod::as_map(container.entry("securityContext").or_insert(Value::Null));
        for (field, value) in [("runAsUser", user), ("runAsGroup", group)] {
            if let Some(value) = value {
                security.insert(field.to_owned(), json!(value));
            }
        }
    }
    if let Some(user) = user.filter(|user| *user != 0)
        && let Some(args) = container.get_mut("args").and_then(Value::as_array_mut)
        && let Some(flag) = args.iter().position(|arg| arg == "-u")
        && let Some(value) = args.get_mut(flag + 1)
    {
        *value = json!(user.to_string());
    }
}
