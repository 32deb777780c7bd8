//! Messages into JSON.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use prost::Message as _;
use prost_reflect::{DynamicMessage, FieldDescriptor, ReflectMessage as _, SerializeOptions, Value};
use prost_types::Any;
use serde_json::{Value as Json, json};

use super::JsonError;
use super::pool::{self, OPAQUE, OPAQUE_URL};

/// What stands in place of a secret.
pub const REDACTED: &str = "[redacted]";

/// How many `Any` may be nested in each other before the rest is printed as bytes.
const MAX_ANY_DEPTH: usize = 32;

/// Whether fields that hold secrets (private keys, passwords, ticket keys) are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Redaction {
    /// Everything that is marked sensitive prints as [`REDACTED`], at every depth.
    #[default]
    On,
    /// Everything is printed. For writing configuration, never for dumps.
    Off,
}

pub(super) fn message(name: &str, bytes: &[u8], redaction: Redaction) -> Result<Json, JsonError> {
    let descriptor = pool::descriptor(name)?;
    let mut dynamic = DynamicMessage::decode(descriptor, bytes)
        .map_err(|e| JsonError::Decode { name: name.to_owned(), message: e.to_string() })?;
    prepare(&mut dynamic, redaction, 0);
    serialize(&dynamic)
}

pub(super) fn any(any: &Any, redaction: Redaction) -> Json {
    let name = pool::name_of(&any.type_url);
    let expanded = pool::known(name).and_then(|_| message(name, &any.value, redaction).ok());
    match expanded {
        Some(Json::Object(mut fields)) => {
            fields.insert("@type".to_owned(), Json::String(any.type_url.clone()));
            Json::Object(fields)
        }
        // Messages whose JSON is not an object (Duration, wrappers) stand under "value".
        Some(value) => json!({ "@type": any.type_url, "value": value }),
        None => opaque(&any.type_url, &any.value),
    }
}

fn opaque(type_url: &str, bytes: &[u8]) -> Json {
    json!({ "@type": type_url, "value": STANDARD.encode(bytes) })
}

fn serialize(message: &DynamicMessage) -> Result<Json, JsonError> {
    let options = SerializeOptions::new().use_proto_field_name(true).stringify_64_bit_integers(true);
    let mut json = message.serialize_with_options(serde_json::value::Serializer, &options).map_err(|e| {
        JsonError::Decode { name: message.descriptor().full_name().to_owned(), message: e.to_string() }
    })?;
    reveal(&mut json);
    Ok(json)
}

/// Makes a message printable: secrets go, unknown `Any`s become the stand-in.
fn prepare(message: &mut DynamicMessage, redaction: Redaction, depth: usize) {
    if message.descriptor().full_name() == "google.protobuf.Any" {
        prepare_any(message, redaction, depth);
        return;
    }
    for (field, value) in message.fields_mut() {
        if redaction == Redaction::On && is_sensitive(&field) {
            redact(value);
            continue;
        }
        match value {
            Value::Message(child) => prepare(child, redaction, depth),
            Value::List(items) => {
                items.iter_mut().filter_map(Value::as_message_mut).for_each(|m| prepare(m, redaction, depth));
            }
            Value::Map(entries) => {
                let children = entries.values_mut().filter_map(Value::as_message_mut);
                children.for_each(|m| prepare(m, redaction, depth));
            }
            _ => {}
        }
    }
}

fn prepare_any(any: &mut DynamicMessage, redaction: Redaction, depth: usize) {
    let type_url = match any.get_field_by_number(1).as_deref() {
        Some(Value::String(url)) => url.clone(),
        _ => String::new(),
    };
    let bytes = match any.get_field_by_number(2).as_deref() {
        Some(Value::Bytes(bytes)) => bytes.clone(),
        _ => Bytes::new(),
    };
    let inner = pool::known(pool::name_of(&type_url))
        .filter(|_| depth < MAX_ANY_DEPTH)
        .and_then(|descriptor| DynamicMessage::decode(descriptor, bytes.clone()).ok());
    match inner {
        Some(mut inner) => {
            prepare(&mut inner, redaction, depth + 1);
            any.set_field_by_number(2, Value::Bytes(inner.encode_to_vec().into()));
        }
        None => hide(any, type_url, bytes),
    }
}

/// Puts the stand-in into an `Any`.
fn hide(any: &mut DynamicMessage, type_url: String, bytes: Bytes) {
    let Some(descriptor) = pool::pool().get_message_by_name(OPAQUE) else { return };
    let mut stand_in = DynamicMessage::new(descriptor);
    stand_in.set_field_by_number(1, Value::String(type_url));
    stand_in.set_field_by_number(2, Value::Bytes(bytes));
    any.set_field_by_number(1, Value::String(OPAQUE_URL.to_owned()));
    any.set_field_by_number(2, Value::Bytes(stand_in.encode_to_vec().into()));
}

fn is_sensitive(field: &FieldDescriptor) -> bool {
    const DEBUG_REDACT: u32 = 16;
    let options = field.options();
    let known = options.get_field_by_number(DEBUG_REDACT).is_some_and(|v| v.as_bool() == Some(true));
    known || options.unknown_fields().any(|unknown| unknown.number() == DEBUG_REDACT)
}

/// Replaces every text and every byte string below a sensitive field.
fn redact(value: &mut Value) {
    match value {
        Value::String(text) => REDACTED.clone_into(text),
        Value::Bytes(bytes) => *bytes = Bytes::from_static(REDACTED.as_bytes()),
        Value::Message(any) if any.descriptor().full_name() == "google.protobuf.Any" => {
            let type_url = any.get_field_by_number(1).and_then(|v| v.as_str().map(str::to_owned));
            hide(any, type_url.unwrap_or_default(), REDACTED.as_bytes().into());
        }
        Value::Message(message) => message.fields_mut().for_each(|(_, value)| redact(value)),
        Value::List(items) => items.iter_mut().for_each(redact),
        Value::Map(entries) => entries.values_mut().for_each(redact),
        _ => {}
    }
}

/// Turns stand-ins back into `{"@type": ..., "value": ...}`.
fn reveal(json: &mut Json) {
    match json {
        Json::Object(fields) if fields.get("@type").is_some_and(|t| t == OPAQUE_URL) => {
            let url = fields.remove("type_url").unwrap_or_else(|| Json::String(String::new()));
            let value = fields.remove("value").unwrap_or_else(|| Json::String(String::new()));
            *json = json!({ "@type": url, "value": value });
        }
        Json::Object(fields) => fields.values_mut().for_each(reveal),
        Json::Array(items) => items.iter_mut().for_each(reveal),
        _ => {}
    }
}
