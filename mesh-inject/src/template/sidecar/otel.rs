//! OpenTelemetry resource attributes.

use serde_json::Value;

use super::first_container;
use crate::annotation as a;
use crate::json::at;
use crate::pod;
use crate::template::TemplateContext;

/// Whether a provider of the mesh asks for semantic conventions.
pub(crate) fn asked(mesh: &Value) -> bool {
    let providers = mesh.get("extensionProviders").and_then(Value::as_array);
    providers.into_iter().flatten().any(|provider| {
        at(provider, ["opentelemetry", "serviceAttributeEnrichment"]).and_then(Value::as_str)
            == Some("OTEL_SEMANTIC_CONVENTIONS")
    })
}

/// Value of `OTEL_RESOURCE_ATTRIBUTES`; empty unless a provider asks for semantic conventions.
pub(super) fn resource_attributes(context: &TemplateContext<'_>) -> String {
    if !asked(context.mesh) {
        return String::new();
    }
    let annotation = |key: &str| context.annotation(key).filter(|value| !value.is_empty());
    let namespace = context.workload.namespace.as_str();
    let mut attributes = Vec::new();
    if let Some(value) = annotation(a::OTEL_NAMESPACE).or(Some(namespace)).filter(|value| !value.is_empty()) {
        attributes.push(format!("service.namespace={value}"));
    }
    let version = annotation(a::OTEL_VERSION)
        .or_else(|| context.label("app.kubernetes.io/version").filter(|value| !value.is_empty()))
        .map(str::to_owned)
        .or_else(|| image_version(context.pod));
    if let Some(version) = version {
        attributes.push(format!("service.version={version}"));
    }
    match (annotation(a::OTEL_INSTANCE), first_container(context.pod)) {
        (Some(value), _) => attributes.push(format!("service.instance.id={value}")),
        (None, Some(container)) if !namespace.is_empty() => {
            attributes.push(format!("service.instance.id={namespace}.$(POD_NAME).{container}"));
        }
        _ => {}
    }
    attributes.join(",")
}

/// Tag and digest of the image, when there is exactly one container.
fn image_version(pod_in: &Value) -> Option<String> {
    let [container] = pod::containers(pod_in) else { return None };
    let image = container.get("image")?.as_str()?;
    let (name, digest) = match image.split_once('@') {
        Some((name, digest)) => (name, Some(digest)),
        None => (image, None),
    };
    let last = name.rsplit_once('/').map_or(name, |(_, last)| last);
    let tag = last.split_once(':').map(|(_, tag)| tag);
    match (tag, digest) {
        (Some(tag), Some(digest)) => Some(format!("{tag}@{digest}")),
        (Some(tag), None) => Some(tag.to_owned()),
        (None, Some(digest)) => Some(digest.to_owned()),
        (None, None) => None,
    }
}
