//! Who asks, of a review that cannot be read as a whole.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::{Map, Value};

/// What an answer repeats of the question: `apiVersion`, `kind` and `request.uid`, as far as the text can be read and says
/// each once. The rest is passed over without looking into it, at any depth.
pub(super) fn read(bytes: &[u8]) -> (Value, String) {
    let mut found = Found::default();
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    // What was found before the text went wrong counts.
    let _ = Fields { inside: false, found: &mut found }.deserialize(&mut deserializer);
    let text = |said: Said| match said {
        Said::Once(text) => Some(text),
        Said::Never | Said::Differently => None,
    };
    let mut review = Map::new();
    for (field, said) in [("apiVersion", found.api_version), ("kind", found.kind)] {
        if let Some(text) = text(said) {
            review.insert(field.to_owned(), Value::String(text));
        }
    }
    let uid = if found.requests > 1 { None } else { text(found.uid) };
    (Value::Object(review), uid.unwrap_or_default())
}

#[derive(Default)]
struct Found {
    api_version: Said,
    kind: Said,
    uid: Said,
    requests: usize,
}

#[derive(Default)]
enum Said {
    #[default]
    Never,
    Once(String),
    /// Twice, or not as text: nobody knows what is meant.
    Differently,
}

impl Said {
    fn hear(&mut self, text: Option<String>) {
        *self = match (&self, text) {
            (Self::Never, Some(text)) => Self::Once(text),
            _ => Self::Differently,
        };
    }
}

/// The fields of the review or, `inside`, of its request.
struct Fields<'f> {
    inside: bool,
    found: &'f mut Found,
}

impl<'de> DeserializeSeed<'de> for Fields<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Fields<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<(), A::Error> {
        let Self { inside, found } = self;
        while let Some(key) = access.next_key::<String>()? {
            let said = match (inside, key.as_str()) {
                (false, "apiVersion") => &mut found.api_version,
                (false, "kind") => &mut found.kind,
                (true, "uid") => &mut found.uid,
                (false, "request") => {
                    found.requests += 1;
                    access.next_value_seed(Fields { inside: true, found: &mut *found })?;
                    continue;
                }
                _ => {
                    access.next_value::<IgnoredAny>()?;
                    continue;
                }
            };
            match access.next_value::<String>() {
                Ok(text) => said.hear(Some(text)),
                Err(error) => {
                    said.hear(None);
                    return Err(error);
                }
            }
        }
        Ok(())
    }
}
