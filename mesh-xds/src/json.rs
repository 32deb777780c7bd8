//! Protobuf-JSON and YAML for every message of [`pb`](crate::pb), both ways.
//!
//! What is printed is Envoy's form: proto field names (`connect_timeout`), durations as `"0.250s"`, an `Any` expanded
//! beside its `@type`. An `Any` of a type that this crate does not know keeps its bytes: it prints as
//! `{"@type": ..., "value": "<base64>"}` and reads back from that byte for byte.
//!
//! The descriptors take about 11 MB and 30 ms to load and are loaded on first use.

mod anys;
mod canonical;
mod pool;
mod print;
mod read;

use prost::{Message, Name};
use prost_types::Any;
use serde_json::Value;

pub use print::{REDACTED, Redaction};

/// Why a text could not be read as a message, or a message not be printed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum JsonError {
    /// The text is not the message: bad syntax, an unknown field, a value of the wrong type.
    #[error("line {line}, column {column}: {path}: {message}")]
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
}

impl JsonError {
    /// A stable label of low cardinality, for metrics.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Invalid { .. } => "invalid",
            Self::UnknownType { .. } => "unknown_type",
            Self::Decode { .. } => "decode",
        }
    }
}

/// Reads protobuf-JSON. Unknown fields are refused; both `connect_timeout` and `connectTimeout` are understood.
///
/// # Errors
/// [`JsonError::Invalid`] with path, line and column; [`JsonError::UnknownType`] when `T` is not a message of this crate.
pub fn from_json<T: Message + Name + Default>(text: &str) -> Result<T, JsonError> {
    read::from_json(text)
}

/// Reads the YAML form of protobuf-JSON: an Envoy bootstrap, for instance.
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
    read::from_yaml(text)
}

/// Reads a JSON value that was parsed already; errors carry a path but no line.
///
/// # Errors
/// As [`from_json`].
pub fn from_value<T: Message + Name + Default>(value: &Value) -> Result<T, JsonError> {
    read::from_value(value)
}

/// Prints a message as Envoy does.
///
/// # Errors
/// [`JsonError::UnknownType`] when `T` is not a message of this crate.
pub fn to_value<T: Message + Name>(message: &T, redaction: Redaction) -> Result<Value, JsonError> {
    print::message(&T::full_name(), &message.encode_to_vec(), redaction)
}

/// Prints any `Any`: expanded when its type is known and its bytes are sound, as base64 otherwise.
#[must_use]
pub fn any_to_value(any: &Any, redaction: Redaction) -> Value {
    print::any(any, redaction)
}

#[cfg(test)]
mod tests;
