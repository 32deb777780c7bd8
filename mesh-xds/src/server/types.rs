//! What both variants have in common: the types of one stream, the order in which they are served, and their nonces.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use crate::pb::envoy::config::core::v3::Node;
use crate::resource::TypeUrl;

use super::config::{StreamError, StreamRules, UnknownNames};
use super::encoded::EncodedResource;
use super::response::Response;
use super::snapshot::{Snapshot, TypeSnapshot};
use super::status::{TypeStatus, beginning};

/// The types that may refer to clusters.
const CONSUMERS: [TypeUrl; 4] =
    [TypeUrl::LISTENER, TypeUrl::ROUTE, TypeUrl::SCOPED_ROUTE, TypeUrl::VIRTUAL_HOST];

/// One type of one stream, in either variant.
pub(super) trait TypeState: Default {
    fn status(&self) -> &TypeStatus;

    fn status_mut(&mut self) -> &mut TypeStatus;

    /// How many bytes the names take that are kept for the client.
    fn name_bytes(&self) -> usize;

    /// Whether nothing is pending or unanswered.
    fn is_settled(&self, current: &Arc<TypeSnapshot>) -> bool;

    /// Whether the client is known to have all that it subscribes to of the current set although nothing was sent.
    fn came_back_current(&self, current: &Arc<TypeSnapshot>) -> bool;

    /// Compares what the client has with the current set.
    fn evaluate(&mut self, with: &Evaluation<'_>) -> Option<Found>;

    /// Says this name next, if the client wants it.
    fn force_if_subscribed(&mut self, name: Arc<str>);

    /// When the next time to live is refreshed.
    fn next_heartbeat(&self) -> Option<Duration>;
}

/// What a comparison is made with.
#[derive(Debug)]
pub(super) struct Evaluation<'a> {
    pub(super) current: &'a Arc<TypeSnapshot>,
    /// Whether the snapshot says anything about the type.
    pub(super) mentioned: bool,
    pub(super) type_url: &'a TypeUrl,
    pub(super) unknown: UnknownNames,
    pub(super) max_bytes: usize,
    /// Listeners or routes that may use what is gone are pending or unanswered.
    pub(super) hold_removals: bool,
    /// Whether the client understands times to live.
    pub(super) times_to_live: bool,
    pub(super) now: Duration,
}

impl Evaluation<'_> {
    /// The resource as this client may receive it.
    pub(super) fn form(&self, resource: &Arc<EncodedResource>) -> Arc<EncodedResource> {
        if resource.ttl().is_none() || self.times_to_live {
            resource.clone()
        } else {
            Arc::new(resource.without_ttl())
        }
    }

    /// What stands for a name that does not exist.
    pub(super) fn empty(&self, name: &str) -> Option<Arc<EncodedResource>> {
        match self.unknown {
            UnknownNames::Empty => EncodedResource::empty(self.type_url, name).map(Arc::new),
            UnknownNames::Removed => None,
        }
    }
}

/// What a comparison found.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) resources: Vec<Arc<EncodedResource>>,
    pub(super) removed: Vec<Arc<str>>,
    pub(super) heartbeats: Vec<Arc<EncodedResource>>,
    /// EDS names of clusters that are new or changed: their endpoints follow, changed or not.
    pub(super) endpoints: Vec<Arc<str>>,
}

/// The types of one stream.
#[derive(Debug)]
pub(super) struct Types<T> {
    rules: Arc<StreamRules>,
    snapshot: Option<Arc<Snapshot>>,
    nothing: Arc<TypeSnapshot>,
    /// In the order in which they are served.
    types: BTreeMap<(u8, TypeUrl), T>,
    nonces: u64,
    times_to_live: bool,
    /// EDS names of clusters that were sent before the client asked for endpoints.
    endpoints_due: BTreeSet<Arc<str>>,
}

/// A type that a request is about.
pub(super) struct Entered<'a, T> {
    pub(super) state: &'a mut T,
    /// Whether this is its first request.
    pub(super) first: bool,
    /// Its current set.
    pub(super) current: Option<Arc<TypeSnapshot>>,
    /// Names to say even if the client has them: their clusters were sent on this stream.
    pub(super) due: BTreeSet<Arc<str>>,
}

impl<T: TypeState> Types<T> {
    pub(super) fn new(rules: Arc<StreamRules>) -> Self {
        Self {
            rules,
            snapshot: None,
            nothing: TypeSnapshot::empty(),
            types: BTreeMap::new(),
            nonces: 0,
            times_to_live: false,
            endpoints_due: BTreeSet::new(),
        }
    }

    pub(super) fn max_names(&self) -> usize {
        self.rules.max_names
    }

    /// Whether a response of this stream had the nonce.
    pub(super) fn has_sent(&self, nonce: &str) -> bool {
        u64::from_str_radix(nonce, 16).is_ok_and(|n| n > 0 && n <= self.nonces && format!("{n:x}") == nonce)
    }

    /// Refuses a client whose names take too much memory, all types together.
    pub(super) fn check_bytes(&self, type_url: &TypeUrl) -> Result<(), StreamError> {
        let limit = self.rules.max_name_bytes;
        let kept = self.types.iter().map(|((_, t), state)| t.as_str().len() + state.name_bytes());
        let bytes = kept.sum::<usize>();
        if bytes <= limit {
            return Ok(());
        }
        Err(StreamError::TooManyBytes {
            type_url: beginning(type_url.as_str(), 200).to_owned(),
            bytes,
            limit,
        })
    }

    /// Reads what the client understands: it announces all of `features` or gets no times to live.
    pub(super) fn identify(&mut self, node: Option<&Node>, features: &[&str]) {
        if let Some(node) = node {
            let announced = |feature: &&str| node.client_features.iter().any(|f| f == feature);
            self.times_to_live = features.iter().all(announced);
        }
    }

    /// The type that a request is about.
    pub(super) fn enter(&mut self, type_url: &TypeUrl) -> Result<Entered<'_, T>, StreamError> {
        if type_url.as_str().is_empty() {
            return Err(StreamError::NoType);
        }
        let key = (type_url.push_rank(), type_url.clone());
        let first = !self.types.contains_key(&key);
        if first && self.types.len() >= self.rules.max_types {
            return Err(StreamError::TooManyTypes { limit: self.rules.max_types });
        }
        let current = self.snapshot.as_ref().and_then(|s| s.get(type_url)).cloned();
        let due = if *type_url == TypeUrl::ENDPOINTS {
            std::mem::take(&mut self.endpoints_due)
        } else {
            BTreeSet::new()
        };
        Ok(Entered { state: self.types.entry(key).or_default(), first, current, due })
    }

    pub(super) fn on_snapshot(&mut self, snapshot: Arc<Snapshot>) {
        self.snapshot = Some(snapshot);
    }

    /// Order: CDS, EDS, LDS, RDS, the rest; removed clusters and endpoints only after the client has answered the
    /// listeners and routes that may have used them.
    pub(super) fn next_response(&mut self, now: Duration) -> Option<Response> {
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

    pub(super) fn status(&self) -> impl Iterator<Item = (&TypeUrl, &TypeStatus)> {
        self.types.iter().map(|((_, type_url), state)| (type_url, state.status()))
    }

    pub(super) fn next_timer(&self) -> Option<Duration> {
        self.types.values().filter_map(TypeState::next_heartbeat).min()
    }

    /// Whether nothing that refers to clusters is pending or unanswered.
    fn consumers_settled(&self, snapshot: &Snapshot) -> bool {
        CONSUMERS.into_iter().all(|type_url| {
            let Some(current) = snapshot.get(&type_url) else { return true };
            let state = self.types.get(&(type_url.push_rank(), type_url));
            state.is_none_or(|state| state.is_settled(current))
        })
    }

    fn evaluate(
        &mut self,
        key: &(u8, TypeUrl),
        snapshot: &Snapshot,
        hold_removals: bool,
        now: Duration,
    ) -> Option<Response> {
        let type_url = &key.1;
        // A type that the snapshot does not mention is answered only about names: nothing is known to be absent from
        // the wildcard set yet.
        let mentioned = snapshot.get(type_url);
        let state = self.types.get_mut(key)?;
        let current = mentioned.unwrap_or(&self.nothing);
        let found = state.evaluate(&Evaluation {
            current,
            mentioned: mentioned.is_some(),
            type_url,
            unknown: self.rules.unknown(type_url),
            max_bytes: self.rules.max_response_bytes,
            hold_removals,
            times_to_live: self.times_to_live,
            now,
        });
        let version = || snapshot.version().map_or_else(|| current.version().to_string(), str::to_owned);
        let Some(found) = found else {
            let silent = state.status().nonce_sent.is_empty() && !state.status().came_back_current;
            if silent && state.came_back_current(current) {
                state.status_mut().found_current(&version());
            }
            return None;
        };
        let version = version();
        self.nonces += 1;
        let nonce = format!("{:x}", self.nonces);
        state.status_mut().sent(&nonce, &version, now);
        self.endpoints_follow(found.endpoints);
        Some(Response {
            type_url: type_url.clone(),
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
