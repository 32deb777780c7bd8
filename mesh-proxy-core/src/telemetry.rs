//! Statistics, access logs, response flags.

mod access_log;
mod cluster_stats;
mod flags;
mod format;
mod istio;
mod log_writer;
mod render;
mod sink;
mod stats;

pub use flags::ResponseFlags;
pub use sink::{AccessLogOpener, AccessLogSink, FileLogs};
pub use stats::{Counter, Gauge, Histogram, Sample, Stats};

pub(crate) use access_log::{Captured, Logs, Record};
pub(crate) use cluster_stats::ClusterStats;
pub(crate) use format::{Captures, Format};
pub(crate) use istio::{IstioMetrics, SeriesCache, SeriesKey, SeriesLabels};
pub(crate) use log_writer::LogWriter;
