//! Looking for webhook configurations that would surprise people.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::Serialize;
use serde_json::{Value, json};

use super::{ENTRY_SUFFIX, selected_by};
use crate::annotation::{INJECT, NAMESPACE_INJECTION, REVISION};
use crate::decision::IGNORED_NAMESPACES;
use crate::selector::{LabelSelector, Labels};

/// Something that a person should know about their webhook configurations.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase", tag = "finding")]
#[non_exhaustive]
pub enum Finding {
    /// Two entries would both be called for one pod.
    Overlap {
        /// Namespace.
        namespace: String,
        /// The pod's labels in the case that shows it.
        pod: String,
        /// The entries.
        webhooks: Vec<String>,
    },
    /// The namespace asks for injection, yet no entry selects it.
    NothingInjected {
        /// Namespace.
        namespace: String,
        /// The label that asks.
        label: String,
    },
    /// Both of the labels are set; `istio-injection` wins.
    BothLabels {
        /// Namespace.
        namespace: String,
    },
    /// An entry has no CA bundle, so the API server cannot trust the webhook.
    NoCaBundle {
        /// Name of the configuration object.
        configuration: String,
        /// Name of the entry.
        webhook: String,
    },
    /// The failure policy lets pods through uninjected when the webhook does not answer.
    FailOpen {
        /// Name of the configuration object.
        configuration: String,
        /// Name of the entry.
        webhook: String,
    },
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Overlap { namespace, pod, webhooks } => write!(
                f,
                "namespace {namespace}: a pod with {pod} is selected by {}; it would be injected more than once",
                webhooks.join(" and ")
            ),
            Self::NothingInjected { namespace, label } => write!(
                f,
                "namespace {namespace}: {label} asks for injection, but no webhook selects it; its pods get nothing"
            ),
            Self::BothLabels { namespace } => write!(
                f,
                "namespace {namespace}: has both {NAMESPACE_INJECTION} and {REVISION}; {NAMESPACE_INJECTION} wins and {REVISION} is ignored"
            ),
            Self::NoCaBundle { configuration, webhook } => write!(
                f,
                "{configuration}: {webhook} has no caBundle; the API server will not trust the injector"
            ),
            Self::FailOpen { configuration, webhook } => write!(
                f,
                "{configuration}: {webhook} has failurePolicy Ignore; pods start without a sidecar while the injector is away"
            ),
        }
    }
}

/// Check configurations against the namespaces of a cluster: overlap, namespaces that ask and get nothing, missing
/// CA bundles, failing open. Pods are represented by every combination of the labels that pod selectors look at (at most
/// 4,096 of them).
#[must_use]
pub fn check(configurations: &[Value], namespaces: &[Value]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for configuration in configurations {
        let name = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let object = configuration.pointer("/metadata/name").map(name).unwrap_or_default();
        for entry in configuration.get("webhooks").and_then(Value::as_array).into_iter().flatten() {
            let webhook = entry.get("name").map(name).unwrap_or_default();
            if !webhook.ends_with(ENTRY_SUFFIX) {
                continue;
            }
            let bundle = entry.pointer("/clientConfig/caBundle").and_then(Value::as_str).unwrap_or_default();
            if bundle.is_empty() {
                findings
                    .push(Finding::NoCaBundle { configuration: object.clone(), webhook: webhook.clone() });
            }
            if entry.get("failurePolicy").and_then(Value::as_str) == Some("Ignore") {
                findings.push(Finding::FailOpen { configuration: object.clone(), webhook });
            }
        }
    }
    let pods = sample_pods(configurations);
    for namespace in namespaces {
        namespace_findings(configurations, namespace, &pods, &mut findings);
    }
    findings
}

fn namespace_findings(
    configurations: &[Value],
    namespace: &Value,
    pods: &[Value],
    findings: &mut Vec<Finding>,
) {
    let labels = Labels::of_namespace(namespace);
    let name = labels.get("kubernetes.io/metadata.name").unwrap_or_default().to_owned();
    let injection = labels.get(NAMESPACE_INJECTION);
    let revision = labels.get(REVISION);
    if injection.is_some() && revision.is_some() {
        findings.push(Finding::BothLabels { namespace: name.clone() });
    }
    let asks = match (injection, revision) {
        (Some("enabled"), _) => Some(format!("{NAMESPACE_INJECTION}=enabled")),
        (None, Some(revision)) => Some(format!("{REVISION}={revision}")),
        _ => None,
    };
    if let Some(label) = asks
        && (selected_by(configurations, namespace, &json!({})).is_empty()
            || IGNORED_NAMESPACES.contains(&name.as_str()))
    {
        findings.push(Finding::NothingInjected { namespace: name.clone(), label });
    }
    let overlap = pods.iter().find_map(|pod| {
        let selected = selected_by(configurations, namespace, pod);
        (selected.len() > 1).then(|| Finding::Overlap {
            namespace: name.clone(),
            pod: pod.pointer("/metadata/labels").map_or_else(|| "no labels".to_owned(), ToString::to_string),
            webhooks: selected.into_iter().map(|s| format!("{}/{}", s.configuration, s.webhook)).collect(),
        })
    });
    findings.extend(overlap);
}

/// Most pods that stand for all others; labels beyond that are left out.
const MAX_SAMPLES: usize = 4096;

/// A pod for every combination of the values that the pod selectors tell apart.
fn sample_pods(configurations: &[Value]) -> Vec<Value> {
    let mut labels: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    // First of all those that everybody knows.
    labels.entry(INJECT.to_owned()).or_default().extend(["true".to_owned(), "false".to_owned()]);
    for configuration in configurations {
        let own = Labels::of(configuration);
        let revisions = [own.get(REVISION), own.get("istio.io/tag")].into_iter().flatten();
        labels.entry(REVISION.to_owned()).or_default().extend(revisions.map(str::to_owned));
        for entry in configuration.get("webhooks").and_then(Value::as_array).into_iter().flatten() {
            let selector = entry.get("objectSelector").unwrap_or(&Value::Null);
            // A selector of the wrong shape selects nothing; its entry says so by itself.
            let Ok(selector) = LabelSelector::from_json("objectSelector", selector) else { continue };
            for (key, value) in selector.match_labels {
                labels.entry(key).or_default().insert(value);
            }
            for requirement in selector.match_expressions {
                let values = labels.entry(requirement.key).or_default();
                if requirement.values.is_empty() && values.is_empty() {
                    // Only whether the label is there counts.
                    values.insert("x".to_owned());
                }
                values.extend(requirement.values);
            }
        }
    }
    let mut samples = vec![serde_json::Map::new()];
    for (key, values) in labels {
        if samples.len().saturating_mul(values.len() + 1) > MAX_SAMPLES {
            continue;
        }
        let mut with = Vec::with_capacity(samples.len() * values.len());
        for value in &values {
            for sample in &samples {
                let mut sample = sample.clone();
                sample.insert(key.clone(), json!(value));
                with.push(sample);
            }
        }
        samples.extend(with);
    }
    samples.into_iter().map(|labels| json!({"metadata": {"labels": labels}})).collect()
}
