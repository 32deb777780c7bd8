//! Kubernetes objects: read from YAML, named by kind, namespace and name.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::Path;

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

/// All objects in the YAML and JSON files of `directory`, and what could not be read.
pub(crate) fn load(directory: &Path) -> Result<(Objects, Vec<LabError>)> {
    let mut objects = Objects::new();
    let mut problems = Vec::new();
    let entries = fs::read_dir(directory).during(format!("list {}", directory.display()))?;
    let mut paths: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    for path in paths {
        let hidden = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
        let known =
            path.extension().is_some_and(|extension| ["yaml", "yml", "json"].iter().any(|e| extension == *e));
        if hidden || !known {
            continue;
        }
        let read = fs::read_to_string(&path).map_err(|error| error.to_string()).and_then(|text| parse(&text));
        match read {
            Ok(documents) => objects.extend(documents.into_iter().filter_map(|o| Some((Key::of(&o)?, o)))),
            Err(message) => problems.push(LabError::File { path, message }),
        }
    }
    Ok((objects, problems))
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
}
