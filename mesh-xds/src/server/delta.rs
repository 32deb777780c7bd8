//! The Delta protocol of one stream, without IO.

mod state;

use std::sync::Arc;
use std::time::Duration;

use crate::pb::envoy::service::discovery::v3::DeltaDiscoveryRequest;
use crate::resource::{TTL_FEATURE, TypeUrl};

use self::state::DeltaType;
use super::config::{StreamError, StreamRules};
use super::response::Response;
use super::snapshot::Snapshot;
use super::status::TypeStatus;
use super::types::{Entered, Types};

/// One Delta stream: requests and snapshots go in, responses come out when there is room for them.
///
/// Nothing is queued: [`next_response`](Self::next_response) compares what the client has with the newest snapshot, so a
/// client that was slow receives one response with everything it missed.
#[derive(Debug)]
pub struct DeltaStream {
    types: Types<DeltaType>,
}

impl DeltaStream {
    /// A stream on which nothing was asked yet.
    #[must_use]
    pub fn new(rules: Arc<StreamRules>) -> Self {
        Self { types: Types::new(rules) }
    }

    /// Takes a request: an acknowledgement, a change of subscription, or both.
    ///
    /// # Errors
    /// [`StreamError`] ends the stream.
    pub fn on_request(&mut self, now: Duration, request: DeltaDiscoveryRequest) -> Result<(), StreamError> {
        self.types.identify(request.node.as_ref(), &[TTL_FEATURE]);
        let limit = self.types.max_names();
        let type_url = TypeUrl::from(request.type_url);
        // Whatever the nonce, the subscription counts; an answer to nothing is no answer.
        let answers = self.types.has_sent(&request.response_nonce);
        let Entered { state, first, current, due } = self.types.enter(&type_url)?;
        if answers {
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
            } else {
                state.subscribe(current.as_deref(), name, due.contains(name.as_str()));
            }
        }
        for name in unsubscribe.iter().filter(|n| !n.is_empty()) {
            if name == "*" {
                state.set_wildcard(false);
            } else {
                state.unsubscribe(name);
            }
        }
        if state.refresh_counts() > limit {
            return Err(StreamError::TooManyNames { type_url: type_url.as_str().to_owned(), limit });
        }
        self.types.check_bytes(&type_url)
    }

    /// Takes a newer snapshot.
    pub fn on_snapshot(&mut self, snapshot: Arc<Snapshot>) {
        self.types.on_snapshot(snapshot);
    }

    /// The next response, if anything has to be said. Call it while the transport has room.
    ///
    /// Order: CDS, EDS, LDS, RDS, the rest; removed clusters and endpoints only after the client has answered the
    /// listeners and routes that may have used them.
    pub fn next_response(&mut self, now: Duration) -> Option<Response> {
        self.types.next_response(now)
    }

    /// The state of every type, for status pages.
    pub fn status(&self) -> impl Iterator<Item = (&TypeUrl, &TypeStatus)> {
        self.types.status()
    }

    /// When [`next_response`](Self::next_response) has to be asked again although nothing happened: a heartbeat is due.
    #[must_use]
    pub fn next_timer(&self) -> Option<Duration> {
        self.types.next_timer()
    }
}
