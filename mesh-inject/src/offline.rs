//! Injection without a cluster: documents of any workload kind, as `kubectl` would be given them.

mod uninject;

use serde::Serialize;
use serde_json::{Map, Value};

use crate::cluster::Cluster;
use crate::decision::{Decision, SkipReason};
use crate::error::InjectError;
use crate::injector::{Injector, Request};
use crate::pod;
use crate::warning::Warning;
use crate::workload::Workload;
use crate::yaml;

pub use uninject::{Uninjected, uninject};

/// Kinds whose pod template stands at `spec.template`.
const TEMPLATED: [&str; 7] = [
    "Deployment",
    "DaemonSet",
    "ReplicaSet",
    "StatefulSet",
    "Job",
    "ReplicationController",
    "DeploymentConfig",
];

/// What became of one workload of a document.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// Kind of the object.
    pub kind: String,
    /// Its namespace; may be empty.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The decision.
    pub decision: Decision,
    /// What a person should know.
    pub warnings: Vec<Warning>,
}

impl Report {
    /// `namespace/name`, or the name alone.
    #[must_use]
    pub fn full_name(&self) -> String {
        if self.namespace.is_empty() {
            self.name.clone()
        } else {
            format!("{}/{}", self.namespace, self.name)
        }
    }

    /// The line that offline injection prints about a workload that it leaves alone; `None` when it is injected.
    #[must_use]
    pub fn skip_message(&self) -> Option<String> {
        let Decision::Skip(reason) = &self.decision else { return None };
        let kind = if self.kind == "Pod" { String::new() } else { format!("{} ", self.kind) };
        let why = match reason {
            SkipReason::HostNetwork => "has host networking enabled".to_owned(),
            SkipReason::Label | SkipReason::Annotation => "has sidecar injection disabled".to_owned(),
            _ => self.decision.explain(),
        };
        Some(format!("===> Skipping injection because {kind}\"{}\" {why}", self.full_name()))
    }
}

/// Read a stream of YAML or JSON documents. Empty documents are dropped.
///
/// # Errors
/// [`InjectError::Document`] with the parser's message.
pub fn parse_documents(text: &str) -> Result<Vec<Value>, InjectError> {
    let documents = yaml::parse_all(text).map_err(|message| InjectError::Document { message })?;
    Ok(documents.into_iter().filter(|document| !document.is_null()).collect())
}

/// Write a document as YAML, keys sorted. Reading it back gives the same value.
#[must_use]
pub fn to_yaml(document: &Value) -> String {
    yaml::write(document)
}

/// Inject every workload of a document. Objects that are no workloads stay as they are; a `List` is walked.
///
/// # Errors
/// [`InjectError`] of the first workload that cannot be injected; the document is then untouched.
pub fn inject_document(
    injector: &Injector,
    cluster: &Cluster,
    document: &Value,
) -> Result<(Value, Vec<Report>), InjectError> {
    let mut result = document.clone();
    let mut reports = Vec::new();
    walk(&mut result, &mut |object, place| {
        let report = inject_object(injector, cluster, object, place)?;
        reports.push(report);
        Ok(())
    })?;
    Ok((result, reports))
}

/// The pods that a document describes, without injecting them: for each workload, the object's kind, namespace and
/// name, and its pod.
pub fn pods(document: &Value) -> Vec<(Workload, Value)> {
    let mut found = Vec::new();
    let mut copy = document.clone();
    // The closure never fails, so neither does the walk.
    let _ = walk(&mut copy, &mut |object, place| {
        found.push((identity(object), place.pod(object)));
        Ok(())
    });
    found
}

fn inject_object(
    injector: &Injector,
    cluster: &Cluster,
    object: &mut Value,
    place: Place,
) -> Result<Report, InjectError> {
    let workload = identity(object);
    let pod_in = place.pod(object);
    pod::check(&pod_in)?;
    let (decision, mut warnings) = injector.decide_with_notes(&pod_in, &workload.namespace);
    let mut report = Report {
        kind: workload.kind.clone(),
        namespace: workload.namespace.clone(),
        name: workload.name.clone(),
        decision,
        warnings: Vec::new(),
    };
    if report.decision.is_inject() {
        let owner = if place == Place::Pod { None } else { Some(workload.clone()) };
        let request =
            Request { workload: owner, offline: true, ..Request::new(&pod_in, &workload.namespace, cluster) };
        let injected = injector.inject(&request)?;
        place.put(object, injected.pod);
        warnings.extend(injected.warnings);
    }
    report.warnings = warnings;
    Ok(report)
}

fn identity(object: &Value) -> Workload {
    let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
    Workload {
        name: text("/metadata/name"),
        namespace: text("/metadata/namespace"),
        api_version: text("/apiVersion"),
        kind: text("/kind"),
    }
}

/// Where a kind keeps its pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Pod,
    Template,
    CronJob,
}

impl Place {
    fn of(kind: &str) -> Option<Self> {
        match kind {
            "Pod" => Some(Self::Pod),
            "CronJob" => Some(Self::CronJob),
            kind if TEMPLATED.contains(&kind) => Some(Self::Template),
            _ => None,
        }
    }

    /// Places of the pod's metadata and spec. A CronJob's labels and annotations are those of its job template, as
    /// upstream has it.
    fn pointers(self) -> (&'static str, &'static str) {
        match self {
            Self::Pod => ("/metadata", "/spec"),
            Self::Template => ("/spec/template/metadata", "/spec/template/spec"),
            Self::CronJob => ("/spec/jobTemplate/metadata", "/spec/jobTemplate/spec/template/spec"),
        }
    }

    fn pod(self, object: &Value) -> Value {
        let (metadata, spec) = self.pointers();
        let mut pod_in = Map::new();
        for (field, pointer) in [("metadata", metadata), ("spec", spec)] {
            if let Some(value) = object.pointer(pointer).filter(|value| !value.is_null()) {
                pod_in.insert(field.to_owned(), value.clone());
            }
        }
        Value::Object(pod_in)
    }

    fn put(self, object: &mut Value, mut pod_out: Value) {
        let (metadata, spec) = self.pointers();
        for (field, pointer) in [("metadata", metadata), ("spec", spec)] {
            let Some(value) = pod::as_map(&mut pod_out).remove(field) else { continue };
            let mut at = &mut *object;
            for step in pointer.split('/').skip(1) {
                at = pod::as_map(at).entry(step.to_owned()).or_insert(Value::Null);
            }
            *at = value;
        }
    }
}

type Visit<'a> = dyn FnMut(&mut Value, Place) -> Result<(), InjectError> + 'a;

fn walk(document: &mut Value, visit: &mut Visit<'_>) -> Result<(), InjectError> {
    let kind = document.get("kind").and_then(Value::as_str).unwrap_or_default();
    if let Some(place) = Place::of(kind) {
        return visit(document, place);
    }
    if kind == "List"
        && let Some(items) = document.get_mut("items").and_then(Value::as_array_mut)
    {
        for item in items {
            walk(item, visit)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
