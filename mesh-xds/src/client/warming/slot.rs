//! One cluster or listener on its way.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use super::references::{Kind, Reference};

/// One cluster or listener: what serves, and what waits to serve.
#[derive(Debug, Clone)]
pub(super) struct Slot<T> {
    /// The references of the version that serves.
    pub(super) active: Option<Vec<Reference>>,
    pub(super) warming: Option<Waiting<T>>,
}

#[derive(Debug, Clone)]
pub(super) struct Waiting<T> {
    pub(super) resource: Arc<T>,
    pub(super) references: Vec<Reference>,
    pub(super) missing: BTreeSet<(Kind, String)>,
    pub(super) until: Option<Duration>,
}

impl<T> Waiting<T> {
    pub(super) fn new(
        now: Duration,
        resource: Arc<T>,
        references: Vec<Reference>,
        is_missing: impl Fn(&Reference) -> bool,
    ) -> Self {
        let missing: Vec<_> = references.iter().filter(|r| is_missing(r)).collect();
        // One reference that may wait forever makes the resource wait forever.
        let timeout = missing.iter().map(|r| r.timeout).collect::<Option<Vec<_>>>();
        let until = timeout.and_then(|t| t.into_iter().max()).map(|timeout| now + timeout);
        let missing = missing.into_iter().map(|r| (r.kind, r.name.clone())).collect();
        Self { resource, references, missing, until }
    }
}

impl<T> Default for Slot<T> {
    fn default() -> Self {
        Self { active: None, warming: None }
    }
}

impl<T> Slot<T> {
    pub(super) fn references(&self) -> impl Iterator<Item = &Reference> {
        self.active.iter().flatten().chain(self.warming.iter().flat_map(|w| &w.references))
    }

    pub(super) fn serves_with(&self, kind: Kind, name: &str) -> bool {
        self.active.iter().flatten().any(|r| r.is(kind, name))
    }

    pub(super) fn waits(&self, kind: Kind, name: &str) -> bool {
        let refers = |w: &Waiting<T>| w.references.iter().any(|r| r.is(kind, name));
        self.warming.as_ref().is_some_and(refers)
    }

    /// What was waited for is there, or is known not to come. Returns whether nothing else is missing.
    pub(super) fn found(&mut self, kind: Kind, name: &str) -> bool {
        self.warming.as_mut().is_some_and(|waiting| {
            waiting.missing.remove(&(kind, name.to_owned()));
            waiting.missing.is_empty()
        })
    }
}
