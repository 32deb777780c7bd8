//! Why a control plane does not start.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

/// Why a control plane does not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// A setting is wrong.
    #[error("{flag} {value:?}: {message}")]
    Config {
        /// The flag.
        flag: &'static str,
        /// What it was given.
        value: String,
        /// What is wrong.
        message: String,
    },
    /// A port cannot be bound.
    #[error("cannot bind {address} for {what}: {source}")]
    Bind {
        /// What the port is for.
        what: &'static str,
        /// The address.
        address: SocketAddr,
        /// The system's reason.
        source: io::Error,
    },
    /// A file cannot be read or written.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The CA cannot be loaded, made or used.
    #[error("certificate authority: {0}")]
    Ca(#[from] mesh_identity::ca::CaError),
    /// The CA's files cannot be read.
    #[error("certificate authority: {0}")]
    CaFiles(#[from] mesh_identity::ca::CaFilesError),
    /// TLS cannot be configured.
    #[error("TLS: {0}")]
    Tls(#[from] mesh_identity::tls::TlsError),
    /// The injector's settings are wrong.
    #[error("injector: {0}")]
    Inject(#[from] mesh_inject::InjectError),
    /// Something else of the operating system.
    #[error("cannot {what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// The system's reason.
        source: io::Error,
    },
}

impl ServeError {
    pub(super) fn config(flag: &'static str, value: &str, message: impl fmt::Display) -> Self {
        Self::Config { flag, value: value.to_owned(), message: message.to_string() }
    }

    /// A stable label of low cardinality.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Config { .. } => "config",
            Self::Bind { .. } => "bind",
            Self::File { .. } => "file",
            Self::Ca(_) | Self::CaFiles(_) => "ca",
            Self::Tls(_) => "tls",
            Self::Inject(_) => "inject",
            Self::Io { .. } => "io",
        }
    }
}
