//! Labels and annotations that every injected pod gets.

use std::fmt::Write as _;

use serde_json::Value;

use crate::annotation as a;
use crate::pod;
use crate::settings::Settings;

/// Write the network label, the status annotation and the annotations of the settings.
pub(crate) fn write_metadata(merged: &mut Value, template: &Value, network: &str, settings: &Settings) {
    if !network.is_empty() {
        pod::meta_mut(merged, "labels").insert(a::NETWORK.to_owned(), Value::from(network));
    }
    let revision = if settings.revision.is_empty() { "default" } else { &settings.revision };
    let mut status = String::from("{");
    for field in ["initContainers", "containers", "volumes", "imagePullSecrets"] {
        let _ = write!(status, "\"{field}\":{},", names(template, field));
    }
    let _ = write!(status, "\"revision\":{}}}", Value::from(revision));
    let annotations = pod::meta_mut(merged, "annotations");
    annotations.insert(a::STATUS.to_owned(), Value::String(status));
    for (key, value) in &settings.injected_annotations {
        annotations.insert(key.clone(), Value::String(value.clone()));
    }
}

fn names(template: &Value, field: &str) -> Value {
    let items = pod::list(template, field);
    if items.is_empty() {
        Value::Null
    } else {
        items.iter().map(|item| Value::from(pod::name_of(item))).collect()
    }
}
