//! Text into a tree: syntax, and nothing of messages.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::{fmt, io};

use serde::de::{Deserialize, DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::Number;
use serde_path_to_error::{Deserializer as Tracked, Track};
use serde_saphyr::Spanned;

use super::JsonError;
use super::path::Path;
use super::tree::{Entry, Node, Plain, Position, Tree};

const BYTE_ORDER_MARK: char = '\u{feff}';

/// JSON. A byte order mark and anything behind the value are refused, as RFC 8259 wants it; so is a key said twice.
pub(super) fn json(text: &str) -> Result<Node, JsonError> {
    let last = Cell::new(Position { line: 1, column: 0 });
    let mut json =
        serde_json::Deserializer::from_reader(Counted { left: text.as_bytes(), last: &last, ended: false });
    let mut track = Track::new();
    let node = JsonSeed(&last).deserialize(Tracked::new(&mut json, &mut track));
    node.and_then(|node| json.end().map(|()| node)).map_err(|e| JsonError::Invalid {
        path: Path::from(&track.path()).to_string(),
        line: e.line(),
        column: e.column(),
        message: without_position(&e.to_string()),
    })
}

/// Both parsers end their messages with the position, which the error says already.
fn without_position(message: &str) -> String {
    message.rsplit_once(" at line ").map_or(message, |(text, _)| text).to_owned()
}

/// Hands out one byte at a time and knows where the last one stood; the parser reads no further than it has to.
struct Counted<'a> {
    left: &'a [u8],
    last: &'a Cell<Position>,
    ended: bool,
}

impl io::Read for Counted<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let (Some((&byte, rest)), Some(place)) = (self.left.split_first(), buffer.first_mut()) else {
            return Ok(0);
        };
        *place = byte;
        self.left = rest;
        let Position { line, column } = self.last.get();
        let next = if self.ended {
            Position { line: line.saturating_add(1), column: 1 }
        } else {
            Position { line, column: column.saturating_add(1) }
        };
        self.last.set(next);
        self.ended = byte == b'\n';
        Ok(1)
    }
}

#[derive(Clone, Copy)]
struct JsonSeed<'a>(&'a Cell<Position>);

impl<'de> DeserializeSeed<'de> for JsonSeed<'_> {
    type Value = Node;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Node, D::Error> {
        deserializer.deserialize_any(self)
    }
}

/// The scalars, which are the same in both formats.
macro_rules! scalars {
    ($node:expr) => {
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a value")
        }
        fn visit_unit<E>(self) -> Result<Self::Value, E> {
            Ok($node(&self, Tree::Null))
        }
        fn visit_none<E>(self) -> Result<Self::Value, E> {
            Ok($node(&self, Tree::Null))
        }
        fn visit_bool<E>(self, value: bool) -> Result<Self::Value, E> {
            Ok($node(&self, Tree::Plain(Plain::Bool(value), None)))
        }
        fn visit_i64<E>(self, value: i64) -> Result<Self::Value, E> {
            Ok($node(&self, Tree::Plain(Plain::Number(value.into()), None)))
        }
        fn visit_u64<E>(self, value: u64) -> Result<Self::Value, E> {
            Ok($node(&self, Tree::Plain(Plain::Number(value.into()), None)))
        }
        fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Self::Value, E> {
            let number = Number::from_f64(value).ok_or_else(|| E::custom("the number is not finite"))?;
            Ok($node(&self, Tree::Plain(Plain::Number(number), None)))
        }
        fn visit_str<E>(self, value: &str) -> Result<Self::Value, E> {
            Ok($node(&self, Tree::Text(value.to_owned())))
        }
        fn visit_string<E>(self, value: String) -> Result<Self::Value, E> {
            Ok($node(&self, Tree::Text(value)))
        }
    };
}

impl<'de> Visitor<'de> for JsonSeed<'_> {
    type Value = Node;

    scalars!(|seed: &Self, tree| {
        let mut at = seed.0.get();
        // A number ends where something else begins, which is read by then.
        at.column -= u32::from(matches!(tree, Tree::Plain(Plain::Number(_), _)) && at.column > 1);
        Node::at(at, tree)
    });

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Node, A::Error> {
        let at = self.0.get();
        let mut items = Vec::new();
        while let Some(item) = seq.next_element_seed(self)? {
            items.push(item);
        }
        Ok(Node::at(at, Tree::List(items)))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Node, A::Error> {
        let at = self.0.get();
        let mut entries = Vec::new();
        let mut seen = BTreeSet::new();
        while let Some(key) = map.next_key::<String>()? {
            let at = self.0.get();
            if !seen.insert(key.clone()) {
                return Err(A::Error::custom(format!("{key:?} is said twice")));
            }
            entries.push(Entry { key, at, value: map.next_value_seed(self)? });
        }
        Ok(Node::at(at, Tree::Map(entries)))
    }
}

/// YAML 1.2, one document. Nothing at all is an empty message, as it is to Envoy.
pub(super) fn yaml(text: &str) -> Result<Node, JsonError> {
    let text = text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(text);
    let raw = serde_saphyr::from_str_with_options(text, yaml_options()).map_err(|e| yaml_error(text, &e))?;
    let mut node = placed(text, raw);
    if node.tree.is_null() {
        node.tree = Tree::Map(Vec::new());
    }
    Ok(node)
}

fn yaml_options() -> serde_saphyr::Options {
    serde_saphyr::options! { strict_booleans: true, legacy_octal_numbers: true, with_snippet: false }
}

fn yaml_error(text: &str, error: &serde_saphyr::Error) -> JsonError {
    // Values with places hide the keys from the tracker, so that the way to the error is walked again without them.
    let mut track = Track::new();
    let again = serde_saphyr::with_deserializer_from_str_with_options(text, yaml_options(), |yaml| {
        serde_json::Value::deserialize(Tracked::new(yaml, &mut track))
    });
    let path = again.map_or_else(|_| Path::from(&track.path()), |_| Path::default());
    let message = without_position(&error.to_string());
    // What follows is advice about the parser's options.
    let twice = message.strip_prefix("duplicate mapping key: ").and_then(|rest| rest.split(", set ").next());
    let message = twice.map(|key| format!("{key:?} is said twice")).unwrap_or(message);
    let at = error.location().map(place).unwrap_or_default();
    JsonError::Invalid { path: path.to_string(), line: at.line(), column: at.column(), message }
}

fn place(at: serde_saphyr::Location) -> Position {
    let number = |n: u64| u32::try_from(n).unwrap_or(0);
    Position { line: number(at.line()), column: number(at.column()) }
}

/// What the parser gives: the places stand around the values.
enum YamlTree {
    Scalar(Tree),
    List(Vec<Spanned<Self>>),
    Map(Vec<(Spanned<String>, Spanned<Self>)>),
}

impl<'de> Deserialize<'de> for YamlTree {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(YamlVisitor)
    }
}

struct YamlVisitor;

impl<'de> Visitor<'de> for YamlVisitor {
    type Value = YamlTree;

    scalars!(|_: &Self, tree| YamlTree::Scalar(tree));

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<YamlTree, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element()? {
            items.push(item);
        }
        Ok(YamlTree::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<YamlTree, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = map.next_entry()? {
            entries.push(entry);
        }
        Ok(YamlTree::Map(entries))
    }
}

fn placed(text: &str, raw: Spanned<YamlTree>) -> Node {
    let at = place(raw.referenced);
    let tree = match raw.value {
        YamlTree::Scalar(Tree::Plain(plain, _)) => Tree::Plain(plain, written(text, raw.defined)),
        YamlTree::Scalar(tree) => tree,
        YamlTree::List(items) => Tree::List(items.into_iter().map(|item| placed(text, item)).collect()),
        YamlTree::Map(entries) => Tree::Map(
            entries
                .into_iter()
                .map(|(key, value)| Entry {
                    at: place(key.referenced),
                    key: key.value,
                    value: placed(text, value),
                })
                .collect(),
        ),
    };
    Node::at(at, tree)
}

/// A scalar as it stands in the text.
fn written(text: &str, at: serde_saphyr::Location) -> Option<Box<str>> {
    let start = usize::try_from(at.span().byte_offset()?).ok()?;
    let length = usize::try_from(at.span().byte_len()?).ok()?;
    text.get(start..start.checked_add(length)?).map(|raw| raw.trim().into())
}
