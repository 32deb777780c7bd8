//! What is wrong with a resource is a typed error that names it, whoever sent it; nothing panics, nothing explodes.
//!
//! Here is what decoding refuses. What the protocol refuses is in the statements (`s24`, `s26`), who may be which node and
//! what a server does with floods and huge requests in `end_to_end` and beside the server's code.

use mesh_xds::pb::envoy::config::cluster::v3::Cluster;
use mesh_xds::pb::envoy::config::core::v3::{Metadata, TypedExtensionConfig};
use mesh_xds::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use mesh_xds::pb::envoy::config::listener::v3::{Filter, FilterChain, Listener, filter};
use mesh_xds::pb::envoy::config::rbac::v3::Permission;
use mesh_xds::resource::{ResourceError, decode, peek_name};
use mesh_xds::server::{EncodedResource, Snapshot};
use mesh_xds::{Any, Resource, TypeUrl};
use prost::Message as _;

fn cluster(name: &str) -> Cluster {
    Cluster { name: name.to_owned(), alt_stat_name: "s".to_owned(), ..Default::default() }
}

/// A field with a length, the length being a lie if that is wanted.
fn field(number: u8, length: u64, bytes: &[u8]) -> Vec<u8> {
    let mut out = vec![number << 3 | 2];
    prost::encoding::encode_varint(length, &mut out);
    out.extend_from_slice(bytes);
    out
}

fn nested(number: u8, depth: usize) -> Vec<u8> {
    (0..depth).fold(Vec::new(), |inner, _| field(number, inner.len() as u64, &inner))
}

fn of<T: Resource>(value: Vec<u8>) -> Any {
    Any { type_url: T::TYPE.as_str().to_owned(), value }
}

#[test]
fn a_wrong_type_url_names_both_types() {
    let wrong = cluster("c").to_any();
    let error = decode::<Listener>(&wrong).unwrap_err();
    assert_eq!(
        error,
        ResourceError::WrongType {
            expected: TypeUrl::LISTENER.to_string(),
            actual: TypeUrl::CLUSTER.to_string()
        }
    );
    assert_eq!(error.reason(), "wrong_type");
    // Not even a type URL: another prefix, none, nothing.
    for url in ["envoy.config.cluster.v3.Cluster", "type.example/envoy.config.cluster.v3.Cluster", ""] {
        let any = Any { type_url: url.to_owned(), value: wrong.value.clone() };
        assert_eq!(decode::<Cluster>(&any).unwrap_err().reason(), "wrong_type", "{url}");
    }
}

#[test]
fn a_resource_without_a_name_is_refused() {
    assert_eq!(EncodedResource::new(&cluster("")).unwrap_err().reason(), "no_name");
    assert_eq!(Snapshot::builder().add(&ClusterLoadAssignment::default()).unwrap_err().reason(), "no_name");
}

#[test]
fn of_two_resources_with_one_name_the_last_counts() {
    let (first, last) = (cluster("c"), Cluster { alt_stat_name: "t".to_owned(), ..cluster("c") });
    let snapshot = Snapshot::builder().add(&first).unwrap().add(&last).unwrap().build();
    let alone = Snapshot::builder().add(&last).unwrap().build();
    let set = snapshot.get(&TypeUrl::CLUSTER).unwrap();
    assert_eq!(set.resources().len(), 1);
    assert_eq!(set.resources(), alone.get(&TypeUrl::CLUSTER).unwrap().resources());
}

#[test]
fn every_truncation_is_an_error_or_a_shorter_message() {
    let whole = cluster("some-name").encode_to_vec();
    for cut in 0..whole.len() {
        let any = of::<Cluster>(whole[..cut].to_vec());
        match (peek_name(&Cluster::TYPE, &any.value), decode::<Cluster>(&any)) {
            (Ok(name), Ok(cluster)) => assert_eq!(name, cluster.name),
            // The name was there and something behind it is not.
            (_, Err(error)) => assert_eq!(error.reason(), "decode", "{cut}"),
            (Err(error), Ok(_)) => assert_eq!((error.reason(), cut), ("no_name", 0)),
        }
    }
}

#[test]
fn hostile_protobuf_is_an_error() {
    let cases: [(&str, Vec<u8>); 8] = [
        ("a length beyond the end", field(1, 1 << 40, b"c")),
        ("a length of 2^64 - 1", field(1, u64::MAX, b"c")),
        ("a varint of eleven bytes", [0x80; 11].to_vec()),
        ("field number zero", vec![0x02, 0]),
        ("a group that never ends", vec![0x0b, 0x0b, 0x0b]),
        ("groups in groups", vec![0x0b; 100_000]),
        ("a group that ends another", vec![0x0b, 0x14]),
        ("a name that is no text", field(1, 2, &[0xc3, 0x28])),
    ];
    for (what, bytes) in cases {
        assert_eq!(peek_name(&Cluster::TYPE, &bytes).unwrap_err().reason(), "decode", "{what}");
        assert_eq!(decode::<Cluster>(&of::<Cluster>(bytes)).unwrap_err().reason(), "decode", "{what}");
    }
}

#[test]
fn nesting_has_an_end() {
    // Permission.not_rule is a Permission: whatever the depth, an error and no overflow.
    for depth in [101, 5_000] {
        let error = Permission::decode(nested(8, depth).as_slice()).unwrap_err();
        assert!(error.to_string().contains("recursion limit"), "{error}");
    }
    assert!(Permission::decode(nested(8, 90).as_slice()).is_ok());
}

#[test]
fn a_huge_resource_costs_no_more_than_its_bytes() {
    let name = "n".repeat(16 << 20);
    let encoded = EncodedResource::new(&cluster(&name)).unwrap();
    assert!(encoded.size() < 3 * name.len(), "the name is in the message and beside it");
    assert_eq!(encoded.name().len(), name.len());
}

#[test]
fn a_bad_extension_does_not_hide_the_resource_around_it() {
    let broken = Any { type_url: "type.googleapis.com/acme.Thing".to_owned(), value: vec![0xff; 3] };
    let filter =
        Filter { name: "f".to_owned(), config_type: Some(filter::ConfigType::TypedConfig(broken.clone())) };
    let chain = FilterChain { filters: vec![filter], ..Default::default() };
    let listener = Listener { name: "l".to_owned(), filter_chains: vec![chain], ..Default::default() };
    let back = decode::<Listener>(&listener.to_any()).unwrap();
    let kept = &back.filter_chains[0].filters[0].config_type;
    assert_eq!(kept.as_ref(), Some(&filter::ConfigType::TypedConfig(broken.clone())), "byte for byte");
    let extension = TypedExtensionConfig { name: "e".to_owned(), typed_config: Some(broken.clone()) };
    let encoded = EncodedResource::new(&extension).unwrap().to_any().unwrap();
    assert_eq!(decode::<TypedExtensionConfig>(&encoded).unwrap().typed_config, Some(broken));
}

#[cfg(feature = "json")]
mod text {
    use mesh_xds::json::{JsonError, Redaction, any_to_value, from_json, from_value, from_yaml, to_value};
    use mesh_xds::pb::envoy::config::bootstrap::v3::Bootstrap;

    use super::*;

    #[test]
    fn deep_text_is_an_error() {
        let json = format!(
            "{{\"node\": {{\"metadata\": {{\"a\": {}1{}}}}}}}",
            "[".repeat(100_000),
            "]".repeat(100_000)
        );
        assert_eq!(from_json::<Bootstrap>(&json).unwrap_err().reason(), "invalid");
        let yaml = format!("node: {{metadata: {{a: {}1{}}}}}", "[".repeat(100_000), "]".repeat(100_000));
        assert_eq!(from_yaml::<Bootstrap>(&yaml).unwrap_err().reason(), "invalid");
    }

    #[test]
    fn a_yaml_bomb_is_an_error() {
        let mut bomb = "node:\n  metadata:\n    a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for level in 1..12 {
            let below = format!("*a{}", level - 1);
            bomb += &format!("    a{level}: &a{level} [{}]\n", [below.as_str(); 10].join(", "));
        }
        assert_eq!(from_yaml::<Bootstrap>(&bomb).unwrap_err().reason(), "invalid");
    }

    #[test]
    fn what_is_wrong_is_said_with_path_and_line() {
        let cases = [
            ("node:\n  id: a\n  id: b\n", 3, "node: \"id\" is said twice"),
            ("node:\n  id: [a]\n", 2, "node.id"),
            (
                "admin:\n  address:\n    socket_address: {port_value: 80}\n    pipe: {path: /p}\n",
                4,
                "admin.address.pipe: another field of the oneof",
            ),
            (
                "static_resources:\n  clusters:\n  - name: a\n    type: STATIK\n",
                4,
                "static_resources.clusters[0].type",
            ),
            (
                "static_resources:\n  clusters:\n  - name: a\n  - {name: b, type: 1, lb_policy: true}\n",
                4,
                "clusters[1].lb_policy",
            ),
            ("stats_flush_interval: 1\n", 1, "stats_flush_interval"),
            ("node: {id: a\n", 1, "unclosed"),
        ];
        for (text, at, what) in cases {
            let error = from_yaml::<Bootstrap>(text).unwrap_err();
            let JsonError::Invalid { line, .. } = &error else { panic!("{text}: {error}") };
            assert_eq!(*line, at, "{text}: {error}");
            assert!(error.to_string().contains(what), "{text}: {error}");
        }
    }

    #[test]
    fn an_unknown_type_is_named_with_path_and_line() {
        let text = "static_resources:\n  clusters:\n  - name: a\n    transport_socket:\n      name: t\n      typed_config:\n        \
                    \"@type\": type.googleapis.com/acme.Thing\n        level: 3\n";
        let error = from_yaml::<Bootstrap>(text).unwrap_err().to_string();
        assert!(
            error.contains("acme.Thing") && error.contains("clusters[0].transport_socket.typed_config"),
            "{error}"
        );
        assert!(error.starts_with("line 7"), "{error}");
    }

    #[test]
    fn messages_in_extensions_in_messages_are_cut_somewhere() {
        // Each extension starts a decoder with a limit of its own; a hundred times the limit must not reach the stack's end.
        let mut any = Any { type_url: "type.googleapis.com/acme.Thing".to_owned(), value: vec![1] };
        for _ in 0..100 {
            // Value.list_value -> ListValue.values -> Value -> ..., and at the bottom nothing.
            let list = Any {
                type_url: "type.googleapis.com/google.protobuf.ListValue".to_owned(),
                value: (0..48).fold(Vec::new(), |inner, _| {
                    let value = field(6, inner.len() as u64, &inner);
                    field(1, value.len() as u64, &value)
                }),
            };
            let metadata = Metadata {
                typed_filter_metadata: [("down".to_owned(), any), ("list".to_owned(), list)].into(),
                ..Default::default()
            };
            any = Any {
                type_url: "type.googleapis.com/envoy.config.core.v3.Metadata".to_owned(),
                value: metadata.encode_to_vec(),
            };
        }
        let printed = any_to_value(&any, Redaction::On);
        assert!(printed["typed_filter_metadata"]["down"]["typed_filter_metadata"].is_object());
        assert!(to_value(&any, Redaction::Off).is_ok());
    }

    #[test]
    fn what_is_no_message_of_its_type_stays_bytes() {
        let broken = of::<Listener>(vec![0xff, 0xfe]);
        let outer = TypedExtensionConfig { name: "e".to_owned(), typed_config: Some(broken) };
        let printed = to_value(&outer, Redaction::Off).unwrap();
        assert_eq!(printed["typed_config"]["value"], "//4=");
        assert_eq!(from_value::<TypedExtensionConfig>(&printed), Ok(outer));
    }
}
