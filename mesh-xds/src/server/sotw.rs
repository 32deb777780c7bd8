//! The State-of-the-World protocol of one stream, without IO.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use crate::pb::envoy::service::discovery::v3::DiscoveryRequest;
use crate::resource::{TTL_FEATURE, TypeUrl, WRAPPER_FEATURE};

use super::config::{StreamError, StreamRules};
use super::encoded::EncodedResource;
use super::heartbeats::Heartbeats;
use super::response::Response;
use super::snapshot::{Snapshot, TypeSnapshot};
use super::status::TypeStatus;
use super::types::{Entered, Evaluation, Found, TypeState, Types};

/// One State-of-the-World stream: requests and snapshots go in, responses come out when there is room for them.
#[derive(Debug)]
pub struct SotwStream {
    types: Types<SotwType>,
}

/// One type of one stream.
#[derive(Debug, Default)]
struct SotwType {
    status: TypeStatus,
    /// Whether the client is subscribed to anything.
    active: bool,
    wildcard: bool,
    /// Once a client has named something, an empty list no longer means everything.
    named_once: bool,
    names: BTreeSet<Arc<str>>,
    base: Option<Arc<TypeSnapshot>>,
    /// Names to say even if they did not change.
    force: BTreeSet<Arc<str>>,
    /// Names that did not fit into a response; said when it is answered.
    rest: BTreeSet<Arc<str>>,
    /// A response is due whatever changed.
    answer_due: bool,
    /// Removed clusters that are still said, until listeners and routes no longer use them.
    held: BTreeMap<Arc<str>, Arc<EncodedResource>>,
    /// Names that are gone and will be said to be empty, once listeners and routes no longer use them.
    held_names: BTreeSet<Arc<str>>,
    heartbeats: Heartbeats,
}

impl SotwStream {
    /// A stream on which nothing was asked yet.
    #[must_use]
    pub fn new(rules: Arc<StreamRules>) -> Self {
        Self { types: Types::new(rules) }
    }

    /// Takes a request.
    ///
    /// # Errors
    /// [`StreamError`] ends the stream.
    pub fn on_request(&mut self, now: Duration, request: DiscoveryRequest) -> Result<(), StreamError> {
        self.types.identify(request.node.as_ref(), &[TTL_FEATURE, WRAPPER_FEATURE]);
        let limit = self.types.max_names();
        let type_url = TypeUrl::from(request.type_url);
        let Entered { state, current, .. } = self.types.enter(&type_url)?;
        if request.resource_names.len() > limit {
            return Err(StreamError::TooManyNames { type_url: type_url.as_str().to_owned(), limit });
        }

        let starts = !state.active || request.response_nonce.is_empty();
        if !request.response_nonce.is_empty() {
            if state.active && request.response_nonce != state.status.nonce_sent {
                return Ok(()); // Stale: another request follows for the newer response.
            }
            let error = request.error_detail.map(|e| (e.code, e.message));
            if request.response_nonce == state.status.nonce_sent {
                state.status.answered(&request.response_nonce, error, now);
            }
        }
        state.subscribe(&request.resource_names, &type_url, current.as_deref(), starts);
        self.types.check_bytes(&type_url)
    }

    /// Takes a newer snapshot.
    pub fn on_snapshot(&mut self, snapshot: Arc<Snapshot>) {
        self.types.on_snapshot(snapshot);
    }

    /// The next response, if anything has to be said. Call it while the transport has room.
    ///
    /// Order: CDS, EDS, LDS, RDS, the rest. While listeners or routes are pending or unanswered, a cluster response
    /// still holds the clusters that are about to go.
    pub fn next_response(&mut self, now: Duration) -> Option<Response> {
        self.types.next_response(now)
    }

    /// The state of every type, for status pages.
    pub fn status(&self) -> impl Iterator<Item = (&TypeUrl, &TypeStatus)> {
        self.types.status()
    }

    /// When [`next_response`](Self::next_response) has to be asked again although nothing happened: a time to live has
    /// to be refreshed.
    #[must_use]
    pub fn next_timer(&self) -> Option<Duration> {
        self.types.next_timer()
    }
}

impl SotwType {
    /// Takes the complete subscription that a request states.
    fn subscribe(
        &mut self,
        names: &[String],
        type_url: &TypeUrl,
        current: Option<&TypeSnapshot>,
        starts: bool,
    ) {
        let had_wildcard = self.wildcard && self.active;
        let explicit = names.iter().any(|n| n == "*");
        let shared = |name: &str| {
            current.and_then(|set| set.get(name)).map_or_else(|| Arc::from(name), |r| r.name().clone())
        };
        let named = names.iter().filter(|n| !n.is_empty() && *n != "*");
        let wanted: BTreeSet<Arc<str>> = named.map(|name| shared(name)).collect();
        let nothing_named = wanted.is_empty() && !explicit;
        self.wildcard = explicit || (nothing_named && !self.named_once && !type_url.is_named());
        self.named_once |= !nothing_named;

        let added: Vec<_> = wanted.iter().filter(|n| starts || !self.names.contains(*n)).cloned().collect();
        self.force.retain(|name| wanted.contains(name));
        self.held_names.retain(|name| wanted.contains(name));
        let wildcard = self.wildcard;
        self.rest.retain(|name| wildcard || wanted.contains(name));
        self.names = wanted;
        let (wildcard, names) = (self.wildcard, &self.names);
        self.heartbeats.retain(|name| wildcard || names.contains(name));
        self.active = self.wildcard || !self.names.is_empty();
        self.status.wildcard = self.wildcard;
        self.status.names = self.names.len();
        if !self.active {
            self.base = None;
            self.force.clear();
            self.rest.clear();
            self.held.clear();
            self.heartbeats.retain(|_| false);
            self.answer_due = false;
            return;
        }
        let widened = self.wildcard && !had_wildcard;
        self.answer_due |= starts || widened || !added.is_empty();
        self.force.extend(added);
        if starts || widened {
            self.base = None;
        }
    }

    fn wants(&self, name: &str) -> bool {
        self.wildcard || self.names.contains(name)
    }

    /// Whether an evaluation might find something.
    fn is_pending(&self, current: &Arc<TypeSnapshot>) -> bool {
        if self.answer_due || !self.force.is_empty() || !self.rest.is_empty() {
            return true;
        }
        match &self.base {
            Some(base) if Arc::ptr_eq(base, current) => false,
            Some(base) => {
                let diff = current.diff_from(base);
                diff.changed.iter().chain(&diff.removed).any(|r| self.wants(r.name()))
            }
            None => true,
        }
    }

    /// LDS and CDS: the complete subscribed set. A time to live is refreshed by saying it, for a client may take what is
    /// not said for deleted.
    fn evaluate_full(&mut self, with: &Evaluation<'_>) -> Option<Found> {
        let (current, hold) = (with.current, with.hold_removals);
        let release = !hold && !self.held.is_empty();
        let mut changed = Vec::new();
        let mut say = self.answer_due || release || self.heartbeats.is_due(with.now);
        match self.base.take() {
            Some(base) if Arc::ptr_eq(&base, current) => {}
            Some(base) => {
                let diff = current.diff_from(&base);
                changed = diff.changed.iter().filter(|r| self.wants(r.name())).cloned().collect();
                say |= !changed.is_empty();
                let removed: Vec<_> = diff.removed.iter().filter(|r| self.wants(r.name())).cloned().collect();
                say |= !hold && !removed.is_empty();
                if hold {
                    self.held.extend(removed.into_iter().map(|r| (r.name().clone(), r)));
                }
            }
            None => changed = current.resources().iter().filter(|r| self.wants(r.name())).cloned().collect(),
        }
        self.base = Some(current.clone());
        if !say {
            return None;
        }
        if !hold {
            self.held.clear();
        }
        self.held.retain(|name, _| current.get(name).is_none());
        // A name that was asked for again counts as touched.
        changed.extend(self.force.iter().filter_map(|name| current.get(name).cloned()));
        self.force.clear();
        self.answer_due = false;
        let said = current.resources().iter().chain(self.held.values());
        let resources: Vec<_> = said.filter(|r| self.wants(r.name())).map(|r| with.form(r)).collect();
        self.heartbeats.retain(|_| false);
        resources.iter().for_each(|resource| self.heartbeats.said(resource, with.now));
        let endpoints = changed.iter().filter_map(|r| r.endpoints().cloned()).collect();
        Some(Found { resources, endpoints, ..Found::default() })
    }

    /// Every other type: what changed, what was asked for, and whose time to live has to be refreshed.
    ///
    /// In parts, if it is much. A part waits until the one before is answered: a client's answer to an older response is
    /// stale, and a rejection in it would be lost.
    fn evaluate_partial(&mut self, with: &Evaluation<'_>) -> Option<Found> {
        let (current, hold) = (with.current, with.hold_removals);
        let mut names = std::mem::take(&mut self.force);
        if !hold {
            names.append(&mut self.held_names);
        }
        if self.status.is_settled() {
            names.append(&mut self.rest);
        }
        match self.base.take() {
            Some(base) if Arc::ptr_eq(&base, current) => {}
            Some(base) => {
                let diff = current.diff_from(&base);
                let wanted = |list: &[Arc<EncodedResource>]| -> Vec<_> {
                    list.iter().map(|r| r.name()).filter(|name| self.wants(name)).cloned().collect()
                };
                let (changed, removed) = (wanted(&diff.changed), wanted(&diff.removed));
                for name in &changed {
                    self.held_names.remove(name);
                }
                names.extend(changed);
                let gone = if hold { &mut self.held_names } else { &mut names };
                gone.extend(removed);
            }
            None if self.wildcard => names.extend(current.resources().iter().map(|r| r.name().clone())),
            None => {}
        }
        self.base = Some(current.clone());
        let find = |name: &Arc<str>| match current.get(name) {
            Some(resource) => Some(with.form(resource)),
            None if self.names.contains(name) => with.empty(name),
            None => None,
        };
        let (mut resources, mut bytes) = (Vec::new(), 0);
        for name in names {
            if bytes >= with.max_bytes {
                self.rest.insert(name);
                continue;
            }
            self.rest.remove(&name);
            if let Some(resource) = find(&name) {
                bytes += resource.size();
                resources.push(resource);
            }
        }
        resources.iter().for_each(|resource| self.heartbeats.said(resource, with.now));
        let heartbeats = self.heartbeats.collect(current, |_| false, with.now);
        // Only a wildcard is answered with an empty set: for names, silence means "not yet".
        let answer = std::mem::take(&mut self.answer_due) && self.wildcard;
        let say = answer || !resources.is_empty() || !heartbeats.is_empty();
        say.then(|| Found { resources, heartbeats, ..Found::default() })
    }
}

impl TypeState for SotwType {
    fn status(&self) -> &TypeStatus {
        &self.status
    }

    fn status_mut(&mut self) -> &mut TypeStatus {
        &mut self.status
    }

    fn name_bytes(&self) -> usize {
        self.names.iter().map(|name| name.len()).sum()
    }

    fn is_settled(&self, current: &Arc<TypeSnapshot>) -> bool {
        !self.active || (self.status.is_settled() && !self.is_pending(current))
    }

    /// A first request is always answered, so there is nothing to conclude from silence.
    fn came_back_current(&self, _: &Arc<TypeSnapshot>) -> bool {
        false
    }

    fn evaluate(&mut self, with: &Evaluation<'_>) -> Option<Found> {
        if !self.active || (self.wildcard && !with.mentioned && self.base.is_none()) {
            return None;
        }
        if with.type_url.is_full_state() { self.evaluate_full(with) } else { self.evaluate_partial(with) }
    }

    fn force_if_subscribed(&mut self, name: Arc<str>) {
        if self.active && self.wants(&name) {
            self.force.insert(name);
        }
    }

    fn next_heartbeat(&self) -> Option<Duration> {
        self.heartbeats.next()
    }
}
