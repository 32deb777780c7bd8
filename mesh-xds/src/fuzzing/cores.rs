//! The protocol cores under arbitrary sequences of what the other side may say.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use prost::Message as _;

use super::messages;
use crate::client::{ClientCore, ClientResponse, Names, Protocol, Rejection, Warming};
use crate::pb::envoy::config::cluster::v3::Cluster;
use crate::pb::envoy::config::core::v3::Node;
use crate::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use crate::pb::envoy::config::listener::v3::Listener;
use crate::pb::envoy::config::route::v3::RouteConfiguration;
use crate::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use crate::resource::{Resource as _, TypeUrl};
use crate::server::{DeltaStream, EncodedResource, Snapshot, SotwStream, StreamRules};

/// Both server cores under an arbitrary sequence of requests, snapshots and reads.
///
/// # Panics
/// When a core answers without end or gives two responses one nonce.
pub fn server(data: &[u8]) {
    let rules = Arc::new(StreamRules::default().with_empty_unknowns());
    let (mut delta, mut sotw) = (DeltaStream::new(rules.clone()), SotwStream::new(rules));
    let mut nonces = BTreeSet::new();
    for (step, (kind, message)) in messages(data).enumerate() {
        let now = Duration::from_secs(step as u64);
        match kind % 4 {
            0 => drop(DeltaDiscoveryRequest::decode(message).map(|request| delta.on_request(now, request))),
            1 => drop(DiscoveryRequest::decode(message).map(|request| sotw.on_request(now, request))),
            2 => {
                let snapshot = Arc::new(snapshot(message));
                delta.on_snapshot(snapshot.clone());
                sotw.on_snapshot(snapshot);
            }
            _ => {}
        }
        for _ in 0..1_000 {
            let (a, b) = (delta.next_response(now), sotw.next_response(now));
            if a.is_none() && b.is_none() {
                break;
            }
            for (stream, response) in [(0, a), (1, b)] {
                let Some(response) = response else { continue };
                assert!(nonces.insert((stream, response.nonce)), "a nonce is given once");
            }
        }
        assert_eq!(delta.next_response(now), None, "the server falls silent");
        assert_eq!(sotw.next_response(now), None, "the server falls silent");
    }
}

/// A few resources whose names and versions are the bytes.
pub(super) fn snapshot(data: &[u8]) -> Snapshot {
    let mut builder = Snapshot::builder().with_type(TypeUrl::CLUSTER).with_type(TypeUrl::LISTENER);
    for pair in data.chunks(2) {
        let (name, mark) = (format!("r{}", pair[0] % 8), format!("{:?}", pair.get(1)));
        let any = match pair[0] / 8 % 4 {
            0 => Cluster { name, alt_stat_name: mark, ..Default::default() }.to_any(),
            1 => ClusterLoadAssignment { cluster_name: name, ..Default::default() }.to_any(),
            2 => Listener { name, stat_prefix: mark, ..Default::default() }.to_any(),
            _ => {
                RouteConfiguration { name, internal_only_headers: vec![mark], ..Default::default() }.to_any()
            }
        };
        if let Ok(resource) = EncodedResource::from_any(&any) {
            builder.insert(Arc::new(resource));
        }
    }
    builder.build()
}

/// Both client cores under arbitrary responses, decisions and broken connections.
///
/// # Panics
/// When a response is answered twice.
pub fn client(data: &[u8]) {
    for protocol in [Protocol::Delta, Protocol::Sotw] {
        let mut core = ClientCore::new(protocol, Node::default());
        core.watch(&TypeUrl::CLUSTER, Names::all());
        core.watch(&TypeUrl::ENDPOINTS, Names::of(["r1", "r2"]));
        core.connected();
        let (mut connections, mut responses, mut requests) = (1, 0, 0);
        for (step, (kind, message)) in messages(data).enumerate() {
            let now = Duration::from_secs(step as u64);
            if kind % 8 == 7 {
                core.disconnected();
                core.connected();
                connections += 1;
            }
            let response = match protocol {
                Protocol::Delta => {
                    DeltaDiscoveryResponse::decode(message).ok().map(|r| ClientResponse::Delta(Box::new(r)))
                }
                Protocol::Sotw => {
                    DiscoveryResponse::decode(message).ok().map(|r| ClientResponse::Sotw(Box::new(r)))
                }
            };
            let Some(response) = response else { continue };
            responses += 1;
            if let Some(delivery) = core.on_response(now, response)
                && kind % 2 == 0
            {
                let bad = delivery.resources.first().filter(|_| kind % 4 == 0);
                let rejection = bad.map(|r| Rejection { name: r.name.clone(), reason: "no".to_owned() });
                core.decide(now, delivery.id, rejection.into_iter().collect());
            }
            let _ = core.on_timer(now);
            while core.next_request(now).is_some() {
                requests += 1;
            }
        }
        assert!(
            requests <= responses + 2 * connections,
            "one answer per response, and the first requests of each connection"
        );
    }
}

/// Dependency order under arbitrary resources, removals and time.
///
/// # Panics
/// When something waits that has no timer and no name to follow.
pub fn warming(data: &[u8]) {
    let mut warming = Warming::new();
    for (step, (kind, message)) in messages(data).enumerate() {
        let now = Duration::from_secs(step as u64);
        let gone: Vec<String> = (kind >= 128).then(|| format!("r{}", kind % 8)).into_iter().collect();
        let _ = match kind / 8 % 4 {
            0 => warming.on_clusters(now, decoded(message), &gone),
            1 => warming.on_endpoints(now, decoded(message), &gone),
            2 => warming.on_listeners(now, decoded(message), &gone),
            _ => warming.on_routes(now, decoded(message), &gone),
        };
        let _ = warming.on_timer(now);
        let follow = warming.follow();
        assert!(follow.endpoints_again.iter().all(|name| follow.endpoints.contains(name) || name.is_empty()));
        let (clusters, listeners) = warming.waiting();
        assert!(clusters.is_empty() || !follow.endpoints.is_empty(), "a cluster waits for endpoints");
        assert_eq!(
            warming.next_waiting().is_none(),
            clusters.is_empty() && listeners.is_empty(),
            "what waits has a name"
        );
    }
}

fn decoded<T: prost::Message + Default>(message: &[u8]) -> Vec<Arc<T>> {
    T::decode(message).ok().map(Arc::new).into_iter().collect()
}
