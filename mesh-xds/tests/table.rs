//! Every message, enum and service is what a table of the official definitions says: name, number, type, label, oneof.
//!
//! The table is JSON with `messages`, `enums`, `services` and `roots`; `MESH_XDS_FIELDS` names it, otherwise it is looked
//! for in `spec/` beside the folder `MESH_GOLDEN_DIR`. Without either the trials show as ignored, with
//! `MESH_REQUIRE_PEERS=1` that is a failure. One trial for each message, enum and service.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use libtest_mimic::{Arguments, Failed, Trial};
use prost_reflect::{
    DescriptorPool, EnumDescriptor, FieldDescriptor, Kind, MessageDescriptor, ServiceDescriptor,
};
use serde_json::{Map, Value, json};

/// What `mesh-identity` defines by hand: messages of Istio's certificate service and of the SPIFFE Workload API.
const ELSEWHERE: [&str; 16] = [
    "istio.v1.auth.IstioCertificateRequest",
    "istio.v1.auth.IstioCertificateResponse",
    "istio.v1.auth.IstioCertificateService",
    "SpiffeWorkloadAPI",
    "X509SVIDRequest",
    "X509SVIDResponse",
    "X509SVID",
    "X509BundlesRequest",
    "X509BundlesResponse",
    "JWTSVIDRequest",
    "JWTSVIDResponse",
    "JWTSVID",
    "JWTBundlesRequest",
    "JWTBundlesResponse",
    "ValidateJWTSVIDRequest",
    "ValidateJWTSVIDResponse",
];

fn main() {
    let arguments = Arguments::from_args();
    let required = std::env::var_os("MESH_REQUIRE_PEERS").is_some_and(|value| value == "1");
    let trials = match path() {
        None => vec![
            Trial::test("table (set MESH_XDS_FIELDS or MESH_GOLDEN_DIR)", || Err("no table".into()))
                .with_ignored_flag(!required),
        ],
        Some(path) => {
            let text = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            trials(&serde_json::from_slice(&text).expect("the table is JSON"))
        }
    };
    libtest_mimic::run(&arguments, trials).exit();
}

fn path() -> Option<PathBuf> {
    let given = std::env::var_os("MESH_XDS_FIELDS").map(PathBuf::from);
    let sibling = || {
        let golden = PathBuf::from(std::env::var_os("MESH_GOLDEN_DIR")?);
        Some(golden.parent()?.join("spec/xds-fields.json"))
    };
    given.or_else(sibling)
}

fn trials(table: &Value) -> Vec<Trial> {
    let bytes = include_bytes!("../src/pb/descriptors.binpb");
    let pool = DescriptorPool::decode(bytes.as_slice()).expect("the committed descriptors are sound");
    let section = |name: &str| -> Map<String, Value> {
        let entries = table[name].as_object().unwrap_or_else(|| panic!("the table has {name}"));
        entries
            .iter()
            .filter(|(name, _)| !ELSEWHERE.contains(&name.as_str()))
            .map(|(k, v)| (k.clone(), v.clone()))
            .collect()
    };
    let (messages, enums, services) = (section("messages"), section("enums"), section("services"));
    let fields: usize = messages.values().map(|m| m["fields"].as_array().map_or(0, Vec::len)).sum();
    let roots: Vec<_> = table["roots"]
        .as_object()
        .expect("roots")
        .values()
        .flat_map(|group| group.as_array().expect("a list"))
        .cloned()
        .collect();
    println!(
        "{} messages with {fields} fields, {} enums, {} services, {} roots",
        messages.len(),
        enums.len(),
        services.len(),
        roots.len()
    );
    assert!(messages.len() >= 790 && fields >= 3_000 && enums.len() >= 100, "the table lost its rows");

    let mut trials = vec![
        surplus(
            "messages",
            &messages,
            pool.all_messages().filter(|m| !m.is_map_entry()).map(|m| m.full_name().to_owned()),
        ),
        surplus("enums", &enums, pool.all_enums().map(|e| e.full_name().to_owned())),
        surplus("services", &services, pool.services().map(|s| s.full_name().to_owned())),
        every_root(&pool, roots),
    ];
    for (name, wanted) in messages {
        let found = pool.get_message_by_name(&name);
        trials.push(Trial::test(format!("message {name}"), move || {
            message(&found.ok_or("is missing")?, &wanted)
        }));
    }
    for (name, wanted) in enums {
        let found = pool.get_enum_by_name(&name);
        trials
            .push(Trial::test(format!("enum {name}"), move || values(&found.ok_or("is missing")?, &wanted)));
    }
    for (name, wanted) in services {
        let found = pool.services().find(|service| service.full_name() == name);
        trials.push(Trial::test(format!("service {name}"), move || {
            methods(&found.ok_or("is missing")?, &wanted)
        }));
    }
    trials
}

/// Nothing is there that the table does not know.
fn surplus(what: &str, wanted: &Map<String, Value>, found: impl Iterator<Item = String>) -> Trial {
    let unknown: Vec<String> =
        found.filter(|name| !name.starts_with("google.protobuf.") && !wanted.contains_key(name)).collect();
    Trial::test(format!("no other {what}"), move || {
        if unknown.is_empty() { Ok(()) } else { Err(format!("{unknown:?}").into()) }
    })
}

fn every_root(pool: &DescriptorPool, roots: Vec<Value>) -> Trial {
    let here = |name: &&str| !ELSEWHERE.contains(name);
    let missing: Vec<String> = roots
        .iter()
        .filter_map(Value::as_str)
        .filter(here)
        .filter(|name| pool.get_message_by_name(name).is_none())
        .map(str::to_owned)
        .collect();
    Trial::test(
        "every root",
        move || {
            if missing.is_empty() { Ok(()) } else { Err(format!("{missing:?}").into()) }
        },
    )
}

fn message(found: &MessageDescriptor, wanted: &Value) -> Result<(), Failed> {
    let rows = wanted["fields"].as_array().ok_or("the row has no fields")?;
    let wanted_fields: BTreeMap<u64, Value> =
        rows.iter().map(|row| (row["number"].as_u64().unwrap_or(0), row.clone())).collect();
    let ours: BTreeMap<u64, Value> = found.fields().map(|f| (u64::from(f.number()), field(&f))).collect();
    let numbers: BTreeSet<_> = wanted_fields.keys().chain(ours.keys()).collect();
    let differences: Vec<String> = numbers
        .into_iter()
        .filter(|number| wanted_fields.get(number) != ours.get(number))
        .map(|number| format!("table {:?}, ours {:?}", wanted_fields.get(number), ours.get(number)))
        .collect();
    if !differences.is_empty() {
        return Err(differences.join("\n").into());
    }
    let oneofs: BTreeSet<String> =
        found.oneofs().filter(|o| !o.is_synthetic()).map(|o| o.name().to_owned()).collect();
    let listed = wanted["oneofs"].as_array().ok_or("the row has no oneofs")?;
    let listed: BTreeSet<String> = listed.iter().filter_map(Value::as_str).map(str::to_owned).collect();
    same(&listed, &oneofs)
}

/// A field in the table's words: what does not apply is not said.
fn field(field: &FieldDescriptor) -> Value {
    let mut row = json!({ "name": field.name(), "number": field.number() });
    match field.kind() {
        Kind::Message(entry) if field.is_map() => {
            row["type"] = "map".into();
            row["key"] = kind(&entry.map_entry_key_field().kind()).into();
            row["value"] = kind(&entry.map_entry_value_field().kind()).into();
        }
        other => {
            row["type"] = kind(&other).into();
            if field.is_list() {
                row["repeated"] = true.into();
            }
        }
    }
    match field.containing_oneof() {
        Some(oneof) if oneof.is_synthetic() => row["optional"] = true.into(),
        Some(oneof) => row["oneof"] = oneof.name().into(),
        None => {}
    }
    for (option, name) in [(DEPRECATED, "deprecated"), (DEBUG_REDACT, "sensitive")] {
        let options = field.options();
        let known = options.get_field_by_number(option).is_some_and(|value| value.as_bool() == Some(true));
        if known || options.unknown_fields().any(|unknown| unknown.number() == option) {
            row[name] = true.into();
        }
    }
    row
}

const DEPRECATED: u32 = 3;
const DEBUG_REDACT: u32 = 16;

fn kind(kind: &Kind) -> String {
    match kind {
        Kind::Message(message) => message.full_name().to_owned(),
        Kind::Enum(values) => values.full_name().to_owned(),
        scalar => format!("{scalar:?}").to_lowercase(),
    }
}

fn values(found: &EnumDescriptor, wanted: &Value) -> Result<(), Failed> {
    let ours: Map<String, Value> =
        found.values().map(|value| (value.name().to_owned(), value.number().into())).collect();
    same(&wanted["values"], &Value::Object(ours))
}

fn methods(found: &ServiceDescriptor, wanted: &Value) -> Result<(), Failed> {
    let ours: Map<String, Value> = found
        .methods()
        .map(|method| {
            let row = json!({
                "input": method.input().full_name(),
                "output": method.output().full_name(),
                "client_streaming": method.is_client_streaming(),
                "server_streaming": method.is_server_streaming(),
            });
            (method.name().to_owned(), row)
        })
        .collect();
    same(&wanted["methods"], &Value::Object(ours))
}

fn same<T: PartialEq + std::fmt::Debug>(wanted: &T, found: &T) -> Result<(), Failed> {
    if wanted == found { Ok(()) } else { Err(format!("table {wanted:?}, ours {found:?}").into()) }
}
