//! Whatever happens in whatever order, in the end the client has what the server has.
//!
//! A server stream and a client core exchange messages through two queues that a random schedule moves on, while
//! snapshots change, subscriptions change, decisions tarry, resources are rejected and connections break. When everything
//! has been delivered the two agree, and every response was answered exactly once.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use mesh_xds::client::{ClientCore, ClientRequest, ClientResponse, Delivery, Names, Protocol, Rejection};
use mesh_xds::pb::envoy::config::cluster::v3::Cluster;
use mesh_xds::pb::envoy::config::core::v3::Node;
use mesh_xds::pb::envoy::config::endpoint::v3::{ClusterLoadAssignment, LocalityLbEndpoints};
use mesh_xds::pb::envoy::config::listener::v3::Listener;
use mesh_xds::pb::envoy::config::route::v3::RouteConfiguration;
use mesh_xds::server::{EncodedResource, Request, ServerStream, Snapshot, StreamRules};
use mesh_xds::{Resource, TypeUrl};
use proptest::prelude::*;
use proptest::test_runner::{RngSeed, TestRunner};

const TYPES: [TypeUrl; 4] = [TypeUrl::CLUSTER, TypeUrl::ENDPOINTS, TypeUrl::LISTENER, TypeUrl::ROUTE];
const CASES: u32 = 10_000;
const NOW: Duration = Duration::from_secs(1);
/// Resources with this mark are rejected.
const BAD: u8 = 0;

#[derive(Debug, Clone)]
enum Step {
    /// A new snapshot: for some (type, name) a mark, or nothing.
    Snapshot(Vec<(u8, u8, Option<u8>)>),
    Subscribe(u8, Vec<u8>),
    Unsubscribe(u8, Vec<u8>),
    Wildcard(u8, bool),
    /// One message from the client to the server.
    Up,
    /// The server says one thing more.
    Say,
    /// One message from the server to the client.
    Down,
    /// The consumer decides about one delivery.
    Decide,
    Break,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let name = 0u8..6;
    let names = prop::collection::vec(name.clone(), 0..3);
    let changes = prop::collection::vec((0u8..4, name, prop::option::of(0u8..4)), 0..8);
    let step = prop_oneof![
        3 => changes.prop_map(Step::Snapshot),
        2 => (0u8..4, names.clone()).prop_map(|(t, n)| Step::Subscribe(t, n)),
        1 => (0u8..4, names).prop_map(|(t, n)| Step::Unsubscribe(t, n)),
        1 => (prop_oneof![Just(0u8), Just(2u8)], any::<bool>()).prop_map(|(t, on)| Step::Wildcard(t, on)),
        4 => Just(Step::Up),
        4 => Just(Step::Say),
        4 => Just(Step::Down),
        4 => Just(Step::Decide),
        1 => Just(Step::Break),
    ];
    prop::collection::vec(step, 0..40)
}

/// Every resource there is, encoded once.
fn resource(kind: usize, name: u8, mark: u8) -> Arc<EncodedResource> {
    static ALL: OnceLock<Vec<Arc<EncodedResource>>> = OnceLock::new();
    let all = ALL.get_or_init(|| {
        let every =
            (0..4).flat_map(|kind| (0..6).flat_map(move |name| (0..4).map(move |mark| (kind, name, mark))));
        every.map(|(kind, name, mark)| encode(kind, name, mark)).collect()
    });
    all[kind * 24 + usize::from(name) * 4 + usize::from(mark)].clone()
}

/// The bytes of every resource, to compare with.
fn value(kind: usize, name: u8, mark: u8) -> &'static [u8] {
    static ALL: OnceLock<BTreeMap<(usize, u8, u8), Vec<u8>>> = OnceLock::new();
    let all = ALL.get_or_init(|| {
        let every =
            (0..4).flat_map(|kind| (0..6).flat_map(move |name| (0..4).map(move |mark| (kind, name, mark))));
        every.map(|(k, n, m)| ((k, n, m), resource(k, n, m).to_any().unwrap().value)).collect()
    });
    &all[&(kind, name, mark)]
}

fn encode(kind: usize, name: u8, mark: u8) -> Arc<EncodedResource> {
    let (name, text) = (format!("r{name}"), mark.to_string());
    let any = match kind {
        0 => Cluster { name, alt_stat_name: text, ..Default::default() }.to_any(),
        1 => {
            let endpoints = vec![LocalityLbEndpoints { priority: u32::from(mark), ..Default::default() }];
            ClusterLoadAssignment { cluster_name: name, endpoints, ..Default::default() }.to_any()
        }
        2 => Listener { name, stat_prefix: text, ..Default::default() }.to_any(),
        _ => RouteConfiguration { name, internal_only_headers: vec![text], ..Default::default() }.to_any(),
    };
    Arc::new(EncodedResource::from_any(&any).unwrap())
}

struct World {
    protocol: Protocol,
    core: ClientCore,
    stream: ServerStream,
    up: VecDeque<ClientRequest>,
    down: VecDeque<ClientResponse>,
    truth: BTreeMap<(usize, u8), u8>,
    wanted: [Names; 4],
    /// What the consumer has not decided about yet, also from streams that are gone.
    undecided: VecDeque<Delivery>,
    /// What the client applied.
    has: BTreeMap<(usize, String), Vec<u8>>,
    said: BTreeSet<String>,
    answered: Vec<String>,
}

impl World {
    fn new(protocol: Protocol) -> Self {
        let mut world = Self {
            protocol,
            core: ClientCore::new(protocol, Node { id: "n".to_owned(), ..Default::default() }),
            stream: Self::stream(protocol),
            up: VecDeque::new(),
            down: VecDeque::new(),
            truth: BTreeMap::new(),
            wanted: [Names::all(), Names::none(), Names::all(), Names::none()],
            undecided: VecDeque::new(),
            has: BTreeMap::new(),
            said: BTreeSet::new(),
            answered: Vec::new(),
        };
        for (type_url, names) in TYPES.iter().zip(&world.wanted) {
            world.core.watch(type_url, names.clone());
        }
        world.core.connected();
        world
    }

    fn stream(protocol: Protocol) -> ServerStream {
        // Small responses, so that splitting is part of the game.
        let mut rules = StreamRules::default();
        rules.max_response_bytes = 150;
        match protocol {
            Protocol::Delta => ServerStream::delta(Arc::new(rules)),
            Protocol::Sotw => ServerStream::sotw(Arc::new(rules)),
        }
    }

    fn set(&mut self) {
        let builder = TYPES.iter().fold(Snapshot::builder(), |b, t| b.with_type(t.clone()));
        let add = |mut b: mesh_xds::server::SnapshotBuilder, ((kind, name), mark): (&(usize, u8), &u8)| {
            b.insert(resource(*kind, *name, *mark));
            b
        };
        let snapshot = self.truth.iter().fold(builder, add).build();
        self.stream.on_snapshot(Arc::new(snapshot));
    }

    fn flush(&mut self) {
        while let Some(request) = self.core.next_request(NOW) {
            let nonce = match &request {
                ClientRequest::Delta(r) => &r.response_nonce,
                ClientRequest::Sotw(r) => &r.response_nonce,
            };
            // In SotW the nonce of the newest response is repeated when the subscription changes.
            let repeats = self.protocol == Protocol::Sotw && self.answered.contains(nonce);
            if !nonce.is_empty() && !repeats {
                self.answered.push(nonce.clone());
            }
            self.up.push_back(request);
        }
    }

    fn up(&mut self) -> bool {
        self.flush();
        let Some(request) = self.up.pop_front() else { return false };
        let request = match request {
            ClientRequest::Delta(r) => Request::Delta(r),
            ClientRequest::Sotw(r) => Request::Sotw(r),
        };
        self.stream.on_request(NOW, request).unwrap();
        true
    }

    fn say(&mut self) -> bool {
        let Some(response) = self.stream.next_response(NOW) else { return false };
        assert!(self.said.insert(response.nonce.clone()), "nonces are unique");
        self.down.push_back(match self.protocol {
            Protocol::Delta => ClientResponse::Delta(Box::new(response.to_delta(""))),
            Protocol::Sotw => ClientResponse::Sotw(Box::new(response.to_sotw(""))),
        });
        true
    }

    fn down(&mut self) -> bool {
        let Some(response) = self.down.pop_front() else { return false };
        self.undecided.extend(self.core.on_response(NOW, response));
        true
    }

    /// The consumer takes what is good and wanted, leaves alone what it is told has not changed, and drops what is gone.
    fn decide(&mut self) -> bool {
        let Some(delivery) = self.undecided.pop_front() else { return false };
        let kind = TYPES.iter().position(|t| *t == delivery.type_url).unwrap();
        let mut rejections = Vec::new();
        for received in delivery.resources {
            let is_bad = (0..6).any(|name| value(kind, name, BAD) == received.resource.value);
            if is_bad {
                rejections.push(Rejection { name: received.name, reason: "bad".to_owned() });
            } else if !received.unchanged && self.wanted[kind].contains(&received.name) {
                self.has.insert((kind, received.name), received.resource.value);
            }
        }
        for name in delivery.removed {
            self.has.remove(&(kind, name));
        }
        self.core.decide(NOW, delivery.id, rejections);
        true
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Snapshot(changes) => {
                for (kind, name, mark) in changes {
                    match mark {
                        Some(mark) => self.truth.insert((usize::from(kind), name), mark),
                        None => self.truth.remove(&(usize::from(kind), name)),
                    };
                }
                self.set();
            }
            Step::Subscribe(kind, names) => {
                let names: Vec<_> = names.iter().map(|n| format!("r{n}")).collect();
                let kind = usize::from(kind);
                self.wanted[kind].names.extend(names.iter().cloned());
                self.core.subscribe(&TYPES[kind], names.iter().map(String::as_str));
            }
            Step::Unsubscribe(kind, names) => {
                let names: Vec<_> = names.iter().map(|n| format!("r{n}")).collect();
                let kind = usize::from(kind);
                for name in &names {
                    self.wanted[kind].names.remove(name);
                }
                self.core.unsubscribe(&TYPES[kind], names.iter().map(String::as_str));
                self.forget(kind);
            }
            Step::Wildcard(kind, on) => {
                let kind = usize::from(kind);
                self.wanted[kind].all = on;
                self.core.watch(&TYPES[kind], self.wanted[kind].clone());
                self.forget(kind);
            }
            Step::Up => drop(self.up()),
            Step::Say => drop(self.say()),
            Step::Down => drop(self.down()),
            Step::Decide => drop(self.decide()),
            Step::Break => {
                self.core.disconnected();
                self.stream = Self::stream(self.protocol);
                self.up.clear();
                self.down.clear();
                self.said.clear();
                self.answered.clear();
                self.core.connected();
                self.set();
            }
        }
    }

    /// What is no longer subscribed to is dropped by the client itself.
    fn forget(&mut self, kind: usize) {
        let wanted = &self.wanted[kind];
        self.has.retain(|(k, name), _| *k != kind || wanted.contains(name));
    }

    fn settle(&mut self) {
        self.set();
        for _ in 0..10_000 {
            let moved = [self.up(), self.say(), self.down(), self.decide()];
            if moved == [false; 4] {
                return;
            }
        }
        panic!("the exchange does not end");
    }

    fn check(&self) {
        for (kind, type_url) in TYPES.iter().enumerate() {
            for name in 0..6 {
                let key = (kind, format!("r{name}"));
                let has = self.has.get(&key);
                let truth = self.truth.get(&(kind, name)).filter(|_| self.wanted[kind].contains(&key.1));
                match truth {
                    Some(&BAD) => {}
                    Some(mark) => {
                        assert_eq!(
                            has.map(Vec::as_slice),
                            Some(value(kind, name, *mark)),
                            "{} {} is up to date",
                            type_url.short(),
                            key.1
                        );
                    }
                    // In SotW a named type keeps what is deleted until its parent goes.
                    None if self.protocol == Protocol::Sotw && !type_url.is_full_state() => {}
                    None => assert_eq!(has, None, "{} {} is gone", type_url.short(), key.1),
                }
            }
        }
        let answered: BTreeSet<_> = self.answered.iter().cloned().collect();
        assert_eq!(answered.len(), self.answered.len(), "no response is answered twice");
        assert_eq!(answered, self.said, "every response is answered");
    }
}

fn run(protocol: Protocol, steps: Vec<Step>) {
    let mut world = World::new(protocol);
    for step in steps {
        world.step(step);
    }
    world.settle();
    world.check();
}

/// As many random cases as this, each time the same ones.
fn converges(protocol: Protocol) {
    let config = ProptestConfig {
        cases: CASES,
        rng_seed: RngSeed::Fixed(1),
        failure_persistence: None,
        ..Default::default()
    };
    let ran = Cell::new(0);
    let all = TestRunner::new(config).run(&steps(), |steps| {
        ran.set(ran.get() + 1);
        run(protocol, steps);
        Ok(())
    });
    all.unwrap_or_else(|error| panic!("{error}"));
    assert!(ran.get() >= CASES, "{} cases ran", ran.get());
}

#[test]
fn delta_converges() {
    converges(Protocol::Delta);
}

#[test]
fn state_of_the_world_converges() {
    converges(Protocol::Sotw);
}
