//! The State-of-the-World protocol of one stream, without IO.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use crate::pb::envoy::service::discovery::v3::DiscoveryRequest;
use crate::resource::TypeUrl;

use super::config::{StreamError, StreamRules, UnknownNames};
use super::encoded::EncodedResource;
use super::response::Response;
use super::snapshot::{Snapshot, TypeSnapshot};
use super::status::TypeStatus;

/// One State-of-the-World stream: requests and snapshots go in, responses come out when there is room for them.
#[derive(Debug)]
pub struct SotwStream {
    rules: Arc<StreamRules>,
    snapshot: Option<Arc<Snapshot>>,
    nothing: Arc<TypeSnapshot>,
    types: BTreeMap<(u8, TypeUrl), TypeState>,
    nonces: u64,
}

/// One type of one stream.
#[derive(Debug, Default)]
struct TypeState {
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
    /// A response is due whatever changed.
    answer_due: bool,
    /// Removed clusters that are still said, until listeners and routes no longer use them.
    held: BTreeMap<Arc<str>, Arc<EncodedResource>>,
    /// Names that are gone and will be said to be empty, once listeners and routes no longer use them.
    held_names: BTreeSet<Arc<str>>,
}

impl SotwStream {
    /// A stream on which nothing was asked yet.
    #[must_use]
    pub fn new(rules: Arc<StreamRules>) -> Self {
        let nothing = TypeSnapshot::empty();
        Self { rules, snapshot: None, nothing, types: BTreeMap::new(), nonces: 0 }
    }

    /// Takes a request.
    ///
    /// # Errors
    /// [`StreamError`] ends the stream.
    pub fn on_request(&mut self, now: Duration, request: DiscoveryRequest) -> Result<(), StreamError> {
        if request.type_url.is_empty() {
            return Err(StreamError::NoType);
        }
        if request.resource_names.len() > self.rules.max_names {
            let limit = self.rules.max_names;
            return Err(StreamError::TooManyNames { type_url: request.type_url, limit });
        }
        let type_url = TypeUrl::from(request.type_url);
        let key = (type_url.push_rank(), type_url.clone());
        if !self.types.contains_key(&key) && self.types.len() >= self.rules.max_types {
            return Err(StreamError::TooManyTypes { limit: self.rules.max_types });
        }
        let current = self.snapshot.as_ref().and_then(|s| s.get(&type_url)).cloned();
        let state = self.types.entry(key).or_default();

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
        Ok(())
    }

    /// Takes a newer snapshot.
    pub fn on_snapshot(&mut self, snapshot: Arc<Snapshot>) {
        self.snapshot = Some(snapshot);
    }

    /// The next response, if anything has to be said. Call it while the transport has room.
    ///
    /// Order: CDS, EDS, LDS, RDS, the rest. While listeners or routes are pending or unanswered, a cluster response
    /// still holds the clusters that are about to go.
    pub fn next_response(&mut self, now: Duration) -> Option<Response> {
        let snapshot = self.snapshot.clone()?;
        let keys: Vec<_> = self.types.keys().cloned().collect();
        loop {
            let hold = !self.consumers_settled(&snapshot);
            for key in &keys {
                let hold = hold && key.0 <= TypeUrl::ENDPOINTS.push_rank();
                if let Some(response) = self.evaluate(key, &snapshot, hold, now) {
                    return Some(response);
                }
            }
            if !hold || !self.consumers_settled(&snapshot) {
                return None;
            }
        }
    }

    /// The state of every type, for status pages.
    pub fn status(&self) -> impl Iterator<Item = (&TypeUrl, &TypeStatus)> {
        self.types.iter().map(|((_, type_url), state)| (type_url, &state.status))
    }

    fn consumers_settled(&self, snapshot: &Snapshot) -> bool {
        let consumers = [TypeUrl::LISTENER, TypeUrl::ROUTE, TypeUrl::SCOPED_ROUTE, TypeUrl::VIRTUAL_HOST];
        consumers.into_iter().all(|type_url| {
            let Some(current) = snapshot.get(&type_url) else { return true };
            let state = self.types.get(&(type_url.push_rank(), type_url));
            state.is_none_or(|s| !s.active || (s.status.is_settled() && !s.is_pending(current)))
        })
    }

    fn evaluate(
        &mut self,
        key: &(u8, TypeUrl),
        snapshot: &Snapshot,
        hold: bool,
        now: Duration,
    ) -> Option<Response> {
        let type_url = &key.1;
        let mentioned = snapshot.get(type_url);
        let state = self.types.get_mut(key).filter(|s| s.active)?;
        if state.wildcard && mentioned.is_none() && state.base.is_none() {
            return None;
        }
        let current = mentioned.unwrap_or(&self.nothing);
        let unknown = self.rules.unknown(type_url);
        let (resources, touched) = if type_url.is_full_state() {
            state.evaluate_full(current, hold)?
        } else {
            state.evaluate_partial(current, type_url, unknown, hold)?
        };
        self.nonces += 1;
        let nonce = format!("{:x}", self.nonces);
        let version = snapshot.version().map_or_else(|| current.version().to_string(), str::to_owned);
        state.status.sent(&nonce, &version, now);
        if *type_url == TypeUrl::CLUSTER {
            let endpoints = self.types.get_mut(&(TypeUrl::ENDPOINTS.push_rank(), TypeUrl::ENDPOINTS));
            if let Some(endpoints) = endpoints.filter(|e| e.active) {
                let names = touched.into_iter().filter(|n| endpoints.wildcard || endpoints.names.contains(n));
                endpoints.force.extend(names.collect::<Vec<_>>());
            }
        }
        Some(Response {
            type_url: type_url.clone(),
            nonce,
            version,
            resources,
            removed: Vec::new(),
            heartbeats: Vec::new(),
        })
    }
}

impl TypeState {
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
        self.names = wanted;
        self.active = self.wildcard || !self.names.is_empty();
        self.status.wildcard = self.wildcard;
        self.status.names = self.names.len();
        if !self.active {
            self.base = None;
            self.force.clear();
            self.held.clear();
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
        if !self.active {
            return false;
        }
        if self.answer_due || !self.force.is_empty() {
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

    /// LDS and CDS: the complete subscribed set, and the EDS names of the clusters that are new or changed.
    #[expect(clippy::type_complexity, reason = "two lists, named in the doc")]
    fn evaluate_full(
        &mut self,
        current: &Arc<TypeSnapshot>,
        hold: bool,
    ) -> Option<(Vec<Arc<EncodedResource>>, Vec<Arc<str>>)> {
        let release = !hold && !self.held.is_empty();
        let mut changed = Vec::new();
        let mut say = self.answer_due || release;
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
        let view = current.resources().iter().filter(|r| self.wants(r.name())).cloned();
        let resources = view.chain(self.held.values().filter(|r| self.wants(r.name())).cloned()).collect();
        Some((resources, changed.iter().filter_map(|r| r.endpoints().cloned()).collect()))
    }

    /// Every other type: what changed and what was asked for.
    #[expect(clippy::type_complexity, reason = "the same shape as the complete set")]
    fn evaluate_partial(
        &mut self,
        current: &Arc<TypeSnapshot>,
        type_url: &TypeUrl,
        unknown: UnknownNames,
        hold: bool,
    ) -> Option<(Vec<Arc<EncodedResource>>, Vec<Arc<str>>)> {
        let mut names = std::mem::take(&mut self.force);
        if !hold {
            names.append(&mut self.held_names);
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
            Some(resource) => Some(resource.clone()),
            None if unknown == UnknownNames::Empty && self.names.contains(name) => {
                EncodedResource::empty(type_url, name).map(Arc::new)
            }
            None => None,
        };
        let resources: Vec<_> = names.iter().filter_map(find).collect();
        // Only a wildcard is answered with an empty set: for names, silence means "not yet".
        let answer = std::mem::take(&mut self.answer_due) && self.wildcard;
        (!resources.is_empty() || answer).then_some((resources, Vec::new()))
    }
}
