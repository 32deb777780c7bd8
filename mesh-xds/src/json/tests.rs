use prost::Message as _;
use prost_types::{Any, Duration};
use serde_json::json;

use super::*;
use crate::pb::envoy::config::bootstrap::v3::Bootstrap;
use crate::pb::envoy::config::cluster::v3::Cluster;
use crate::pb::envoy::config::core::v3::{DataSource, Metadata, data_source};
use crate::pb::envoy::extensions::transport_sockets::tls::v3::{Secret, TlsCertificate, secret};
use crate::resource::Resource as _;

const BOOTSTRAP: &str = r#"
node: { id: a, cluster: b, metadata: { z: 1, y: 2, x: [true, "t"] } }
static_resources:
  listeners:
  - name: in
    address: { socket_address: { address: 127.0.0.1, port_value: 8080 } }
    filter_chains:
    - filters:
      - name: hcm
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: in
          route_config:
            virtual_hosts:
            - name: all
              domains: ["*"]
              routes:
              - match: { prefix: / }
                route: { cluster: backend, timeout: 0.25s }
                typed_per_filter_config:
                  b: { "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router }
                  a: { "@type": type.googleapis.com/envoy.extensions.filters.http.buffer.v3.Buffer }
          http_filters:
          - name: router
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router
  clusters:
  - name: backend
    type: STATIC
    connect_timeout: 1s
"#;

#[test]
fn a_bootstrap_reads_prints_and_reads_again() {
    let bootstrap: Bootstrap = from_yaml(BOOTSTRAP).unwrap();
    let json = to_value(&bootstrap, Redaction::Off).unwrap();
    let chain = &json["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"];
    let route = &chain["route_config"]["virtual_hosts"][0]["routes"][0]["route"];
    assert_eq!(route["timeout"], "0.250s");
    assert_eq!(from_json::<Bootstrap>(&json.to_string()).unwrap(), bootstrap);
    assert_eq!(from_value::<Bootstrap>(&json).unwrap(), bootstrap);
}

#[test]
fn bytes_are_the_same_every_time() {
    let first = from_yaml::<Bootstrap>(BOOTSTRAP).unwrap().encode_to_vec();
    for _ in 0..20 {
        assert_eq!(from_yaml::<Bootstrap>(BOOTSTRAP).unwrap().encode_to_vec(), first);
    }
}

#[test]
fn errors_have_path_and_line() {
    let check = |error: JsonError, at: usize, needle: &str, what: &str| {
        let JsonError::Invalid { path, line, .. } = &error else { panic!("{error}") };
        assert_eq!(*line, at, "{error}");
        assert!(path.contains(needle), "{error}");
        assert!(error.to_string().contains(what), "{error}");
    };
    let wrong = BOOTSTRAP.replace("connect_timeout: 1s", "connect_timeot: 1s");
    check(from_yaml::<Bootstrap>(&wrong).unwrap_err(), 30, "static_resources.clusters[0]", "connect_timeot");
    let wrong = BOOTSTRAP.replace("stat_prefix: in", "stat_prefx: in");
    check(from_yaml::<Bootstrap>(&wrong).unwrap_err(), 12, "filters[0].typed_config", "stat_prefx");
    let wrong = BOOTSTRAP.replace("connect_timeout: 1s", "connect_timeout: soon");
    check(
        from_yaml::<Bootstrap>(&wrong).unwrap_err(),
        30,
        "static_resources.clusters[0].connect_timeout",
        "",
    );
    let wrong = "{\n \"name\": \"c\",\n \"connect_timeout\": \"soon\"\n}";
    check(from_json::<Cluster>(wrong).unwrap_err(), 3, "connect_timeout", "");
    check(from_json::<Cluster>("{").unwrap_err(), 1, "", "EOF");
}

#[test]
fn an_unknown_any_keeps_its_bytes() {
    let unknown = Any { type_url: "type.googleapis.com/acme.Thing".into(), value: vec![1, 2, 255] };
    // Once directly, once inside an Any that is known.
    let nested =
        Metadata { typed_filter_metadata: [("x".to_owned(), unknown.clone())].into(), ..Default::default() };
    let known = Any {
        type_url: "type.googleapis.com/envoy.config.core.v3.Metadata".into(),
        value: nested.encode_to_vec(),
    };
    let outer = Metadata {
        typed_filter_metadata: [("a".to_owned(), unknown.clone()), ("b".to_owned(), known)].into(),
        ..Default::default()
    };
    let json = to_value(&outer, Redaction::On).unwrap();
    let base64 = json!({ "@type": "type.googleapis.com/acme.Thing", "value": "AQL/" });
    assert_eq!(json["typed_filter_metadata"]["a"], base64);
    assert_eq!(json["typed_filter_metadata"]["b"]["typed_filter_metadata"]["x"], base64);
    assert_eq!(from_value::<Metadata>(&json).unwrap(), outer);
    assert_eq!(from_json::<Metadata>(&json.to_string()).unwrap(), outer);
    assert_eq!(any_to_value(&unknown, Redaction::On), base64);
}

#[test]
fn broken_bytes_of_a_known_type_print_as_bytes() {
    let broken = Any { type_url: Cluster::TYPE.as_str().to_owned(), value: vec![0xff] };
    assert_eq!(any_to_value(&broken, Redaction::On)["value"], "/w==");
}

#[test]
fn bytes_of_a_type_with_a_value_of_its_own_are_not_taken_for_it() {
    let names = ["envoy.config.core.v3.HeaderValue", "google.protobuf.StringValue", "google.protobuf.Any"];
    for name in names.map(|name| format!("type.googleapis.com/{name}")) {
        // Field 1 is a text and cut off.
        let broken = Any { type_url: name, value: vec![0x0a, 9, b'x'] };
        let json = any_to_value(&broken, Redaction::On);
        assert_eq!(json, json!({ "@type": broken.type_url, "@bytes": "Cgl4" }));
        assert_eq!(from_value::<Any>(&json), Ok(broken.clone()));
        assert_eq!(from_yaml::<Any>(&json.to_string()), Ok(broken));
    }
}

#[test]
fn numbers_that_are_not_finite_are_texts() {
    use crate::pb::envoy::config::core::v3::RateLimitSettings;
    for (number, text) in [(f64::INFINITY, "Infinity"), (f64::NEG_INFINITY, "-Infinity"), (f64::NAN, "NaN")] {
        let settings = RateLimitSettings { fill_rate: Some(number), ..Default::default() };
        let any = Any::from_msg(&settings).unwrap();
        let wrapped = Any::from_msg(&number).unwrap();
        // Keys with a slash, a tilde and a dot, and one that is longer than what is shown of keys.
        let long = "k".repeat(300);
        let entries = [("a/b~c.d", any.clone()), (long.as_str(), any.clone()), ("w", wrapped)];
        let outer = Metadata {
            typed_filter_metadata: entries.map(|(key, any)| (key.to_owned(), any)).into(),
            ..Default::default()
        };
        let printed = to_value(&outer, Redaction::On).unwrap();
        let entries = &printed["typed_filter_metadata"];
        assert_eq!(entries["a/b~c.d"]["fill_rate"], text);
        assert_eq!(entries[&long]["fill_rate"], text);
        assert_eq!(entries["w"]["value"], text);
        assert_eq!(from_value::<Metadata>(&printed), Ok(outer));
    }
}

#[test]
fn what_has_no_json_prints_as_bytes_where_it_stands() {
    use prost_types::{FieldMask, Timestamp, Value, value::Kind};
    let any = |name: &str, value: Vec<u8>| Any { type_url: format!("type.googleapis.com/{name}"), value };
    let endless = Value { kind: Some(Kind::NumberValue(f64::INFINITY)) };
    let values = [
        any("google.protobuf.Value", Vec::new()),
        any("google.protobuf.Value", endless.encode_to_vec()),
        any("google.protobuf.Duration", Duration { seconds: 315_576_000_001, nanos: 0 }.encode_to_vec()),
        any("google.protobuf.Timestamp", Timestamp { seconds: i64::MAX, nanos: 0 }.encode_to_vec()),
        any("google.protobuf.FieldMask", FieldMask { paths: vec!["notSnake".to_owned()] }.encode_to_vec()),
    ];
    for without in values {
        let outer = Metadata {
            filter_metadata: [("beside".to_owned(), prost_types::Struct::default())].into(),
            typed_filter_metadata: [("a".to_owned(), without.clone())].into(),
        };
        let json = to_value(&outer, Redaction::Off).unwrap();
        assert!(json["filter_metadata"]["beside"].is_object(), "{json}");
        assert!(json["typed_filter_metadata"]["a"]["@bytes"].is_string(), "{json}");
        assert_eq!(from_value::<Metadata>(&json), Ok(outer));
    }
    // Outside of an extension it is an error that says where.
    let cluster = Cluster {
        connect_timeout: Some(Duration { seconds: -315_576_000_001, nanos: 0 }),
        ..Default::default()
    };
    let error = to_value(&cluster, Redaction::Off).unwrap_err();
    assert_eq!(
        (error.reason(), error.to_string().contains("connect_timeout: ")),
        ("unprintable", true),
        "{error}"
    );
}

#[test]
fn well_known_types_in_an_any_stand_under_value() {
    let structure = prost_types::Struct { fields: [("a".to_owned(), true.into())].into() };
    let structure = Any {
        type_url: "type.googleapis.com/google.protobuf.Struct".into(),
        value: structure.encode_to_vec(),
    };
    let json = json!({ "@type": structure.type_url, "value": { "a": true } });
    assert_eq!(any_to_value(&structure, Redaction::On), json);
    assert_eq!(from_value::<Any>(&json), Ok(structure));
    // C++ leaves out the value of `Empty`, Go writes it.
    let url = "type.googleapis.com/google.protobuf.Empty";
    let empty = Any { type_url: url.to_owned(), value: Vec::new() };
    for json in [json!({ "@type": url }), json!({ "@type": url, "value": {} })] {
        assert_eq!(from_value::<Any>(&json), Ok(empty.clone()), "{json}");
    }
}

#[test]
fn a_struct_that_looks_like_an_any_is_left_alone() {
    let metadata = "filter_metadata: { a: { \"@type\": acme.dev/acme.Thing, value: AQL/ }, b: { \"@type\": \
                    type.googleapis.com/google.protobuf.Empty, value: {} }, c: {} }\n\
                    typed_filter_metadata: { d: { \"@type\": acme.dev/acme.Thing, value: AQL/ } }\n";
    let read: Metadata = from_yaml(metadata).unwrap();
    assert_eq!(read.filter_metadata["a"].fields.len(), 2);
    assert_eq!(read.filter_metadata["b"].fields.len(), 2);
    assert_eq!(read.typed_filter_metadata["d"].value, [1, 2, 255]);
    let printed = to_value(&read, Redaction::Off).unwrap();
    assert_eq!(printed["filter_metadata"]["b"].as_object().unwrap().len(), 2);
    assert_eq!(from_value::<Metadata>(&printed), Ok(read));
}

#[test]
fn an_any_that_holds_nothing_is_an_empty_object() {
    let nothing =
        Metadata { typed_filter_metadata: [("a".to_owned(), Any::default())].into(), ..Default::default() };
    let printed = to_value(&nothing, Redaction::Off).unwrap();
    assert_eq!(printed, json!({ "typed_filter_metadata": { "a": {} } }));
    assert_eq!(from_value::<Metadata>(&printed), Ok(nothing));
}

#[test]
fn nested_any_bombs_are_cut() {
    let mut any = Any { type_url: "type.googleapis.com/acme.Thing".into(), value: vec![1] };
    for _ in 0..5_000 {
        any = Any { type_url: "type.googleapis.com/google.protobuf.Any".into(), value: any.encode_to_vec() };
    }
    assert!(any_to_value(&any, Redaction::On).is_object());
}

#[test]
fn secrets_are_redacted() {
    let inline = |s: &str| DataSource {
        specifier: Some(data_source::Specifier::InlineString(s.to_owned())),
        ..Default::default()
    };
    let secret = Secret {
        name: "default".into(),
        r#type: Some(secret::Type::TlsCertificate(TlsCertificate {
            certificate_chain: Some(inline("chain")),
            private_key: Some(inline("hush")),
            ..Default::default()
        })),
    };
    let json = any_to_value(&secret.to_any(), Redaction::On);
    assert_eq!(json["tls_certificate"]["private_key"]["inline_string"], REDACTED);
    assert_eq!(json["tls_certificate"]["certificate_chain"]["inline_string"], "chain");
    assert!(!json.to_string().contains("hush"));
    let open = to_value(&secret, Redaction::Off).unwrap();
    assert_eq!(open["tls_certificate"]["private_key"]["inline_string"], "hush");
}

#[test]
fn well_known_types_inside_any() {
    let duration = Any {
        type_url: "type.googleapis.com/google.protobuf.Duration".into(),
        value: Duration { seconds: 3, nanos: 0 }.encode_to_vec(),
    };
    assert_eq!(any_to_value(&duration, Redaction::On)["value"], "3s");
}
