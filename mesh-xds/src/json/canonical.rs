//! Deterministic bytes of a message that was read from JSON.
//!
//! The reflective message keeps maps in a `HashMap`, and an `Any` inside it is already encoded in that random order.
//! Versions are hashes of bytes, so both are put in order here, at every depth.

use bytes::BufMut as _;
use prost::encoding::{WireType, encode_key, encode_varint};
use prost::{Message as _, encoding};
use prost_reflect::{DynamicMessage, FieldDescriptor, MapKey, ReflectMessage as _, Value};

use super::pool::{self, OPAQUE_URL};

/// Encodes `message` with maps in key order and with every opaque stand-in replaced by what it stands for.
pub(super) fn encode(message: &DynamicMessage) -> Vec<u8> {
    if message.descriptor().full_name() == pool::ANY {
        return any(message);
    }
    let mut out = Vec::new();
    for (field, value) in message.fields() {
        match value {
            Value::Map(entries) => {
                let mut entries: Vec<_> = entries.iter().collect();
                entries.sort_by(|a, b| order(a.0, b.0));
                for (key, value) in entries {
                    entry(&field, key, value, &mut out);
                }
            }
            Value::Message(child) => delimited(field.number(), &encode(child), &mut out),
            Value::List(items) if matches!(items.first(), Some(Value::Message(_))) => {
                for item in items.iter().filter_map(Value::as_message) {
                    delimited(field.number(), &encode(item), &mut out);
                }
            }
            scalar => {
                let mut single = DynamicMessage::new(message.descriptor());
                single.set_field(&field, scalar.clone());
                out.extend(single.encode_to_vec());
            }
        }
    }
    out
}

fn delimited(number: u32, bytes: &[u8], out: &mut Vec<u8>) {
    encode_key(number, WireType::LengthDelimited, out);
    encode_varint(bytes.len() as u64, out);
    out.put_slice(bytes);
}

fn entry(field: &FieldDescriptor, key: &MapKey, value: &Value, out: &mut Vec<u8>) {
    let kind = field.kind();
    let Some(descriptor) = kind.as_message() else { return };
    let mut pair = DynamicMessage::new(descriptor.clone());
    pair.set_field_by_number(1, key.clone().into());
    let bytes = match value {
        Value::Message(child) => {
            let mut bytes = pair.encode_to_vec();
            delimited(2, &encode(child), &mut bytes);
            bytes
        }
        scalar => {
            pair.set_field_by_number(2, scalar.clone());
            pair.encode_to_vec()
        }
    };
    delimited(field.number(), &bytes, out);
}

/// An `Any`: the message inside is put in order too, or the stand-in is replaced.
fn any(message: &DynamicMessage) -> Vec<u8> {
    let text = |number| match message.get_field_by_number(number).as_deref() {
        Some(Value::String(s)) => s.clone(),
        _ => String::new(),
    };
    let bytes = |m: &DynamicMessage, number| match m.get_field_by_number(number).as_deref() {
        Some(Value::Bytes(b)) => b.to_vec(),
        _ => Vec::new(),
    };
    let (mut type_url, mut value) = (text(1), bytes(message, 2));
    let name = pool::name_of(&type_url).to_owned();
    let inner = pool::pool()
        .get_message_by_name(&name)
        .and_then(|descriptor| DynamicMessage::decode(descriptor, value.as_slice()).ok());
    match inner {
        Some(opaque) if type_url == OPAQUE_URL => {
            type_url = match opaque.get_field_by_number(1).as_deref() {
                Some(Value::String(s)) => s.clone(),
                _ => String::new(),
            };
            value = bytes(&opaque, 2);
        }
        Some(inner) => value = encode(&inner),
        None => {}
    }
    let mut out = Vec::with_capacity(type_url.len() + value.len() + 8);
    if !type_url.is_empty() {
        encoding::string::encode(1, &type_url, &mut out);
    }
    if !value.is_empty() {
        encoding::bytes::encode(2, &value, &mut out);
    }
    out
}

fn order(a: &MapKey, b: &MapKey) -> std::cmp::Ordering {
    match (a, b) {
        (MapKey::String(a), MapKey::String(b)) => a.cmp(b),
        (MapKey::Bool(a), MapKey::Bool(b)) => a.cmp(b),
        (MapKey::I32(a), MapKey::I32(b)) => a.cmp(b),
        (MapKey::I64(a), MapKey::I64(b)) => a.cmp(b),
        (MapKey::U32(a), MapKey::U32(b)) => a.cmp(b),
        (MapKey::U64(a), MapKey::U64(b)) => a.cmp(b),
        // All keys of one map are of one kind.
        _ => std::cmp::Ordering::Equal,
    }
}
