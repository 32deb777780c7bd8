//! Where access logs go.

use std::{
    fmt,
    fs::{File, OpenOptions},
    io::{self, Write},
    sync::{Arc, Mutex, PoisonError},
};

/// Opens access logs by path.
pub trait AccessLogOpener: Send + Sync + fmt::Debug + 'static {
    /// Opens a log. Called once for each path.
    ///
    /// # Errors
    /// The listener that names the path is then refused.
    fn open(&self, path: &str) -> io::Result<Arc<dyn AccessLogSink>>;
}

/// Takes batches of whole lines. Called from a thread that may block, never from a worker.
pub trait AccessLogSink: Send + Sync + fmt::Debug + 'static {
    /// Writes a batch.
    fn write(&self, lines: &[u8]);
}

/// Files and the process's own streams. Failed writes are dropped: a full disk must not stop traffic.
#[derive(Debug, Clone, Copy, Default)]
pub struct FileLogs;

#[derive(Debug)]
enum Target {
    File(Mutex<File>),
    Stdout,
    Stderr,
}

impl AccessLogOpener for FileLogs {
    fn open(&self, path: &str) -> io::Result<Arc<dyn AccessLogSink>> {
        Ok(Arc::new(match path {
            "/dev/stdout" => Target::Stdout,
            "/dev/stderr" => Target::Stderr,
            _ => Target::File(Mutex::new(OpenOptions::new().create(true).append(true).open(path)?)),
        }))
    }
}

impl AccessLogSink for Target {
    fn write(&self, lines: &[u8]) {
        let _full_disk_or_closed_pipe = match self {
            Self::File(file) => file.lock().unwrap_or_else(PoisonError::into_inner).write_all(lines),
            Self::Stdout => io::stdout().lock().write_all(lines),
            Self::Stderr => io::stderr().lock().write_all(lines),
        };
    }
}
