//! What was left out of a message, and what in one is not known.

use std::fmt;

/// How many findings are listed. A hostile document has more than anybody reads, and each path takes memory.
pub const MAX_LISTED: usize = 1000;

/// Findings in the order of the document: the first [`MAX_LISTED`], and how many more there are.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Findings<T> {
    /// The first ones.
    pub listed: Vec<T>,
    /// How many were found beyond those that are listed.
    pub more: usize,
}

impl<T> Default for Findings<T> {
    fn default() -> Self {
        Self { listed: Vec::new(), more: 0 }
    }
}

impl<T> Findings<T> {
    /// Whether nothing was found.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.listed.is_empty()
    }

    /// How many were found, listed or not.
    #[must_use]
    pub const fn count(&self) -> usize {
        self.listed.len() + self.more
    }

    pub(super) fn push(&mut self, finding: impl FnOnce() -> T) {
        if self.listed.len() < MAX_LISTED {
            self.listed.push(finding());
        } else {
            self.more += 1;
        }
    }
}

/// A message that was read from a document that may hold more than this crate knows.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Lossy<T> {
    /// What is known of it.
    pub message: T,
    /// What was left out; empty when the message is the whole document.
    pub skipped: Findings<Skipped>,
}

/// One thing that was left out.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Skipped {
    /// Where in the document, such as `command_line_options.invented_later`.
    pub path: String,
    /// Line, from 1; 0 when it is not known.
    pub line: usize,
    /// Column, from 1; 0 when it is not known.
    pub column: usize,
    /// Why.
    pub reason: SkipReason,
}

impl fmt::Display for Skipped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.line > 0 {
            write!(f, "line {}: ", self.line)?;
        }
        write!(f, "{}: {}", self.path, self.reason)
    }
}

/// Why something was left out.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum SkipReason {
    /// The message has no field of this name.
    UnknownField,
    /// The enum has no value of this name.
    UnknownEnumValue {
        /// The name, no more than 200 characters of it.
        value: String,
    },
    /// An extension of a type that is not part of this crate; its JSON cannot become bytes.
    UnknownType {
        /// Its type URL, no more than 200 characters of it.
        type_url: String,
    },
}

impl fmt::Display for SkipReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownField => f.write_str("unknown field"),
            Self::UnknownEnumValue { value } => write!(f, "unknown enum value {value:?}"),
            Self::UnknownType { type_url } => {
                write!(f, "{type_url:?} is not known, so that its JSON cannot become bytes")
            }
        }
    }
}

/// Something in a message that this crate does not know.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct UnknownPart {
    /// Where in the message, such as `filter_chains[0].filters[2].typed_config`; `.` is the message itself. Of an unknown
    /// field it is the message that holds it.
    pub path: String,
    /// What it is.
    pub kind: UnknownKind,
}

impl fmt::Display for UnknownPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.kind)
    }
}

/// What is not known.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum UnknownKind {
    /// An extension of a type that is not part of this crate.
    Extension {
        /// Its type URL.
        type_url: String,
    },
    /// An extension whose bytes are no message of its type, or that is nested too deeply to be looked into.
    Broken {
        /// Its type URL.
        type_url: String,
        /// What the decoder said.
        message: String,
    },
    /// A field that this crate's message does not have. It is lost when the message is decoded and encoded again.
    Field {
        /// Its number.
        number: u32,
    },
    /// An enum value without a name. It survives decoding and encoding, and prints as its number.
    EnumValue {
        /// Its number.
        number: i32,
    },
}

impl fmt::Display for UnknownKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Extension { type_url } => write!(f, "extension of unknown type {type_url:?}"),
            Self::Broken { type_url, message } => write!(f, "{type_url:?} that cannot be decoded: {message}"),
            Self::Field { number } => write!(f, "unknown field {number}"),
            Self::EnumValue { number } => write!(f, "unknown enum value {number}"),
        }
    }
}
