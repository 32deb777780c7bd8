//! Finding files, noticing changes, reading what has settled.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use crate::resources::{Document, Origin, Outcome, ResourceError, Sniffed, parse_documents};

/// Deepest nesting of directories that is followed: scenario folders are shallow, and links may loop.
const MAX_DEPTH: usize = 8;
/// Largest file that is read; a Kubernetes object is at most 1.5 MiB, and a file may hold many.
const MAX_FILE_BYTES: u64 = 64 << 20;
/// A file whose time stamp is younger than this when read is read again: a second write may share the stamp.
const RACY_NANOS: i128 = 50_000_000;

/// The watched directories.
#[derive(Debug)]
pub(super) struct Scanner {
    roots: Vec<Root>,
    files: BTreeMap<(usize, PathBuf), File>,
    first: bool,
}

#[derive(Debug)]
struct Root {
    path: PathBuf,
    status: bool,
    error: Option<String>,
}

#[derive(Debug, Default)]
struct File {
    /// The stamp of what `documents` was read from.
    stamp: Option<Stamp>,
    /// A newer stamp seen once.
    pending: Option<Stamp>,
    missing: bool,
    racy: bool,
    text: String,
    documents: Vec<Document>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified_nanos: i128,
}

impl Scanner {
    pub(super) fn new(config: Vec<PathBuf>, status: Vec<PathBuf>) -> Self {
        let root = |status| move |path| Root { path, status, error: None };
        let roots = config.into_iter().map(root(false)).chain(status.into_iter().map(root(true))).collect();
        Self { roots, files: BTreeMap::new(), first: true }
    }

    /// Looks once; whether anything that counts has changed.
    pub(super) fn scan(&mut self) -> bool {
        let mut changed = std::mem::take(&mut self.first);
        let initial = changed;
        let mut present = BTreeMap::new();
        for (index, root) in self.roots.iter_mut().enumerate() {
            let error = list(&root.path, 0, &mut |path, stamp| {
                present.insert((index, path), stamp);
            })
            .err()
            .map(|error| error.to_string());
            changed |= error != root.error;
            root.error = error;
        }
        for (key, stamp) in &present {
            let status = self.roots.get(key.0).is_some_and(|root| root.status);
            let file = self.files.entry(key.clone()).or_default();
            file.missing = false;
            if file.stamp == Some(*stamp) && !file.racy {
                file.pending = None;
                continue;
            }
            // Directories that people edit: wait until two looks agree, so that no half-written file is read.
            if file.stamp != Some(*stamp) && !(initial || status) && file.pending != Some(*stamp) {
                file.pending = Some(*stamp);
                continue;
            }
            changed |= file.read(&key.1, *stamp);
        }
        let roots = &self.roots;
        self.files.retain(|key, file| {
            if present.contains_key(key) {
                return true;
            }
            let root = roots.get(key.0);
            // A directory that cannot be listed keeps what it had.
            if root.is_some_and(|root| root.error.is_some()) {
                return true;
            }
            if !file.missing && !root.is_some_and(|root| root.status) {
                file.missing = true;
                return true;
            }
            changed |= file.stamp.is_some();
            false
        });
        changed
    }

    /// All documents in order of directory, path and position; `true` for those of status directories.
    pub(super) fn documents(&self) -> impl Iterator<Item = (bool, &Document)> {
        self.files.iter().flat_map(|(key, file)| {
            let status = self.roots.get(key.0).is_some_and(|root| root.status);
            file.documents.iter().map(move |document| (status, document))
        })
    }

    /// Directories that could not be read, with the reason.
    pub(super) fn errors(&self) -> impl Iterator<Item = (&Path, &str)> {
        self.roots.iter().filter_map(|root| Some((root.path.as_path(), root.error.as_deref()?)))
    }
}

impl File {
    /// Reads the file; whether its content differs from before.
    fn read(&mut self, path: &Path, stamp: Stamp) -> bool {
        let name: Arc<str> = Arc::from(path.display().to_string());
        self.pending = None;
        let before = self.stamp.replace(stamp);
        self.racy = now_nanos() - stamp.modified_nanos < RACY_NANOS;
        match read_text(path, stamp.size) {
            Ok(text) => {
                if before.is_some() && text == self.text {
                    return false;
                }
                self.documents = parse_documents(&name, &text);
                self.text = text;
                true
            }
            Err(error) => {
                let document = unreadable(&name, &error);
                let known = self.documents.iter().any(|d| same_error(d, &document));
                if !known {
                    self.text.clear();
                    self.documents = vec![document];
                }
                !known
            }
        }
    }
}

fn same_error(a: &Document, b: &Document) -> bool {
    match (&a.outcome, &b.outcome) {
        (Outcome::Rejected { error: a, .. }, Outcome::Rejected { error: b, .. }) => a == b,
        _ => false,
    }
}

fn unreadable(name: &Arc<str>, error: &io::Error) -> Document {
    let origin = Origin { file: Arc::clone(name), line: 1 };
    let error = Box::new(ResourceError {
        reason: "unreadable",
        file: name.to_string(),
        line: 1,
        kind: String::new(),
        namespace: String::new(),
        name: String::new(),
        field: String::new(),
        message: error.to_string(),
    });
    Document { origin, outcome: Outcome::Rejected { error, sniffed: Sniffed::default() } }
}

fn read_text(path: &Path, size: u64) -> io::Result<String> {
    if size > MAX_FILE_BYTES {
        return Err(io::Error::other(format!(
            "{size} bytes are more than the {MAX_FILE_BYTES} that are read"
        )));
    }
    fs::read_to_string(path)
}

fn now_nanos() -> i128 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_nanos().cast_signed())
}

/// Calls `found` for every YAML or JSON file; hidden entries are skipped (editors' swap files, `..data` links).
fn list(path: &Path, depth: usize, found: &mut impl FnMut(PathBuf, Stamp)) -> io::Result<()> {
    let metadata = fs::metadata(path)?;
    if metadata.is_file() {
        found(path.to_owned(), stamp(&metadata));
        return Ok(());
    }
    for entry in fs::read_dir(path)? {
        let path = entry?.path();
        if path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b".")) {
            continue;
        }
        // Vanished between listing and looking: the next look will tell.
        let Ok(metadata) = fs::metadata(&path) else { continue };
        if metadata.is_dir() {
            if depth < MAX_DEPTH {
                match list(&path, depth + 1, found) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    _ => {}
                }
            }
        } else if metadata.is_file()
            && path.extension().is_some_and(|e| e == "yaml" || e == "yml" || e == "json")
        {
            found(path, stamp(&metadata));
        }
    }
    Ok(())
}

fn stamp(metadata: &fs::Metadata) -> Stamp {
    Stamp {
        device: metadata.dev(),
        inode: metadata.ino(),
        size: metadata.size(),
        modified_nanos: i128::from(metadata.mtime()) * 1_000_000_000 + i128::from(metadata.mtime_nsec()),
    }
}
