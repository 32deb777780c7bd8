//! What a stream may not do.

use std::sync::Arc;

use mesh_xds::TypeUrl;
use mesh_xds::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};
use mesh_xds::server::{DeltaStream, Request, ServerStream, StreamError, StreamRules};

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
    // What a client claims to have counts too.
    let mut stream = DeltaStream::new(tight);
    let claims = DeltaDiscoveryRequest {
        type_url: TypeUrl::CLUSTER.to_string(),
        initial_resource_versions: (0..10).map(|n| (n.to_string(), String::new())).collect(),
        ..Default::default()
    };
    assert_eq!(stream.on_request(NOW, claims).unwrap_err().reason(), "too_many_names");
}
