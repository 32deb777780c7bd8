//! Statistics, access logs, response flags.

mod flags;
mod sink;
mod stats;

pub use flags::ResponseFlags;
pub use sink::{AccessLogOpener, AccessLogSink, FileLogs};
pub use stats::{Counter, Gauge, Histogram, Stats};
