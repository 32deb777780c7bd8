//! State of the world: requests and responses.

use std::time::Duration;

use prost::Message as _;

use crate::client::state::Rejection;
use crate::client::subscription::Names;
use crate::pb::envoy::service::discovery::v3::{DiscoveryRequest, DiscoveryResponse, Resource};
use crate::resource::{TypeUrl, peek_name};

use super::types::{Answer, Pending, Sorted, TypeState, UNNAMED};
use super::{ClientCore, Delivery, Received};

/// The wrapper that may stand around a State-of-the-World resource.
const WRAPPER: &str = "type.googleapis.com/envoy.service.discovery.v3.Resource";

impl ClientCore {
    pub(super) fn next_sotw(&mut self, now: Duration) -> Option<DiscoveryRequest> {
        if let Some((type_url, answer)) = self.strays.pop_front() {
            return Some(DiscoveryRequest {
                type_url: type_url.as_str().to_owned(),
                response_nonce: answer.nonce,
                error_detail: answer.error,
                ..Default::default()
            });
        }
        self.types.iter_mut().find_map(|((_, type_url), state)| request(type_url, state, now))
    }

    pub(super) fn on_sotw(&mut self, now: Duration, response: DiscoveryResponse) -> Option<Delivery> {
        let type_url = TypeUrl::from(response.type_url);
        let id = self.fresh_id();
        let key = (type_url.push_rank(), type_url.clone());
        let Some(state) = self.types.get_mut(&key).filter(|s| s.told.is_some()) else {
            self.strays.push_back((type_url, Answer { nonce: response.nonce, error: None }));
            return None;
        };
        let mut names = Vec::new();
        let mut sorted = Sorted::default();
        for any in response.resources {
            let reject = |name: &str, reason: String| Rejection { name: name.to_owned(), reason };
            let (outer, resource, ttl) = if any.type_url == WRAPPER {
                match Resource::decode(any.value.as_slice()) {
                    Ok(wrapper) => {
                        let ttl = wrapper.ttl.and_then(|ttl| Duration::try_from(ttl).ok());
                        let Some(resource) = wrapper.resource else {
                            names.push(wrapper.name.clone());
                            if let Some(known) = state.resources.get_mut(&wrapper.name) {
                                known.expires_at = ttl.map(|ttl| now + ttl);
                            }
                            continue;
                        };
                        (wrapper.name, resource, ttl)
                    }
                    Err(error) => {
                        sorted.bad.push(reject(UNNAMED, error.to_string()));
                        continue;
                    }
                }
            } else {
                (String::new(), any, None)
            };
            let peeked = if outer.is_empty() { peek_name(&type_url, &resource.value) } else { Ok(outer) };
            let name = match peeked {
                Ok(name) => name,
                Err(error) => {
                    sorted.bad.push(reject(UNNAMED, error.to_string()));
                    continue;
                }
            };
            names.push(name.clone());
            if !state.wanted.contains(&name) {
                continue;
            }
            if resource.type_url != type_url.as_str() {
                let reason = format!("is a {:?} in a response for {type_url}", resource.type_url);
                sorted.bad.push(Rejection { name, reason });
                continue;
            }
            let content = twox_hash::XxHash64::oneshot(0, &resource.value);
            let unchanged = state.is_unchanged(&name, None, content);
            let version = response.version_info.clone();
            sorted.good.push(Received { name, version, resource, unchanged, ttl });
        }
        // A response whose names are in doubt deletes nothing.
        let trusted = sorted.refuse_duplicates(&names);
        let removed = if trusted { absent(&type_url, state, &names) } else { Vec::new() };
        let offered = sorted.good.iter().map(|r| {
            let content = twox_hash::XxHash64::oneshot(0, &r.resource.value);
            (r.name.clone(), r.version.clone(), content, r.ttl)
        });
        state.nonce.clone_from(&response.nonce);
        state.pending.push_back(Pending {
            id,
            nonce: response.nonce,
            version: response.version_info,
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

/// LDS and CDS: what is known and not in the response is deleted. For other types absence means nothing.
fn absent(type_url: &TypeUrl, state: &TypeState, names: &[String]) -> Vec<String> {
    if !type_url.is_full_state() {
        return Vec::new();
    }
    let present: std::collections::BTreeSet<&str> = names.iter().map(String::as_str).collect();
    let known = state.resources.keys().filter(|name| !present.contains(name.as_str()));
    known.cloned().collect()
}

/// The next request of one type. The whole subscription is in each of them, so an answer carries a change of it.
fn request(type_url: &TypeUrl, state: &mut TypeState, now: Duration) -> Option<DiscoveryRequest> {
    let first = state.told.is_none();
    if first && state.wanted.is_empty() {
        return None;
    }
    let answer = state.answers.pop_front();
    // While a response is undecided a request with its nonce would acknowledge it, and a server ignores requests with
    // an older nonce: a change travels with the answer to the newest response, or after it.
    let newest = first || (state.pending.is_empty() && state.answers.is_empty());
    let asks = newest && (first || state.touched || !state.again.is_empty());
    if !asks && answer.is_none() {
        return None;
    }
    let told = state.told.clone();
    let mut target = if asks { state.target() } else { told.clone().unwrap_or_default() };
    if told.as_ref().is_some_and(|t| t.all) && target.is_empty() && !state.named_once {
        // An empty list would still be the legacy wildcard: it is made explicit first, and then left.
        target = Names::all();
        state.named_once = true;
        state.touched = true;
        state.lapsed.all = true;
    }
    let again = asks && !std::mem::take(&mut state.again).is_empty();
    let changed = told.as_ref() != Some(&target) || again || (target.all && state.touched);
    if !changed && answer.is_none() {
        return None;
    }
    state.named_once |= !target.names.is_empty();
    let star = (target.all && state.named_once).then(|| "*".to_owned());
    let mut request = DiscoveryRequest {
        type_url: type_url.as_str().to_owned(),
        version_info: state.version.clone(),
        resource_names: star.into_iter().chain(target.names.iter().cloned()).collect(),
        response_nonce: state.nonce.clone(),
        ..Default::default()
    };
    if let Some(Answer { nonce, error }) = answer {
        request.response_nonce = nonce;
        request.error_detail = error;
    }
    if first {
        state.touched = false;
    }
    if changed {
        state.told = Some(target);
        state.requested(now);
    }
    Some(request)
}
