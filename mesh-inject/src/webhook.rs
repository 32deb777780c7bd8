//! What the API server asks before it asks us: the `MutatingWebhookConfiguration`.

mod check;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::annotation::{INJECT, NAMESPACE_INJECTION, REVISION};
use crate::decision::IGNORED_NAMESPACES;
use crate::selector::{LabelSelector, Labels};
use crate::settings::Settings;

pub use check::{Finding, check};

/// Suffix of the name of every entry that is ours to patch.
pub const ENTRY_SUFFIX: &str = "sidecar-injector.istio.io";

/// What a webhook configuration is made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WebhookOptions {
    /// Revision of the control plane that answers. Default: empty, which means `default`.
    pub revision: String,
    /// A tag: another name under which that revision is selected. Default: none.
    pub tag: Option<String>,
    /// Namespace of the control plane. Default: `istio-system`.
    pub namespace: String,
    /// Inject every namespace that does not refuse (adds the `auto.` entry). Default: false.
    pub enable_namespaces_by_default: bool,
    /// Full URL of the webhook instead of a Service. Default: none.
    pub injection_url: Option<String>,
    /// Path at the Service. Default: `/inject`.
    pub path: String,
    /// Port of the Service. Default: 443.
    pub port: u16,
    /// PEM of the authority that signed the webhook's certificate. Default: none.
    pub ca_bundle: Option<String>,
    /// What the API server does when it gets no answer: `Fail` (default: never an uninjected pod by accident) or
    /// `Ignore`.
    pub failure_policy: String,
    /// `Never` (default) or `IfNeeded`.
    pub reinvocation_policy: String,
}

impl Default for WebhookOptions {
    fn default() -> Self {
        Self {
            revision: String::new(),
            tag: None,
            namespace: "istio-system".to_owned(),
            enable_namespaces_by_default: false,
            injection_url: None,
            path: "/inject".to_owned(),
            port: 443,
            ca_bundle: None,
            failure_policy: "Fail".to_owned(),
            reinvocation_policy: "Never".to_owned(),
        }
    }
}

impl WebhookOptions {
    /// What an installation with these settings has: its own configuration and one for each tag of the values'
    /// `revisionTags`. Read are also `sidecarInjectorWebhook.enableNamespacesByDefault` and `reinvocationPolicy`,
    /// `istiodRemote.injectionURL` and `injectionPath`, and `global.istioNamespace`.
    #[must_use]
    pub fn of_settings(settings: &Settings) -> Vec<Self> {
        let values = &settings.values;
        let text = |pointer: &str| Some(text(values, pointer)).filter(|text| !text.is_empty());
        let default = Self::default();
        let own = Self {
            revision: settings.revision.clone(),
            namespace: text("/global/istioNamespace").unwrap_or_else(|| default.namespace.clone()),
            enable_namespaces_by_default: values.pointer("/sidecarInjectorWebhook/enableNamespacesByDefault")
                == Some(&Value::Bool(true)),
            injection_url: text("/istiodRemote/injectionURL"),
            path: text("/istiodRemote/injectionPath").unwrap_or_else(|| default.path.clone()),
            reinvocation_policy: text("/sidecarInjectorWebhook/reinvocationPolicy")
                .unwrap_or_else(|| default.reinvocation_policy.clone()),
            ..default
        };
        let tags = values.get("revisionTags").and_then(Value::as_array).into_iter().flatten();
        let tagged =
            tags.filter_map(Value::as_str).map(|tag| Self { tag: Some(tag.to_owned()), ..own.clone() });
        std::iter::once(own.clone()).chain(tagged).collect()
    }

    /// Name of the object: `istio-sidecar-injector[-REVISION][-NAMESPACE]` or `istio-revision-tag-TAG[-NAMESPACE]`.
    #[must_use]
    pub fn object_name(&self) -> String {
        let mut name = match &self.tag {
            Some(tag) => format!("istio-revision-tag-{tag}"),
            None if self.revision.is_empty() => "istio-sidecar-injector".to_owned(),
            None => format!("istio-sidecar-injector-{}", self.revision),
        };
        if self.namespace != "istio-system" {
            name.push('-');
            name.push_str(&self.namespace);
        }
        name
    }

    /// The `MutatingWebhookConfiguration` object: four entries for the default revision (five with
    /// `enable_namespaces_by_default`), two for any other revision or tag.
    #[must_use]
    pub fn build(&self) -> Value {
        let revision = if self.revision.is_empty() { "default" } else { &self.revision };
        let selected = self.tag.as_deref().unwrap_or(revision);
        let not_refused = json!({"key": INJECT, "operator": "NotIn", "values": ["false"]});
        let asked = json!({"key": INJECT, "operator": "In", "values": ["true"]});
        let absent = |key: &str| json!({"key": key, "operator": "DoesNotExist"});
        let is = |key: &str, value: &str| json!({"key": key, "operator": "In", "values": [value]});
        let mut entries = vec![
            self.entry(
                "rev.namespace",
                json!([is(REVISION, selected), absent(NAMESPACE_INJECTION)]),
                json!([not_refused]),
            ),
            self.entry(
                "rev.object",
                json!([absent(REVISION), absent(NAMESPACE_INJECTION)]),
                json!([not_refused, is(REVISION, selected)]),
            ),
        ];
        if selected == "default" {
            entries.push(self.entry(
                "namespace",
                json!([is(NAMESPACE_INJECTION, "enabled")]),
                json!([not_refused]),
            ));
            entries.push(self.entry(
                "object",
                json!([absent(NAMESPACE_INJECTION), absent(REVISION)]),
                json!([asked, absent(REVISION)]),
            ));
            if self.enable_namespaces_by_default {
                let ignored = json!({"key": "kubernetes.io/metadata.name", "operator": "NotIn", "values": IGNORED_NAMESPACES});
                entries.push(self.entry(
                    "auto",
                    json!([absent(NAMESPACE_INJECTION), absent(REVISION), ignored]),
                    json!([absent(INJECT), absent(REVISION)]),
                ));
            }
        }
        let mut labels = json!({
            "app": "sidecar-injector",
            "app.kubernetes.io/name": "istiod",
            "app.kubernetes.io/part-of": "istio",
            "install.operator.istio.io/owning-resource": "unknown",
            "istio.io/rev": revision,
            "operator.istio.io/component": "Pilot",
            "release": "istio",
        });
        if let Some(tag) = &self.tag {
            labels["istio.io/tag"] = json!(tag);
        }
        json!({
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": "MutatingWebhookConfiguration",
            "metadata": {"name": self.object_name(), "labels": labels},
            "webhooks": entries,
        })
    }

    fn entry(&self, name: &str, namespaces: Value, objects: Value) -> Value {
        let mut client = Map::new();
        match &self.injection_url {
            Some(url) => {
                client.insert("url".to_owned(), json!(url));
            }
            None => {
                let service = if self.revision.is_empty() || self.revision == "default" {
                    "istiod".to_owned()
                } else {
                    format!("istiod-{}", self.revision)
                };
                client.insert(
                    "service".to_owned(),
                    json!({"name": service, "namespace": self.namespace, "path": self.path, "port": self.port}),
                );
            }
        }
        if let Some(pem) = &self.ca_bundle {
            client.insert("caBundle".to_owned(), json!(STANDARD.encode(pem)));
        }
        json!({
            "name": format!("{name}.{ENTRY_SUFFIX}"),
            "clientConfig": client,
            "sideEffects": "None",
            "failurePolicy": self.failure_policy,
            "reinvocationPolicy": self.reinvocation_policy,
            "admissionReviewVersions": ["v1"],
            "rules": [{"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"]}],
            "namespaceSelector": {"matchExpressions": namespaces},
            "objectSelector": {"matchExpressions": objects},
        })
    }
}

/// Put the authority's certificate (PEM) into every entry of ours. True when anything changed.
///
/// A configuration of another revision (label `istio.io/rev`) is left alone.
pub fn patch_ca_bundle(configuration: &mut Value, revision: &str, pem: &str) -> bool {
    let wanted = if revision.is_empty() { "default" } else { revision };
    if Labels::of(configuration).get(REVISION) != Some(wanted) {
        return false;
    }
    let encoded = STANDARD.encode(pem);
    let mut changed = false;
    let entries = configuration.get_mut("webhooks").and_then(Value::as_array_mut);
    for entry in entries.into_iter().flatten() {
        let ours = entry.get("name").and_then(Value::as_str).is_some_and(|name| name.ends_with(ENTRY_SUFFIX));
        if let Some(client) = entry.get_mut("clientConfig").and_then(Value::as_object_mut)
            && ours
            && client.get("caBundle").and_then(Value::as_str) != Some(&encoded)
        {
            client.insert("caBundle".to_owned(), Value::String(encoded.clone()));
            changed = true;
        }
    }
    changed
}

/// One entry of a webhook configuration, and whether the API server would call it for a pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Selection {
    /// Name of the configuration object.
    pub configuration: String,
    /// Name of the entry.
    pub webhook: String,
    /// `namespace/service` or the URL that would be called.
    pub target: String,
    /// What keeps the API server from calling it; `None` when it calls.
    pub unmet: Option<String>,
}

impl Selection {
    /// Would the API server call this entry?
    #[must_use]
    pub fn selected(&self) -> bool {
        self.unmet.is_none()
    }
}

/// Ask every entry of every configuration, as the API server does on the creation of `pod` in `namespace` (a
/// Namespace object). The answer names, for each entry, the first requirement that is not met.
#[must_use]
pub fn selections(configurations: &[Value], namespace: &Value, pod: &Value) -> Vec<Selection> {
    let namespace_labels = Labels::of_namespace(namespace);
    let pod_labels = Labels::of(pod);
    let mut all = Vec::new();
    for configuration in configurations {
        let object = text(configuration, "/metadata/name");
        for entry in configuration.get("webhooks").and_then(Value::as_array).into_iter().flatten() {
            let unmet = operation_unmet(entry)
                .or_else(|| unmet(entry, "namespaceSelector", "namespace label", &namespace_labels))
                .or_else(|| unmet(entry, "objectSelector", "pod label", &pod_labels));
            let target = match entry.pointer("/clientConfig/url").and_then(Value::as_str) {
                Some(url) => url.to_owned(),
                None => format!(
                    "{}/{}",
                    text(entry, "/clientConfig/service/namespace"),
                    text(entry, "/clientConfig/service/name")
                ),
            };
            all.push(Selection {
                configuration: object.clone(),
                webhook: text(entry, "/name"),
                target,
                unmet,
            });
        }
    }
    all
}

/// The entries that the API server calls for `pod` in `namespace` (a Namespace object). With Istio's own selectors
/// that is at most one.
#[must_use]
pub fn selected_by(configurations: &[Value], namespace: &Value, pod: &Value) -> Vec<Selection> {
    selections(configurations, namespace, pod).into_iter().filter(Selection::selected).collect()
}

fn operation_unmet(entry: &Value) -> Option<String> {
    let Some(rules) = entry.get("rules").and_then(Value::as_array) else {
        return Some("it has no rules".to_owned());
    };
    let lists = |rule: &Value, field: &str, wanted: &str| {
        rule.get(field)
            .and_then(Value::as_array)
            .is_some_and(|items| items.iter().any(|item| item == wanted || item == "*"))
    };
    let covers = rules.iter().any(|rule| {
        lists(rule, "operations", "CREATE")
            && lists(rule, "apiGroups", "")
            && lists(rule, "apiVersions", "v1")
            && (lists(rule, "resources", "pods") || lists(rule, "resources", "*/*"))
    });
    (!covers).then(|| "its rules do not cover the creation of pods".to_owned())
}

fn unmet(entry: &Value, field: &str, what: &str, labels: &Labels<'_>) -> Option<String> {
    let selector = LabelSelector::from_json(field, entry.get(field).unwrap_or(&Value::Null));
    match selector {
        Ok(selector) => match selector.problem() {
            Some(problem) => Some(format!("{field} is invalid: {problem}")),
            None => selector.unmet(labels).map(|requirement| format!("{what} {requirement}")),
        },
        Err(error) => Some(error.to_string()),
    }
}

fn text(value: &Value, pointer: &str) -> String {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests;
