//! Reading and writing files of Kubernetes objects.

use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::ValueEnum;
use mesh_inject::offline::{parse_documents, to_yaml};
use serde_json::{Value, json};

/// Form of the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Form {
    /// YAML documents, separated by `---`.
    Yaml,
    /// One JSON object; a `List` when there are several documents.
    Json,
}

/// Documents of one file, of every YAML or JSON file of a directory, or of standard input (`-`).
pub(crate) fn read(path: &Path) -> anyhow::Result<Vec<Value>> {
    if path.as_os_str() == "-" {
        let mut text = String::new();
        std::io::stdin().lock().read_to_string(&mut text).context("standard input")?;
        return parse_documents(&text).context("standard input");
    }
    if !path.is_dir() {
        let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
        return parse_documents(&text).with_context(|| path.display().to_string());
    }
    let entries = fs::read_dir(path).with_context(|| path.display().to_string())?;
    let mut files: Vec<PathBuf> =
        entries.map(|entry| entry.map(|entry| entry.path())).collect::<Result<_, _>>()?;
    files.sort();
    let mut documents = Vec::new();
    for file in files {
        let known =
            file.extension().is_some_and(|extension| ["yaml", "yml", "json"].iter().any(|e| extension == *e));
        if known && file.is_file() {
            documents.extend(read(&file)?);
        }
    }
    Ok(documents)
}

/// Documents of several paths.
pub(crate) fn read_all(paths: &[PathBuf]) -> anyhow::Result<Vec<Value>> {
    let mut documents = Vec::new();
    for path in paths {
        documents.extend(read(path)?);
    }
    if documents.is_empty() {
        bail!("no documents found");
    }
    Ok(documents)
}

/// The only document of a file.
pub(crate) fn read_one(path: &Path) -> anyhow::Result<Value> {
    let mut documents = read(path)?;
    match (documents.pop(), documents.is_empty()) {
        (Some(document), true) => Ok(document),
        _ => bail!("{}: expected exactly one document", path.display()),
    }
}

/// Objects of the documents, with the items of every `List` in its place.
pub(crate) fn objects(documents: Vec<Value>) -> Vec<Value> {
    let mut objects = Vec::new();
    for mut document in documents {
        match document.get_mut("items").filter(|items| items.is_array()).map(Value::take) {
            Some(Value::Array(items)) => objects.extend(items),
            _ => objects.push(document),
        }
    }
    objects
}

/// Documents as text.
pub(crate) fn write(documents: &[Value], form: Form) -> String {
    match (form, documents) {
        (Form::Yaml, documents) => documents.iter().map(to_yaml).collect::<Vec<_>>().join("---\n"),
        (Form::Json, [document]) => format!("{document:#}\n"),
        (Form::Json, documents) => {
            format!("{:#}\n", json!({"apiVersion": "v1", "kind": "List", "items": documents}))
        }
    }
}
