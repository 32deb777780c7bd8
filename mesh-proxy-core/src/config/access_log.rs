//! Access logs.

use std::sync::Arc;

/// One access log: where, how, and for what.
#[derive(Debug, Clone, PartialEq)]
pub struct AccessLog {
    /// Path; `/dev/stdout` and `/dev/stderr` are the process's streams.
    pub path: Arc<str>,
    /// How a line looks.
    pub format: AccessLogFormat,
    /// What is logged; all of these must hold.
    pub filters: Vec<AccessLogFilter>,
}

/// The form of a line, in Envoy's `%OPERATOR%` language. Checked when a listener is applied.
#[derive(Debug, Clone, PartialEq)]
pub enum AccessLogFormat {
    /// Istio's default text line.
    Default,
    /// Text. A newline is part of the format.
    Text(Arc<str>),
    /// JSON keys in order with their formats; one object per line. Numbers stay numbers, missing values are `null`.
    Json(Vec<(Arc<str>, Arc<str>)>),
}

/// A condition for logging.
#[derive(Debug, Clone, PartialEq)]
pub enum AccessLogFilter {
    /// Any of these response flags (`NR`, `UF`, …); empty means any flag at all.
    ResponseFlags(Vec<Arc<str>>),
    /// Status code at least this.
    StatusAtLeast(u16),
    /// Duration in milliseconds at least this.
    DurationAtLeast(u64),
}
