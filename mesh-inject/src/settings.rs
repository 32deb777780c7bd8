//! What the mesh's operator decides: values, mesh configuration, templates.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::error::InjectError;
use crate::selector::LabelSelector;
use crate::template::Template;

/// Everything that decides what is injected, in the forms that operators already have.
///
/// [`Settings::default`] injects this project's images as a native sidecar. `values` and `mesh` are merged over the
/// defaults when the [`crate::Injector`] is built, so both may name only what differs.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Chart values in Istio's form (`global`, `pilot`, `sidecarInjectorWebhook`, …). Default: empty (all defaults).
    pub values: Value,
    /// `MeshConfig` in its JSON form. Default: empty (all defaults).
    pub mesh: Value,
    /// `enabled` (default) or `disabled`: what happens to pods that say nothing. Anything else injects nothing.
    pub policy: String,
    /// Templates of pods that do not name any. Default: `sidecar`; an empty list means the default.
    pub default_templates: Vec<String>,
    /// Templates beside the built-in ones (`sidecar`, `gateway`, `grpc-agent`, `grpc-simple`), or instead of them.
    pub templates: BTreeMap<String, Template>,
    /// Names that stand for several templates; expanded once.
    pub aliases: BTreeMap<String, Vec<String>>,
    /// Pods that are never injected unless they ask for it. Default: none.
    pub never_inject: Vec<LabelSelector>,
    /// Pods that are always injected unless they refuse it. Default: none.
    pub always_inject: Vec<LabelSelector>,
    /// Annotations put on every injected pod. Default: none.
    pub injected_annotations: BTreeMap<String, String>,
    /// Revision of this control plane. Default: empty, which means `default`.
    pub revision: String,
    /// OpenShift: user and group come from the namespace's ranges. Default: false.
    pub openshift: bool,
    /// Compliance policy handed to the sidecar (`fips-140-3`, …). Default: empty.
    pub compliance_policy: String,
    /// Layout of the sidecar. Default: [`NativeSidecars::Auto`].
    pub native_sidecars: NativeSidecars,
    /// Refuse pods that cannot work after injection (an application running as the proxy's user) instead of
    /// warning about them. Default: false.
    pub refuse_clashes: bool,
}

/// Is the sidecar an init container with `restartPolicy: Always`, or an ordinary container?
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum NativeSidecars {
    /// Native where every kubelet that may run the pod is 1.33 or later; native when no node is known.
    #[default]
    Auto,
    /// Always native.
    Always,
    /// Always the classic layout.
    Never,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            values: Value::Object(Map::new()),
            mesh: Value::Object(Map::new()),
            policy: "enabled".to_owned(),
            default_templates: Vec::new(),
            templates: BTreeMap::new(),
            aliases: BTreeMap::new(),
            never_inject: Vec::new(),
            always_inject: Vec::new(),
            injected_annotations: BTreeMap::new(),
            revision: String::new(),
            openshift: false,
            compliance_policy: String::new(),
            native_sidecars: NativeSidecars::Auto,
            refuse_clashes: false,
        }
    }
}

impl Settings {
    /// Settings from chart values alone, including what they say under `sidecarInjectorWebhook`.
    ///
    /// # Errors
    /// [`InjectError::Settings`] when a list or selector has the wrong shape.
    pub fn from_values(values: Value) -> Result<Self, InjectError> {
        let mut settings = Self::default();
        settings.apply_webhook_values(&values)?;
        settings.values = values;
        Ok(settings)
    }

    /// Settings from what people call their values file: a document as [`Settings::from_installation`] takes it if it has
    /// a field `values`, else chart values alone.
    ///
    /// # Errors
    /// [`InjectError::Settings`] when a field has the wrong shape.
    pub fn from_document(document: Value) -> Result<Self, InjectError> {
        if document.get("values").is_some() {
            Self::from_installation(&document)
        } else {
            Self::from_values(document)
        }
    }

    /// Settings from one document `{values, mesh_configmap, default_templates, custom_templates}`, the form in which
    /// rendered installations are usually kept. Templates that are Go text are kept by name and refused when a pod
    /// asks for them.
    ///
    /// # Errors
    /// [`InjectError::Settings`] when a field has the wrong shape.
    pub fn from_installation(document: &Value) -> Result<Self, InjectError> {
        let values = document.get("values").cloned().unwrap_or_else(|| json!({}));
        let mut settings = Self::from_values(values)?;
        if let Some(mesh) = document.get("mesh_configmap").filter(|mesh| !mesh.is_null()) {
            settings.mesh = mesh.clone();
        }
        if let Some(names) = document.get("default_templates").filter(|names| !names.is_null()) {
            settings.default_templates = strings("default_templates", names)?;
        }
        if let Some(templates) = document.get("custom_templates") {
            settings.add_text_templates("custom_templates", templates)?;
        }
        Ok(settings)
    }

    /// Honour istiod's own environment: `PLATFORM`, `COMPLIANCE_POLICY`, `ENABLE_NATIVE_SIDECARS`. Others are ignored.
    #[must_use]
    pub fn with_environment<K: AsRef<str>, V: AsRef<str>>(
        mut self,
        env: impl IntoIterator<Item = (K, V)>,
    ) -> Self {
        for (key, value) in env {
            let value = value.as_ref();
            match key.as_ref() {
                "PLATFORM" => self.openshift = value.eq_ignore_ascii_case("openshift"),
                "COMPLIANCE_POLICY" => self.compliance_policy = value.to_owned(),
                "ENABLE_NATIVE_SIDECARS" => {
                    self.native_sidecars = match value {
                        "auto" | "" => NativeSidecars::Auto,
                        "true" => NativeSidecars::Always,
                        _ => NativeSidecars::Never,
                    }
                }
                _ => {}
            }
        }
        self
    }

    /// Merge a `MeshConfig` over the one already here; objects merge, everything else is replaced.
    #[must_use]
    pub fn with_mesh(mut self, mesh: &Value) -> Self {
        overlay(&mut self.mesh, mesh);
        self
    }

    fn apply_webhook_values(&mut self, values: &Value) -> Result<(), InjectError> {
        if let Some(revision) = values.get("revision").and_then(Value::as_str) {
            self.revision = revision.to_owned();
        }
        if let Some(policy) = values.pointer("/global/proxy/autoInject").and_then(Value::as_str) {
            self.policy = policy.to_owned();
        }
        let Some(webhook) = values.get("sidecarInjectorWebhook") else { return Ok(()) };
        let selectors = |name: &str| -> Result<Vec<LabelSelector>, InjectError> {
            match webhook.get(name) {
                None | Some(Value::Null) => Ok(Vec::new()),
                Some(Value::Array(items)) => {
                    items.iter().map(|item| LabelSelector::from_json(name, item)).collect()
                }
                Some(other) => Err(wrong(name, "a list of label selectors", other)),
            }
        };
        self.never_inject = selectors("neverInjectSelector")?;
        self.always_inject = selectors("alwaysInjectSelector")?;
        if let Some(names) = webhook.get("defaultTemplates").filter(|names| !names.is_null()) {
            self.default_templates = strings("defaultTemplates", names)?;
        }
        match webhook.get("injectedAnnotations") {
            None | Some(Value::Null) => {}
            Some(Value::Object(map)) => {
                for (key, value) in map {
                    let text =
                        value.as_str().ok_or_else(|| wrong("injectedAnnotations", "strings", value))?;
                    self.injected_annotations.insert(key.clone(), text.to_owned());
                }
            }
            Some(other) => return Err(wrong("injectedAnnotations", "a map of strings", other)),
        }
        if let Some(templates) = webhook.get("templates") {
            self.add_text_templates("sidecarInjectorWebhook.templates", templates)?;
        }
        Ok(())
    }

    fn add_text_templates(&mut self, field: &str, templates: &Value) -> Result<(), InjectError> {
        match templates {
            Value::Null => Ok(()),
            Value::Object(map) => {
                for (name, text) in map {
                    let text = text.as_str().ok_or_else(|| wrong(field, "template texts", text))?;
                    self.templates.insert(name.clone(), Template::from_text(name, text));
                }
                Ok(())
            }
            other => Err(wrong(field, "a map of template texts", other)),
        }
    }
}

/// Our defaults of the chart values, complete: what a template reads is always there.
pub(crate) fn default_values() -> Value {
    let proxy = json!({
        "image": "mesh-sidecar",
        "clusterDomain": "cluster.local",
        "logLevel": "warning",
        "componentLogLevel": "misc:error",
        "includeIPRanges": "*",
        "excludeIPRanges": "",
        "includeInboundPorts": "*",
        "excludeInboundPorts": "",
        "includeOutboundPorts": "",
        "excludeOutboundPorts": "",
        "outlierLogPath": "",
        "privileged": false,
        "readinessFailureThreshold": 4,
        "readinessInitialDelaySeconds": 0,
        "readinessPeriodSeconds": 15,
        "startupProbe": { "enabled": true, "failureThreshold": 600 },
        "statusPort": 15020,
        "seccompProfile": {"type": "RuntimeDefault"},
        "tracer": "none",
        "resources": {
            "requests": { "cpu": "100m", "memory": "128Mi" },
            "limits": { "cpu": "2000m", "memory": "1024Mi" },
        },
    });
    json!({
        "global": {
            "hub": "mesh",
            "tag": env!("CARGO_PKG_VERSION"),
            "variant": "",
            "imagePullPolicy": "",
            "imagePullSecrets": [],
            "istioNamespace": "istio-system",
            "caAddress": "",
            "caName": "",
            "pilotCertProvider": "istiod",
            "trustBundleName": "",
            "meshID": "",
            "network": "",
            "mountMtlsCerts": false,
            "logAsJson": false,
            "nativeNftables": false,
            "logging": { "level": "default:info" },
            "multiCluster": { "clusterName": "" },
            "sds": { "token": { "aud": "istio-ca" } },
            "sts": { "servicePort": 0 },
            "proxy": proxy,
            "proxy_init": { "image": "mesh-init", "forceApplyIptables": false },
        },
        "pilot": { "cni": { "enabled": false, "provider": "default" }, "env": {} },
        "gateways": { "securityContext": {}, "seccompProfile": {} },
        "sidecarInjectorWebhook": { "rewriteAppHTTPProbe": true },
        "revision": "",
    })
}

/// Lay one JSON document over another: objects merge key by key, everything else (also `null`) is replaced.
pub(crate) fn overlay(base: &mut Value, over: &Value) {
    match (base, over) {
        (Value::Object(base), Value::Object(over)) => {
            for (key, value) in over {
                match base.get_mut(key) {
                    Some(existing) => overlay(existing, value),
                    None => {
                        base.insert(key.clone(), value.clone());
                    }
                }
            }
        }
        (base, over) => *base = over.clone(),
    }
}

fn strings(field: &str, value: &Value) -> Result<Vec<String>, InjectError> {
    let items = value.as_array().ok_or_else(|| wrong(field, "a list of strings", value))?;
    items
        .iter()
        .map(|item| item.as_str().map(str::to_owned).ok_or_else(|| wrong(field, "a list of strings", item)))
        .collect()
}

fn wrong(field: &str, expected: &str, found: &Value) -> InjectError {
    InjectError::Settings {
        field: field.to_owned(),
        message: format!("expected {expected}, found {}", crate::json::type_name(found)),
    }
}
