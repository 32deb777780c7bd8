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
use super::path::{Path, key_text};
use super::pool::{self, OPAQUE, OPAQUE_URL};

/// What stands in place of a secret.
pub const REDACTED: &str = "[redacted]";

/// How deep messages may be nested before an `Any` is printed as bytes: each `Any` starts a decoder whose own limit of
/// 100 knows nothing of what is around it, and a stack has an end.
pub(super) const MAX_DEPTH: usize = 100;

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
    let mut printer = Printer { redaction, path: Path::default(), texts: Vec::new() };
    printer.message(&mut dynamic, 0)?;
    let mut json = serialize(&dynamic)?;
    for (pointer, text) in printer.texts {
        if let Some(number) = json.pointer_mut(&pointer) {
            *number = Json::from(text);
        }
    }
    anys::each(&mut json, &dynamic.descriptor(), &mut reveal);
    Ok(json)
}

pub(super) fn any(any: &Any, redaction: Redaction) -> Json {
    // Some soundly encoded messages have no JSON, a `Value` without a kind for instance.
    message(pool::ANY, &any.encode_to_vec(), redaction).unwrap_or_else(|_| opaque(&any.type_url, &any.value))
}

fn opaque(type_url: &str, bytes: &[u8]) -> Json {
    let mut any = json!({ "@type": OPAQUE_URL, "type_url": type_url, "value": STANDARD.encode(bytes) });
    reveal(&mut any);
    any
}

fn serialize(message: &DynamicMessage) -> Result<Json, JsonError> {
    let options = SerializeOptions::new().use_proto_field_name(true).stringify_64_bit_integers(true);
    message.serialize_with_options(serde_json::value::Serializer, &options).map_err(|e| JsonError::Decode {
        name: message.descriptor().full_name().to_owned(),
        message: e.to_string(),
    })
}

/// Makes a message printable: secrets go, unknown `Any`s become the stand-in.
struct Printer {
    redaction: Redaction,
    path: Path,
    /// Wrapped numbers that are not finite, which the serializer prints as `null`: where they are, and their text.
    texts: Vec<(String, &'static str)>,
}

impl Printer {
    fn message(&mut self, message: &mut DynamicMessage, depth: usize) -> Result<(), JsonError> {
        match message.descriptor().full_name() {
            pool::ANY => {
                self.any(message, depth);
                return Ok(());
            }
            "google.protobuf.DoubleValue" | "google.protobuf.FloatValue" => self.wrapped(message),
            name if name.starts_with("google.protobuf.") => self.has_json(message)?,
            _ => {}
        }
        let mut failed = Ok(());
        for (field, value) in message.fields_mut() {
            if self.redaction == Redaction::On && is_sensitive(&field) {
                redact(value);
                continue;
            }
            self.path.field(field);
            failed = self.below(value, depth + 1);
            self.path.pop();
            if failed.is_err() {
                break;
            }
        }
        failed
    }

    fn below(&mut self, value: &mut Value, depth: usize) -> Result<(), JsonError> {
        match value {
            Value::Message(child) => self.message(child, depth)?,
            Value::List(items) => {
                for (index, child) in items.iter_mut().filter_map(Value::as_message_mut).enumerate() {
                    self.path.index(index);
                    self.message(child, depth)?;
                    self.path.pop();
                }
            }
            Value::Map(entries) => {
                for (key, value) in entries {
                    let Some(child) = value.as_message_mut() else { break };
                    self.path.name(&key_text(key));
                    self.message(child, depth)?;
                    self.path.pop();
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn any(&mut self, any: &mut DynamicMessage, depth: usize) {
        let type_url = match any.get_field_by_number(1).as_deref() {
            Some(Value::String(url)) => url.clone(),
            _ => String::new(),
        };
        let bytes = match any.get_field_by_number(2).as_deref() {
            Some(Value::Bytes(bytes)) => bytes.clone(),
            _ => Bytes::new(),
        };
        let (path, texts) = (self.path.clone(), self.texts.len());
        let name = pool::name_of(&type_url);
        if name.starts_with("google.protobuf.") {
            self.path.name("value");
        }
        let inner = pool::known(name)
            .filter(|_| depth < MAX_DEPTH)
            .and_then(|descriptor| DynamicMessage::decode(descriptor, bytes.clone()).ok())
            .and_then(|mut inner| self.message(&mut inner, depth + 1).is_ok().then_some(inner));
        self.path = path;
        match inner {
            Some(inner) => any.set_field_by_number(2, Value::Bytes(inner.encode_to_vec().into())),
            None => {
                self.texts.truncate(texts);
                hide(any, type_url, bytes);
            }
        }
    }

    fn wrapped(&mut self, message: &DynamicMessage) {
        let number = message.get_field_by_number(1);
        let number =
            number.as_deref().and_then(|number| number.as_f64().or_else(|| number.as_f32().map(f64::from)));
        match number {
            Some(number) if number.is_nan() => self.texts.push((self.path.pointer(), "NaN")),
            Some(f64::INFINITY) => self.texts.push((self.path.pointer(), "Infinity")),
            Some(f64::NEG_INFINITY) => self.texts.push((self.path.pointer(), "-Infinity")),
            _ => {}
        }
    }

    /// Some soundly encoded messages have no JSON: said here with their place, and an `Any` around one keeps its bytes.
    fn has_json(&self, message: &DynamicMessage) -> Result<(), JsonError> {
        let without = |message: String| Err(JsonError::Unprintable { path: self.path.to_string(), message });
        match message.descriptor().full_name() {
            "google.protobuf.Value" => match message.fields().next() {
                None => without("a google.protobuf.Value that holds nothing".to_owned()),
                Some((_, Value::F64(number))) if !number.is_finite() => {
                    without(format!("{number} in a google.protobuf.Value"))
                }
                Some(_) => Ok(()),
            },
            "google.protobuf.Duration" | "google.protobuf.Timestamp" | "google.protobuf.FieldMask" => {
                let options = SerializeOptions::new();
                match message.serialize_with_options(serde_json::value::Serializer, &options) {
                    Ok(_) => Ok(()),
                    Err(e) => without(e.to_string()),
                }
            }
            _ => Ok(()),
        }
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
/// nothing, and `Empty` needs no value. Bytes of a type that has a `value` of its own stand under `@bytes`.
fn reveal(any: &mut Json) -> bool {
    let Json::Object(fields) = any else { return false };
    let kind = fields.get("@type").and_then(Json::as_str).unwrap_or_default();
    if kind == OPAQUE_URL {
        let url = fields.remove("type_url").and_then(|url| url.as_str().map(str::to_owned));
        let value = fields.remove("value");
        *any = match (url.unwrap_or_default(), value) {
            (url, None) if url.is_empty() => json!({}),
            (url, value) => {
                let key = if pool::may_be_bytes(pool::name_of(&url)) { "value" } else { pool::BYTES };
                json!({ "@type": url, key: value.unwrap_or_else(|| Json::String(String::new())) })
            }
        };
        return true;
    }
    kind == EMPTY_URL && fields.remove("value").is_some()
}
