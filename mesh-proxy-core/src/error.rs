//! Errors of configuration and start-up. Errors of single requests are response flags, not values of these types.

use std::{io, net::SocketAddr, sync::Arc};

/// A configuration value that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// A regular expression does not compile, or is too large.
    #[error("regular expression {pattern:?}: {source}")]
    Regex {
        /// The pattern.
        pattern: String,
        /// Why.
        source: regex::Error,
    },
    /// A field has a value that is not allowed.
    #[error("{field}: {reason} (got {value:?})")]
    Invalid {
        /// Path of the field inside its resource.
        field: String,
        /// The value.
        value: String,
        /// Why.
        reason: String,
    },
    /// A field that is needed is missing.
    #[error("{field}: missing")]
    Missing {
        /// Path of the field inside its resource.
        field: String,
    },
    /// Something this proxy does not know and must not skip.
    #[error("{field}: {kind} is not supported")]
    Unsupported {
        /// Path of the field inside its resource.
        field: String,
        /// What it is, with its type URL.
        kind: String,
    },
    /// A message inside the resource does not decode.
    #[error("{field}: {reason}")]
    Decode {
        /// Path of the field inside its resource.
        field: String,
        /// Why.
        reason: String,
    },
}

impl ConfigError {
    /// A stable label for metrics.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Regex { .. } => "regex",
            Self::Invalid { .. } => "invalid",
            Self::Missing { .. } => "missing",
            Self::Unsupported { .. } => "unsupported",
            Self::Decode { .. } => "decode",
        }
    }

    /// The same error, its field seen from one level further out.
    #[must_use]
    pub(crate) fn within(self, place: &str) -> Self {
        let outer = |field: String| format!("{place}.{field}");
        match self {
            Self::Invalid { field, value, reason } => Self::Invalid { field: outer(field), value, reason },
            Self::Missing { field } => Self::Missing { field: outer(field) },
            Self::Unsupported { field, kind } => Self::Unsupported { field: outer(field), kind },
            Self::Decode { field, reason } => Self::Decode { field: outer(field), reason },
            Self::Regex { pattern, source } => {
                Self::Invalid { field: place.to_owned(), value: pattern, reason: source.to_string() }
            }
        }
    }

    /// An [`Invalid`](Self::Invalid) value.
    pub fn invalid(field: impl Into<String>, value: impl ToString, reason: impl Into<String>) -> Self {
        Self::Invalid { field: field.into(), value: value.to_string(), reason: reason.into() }
    }
}

/// A resource that was refused. What was active before goes on serving.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ApplyError {
    /// The resource itself is wrong.
    #[error("{kind} {name:?}: {source}")]
    Config {
        /// `listener`, `route configuration`, `cluster` or `load assignment`.
        kind: &'static str,
        /// Its name.
        name: Arc<str>,
        /// What is wrong.
        source: ConfigError,
    },
    /// The address cannot be bound.
    #[error("listener {name:?}: cannot listen on {address}: {source}")]
    Bind {
        /// The listener.
        name: Arc<str>,
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The proxy is shutting down.
    #[error("the proxy is shutting down")]
    ShuttingDown,
}

impl ApplyError {
    /// A stable label for metrics.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Config { source, .. } => source.reason(),
            Self::Bind { .. } => "bind",
            Self::ShuttingDown => "shutting_down",
        }
    }
}

/// A proxy that could not be started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// A worker's thread or runtime could not be made.
    #[error("worker {worker}: {source}")]
    Worker {
        /// Its number.
        worker: usize,
        /// Why.
        source: io::Error,
    },
    /// Two factories claim one name.
    #[error("two filter factories are named {name:?}")]
    DuplicateFactory {
        /// The name.
        name: String,
    },
}
