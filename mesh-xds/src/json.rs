//! Protobuf-JSON and YAML for every message of [`pb`](crate::pb), both ways.
//!
//! What is printed is Envoy's form: proto field names (`connect_timeout`), durations as `"0.250s"`, an `Any` expanded
//! beside its `@type`. An `Any` of a type that this crate does not know keeps its bytes: it prints as
//! `{"@type": ..., "value": "<base64>"}` and reads back from that byte for byte. [`unknown_parts`] lists all that is not
//! known in a message.
//!
//! What is read is held against the descriptors first: what people write is refused when anything in it is unknown
//! ([`from_json`], [`from_yaml`]); of what a newer program prints the known part is read and the rest listed
//! ([`from_json_lossy`]).
//!
//! The descriptors take about 11 MB and 30 ms to load and are loaded on first use.

mod anys;
mod canonical;
mod check;
mod parse;
mod path;
mod pool;
mod print;
mod read;
mod report;
mod scalars;
mod tree;
mod unknown;

use prost::{Message, Name};
use prost_types::Any;
use serde_json::Value;

pub use print::{REDACTED, Redaction};
pub use report::{Findings, Lossy, MAX_LISTED, SkipReason, Skipped, UnknownKind, UnknownPart};

/// Why a text could not be read as a message, or a message not be printed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum JsonError {
    /// The text is not the message: bad syntax, an unknown field, a value of the wrong type.
    #[error("{}{path}: {message}", position(*line, *column))]
    Invalid {
        /// Where in the document, such as `static_resources.clusters[0].connect_timeout`; `.` is its root.
        path: String,
        /// Line, from 1; 0 when it is not known.
        line: usize,
        /// Column, from 1; 0 when it is not known.
        column: usize,
        /// What is wrong there.
        message: String,
    },
    /// The message type is not part of this crate.
    #[error("message type {name:?} is not known")]
    UnknownType {
        /// The full protobuf name.
        name: String,
    },
    /// The bytes behind a typed message could not be decoded again.
    #[error("{name}: {message}")]
    Decode {
        /// The full protobuf name.
        name: String,
        /// What the decoder said.
        message: String,
    },
    /// The message holds something that has no JSON: a duration or a timestamp out of range, a `google.protobuf.Value`
    /// without a value or with a number that is not finite.
    #[error("{path}: {message}")]
    Unprintable {
        /// Where in the message.
        path: String,
        /// What has no JSON.
        message: String,
    },
}

/// The beginning of an error about a place that is known.
fn position(line: usize, column: usize) -> String {
    if line == 0 { String::new() } else { format!("line {line}, column {column}: ") }
}

impl JsonError {
    /// A stable label of low cardinality, for metrics.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Invalid { .. } => "invalid",
            Self::UnknownType { .. } => "unknown_type",
            Self::Decode { .. } => "decode",
            Self::Unprintable { .. } => "unprintable",
        }
    }
}

/// Reads protobuf-JSON. What is unknown is refused; both `connect_timeout` and `connectTimeout` are understood.
///
/// Refused are also what other readers take silently and differently: a key that is said twice, a field in both
/// spellings, `null` in a list, two fields of a oneof, a number that does not fit, a byte order mark, and anything behind
/// the document. Enum values that are numbers are taken whether they have a name or not. For dumps of programs that are
/// newer than this crate see [`from_json_lossy`].
///
/// # Errors
/// [`JsonError::Invalid`] with path, line and column; [`JsonError::UnknownType`] when `T` is not a message of this crate.
pub fn from_json<T: Message + Name + Default>(text: &str) -> Result<T, JsonError> {
    read::strict(parse::json(text)?)
}

/// Reads the YAML form of protobuf-JSON: an Envoy bootstrap, for instance.
///
/// One document; nothing at all is an empty message. An unquoted scalar is a text where the field is one: `id: 1.10`.
///
/// # Errors
/// As [`from_json`].
///
/// # Examples
/// ```
/// use mesh_xds::pb::envoy::config::bootstrap::v3::Bootstrap;
///
/// let bootstrap: Bootstrap = mesh_xds::json::from_yaml("node: { id: sidecar-1, cluster: demo }")?;
/// assert_eq!(bootstrap.node.unwrap_or_default().id, "sidecar-1");
///
/// let error = mesh_xds::json::from_yaml::<Bootstrap>("node:\n  idd: sidecar-1\n").unwrap_err();
/// assert!(error.to_string().starts_with("line 2"), "{error}");
/// # Ok::<(), mesh_xds::json::JsonError>(())
/// ```
pub fn from_yaml<T: Message + Name + Default>(text: &str) -> Result<T, JsonError> {
    read::strict(parse::yaml(text)?)
}

/// Reads a JSON value that was parsed already; errors carry a path but no line.
///
/// # Errors
/// As [`from_json`].
pub fn from_value<T: Message + Name + Default>(value: &Value) -> Result<T, JsonError> {
    read::strict(value.into())
}

/// Reads what a program printed that may be newer than this crate: what is unknown is left out, and listed.
///
/// Left out are unknown fields, enum values with an unknown name (in a list the item, in a map the entry), and extensions
/// of an unknown type whose JSON is not their bytes. Everything else that [`from_json`] refuses is refused here too.
/// Never read configuration this way that is to be applied: a left-out RBAC filter is a hole.
///
/// # Errors
/// As [`from_json`], but for what is unknown; [`JsonError::UnknownType`] also when the document itself is an extension of
/// an unknown type.
///
/// # Examples
/// ```
/// use mesh_xds::pb::envoy::admin::v3::ServerInfo;
///
/// let page = "{\n \"version\": \"1.40\",\n \"invented_later\": { \"a\": 1 }\n}";
/// assert!(mesh_xds::json::from_json::<ServerInfo>(page).is_err());
///
/// let read = mesh_xds::json::from_json_lossy::<ServerInfo>(page)?;
/// assert_eq!(read.message.version, "1.40");
/// assert_eq!(read.skipped.listed[0].to_string(), "line 3: invented_later: unknown field");
/// # Ok::<(), mesh_xds::json::JsonError>(())
/// ```
pub fn from_json_lossy<T: Message + Name + Default>(text: &str) -> Result<Lossy<T>, JsonError> {
    read::lossy(parse::json(text)?)
}

/// Reads YAML as [`from_json_lossy`] reads JSON.
///
/// # Errors
/// As [`from_json_lossy`].
pub fn from_yaml_lossy<T: Message + Name + Default>(text: &str) -> Result<Lossy<T>, JsonError> {
    read::lossy(parse::yaml(text)?)
}

/// Reads a value that was parsed already as [`from_json_lossy`] reads text; the list has paths but no lines.
///
/// # Errors
/// As [`from_json_lossy`].
pub fn from_value_lossy<T: Message + Name + Default>(value: &Value) -> Result<Lossy<T>, JsonError> {
    read::lossy(value.into())
}

/// Prints a message as Envoy does.
///
/// An extension that is unknown, broken, nested deeper than 100 messages or without a JSON of its own prints as its bytes.
/// Fields that are unknown to this crate cannot be printed; [`unknown_parts`] counts them.
///
/// # Errors
/// [`JsonError::UnknownType`] when `T` is not a message of this crate, [`JsonError::Unprintable`] when something outside
/// an extension has no JSON.
pub fn to_value<T: Message + Name>(message: &T, redaction: Redaction) -> Result<Value, JsonError> {
    print::message(&T::full_name(), &message.encode_to_vec(), redaction)
}

/// Prints any `Any`: expanded when its type is known and its bytes are sound and have a JSON, as base64 otherwise.
#[must_use]
pub fn any_to_value(any: &Any, redaction: Redaction) -> Value {
    print::any(any, redaction)
}

/// Everything in a message, at every depth, that this crate does not know: extensions, fields and enum values.
///
/// A resource with an unknown extension is sound and travels byte for byte; a program that applies it wants to know what
/// it cannot apply. Unknown fields are seen in the bytes of an [`Any`] only: a decoded message has lost them, except in
/// the extensions that it holds. For a typed message use [`Resource::to_any`](crate::Resource::to_any) or
/// [`Any::from_msg`].
///
/// # Examples
/// ```
/// use mesh_xds::{Any, json::{UnknownKind, unknown_parts}};
/// use mesh_xds::pb::envoy::config::core::v3::TypedExtensionConfig;
///
/// let thing = Any { type_url: "type.googleapis.com/acme.Thing".to_owned(), value: vec![1, 2, 3] };
/// let extension = TypedExtensionConfig { name: "e".to_owned(), typed_config: Some(thing.clone()) };
/// let found = unknown_parts(&Any::from_msg(&extension)?);
/// assert_eq!(found.listed[0].path, "typed_config");
/// assert_eq!(found.listed[0].kind, UnknownKind::Extension { type_url: thing.type_url });
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use]
pub fn unknown_parts(any: &Any) -> Findings<UnknownPart> {
    unknown::parts(any)
}

#[cfg(test)]
mod tests;
