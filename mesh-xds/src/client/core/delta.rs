//! Delta: requests and responses.

use std::time::Duration;

use crate::client::subscription::Names;
use crate::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use crate::resource::TypeUrl;

use super::incoming::{Incoming, Item};
use super::types::{Answer, TypeState};

impl From<DeltaDiscoveryResponse> for Incoming {
    fn from(response: DeltaDiscoveryResponse) -> Self {
        let items = response.resources.into_iter().map(|wrapper| {
            let outer = wrapper.resource_name.map(|n| n.name).unwrap_or_default();
            Ok(Item {
                name: if wrapper.name.is_empty() { outer } else { wrapper.name },
                version: Some(wrapper.version),
                ttl: wrapper.ttl.and_then(|ttl| Duration::try_from(ttl).ok()),
                resource: wrapper.resource,
            })
        });
        let mut removed = response.removed_resources;
        removed.extend(response.removed_resource_names.into_iter().map(|n| n.name));
        Self {
            items: items.collect(),
            type_url: response.type_url,
            nonce: response.nonce,
            version: response.system_version_info,
            removed,
            is_whole: false,
        }
    }
}

/// The next request of one type: the first one of the stream, an answer, or a change of subscription.
pub(super) fn request(
    type_url: &TypeUrl,
    state: &mut TypeState,
    now: Duration,
) -> Option<DeltaDiscoveryRequest> {
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
            request.initial_resource_versions = state.known();
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
