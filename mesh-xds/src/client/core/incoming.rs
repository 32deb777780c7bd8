//! A response of either variant: what is in it, what of it may be delivered, what is bad on its face.

use std::collections::BTreeSet;
use std::time::Duration;

use prost_types::Any;

use crate::client::state::Rejection;
use crate::resource::{TypeUrl, peek_name};

use super::types::{Answer, Bad, Pending, TypeState};
use super::{ClientCore, Delivery, Received};

/// Stands for the name of a resource whose name cannot be read.
const UNNAMED: &str = "<unnamed>";

/// One response.
#[derive(Debug)]
pub(super) struct Incoming {
    pub(super) type_url: String,
    pub(super) nonce: String,
    /// The version of the whole.
    pub(super) version: String,
    /// The resources; the reason where one cannot even be unwrapped.
    pub(super) items: Vec<Result<Item, String>>,
    /// Names that it says are gone.
    pub(super) removed: Vec<String>,
    /// Whether what is known and not in it is gone.
    pub(super) is_whole: bool,
}

/// One resource of a response.
#[derive(Debug)]
pub(super) struct Item {
    /// The name on the outside; may be empty.
    pub(super) name: String,
    /// Its own version, where resources have one.
    pub(super) version: Option<String>,
    pub(super) ttl: Option<Duration>,
    /// Nothing in a heartbeat: only the time to live begins again.
    pub(super) resource: Option<Any>,
}

impl ClientCore {
    pub(super) fn take(&mut self, now: Duration, incoming: Incoming) -> Option<Delivery> {
        let type_url = TypeUrl::from(incoming.type_url);
        let id = self.fresh_id();
        let key = (type_url.push_rank(), type_url.clone());
        let Some(state) = self.types.get_mut(&key).filter(|s| s.told.is_some()) else {
            self.strays.push_back((type_url, Answer { nonce: incoming.nonce, error: None }));
            return None;
        };
        let open = state.open();
        let mut sorted = Sorted::default();
        for item in incoming.items {
            sorted.sort(now, &type_url, state, &open, &incoming.version, item);
        }
        let trusted = sorted.refuse_duplicates();
        let mut removed = incoming.removed;
        if incoming.is_whole {
            removed.extend(state.absent(&open, &sorted.names));
        }
        // A response whose names are in doubt deletes nothing.
        removed.retain(|name| trusted && state.wanted.contains(name));
        let offered = sorted.good.iter().map(|r| (r.name.clone(), r.version.clone(), r.content, r.ttl));
        state.pending.push_back(Pending {
            id,
            nonce: incoming.nonce,
            version: incoming.version,
            offered: offered.collect(),
            removed: removed.clone(),
            bad: sorted.bad,
            decided: false,
        });
        let first = !std::mem::replace(&mut state.answered, true);
        if sorted.good.is_empty() && removed.is_empty() && !first {
            state.decide(now, id, &[]);
            return None;
        }
        Some(Delivery { id, type_url, resources: sorted.good, removed })
    }
}

/// Resources that may be delivered and those that are bad on their face.
#[derive(Debug, Default)]
struct Sorted {
    /// Every name in the response.
    names: Vec<String>,
    good: Vec<Received>,
    bad: Vec<Bad>,
}

impl Sorted {
    fn sort(
        &mut self,
        now: Duration,
        type_url: &TypeUrl,
        state: &mut TypeState,
        open: &BTreeSet<String>,
        whole: &str,
        item: Result<Item, String>,
    ) {
        let Item { name, version, ttl, resource } = match item {
            Ok(item) => item,
            Err(reason) => return self.reject(UNNAMED.to_owned(), reason, None),
        };
        let Some(resource) = resource else {
            let known = state.resources.get_mut(&name);
            if let Some(known) = known.filter(|r| version.is_none_or(|version| version == r.version)) {
                known.expires_at = ttl.map(|ttl| now + ttl);
            }
            return self.names.push(name);
        };
        let name = if name.is_empty() { peek_name(type_url, &resource.value) } else { Ok(name) };
        let name = match name {
            Ok(name) => name,
            Err(error) => return self.reject(UNNAMED.to_owned(), error.to_string(), version),
        };
        self.names.push(name.clone());
        if !state.wanted.contains(&name) {
            return;
        }
        if resource.type_url != type_url.as_str() {
            let reason = format!("is a {:?} in a response for {type_url}", resource.type_url);
            return self.reject(name, reason, version);
        }
        let content = twox_hash::XxHash64::oneshot(0, &resource.value);
        let unchanged = !open.contains(&name) && state.is_unchanged(&name, version.as_deref(), content);
        let version = version.unwrap_or_else(|| whole.to_owned());
        self.good.push(Received { name, version, resource, unchanged, ttl, content });
    }

    fn reject(&mut self, name: String, reason: String, version: Option<String>) {
        self.bad.push((Rejection { name, reason }, version));
    }

    /// Two resources of one name in one response: nothing in it can be trusted.
    ///
    /// Returns whether names that are missing from the response may be taken for deleted.
    fn refuse_duplicates(&mut self) -> bool {
        let mut seen = BTreeSet::new();
        let twice: BTreeSet<_> = self.names.iter().filter(|name| !seen.insert(*name)).cloned().collect();
        if twice.is_empty() {
            return !self.bad.iter().any(|(r, _)| r.name == UNNAMED);
        }
        self.good.clear();
        for name in twice {
            let reason = "appears more than once in the response; the response is rejected".to_owned();
            self.reject(name, reason, None);
        }
        false
    }
}
