use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use prost::Message as _;
use rand::{Rng, SeedableRng, rngs::StdRng};

use super::*;
use crate::pb::envoy::config::cluster::v3::{Cluster, cluster};
use crate::pb::envoy::config::core::v3::Node;
use crate::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use crate::pb::envoy::config::listener::v3::Listener;
use crate::pb::envoy::config::route::v3::RouteConfiguration;
use crate::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse, Resource as Wrapper,
};
use crate::pb::istio::security::Authorization;
use crate::pb::istio::workload::{Address, Service, Workload, address};
use crate::resource::{Resource as _, TypeUrl};

/// One message as the targets read it.
fn step(kind: u8, message: &[u8]) -> Vec<u8> {
    let length = message.len().min(255);
    let mut bytes = vec![kind, u8::try_from(length).unwrap()];
    bytes.extend_from_slice(&message[..length]);
    bytes
}

/// A gRPC frame.
#[cfg(all(feature = "client", feature = "server"))]
fn frame(message: &[u8]) -> Vec<u8> {
    let length = u32::try_from(message.len()).unwrap().to_be_bytes();
    [&[0], length.as_slice(), message].concat()
}

fn strings(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn subscribe(type_url: &TypeUrl, names: &[&str], nonce: &str) -> Vec<u8> {
    DeltaDiscoveryRequest {
        node: Some(Node { id: "n".to_owned(), ..Default::default() }),
        type_url: type_url.to_string(),
        resource_names_subscribe: strings(names),
        response_nonce: nonce.to_owned(),
        ..Default::default()
    }
    .encode_to_vec()
}

fn ask(type_url: &TypeUrl, names: &[&str], nonce: &str) -> Vec<u8> {
    DiscoveryRequest {
        node: Some(Node { id: "n".to_owned(), ..Default::default() }),
        type_url: type_url.to_string(),
        resource_names: strings(names),
        response_nonce: nonce.to_owned(),
        ..Default::default()
    }
    .encode_to_vec()
}

fn eds_cluster(name: &str) -> Cluster {
    let eds = cluster::ClusterDiscoveryType::Type(cluster::DiscoveryType::Eds as i32);
    Cluster { name: name.to_owned(), cluster_discovery_type: Some(eds), ..Default::default() }
}

fn assignment(name: &str) -> ClusterLoadAssignment {
    ClusterLoadAssignment { cluster_name: name.to_owned(), ..Default::default() }
}

/// For each target, inputs that get far into it.
fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let routes = RouteConfiguration { name: "r3".to_owned(), ..Default::default() };
    let listener = Listener { name: "r2".to_owned(), stat_prefix: "s".to_owned(), ..Default::default() };
    let workload = Workload { uid: "k/Pod/n/p".to_owned(), name: "p".to_owned(), ..Default::default() };
    let service = Service { namespace: "n".to_owned(), hostname: "h".to_owned(), ..Default::default() };
    let policy = Authorization { name: "a".to_owned(), namespace: "n".to_owned(), ..Default::default() };
    let wrapped = |any: prost_types::Any| Wrapper {
        name: "r1".to_owned(),
        version: "1".to_owned(),
        resource: Some(any),
        ..Default::default()
    };
    let delta_clusters = DeltaDiscoveryResponse {
        type_url: TypeUrl::CLUSTER.to_string(),
        nonce: "1".to_owned(),
        resources: vec![wrapped(eds_cluster("r1").to_any())],
        removed_resources: strings(&["r4"]),
        ..Default::default()
    };
    let sotw_endpoints = DiscoveryResponse {
        type_url: TypeUrl::ENDPOINTS.to_string(),
        version_info: "1".to_owned(),
        nonce: "1".to_owned(),
        resources: vec![assignment("r1").to_any(), assignment("r2").to_any()],
        ..Default::default()
    };
    let server = [
        step(2, &[1, 1, 9, 1, 17, 1, 25, 1]),
        step(0, &subscribe(&TypeUrl::CLUSTER, &["*"], "")),
        step(0, &subscribe(&TypeUrl::ENDPOINTS, &["r1", "r9"], "")),
        step(1, &ask(&TypeUrl::LISTENER, &[], "")),
        step(1, &ask(&TypeUrl::ROUTE, &["r1"], "")),
        step(2, &[1, 2, 9, 2, 17, 2]),
        step(0, &subscribe(&TypeUrl::CLUSTER, &[], "1")),
        step(1, &ask(&TypeUrl::ROUTE, &["r1"], "2")),
    ];
    let client = [
        step(0, &delta_clusters.encode_to_vec()),
        step(2, &sotw_endpoints.encode_to_vec()),
        step(7, &delta_clusters.encode_to_vec()),
        step(1, &sotw_endpoints.encode_to_vec()),
    ];
    let warming = [
        step(0, &eds_cluster("r1").encode_to_vec()),
        step(16, &listener.encode_to_vec()),
        step(8, &assignment("r1").encode_to_vec()),
        step(24, &routes.encode_to_vec()),
        step(129, &[]),
    ];
    #[allow(unused_mut, reason = "each feature adds its own")]
    let mut seeds = vec![
        ("resources", eds_cluster("c").encode_to_vec()),
        ("resources", assignment("e").encode_to_vec()),
        ("resources", listener.encode_to_vec()),
        ("resources", workload.encode_to_vec()),
        ("resources", Address { r#type: Some(address::Type::Workload(workload)) }.encode_to_vec()),
        ("resources", Address { r#type: Some(address::Type::Service(service)) }.encode_to_vec()),
        ("resources", policy.encode_to_vec()),
        ("server", server.concat()),
        ("client", client.concat()),
        ("warming", warming.concat()),
    ];
    #[cfg(feature = "json")]
    {
        use crate::json::from_yaml;
        use crate::pb::envoy::config::bootstrap::v3::Bootstrap;
        let text = "node: {id: a, metadata: {x: [1, true, null]}}\nlayered_runtime: {layers: [{name: l, static_layer: {a: 1}}]}\n";
        from_yaml::<Bootstrap>(text).unwrap();
        let chain = "name: l\nfilter_chains: [{filters: [{name: f, typed_config: {\"@type\": \
                     type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: s, \
                     idle_timeout: 1.5s}}, {name: g, typed_config: {\"@type\": acme.dev/acme.Thing, value: AQID}}]}]\n";
        seeds.push(("json", text.as_bytes().to_vec()));
        seeds.push(("json", br#"{"node": {"id": "a"}, "stats_flush_interval": "0.250s"}"#.to_vec()));
        let newer = "node: {id: a, invented: 1}\nstatic_resources: {clusters: [{lb_policy: BEST, health_checks: [{name: p}], \
                     transport_socket: {typed_config: {level: 3, \"@type\": acme.dev/acme.Thing}}}]}\n";
        assert_eq!(crate::json::from_yaml_lossy::<Bootstrap>(newer).unwrap().skipped.count(), 4);
        seeds.push(("json", newer.as_bytes().to_vec()));
        let numbers = r#"{"@type": "a/envoy.config.core.v3.Metadata", "typed_filter_metadata": {"m": {"value": "a,bC",
            "@type": "a/google.protobuf.FieldMask"}, "b": {"@type": "a/google.protobuf.StringValue", "@bytes": "Cgk="},
            "r": {"@type": "a/envoy.config.core.v3.RateLimitSettings", "fill_rate": "-Infinity", "max_tokens": "1e3"}}}"#;
        crate::json::from_json::<prost_types::Any>(numbers).unwrap();
        seeds.push(("json", numbers.as_bytes().to_vec()));
        seeds.push(("json", from_yaml::<Listener>(chain).unwrap().encode_to_vec()));
    }
    #[cfg(all(feature = "client", feature = "server"))]
    {
        let delta = [
            frame(&subscribe(&TypeUrl::CLUSTER, &["*"], "")),
            frame(&subscribe(&TypeUrl::ROUTE, &["r1"], "")),
        ];
        let sotw = [frame(&ask(&TypeUrl::LISTENER, &[], "")), frame(&ask(&TypeUrl::ENDPOINTS, &["r1"], ""))];
        seeds.push(("grpc", [&[20], delta.concat().as_slice()].concat()));
        seeds.push(("grpc", [&[255], sotw.concat().as_slice()].concat()));
    }
    seeds
}

#[test]
fn every_target_has_a_seed() {
    for (name, _) in TARGETS {
        assert!(seeds().iter().any(|(target, _)| target == name), "{name}");
    }
}

/// A short run without a fuzzer: every target on every seed, and on mutations of them.
#[test]
fn targets_hold_on_seeds_and_their_mutations() {
    let mut random = StdRng::seed_from_u64(1);
    for (_, seed) in seeds() {
        for round in 0..100 {
            let mut bytes = seed.clone();
            for _ in 0..round % 8 {
                let at = random.random_range(0..bytes.len());
                match random.random_range(0..4) {
                    0 => bytes[at] = random.random(),
                    1 => bytes[at] ^= 1 << random.random_range(0..8),
                    2 => bytes.truncate(at.max(1)),
                    _ => bytes.insert(at, random.random()),
                }
            }
            for (_, target) in TARGETS {
                target(&bytes);
            }
        }
    }
}

/// Findings, kept.
#[test]
fn targets_hold_on_what_was_found() {
    // A workload's name is its uid, which is not field 1.
    resources(&Workload { uid: "u".to_owned(), name: "p".to_owned(), ..Default::default() }.encode_to_vec());
    // An address whose workload is said in two parts, and one that is first a workload, then a service.
    let part =
        |workload: Workload| Address { r#type: Some(address::Type::Workload(workload)) }.encode_to_vec();
    let uid = part(Workload { uid: "u".to_owned(), ..Default::default() });
    let name = part(Workload { name: "p".to_owned(), ..Default::default() });
    let service = Service { namespace: "n".to_owned(), hostname: "h".to_owned(), ..Default::default() };
    let service = Address { r#type: Some(address::Type::Service(service)) }.encode_to_vec();
    resources(&[uid.clone(), name.clone()].concat());
    resources(&[uid.clone(), service.clone()].concat());
    resources(&[uid, service, name].concat());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, rng_seed: RngSeed::Fixed(5), failure_persistence: None, ..Default::default() })]

    #[test]
    fn arbitrary_bytes_are_harmless(data in prop::collection::vec(any::<u8>(), 0..400)) {
        for (_, target) in TARGETS {
            target(&data);
        }
    }

    #[test]
    fn arbitrary_requests_are_harmless(
        steps in prop::collection::vec((any::<u8>(), prop::collection::vec("[*a-c]?|r[0-7]", 0..4), any::<u8>()), 0..30),
    ) {
        let types = [TypeUrl::CLUSTER, TypeUrl::ENDPOINTS, TypeUrl::LISTENER, TypeUrl::ROUTE];
        let mut data = Vec::new();
        for (kind, names, pick) in steps {
            let type_url = types[usize::from(pick % 4)].to_string();
            let response_nonce = if pick > 128 { format!("{:x}", pick % 16) } else { String::new() };
            let (some, rest) = names.split_at(names.len() / 2);
            let message = match kind % 4 {
                0 => DeltaDiscoveryRequest {
                    type_url,
                    resource_names_subscribe: some.to_vec(),
                    resource_names_unsubscribe: rest.to_vec(),
                    response_nonce,
                    ..Default::default()
                }
                .encode_to_vec(),
                1 => DiscoveryRequest { type_url, resource_names: names, response_nonce, ..Default::default() }
                    .encode_to_vec(),
                _ => names.iter().flat_map(|n| n.bytes()).chain([pick, kind]).collect(),
            };
            data.extend(step(kind, &message));
        }
        server(&data);
    }
}
