//! What the control plane sent, kept as it came, for dumps: accepted resources, and why others were refused.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use mesh_xds::{Any, TypeUrl};

/// Where a resource came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// The bootstrap file.
    Static,
    /// The control plane.
    Dynamic,
}

/// A resource that was refused; the entry's accepted form, if any, still serves.
#[derive(Debug, Clone)]
pub struct Refusal {
    /// What it was.
    pub resource: Any,
    /// Why.
    pub details: String,
    /// When.
    pub at: SystemTime,
}

/// An accepted resource.
#[derive(Debug, Clone)]
pub struct Accepted {
    /// Its version; empty until it is looked up for a dump.
    pub version: String,
    /// The resource.
    pub resource: Any,
    /// When it was accepted.
    pub at: SystemTime,
    /// Where it came from.
    pub origin: Origin,
}

/// What is known under one name.
#[derive(Debug, Clone, Default)]
pub struct Entry {
    /// The form that serves.
    pub accepted: Option<Accepted>,
    /// The form that was refused after it.
    pub refusal: Option<Box<Refusal>>,
}

/// All resources by type and name.
#[derive(Debug, Default)]
pub struct Resources {
    types: Mutex<BTreeMap<TypeUrl, BTreeMap<String, Entry>>>,
}

impl Resources {
    /// Records that a resource is in force.
    pub fn accept(&self, kind: &TypeUrl, name: &str, resource: Any, origin: Origin) {
        let accepted = Accepted { version: String::new(), resource, at: SystemTime::now(), origin };
        self.with(|types| {
            types
                .entry(kind.clone())
                .or_default()
                .insert(name.to_owned(), Entry { accepted: Some(accepted), refusal: None });
        });
    }

    /// Records that a resource was refused.
    pub fn refuse(&self, kind: &TypeUrl, name: &str, resource: Any, details: String) {
        let refusal = Refusal { resource, details, at: SystemTime::now() };
        self.with(|types| {
            types.entry(kind.clone()).or_default().entry(name.to_owned()).or_default().refusal =
                Some(Box::new(refusal));
        });
    }

    /// Forgets a resource.
    pub fn remove(&self, kind: &TypeUrl, name: &str) {
        self.with(|types| {
            if let Some(names) = types.get_mut(kind) {
                names.remove(name);
            }
        });
    }

    /// Visits the resources of a type, by name.
    pub fn each(&self, kind: &TypeUrl, mut visit: impl FnMut(&str, &Entry)) {
        self.with(|types| {
            for (name, entry) in types.get(kind).into_iter().flatten() {
                visit(name, entry);
            }
        });
    }

    /// Whether some form of a resource is in force.
    pub fn is_accepted(&self, kind: &TypeUrl, name: &str) -> bool {
        self.with(|types| {
            types.get(kind).and_then(|names| names.get(name)).is_some_and(|e| e.accepted.is_some())
        })
    }

    /// Notes the version of a resource that is in force.
    pub fn set_version(&self, kind: &TypeUrl, name: &str, version: &str) {
        self.with(|types| {
            let entry = types.get_mut(kind).and_then(|names| names.get_mut(name));
            if let Some(accepted) = entry.and_then(|entry| entry.accepted.as_mut()) {
                version.clone_into(&mut accepted.version);
            }
        });
    }

    fn with<R>(&self, f: impl FnOnce(&mut BTreeMap<TypeUrl, BTreeMap<String, Entry>>) -> R) -> R {
        f(&mut self.types.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
