//! Taking an injection back.

use serde_json::{Map, Value};

use super::{Place, walk};
use crate::annotation as a;
use crate::error::InjectError;
use crate::overrides::{Overrides, Status};
use crate::pod;
use crate::post::probes;

/// A document without its injection.
#[derive(Debug, Clone)]
pub struct Uninjected {
    /// The document.
    pub document: Value,
    /// What could not be restored exactly.
    pub warnings: Vec<String>,
    /// How many pods were changed.
    pub changed: usize,
}

/// Remove what an injection added: containers, volumes, pull secrets, rewritten probes, annotations and labels. What the
/// user had written for injected containers comes back from `proxy.istio.io/overrides`, probes from the sidecar's
/// environment.
///
/// Not restored, and said so in `warnings`: names of ports in probes (they became numbers), the spelling of Prometheus
/// annotation keys, labels and `kubectl` annotations that the user may have set to the same value, the pod's
/// `securityContext` under the `gateway` template, and pods whose status annotation cannot be read.
///
/// # Errors
/// [`InjectError::InvalidPod`] when a workload is not shaped like one.
pub fn uninject(document: &Value) -> Result<Uninjected, InjectError> {
    let mut result = Uninjected { document: document.clone(), warnings: Vec::new(), changed: 0 };
    let (warnings, changed) = (&mut result.warnings, &mut result.changed);
    walk(&mut result.document, &mut |object, place| {
        let pod_in = place.pod(object);
        pod::check(&pod_in)?;
        let name = object.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default().to_owned();
        if let Some(restored) = restore(&pod_in, &name, place, warnings)? {
            place.put(object, restored);
            *changed += 1;
        }
        Ok(())
    })?;
    Ok(result)
}

fn restore(
    pod_in: &Value,
    name: &str,
    place: Place,
    warnings: &mut Vec<String>,
) -> Result<Option<Value>, InjectError> {
    let Some(status) = Status::of(pod_in) else {
        if pod::annotation(pod_in, a::STATUS).is_some() {
            warnings
                .push(format!("{name}: annotation {} cannot be read; the pod is left as it is", a::STATUS));
        }
        return Ok(None);
    };
    let overrides = Overrides::of(pod_in)?;
    let proxy = pod::sidecar(pod_in).cloned();
    let mut out = pod_in.clone();
    containers(&mut out, &status, &overrides, name, warnings);
    let listed = pod::annotation(pod_in, a::STATUS).and_then(|text| serde_json::from_str(text).ok());
    let listed: Value = listed.unwrap_or_default();
    for field in ["volumes", "imagePullSecrets"] {
        let names = listed.get(field).and_then(Value::as_array).cloned().unwrap_or_default();
        if !names.is_empty() && !pod::list(&out, field).is_empty() {
            pod::list_mut(&mut out, field)
                .retain(|item| !names.iter().any(|known| known == pod::name_of(item)));
        }
    }
    if let Some(text) = proxy.as_ref().and_then(|proxy| pod::env_value(proxy, probes::PROBERS)) {
        if let Ok(Value::Object(probers)) = serde_json::from_str(text) {
            let numbered = probes::restore(&mut out, &probers);
            if !numbered.is_empty() {
                warnings.push(format!(
                    "{name}: probes of {} name their ports by number now",
                    numbered.join(", ")
                ));
            }
        } else {
            warnings.push(format!("{name}: {} cannot be read; probes stay rewritten", probes::PROBERS));
        }
    }
    metadata(&mut out, proxy.as_ref(), name, warnings);
    if pod::annotation(pod_in, a::TEMPLATES)
        .is_some_and(|list| list.split(',').any(|t| t.trim() == "gateway"))
    {
        warnings.push(format!("{name}: spec.securityContext is left as the gateway template set it"));
    }
    if place == Place::CronJob {
        warnings.push(format!("{name}: labels and annotations of the job template were restored"));
    }
    prune(&mut out);
    Ok(Some(out))
}

fn containers(
    out: &mut Value,
    status: &Status,
    overrides: &Overrides,
    name: &str,
    warnings: &mut Vec<String>,
) {
    let lists = [
        ("initContainers", &status.init_containers, &overrides.init_containers),
        ("containers", &status.containers, &overrides.containers),
    ];
    let mut back = Vec::new();
    for (field, injected, remembered) in lists {
        if pod::list(out, field).is_empty() {
            continue;
        }
        let list = pod::list_mut(out, field);
        let mut kept = Vec::with_capacity(list.len());
        for container in std::mem::take(list) {
            let own = pod::name_of(&container);
            if !injected.contains(own) {
                kept.push(container);
                continue;
            }
            match pod::find(remembered, own) {
                Some(user) if field == "initContainers" && own == a::PROXY_CONTAINER => {
                    back.push(user.clone());
                }
                Some(user) => kept.push(user.clone()),
                None => {}
            }
        }
        *list = kept;
    }
    for container in back {
        let own = pod::name_of(&container).to_owned();
        warnings.push(format!("{name}: your container {own} is back among spec.containers"));
        pod::list_mut(out, "containers").push(container);
    }
}

fn metadata(out: &mut Value, proxy: Option<&Value>, name: &str, warnings: &mut Vec<String>) {
    let scrape =
        proxy.and_then(|proxy| pod::env_value(proxy, "ISTIO_PROMETHEUS_ANNOTATIONS")).map(str::to_owned);
    let annotations = pod::meta_mut(out, "annotations");
    let merged = annotations.get("prometheus.io/path").and_then(Value::as_str) == Some("/stats/prometheus");
    if merged {
        for key in ["prometheus.io/port", "prometheus.io/path", "prometheus.io/scrape"] {
            annotations.remove(key);
        }
        if let Some(Value::Object(original)) = scrape.and_then(|text| serde_json::from_str(&text).ok()) {
            prometheus(annotations, &original);
            warnings.push(format!("{name}: Prometheus annotations are back under their usual names"));
        }
    }
    for key in [a::STATUS, a::OVERRIDES, a::REVISION] {
        annotations.remove(key);
    }
    let mut doubtful = Vec::new();
    for key in [a::DEFAULT_CONTAINER, a::DEFAULT_LOGS_CONTAINER] {
        if annotations.remove(key).is_some() {
            doubtful.push(key);
        }
    }
    let labels = pod::meta_mut(out, "labels");
    for key in [a::TLS_MODE, a::CANONICAL_NAME, a::CANONICAL_REVISION, a::TUNNEL, a::NETWORK] {
        if labels.remove(key).is_some() {
            doubtful.push(key);
        }
    }
    if !doubtful.is_empty() {
        warnings.push(format!("{name}: removed, also if you had set them yourself: {}", doubtful.join(", ")));
    }
}

fn prometheus(annotations: &mut Map<String, Value>, original: &Map<String, Value>) {
    let text = |field: &str| original.get(field).and_then(Value::as_str).filter(|text| !text.is_empty());
    let targets = original.get("targets").and_then(Value::as_array).cloned().unwrap_or_default();
    let list: Vec<String> = targets
        .iter()
        .map(|target| {
            let part = |field: &str| target.get(field).and_then(Value::as_str).unwrap_or_default();
            format!("{}:{}", part("port"), part("path"))
        })
        .collect();
    if !list.is_empty() {
        annotations.insert(a::SCRAPE_TARGETS.to_owned(), Value::String(list.join(",")));
    }
    let fields: &[(&str, &str)] = if list.is_empty() {
        &[("scrape", "prometheus.io/scrape"), ("path", "prometheus.io/path"), ("port", "prometheus.io/port")]
    } else {
        &[("scrape", "prometheus.io/scrape")]
    };
    for (field, key) in fields {
        if let Some(value) = text(field) {
            annotations.insert((*key).to_owned(), Value::from(value));
        }
    }
}

/// Lists and maps that became empty were probably not there.
fn prune(out: &mut Value) {
    for (parent, fields) in [
        ("metadata", &["labels", "annotations"][..]),
        ("spec", &["initContainers", "volumes", "imagePullSecrets"][..]),
    ] {
        let Some(map) = out.get_mut(parent).and_then(Value::as_object_mut) else { continue };
        for field in fields {
            if map.get(*field).is_some_and(crate::values::is_empty) {
                map.remove(*field);
            }
        }
    }
    if let Some(map) = out.as_object_mut()
        && map.get("metadata").is_some_and(crate::values::is_empty)
    {
        map.remove("metadata");
    }
}
