//! What protobuf-JSON says about each kind of value, in JSON, in YAML and as a value that was parsed already; what is read
//! of documents that are newer than this crate, and what in a message is reported as unknown.

use mesh_xds::json::{
    JsonError, MAX_LISTED, Redaction, SkipReason, UnknownKind, any_to_value, from_json, from_json_lossy,
    from_value, from_value_lossy, from_yaml, from_yaml_lossy, to_value, unknown_parts,
};
use mesh_xds::pb::envoy::admin::v3::ServerInfo;
use mesh_xds::pb::envoy::config::bootstrap::v3::Bootstrap;
use mesh_xds::pb::envoy::config::cluster::v3::Cluster;
use mesh_xds::pb::envoy::config::core::v3::{Metadata, Node, TypedExtensionConfig};
use mesh_xds::server::{EncodedResource, Snapshot};
use mesh_xds::{Any, Resource as _, TypeUrl};
use prost::{Message, Name};
use serde_json::{Value, json};

/// Reads in all three ways; they agree.
fn read<T: Message + Name + Default>(text: &str) -> Result<T, JsonError> {
    let message = from_json::<T>(text);
    // As bytes, in which also what is not a number is equal.
    let yaml = from_yaml::<T>(text).map(|message| message.encode_to_vec());
    let value = serde_json::from_str::<Value>(text);
    let value = value.map(|value| from_value::<T>(&value).map(|message| message.encode_to_vec()));
    match &message {
        Ok(message) => {
            assert_eq!(yaml, Ok(message.encode_to_vec()), "{text} as YAML");
            assert_eq!(value.expect("it is JSON"), Ok(message.encode_to_vec()), "{text} as a value");
        }
        Err(error) => {
            assert!(yaml.is_err(), "{text} as YAML, but {error}");
            // A key that is said twice has gone when there is a value.
            assert!(
                error.to_string().contains("said twice") || value.is_ok_and(|v| v.is_err()),
                "{text}: {error}"
            );
        }
    }
    message
}

/// One value in a field, and what it prints as; `Err` is a part of the error.
fn field<T: Message + Name + Default>(name: &str, cases: &[(&str, Result<Value, &str>)]) {
    for (text, expected) in cases {
        let read = read::<T>(&format!("{{\n  \"{name}\": {text}\n}}"));
        match (read, expected) {
            (Ok(message), Ok(value)) => {
                let printed = to_value(&message, Redaction::Off).unwrap();
                assert_eq!(printed.get(name).unwrap_or(&Value::Null), value, "{name}: {text}");
            }
            (Err(error), Err(part)) => {
                let JsonError::Invalid { path, line, column, message } = &error else { panic!("{error}") };
                assert!(message.contains(part), "{name}: {text}: {error}");
                assert_eq!((path.as_str(), *line), (name, 2), "{text}: {error}");
                assert!(*column > 2, "{text}: {error}");
            }
            (read, _) => panic!("{name}: {text}: {:?}, not {expected:?}", read.err()),
        }
    }
}

#[test]
fn integers() {
    use mesh_xds::pb::envoy::admin::v3::Memory;
    use mesh_xds::pb::envoy::config::core::v3::SocketAddress;
    let max = "18446744073709551615";
    field::<Memory>(
        "allocated",
        &[
            (max, Ok(json!(max))),
            ("\"18446744073709551615\"", Ok(json!(max))),
            ("1e3", Ok(json!("1000"))),
            ("\"1e3\"", Ok(json!("1000"))),
            ("\"7.0\"", Ok(json!("7"))),
            ("18446744073709551616", Err("out of range")),
            ("\"18446744073709551616\"", Err("out of range")),
            ("1.8446744073709552e19", Err("out of range")),
            ("\"9007199254740993.0\"", Err("exactly")),
            ("-1", Err("-1 is out of range")),
            ("\"-1\"", Err("-1 is out of range")),
            ("1.5", Err("1.5 is no integer")),
            ("\"1.5\"", Err("1.5 is no integer")),
            ("\"\"", Err("no number")),
            ("\" 1\"", Err("no number")),
            ("\"+1\"", Err("no number")),
            ("\"01\"", Err("no number")),
            ("\"0x1\"", Err("no number")),
            ("true", Err("boolean")),
            ("[1]", Err("sequence")),
        ],
    );
    field::<SocketAddress>(
        "port_value",
        &[
            ("4294967295", Ok(json!(4_294_967_295_u32))),
            ("1.0", Ok(json!(1))),
            ("\"7\"", Ok(json!(7))),
            ("4294967296", Err("4294967296 is out of range")),
            ("-1", Err("-1 is out of range")),
        ],
    );
    // A wrapper is the number itself.
    field::<Cluster>(
        "per_connection_buffer_limit_bytes",
        &[
            ("0", Ok(json!(0))),
            ("null", Ok(Value::Null)),
            ("-1", Err("-1 is out of range")),
            ("{\"value\": 1}", Err("map")),
        ],
    );
}

#[test]
fn floats() {
    use mesh_xds::pb::envoy::config::core::v3::RateLimitSettings;
    use mesh_xds::pb::envoy::r#type::v3::Percent;
    let cases = [
        ("\"NaN\"", Ok(json!("NaN"))),
        ("\"Infinity\"", Ok(json!("Infinity"))),
        ("\"-Infinity\"", Ok(json!("-Infinity"))),
        ("\"1.5\"", Ok(json!(1.5))),
        ("1", Ok(json!(1.0))),
        ("\"inf\"", Err("no number")),
        ("\"nan\"", Err("no number")),
        ("\"+1.5\"", Err("no number")),
        ("\"1.\"", Err("no number")),
        ("\"\"", Err("no number")),
        ("\"1e400\"", Err("out of range")),
    ];
    field::<Percent>("value", &cases);
    field::<RateLimitSettings>("fill_rate", &cases);
    for text in ["NaN", "Infinity", "1e400"] {
        assert!(from_json::<Percent>(&format!("{{\"value\": {text}}}")).is_err(), "{text} is no JSON");
    }
    // YAML has numbers of its own for them.
    for (text, path) in
        [("id: a\nmetadata: { a: .nan }", "metadata.a"), ("metadata: { a: [1,\n .inf] }", "metadata.a[1]")]
    {
        let error = from_yaml::<Node>(text).unwrap_err().to_string();
        assert!(error.starts_with("line 2") && error.contains(&format!(" {path}: non-finite")), "{error}");
    }
}

#[test]
fn durations_and_timestamps() {
    use mesh_xds::pb::envoy::admin::v3::UpdateFailureState;
    field::<Cluster>(
        "connect_timeout",
        &[
            ("\"1s\"", Ok(json!("1s"))),
            ("\"-0.5s\"", Ok(json!("-0.500s"))),
            ("\"0.000000001s\"", Ok(json!("0.000000001s"))),
            ("\"315576000000s\"", Ok(json!("315576000000s"))),
            ("null", Ok(Value::Null)),
            ("\"315576000001s\"", Err("out of range")),
            ("\"-315576000001s\"", Err("out of range")),
            ("\"1.0000000001s\"", Err("finer than a nanosecond")),
            ("\"1m\"", Err("\"1m\" is no duration")),
            ("\"1.5\"", Err("\"1.5\" is no duration")),
            ("\"\"", Err("\"\" is no duration")),
            ("[\"1s\"]", Err("sequence")),
        ],
    );
    field::<UpdateFailureState>(
        "last_update_attempt",
        &[
            ("\"0001-01-01T00:00:00Z\"", Ok(json!("0001-01-01T00:00:00Z"))),
            ("\"9999-12-31T23:59:59.999999999Z\"", Ok(json!("9999-12-31T23:59:59.999999999Z"))),
            ("\"2020-01-01T00:00:00+02:00\"", Ok(json!("2019-12-31T22:00:00Z"))),
            ("\"0001-01-01T00:00:00+01:00\"", Err("out of range")),
            ("\"10000-01-01T00:00:00Z\"", Err("invalid date")),
            ("\"2020-02-30T00:00:00Z\"", Err("failed to parse")),
            ("\"2016-12-31T23:59:60Z\"", Err("leap second")),
            ("\"2020-01-01T00:00:00.1234567890Z\"", Err("finer than a nanosecond")),
            ("\"2020-01-01T00:00:00\"", Err("end of string")),
            ("\"2020-01-01 00:00:00Z\"", Err("expected 'T'")),
        ],
    );
}

#[test]
fn field_masks_in_an_extension() {
    let url = "type.googleapis.com/google.protobuf.FieldMask";
    let mask = |value: &str| read::<Any>(&json!({ "@type": url, "value": value }).to_string());
    let read = mask("a,someField.otherField").unwrap();
    let paths = prost_types::FieldMask::decode(read.value.as_slice()).unwrap().paths;
    assert_eq!(paths, ["a", "some_field.other_field"]);
    assert_eq!(any_to_value(&read, Redaction::On)["value"], "a,someField.otherField");
    assert!(mask("snake_case").unwrap_err().to_string().contains("value: invalid field mask"));
}

#[test]
fn texts_bytes_and_bools() {
    use mesh_xds::pb::envoy::config::core::v3::{DataSource, SocketAddress};
    field::<DataSource>(
        "inline_bytes",
        &[
            ("\"-_8\"", Ok(json!("+/8="))),
            ("\"AQ\"", Ok(json!("AQ=="))),
            ("\"A\"", Err("base64")),
            ("\"A Q==\"", Err("base64")),
        ],
    );
    field::<SocketAddress>(
        "ipv4_compat",
        &[("true", Ok(json!(true))), ("\"true\"", Err("text")), ("1", Err("integer"))],
    );
    // JSON knows no unquoted text, YAML does.
    assert!(from_json::<Cluster>("{\"name\": 1.10}").is_err());
    for (text, name) in [("1.10", "1.10"), ("007", "007"), ("true", "true"), ("!!str 5", "5"), ("~", "")] {
        assert_eq!(from_yaml::<Cluster>(&format!("name: {text} # comment")).unwrap().name, name, "{text}");
    }
    let anchored = from_yaml::<Metadata>("filter_metadata: { a: &a { x: 1 }, b: *a }").unwrap();
    assert_eq!(anchored.filter_metadata["a"], anchored.filter_metadata["b"]);
    let named = from_yaml::<Node>("id: &n 1.50\ncluster: *n").unwrap();
    assert_eq!((named.id.as_str(), named.cluster.as_str()), ("1.50", "1.50"));
}

#[test]
fn a_secret_in_the_wrong_place_is_not_repeated() {
    use mesh_xds::pb::envoy::extensions::transport_sockets::tls::v3::Secret;
    for key in ["hush", "a \", expected b", "line\nline"] {
        let secret = json!({ "name": "s", "tls_certificate": { "private_key": key } }).to_string();
        let error = read::<Secret>(&secret).unwrap_err().to_string();
        assert!(
            error.ends_with("tls_certificate.private_key: invalid type: text, expected a map"),
            "{error}"
        );
    }
}

#[test]
fn enums_by_name_and_by_number() {
    field::<Cluster>(
        "lb_policy",
        &[
            ("\"RANDOM\"", Ok(json!("RANDOM"))),
            ("3", Ok(json!("RANDOM"))),
            ("77", Ok(json!(77))),
            ("-1", Ok(json!(-1))),
            ("4294967296", Err("out of range")),
            ("1.5", Err("floating point")),
            ("\"random\"", Err("unknown enum value \"random\"")),
            ("\"3\"", Err("unknown enum value \"3\"")),
        ],
    );
}

#[test]
fn what_is_said_twice_is_refused() {
    let any = "\"@type\": \"type.googleapis.com/envoy.config.cluster.v3.Cluster\"";
    let cases = [
        ("{\"id\": \"a\",\n \"id\": \"b\"}".to_owned(), ".: \"id\" is said twice"),
        ("{\"metadata\": {\"a\": 1,\n \"a\": 2}}".to_owned(), "metadata: \"a\" is said twice"),
        (
            "{\"user_agent_name\": \"a\",\n \"userAgentName\": \"b\"}".to_owned(),
            "userAgentName: the same field as \"user_agent_name\"",
        ),
        (
            "{\"user_agent_version\": \"1\",\n \"user_agent_build_version\": {}}".to_owned(),
            "of the oneof \"user_agent_version_type\"",
        ),
    ];
    for (text, part) in cases {
        let error = read::<Node>(&text).unwrap_err().to_string();
        assert!(error.contains(part) && error.starts_with("line 2"), "{text}: {error}");
    }
    // Wherever the type stands, in the extension the same rules hold.
    for text in [
        format!(
            "{{\"typed_filter_metadata\": {{\"k\": {{{any}, \"connect_timeout\": \"1s\",\n \"connectTimeout\": \"2s\"}}}}}}"
        ),
        format!(
            "{{\"typed_filter_metadata\": {{\"k\": {{\"connect_timeout\": \"1s\",\n \"connectTimeout\": \"2s\", {any}}}}}}}"
        ),
    ] {
        let error = read::<Metadata>(&text).unwrap_err().to_string();
        assert!(error.contains("typed_filter_metadata.k.connectTimeout: the same field"), "{error}");
        assert!(error.starts_with("line 2"), "{error}");
    }
    // What is not set does not count.
    read::<Node>("{\"user_agent_version\": \"1\", \"user_agent_build_version\": null}").unwrap();
}

#[test]
fn null_is_the_absence_of_a_field_and_nothing_else() {
    let nothing = "{\"name\": null, \"connect_timeout\": null, \"health_checks\": null, \"type\": null, \"metadata\": null}";
    assert_eq!(read::<Cluster>(nothing), Ok(Cluster::default()));
    let values = read::<Node>("{\"metadata\": {\"a\": null, \"b\": [null]}}").unwrap();
    assert_eq!(to_value(&values, Redaction::On).unwrap()["metadata"], json!({ "a": null, "b": [null] }));
    for (text, path) in [
        ("{\"health_checks\": [{},\n null]}", "health_checks[1]: null"),
        (
            "{\"typed_extension_protocol_options\": {\n\"a.b\": null}}",
            "typed_extension_protocol_options[\"a.b\"]: null",
        ),
    ] {
        let error = read::<Cluster>(text).unwrap_err().to_string();
        assert!(error.contains(path) && error.starts_with("line 2"), "{text}: {error}");
    }
}

#[test]
fn documents_have_a_beginning_and_an_end() {
    for (text, part) in [
        ("", "EOF"),
        ("null", "expected a map"),
        ("[]", "expected a map"),
        ("{\"name\": \"a\"} x", "trailing characters"),
        ("{\"name\": \"a\"}{}", "trailing characters"),
        ("{\"name\": \"a\",}", "trailing comma"),
        ("\u{feff}{}", "expected value"),
        ("{\"name\": \"\\ud800\"}", "hex escape"),
    ] {
        let error = from_json::<Cluster>(text).unwrap_err().to_string();
        assert!(error.contains(part) && error.starts_with("line 1"), "{text}: {error}");
    }
    // In YAML nothing is an empty message, and a byte order mark may stand in front.
    for text in ["", "# nothing\n", "~", "---\n", "\u{feff}", "{}\n...\n"] {
        assert_eq!(from_yaml::<Cluster>(text), Ok(Cluster::default()), "{text:?}");
    }
    assert_eq!(from_yaml::<Cluster>("\u{feff}name: 1.10").unwrap().name, "1.10");
    let error = from_yaml::<Cluster>("name: a\n---\nname: b").unwrap_err().to_string();
    assert!(error.starts_with("line 3") && error.contains("multiple YAML documents"), "{error}");
}

#[test]
fn a_place_is_known_beside_extensions_that_are_bytes() {
    let text = "{\"typed_filter_metadata\": {\"a\": {\"@type\": \"acme.dev/acme.Thing\", \"value\": \"AQ==\"},\n\
                \"b\": {\"transport_socket\": {\n\"nam\": 1}, \"@type\": \"type.googleapis.com/envoy.config.cluster.v3.Cluster\"}}}";
    for error in [from_json::<Metadata>(text).unwrap_err(), from_yaml::<Metadata>(text).unwrap_err()] {
        let error = error.to_string();
        assert!(error.starts_with("line 3"), "{error}");
        assert!(error.ends_with("typed_filter_metadata.b.transport_socket.nam: unknown field"), "{error}");
    }
    let bytes =
        "{\"typed_filter_metadata\": {\"a\": {\n\"value\": \"!\",\n\"@type\": \"acme.dev/acme.Thing\"}}}";
    let error = from_json::<Metadata>(bytes).unwrap_err().to_string();
    assert!(error.starts_with("line 2"), "{error}");
    assert!(error.contains("typed_filter_metadata.a.value: invalid base64"), "{error}");
}

/// Everything that a newer program may print: fields, values of enums, types of extensions.
const NEWER: &str = r#"{
  "name": "c",
  "invented": {"deep": [1, 2]},
  "lb_policy": "BEST",
  "health_checks": [
    {"timeout": "1s", "name": "probe", "tcp_health_check": {}}
  ],
  "protocol_selection": "USE_CONFIGURED_PROTOCOL",
  "typed_extension_protocol_options": {
    "a.b": {"@type": "type.googleapis.com/acme.Options", "level": 3},
    "c.d": {"@type": "type.googleapis.com/acme.Options", "value": "AQ=="}
  },
  "transport_socket": {"name": "t", "typed_config": {
    "sni": "s", "brand_new": true,
    "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext"
  }}
}"#;

#[test]
fn what_is_newer_is_read_without_what_is_unknown() {
    let strict = from_json::<Cluster>(NEWER).unwrap_err().to_string();
    assert!(strict.starts_with("line 3") && strict.ends_with("invented: unknown field"), "{strict}");

    let known = json!({
        "name": "c",
        "health_checks": [{ "timeout": "1s", "tcp_health_check": {} }],
        "typed_extension_protocol_options": {
            "c.d": { "@type": "type.googleapis.com/acme.Options", "value": "AQ==" }
        },
        "transport_socket": { "name": "t", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext", "sni": "s"
        } }
    });
    let expected = [
        "line 3: invented: unknown field",
        "line 4: lb_policy: unknown enum value \"BEST\"",
        "line 6: health_checks[0].name: unknown field",
        "line 10: typed_extension_protocol_options[\"a.b\"]: \"type.googleapis.com/acme.Options\" is not known, so that its JSON \
         cannot become bytes",
        "line 14: transport_socket.typed_config.brand_new: unknown field",
    ];
    let value: Value = serde_json::from_str(NEWER).unwrap();
    for (read, lines) in [
        (from_json_lossy::<Cluster>(NEWER).unwrap(), true),
        (from_yaml_lossy::<Cluster>(NEWER).unwrap(), true),
        (from_value_lossy::<Cluster>(&value).unwrap(), false),
    ] {
        assert_eq!(to_value(&read.message, Redaction::Off).unwrap(), known);
        let mut listed: Vec<String> = read.skipped.listed.iter().map(ToString::to_string).collect();
        let mut expected = expected.map(str::to_owned).to_vec();
        if !lines {
            expected.iter_mut().for_each(|line| *line = line.split_once(": ").unwrap().1.to_owned());
            listed.sort();
            expected.sort();
        }
        assert_eq!((listed, read.skipped.more), (expected, 0));
    }
    let reasons = from_json_lossy::<Cluster>(NEWER).unwrap().skipped;
    assert_eq!(reasons.listed[1].reason, SkipReason::UnknownEnumValue { value: "BEST".to_owned() });
    assert_eq!((reasons.count(), reasons.is_empty()), (5, false));
}

#[test]
fn what_is_known_is_read_in_both_ways_alike() {
    let text = "{\"node\": {\"id\": \"a\"}, \"stats_flush_interval\": \"0.250s\"}";
    let read = from_json_lossy::<Bootstrap>(text).unwrap();
    assert!(read.skipped.is_empty());
    assert_eq!(Ok(read.message), from_json::<Bootstrap>(text));
    // Wrong is not unknown.
    for wrong in [
        "{\"version\": 1}",
        "{\"version\": \"a\", \"version\": \"b\"}",
        "{\"node\": {\"user_agent_name\": \"a\", \"userAgentName\": \"b\"}}",
        "{\"uptime_all_epochs\": \"1m\"}",
        "{\"state\": 1.5}",
        "{\"node\": [1]}",
        "{",
    ] {
        assert!(from_json_lossy::<ServerInfo>(wrong).is_err(), "{wrong}");
    }
    // Items and entries go alone; when nothing is left around an unknown extension there is no message.
    let masks = from_json_lossy::<Cluster>(
        "{\"health_checks\": [{\"transport_socket_match_criteria\": {\"new\": 1}, \"x\": 2}, {}]}",
    );
    assert_eq!(masks.unwrap().message.health_checks.len(), 2);
    let thing = json!({ "@type": "type.googleapis.com/acme.Thing", "level": 3 });
    let error = from_value_lossy::<Any>(&thing).unwrap_err();
    assert_eq!(error, JsonError::UnknownType { name: "acme.Thing".to_owned() });
    let wrapped = json!({ "name": "e", "typed_config": { "@type": "type.googleapis.com/google.protobuf.Any", "value": thing } });
    let read = from_value_lossy::<TypedExtensionConfig>(&wrapped).unwrap();
    assert_eq!(
        (read.message.typed_config, read.skipped.listed[0].path.as_str()),
        (None, "typed_config.value")
    );
}

#[test]
fn a_flood_of_what_is_unknown_is_counted_not_listed() {
    let mut flood = "{\"typed_filter_metadata\": {\"".to_owned() + &"k".repeat(100_000);
    flood += "\": {\"@type\": \"type.googleapis.com/envoy.config.cluster.v3.Cluster\"";
    for number in 0..50_000 {
        flood += &format!(", \"x{number}\": 1");
    }
    let read = from_json_lossy::<Metadata>(&(flood + "}}}")).unwrap();
    assert_eq!((read.skipped.listed.len(), read.skipped.count()), (MAX_LISTED, 50_000));
    assert!(read.skipped.listed.iter().all(|skipped| skipped.path.len() < 200), "keys are shown in part");
}

#[test]
fn what_a_message_holds_that_is_unknown_is_reported() {
    let thing = Any { type_url: "type.googleapis.com/acme.Thing".to_owned(), value: vec![1, 2, 255] };
    let broken = Any { type_url: TypeUrl::LISTENER.to_string(), value: vec![0xff] };
    let mut newer = Cluster { name: "inner".to_owned(), lb_policy: 77, ..Default::default() }.to_any();
    // Field 9999, a varint, twice.
    newer.value.extend([0xf8, 0xf0, 0x04, 1, 0xf8, 0xf0, 0x04, 2]);
    let cluster = Cluster {
        name: "c".to_owned(),
        typed_extension_protocol_options: [
            ("z".to_owned(), thing.clone()),
            ("broken".to_owned(), broken),
            ("a.b".to_owned(), newer.clone()),
        ]
        .into(),
        ..Default::default()
    };
    let found = unknown_parts(&cluster.to_any());
    let shown: Vec<String> = found.listed.iter().map(ToString::to_string).collect();
    let at = "typed_extension_protocol_options";
    assert_eq!(shown[0], format!("{at}[\"a.b\"]: unknown field 9999"));
    assert_eq!(shown[1], format!("{at}[\"a.b\"].lb_policy: unknown enum value 77"));
    assert!(
        shown[2].starts_with(&format!("{at}.broken: \"{}\" that cannot be decoded: ", TypeUrl::LISTENER)),
        "{shown:?}"
    );
    assert_eq!(shown[3], format!("{at}.z: extension of unknown type \"type.googleapis.com/acme.Thing\""));
    assert_eq!((shown.len(), found.more), (4, 0));
    assert_eq!(unknown_parts(&thing).listed[0].path, ".");
    assert_eq!(unknown_parts(&thing).listed[0].kind, UnknownKind::Extension { type_url: thing.type_url });
    assert!(unknown_parts(&Cluster::default().to_any()).is_empty());
    assert!(unknown_parts(&Any::default()).is_empty(), "nothing is nothing unknown");
    // What is reported is still there, byte for byte, and can be printed.
    let printed = to_value(&cluster, Redaction::On).unwrap();
    assert_eq!(printed[at]["z"], json!({ "@type": "type.googleapis.com/acme.Thing", "value": "AQL/" }));
    assert_eq!(printed[at]["broken"]["value"], "/w==");
    let again = mesh_xds::resource::decode::<Cluster>(&cluster.to_any()).unwrap();
    assert_eq!(again.typed_extension_protocol_options["a.b"], newer);
}

#[test]
fn a_field_newer_than_the_table_is_forwarded_and_lost_only_by_decoding() {
    let mut any = Cluster { name: "c".to_owned(), ..Default::default() }.to_any();
    any.value.extend([0xf8, 0xf0, 0x04, 1]);
    // Through a server it goes as it came.
    let encoded = EncodedResource::from_any(&any).unwrap();
    let mut builder = Snapshot::builder();
    builder.insert(std::sync::Arc::new(encoded));
    let snapshot = builder.build();
    let set = snapshot.get(&TypeUrl::CLUSTER).unwrap();
    assert_eq!(set.get("c").unwrap().to_any(), Ok(any.clone()));
    assert_eq!(unknown_parts(&any).listed[0].kind, UnknownKind::Field { number: 9999 });
    // The typed form has no place for it.
    let decoded = mesh_xds::resource::decode::<Cluster>(&any).unwrap();
    assert_eq!(decoded.to_any().value.len(), any.value.len() - 4);
    assert!(unknown_parts(&decoded.to_any()).is_empty());
    assert_eq!(any_to_value(&any, Redaction::On), any_to_value(&decoded.to_any(), Redaction::On));
}
