//! Good versions that serve in place of bad ones, kept over a restart: otherwise a crash would turn a harmless typing
//! error into a missing route, or into a policy that fails closed.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::files::write_atomically;
use crate::resources::{Object, Origin, Outcome, parse_documents};

/// One kept object: its text, and where it came from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Kept {
    file: String,
    line: u64,
    text: String,
}

/// The file of kept objects.
#[derive(Debug)]
pub(super) struct Keeper {
    path: Option<PathBuf>,
    written: Vec<Kept>,
}

impl Keeper {
    pub(super) fn new(path: Option<PathBuf>) -> Self {
        let written = path.as_ref().map(read).unwrap_or_default();
        Self { path, written }
    }

    /// What an earlier process kept.
    pub(super) fn load(&self) -> Vec<Arc<Object>> {
        let mut objects = Vec::new();
        for kept in &self.written {
            let file: Arc<str> = Arc::from(kept.file.as_str());
            for document in parse_documents(&file, &kept.text) {
                if let Outcome::Object(object) = document.outcome {
                    let origin = Origin { file: Arc::clone(&file), line: kept.line };
                    objects.push(Arc::new(Object { origin, ..Object::clone(&object) }));
                }
            }
        }
        objects
    }

    /// Writes what is kept now, if it differs from what is written.
    pub(super) fn keep(&mut self, objects: &[Arc<Object>]) {
        let Some(path) = &self.path else { return };
        let kept: Vec<Kept> = objects
            .iter()
            .map(|object| Kept {
                file: object.origin.file.to_string(),
                line: object.origin.line,
                text: object.text.to_string(),
            })
            .collect();
        if kept == self.written {
            return;
        }
        let written = serde_json::to_vec_pretty(&kept)
            .map_err(io::Error::other)
            .and_then(|bytes| write_atomically(path, &bytes, 0o600));
        match written {
            Ok(()) => self.written = kept,
            Err(error) => tracing::warn!(path = %path.display(), %error, "last good versions not kept"),
        }
    }
}

/// Nothing where there is no file; a file that cannot be read is reported, and its objects are lost.
fn read(path: &PathBuf) -> Vec<Kept> {
    let parsed = match fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map_err(io::Error::other),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    };
    parsed.unwrap_or_else(|error| {
        tracing::warn!(path = %path.display(), %error, "last good versions cannot be read");
        Vec::new()
    })
}
