//! Resources with a time to live: who is told of it, and who refreshes it when.

use std::sync::Arc;
use std::time::Duration;

use mesh_xds::TypeUrl;
use mesh_xds::client::{ClientCore, ClientRequest, ClientResponse, LapseReason, Names, Protocol};
use mesh_xds::pb::envoy::config::core::v3::Node;
use mesh_xds::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse, Resource as Wrapper,
};
use mesh_xds::server::{EncodedResource, Request, ServerStream, Snapshot};
use mesh_xds::{Any, Resource};
use prost::Message as _;

use crate::support::*;

const CDS: TypeUrl = TypeUrl::CLUSTER;
const EDS: TypeUrl = TypeUrl::ENDPOINTS;
const BOTH: [Protocol; 2] = [Protocol::Delta, Protocol::Sotw];
const TTL: Duration = Duration::from_secs(10);
const WRAPPER: &str = "type.googleapis.com/envoy.service.discovery.v3.Resource";

fn lasting<T: Resource>(resource: &T, ttl: Option<Duration>) -> Arc<EncodedResource> {
    let resource = EncodedResource::new(resource).unwrap();
    Arc::new(match ttl {
        Some(ttl) => resource.with_ttl(ttl).unwrap(),
        None => resource,
    })
}

/// One cluster and the endpoints of one, each with this time to live.
fn snapshot(ttl: Option<Duration>) -> Snapshot {
    let mut builder = Snapshot::builder();
    builder.insert(lasting(&cluster("c", "1"), ttl));
    builder.insert(lasting(&cluster("steady", "1"), None));
    builder.insert(lasting(&endpoints("e", 1), ttl));
    builder.build()
}

fn announcing(features: &[&str]) -> Node {
    let features = features.iter().map(|f| format!("xds.config.supports-resource-{f}")).collect();
    Node { client_features: features, ..node() }
}

/// A stream that asks for clusters by wildcard and for the endpoints `e`.
fn asked(protocol: Protocol, node: &Node, ttl: Option<Duration>) -> ServerStream {
    let mut stream = match protocol {
        Protocol::Delta => ServerStream::delta(rules()),
        Protocol::Sotw => ServerStream::sotw(rules()),
    };
    stream.on_snapshot(Arc::new(snapshot(ttl)));
    for (type_url, names) in [(CDS, &[][..]), (EDS, &["e"])] {
        let (node, type_url, names) = (Some(node.clone()), type_url.to_string(), strings(names));
        let request = match protocol {
            Protocol::Delta => Request::Delta(Box::new(DeltaDiscoveryRequest {
                node,
                type_url,
                resource_names_subscribe: names,
                ..Default::default()
            })),
            Protocol::Sotw => Request::Sotw(Box::new(DiscoveryRequest {
                node,
                type_url,
                resource_names: names,
                ..Default::default()
            })),
        };
        stream.on_request(NOW, request).unwrap();
    }
    stream
}

#[test]
fn delta_refreshes_at_half_of_it_without_the_resource() {
    let mut stream = asked(Protocol::Delta, &announcing(&["ttl"]), Some(TTL));
    let (cds, eds) = (stream.next_response(NOW).unwrap(), stream.next_response(NOW).unwrap());
    assert_eq!((names(&cds), names(&eds)), (vec!["c", "steady"], vec!["e"]));
    assert_eq!(cds.to_delta("").resources[0].ttl.map(|t| t.seconds), Some(10));
    assert_eq!(stream.next_timer(), Some(NOW + TTL / 2));
    let beat = stream.next_response(NOW + TTL / 2).unwrap();
    assert!(beat.resources.is_empty());
    let wire = beat.to_delta("");
    let [resource] = &wire.resources[..] else { panic!("{wire:?}") };
    assert_eq!((resource.name.as_str(), &resource.resource), ("c", &None));
    assert_eq!(resource.ttl.map(|t| t.seconds), Some(10));
    assert_eq!(stream.next_response(NOW + TTL / 2).unwrap().heartbeats.len(), 1, "and the endpoints");
    assert_eq!(stream.next_response(NOW + TTL / 2), None);
    assert_eq!(stream.next_timer(), Some(NOW + TTL));
}

#[test]
fn state_of_the_world_refreshes_in_wrappers_and_says_root_types_whole() {
    let mut stream = asked(Protocol::Sotw, &announcing(&["ttl", "in-sotw"]), Some(TTL));
    let cds = stream.next_response(NOW).unwrap().to_sotw("");
    assert_eq!([&*cds.resources[0].type_url, &*cds.resources[1].type_url], [WRAPPER, CDS.as_str()]);
    stream.next_response(NOW).unwrap();
    assert_eq!(stream.next_response(NOW), None);
    assert_eq!(stream.next_timer(), Some(NOW + TTL / 2));
    let again = stream.next_response(NOW + TTL / 2).unwrap();
    assert_eq!(names(&again), ["c", "steady"], "what is not said would be deleted");
    assert_eq!(again.version, cds.version_info);
    let beat = stream.next_response(NOW + TTL / 2).unwrap();
    assert_eq!((beat.type_url.short(), beat.resources.len(), beat.heartbeats.len()), ("EDS", 0, 1));
    assert_eq!(stream.next_response(NOW + TTL / 2), None);
}

#[test]
fn who_does_not_announce_it_gets_the_resource_without() {
    for (protocol, features) in [
        (Protocol::Delta, &[][..]),
        (Protocol::Sotw, &[]),
        (Protocol::Sotw, &["ttl"]),
        (Protocol::Sotw, &["in-sotw"]),
    ] {
        let mut stream = asked(protocol, &announcing(features), Some(TTL));
        for _ in 0..2 {
            let response = stream.next_response(NOW).unwrap();
            assert!(response.to_delta("").resources.iter().all(|r| r.ttl.is_none()));
            let plain = response.to_sotw("").resources;
            assert!(plain.iter().all(|any| any.type_url == response.type_url.as_str()), "{plain:?}");
        }
        assert_eq!(stream.next_timer(), None);
        assert_eq!(stream.next_response(NOW + TTL), None);
    }
}

#[test]
fn another_time_is_said_and_none_ends_the_refreshing() {
    for protocol in BOTH {
        let mut stream = asked(protocol, &announcing(&["ttl", "in-sotw"]), Some(TTL));
        while stream.next_response(NOW).is_some() {}
        stream.on_snapshot(Arc::new(snapshot(Some(TTL * 2))));
        let said: Vec<_> = std::iter::from_fn(|| stream.next_response(NOW)).collect();
        assert!(said.iter().all(|r| r.resources.iter().any(|r| r.ttl() == Some(TTL * 2))), "{said:?}");
        assert_eq!(said.len(), 2);
        assert_eq!(stream.next_timer(), Some(NOW + TTL));
        stream.on_snapshot(Arc::new(snapshot(None)));
        assert_eq!(std::iter::from_fn(|| stream.next_response(NOW)).count(), 2, "it stays from now on");
        assert_eq!(stream.next_timer(), None);
    }
}

#[test]
fn a_client_that_comes_back_is_refreshed_at_once() {
    let held = snapshot(Some(TTL));
    let version = held.get(&CDS).unwrap().get("c").unwrap().version().to_string();
    let mut server = Delta::new(held);
    server.send(DeltaDiscoveryRequest {
        node: Some(announcing(&["ttl"])),
        type_url: CDS.to_string(),
        resource_names_subscribe: strings(&["c"]),
        initial_resource_versions: [("c".to_owned(), version)].into(),
        ..Default::default()
    });
    let beat = server.next().unwrap();
    assert_eq!((beat.resources.len(), beat.heartbeats.len()), (0, 1), "how much time is left nobody knows");
    server.ack(&beat);
    assert_eq!(server.next(), None);
    assert_eq!(server.0.next_timer(), Some(NOW + TTL / 2));
}

/// Fields of a wrapper may stand in any order.
fn in_order(mut response: DiscoveryResponse) -> DiscoveryResponse {
    for any in response.resources.iter_mut().filter(|any| any.type_url == WRAPPER) {
        any.value = Wrapper::decode(&*any.value).unwrap().encode_to_vec();
    }
    response
}

#[test]
fn what_is_encoded_is_what_the_message_says() {
    for protocol in BOTH {
        for features in [&["ttl", "in-sotw"][..], &[]] {
            let mut stream = asked(protocol, &announcing(features), Some(TTL));
            for now in [NOW, NOW, NOW + TTL / 2, NOW + TTL / 2] {
                let Some(response) = stream.next_response(now) else { continue };
                let bytes = stream.encode(&response).concat();
                match protocol {
                    Protocol::Delta => {
                        let message = DeltaDiscoveryResponse::decode(&*bytes).unwrap();
                        assert_eq!(message, response.to_delta(""));
                    }
                    Protocol::Sotw => {
                        let message = DiscoveryResponse::decode(&*bytes).unwrap();
                        assert_eq!(in_order(message), in_order(response.to_sotw("")));
                    }
                }
            }
        }
    }
}

/// Lets a server and a client exchange everything they have to say.
fn exchange(now: Duration, stream: &mut ServerStream, core: &mut ClientCore) {
    loop {
        while let Some(request) = core.next_request(now) {
            let request = match request {
                ClientRequest::Delta(r) => Request::Delta(r),
                ClientRequest::Sotw(r) => Request::Sotw(r),
            };
            stream.on_request(now, request).unwrap();
        }
        let Some(response) = stream.next_response(now) else { return };
        let response = match core.protocol() {
            Protocol::Delta => ClientResponse::Delta(Box::new(response.to_delta(""))),
            Protocol::Sotw => ClientResponse::Sotw(Box::new(response.to_sotw(""))),
        };
        if let Some(delivery) = core.on_response(now, response) {
            core.decide(now, delivery.id, Vec::new());
        }
    }
}

#[test]
fn between_our_client_and_our_server_nothing_expires_while_the_server_lives() {
    for protocol in BOTH {
        let mut stream = match protocol {
            Protocol::Delta => ServerStream::delta(rules()),
            Protocol::Sotw => ServerStream::sotw(rules()),
        };
        stream.on_snapshot(Arc::new(snapshot(Some(TTL))));
        let mut core = ClientCore::new(protocol, node());
        core.watch(&CDS, Names::all());
        core.watch(&EDS, Names::of(["e"]));
        core.connected();
        let mut now = NOW;
        for _ in 0..100 {
            exchange(now, &mut stream, &mut core);
            assert_eq!(core.on_timer(now), []);
            now += Duration::from_secs(1);
        }
        // The server falls silent: what has a time to live goes, the rest stays.
        let gone: Vec<_> = core.on_timer(now + TTL).into_iter().map(|l| (l.name, l.reason)).collect();
        assert_eq!(gone, [("c".to_owned(), LapseReason::Expired), ("e".to_owned(), LapseReason::Expired)]);
        let (_, clusters) = core.resources().find(|(t, _)| **t == CDS).unwrap();
        assert_eq!(clusters.keys().collect::<Vec<_>>(), ["steady"]);
    }
}

#[test]
fn a_time_to_live_changes_the_version_and_not_the_content() {
    let plain = EncodedResource::new(&cluster("c", "1")).unwrap();
    let lasting = plain.clone().with_ttl(TTL).unwrap();
    assert_ne!(plain.version(), lasting.version());
    assert_ne!(lasting.version(), plain.clone().with_ttl(TTL * 2).unwrap().version());
    let content: Any = cluster("c", "1").to_any();
    assert_eq!((plain.to_any().unwrap(), lasting.to_any().unwrap()), (content.clone(), content));
}
