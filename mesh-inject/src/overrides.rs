//! What the user wrote for a container that is injected wins over the template, and is remembered on the pod.

use std::borrow::Cow;

use serde_json::{Map, Value, json};

use crate::annotation as a;
use crate::error::InjectError;
use crate::pod;
use crate::strategic::{self, Directives};

/// What an earlier injection wrote into `sidecar.istio.io/status`.
#[derive(Debug, Default)]
pub(crate) struct Status {
    pub(crate) containers: Vec<String>,
    pub(crate) init_containers: Vec<String>,
}

impl Status {
    /// Read it; `None` when there is none or it is not JSON of the right shape.
    pub(crate) fn of(pod_in: &Value) -> Option<Self> {
        let status: Value = serde_json::from_str(pod::annotation(pod_in, a::STATUS)?).ok()?;
        let names = |field: &str| match status.get(field) {
            None | Some(Value::Null) => Some(Vec::new()),
            Some(Value::Array(items)) => items.iter().map(|item| item.as_str().map(str::to_owned)).collect(),
            Some(_) => None,
        };
        status.is_object().then_some(())?;
        Some(Self { containers: names("containers")?, init_containers: names("initContainers")? })
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
                pod::list_mut(&mut pod_in, field)
                    .retain(|item| !names.iter().any(|name| name == pod::name_of(item)));
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
    let mut returned = false;
    for (field, remembered) in
        [("containers", &previous.containers), ("initContainers", &previous.init_containers)]
    {
        for container in remembered {
            // Upstream moves a sidecar that the user declared among the ordinary containers; it came from there.
            let moved =
                pod::name_of(container) == a::PROXY_CONTAINER && container.get("restartPolicy").is_none();
            let field = if moved { "containers" } else { field };
            if pod::find(pod::list(&pod_in, field), pod::name_of(container)).is_none() {
                pod::list_mut(&mut pod_in, field).push(container.clone());
                returned = true;
            }
        }
    }
    // What came back stands where it stands in the pod.
    for field in ["containers", "initContainers"] {
        if returned && !pod::list(&pod_in, field).is_empty() {
            let order: Vec<&str> = pod::list(original, field).iter().map(pod::name_of).collect();
            let rank = |item: &Value| {
                order.iter().position(|name| *name == pod::name_of(item)).unwrap_or(order.len())
            };
            pod::list_mut(&mut pod_in, field).sort_by_key(rank);
        }
    }
    Cow::Owned(pod_in)
}

/// Merge what the user wrote for the template's containers over the result.
pub(crate) fn reapply(
    merged: &mut Value,
    template: &Value,
    original: &Value,
    previous: &Overrides,
) -> Result<(), InjectError> {
    let status = Status::of(original).unwrap_or_default();
    let mut remembered = Overrides::default();
    for (field, before) in [("containers", &status.containers), ("initContainers", &status.init_containers)] {
        let init = field == "initContainers";
        for container in pod::list(template, field) {
            let name = pod::name_of(container);
            let from_annotation =
                pod::find(if init { &previous.init_containers } else { &previous.containers }, name);
            // What stands in the pod under the name of an earlier injection is the injector's own work.
            let from_pod = || {
                if before.iter().any(|known| known == name) {
                    return None;
                }
                let ordinary = pod::find(pod::containers(original), name);
                if init {
                    ordinary.or_else(|| pod::find(pod::init_containers(original), name))
                } else {
                    ordinary
                }
            };
            let Some(user) = from_annotation.or_else(from_pod) else { continue };
            let mut user = user.clone();
            if user.get("image").and_then(Value::as_str) == Some("auto") {
                pod::as_map(&mut user).remove("image");
            }
            // A layout that changed since may have moved the injector's own container: not a thing to remember.
            let own_work = [&status.containers, &status.init_containers]
                .into_iter()
                .flatten()
                .any(|known| known == name);
            if from_annotation.is_some() || !own_work {
                let list = if init { &mut remembered.init_containers } else { &mut remembered.containers };
                list.push(user.clone());
            }
            let mut partial = json!({"spec": {}});
            partial["spec"][field] = json!([written(&user)]);
            strategic::merge(merged, partial, Directives::Drop)?;
        }
    }
    // What an earlier injection remembered stays; containers that appeared since join it.
    let mut all = previous.clone();
    let mut news = false;
    for (known, found) in
        [(&mut all.containers, remembered.containers), (&mut all.init_containers, remembered.init_containers)]
    {
        for container in found {
            if pod::find(known, pod::name_of(&container)).is_none() {
                known.push(container);
                news = true;
            }
        }
    }
    if news {
        pod::meta_mut(merged, "annotations").insert(a::OVERRIDES.to_owned(), Value::String(all.render()));
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
    let own_work =
        [&status.containers, &status.init_containers].into_iter().flatten().any(|known| known == name);
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
