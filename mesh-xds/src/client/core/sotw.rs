//! State of the world: requests and responses.

use std::time::Duration;

use prost::Message as _;

use crate::client::subscription::Names;
use crate::pb::envoy::service::discovery::v3::{DiscoveryRequest, DiscoveryResponse, Resource};
use crate::resource::{TypeUrl, WRAPPER};

use super::incoming::{Incoming, Item};
use super::types::{Answer, TypeState};

impl From<DiscoveryResponse> for Incoming {
    fn from(response: DiscoveryResponse) -> Self {
        let item = |any: prost_types::Any| {
            if any.type_url != WRAPPER {
                return Ok(Item { name: String::new(), version: None, ttl: None, resource: Some(any) });
            }
            let wrapper = Resource::decode(any.value.as_slice()).map_err(|error| error.to_string())?;
            let ttl = wrapper.ttl.and_then(|ttl| Duration::try_from(ttl).ok());
            Ok(Item { name: wrapper.name, version: None, ttl, resource: wrapper.resource })
        };
        Self {
            items: response.resources.into_iter().map(item).collect(),
            // LDS and CDS: what is not said is deleted. For other types absence means nothing.
            is_whole: TypeUrl::from(response.type_url.as_str()).is_full_state(),
            type_url: response.type_url,
            nonce: response.nonce,
            version: response.version_info,
            removed: Vec::new(),
        }
    }
}

/// The next request of one type. The whole subscription is in each of them, so an answer carries a change of it.
pub(super) fn request(type_url: &TypeUrl, state: &mut TypeState, now: Duration) -> Option<DiscoveryRequest> {
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
