//! Kubernetes objects: read from YAML, named by kind, namespace and name.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::error::{During as _, LabError, Result};

/// What names an object.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key {
    pub(crate) kind: String,
    pub(crate) namespace: String,
    pub(crate) name: String,
}

/// Kinds without a namespace.
const CLUSTER_SCOPED: [&str; 2] = ["Namespace", "MutatingWebhookConfiguration"];

impl Key {
    /// The key of an object; `default` stands in for an absent namespace.
    pub(crate) fn of(object: &Value) -> Option<Self> {
        let kind = object.get("kind")?.as_str()?;
        let name = object.pointer("/metadata/name")?.as_str()?;
        let namespace = object.pointer("/metadata/namespace").and_then(Value::as_str).unwrap_or("default");
        let namespace = if CLUSTER_SCOPED.contains(&kind) { "" } else { namespace };
        Some(Self::new(kind, namespace, name))
    }

    /// A key from its parts.
    pub(crate) fn new(kind: &str, namespace: &str, name: &str) -> Self {
        Self { kind: kind.to_owned(), namespace: namespace.to_owned(), name: name.to_owned() }
    }

    /// The file in which the lab writes the object.
    pub(crate) fn file_name(&self) -> String {
        if self.namespace.is_empty() {
            format!("{}.{}.yaml", self.kind, self.name)
        } else {
            format!("{}.{}.{}.yaml", self.kind, self.namespace, self.name)
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            write!(out, "{} {}", self.kind, self.name)
        } else {
            write!(out, "{} {}/{}", self.kind, self.namespace, self.name)
        }
    }
}

/// Objects by key.
pub(crate) type Objects = BTreeMap<Key, Value>;

/// Deepest nesting of directories that is followed, as the control plane does.
const MAX_DEPTH: usize = 8;

/// All objects in the YAML and JSON files of `directory`, and what could not be read.
pub(crate) fn load(directory: &Path) -> Result<(Objects, Vec<LabError>)> {
    Directory::new(directory.to_owned()).read(When::Now)
}

/// A directory that people edit: what becomes unreadable keeps what it held before, what serves is not displaced by a
/// second definition.
#[derive(Debug, Default)]
pub(crate) struct Directory {
    path: PathBuf,
    files: BTreeMap<PathBuf, File>,
    /// Where each object was read from the last time.
    owners: BTreeMap<Key, PathBuf>,
}

#[derive(Debug, Default)]
struct File {
    /// Of what was read; device, inode, size and time of change.
    stamp: Option<Stamp>,
    /// Seen once, not read yet.
    pending: Option<Stamp>,
    missing: bool,
    documents: Vec<Value>,
    problem: Option<String>,
}

type Stamp = (u64, u64, u64, i64, i64);

/// When a change counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum When {
    /// At once: whoever wrote it renamed it into place.
    Now,
    /// When two looks agree, so that no half-written file is ever read.
    Settled,
}

impl Directory {
    /// Nothing is read yet.
    pub(crate) fn new(path: PathBuf) -> Self {
        Self { path, ..Self::default() }
    }

    /// All objects as the files say now, and what is wrong with them.
    pub(crate) fn read(&mut self, when: When) -> Result<(Objects, Vec<LabError>)> {
        let mut present = BTreeMap::new();
        list(&self.path, 0, &mut present).during(format!("list {}", self.path.display()))?;
        self.files.retain(|path, file| {
            let gone = !present.contains_key(path);
            let kept = !gone || (when == When::Settled && !file.missing);
            file.missing = gone;
            kept
        });
        let mut problems = Vec::new();
        for (path, stamp) in present {
            let file = self.files.entry(path.clone()).or_default();
            if file.stamp != Some(stamp) {
                if when == When::Settled && file.pending != Some(stamp) {
                    file.pending = Some(stamp);
                } else {
                    file.read(&path, stamp);
                }
            }
            if let Some(message) = file.problem.clone() {
                problems.push(LabError::File { path, message });
            }
        }
        let mut objects = Objects::new();
        let mut owners: BTreeMap<Key, PathBuf> = BTreeMap::new();
        // Two passes: first what stays where it was, then the rest in order.
        for newcomers in [false, true] {
            for (path, document) in
                self.files.iter().flat_map(|(path, file)| file.documents.iter().map(move |one| (path, one)))
            {
                let Some(key) = Key::of(document) else {
                    if newcomers {
                        problems.push(bad(path, "a document without kind or metadata.name"));
                    }
                    continue;
                };
                if (self.owners.get(&key) == Some(path)) == newcomers {
                    continue;
                }
                match owners.get(&key) {
                    None => {
                        owners.insert(key.clone(), path.clone());
                        objects.insert(key, document.clone());
                    }
                    Some(owner) => {
                        let message = format!("{key}: duplicate of the one in {}", owner.display());
                        problems.push(bad(path, &message));
                    }
                }
            }
        }
        self.owners = owners;
        Ok((objects, problems))
    }
}

fn bad(path: &Path, message: &str) -> LabError {
    LabError::File { path: path.to_owned(), message: message.to_owned() }
}

impl File {
    fn read(&mut self, path: &Path, stamp: Stamp) {
        (self.stamp, self.pending) = (Some(stamp), None);
        match fs::read_to_string(path).map_err(|error| error.to_string()).and_then(|text| parse(&text)) {
            Ok(documents) => (self.documents, self.problem) = (documents, None),
            Err(message) => self.problem = Some(message),
        }
    }
}

/// The YAML and JSON files below `directory`; hidden entries are skipped.
fn list(directory: &Path, depth: usize, found: &mut BTreeMap<PathBuf, Stamp>) -> io::Result<()> {
    for path in fs::read_dir(directory)?.flatten().map(|entry| entry.path()) {
        let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        // One that vanished meanwhile is seen as gone by the next look.
        let (false, Ok(metadata)) = (hidden, fs::metadata(&path)) else { continue };
        let known =
            path.extension().is_some_and(|extension| ["yaml", "yml", "json"].iter().any(|e| extension == *e));
        if metadata.is_dir() {
            if depth < MAX_DEPTH {
                list(&path, depth + 1, found)?;
            }
        } else if known {
            let (inode, size) = (metadata.ino(), metadata.size());
            found.insert(path, (metadata.dev(), inode, size, metadata.mtime(), metadata.mtime_nsec()));
        }
    }
    Ok(())
}

/// The documents of one YAML text; a `List` counts as its items.
pub(crate) fn parse(text: &str) -> Result<Vec<Value>, String> {
    let options = serde_saphyr::options! { strict_booleans: true, legacy_octal_numbers: true };
    let documents: Vec<Value> =
        serde_saphyr::from_multiple_with_options(text, options).map_err(|error| error.to_string())?;
    let mut all = Vec::new();
    for document in documents {
        match (document.get("kind").and_then(Value::as_str), document.get("items").and_then(Value::as_array))
        {
            (Some("List"), Some(items)) => all.extend(items.iter().cloned()),
            _ if document.is_null() => {}
            _ => all.push(document),
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_and_lists_become_objects() {
        let text = "kind: Namespace\nmetadata: {name: shop}\n---\n---\nkind: List\nitems:\n- kind: Service\n  \
                    metadata: {name: a}\n";
        let objects = parse(text).unwrap();
        let keys: Vec<String> = objects.iter().filter_map(Key::of).map(|key| key.to_string()).collect();
        assert_eq!(keys, ["Namespace shop", "Service default/a"]);
        assert_eq!(Key::new("Pod", "n", "a").file_name(), "Pod.n.a.yaml");
    }

    #[test]
    fn a_broken_file_does_not_hide_the_others() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("a.yaml"), "kind: [").unwrap();
        fs::write(directory.path().join("b.yaml"), "kind: Pod\nmetadata: {name: p}\n").unwrap();
        fs::write(directory.path().join(".c.yaml"), "kind: Pod\nmetadata: {name: hidden}\n").unwrap();
        let (objects, problems) = load(directory.path()).unwrap();
        assert_eq!(objects.len(), 1);
        assert_eq!(problems.len(), 1);
        assert!(problems[0].to_string().contains("a.yaml"), "{}", problems[0]);
    }

    fn pod(name: &str, image: &str) -> String {
        format!("kind: Pod\nmetadata: {{name: {name}}}\nspec: {{image: {image}}}\n")
    }

    #[test]
    fn what_becomes_unreadable_keeps_what_it_held() {
        let temporary = tempfile::tempdir().unwrap();
        let path = |name: &str| temporary.path().join(name);
        fs::create_dir(path("below")).unwrap();
        fs::write(path("below/a.yaml"), pod("a", "1")).unwrap();
        fs::write(path("b.yaml"), pod("b", "1")).unwrap();
        let mut directory = Directory::new(temporary.path().to_owned());
        let (good, problems) = directory.read(When::Now).unwrap();
        assert_eq!((good.len(), problems.len()), (2, 0));
        fs::write(path("below/a.yaml"), "kind: [").unwrap();
        fs::write(path("b.yaml"), pod("b", "2")).unwrap();
        let (kept, problems) = directory.read(When::Now).unwrap();
        let (a, b) = (Key::new("Pod", "default", "a"), Key::new("Pod", "default", "b"));
        assert_eq!(kept[&a], good[&a]);
        assert_eq!(kept[&b]["spec"]["image"], 2);
        assert!(problems[0].to_string().contains("below/a.yaml"), "{problems:?}");
        fs::remove_file(path("below/a.yaml")).unwrap();
        let (rest, problems) = directory.read(When::Now).unwrap();
        assert_eq!((rest.len(), problems.len()), (1, 0), "what is deleted is gone");
    }

    #[test]
    fn a_second_definition_is_named_and_does_not_displace_the_first() {
        let temporary = tempfile::tempdir().unwrap();
        let path = |name: &str| temporary.path().join(name);
        fs::write(path("b.yaml"), pod("a", "1")).unwrap();
        let mut directory = Directory::new(temporary.path().to_owned());
        directory.read(When::Now).unwrap();
        fs::write(path("a.yaml"), format!("{}---\nkind: Pod\n", pod("a", "2"))).unwrap();
        let (objects, problems) = directory.read(When::Now).unwrap();
        assert_eq!(objects[&Key::new("Pod", "default", "a")]["spec"]["image"], 1);
        let said: Vec<String> = problems.iter().map(ToString::to_string).collect();
        assert!(said.iter().any(|text| text.contains("Pod default/a: duplicate of the one in")), "{said:?}");
        assert!(said.iter().any(|text| text.contains("without kind or metadata.name")), "{said:?}");
        fs::remove_file(path("b.yaml")).unwrap();
        let (objects, _) = directory.read(When::Now).unwrap();
        assert_eq!(objects[&Key::new("Pod", "default", "a")]["spec"]["image"], 2, "the other takes over");
    }

    #[test]
    fn what_people_edit_counts_when_it_has_settled() {
        let temporary = tempfile::tempdir().unwrap();
        let path = temporary.path().join("a.yaml");
        fs::write(&path, pod("a", "1")).unwrap();
        let mut directory = Directory::new(temporary.path().to_owned());
        assert_eq!(directory.read(When::Now).unwrap().0.len(), 1);
        // An editor that truncates and writes on.
        fs::write(&path, "").unwrap();
        assert_eq!(directory.read(When::Settled).unwrap().0.len(), 1, "seen once");
        fs::write(&path, format!("{}---\n{}", pod("a", "2"), pod("b", "2"))).unwrap();
        assert_eq!(directory.read(When::Settled).unwrap().0.len(), 1, "changed since");
        assert_eq!(directory.read(When::Settled).unwrap().0.len(), 2);
        // One that removes and creates.
        fs::remove_file(&path).unwrap();
        assert_eq!(directory.read(When::Settled).unwrap().0.len(), 2, "missed once");
        fs::write(&path, pod("a", "3")).unwrap();
        assert_eq!(directory.read(When::Settled).unwrap().0.len(), 2);
        assert_eq!(directory.read(When::Settled).unwrap().0.len(), 1);
        fs::remove_file(&path).unwrap();
        directory.read(When::Settled).unwrap();
        assert!(directory.read(When::Settled).unwrap().0.is_empty(), "gone for good");
    }
}
