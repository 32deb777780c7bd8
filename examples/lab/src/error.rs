//! What can go wrong, with enough words to act on.

use std::fmt;
use std::path::PathBuf;

/// An error of the lab.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum LabError {
    /// A system call or file operation failed.
    #[error("{what}: {source}")]
    Os {
        /// What was tried.
        what: String,
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// A privilege is missing.
    #[error("{0}")]
    Privilege(String),
    /// A file does not hold what it should.
    #[error("{}: {message}", path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        message: String,
    },
    /// A Kubernetes object asks for something impossible or unknown.
    #[error("{object}: {field}: {message}")]
    Object {
        /// `Kind namespace/name`.
        object: String,
        /// The field's path.
        field: String,
        /// What is wrong.
        message: String,
    },
    /// rtnetlink refused.
    #[error("{what}: {message}")]
    Network {
        /// What was tried.
        what: String,
        /// The kernel's answer.
        message: String,
    },
    /// An HTTP exchange failed.
    #[error("{url}: {message}")]
    Http {
        /// Where to.
        url: String,
        /// What happened.
        message: String,
    },
    /// Something did not happen in time.
    #[error("{what} did not happen within {seconds} s{detail}")]
    Timeout {
        /// What was awaited.
        what: String,
        /// How long.
        seconds: u64,
        /// What is known about the reason; begins with `: ` when present.
        detail: String,
    },
    /// A child process said no, or something unexpected.
    #[error("{program}: {message}")]
    Process {
        /// Which program.
        program: String,
        /// What happened.
        message: String,
    },
    /// The user asked for something that is not there.
    #[error("{0}")]
    Usage(String),
}

/// The crate's result.
pub(crate) type Result<T, E = LabError> = std::result::Result<T, E>;

/// Adds what was tried to an operating system error.
pub(crate) trait During<T> {
    /// Names the attempt.
    fn during(self, what: impl fmt::Display) -> Result<T>;
}

impl<T> During<T> for std::io::Result<T> {
    fn during(self, what: impl fmt::Display) -> Result<T> {
        self.map_err(|source| LabError::Os { what: what.to_string(), source })
    }
}

impl<T> During<T> for nix::Result<T> {
    fn during(self, what: impl fmt::Display) -> Result<T> {
        self.map_err(|errno| LabError::Os { what: what.to_string(), source: errno.into() })
    }
}

impl<T> During<T> for std::result::Result<T, caps::errors::CapsError> {
    fn during(self, what: impl fmt::Display) -> Result<T> {
        self.map_err(|error| LabError::Os {
            what: what.to_string(),
            source: std::io::Error::other(error.to_string()),
        })
    }
}

impl LabError {
    /// A child that misbehaved.
    pub(crate) fn process(program: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Process { program: program.into(), message: message.into() }
    }
}
