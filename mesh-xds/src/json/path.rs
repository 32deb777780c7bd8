//! Where in a document something is.

use std::fmt;

use prost_reflect::{FieldDescriptor, MapKey};

/// One step into a document.
#[derive(Debug, Clone)]
pub(super) enum Step {
    /// A field of a message; its name is looked up only when somebody wants to read it.
    Field(FieldDescriptor),
    /// A key.
    Name(String),
    Index(usize),
}

/// A place, written `static_resources.clusters[0].connect_timeout`; the root is `.`.
#[derive(Debug, Clone, Default)]
pub(super) struct Path(Vec<Step>);

/// Keys of maps come from outside; no more of one is printed.
const LONGEST_KEY: usize = 64;

impl Step {
    /// The name of a field or of a key, or the index.
    fn part(&self) -> Result<&str, usize> {
        match self {
            Self::Field(field) => Ok(field.name()),
            Self::Name(name) => Ok(name),
            Self::Index(index) => Err(*index),
        }
    }
}

impl Path {
    pub(super) fn field(&mut self, field: FieldDescriptor) {
        self.0.push(Step::Field(field));
    }

    pub(super) fn name(&mut self, name: &str) {
        self.0.push(Step::Name(name.to_owned()));
    }

    pub(super) fn index(&mut self, index: usize) {
        self.0.push(Step::Index(index));
    }

    /// The same place as RFC 6901 writes it.
    pub(super) fn pointer(&self) -> String {
        self.0.iter().fold(String::new(), |pointer, step| match step.part() {
            Err(index) => format!("{pointer}/{index}"),
            Ok(name) => format!("{pointer}/{}", name.replace('~', "~0").replace('/', "~1")),
        })
    }

    pub(super) const fn depth(&self) -> usize {
        self.0.len()
    }

    /// Back to where the path was so deep.
    pub(super) fn truncate(&mut self, depth: usize) {
        self.0.truncate(depth);
    }

    pub(super) fn pop(&mut self) {
        self.0.pop();
    }
}

impl From<&serde_path_to_error::Path> for Path {
    fn from(path: &serde_path_to_error::Path) -> Self {
        use serde_path_to_error::Segment;
        let mut steps = Self::default();
        for segment in path {
            match segment {
                Segment::Seq { index } => steps.index(*index),
                Segment::Map { key } | Segment::Enum { variant: key } => steps.name(key),
                Segment::Unknown => {}
            }
        }
        steps
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str(".");
        }
        for (at, step) in self.0.iter().enumerate() {
            match step.part() {
                Err(index) => write!(f, "[{index}]")?,
                Ok(name) if is_plain(name) => {
                    write!(f, "{}{name}", if at == 0 { "" } else { "." })?;
                }
                // A key of a map that has dots of its own: `typed_per_filter_config["envoy.filters.http.fault"]`.
                Ok(name) => match name.char_indices().nth(LONGEST_KEY) {
                    Some((end, _)) => write!(f, "[{:?}…]", &name[..end])?,
                    None => write!(f, "[{name:?}]")?,
                },
            }
        }
        Ok(())
    }
}

fn is_plain(name: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'@');
    !name.is_empty() && name.len() <= LONGEST_KEY && name.bytes().all(plain)
}

/// A map's key as JSON writes it.
pub(super) fn key_text(key: &MapKey) -> String {
    match key {
        MapKey::Bool(key) => key.to_string(),
        MapKey::I32(key) => key.to_string(),
        MapKey::I64(key) => key.to_string(),
        MapKey::U32(key) => key.to_string(),
        MapKey::U64(key) => key.to_string(),
        MapKey::String(key) => key.clone(),
    }
}
