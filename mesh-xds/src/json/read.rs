//! JSON and YAML into messages.

use prost::{Message, Name};
use prost_reflect::{DeserializeOptions, DynamicMessage, MessageDescriptor};
use serde_json::{Value as Json, json};
use serde_path_to_error::{Deserializer as Tracked, Track};

use super::JsonError;
use super::canonical;
use super::pool::{self, OPAQUE_URL};

pub(super) fn from_json<T: Message + Name + Default>(text: &str) -> Result<T, JsonError> {
    let descriptor = pool::descriptor(&T::full_name())?;
    read(|descriptor| parse_json(text, descriptor), || serde_json::from_str(text).ok(), &descriptor)
}

pub(super) fn from_yaml<T: Message + Name + Default>(text: &str) -> Result<T, JsonError> {
    let descriptor = pool::descriptor(&T::full_name())?;
    let untyped = || serde_saphyr::from_str_with_options(text, yaml_options()).ok();
    read(|descriptor| parse_yaml(text, descriptor), untyped, &descriptor)
}

pub(super) fn from_value<T: Message + Name + Default>(value: &Json) -> Result<T, JsonError> {
    let descriptor = pool::descriptor(&T::full_name())?;
    read(|descriptor| parse_value(value, descriptor), || Some(value.clone()), &descriptor)
}

/// Reads directly, which keeps lines; only a document with unknown `Any` types is read again with stand-ins.
fn read<T: Message + Name + Default>(
    direct: impl FnOnce(&MessageDescriptor) -> Result<DynamicMessage, JsonError>,
    untyped: impl FnOnce() -> Option<Json>,
    descriptor: &MessageDescriptor,
) -> Result<T, JsonError> {
    let message = match direct(descriptor) {
        Ok(message) => message,
        Err(error) => {
            let Some(mut json) = untyped() else { return Err(error) };
            if !hide_unknown(&mut json) {
                return Err(error);
            }
            parse_value(&json, descriptor)?
        }
    };
    T::decode(canonical::encode(&message).as_slice())
        .map_err(|e| JsonError::Decode { name: T::full_name(), message: e.to_string() })
}

fn options() -> DeserializeOptions {
    DeserializeOptions::new().deny_unknown_fields(true)
}

fn parse_json(text: &str, descriptor: &MessageDescriptor) -> Result<DynamicMessage, JsonError> {
    let mut track = Track::new();
    let mut json = serde_json::Deserializer::from_str(text);
    let result = DynamicMessage::deserialize_with_options(
        descriptor.clone(),
        Tracked::new(&mut json, &mut track),
        &options(),
    );
    let message = result.and_then(|message| json.end().map(|()| message));
    message.map_err(|e| JsonError::Invalid {
        path: track.path().to_string(),
        line: e.line(),
        column: e.column(),
        message: without_position(&e.to_string()),
    })
}

/// serde_json ends its messages with the position, which the error says already.
fn without_position(message: &str) -> String {
    message.rsplit_once(" at line ").map_or(message, |(text, _)| text).to_owned()
}

fn parse_value(value: &Json, descriptor: &MessageDescriptor) -> Result<DynamicMessage, JsonError> {
    let mut track = Track::new();
    let tracked = Tracked::new(value, &mut track);
    let result = DynamicMessage::deserialize_with_options(descriptor.clone(), tracked, &options());
    result.map_err(|e| JsonError::Invalid {
        path: track.path().to_string(),
        line: 0,
        column: 0,
        message: e.to_string(),
    })
}

fn yaml_options() -> serde_saphyr::Options {
    serde_saphyr::options! { strict_booleans: true, legacy_octal_numbers: true, with_snippet: false }
}

fn parse_yaml(text: &str, descriptor: &MessageDescriptor) -> Result<DynamicMessage, JsonError> {
    let mut track = Track::new();
    let result = serde_saphyr::with_deserializer_from_str_with_options(text, yaml_options(), |yaml| {
        let tracked = Tracked::new(yaml, &mut track);
        DynamicMessage::deserialize_with_options(descriptor.clone(), tracked, &options())
    });
    result.map_err(|e| {
        let at = e.location();
        let number = |n: Option<u64>| n.and_then(|n| usize::try_from(n).ok()).unwrap_or(0);
        let message = e.to_string();
        let message = message.rsplit_once(" at line ").map_or(message.as_str(), |(text, _)| text).to_owned();
        let (line, column) = (number(at.map(|l| l.line())), number(at.map(|l| l.column())));
        let (line, column) = key_position(text, line, &message).unwrap_or((line, column));
        JsonError::Invalid { path: track.path().to_string(), line, column, message }
    })
}

/// YAML reports an unknown field at the mapping that holds it; people want the line of the field.
fn key_position(text: &str, from: usize, message: &str) -> Option<(usize, usize)> {
    let key = message.strip_prefix("unrecognized field name '")?.strip_suffix('\'')?;
    let lines = text.lines().enumerate().skip(from.saturating_sub(1));
    lines.map(|(index, line)| (index + 1, line)).find_map(|(number, line)| {
        let at = line.find(key)?;
        let rest = line[at + key.len()..].trim_start_matches(['"', '\'']).trim_start();
        rest.starts_with(':').then_some((number, at + 1))
    })
}

/// Replaces `{"@type": unknown, "value": "<base64>"}` by the stand-in; whether there was any.
fn hide_unknown(json: &mut Json) -> bool {
    match json {
        Json::Object(fields) => {
            let unknown = fields
                .get("@type")
                .and_then(Json::as_str)
                .filter(|url| pool::known(pool::name_of(url)).is_none())
                .map(str::to_owned);
            if let (Some(url), Some(Json::String(value)), 2) = (unknown, fields.get("value"), fields.len()) {
                *json = json!({ "@type": OPAQUE_URL, "type_url": url, "value": value });
                return true;
            }
            fields.values_mut().fold(false, |any, value| hide_unknown(value) | any)
        }
        Json::Array(items) => items.iter_mut().fold(false, |any, value| hide_unknown(value) | any),
        _ => false,
    }
}
