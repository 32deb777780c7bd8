//! Refreshing times to live.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::encoded::EncodedResource;
use super::snapshot::TypeSnapshot;

/// When to refresh which resource's time to live: at half of it.
#[derive(Debug, Default)]
pub(super) struct Heartbeats {
    due: BTreeMap<Arc<str>, Duration>,
}

impl Heartbeats {
    /// When the next one is due.
    pub(super) fn next(&self) -> Option<Duration> {
        self.due.values().min().copied()
    }

    pub(super) fn is_due(&self, now: Duration) -> bool {
        self.next().is_some_and(|at| at <= now)
    }

    /// The resource is said: its time begins, or it has none (any more).
    pub(super) fn said(&mut self, resource: &EncodedResource, now: Duration) {
        match resource.ttl() {
            Some(ttl) => {
                self.due.insert(resource.name().clone(), now + ttl / 2);
            }
            None => self.forget(resource.name()),
        }
    }

    /// The client has the resource from an earlier stream, and nobody knows how much of its time is left.
    pub(super) fn resumed(&mut self, resource: &EncodedResource, now: Duration) {
        if resource.ttl().is_some() {
            self.due.entry(resource.name().clone()).or_insert(now);
        }
    }

    pub(super) fn forget(&mut self, name: &str) {
        self.due.remove(name);
    }

    pub(super) fn retain(&mut self, wanted: impl Fn(&str) -> bool) {
        self.due.retain(|name, _| wanted(name));
    }

    /// The resources to refresh now, but for those that are `pending`; their time begins again.
    pub(super) fn collect(
        &mut self,
        current: &TypeSnapshot,
        pending: impl Fn(&str) -> bool,
        now: Duration,
    ) -> Vec<Arc<EncodedResource>> {
        let due = self.due.iter().filter(|(name, at)| **at <= now && !pending(name));
        let names: Vec<_> = due.map(|(name, _)| name.clone()).collect();
        let mut found = Vec::new();
        for name in names {
            match current.get(&name) {
                Some(resource) if resource.ttl().is_some() => {
                    self.said(resource, now);
                    found.push(resource.clone());
                }
                _ => self.forget(&name),
            }
        }
        found
    }
}
