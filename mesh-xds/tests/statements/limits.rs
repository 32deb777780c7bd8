//! What a stream may not do.

use std::sync::Arc;

use mesh_xds::TypeUrl;
use mesh_xds::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};
use mesh_xds::server::{DeltaStream, Request, ServerStream, Snapshot, StreamError, StreamRules};

use crate::support::*;

fn delta(type_url: &str, names: &[&str]) -> Request {
    Request::Delta(Box::new(DeltaDiscoveryRequest {
        node: Some(node()),
        type_url: type_url.to_owned(),
        resource_names_subscribe: strings(names),
        ..Default::default()
    }))
}

fn sotw(type_url: &str, names: &[&str]) -> Request {
    Request::Sotw(Box::new(DiscoveryRequest {
        node: Some(node()),
        type_url: type_url.to_owned(),
        resource_names: strings(names),
        ..Default::default()
    }))
}

type Ask = fn(&str, &[&str]) -> Request;
type Open = fn(Arc<StreamRules>) -> ServerStream;
const BOTH: [(Open, Ask); 2] = [(ServerStream::delta, delta), (ServerStream::sotw, sotw)];

#[test]
fn a_request_names_its_type() {
    for (open, ask) in BOTH {
        let mut aggregated = open(rules());
        assert_eq!(aggregated.on_request(NOW, ask("", &[])), Err(StreamError::NoType));
        let mut single = open(rules()).for_type(TypeUrl::ENDPOINTS);
        single.on_request(NOW, ask("", &["a"])).unwrap();
        single.on_request(NOW, ask(TypeUrl::ENDPOINTS.as_str(), &["a"])).unwrap();
        assert_eq!(single.status()[0].0, TypeUrl::ENDPOINTS);
        let wrong = single.on_request(NOW, ask(TypeUrl::CLUSTER.as_str(), &[])).unwrap_err();
        assert_eq!(wrong.reason(), "wrong_type");
    }
}

#[test]
fn of_the_words_of_a_rejection_the_beginning_is_kept() {
    for (open, ask) in BOTH {
        let mut stream = open(rules());
        let snapshot = Snapshot::builder().add(&cluster("a", "1")).unwrap().build();
        stream.on_snapshot(Arc::new(snapshot));
        stream.on_request(NOW, ask(TypeUrl::CLUSTER.as_str(), &[])).unwrap();
        let nonce = stream.next_response(NOW).unwrap().nonce;
        let words = error(&"ä".repeat(1 << 20));
        let nack = match ask(TypeUrl::CLUSTER.as_str(), &[]) {
            Request::Delta(r) => Request::Delta(Box::new(DeltaDiscoveryRequest {
                response_nonce: nonce,
                error_detail: words,
                ..*r
            })),
            Request::Sotw(r) => {
                Request::Sotw(Box::new(DiscoveryRequest { response_nonce: nonce, error_detail: words, ..*r }))
            }
        };
        stream.on_request(NOW, nack).unwrap();
        let error = stream.status().remove(0).1.error.unwrap();
        assert_eq!(error.message, "ä".repeat(2048));
        assert!(error.message.capacity() <= 4096, "the rest of the text is not kept");
    }
}

#[test]
fn an_answer_to_nothing_is_no_answer() {
    let mut stream = DeltaStream::new(rules());
    stream.on_snapshot(Arc::new(Snapshot::builder().add(&cluster("a", "1")).unwrap().build()));
    let answer = |nonce: &str, words: Option<_>| DeltaDiscoveryRequest {
        type_url: TypeUrl::CLUSTER.to_string(),
        response_nonce: nonce.to_owned(),
        error_detail: words,
        ..Default::default()
    };
    stream.on_request(NOW, answer("", None)).unwrap();
    let response = stream.next_response(NOW).unwrap();
    stream.on_request(NOW, answer(&response.nonce, error("no"))).unwrap();
    for invented in ["7", "0", "+1", "01", "no number", &"f".repeat(1000)] {
        stream.on_request(NOW, answer(invented, None)).unwrap();
        stream.on_request(NOW, answer(invented, error("neither"))).unwrap();
    }
    let status = stream.status().next().unwrap().1;
    assert_eq!(status.error.as_ref().unwrap().message, "no");
    assert_eq!((status.nacks, status.nonce_acked.as_str(), status.acked_at), (1, "", None));
}

#[test]
fn names_and_types_are_bounded() {
    let mut tight = StreamRules::default();
    (tight.max_names, tight.max_types) = (3, 2);
    let tight = Arc::new(tight);
    for (open, ask) in BOTH {
        let mut stream = open(tight.clone());
        stream.on_request(NOW, ask("x", &["a", "b", "c"])).unwrap();
        let many = stream.on_request(NOW, ask("x", &["a", "b", "c", "d"]));
        assert_eq!(many, Err(StreamError::TooManyNames { type_url: "x".to_owned(), limit: 3 }));
        let mut stream = open(tight.clone());
        stream.on_request(NOW, ask("x", &["a"])).unwrap();
        stream.on_request(NOW, ask("y", &["a"])).unwrap();
        assert_eq!(stream.on_request(NOW, ask("z", &["a"])), Err(StreamError::TooManyTypes { limit: 2 }));
    }
    // However few and however many types: what counts is the memory.
    let mut short = StreamRules::default();
    short.max_name_bytes = 20;
    let short = Arc::new(short);
    for (open, ask) in BOTH {
        let mut stream = open(short.clone());
        stream.on_request(NOW, ask("x", &["0123456789"])).unwrap();
        let long = stream.on_request(NOW, ask("y", &["012345678"]));
        assert_eq!(long, Err(StreamError::TooManyBytes { type_url: "y".to_owned(), bytes: 21, limit: 20 }));
        assert_eq!(long.unwrap_err().reason(), "too_many_bytes");
        let long = open(short.clone()).on_request(NOW, ask(&"ü".repeat(500), &["a"])).unwrap_err();
        assert!(long.to_string().len() < 300, "{long}");
    }
    // What is remembered of a wildcard that was left counts as well.
    let mut stream = DeltaStream::new(short);
    let ask =
        |type_url: &str, claim: &[&str], subscribe: &[&str], unsubscribe: &[&str]| DeltaDiscoveryRequest {
            type_url: type_url.to_owned(),
            initial_resource_versions: claim.iter().map(|n| ((*n).to_owned(), String::new())).collect(),
            resource_names_subscribe: strings(subscribe),
            resource_names_unsubscribe: strings(unsubscribe),
            ..Default::default()
        };
    stream.on_request(NOW, ask("x", &["0123456789"], &[], &[])).unwrap();
    stream.on_request(NOW, ask("x", &[], &[], &["*"])).unwrap();
    let long = stream.on_request(NOW, ask("y", &[], &["012345678"], &[]));
    assert_eq!(long, Err(StreamError::TooManyBytes { type_url: "y".to_owned(), bytes: 21, limit: 20 }));
    // What a client claims to have counts too.
    let mut stream = DeltaStream::new(tight);
    let claims = DeltaDiscoveryRequest {
        type_url: TypeUrl::CLUSTER.to_string(),
        initial_resource_versions: (0..10).map(|n| (n.to_string(), String::new())).collect(),
        ..Default::default()
    };
    assert_eq!(stream.on_request(NOW, claims).unwrap_err().reason(), "too_many_names");
}
