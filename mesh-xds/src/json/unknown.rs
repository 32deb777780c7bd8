//! What in a message is not known.

use std::collections::BTreeSet;

use prost_reflect::{DynamicMessage, EnumDescriptor, Kind, ReflectMessage as _, Value};
use prost_types::Any;

use super::path::{Path, key_text};
use super::pool;
use super::print::MAX_DEPTH;
use super::report::{Findings, UnknownKind, UnknownPart};

pub(super) fn parts(any: &Any) -> Findings<UnknownPart> {
    let mut walk = Walk { path: Path::default(), found: Findings::default() };
    walk.extension(&any.type_url, &any.value, 0);
    walk.found
}

struct Walk {
    path: Path,
    found: Findings<UnknownPart>,
}

impl Walk {
    fn note(&mut self, kind: UnknownKind) {
        let path = &self.path;
        self.found.push(|| UnknownPart { path: path.to_string(), kind });
    }

    fn extension(&mut self, type_url: &str, bytes: &[u8], depth: usize) {
        if type_url.is_empty() && bytes.is_empty() {
            return;
        }
        let type_url = type_url.to_owned();
        let Some(descriptor) = pool::known(pool::name_of(&type_url)) else {
            return self.note(UnknownKind::Extension { type_url });
        };
        if depth >= MAX_DEPTH {
            let message = format!("nested deeper than {MAX_DEPTH} messages");
            return self.note(UnknownKind::Broken { type_url, message });
        }
        match DynamicMessage::decode(descriptor, bytes) {
            Ok(message) => self.message(&message, depth),
            Err(e) => self.note(UnknownKind::Broken { type_url, message: e.to_string() }),
        }
    }

    fn message(&mut self, message: &DynamicMessage, depth: usize) {
        let numbers: BTreeSet<u32> = message.unknown_fields().map(|field| field.number()).collect();
        for number in numbers {
            self.note(UnknownKind::Field { number });
        }
        if message.descriptor().full_name() == pool::ANY {
            let (type_url, bytes) = (message.get_field_by_number(1), message.get_field_by_number(2));
            let type_url = type_url.as_deref().and_then(Value::as_str).unwrap_or_default();
            let bytes =
                bytes.as_deref().and_then(Value::as_bytes).map(|bytes| &bytes[..]).unwrap_or_default();
            return self.extension(type_url, bytes, depth + 1);
        }
        for (field, value) in message.fields() {
            let kind = field.kind();
            self.path.field(field);
            match value {
                Value::List(items) => {
                    for (index, item) in items.iter().enumerate() {
                        self.path.index(index);
                        self.value(item, &kind, depth);
                        self.path.pop();
                    }
                }
                Value::Map(entries) => {
                    let value_kind = kind.as_message().map(|entry| entry.map_entry_value_field().kind());
                    // A hash map: in the order of the keys the report is the same every time.
                    let mut entries: Vec<_> =
                        entries.iter().map(|(key, value)| (key_text(key), value)).collect();
                    entries.sort_by(|a, b| a.0.cmp(&b.0));
                    for (key, item) in entries {
                        self.path.name(&key);
                        if let Some(kind) = &value_kind {
                            self.value(item, kind, depth);
                        }
                        self.path.pop();
                    }
                }
                single => self.value(single, &kind, depth),
            }
            self.path.pop();
        }
    }

    fn value(&mut self, value: &Value, kind: &Kind, depth: usize) {
        match (value, kind) {
            (Value::Message(message), _) => self.message(message, depth + 1),
            (Value::EnumNumber(number), Kind::Enum(descriptor)) if !has(descriptor, *number) => {
                self.note(UnknownKind::EnumValue { number: *number });
            }
            _ => {}
        }
    }
}

fn has(descriptor: &EnumDescriptor, number: i32) -> bool {
    descriptor.get_value(number).is_some()
}
