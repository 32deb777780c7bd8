//! Taking an injection back.

use std::collections::HashSet;

use serde_json::{Map, Value};

use super::{Place, walk};
use crate::annotation as a;
use crate::error::InjectError;
use crate::overrides::{Overrides, Status};
use crate::pod;
use crate::post::probes;
use crate::template::cni;

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
/// Not restored, and said so in `warnings`:
/// - names of ports in probes (they became numbers), the spelling of Prometheus annotation keys,
/// - labels, annotations and pull secrets that are removed although the user may have set the same,
/// - annotations written for a CNI plugin, which are left: nobody knows who chose their values,
/// - volumes of the injector's that the user's containers mount, which are left,
/// - the image of a container that the user declared with the image `auto`,
/// - the pod's `securityContext` under the `gateway` template,
/// - pods whose status annotation cannot be read.
///
/// A volume of the user's with an injected name and the injector's kind of source goes, unless it is mounted; annotations
/// that the settings put on every pod stay. The document does not tell these from other people's.
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
    volumes(&mut out, &names(&listed, "volumes"), name, warnings);
    pull_secrets(&mut out, &names(&listed, "imagePullSecrets"), name, warnings);
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
    metadata(&mut out, proxy.as_ref(), &traces(&status, &listed), name, warnings);
    let role = proxy.as_ref().and_then(|proxy| proxy.pointer("/args/1")).and_then(Value::as_str);
    if role == Some("router") {
        warnings.push(format!("{name}: spec.securityContext is left as the gateway template set it"));
    }
    if place == Place::CronJob {
        warnings.push(format!("{name}: labels and annotations of the job template were restored"));
    }
    prune(&mut out);
    Ok(Some(out))
}

fn names(listed: &Value, field: &str) -> HashSet<String> {
    let items = listed.get(field).and_then(Value::as_array).into_iter().flatten();
    items.filter_map(Value::as_str).map(str::to_owned).collect()
}

/// The volumes that the templates bring without a source, so that one which has a source is the user's.
const WITHOUT_SOURCE: [&str; 3] = ["workload-socket", "credential-socket", "workload-certs"];

fn volumes(out: &mut Value, injected: &HashSet<String>, name: &str, warnings: &mut Vec<String>) {
    if injected.is_empty() || pod::list(out, "volumes").is_empty() {
        return;
    }
    let mut mounted = HashSet::new();
    for container in ["initContainers", "containers"].into_iter().flat_map(|list| pod::list(out, list)) {
        // What the user wrote for the sidecar was written for the injector's volumes.
        if pod::name_of(container) != a::PROXY_CONTAINER {
            let mounts = container.get("volumeMounts").and_then(Value::as_array).into_iter().flatten();
            mounted.extend(mounts.map(|mount| pod::name_of(mount).to_owned()));
        }
    }
    pod::list_mut(out, "volumes").retain(|volume| {
        let own = pod::name_of(volume);
        if !injected.contains(own) {
            return true;
        }
        let source =
            volume.as_object().into_iter().flatten().find(|(key, value)| *key != "name" && !value.is_null());
        let has_source =
            source.is_some_and(|(kind, value)| kind != "emptyDir" || !crate::values::is_empty(value));
        if WITHOUT_SOURCE.contains(&own) && has_source {
            return true;
        }
        if mounted.contains(own) {
            warnings.push(format!("{name}: volume {own} is left, your containers mount it"));
            return true;
        }
        false
    });
}

fn pull_secrets(out: &mut Value, injected: &HashSet<String>, name: &str, warnings: &mut Vec<String>) {
    let gone: Vec<String> = pod::list(out, "imagePullSecrets")
        .iter()
        .map(|secret| pod::name_of(secret).to_owned())
        .filter(|secret| injected.contains(secret))
        .collect();
    if !gone.is_empty() {
        pod::list_mut(out, "imagePullSecrets").retain(|secret| !injected.contains(pod::name_of(secret)));
        warnings.push(format!(
            "{name}: pull secrets removed, also if you had named them yourself: {}",
            gone.join(", ")
        ));
    }
}

/// What an injection leaves besides the names in its status.
struct Traces {
    /// Annotations for a CNI plugin.
    cni: bool,
    /// Probes were left alone by a template for applications that speak xDS.
    grpc: bool,
}

fn traces(status: &Status, listed: &Value) -> Traces {
    let volumes = names(listed, "volumes");
    Traces {
        cni: status.init_containers.contains(a::VALIDATION_CONTAINER),
        grpc: volumes.contains("istio-xds") || volumes.contains("grpc-io-proxyless-bootstrap"),
    }
}

/// What a template writes for a CNI plugin; the values are those that were in force, whoever chose them.
const FOR_CNI: [&str; 10] = [
    a::INTERCEPTION_MODE,
    a::INCLUDE_OUTBOUND_RANGES,
    a::EXCLUDE_OUTBOUND_RANGES,
    a::INCLUDE_INBOUND_PORTS,
    a::EXCLUDE_INBOUND_PORTS,
    a::INCLUDE_OUTBOUND_PORTS,
    a::EXCLUDE_OUTBOUND_PORTS,
    a::KUBEVIRT_INTERFACES,
    a::EXCLUDE_INTERFACES,
    a::REROUTE_INTERFACES,
];

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
    for container in overrides.containers.iter().chain(&overrides.init_containers) {
        if container.get("image").is_none() {
            let own = pod::name_of(container);
            warnings.push(format!("{name}: your container {own} has no image; it was \"auto\" or none"));
        }
    }
    for container in back {
        let own = pod::name_of(&container).to_owned();
        warnings.push(format!("{name}: your container {own} is back among spec.containers"));
        pod::list_mut(out, "containers").push(container);
    }
}

fn metadata(out: &mut Value, proxy: Option<&Value>, traces: &Traces, name: &str, warnings: &mut Vec<String>) {
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
    if traces.grpc && annotations.get(a::REWRITE_PROBES).and_then(Value::as_str) == Some("false") {
        annotations.remove(a::REWRITE_PROBES);
        doubtful.push(a::REWRITE_PROBES);
    }
    let secure = proxy.and_then(|proxy| pod::env_value(proxy, "ENVOY_SECURE_MERGED_METRICS_PORT"));
    if secure.is_some() && annotations.get(a::SECURE_METRICS_PORT).and_then(Value::as_str) == secure {
        annotations.remove(a::SECURE_METRICS_PORT);
        doubtful.push(a::SECURE_METRICS_PORT);
    }
    if traces.cni {
        if let Some(value) = annotations.get(a::CNI_NETWORKS).and_then(Value::as_str) {
            match cni::without_multus_network(value) {
                Some(rest) if rest.is_empty() => drop(annotations.remove(a::CNI_NETWORKS)),
                Some(rest) => drop(annotations.insert(a::CNI_NETWORKS.to_owned(), Value::String(rest))),
                None => {}
            }
            doubtful.push("the network istio-cni of k8s.v1.cni.cncf.io/networks");
        }
        let left: Vec<&str> = FOR_CNI.into_iter().filter(|key| annotations.contains_key(*key)).collect();
        if !left.is_empty() {
            warnings.push(format!(
                "{name}: left as they were in force, whether you or the injector wrote them: {}",
                left.join(", ")
            ));
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
