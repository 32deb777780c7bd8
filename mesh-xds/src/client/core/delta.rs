//! Delta: requests and responses.

use std::time::Duration;

use crate::client::state::Rejection;
use crate::client::subscription::Names;
use crate::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use crate::resource::{TypeUrl, peek_name};

use super::types::{Answer, Pending, Sorted, TypeState, UNNAMED};
use super::{ClientCore, Delivery, Received};

impl ClientCore {
    pub(super) fn next_delta(&mut self, now: Duration) -> Option<DeltaDiscoveryRequest> {
        if let Some((type_url, answer)) = self.strays.pop_front() {
            return Some(DeltaDiscoveryRequest {
                type_url: type_url.as_str().to_owned(),
                response_nonce: answer.nonce,
                error_detail: answer.error,
                ..Default::default()
            });
        }
        self.types.iter_mut().find_map(|((_, type_url), state)| request(type_url, state, now))
    }

    pub(super) fn on_delta(&mut self, now: Duration, response: DeltaDiscoveryResponse) -> Option<Delivery> {
        let type_url = TypeUrl::from(response.type_url);
        let id = self.fresh_id();
        let key = (type_url.push_rank(), type_url.clone());
        let Some(state) = self.types.get_mut(&key).filter(|s| s.told.is_some()) else {
            self.strays.push_back((type_url, Answer { nonce: response.nonce, error: None }));
            return None;
        };
        let mut names = Vec::new();
        let mut sorted = Sorted::default();
        for wrapper in response.resources {
            let ttl = wrapper.ttl.and_then(|ttl| Duration::try_from(ttl).ok());
            let Some(resource) = wrapper.resource else {
                // A heartbeat: the same version, only its time to live begins again.
                if let Some(known) =
                    state.resources.get_mut(&wrapper.name).filter(|r| r.version == wrapper.version)
                {
                    known.expires_at = ttl.map(|ttl| now + ttl);
                }
                continue;
            };
            let outer = if wrapper.name.is_empty() {
                wrapper.resource_name.map(|n| n.name)
            } else {
                Some(wrapper.name)
            };
            let name = match outer.map_or_else(|| peek_name(&type_url, &resource.value), Ok) {
                Ok(name) => name,
                Err(error) => {
                    sorted.bad.push(Rejection { name: UNNAMED.to_owned(), reason: error.to_string() });
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
            let unchanged = state.is_unchanged(&name, Some(&wrapper.version), content);
            sorted.good.push(Received { name, version: wrapper.version, resource, unchanged, ttl });
        }
        let trusted = sorted.refuse_duplicates(&names);
        let mut removed = response.removed_resources;
        removed.extend(response.removed_resource_names.into_iter().map(|n| n.name));
        removed.retain(|name| trusted && state.wanted.contains(name));
        let offered = sorted.good.iter().map(|r| {
            let content = twox_hash::XxHash64::oneshot(0, &r.resource.value);
            (r.name.clone(), r.version.clone(), content, r.ttl)
        });
        let pending = Pending {
            id,
            nonce: response.nonce,
            version: response.system_version_info,
            offered: offered.collect(),
            removed: removed.clone(),
            bad: sorted.bad,
            decided: false,
        };
        state.pending.push_back(pending);
        let first = !std::mem::replace(&mut state.answered, true);
        if sorted.good.is_empty() && removed.is_empty() && !first {
            state.decide(now, id, &[]);
            return None;
        }
        Some(Delivery { id, type_url, resources: sorted.good, removed })
    }
}

/// The next request of one type: the first one of the stream, an answer, or a change of subscription.
fn request(type_url: &TypeUrl, state: &mut TypeState, now: Duration) -> Option<DeltaDiscoveryRequest> {
    let mut request = DeltaDiscoveryRequest { type_url: type_url.as_str().to_owned(), ..Default::default() };
    let answer = state.answers.pop_front();
    if state.told.is_some() && !state.touched && state.again.is_empty() && answer.is_none() {
        return None;
    }
    let target = state.target();
    let mut again = std::mem::take(&mut state.again);
    let changed = match state.told.replace(target.clone()) {
        None => {
            if target.is_empty() {
                state.told = None;
                return None;
            }
            // Everything and nothing else is the legacy wildcard, which every server understands.
            if !target.names.is_empty() {
                request.resource_names_subscribe.extend(target.all.then(|| "*".to_owned()));
                request.resource_names_subscribe.extend(target.names);
            }
            let known = state.resources.iter().filter(|(_, r)| r.accepted_at.is_some());
            request.initial_resource_versions = known.map(|(n, r)| (n.clone(), r.version.clone())).collect();
            state.touched = false;
            true
        }
        Some(told) => {
            again.retain(|name| told.names.contains(name) && target.names.contains(name));
            let (added, dropped) = changes(&told, &target);
            request.resource_names_subscribe = added;
            request.resource_names_subscribe.extend(again);
            request.resource_names_unsubscribe = dropped;
            !request.resource_names_subscribe.is_empty() || !request.resource_names_unsubscribe.is_empty()
        }
    };
    if changed {
        state.requested(now);
    } else if answer.is_none() {
        return None;
    }
    if let Some(Answer { nonce, error }) = answer {
        request.response_nonce = nonce;
        request.error_detail = error;
    }
    Some(request)
}

/// What to subscribe to and what to unsubscribe from.
fn changes(told: &Names, wanted: &Names) -> (Vec<String>, Vec<String>) {
    let mut added: Vec<_> = wanted.names.difference(&told.names).cloned().collect();
    let mut dropped: Vec<_> = told.names.difference(&wanted.names).cloned().collect();
    // Some servers end a legacy wildcard at the first name, so the star is said together with it.
    if wanted.all && (!told.all || !added.is_empty()) {
        added.insert(0, "*".to_owned());
    }
    if told.all && !wanted.all {
        dropped.push("*".to_owned());
    }
    (added, dropped)
}
