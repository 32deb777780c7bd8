//! Where the `Any`s of a JSON document are. Only descriptors tell: in a `Struct` the same keys mean nothing.

use prost_reflect::{Kind, MessageDescriptor};
use serde_json::Value as Json;

use super::pool;

/// Hands every `Any` of the document to `change`, outer ones first; whether anything was changed.
pub(super) fn each(
    json: &mut Json,
    descriptor: &MessageDescriptor,
    change: &mut dyn FnMut(&mut Json) -> bool,
) -> bool {
    if descriptor.full_name() == pool::ANY {
        let changed = change(json);
        return inside(json, change) | changed;
    }
    let Json::Object(fields) = json else { return false };
    let mut changed = false;
    for (name, value) in fields {
        let field = descriptor.get_field_by_name(name).or_else(|| descriptor.get_field_by_json_name(name));
        let Some(Kind::Message(kind)) = field.as_ref().map(|field| field.kind()) else { continue };
        let entry = kind.is_map_entry().then(|| kind.map_entry_value_field().kind());
        changed |= match (entry, value) {
            (Some(Kind::Message(kind)), Json::Object(entries)) => {
                entries.values_mut().fold(false, |any, value| each(value, &kind, change) | any)
            }
            (None, Json::Array(items)) => {
                items.iter_mut().fold(false, |any, item| each(item, &kind, change) | any)
            }
            (None, value) => each(value, &kind, change),
            (Some(_), _) => false,
        };
    }
    changed
}

/// The message in an `Any`: beside its type, or under "value" where its JSON is no object of its fields.
fn inside(json: &mut Json, change: &mut dyn FnMut(&mut Json) -> bool) -> bool {
    let name = json.get("@type").and_then(Json::as_str).map(pool::name_of).unwrap_or_default();
    let Some(descriptor) = pool::known(name) else { return false };
    if descriptor.full_name() == pool::ANY {
        return json.get_mut("value").is_some_and(|value| each(value, &descriptor, change));
    }
    each(json, &descriptor, change)
}
