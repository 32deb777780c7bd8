//! One cluster or listener on its way.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use prost::Message;

use super::references::{Kind, Reference};

/// One cluster or listener: what serves, and what waits to serve.
#[derive(Debug, Clone, Default)]
pub(super) struct Slot {
    /// The references of the version that serves.
    pub(super) active: Option<Vec<Reference>>,
    pub(super) warming: Option<Waiting>,
}

#[derive(Debug, Clone)]
pub(super) struct Waiting {
    /// Encoded, because all clusters of a first push wait at once.
    pub(super) resource: Bytes,
    pub(super) references: Vec<Reference>,
    pub(super) missing: BTreeSet<(Kind, String)>,
    pub(super) until: Option<Duration>,
}

impl Waiting {
    pub(super) fn new(
        now: Duration,
        resource: &impl Message,
        references: Vec<Reference>,
        is_missing: impl Fn(&Reference) -> bool,
    ) -> Self {
        let missing: Vec<_> = references.iter().filter(|r| is_missing(r)).collect();
        // One reference that may wait forever makes the resource wait forever.
        let timeout = missing.iter().map(|r| r.timeout).collect::<Option<Vec<_>>>();
        let until = timeout.and_then(|t| t.into_iter().max()).map(|timeout| now + timeout);
        let missing = missing.into_iter().map(|r| (r.kind, r.name.clone())).collect();
        Self { resource: resource.encode_to_vec().into(), references, missing, until }
    }
}

impl Slot {
    pub(super) fn references(&self) -> impl Iterator<Item = &Reference> {
        self.active.iter().flatten().chain(self.warming.iter().flat_map(|w| &w.references))
    }

    pub(super) fn serves_with(&self, kind: Kind, name: &str) -> bool {
        self.active.iter().flatten().any(|r| r.is(kind, name))
    }

    pub(super) fn waits(&self, kind: Kind, name: &str) -> bool {
        let refers = |w: &Waiting| w.references.iter().any(|r| r.is(kind, name));
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
