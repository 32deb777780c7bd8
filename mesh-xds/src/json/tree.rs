//! A document before it is a message: values with their places.
//!
//! Both formats are read into this first, so that whatever is found wrong later can be shown where it stands. A value may
//! take two bytes of text, so a node is kept small.

use serde::de::value::{Error, MapDeserializer, SeqDeserializer};
use serde::de::{Deserializer, IntoDeserializer, Visitor};
use serde_json::{Number, Value as Json};

/// Line and column, from 1; 0 when it is not known.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Position {
    pub(super) line: u32,
    pub(super) column: u32,
}

impl Position {
    pub(super) fn line(self) -> usize {
        usize::try_from(self.line).unwrap_or(0)
    }

    pub(super) fn column(self) -> usize {
        usize::try_from(self.column).unwrap_or(0)
    }
}

#[derive(Debug)]
pub(super) struct Node {
    pub(super) at: Position,
    pub(super) tree: Tree,
}

#[derive(Debug)]
pub(super) enum Tree {
    Null,
    Text(String),
    /// What is neither null nor a text. YAML has an unquoted text too, which is what a field of texts wants: `1.10`.
    Plain(Plain, Option<Box<str>>),
    List(Vec<Node>),
    Map(Vec<Entry>),
}

#[derive(Debug)]
pub(super) enum Plain {
    Bool(bool),
    Number(Number),
}

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) at: Position,
    pub(super) value: Node,
}

impl Tree {
    pub(super) const fn is_null(&self) -> bool {
        matches!(self, Self::Null)
    }
}

impl Node {
    pub(super) const fn at(at: Position, tree: Tree) -> Self {
        Self { at, tree }
    }

    /// The text of a value that may also be an unquoted scalar.
    pub(super) fn text(&self) -> Option<&str> {
        match &self.tree {
            Tree::Text(text) => Some(text),
            Tree::Plain(_, Some(text)) => Some(text),
            _ => None,
        }
    }

    /// The place of what a reader's path leads to, or of the last step that is there.
    pub(super) fn find(&self, path: &serde_path_to_error::Path) -> Position {
        use serde_path_to_error::Segment;
        let mut here = self;
        let mut at = self.at;
        for segment in path {
            let next = match (&here.tree, segment) {
                (Tree::List(items), Segment::Seq { index }) => items.get(*index).map(|item| (item.at, item)),
                (Tree::Map(entries), Segment::Map { key }) => {
                    entries.iter().find(|entry| entry.key == *key).map(|entry| (entry.at, &entry.value))
                }
                _ => None,
            };
            let Some((place, node)) = next else { break };
            // A value says more than its key, unless it has no place of its own.
            at = if node.at == Position::default() { place } else { node.at };
            here = node;
        }
        at
    }
}

impl From<&Json> for Node {
    fn from(json: &Json) -> Self {
        let tree = match json {
            Json::Null => Tree::Null,
            Json::Bool(b) => Tree::Plain(Plain::Bool(*b), None),
            Json::Number(n) => Tree::Plain(Plain::Number(n.clone()), None),
            Json::String(s) => Tree::Text(s.clone()),
            Json::Array(items) => Tree::List(items.iter().map(Self::from).collect()),
            Json::Object(fields) => Tree::Map(
                fields
                    .iter()
                    .map(|(key, value)| Entry {
                        key: key.clone(),
                        at: Position::default(),
                        value: Self::from(value),
                    })
                    .collect(),
            ),
        };
        Self::at(Position::default(), tree)
    }
}

impl<'de> IntoDeserializer<'de, Error> for &'de Node {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

impl<'de> Deserializer<'de> for &'de Node {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match &self.tree {
            Tree::Null => visitor.visit_unit(),
            Tree::Text(text) => visitor.visit_borrowed_str(text),
            Tree::Plain(Plain::Bool(value), _) => visitor.visit_bool(*value),
            Tree::Plain(Plain::Number(number), _) => match (number.as_u64(), number.as_i64()) {
                (Some(number), _) => visitor.visit_u64(number),
                (None, Some(number)) => visitor.visit_i64(number),
                (None, None) => visitor.visit_f64(number.as_f64().unwrap_or(f64::NAN)),
            },
            Tree::List(items) => visitor.visit_seq(SeqDeserializer::new(items.iter())),
            Tree::Map(entries) => visitor.visit_map(MapDeserializer::new(
                entries.iter().map(|entry| (entry.key.as_str(), &entry.value)),
            )),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        if self.tree.is_null() { visitor.visit_none() } else { visitor.visit_some(self) }
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct
        newtype_struct seq tuple tuple_struct map struct enum identifier ignored_any
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_is_a_small_multiple_of_its_text() {
        assert!(size_of::<Node>() <= 40, "{}", size_of::<Node>());
        assert!(size_of::<Entry>() <= 72, "{}", size_of::<Entry>());
    }
}
