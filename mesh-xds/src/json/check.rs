//! Holds a document against the descriptors before it becomes a message.
//!
//! What the reader behind this one would take silently is refused here, with its place: a field said in both spellings,
//! `null` in a list, numbers that do not fit. What is unknown is refused, or taken out and reported.

use std::collections::{BTreeMap, BTreeSet};

use prost_reflect::{EnumDescriptor, FieldDescriptor, Kind, MessageDescriptor};

use super::path::Path;
use super::pool::{self, EMPTY, OPAQUE_URL};
use super::scalars;
use super::tree::{Entry, Node, Position, Tree};
use super::{Findings, JsonError, SkipReason, Skipped};

/// What becomes of fields, enum values and extensions that are not known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unknown {
    Refused,
    Skipped,
}

/// Whether a value stays where it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
enum Verdict {
    Keep,
    Skip,
}

pub(super) struct Checker {
    unknown: Unknown,
    path: Path,
    skipped: Findings<Skipped>,
}

type Result<T = Verdict> = std::result::Result<T, JsonError>;

impl Checker {
    pub(super) fn new(unknown: Unknown) -> Self {
        Self { unknown, path: Path::default(), skipped: Findings::default() }
    }

    /// Checks a whole document and puts it into the form that the reader understands.
    pub(super) fn root(&mut self, node: &mut Node, descriptor: &MessageDescriptor) -> Result<()> {
        match self.message(node, descriptor)? {
            Verdict::Keep => Ok(()),
            // An extension of an unknown type, and nothing around it that could stay.
            Verdict::Skip => {
                let url = type_url(node).map_or("", |(url, _)| url);
                Err(JsonError::UnknownType { name: pool::name_of(url).to_owned() })
            }
        }
    }

    pub(super) fn into_skipped(self) -> Findings<Skipped> {
        self.skipped
    }

    fn error(&self, at: Position, message: impl Into<String>) -> JsonError {
        JsonError::Invalid {
            path: self.path.to_string(),
            line: at.line(),
            column: at.column(),
            message: message.into(),
        }
    }

    /// What is unknown here: an error, or a line in the report.
    fn unknown(&mut self, at: Position, reason: SkipReason) -> Result {
        if self.unknown == Unknown::Refused {
            return Err(self.error(at, reason.to_string()));
        }
        let (path, line, column) = (&self.path, at.line(), at.column());
        self.skipped.push(|| Skipped { path: path.to_string(), line, column, reason });
        Ok(Verdict::Skip)
    }

    fn message(&mut self, node: &mut Node, descriptor: &MessageDescriptor) -> Result {
        let name = descriptor.full_name();
        match name.strip_prefix("google.protobuf.") {
            None => self.fields(node, descriptor),
            Some("Any") => self.any(node),
            Some("Struct" | "Value" | "ListValue") => Ok(Verdict::Keep),
            Some("Duration" | "Timestamp") => {
                scalars::unquoted(node);
                self.sound(node, scalars::time(node, name.ends_with("Duration")))
            }
            Some("FieldMask") => {
                scalars::unquoted(node);
                Ok(Verdict::Keep)
            }
            Some(wrapper) if wrapper.ends_with("Value") => match descriptor.get_field(1).map(|f| f.kind()) {
                Some(kind) => self.value(node, &kind),
                None => Ok(Verdict::Keep),
            },
            Some(_) => Ok(Verdict::Keep),
        }
    }

    /// An object whose keys are the fields of a message; `@type`, if it stands first, belongs to the `Any` around it.
    fn fields(&mut self, node: &mut Node, descriptor: &MessageDescriptor) -> Result {
        // Anything else than an object is refused by the reader.
        let Tree::Map(entries) = &mut node.tree else { return Ok(Verdict::Keep) };
        let mut numbers = BTreeMap::new();
        let mut oneofs = BTreeSet::new();
        let tagged = entries.first().is_some_and(|entry| entry.key == "@type");
        self.keep(entries, |checker, index, entry| {
            if tagged && index == 0 {
                return Ok(Verdict::Keep);
            }
            checker.path.name(&entry.key);
            let Some(field) = field(descriptor, &entry.key) else {
                return checker.unknown(entry.at, SkipReason::UnknownField);
            };
            if let Some(other) = numbers.insert(field.number(), entry.key.clone()) {
                return Err(checker.error(entry.at, format!("the same field as {other:?}")));
            }
            let set = !entry.value.tree.is_null() || takes_null(&field.kind());
            if let Some(oneof) = field.containing_oneof().filter(|oneof| set && !oneof.is_synthetic())
                && !oneofs.insert(oneof.name().to_owned())
            {
                let message = format!("another field of the oneof {:?} is set already", oneof.name());
                return Err(checker.error(entry.at, message));
            }
            checker.field(&mut entry.value, &field)
        })?;
        Ok(Verdict::Keep)
    }

    /// Judges one after the other, in linear time; what is judged leaves its step on the path.
    fn keep<T>(
        &mut self,
        items: &mut Vec<T>,
        mut judge: impl FnMut(&mut Self, usize, &mut T) -> Result,
    ) -> Result<()> {
        let depth = self.path.depth();
        let (mut index, mut failed) = (0, None);
        items.retain_mut(|item| {
            if failed.is_some() {
                return true;
            }
            let verdict = judge(self, index, item).unwrap_or_else(|error| {
                failed = Some(error);
                Verdict::Keep
            });
            index += 1;
            self.path.truncate(depth);
            verdict == Verdict::Keep
        });
        failed.map_or(Ok(()), Err)
    }

    fn field(&mut self, node: &mut Node, field: &FieldDescriptor) -> Result {
        let kind = field.kind();
        match &mut node.tree {
            Tree::Null => {}
            Tree::List(items) if field.is_list() => self.keep(items, |checker, index, item| {
                checker.path.index(index);
                checker.member(item, &kind)
            })?,
            Tree::Map(entries) if field.is_map() => {
                let kind = match &kind {
                    Kind::Message(entry) => entry.map_entry_value_field().kind(),
                    other => other.clone(),
                };
                self.keep(entries, |checker, _, entry| {
                    checker.path.name(&entry.key);
                    checker.member(&mut entry.value, &kind)
                })?;
            }
            _ if field.is_list() || field.is_map() => {}
            _ => return self.value(node, &kind),
        }
        Ok(Verdict::Keep)
    }

    /// A value in a list or in a map: there is nothing that `null` could mean, except where it is a value.
    fn member(&mut self, node: &mut Node, kind: &Kind) -> Result {
        if node.tree.is_null() && !takes_null(kind) {
            return Err(self.error(node.at, "null is no value of a list or of a map"));
        }
        self.value(node, kind)
    }

    fn value(&mut self, node: &mut Node, kind: &Kind) -> Result {
        match kind {
            Kind::Message(descriptor) => self.message(node, descriptor),
            Kind::Enum(descriptor) => self.enum_value(node, descriptor),
            Kind::String | Kind::Bytes => {
                scalars::unquoted(node);
                Ok(Verdict::Keep)
            }
            Kind::Bool => Ok(Verdict::Keep),
            number => {
                let checked = scalars::number(node, number);
                self.sound(node, checked)
            }
        }
    }

    fn sound(&self, node: &Node, checked: std::result::Result<(), String>) -> Result {
        checked.map(|()| Verdict::Keep).map_err(|message| self.error(node.at, message))
    }

    /// Numbers are all taken, as in the binary form; of names only those that are known.
    fn enum_value(&mut self, node: &Node, descriptor: &EnumDescriptor) -> Result {
        match &node.tree {
            Tree::Text(name)
                if descriptor.full_name() != "google.protobuf.NullValue"
                    && descriptor.get_value_by_name(name).is_none() =>
            {
                let value = name.chars().take(scalars::SHOWN).collect();
                self.unknown(node.at, SkipReason::UnknownEnumValue { value })
            }
            _ => Ok(Verdict::Keep),
        }
    }

    /// An extension: its type, then its fields or, for a well-known type, its value.
    ///
    /// What is printed as bytes, `{"@type": ..., "value": "<base64>"}` or with `@bytes`, becomes the stand-in, and so does
    /// `{}`, which holds nothing. `Empty` may stand without a value, as C++ prints it.
    fn any(&mut self, node: &mut Node) -> Result {
        let at = node.at;
        let Tree::Map(entries) = &mut node.tree else { return Ok(Verdict::Keep) };
        if entries.is_empty() {
            entries.push(text_entry("@type", at, OPAQUE_URL.to_owned()));
            return Ok(Verdict::Keep);
        }
        let Some(index) = entries.iter().position(|entry| entry.key == "@type") else {
            return Err(self.error(at, "an extension without \"@type\""));
        };
        // In front, the reader needs to put nothing aside.
        entries[..=index].rotate_right(1);
        let place = entries[0].at;
        let Tree::Text(url) = &entries[0].value.tree else {
            self.path.name("@type");
            return Err(self.error(place, "a type URL is a text"));
        };
        let url = url.clone();
        let name = pool::name_of(&url);
        let bytes = match &mut entries[1..] {
            [entry] if entry.value.text().is_none() => None,
            [entry] if entry.key == pool::BYTES => Some(entry),
            [entry] if entry.key == "value" && pool::may_be_bytes(name) => Some(entry),
            _ => None,
        };
        if let Some(bytes) = bytes {
            scalars::unquoted(&mut bytes.value);
            "value".clone_into(&mut bytes.key);
            entries[0].value.tree = Tree::Text(OPAQUE_URL.to_owned());
            entries.push(text_entry("type_url", place, url));
            return Ok(Verdict::Keep);
        }
        let Some(descriptor) = pool::known(name) else {
            return self.unknown(
                place,
                SkipReason::UnknownType { type_url: url.chars().take(scalars::SHOWN).collect() },
            );
        };
        if !pool::has_own_json(name) {
            return self.fields(node, &descriptor);
        }
        // An extension in an extension takes the outer one with it.
        let mut whole = Verdict::Keep;
        self.keep(entries, |checker, index, entry| {
            if index == 0 {
                return Ok(Verdict::Keep);
            }
            checker.path.name(&entry.key);
            if entry.key != "value" {
                return checker.unknown(entry.at, SkipReason::UnknownField);
            }
            whole = checker.message(&mut entry.value, &descriptor)?;
            Ok(Verdict::Keep)
        })?;
        if whole == Verdict::Skip {
            return Ok(Verdict::Skip);
        }
        if name == EMPTY && entries.len() == 1 {
            entries.push(Entry { key: "value".to_owned(), at, value: Node::at(at, Tree::Map(Vec::new())) });
        }
        Ok(Verdict::Keep)
    }
}

fn field(descriptor: &MessageDescriptor, key: &str) -> Option<FieldDescriptor> {
    descriptor.get_field_by_json_name(key).or_else(|| descriptor.get_field_by_name(key))
}

/// Where `null` is a value, not the absence of one.
fn takes_null(kind: &Kind) -> bool {
    match kind {
        Kind::Message(message) => message.full_name() == "google.protobuf.Value",
        Kind::Enum(values) => values.full_name() == "google.protobuf.NullValue",
        _ => false,
    }
}

fn text_entry(key: &str, at: Position, text: String) -> Entry {
    Entry { key: key.to_owned(), at, value: Node::at(at, Tree::Text(text)) }
}

fn type_url(node: &Node) -> Option<(&str, Position)> {
    let Tree::Map(entries) = &node.tree else { return None };
    let entry = entries.iter().find(|entry| entry.key == "@type")?;
    Some((entry.value.text()?, entry.at))
}
