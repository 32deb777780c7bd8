//! What the injection webhook is told: chart values, mesh configuration, revision, istiod's environment.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use mesh_inject::{Settings, offline};
use serde_json::{Map, Value, json};

use super::{Config, ServeError};

/// What the injection webhook and its configuration are made from. The default is what [`Settings::default`] injects.
#[derive(Debug, Clone, Default)]
pub struct InjectorConfig {
    /// Chart values, or `{values, mesh_configmap, default_templates}`, as YAML or JSON.
    pub values: Option<PathBuf>,
    /// A MeshConfig, merged over the defaults, as YAML or JSON.
    pub mesh_config: Option<PathBuf>,
    /// The revision of this control plane; the values' own where absent.
    pub revision: Option<String>,
    /// istiod's environment: `PLATFORM`, `COMPLIANCE_POLICY`, `ENABLE_NATIVE_SIDECARS`; others are ignored.
    pub environment: BTreeMap<String, String>,
}

/// Reads the files: values first, then the mesh configuration, then the environment, then the revision.
pub(super) fn settings(config: &Config) -> Result<Settings, ServeError> {
    let told = &config.injector;
    let mut settings = match &told.values {
        None => Settings::default(),
        Some(path) => Settings::from_document(document("--injector-values", path)?)
            .map_err(|error| ServeError::config("--injector-values", &path.display().to_string(), error))?,
    };
    if let Some(path) = &told.mesh_config {
        settings = settings.with_mesh(&document("--mesh-config", path)?);
    }
    settings = settings.with_environment(&told.environment);
    if let Some(revision) = &told.revision {
        settings.revision.clone_from(revision);
        set(&mut settings.values, &["revision"], json!(revision));
    }
    let mesh = &config.mesh;
    // The certificate authority signs for this trust domain, and policies of this namespace are mesh-wide: proxies must
    // not be told otherwise.
    for (flag, field, own) in [
        ("--trust-domain", "trustDomain", &mesh.trust_domain),
        ("--root-namespace", "rootNamespace", &mesh.root_namespace),
    ] {
        match settings.mesh.get(field).and_then(Value::as_str) {
            Some(other) if other != own => {
                return Err(ServeError::config(
                    flag,
                    own,
                    format!("the mesh configuration's {field} is {other:?}"),
                ));
            }
            _ => set(&mut settings.mesh, &[field], json!(own)),
        }
    }
    set_unless(&mut settings.values, &["global", "istioNamespace"], json!(mesh.root_namespace));
    let (service, namespace) = service(&settings);
    let address = format!("{service}.{namespace}.svc:15012");
    set_unless(&mut settings.mesh, &["defaultConfig", "discoveryAddress"], json!(address));
    Ok(settings)
}

/// Name and namespace of the control plane's service, as sidecars and webhook configurations name it.
pub(super) fn service(settings: &Settings) -> (String, String) {
    let suffix = if settings.revision.is_empty() { String::new() } else { format!("-{}", settings.revision) };
    let namespace = settings.values.pointer("/global/istioNamespace").and_then(Value::as_str);
    (format!("istiod{suffix}"), namespace.unwrap_or_default().to_owned())
}

fn document(flag: &'static str, path: &Path) -> Result<Value, ServeError> {
    let wrong = |message: String| ServeError::config(flag, &path.display().to_string(), message);
    let text = fs::read_to_string(path).map_err(|error| wrong(error.to_string()))?;
    let mut documents = offline::parse_documents(&text).map_err(|error| wrong(error.to_string()))?;
    match (documents.pop(), documents.is_empty()) {
        (Some(document @ Value::Object(_)), true) => Ok(document),
        _ => Err(wrong("expected exactly one document, a map".to_owned())),
    }
}

/// Puts a value at a path of field names.
fn set(document: &mut Value, path: &[&str], value: Value) {
    let mut at = document;
    for field in path {
        if !at.is_object() {
            *at = Value::Object(Map::new());
        }
        let Value::Object(map) = at else { return };
        at = map.entry((*field).to_owned()).or_insert(Value::Null);
    }
    *at = value;
}

fn set_unless(document: &mut Value, path: &[&str], value: Value) {
    let present = path.iter().try_fold(&*document, |at, field| at.get(field));
    if present.is_none_or(|present| present.is_null() || present == "") {
        set(document, path, value);
    }
}
