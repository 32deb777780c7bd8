use std::{os::unix::fs::MetadataExt, path::Path};

/// What differs when a file was written, or when another one stands in its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stamp {
    inode: u64,
    length: u64,
    written: (i64, i64),
}

impl Stamp {
    /// `None` where there is no file. Symbolic links are followed.
    pub(crate) async fn of(path: &Path) -> Option<Self> {
        let facts = tokio::fs::metadata(path).await.ok()?;
        let written = (facts.mtime(), facts.mtime_nsec());
        Some(Self { inode: facts.ino(), length: facts.len(), written })
    }
}
