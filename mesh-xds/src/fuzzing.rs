//! Entry points for fuzzers and for tests that replay their findings. Not part of the API.
//!
//! Each takes arbitrary bytes and must neither panic nor use memory beyond a small multiple of them.

use std::sync::Arc;
use std::time::Duration;

use prost::Message as _;
use prost_types::Any;

use crate::client::{ClientCore, ClientResponse, Names, Protocol};
use crate::pb::envoy::config::cluster::v3::Cluster;
use crate::pb::envoy::config::core::v3::Node;
use crate::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use crate::pb::envoy::config::listener::v3::Listener;
use crate::pb::envoy::config::route::v3::RouteConfiguration;
use crate::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use crate::resource::{Resource, TypeUrl, decode, peek_name};
use crate::server::{DeltaStream, EncodedResource, Snapshot, SotwStream, StreamRules};

/// Every way in which bytes become a resource.
pub fn resources(data: &[u8]) {
    for type_url in [Cluster::TYPE, ClusterLoadAssignment::TYPE, Listener::TYPE, RouteConfiguration::TYPE] {
        let _ = peek_name(&type_url, data);
        let any = Any { type_url: type_url.as_str().to_owned(), value: data.to_vec() };
        let _ = EncodedResource::from_any(&any).map(|resource| resource.to_any());
        let _ = (decode::<Cluster>(&any), decode::<Listener>(&any), decode::<RouteConfiguration>(&any));
    }
    for type_url in [TypeUrl::WORKLOAD_ADDRESS, TypeUrl::AUTHORIZATION, TypeUrl::NAME_TABLE] {
        let _ = peek_name(&type_url, data);
    }
}

/// JSON and YAML, and printing whatever decodes.
#[cfg(feature = "json")]
pub fn json(data: &[u8]) {
    use crate::json::{Redaction, any_to_value, from_json, from_yaml};
    use crate::pb::envoy::config::bootstrap::v3::Bootstrap;
    if let Ok(text) = std::str::from_utf8(data) {
        let _ = from_json::<Bootstrap>(text);
        let _ = from_yaml::<Bootstrap>(text);
    }
    let any = Any { type_url: Listener::TYPE.as_str().to_owned(), value: data.to_vec() };
    let _ = any_to_value(&any, Redaction::On);
}

/// Cuts the input into messages: a length byte, then that many bytes.
fn messages(mut data: &[u8]) -> impl Iterator<Item = (u8, &[u8])> {
    std::iter::from_fn(move || {
        let (&[kind, length], rest) = data.split_first_chunk::<2>()?;
        let (message, rest) = rest.split_at(usize::from(length).min(rest.len()));
        data = rest;
        Some((kind, message))
    })
}

/// Both server cores under an arbitrary sequence of requests, snapshots and reads.
///
/// # Panics
/// When a core answers without end or gives two responses one nonce.
pub fn server(data: &[u8]) {
    let rules = Arc::new(StreamRules::default().with_empty_unknowns());
    let (mut delta, mut sotw) = (DeltaStream::new(rules.clone()), SotwStream::new(rules));
    let mut nonces = std::collections::BTreeSet::new();
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
fn snapshot(data: &[u8]) -> Snapshot {
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

/// Both client cores under arbitrary responses.
///
/// # Panics
/// When a response is answered twice.
pub fn client(data: &[u8]) {
    for protocol in [Protocol::Delta, Protocol::Sotw] {
        let mut core = ClientCore::new(protocol, Node::default());
        core.watch(&TypeUrl::CLUSTER, Names::all());
        core.watch(&TypeUrl::ENDPOINTS, Names::of(["r1", "r2"]));
        core.connected();
        let mut responses = 0;
        let mut requests = 0;
        for (step, (kind, message)) in messages(data).enumerate() {
            let now = Duration::from_secs(step as u64);
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
                core.decide(now, delivery.id, Vec::new());
            }
            let _ = core.on_timer(now);
            while core.next_request(now).is_some() {
                requests += 1;
            }
        }
        assert!(requests <= responses + 2, "one answer per response, and the first requests");
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proptest::test_runner::RngSeed;

    proptest! {
        #![proptest_config(ProptestConfig { cases: 500, rng_seed: RngSeed::Fixed(5), failure_persistence: None, ..Default::default() })]

        #[test]
        fn arbitrary_bytes_are_harmless(data in prop::collection::vec(any::<u8>(), 0..400)) {
            super::resources(&data);
            super::server(&data);
            super::client(&data);
            #[cfg(feature = "json")]
            super::json(&data);
        }

        #[test]
        fn arbitrary_requests_are_harmless(
            steps in prop::collection::vec((any::<u8>(), prop::collection::vec("[*a-c]?|r[0-7]", 0..4), any::<u8>()), 0..30),
        ) {
            use prost::Message as _;
            let types = [crate::TypeUrl::CLUSTER, crate::TypeUrl::ENDPOINTS, crate::TypeUrl::LISTENER, crate::TypeUrl::ROUTE];
            let mut data = Vec::new();
            for (kind, names, pick) in steps {
                let type_url = types[usize::from(pick % 4)].to_string();
                let (some, rest) = names.split_at(names.len() / 2);
                let message = match kind % 4 {
                    0 => super::DeltaDiscoveryRequest {
                        type_url,
                        resource_names_subscribe: some.to_vec(),
                        resource_names_unsubscribe: rest.to_vec(),
                        response_nonce: if pick > 128 { format!("{:x}", pick % 16) } else { String::new() },
                        ..Default::default()
                    }
                    .encode_to_vec(),
                    1 => super::DiscoveryRequest {
                        type_url,
                        resource_names: names,
                        response_nonce: if pick > 128 { format!("{:x}", pick % 16) } else { String::new() },
                        ..Default::default()
                    }
                    .encode_to_vec(),
                    _ => names.iter().flat_map(|n| n.bytes()).chain([pick, kind]).collect(),
                };
                let length = message.len().min(255);
                data.push(kind);
                data.push(u8::try_from(length).unwrap_or(u8::MAX));
                data.extend(&message[..length]);
            }
            super::server(&data);
        }
    }
}
