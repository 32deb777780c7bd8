//! What one client has of one type, and what it still has to hear.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use crate::resource::Version;
use crate::server::heartbeats::Heartbeats;
use crate::server::snapshot::TypeSnapshot;
use crate::server::status::TypeStatus;
use crate::server::types::{Evaluation, Found, TypeState};

/// What the client has under a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Has {
    /// Nothing, and it was not told that there is nothing.
    Nothing,
    /// It was told that the resource does not exist.
    Absent,
    /// Something that this server did not send.
    Foreign,
    /// This version.
    Version(Version),
}

/// An entry beside the wildcard set: an explicit subscription, or a name where the client differs from the set.
#[derive(Debug, Clone, Copy)]
struct Entry {
    explicit: bool,
    has: Has,
}

/// One type of one Delta stream.
#[derive(Debug, Default)]
pub(super) struct DeltaType {
    pub(super) status: TypeStatus,
    wildcard: bool,
    /// The set that was last compared. Under a wildcard the client has it, but for `entries`.
    base: Option<Arc<TypeSnapshot>>,
    entries: BTreeMap<Arc<str>, Entry>,
    /// Names to compare although the set did not change.
    dirty: BTreeSet<Arc<str>>,
    /// Names to say whatever the client has.
    force: BTreeSet<Arc<str>>,
    /// Removals that wait for listeners and routes.
    held: BTreeSet<Arc<str>>,
    heartbeats: Heartbeats,
    /// How many bytes the names of `entries` and `left` take, as of the last request.
    name_bytes: usize,
    /// The wildcard's first answer is sent even when it is empty.
    answer_due: bool,
    resumed: bool,
    /// What a client may still have that left the wildcard: responses were under way. If it comes back it is told.
    left: BTreeSet<Arc<str>>,
}

impl DeltaType {
    /// Takes what a client that reconnects has already.
    pub(super) fn begin(&mut self, versions: &BTreeMap<String, String>) {
        self.resumed = !versions.is_empty();
        for (name, version) in versions {
            let has = Version::parse(version).map_or(Has::Foreign, Has::Version);
            let name: Arc<str> = Arc::from(name.as_str());
            self.dirty.insert(name.clone());
            self.entries.insert(name, Entry { explicit: false, has });
        }
    }

    pub(super) fn set_wildcard(&mut self, on: bool) {
        if on == self.wildcard {
            return;
        }
        self.wildcard = on;
        // Entering: everything is compared. Leaving: what is not subscribed by name is forgotten.
        let base = self.base.take();
        self.answer_due = on && !self.resumed;
        if on {
            for name in std::mem::take(&mut self.left) {
                self.entries.entry(name).or_insert(Entry { explicit: false, has: Has::Foreign });
            }
            self.dirty.extend(self.entries.keys().cloned());
            return;
        }
        let overrides =
            self.entries.iter().filter(|(_, entry)| !entry.explicit).map(|(name, _)| name.clone());
        let sent = base.iter().flat_map(|base| base.resources()).map(|r| r.name().clone());
        self.left = overrides.chain(sent).collect();
        self.entries.retain(|_, entry| entry.explicit);
        let entries = &self.entries;
        self.dirty.extend(entries.keys().cloned());
        for names in [&mut self.dirty, &mut self.force, &mut self.held] {
            names.retain(|name| entries.contains_key(name));
        }
        self.heartbeats.retain(|name| entries.contains_key(name));
    }

    /// Subscribes by name. A name is always said again, but for the first message of a client that reconnects.
    pub(super) fn subscribe(&mut self, current: Option<&TypeSnapshot>, name: &str, endpoints_due: bool) {
        // The name of the resource itself is shared by all clients.
        let shared = current.and_then(|set| set.get(name)).map(|r| r.name().clone());
        let has = self.has(name);
        let name = shared.unwrap_or_else(|| Arc::from(name));
        let resumed = matches!(self.entries.get(&name), Some(entry) if !entry.explicit) && self.resumed;
        self.entries.insert(name.clone(), Entry { explicit: true, has });
        if resumed && !endpoints_due {
            self.dirty.insert(name);
        } else {
            self.force.insert(name);
        }
    }

    /// Unsubscribes by name. Under a wildcard the client cannot know whether the resource stays, so it is told.
    pub(super) fn unsubscribe(&mut self, name: &str) {
        let Some((name, entry)) = self.entries.remove_entry(name) else { return };
        self.held.remove(&name);
        if !entry.explicit && !self.wildcard {
            self.dirty.remove(&name);
            return;
        }
        if self.wildcard {
            self.entries.insert(name.clone(), Entry { explicit: false, ..entry });
            self.force.insert(name);
        } else {
            self.dirty.remove(&name);
            self.force.remove(&name);
            self.heartbeats.forget(&name);
        }
    }

    /// Brings the counts of the status up to date and returns how many names the client holds.
    pub(super) fn refresh_counts(&mut self) -> usize {
        // The first message is over: from here on a name that is not explicit is an override of the wildcard set.
        if self.resumed {
            self.resumed = false;
            if !self.wildcard {
                self.entries.retain(|_, entry| entry.explicit);
                let entries = &self.entries;
                self.dirty.retain(|name| entries.contains_key(name));
            }
        }
        self.name_bytes = self.entries.keys().chain(&self.left).map(|name| name.len()).sum();
        self.status.wildcard = self.wildcard;
        self.status.names = self.entries.values().filter(|e| e.explicit).count();
        self.entries.len()
    }

    /// Whether [`evaluate`](Self::evaluate) might find something.
    fn is_pending(&self, current: &Arc<TypeSnapshot>) -> bool {
        if !self.dirty.is_empty() || !self.force.is_empty() || self.answer_due {
            return true;
        }
        match &self.base {
            Some(base) if Arc::ptr_eq(base, current) => false,
            Some(base) => {
                let diff = current.diff_from(base);
                diff.changed.iter().chain(&diff.removed).any(|r| self.wants(r.name()))
            }
            None => self.wildcard,
        }
    }

    fn wants(&self, name: &str) -> bool {
        self.wildcard || self.entries.contains_key(name)
    }

    fn has(&self, name: &str) -> Has {
        if let Some(entry) = self.entries.get(name) {
            return entry.has;
        }
        let base = self.base.as_ref().filter(|_| self.wildcard);
        base.and_then(|base| base.get(name)).map_or(Has::Nothing, |r| Has::Version(r.version()))
    }

    /// Every name that might have to be said, in order.
    fn candidates(&mut self, current: &Arc<TypeSnapshot>, moved: bool, release: bool) -> BTreeSet<Arc<str>> {
        let mut names = std::mem::take(&mut self.dirty);
        names.extend(self.force.iter().cloned());
        if moved || release {
            names.append(&mut self.held);
        }
        match &self.base {
            Some(base) if moved => {
                let diff = current.diff_from(base);
                let touched = diff.changed.iter().chain(&diff.removed).map(|r| r.name());
                names.extend(touched.filter(|name| self.wants(name)).cloned());
            }
            None if self.wildcard => names.extend(current.resources().iter().map(|r| r.name().clone())),
            _ => {}
        }
        names
    }

    /// Compares one name; returns how many bytes it adds.
    fn compare(
        &mut self,
        with: &Evaluation<'_>,
        name: &Arc<str>,
        has: Has,
        forced: bool,
        found: &mut Found,
    ) -> usize {
        let explicit = self.entries.get(name).is_some_and(|e| e.explicit);
        let empty = || if explicit { with.empty(name) } else { None };
        let real = with.current.get(name).map(|resource| with.form(resource));
        let gone = real.is_none();
        let known = matches!(has, Has::Version(_) | Has::Foreign);
        let said = real.or_else(empty);
        let is_news = said.as_ref().is_none_or(|r| has != Has::Version(r.version()));
        if gone && known && is_news && with.hold_removals && !forced {
            // Something may still refer to it: neither its removal nor its emptiness is said yet.
            self.held.insert(name.clone());
            self.remember(name, explicit, has);
            return 0;
        }
        let Some(resource) = said else {
            if known || forced || (explicit && has == Has::Nothing) {
                found.removed.push(name.clone());
                self.heartbeats.forget(name);
                self.remember_absent(name, explicit);
                return name.len() + 4;
            } else if !explicit {
                self.entries.remove(name);
            }
            return 0;
        };
        let new = Has::Version(resource.version());
        if explicit {
            let shared = with.current.get(name).map_or(name, |resource| resource.name());
            if !Arc::ptr_eq(shared, name) {
                // The client asked before the resource was there: its copy of the name goes, all clients share one.
                self.entries.remove(name);
            }
            self.remember(shared, true, new);
        } else {
            self.entries.remove(name);
        }
        if !forced && has == new {
            self.heartbeats.resumed(&resource, with.now);
            return 0;
        }
        self.heartbeats.said(&resource, with.now);
        let bytes = resource.size();
        found.resources.push(resource);
        bytes
    }

    fn remember(&mut self, name: &Arc<str>, explicit: bool, has: Has) {
        match self.entries.get_mut(name) {
            Some(entry) => entry.has = has,
            None => {
                self.entries.insert(name.clone(), Entry { explicit, has });
            }
        }
    }

    fn remember_absent(&mut self, name: &Arc<str>, explicit: bool) {
        if explicit {
            self.remember(name, true, Has::Absent);
        } else {
            self.entries.remove(name);
        }
    }

    /// The response is full: the name is compared again for the next one.
    fn postpone(&mut self, name: Arc<str>, has: Has, forced: bool) {
        self.remember(&name, false, has);
        if forced {
            self.force.insert(name);
        } else {
            self.dirty.insert(name);
        }
    }
}

impl TypeState for DeltaType {
    fn status(&self) -> &TypeStatus {
        &self.status
    }

    fn status_mut(&mut self) -> &mut TypeStatus {
        &mut self.status
    }

    fn name_bytes(&self) -> usize {
        self.name_bytes
    }

    fn is_settled(&self, current: &Arc<TypeSnapshot>) -> bool {
        self.status.is_settled() && !self.is_pending(current)
    }

    /// Everything was compared, and nothing has to be said now or later.
    fn came_back_current(&self, current: &Arc<TypeSnapshot>) -> bool {
        let compared = self.base.as_ref().is_some_and(|base| Arc::ptr_eq(base, current));
        let subscribed = self.wildcard || self.entries.values().any(|entry| entry.explicit);
        compared && subscribed && self.held.is_empty() && !self.is_pending(current)
    }

    fn evaluate(&mut self, with: &Evaluation<'_>) -> Option<Found> {
        let heartbeat_due = self.heartbeats.is_due(with.now);
        let moved = self.base.as_ref().is_none_or(|base| !Arc::ptr_eq(base, with.current));
        if !self.wildcard && self.entries.is_empty() && self.dirty.is_empty() && self.force.is_empty() {
            self.base = Some(with.current.clone());
            return None;
        }
        if self.wildcard && !with.mentioned && self.base.is_none() {
            return None;
        }
        let release = !with.hold_removals && !self.held.is_empty();
        if !moved
            && !release
            && self.dirty.is_empty()
            && self.force.is_empty()
            && !heartbeat_due
            && !self.answer_due
        {
            return None;
        }

        let candidates = self.candidates(with.current, moved, release);
        let old = self.base.clone().filter(|_| self.wildcard);
        let force = std::mem::take(&mut self.force);
        let mut found = Found::default();
        let mut bytes = 0;
        for name in candidates {
            let has = match self.entries.get(&name) {
                Some(entry) => entry.has,
                None => match old.as_ref().and_then(|base| base.get(&name)) {
                    Some(resource) => Has::Version(resource.version()),
                    None => Has::Nothing,
                },
            };
            let forced = force.contains(&name);
            if bytes >= with.max_bytes {
                self.postpone(name, has, forced);
                continue;
            }
            bytes += self.compare(with, &name, has, forced, &mut found);
        }
        self.base = Some(with.current.clone());
        let pending = |name: &str| self.dirty.contains(name) || self.force.contains(name);
        found.heartbeats = self.heartbeats.collect(with.current, pending, with.now);
        found.endpoints = found.resources.iter().filter_map(|r| r.endpoints().cloned()).collect();

        let answer = self.answer_due && with.mentioned;
        self.answer_due &= !answer;
        let empty = found.resources.is_empty() && found.removed.is_empty() && found.heartbeats.is_empty();
        (!empty || answer).then_some(found)
    }

    fn force_if_subscribed(&mut self, name: Arc<str>) {
        if self.wildcard || self.entries.get(&name).is_some_and(|e| e.explicit) {
            self.force.insert(name);
        }
    }

    fn next_heartbeat(&self) -> Option<Duration> {
        self.heartbeats.next()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pb::envoy::config::cluster::v3::Cluster;
    use crate::resource::TypeUrl;
    use crate::server::config::StreamRules;
    use crate::server::snapshot::Snapshot;

    #[test]
    fn clients_that_asked_before_the_snapshot_came_share_its_names_all_the_same() {
        let snapshot = Snapshot::builder().add(&Cluster { name: "a".into(), ..Default::default() }).unwrap();
        let current = snapshot.build().get(&TypeUrl::CLUSTER).unwrap().clone();
        let name = current.resources()[0].name();
        let mut client = DeltaType::default();
        client.subscribe(None, "a", false);
        client.subscribe(None, "b", false);
        client.refresh_counts();
        let with = Evaluation {
            current: &current,
            mentioned: true,
            type_url: &TypeUrl::CLUSTER,
            unknown: StreamRules::default().unknown(&TypeUrl::CLUSTER),
            max_bytes: usize::MAX,
            hold_removals: false,
            times_to_live: false,
            now: Duration::ZERO,
        };
        let found = client.evaluate(&with).unwrap();
        assert_eq!((found.resources.len(), found.removed.len()), (1, 1));
        assert!(client.entries.keys().any(|key| Arc::ptr_eq(key, name)));
        assert_eq!(client.entries.len(), 2);
        assert!(client.evaluate(&with).is_none(), "all is said");
    }
}
