//! The client's side of the protocol, without IO.

mod delta;
mod incoming;
mod sotw;
mod types;

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::time::Duration;

use prost_types::Any;

use crate::pb::envoy::config::core::v3::Node;
use crate::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use crate::resource::{TTL_FEATURE, TypeUrl, WRAPPER_FEATURE};

use self::types::{Answer, TypeState};
use super::state::{Rejection, ResourceState};
use super::subscription::{Names, Protocol};

/// A request to send.
#[derive(Debug, Clone, PartialEq)]
pub enum ClientRequest {
    /// On a Delta stream.
    Delta(Box<DeltaDiscoveryRequest>),
    /// On a State-of-the-World stream.
    Sotw(Box<DiscoveryRequest>),
}

/// A response that was received. Its `Debug` form leaves the resources out: they may be private keys.
#[derive(Clone, PartialEq)]
pub enum ClientResponse {
    /// On a Delta stream.
    Delta(Box<DeltaDiscoveryResponse>),
    /// On a State-of-the-World stream.
    Sotw(Box<DiscoveryResponse>),
}

impl fmt::Debug for ClientResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, type_url, nonce, resources) = match self {
            Self::Delta(r) => ("Delta", &r.type_url, &r.nonce, r.resources.len()),
            Self::Sotw(r) => ("Sotw", &r.type_url, &r.nonce, r.resources.len()),
        };
        f.debug_struct(kind)
            .field("type", type_url)
            .field("nonce", nonce)
            .field("resources", &resources)
            .finish_non_exhaustive()
    }
}

/// One resource of a delivery, not yet decoded. Its `Debug` form leaves the content out: it may be a private key.
#[derive(Clone, PartialEq)]
pub struct Received {
    /// Its name.
    pub name: String,
    /// Its version; in State-of-the-World that of the whole response.
    pub version: String,
    /// The message.
    pub resource: Any,
    /// Whether the version in use is this one already.
    pub unchanged: bool,
    ttl: Option<Duration>,
    content: u64,
}

impl fmt::Debug for Received {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Received")
            .field("name", &self.name)
            .field("version", &self.version)
            .field("bytes", &self.resource.value.len())
            .field("unchanged", &self.unchanged)
            .field("ttl", &self.ttl)
            .finish_non_exhaustive()
    }
}

/// What one response brought. It has to be decided with [`ClientCore::decide`], which is what acknowledges it.
///
/// The first delivery of a type may be empty: the server has answered and has nothing.
#[derive(Debug, Clone, PartialEq)]
pub struct Delivery {
    /// The handle for [`ClientCore::decide`].
    pub id: u64,
    /// The resource type.
    pub type_url: TypeUrl,
    /// New and changed resources that were asked for.
    pub resources: Vec<Received>,
    /// Names that are gone or do not exist.
    pub removed: Vec<String>,
}

/// Why a resource lapsed without a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LapseReason {
    /// It was asked for and nothing came within the time for missing resources.
    Missing,
    /// Its time to live ran out.
    Expired,
}

/// A resource that is to be treated as absent although no response says so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lapse {
    /// The resource type.
    pub type_url: TypeUrl,
    /// Its name.
    pub name: String,
    /// Why.
    pub reason: LapseReason,
}

/// The protocol of one client. It survives its streams: what was accepted stays until something better is accepted.
///
/// The caller says what it wants ([`watch`](Self::watch)), feeds [`connected`](Self::connected),
/// [`on_response`](Self::on_response) and [`disconnected`](Self::disconnected), and sends whatever
/// [`next_request`](Self::next_request) returns until it returns nothing.
#[derive(Debug)]
pub struct ClientCore {
    protocol: Protocol,
    node: Node,
    node_sent: bool,
    connected: bool,
    missing_after: Option<Duration>,
    types: BTreeMap<(u8, TypeUrl), TypeState>,
    /// Answers to responses of types that nobody watches (any more).
    strays: VecDeque<(TypeUrl, Answer)>,
    next_id: u64,
}

impl ClientCore {
    /// A client that wants nothing yet. Resources are reported missing after 15 s. The node announces that it understands
    /// times to live.
    #[must_use]
    pub fn new(protocol: Protocol, mut node: Node) -> Self {
        for feature in [TTL_FEATURE, WRAPPER_FEATURE] {
            if !node.client_features.iter().any(|announced| announced == feature) {
                node.client_features.push(feature.to_owned());
            }
        }
        Self {
            protocol,
            node,
            node_sent: false,
            connected: false,
            missing_after: Some(Duration::from_secs(15)),
            types: BTreeMap::new(),
            strays: VecDeque::new(),
            next_id: 0,
        }
    }

    /// After which time a resource that was asked for counts as missing; `None` waits forever.
    #[must_use]
    pub const fn with_missing_after(mut self, after: Option<Duration>) -> Self {
        self.missing_after = after;
        self
    }

    /// Which kind of stream it speaks.
    #[must_use]
    pub const fn protocol(&self) -> Protocol {
        self.protocol
    }

    /// Replaces the subscription of a type; [`Names::none`] leaves it watched without asking for anything.
    pub fn watch(&mut self, type_url: &TypeUrl, names: Names) {
        self.state(type_url).want(names);
    }

    /// Adds names to a type's subscription. A name that is subscribed already is asked for again (Delta: the server
    /// has to send it).
    pub fn subscribe<'a>(&mut self, type_url: &TypeUrl, names: impl IntoIterator<Item = &'a str>) {
        let state = self.state(type_url);
        names.into_iter().for_each(|name| state.add(name));
    }

    /// Removes names from a type's subscription.
    pub fn unsubscribe<'a>(&mut self, type_url: &TypeUrl, names: impl IntoIterator<Item = &'a str>) {
        let state = self.state(type_url);
        names.into_iter().for_each(|name| state.remove(name));
    }

    /// Stops watching a type and forgets what is known of it.
    pub fn unwatch(&mut self, type_url: &TypeUrl) {
        self.state(type_url).want(Names::none());
        self.state(type_url).closing = true;
    }

    fn state(&mut self, type_url: &TypeUrl) -> &mut TypeState {
        self.types.entry((type_url.push_rank(), type_url.clone())).or_default()
    }

    /// A stream was opened: everything is asked for again.
    pub fn connected(&mut self) {
        self.connected = true;
        self.node_sent = false;
        self.strays.clear();
        self.types.retain(|_, state| !state.closing);
        self.types.values_mut().for_each(TypeState::restart);
    }

    /// The stream is gone. What was accepted stays, and what is accepted yet of its deliveries counts as well.
    pub fn disconnected(&mut self) {
        self.connected = false;
        self.types.values_mut().for_each(TypeState::restart);
    }

    /// The next request to send on the open stream, in dependency order. Call it until it returns nothing.
    pub fn next_request(&mut self, now: Duration) -> Option<ClientRequest> {
        if !self.connected {
            return None;
        }
        let protocol = self.protocol;
        let mut request = match self.strays.pop_front() {
            Some((type_url, answer)) => stray(protocol, &type_url, answer),
            None => self.types.iter_mut().find_map(|((_, type_url), state)| match protocol {
                Protocol::Delta => {
                    delta::request(type_url, state, now).map(|r| ClientRequest::Delta(Box::new(r)))
                }
                Protocol::Sotw => {
                    sotw::request(type_url, state, now).map(|r| ClientRequest::Sotw(Box::new(r)))
                }
            })?,
        };
        if !self.node_sent {
            self.node_sent = true;
            match &mut request {
                ClientRequest::Delta(r) => r.node = Some(self.node.clone()),
                ClientRequest::Sotw(r) => r.node = Some(self.node.clone()),
            }
        }
        Some(request)
    }

    /// Takes a response. `None` when there is nothing to decide: the answer is ready already.
    pub fn on_response(&mut self, now: Duration, response: ClientResponse) -> Option<Delivery> {
        match (self.protocol, response) {
            (Protocol::Delta, ClientResponse::Delta(response)) => self.take(now, (*response).into()),
            (Protocol::Sotw, ClientResponse::Sotw(response)) => self.take(now, (*response).into()),
            // The transport opens one kind of stream; the other kind cannot arrive on it.
            _ => None,
        }
    }

    /// Decides a delivery: everything in it is accepted, but for the resources that are named here.
    ///
    /// The response is acknowledged when all earlier ones of its type are decided; with rejections it is a NACK that
    /// names each of them. A response of the stream before has nobody to acknowledge it to; an unknown id is ignored.
    pub fn decide(&mut self, now: Duration, id: u64, rejections: Vec<Rejection>) {
        for state in self.types.values_mut() {
            if state.decide(now, id, &rejections) {
                return;
            }
        }
    }

    /// How many deliveries are not decided yet.
    #[must_use]
    pub fn undecided(&self) -> usize {
        self.types.values().map(TypeState::undecided).sum()
    }

    /// When [`on_timer`](Self::on_timer) has something to say.
    #[must_use]
    pub fn next_timer(&self) -> Option<Duration> {
        let missing_after = self.missing_after.filter(|_| self.connected);
        self.types.values().filter_map(|state| state.next_timer(missing_after)).min()
    }

    /// What lapsed: missing resources (reported once) and expired ones (which are forgotten).
    pub fn on_timer(&mut self, now: Duration) -> Vec<Lapse> {
        let missing_after = self.missing_after.filter(|_| self.connected);
        let mut lapses = Vec::new();
        for ((_, type_url), state) in &mut self.types {
            let found = state.lapsed(now, missing_after);
            let lapse = |(name, reason)| Lapse { type_url: type_url.clone(), name, reason };
            lapses.extend(found.into_iter().map(lapse));
        }
        lapses
    }

    /// The state of every resource, by type.
    pub fn resources(&self) -> impl Iterator<Item = (&TypeUrl, &BTreeMap<String, ResourceState>)> {
        self.types.iter().map(|((_, type_url), state)| (type_url, &state.resources))
    }

    fn fresh_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }
}

/// The answer to a response of a type that nobody watches.
fn stray(protocol: Protocol, type_url: &TypeUrl, answer: Answer) -> ClientRequest {
    let (type_url, Answer { nonce, error }) = (type_url.as_str().to_owned(), answer);
    match protocol {
        Protocol::Delta => ClientRequest::Delta(Box::new(DeltaDiscoveryRequest {
            type_url,
            response_nonce: nonce,
            error_detail: error,
            ..Default::default()
        })),
        Protocol::Sotw => ClientRequest::Sotw(Box::new(DiscoveryRequest {
            type_url,
            response_nonce: nonce,
            error_detail: error,
            ..Default::default()
        })),
    }
}
