//! The last look: a pod that Kubernetes would reject because of us is refused here, with the field's name.

use std::collections::{BTreeSet, HashMap};

use serde_json::Value;

use crate::error::InjectError;
use crate::pod;

/// Refuse names that clash and volumes with two sources, unless the user's own pod already had them. With templates that
/// are not ours (`foreign`), the whole shape is checked again.
pub(super) fn check(original: &Value, merged: &Value, foreign: bool) -> Result<(), InjectError> {
    if foreign {
        pod::check(merged).map_err(|error| InjectError::Refused {
            field: "spec".to_owned(),
            message: format!("the injected pod would be invalid: {error}"),
        })?;
    }
    let mut names = BTreeSet::new();
    for list in ["initContainers", "containers", "ephemeralContainers"] {
        for (i, container) in pod::list(merged, list).iter().enumerate() {
            let name = pod::name_of(container);
            if !names.insert(name) {
                return Err(InjectError::Refused {
                    field: format!("spec.{list}[{i}].name"),
                    message: format!(
                        "container {name:?} would exist twice; the name is the injector's: rename yours"
                    ),
                });
            }
        }
    }
    // The user's own volumes by name: how many, and whether the first has one source at most.
    let mut own: HashMap<&str, (usize, bool)> = HashMap::new();
    for volume in pod::list(original, "volumes") {
        own.entry(pod::name_of(volume)).or_insert_with(|| (0, sources(volume) <= 1)).0 += 1;
    }
    let mut names = BTreeSet::new();
    for (i, volume) in pod::list(merged, "volumes").iter().enumerate() {
        let name = pod::name_of(volume);
        let (count, fine) = own.get(name).copied().unwrap_or((0, true));
        if sources(volume) > 1 && fine {
            return Err(InjectError::Refused {
                field: format!("spec.volumes[{i}]"),
                message: format!(
                    "volume {name:?} is the injector's; the pod declares it with another source: rename yours"
                ),
            });
        }
        if !names.insert(name) && count < 2 {
            return Err(InjectError::Refused {
                field: format!("spec.volumes[{i}].name"),
                message: format!("volume {name:?} would exist twice"),
            });
        }
    }
    Ok(())
}

/// A template must give metadata and spec of the right shape, or the merge would clobber the user's.
pub(super) fn check_overlay(name: &str, overlay: &Value) -> Result<(), InjectError> {
    let wrong = |message: String| InjectError::Template { name: name.to_owned(), message };
    let map = |value: Option<&Value>| value.is_none_or(|value| value.is_object() || value.is_null());
    for field in ["metadata", "spec"] {
        if !map(overlay.get(field)) {
            return Err(wrong(format!("`{field}` is not a map")));
        }
    }
    for field in ["labels", "annotations"] {
        let entries = overlay.get("metadata").and_then(|metadata| metadata.get(field));
        if !map(entries) {
            return Err(wrong(format!("`metadata.{field}` is not a map")));
        }
        for (key, value) in entries.and_then(Value::as_object).into_iter().flatten() {
            if !value.is_string() && !value.is_null() {
                return Err(wrong(format!("`metadata.{field}[{key}]` is not a string")));
            }
        }
    }
    for list in ["containers", "initContainers", "volumes"] {
        let Some(value) = overlay.get("spec").and_then(|spec| spec.get(list)) else { continue };
        let items = value.as_array().map(Vec::as_slice);
        if items.is_none_or(|items| items.iter().any(|item| pod::name_of(item).is_empty())) {
            return Err(wrong(format!("`spec.{list}` is not a list of named items")));
        }
    }
    Ok(())
}

fn sources(volume: &Value) -> usize {
    let fields = volume.as_object().into_iter().flatten();
    fields.filter(|(key, value)| *key != "name" && !value.is_null()).count()
}
