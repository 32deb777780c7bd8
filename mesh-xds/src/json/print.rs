//! Messages into JSON.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use prost::Message as _;
use prost_reflect::{DynamicMessage, FieldDescriptor, ReflectMessage as _, SerializeOptions, Value};
use prost_types::Any;
use serde_json::{Value as Json, json};

use super::JsonError;
use super::anys;
use super::pool::{self, OPAQUE, OPAQUE_URL};

/// What stands in place of a secret.
pub const REDACTED: &str = "[redacted]";

/// How deep messages may be nested before an `Any` is printed as bytes: each `Any` starts a decoder whose own limit of
/// 100 knows nothing of what is around it, and a stack has an end.
const MAX_DEPTH: usize = 100;

const EMPTY_URL: &str = "type.googleapis.com/google.protobuf.Empty";

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
    prepare(&mut dynamic, redaction, 0)?;
    serialize(&dynamic)
}

pub(super) fn any(any: &Any, redaction: Redaction) -> Json {
    // Some soundly encoded messages have no JSON, a `Value` without a kind for instance.
    message(pool::ANY, &any.encode_to_vec(), redaction).unwrap_or_else(|_| opaque(&any.type_url, &any.value))
}

fn opaque(type_url: &str, bytes: &[u8]) -> Json {
    json!({ "@type": type_url, "value": STANDARD.encode(bytes) })
}

fn serialize(message: &DynamicMessage) -> Result<Json, JsonError> {
    let options = SerializeOptions::new().use_proto_field_name(true).stringify_64_bit_integers(true);
    let mut json = message.serialize_with_options(serde_json::value::Serializer, &options).map_err(|e| {
        JsonError::Decode { name: message.descriptor().full_name().to_owned(), message: e.to_string() }
    })?;
    anys::each(&mut json, &message.descriptor(), &mut reveal);
    Ok(json)
}

/// Makes a message printable: secrets go, unknown `Any`s become the stand-in.
fn prepare(message: &mut DynamicMessage, redaction: Redaction, depth: usize) -> Result<(), JsonError> {
    if message.descriptor().full_name() == pool::ANY {
        prepare_any(message, redaction, depth);
        return Ok(());
    }
    refuse_infinity(message)?;
    for (field, value) in message.fields_mut() {
        if redaction == Redaction::On && is_sensitive(&field) {
            redact(value);
            continue;
        }
        let below = |child: &mut DynamicMessage| prepare(child, redaction, depth + 1);
        match value {
            Value::Message(child) => below(child)?,
            Value::List(items) => items.iter_mut().filter_map(Value::as_message_mut).try_for_each(below)?,
            Value::Map(entries) => {
                entries.values_mut().filter_map(Value::as_message_mut).try_for_each(below)?;
            }
            _ => {}
        }
    }
    Ok(())
}

/// A wrapped number that is not finite: the serializer would print it as `null`, which is "not set".
fn refuse_infinity(message: &DynamicMessage) -> Result<(), JsonError> {
    let descriptor = message.descriptor();
    let name = descriptor.full_name();
    if name != "google.protobuf.DoubleValue" && name != "google.protobuf.FloatValue" {
        return Ok(());
    }
    let number = message.get_field_by_number(1);
    let double = number.as_deref().and_then(Value::as_f64);
    let float = number.as_deref().and_then(Value::as_f32);
    if double.is_none_or(f64::is_finite) && float.is_none_or(f32::is_finite) {
        return Ok(());
    }
    Err(JsonError::Decode { name: name.to_owned(), message: "the number is not finite".to_owned() })
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
        .filter(|_| depth < MAX_DEPTH)
        .and_then(|descriptor| DynamicMessage::decode(descriptor, bytes.clone()).ok())
        .and_then(|mut inner| prepare(&mut inner, redaction, depth + 1).is_ok().then_some(inner));
    match inner {
        Some(inner) => any.set_field_by_number(2, Value::Bytes(inner.encode_to_vec().into())),
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
        Value::Message(any) if any.descriptor().full_name() == pool::ANY => {
            let type_url = any.get_field_by_number(1).and_then(|v| v.as_str().map(str::to_owned));
            hide(any, type_url.unwrap_or_default(), REDACTED.as_bytes().into());
        }
        Value::Message(message) => message.fields_mut().for_each(|(_, value)| redact(value)),
        Value::List(items) => items.iter_mut().for_each(redact),
        Value::Map(entries) => entries.values_mut().for_each(redact),
        _ => {}
    }
}

/// Gives an `Any` the form that others print: a stand-in becomes `{"@type": ..., "value": ...}`, or `{}` when it holds
/// nothing, and `Empty` needs no value.
fn reveal(any: &mut Json) -> bool {
    let Json::Object(fields) = any else { return false };
    let kind = fields.get("@type").and_then(Json::as_str).unwrap_or_default();
    if kind == OPAQUE_URL {
        let (url, value) = (fields.remove("type_url"), fields.remove("value"));
        let empty = || Json::String(String::new());
        *any = match (url, value) {
            (None, None) => json!({}),
            (url, value) => {
                json!({ "@type": url.unwrap_or_else(empty), "value": value.unwrap_or_else(empty) })
            }
        };
        return true;
    }
    kind == EMPTY_URL && fields.remove("value").is_some()
}
