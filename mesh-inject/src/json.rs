//! Reading JSON from people who may not wish us well.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::map::Entry;
use serde_json::{Map, Number, Value};

use crate::error::InjectError;

/// Largest review body that is read, in bytes: what the API server itself never exceeds by far (etcd stores 1.5 MiB).
pub const MAX_BODY: usize = 6 * 1024 * 1024;
/// Deepest nesting that is read. A pod is about 12 deep.
pub const MAX_DEPTH: usize = 64;

/// Parse JSON, refusing duplicate keys, nesting deeper than [`MAX_DEPTH`] and trailing bytes.
///
/// Two parsers that disagree about which duplicate wins is how policy is bypassed; so none wins.
///
/// # Errors
/// [`InjectError::Document`] with the parser's line and column.
pub fn parse(bytes: &[u8]) -> Result<Value, InjectError> {
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let parsed = Strict { depth: MAX_DEPTH }
        .deserialize(&mut deserializer)
        .and_then(|value| deserializer.end().map(|()| value));
    parsed.map_err(|error| InjectError::Document { message: error.to_string() })
}

/// A human's word for the JSON type of a value.
#[must_use]
pub fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// The value at a path of field names, if every step is an object that has the next.
pub(crate) fn at<'v, const N: usize>(value: &'v Value, path: [&str; N]) -> Option<&'v Value> {
    path.into_iter().try_fold(value, |value, field| value.get(field))
}

/// JSON text of a value, in a buffer that has room for `expected` bytes from the start.
pub(crate) fn to_vec(value: &impl serde::Serialize, expected: usize) -> Vec<u8> {
    let mut text = Vec::with_capacity(expected);
    match serde_json::to_writer(&mut text, value) {
        Ok(()) => text,
        // Writing JSON values to memory does not fail.
        Err(_) => Vec::new(),
    }
}

/// An object of these fields. Unlike `json!`, which copies the values it is given, this moves them.
pub(crate) fn object<const N: usize>(fields: [(&str, Value); N]) -> Value {
    Value::Object(fields.into_iter().map(|(key, value)| (key.to_owned(), value)).collect())
}

#[derive(Clone, Copy)]
struct Strict {
    depth: usize,
}

impl Strict {
    fn deeper<E: serde::de::Error>(self) -> Result<Self, E> {
        match self.depth.checked_sub(1) {
            Some(depth) => Ok(Self { depth }),
            None => Err(E::custom(format_args!("nested deeper than {MAX_DEPTH} levels"))),
        }
    }
}

impl<'de> DeserializeSeed<'de> for Strict {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("number out of range"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let inner = self.deeper()?;
        let mut items = Vec::new();
        while let Some(item) = access.next_element_seed(inner)? {
            items.push(item);
        }
        Ok(Value::Array(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let inner = self.deeper()?;
        let mut object = Map::new();
        while let Some(key) = access.next_key::<String>()? {
            match object.entry(key) {
                Entry::Occupied(known) => {
                    return Err(A::Error::custom(format_args!("duplicate key {:?}", known.key())));
                }
                Entry::Vacant(place) => {
                    place.insert(access.next_value_seed(inner)?);
                }
            }
        }
        Ok(Value::Object(object))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn duplicates_depth_and_trailing_bytes_are_refused() {
        assert!(parse(br#"{"a":1,"a":2}"#).unwrap_err().to_string().contains("duplicate key \"a\""));
        let deep = "[".repeat(MAX_DEPTH + 1) + &"]".repeat(MAX_DEPTH + 1);
        assert!(parse(deep.as_bytes()).unwrap_err().to_string().contains("nested deeper"));
        let fine = "[".repeat(MAX_DEPTH) + &"]".repeat(MAX_DEPTH);
        assert!(parse(fine.as_bytes()).is_ok());
        assert!(parse(b"{} x").is_err());
        assert!(parse(b"1e999").is_err());
        assert_eq!(
            parse(br#"{"a":[1,-2,2.5,"\u00e9",null,true]}"#).unwrap(),
            serde_json::json!({"a":[1,-2,2.5,"é",null,true]})
        );
    }
}
