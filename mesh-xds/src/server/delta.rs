//! The Delta protocol of one stream, without IO.

mod state;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use crate::pb::envoy::service::discovery::v3::DeltaDiscoveryRequest;
use crate::resource::TypeUrl;

use self::state::{Evaluation, TypeState};
use super::config::{StreamError, StreamRules};
use super::response::Response;
use super::snapshot::{Snapshot, TypeSnapshot};
use super::status::TypeStatus;

/// One Delta stream: requests and snapshots go in, responses come out when there is room for them.
///
/// Nothing is queued: [`next_response`](Self::next_response) compares what the client has with the newest snapshot, so a
/// client that was slow receives one response with everything it missed.
#[derive(Debug)]
pub struct DeltaStream {
    rules: Arc<StreamRules>,
    snapshot: Option<Arc<Snapshot>>,
    nothing: Arc<TypeSnapshot>,
    types: BTreeMap<(u8, TypeUrl), TypeState>,
    nonces: u64,
    /// EDS names of clusters that were sent before the client asked for endpoints.
    endpoints_due: BTreeSet<Arc<str>>,
}

impl DeltaStream {
    /// A stream on which nothing was asked yet.
    #[must_use]
    pub fn new(rules: Arc<StreamRules>) -> Self {
        Self {
            rules,
            snapshot: None,
            nothing: TypeSnapshot::empty(),
            types: BTreeMap::new(),
            nonces: 0,
            endpoints_due: BTreeSet::new(),
        }
    }

    /// Takes a request: an acknowledgement, a change of subscription, or both.
    ///
    /// # Errors
    /// [`StreamError`] ends the stream.
    pub fn on_request(&mut self, now: Duration, request: DeltaDiscoveryRequest) -> Result<(), StreamError> {
        if request.type_url.is_empty() {
            return Err(StreamError::NoType);
        }
        let type_url = TypeUrl::from(request.type_url);
        let key = (type_url.push_rank(), type_url.clone());
        let first = !self.types.contains_key(&key);
        if first && self.types.len() >= self.rules.max_types {
            return Err(StreamError::TooManyTypes { limit: self.rules.max_types });
        }
        let state = self.types.entry(key).or_default();
        if !request.response_nonce.is_empty() {
            let error = request.error_detail.map(|e| (e.code, e.message));
            state.status.answered(&request.response_nonce, error, now);
        }

        let named = |names: &[String]| names.iter().any(|n| !n.is_empty());
        let (subscribe, unsubscribe) = (request.resource_names_subscribe, request.resource_names_unsubscribe);
        if first {
            state.begin(&request.initial_resource_versions);
            if !named(&subscribe) && !named(&unsubscribe) && !type_url.is_named() {
                state.set_wildcard(true);
            }
        }
        for name in subscribe.iter().filter(|n| !n.is_empty()) {
            if name == "*" {
                state.set_wildcard(true);
                continue;
            }
            let endpoints_due = type_url == TypeUrl::ENDPOINTS && self.endpoints_due.contains(name.as_str());
            state.subscribe(self.snapshot.as_deref(), &type_url, name, endpoints_due);
        }
        for name in unsubscribe.iter().filter(|n| !n.is_empty()) {
            if name == "*" {
                state.set_wildcard(false);
            } else {
                state.unsubscribe(name);
            }
        }
        if first && type_url == TypeUrl::ENDPOINTS {
            self.endpoints_due.clear();
        }
        let names = state.refresh_counts();
        if names > self.rules.max_names {
            let limit = self.rules.max_names;
            return Err(StreamError::TooManyNames { type_url: type_url.as_str().to_owned(), limit });
        }
        Ok(())
    }

    /// Takes a newer snapshot.
    pub fn on_snapshot(&mut self, snapshot: Arc<Snapshot>) {
        self.snapshot = Some(snapshot);
    }

    /// The next response, if anything has to be said. Call it while the transport has room.
    ///
    /// Order: CDS, EDS, LDS, RDS, the rest; removed clusters and endpoints only after the client has answered the
    /// listeners and routes that may have used them.
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
            // What looked pending may have turned out to be nothing, and then nothing has to be held back.
            if !hold || !self.consumers_settled(&snapshot) {
                return None;
            }
        }
    }

    /// The state of every type, for status pages.
    pub fn status(&self) -> impl Iterator<Item = (&TypeUrl, &TypeStatus)> {
        self.types.iter().map(|((_, type_url), state)| (type_url, &state.status))
    }

    /// When [`next_response`](Self::next_response) has to be asked again although nothing happened: a heartbeat is due.
    #[must_use]
    pub fn next_timer(&self) -> Option<Duration> {
        self.types.values().filter_map(TypeState::next_heartbeat).min()
    }

    /// Whether nothing that refers to clusters is pending or unanswered.
    fn consumers_settled(&self, snapshot: &Snapshot) -> bool {
        let consumers = [TypeUrl::LISTENER, TypeUrl::ROUTE, TypeUrl::SCOPED_ROUTE, TypeUrl::VIRTUAL_HOST];
        consumers.into_iter().all(|type_url| {
            let Some(current) = snapshot.get(&type_url) else { return true };
            let state = self.types.get(&(type_url.push_rank(), type_url));
            state.is_none_or(|s| s.status.is_settled() && !s.is_pending(current))
        })
    }

    fn evaluate(
        &mut self,
        key: &(u8, TypeUrl),
        snapshot: &Snapshot,
        hold_removals: bool,
        now: Duration,
    ) -> Option<Response> {
        // A type that the snapshot does not mention is answered only about names: nothing is known to be absent from
        // the wildcard set yet.
        let mentioned = snapshot.get(&key.1);
        let state = self.types.get_mut(key)?;
        let current = mentioned.unwrap_or(&self.nothing);
        let found = state.evaluate(&Evaluation {
            current,
            mentioned: mentioned.is_some(),
            type_url: &key.1,
            unknown: self.rules.unknown(&key.1),
            max_bytes: self.rules.max_response_bytes,
            hold_removals,
            now,
        })?;
        self.nonces += 1;
        let nonce = format!("{:x}", self.nonces);
        let version = snapshot.version().map_or_else(|| current.version().to_string(), str::to_owned);
        state.status.sent(&nonce, &version, now);
        if key.1 == TypeUrl::CLUSTER {
            let touched: Vec<_> = found.resources.iter().filter_map(|r| r.endpoints().cloned()).collect();
            self.endpoints_follow(touched);
        }
        Some(Response {
            type_url: key.1.clone(),
            nonce,
            version,
            resources: found.resources,
            removed: found.removed,
            heartbeats: found.heartbeats,
        })
    }

    /// A cluster that was sent waits for its endpoints, changed or not.
    fn endpoints_follow(&mut self, names: Vec<Arc<str>>) {
        let key = (TypeUrl::ENDPOINTS.push_rank(), TypeUrl::ENDPOINTS);
        match self.types.get_mut(&key) {
            Some(state) => names.into_iter().for_each(|name| state.force_if_subscribed(name)),
            None => self.endpoints_due.extend(names),
        }
    }
}
