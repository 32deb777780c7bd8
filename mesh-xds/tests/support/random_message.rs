//! Random messages of any type, by descriptors.

use prost::Message as _;
use prost_reflect::{
    DescriptorPool, DynamicMessage, FieldDescriptor, Kind, MapKey, MessageDescriptor, ReflectMessage as _,
    Value,
};
use rand::Rng as _;
use rand::rngs::StdRng;

/// How many fields one message has at most, nested ones included.
const FIELDS: usize = 40;
/// How deep messages are nested at most.
const DEPTH: usize = 6;

const ANY: &str = "google.protobuf.Any";

/// Makes messages until its fields are used up.
pub(crate) struct Generator {
    random: StdRng,
    pool: DescriptorPool,
    left: usize,
}

impl Generator {
    pub(crate) fn new(random: StdRng, descriptor: &MessageDescriptor) -> Self {
        Self { random, pool: descriptor.parent_pool().clone(), left: FIELDS }
    }

    /// A message with some fields.
    pub(crate) fn message(&mut self, descriptor: &MessageDescriptor) -> DynamicMessage {
        self.nested(descriptor, 0)
    }

    /// A message with one field; `None` where that has no JSON of its own.
    pub(crate) fn only(
        &mut self,
        descriptor: &MessageDescriptor,
        field: &FieldDescriptor,
    ) -> Option<DynamicMessage> {
        if descriptor.full_name().starts_with("google.protobuf.") {
            return None;
        }
        let mut message = DynamicMessage::new(descriptor.clone());
        let value = self.value(field, 0);
        message.set_field(field, value);
        Some(message)
    }

    fn nested(&mut self, descriptor: &MessageDescriptor, depth: usize) -> DynamicMessage {
        let mut message = DynamicMessage::new(descriptor.clone());
        let mut set = |number, value| message.set_field_by_number(number, value);
        match descriptor.full_name() {
            ANY => {
                let any = self.any(depth);
                set(1, Value::String(any.0));
                set(2, Value::Bytes(any.1.into()));
            }
            "google.protobuf.Duration" => {
                let seconds = self.random.random_range(-315_576_000_000_i64..=315_576_000_000);
                let nanos =
                    self.random.random_range(0..1_000_000_000) * i32::try_from(seconds.signum()).unwrap_or(0);
                set(1, Value::I64(seconds));
                set(2, Value::I32(nanos));
            }
            "google.protobuf.Timestamp" => {
                set(1, Value::I64(self.random.random_range(-62_135_596_800_i64..=253_402_300_799)));
                set(2, Value::I32(self.random.random_range(0..1_000_000_000)));
            }
            "google.protobuf.FieldMask" => {
                let paths = ["a", "a_b", "some_field.other_field"].map(|path| Value::String(path.to_owned()));
                set(1, Value::List(paths.to_vec()));
            }
            "google.protobuf.Value" => {
                // One that is deep ends in a scalar; a number has to be finite, for JSON knows no other.
                let number = self.random.random_range(1..if depth < DEPTH { 7 } else { 5 });
                let field = descriptor.get_field(number).expect("fields 1 to 6");
                let value = match field.kind() {
                    Kind::Double => {
                        Value::F64(f64::from(self.random.random_range(-1_000_000..1_000_000)) / 8.0)
                    }
                    Kind::Enum(_) => Value::EnumNumber(0),
                    _ => self.single(&field.kind(), depth),
                };
                message.set_field(&field, value);
            }
            _ => {
                for field in descriptor.fields() {
                    let deep = depth >= DEPTH && matches!(field.kind(), Kind::Message(_));
                    if self.left > 0 && !deep && self.random.random_bool(0.4) {
                        self.left -= 1;
                        let value = self.value(&field, depth);
                        message.set_field(&field, value);
                    }
                }
            }
        }
        message
    }

    fn value(&mut self, field: &FieldDescriptor, depth: usize) -> Value {
        let many = self.random.random_range(1..3);
        match field.kind() {
            Kind::Message(entry) if field.is_map() => {
                let (key, value) = (entry.map_entry_key_field().kind(), entry.map_entry_value_field().kind());
                Value::Map((0..many).map(|_| (self.key(&key), self.single(&value, depth))).collect())
            }
            kind if field.is_list() => Value::List((0..many).map(|_| self.single(&kind, depth)).collect()),
            kind => self.single(&kind, depth),
        }
    }

    fn single(&mut self, kind: &Kind, depth: usize) -> Value {
        match kind {
            Kind::Double => Value::F64(self.float()),
            #[allow(clippy::cast_possible_truncation, reason = "any float will do")]
            Kind::Float => Value::F32(self.float() as f32),
            Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => Value::I32(self.random.random()),
            Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => Value::I64(self.random.random()),
            Kind::Uint32 | Kind::Fixed32 => Value::U32(self.random.random()),
            Kind::Uint64 | Kind::Fixed64 => Value::U64(self.random.random()),
            Kind::Bool => Value::Bool(self.random.random()),
            Kind::String => Value::String(self.text()),
            Kind::Bytes => Value::Bytes(self.bytes().into()),
            Kind::Enum(null) if null.full_name() == "google.protobuf.NullValue" => Value::EnumNumber(0),
            // One in four is a number that has no name.
            Kind::Enum(descriptor) => {
                let values: Vec<i32> = descriptor.values().map(|value| value.number()).collect();
                let known = values[self.random.random_range(0..values.len())];
                Value::EnumNumber(if self.random.random_ratio(1, 4) { 12_345 } else { known })
            }
            Kind::Message(descriptor) => Value::Message(self.nested(descriptor, depth + 1)),
        }
    }

    fn key(&mut self, kind: &Kind) -> MapKey {
        match self.single(kind, 0) {
            Value::Bool(key) => MapKey::Bool(key),
            Value::I32(key) => MapKey::I32(key),
            Value::I64(key) => MapKey::I64(key),
            Value::U32(key) => MapKey::U32(key),
            Value::U64(key) => MapKey::U64(key),
            Value::String(key) => MapKey::String(key),
            other => panic!("{other:?} is no key"),
        }
    }

    /// Not a number and negative zero are left out: they are not equal to themselves, or to what is not sent.
    fn float(&mut self) -> f64 {
        match self.random.random_range(0..8) {
            0 => f64::INFINITY,
            1 => f64::NEG_INFINITY,
            2 => f64::from(self.random.random_range(1..1_000)),
            _ => self.random.random_range(-1e6..1e6),
        }
    }

    fn text(&mut self) -> String {
        const TEXTS: [&str; 8] = [
            "plain",
            "",
            "two words",
            "\"quotes\" \\ and\nlines\t",
            "naïve ☃ \u{10ffff}",
            "yes",
            "0777",
            "null",
        ];
        TEXTS[self.random.random_range(0..TEXTS.len())].to_owned()
    }

    fn bytes(&mut self) -> Vec<u8> {
        (0..self.random.random_range(0..9)).map(|_| self.random.random()).collect()
    }

    /// A known message, an extension that nobody here knows, or bytes that are not what they claim to be.
    fn any(&mut self, depth: usize) -> (String, Vec<u8>) {
        let known = [
            "envoy.config.core.v3.Metadata",
            "envoy.config.core.v3.HeaderValue",
            "google.protobuf.Duration",
            "google.protobuf.Struct",
            "google.protobuf.Empty",
            "google.protobuf.StringValue",
            "google.protobuf.DoubleValue",
            "google.protobuf.FieldMask",
            ANY,
        ];
        match self.random.random_range(0..5) {
            0 => ("acme.example/acme.v1.Thing".to_owned(), self.bytes()),
            // Its JSON is its value, so that bytes need a key of their own.
            4 => ("type.googleapis.com/google.protobuf.StringValue".to_owned(), vec![0xff, 1]),
            1 => ("type.googleapis.com/envoy.config.cluster.v3.Cluster".to_owned(), vec![0xff, 1]),
            _ if depth >= DEPTH => ("type.googleapis.com/acme.v1.Thing".to_owned(), Vec::new()),
            _ => {
                let name = known[self.random.random_range(0..known.len())];
                let descriptor = self.pool.get_message_by_name(name).expect("one of ours");
                let message = self.nested(&descriptor, depth + 1);
                (format!("type.googleapis.com/{name}"), message.encode_to_vec())
            }
        }
    }
}

/// The message with every known `Any` inside encoded in one order, so that equal content is equal bytes.
pub(crate) fn settled(message: &DynamicMessage) -> DynamicMessage {
    let mut message = message.clone();
    settle(&mut message);
    message
}

fn settle(message: &mut DynamicMessage) {
    if message.descriptor().full_name() == ANY {
        let text = |value: Value| value.as_str().unwrap_or_default().to_owned();
        let url = message.get_field_by_number(1).map(|url| text(url.into_owned())).unwrap_or_default();
        let name = url.rsplit('/').next().unwrap_or_default().to_owned();
        let descriptor = message.descriptor().parent_pool().get_message_by_name(&name);
        let bytes =
            message.get_field_by_number(2).and_then(|value| value.as_bytes().cloned()).unwrap_or_default();
        let inner = descriptor.and_then(|descriptor| DynamicMessage::decode(descriptor, bytes).ok());
        if let Some(inner) = inner {
            // Printed, because maps have no order of their own.
            let parts = debug_in_order(&settled(&inner));
            message.set_field_by_number(2, Value::Bytes(parts.into_bytes().into()));
        }
        return;
    }
    for (_, value) in message.fields_mut() {
        match value {
            Value::Message(child) => settle(child),
            Value::List(items) => items.iter_mut().filter_map(Value::as_message_mut).for_each(settle),
            Value::Map(entries) => entries.values_mut().filter_map(Value::as_message_mut).for_each(settle),
            _ => {}
        }
    }
}

fn debug_in_order(message: &DynamicMessage) -> String {
    let fields = message.fields().map(|(field, value)| match value {
        Value::Map(entries) => {
            let mut entries: Vec<String> =
                entries.iter().map(|(key, value)| format!("{key:?}={}", debug_value(value))).collect();
            entries.sort();
            format!("{}:{entries:?}", field.number())
        }
        Value::List(items) => {
            format!("{}:{:?}", field.number(), items.iter().map(debug_value).collect::<Vec<_>>())
        }
        other => format!("{}:{}", field.number(), debug_value(other)),
    });
    fields.collect::<Vec<_>>().join(",")
}

fn debug_value(value: &Value) -> String {
    match value {
        Value::Message(child) => format!("{{{}}}", debug_in_order(child)),
        other => format!("{other:?}"),
    }
}

/// Whether a text or bytes stand below a sensitive field, also inside an `Any`.
pub(crate) fn has_secrets(message: &DynamicMessage) -> bool {
    const DEBUG_REDACT: u32 = 16;
    message.fields().any(|(field, value)| {
        let options = field.options();
        let sensitive = options.unknown_fields().any(|unknown| unknown.number() == DEBUG_REDACT)
            || options.get_field_by_number(DEBUG_REDACT).is_some_and(|v| v.as_bool() == Some(true));
        let children = || -> Vec<&Value> {
            match value {
                Value::List(items) => items.iter().collect(),
                Value::Map(entries) => entries.values().collect(),
                other => vec![other],
            }
        };
        if sensitive {
            children().into_iter().any(has_text)
        } else {
            children().into_iter().filter_map(Value::as_message).any(has_secrets)
        }
    })
}

fn has_text(value: &Value) -> bool {
    match value {
        Value::String(_) | Value::Bytes(_) => true,
        Value::Message(message) if message.descriptor().full_name() == ANY => true,
        Value::Message(message) => message.fields().any(|(_, value)| has_text(value)),
        Value::List(items) => items.iter().any(has_text),
        Value::Map(entries) => entries.values().any(has_text),
        _ => false,
    }
}
