//! JSON and YAML into messages.

use prost::{Message, Name};
use prost_reflect::{DeserializeOptions, DynamicMessage, MessageDescriptor};
use serde_json::{Value as Json, json};
use serde_path_to_error::{Deserializer as Tracked, Track};

use super::JsonError;
use super::pool::{self, ANY, EMPTY, OPAQUE_URL};
use super::{anys, canonical};

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

/// Reads directly, which keeps lines; only a document with `Any`s in another form is read again, with stand-ins.
fn read<T: Message + Name + Default>(
    direct: impl FnOnce(&MessageDescriptor) -> Result<DynamicMessage, JsonError>,
    untyped: impl FnOnce() -> Option<Json>,
    descriptor: &MessageDescriptor,
) -> Result<T, JsonError> {
    let message = match direct(descriptor) {
        Ok(message) => message,
        Err(error) => {
            let Some(mut json) = untyped() else { return Err(error) };
            if !anys::each(&mut json, descriptor, &mut adapt) {
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

/// Puts an `Any` into the form that the descriptors understand; whether that changed it.
///
/// What is printed as bytes, `{"@type": ..., "value": "<base64>"}`, becomes the stand-in, and so does `{}`, which holds
/// nothing. `Empty` may stand without a value, as C++ prints it.
fn adapt(any: &mut Json) -> bool {
    let Json::Object(fields) = any else { return false };
    let url = fields.get("@type").and_then(Json::as_str).map(str::to_owned);
    match (url, fields.get("value"), fields.len()) {
        (None, None, 0) => *any = json!({ "@type": OPAQUE_URL }),
        (Some(url), Some(Json::String(value)), 2) if may_be_bytes(pool::name_of(&url)) => {
            *any = json!({ "@type": OPAQUE_URL, "type_url": url, "value": value });
        }
        (Some(url), None, 1) if pool::name_of(&url) == EMPTY => {
            fields.insert("value".to_owned(), json!({}));
        }
        _ => return false,
    }
    true
}

/// Whether text under "value" can be nothing but bytes: the type is unknown, or says nothing under that name itself.
fn may_be_bytes(name: &str) -> bool {
    let Some(descriptor) = pool::known(name) else { return true };
    let own_json = name.starts_with("google.protobuf.") && name != ANY;
    !own_json && descriptor.get_field_by_json_name("value").is_none()
}
