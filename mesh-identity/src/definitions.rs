//! Messages that are defined by hand, held against a table of the official definitions: each field alone survives.
//!
//! The table is `spec/xds-fields.json` beside the folder `MESH_GOLDEN_DIR`, or what `MESH_XDS_FIELDS` names. Without either
//! there is nothing to compare with; with `MESH_REQUIRE_PEERS=1` that is a failure.

use std::path::PathBuf;

use prost::encoding::{WireType, encode_key, encode_varint};
use prost::{Message, bytes::BufMut as _};
use serde_json::Value;

fn table() -> Option<Value> {
    let sibling = || {
        let golden = PathBuf::from(std::env::var_os("MESH_GOLDEN_DIR")?);
        Some(golden.parent()?.join("spec/xds-fields.json"))
    };
    let path = std::env::var_os("MESH_XDS_FIELDS").map(PathBuf::from).or_else(sibling);
    let required = std::env::var_os("MESH_REQUIRE_PEERS").is_some_and(|value| value == "1");
    assert!(path.is_some() || !required, "neither MESH_XDS_FIELDS nor MESH_GOLDEN_DIR is set");
    let text = std::fs::read(path?).expect("the table can be read");
    Some(serde_json::from_slice(&text).expect("the table is JSON"))
}

fn delimited(number: u32, bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    encode_key(number, WireType::LengthDelimited, &mut out);
    encode_varint(bytes.len() as u64, &mut out);
    out.put_slice(bytes);
    out
}

/// Checks that `M` keeps every field of the message `name`, and counts them. What it does not know it would drop.
///
/// # Panics
/// When the table has no such message, or a field is lost or of another type.
pub(crate) fn holds<M: Message + Default>(name: &str) -> usize {
    let Some(table) = table() else { return 0 };
    let fields =
        table["messages"][name]["fields"].as_array().unwrap_or_else(|| panic!("{name} is in the table"));
    for field in fields {
        let number = u32::try_from(field["number"].as_u64().unwrap()).unwrap();
        let kept =
            |bytes: &[u8]| M::decode(bytes).map(|message| message.encode_to_vec()) == Ok(bytes.to_vec());
        let (one, not_text) = match field["type"].as_str().unwrap() {
            "string" => (delimited(number, b"text"), Some(false)),
            "bytes" => (delimited(number, b"bytes"), Some(true)),
            "int64" => {
                let mut bytes = Vec::new();
                encode_key(number, WireType::Varint, &mut bytes);
                encode_varint(i64::MIN.cast_unsigned(), &mut bytes);
                (bytes, None)
            }
            "map" => {
                assert_eq!(
                    (&field["key"], &field["value"]),
                    (&"string".into(), &"bytes".into()),
                    "{name}: {field}"
                );
                let entry = [delimited(1, b"key"), delimited(2, &[0xff])].concat();
                (delimited(number, &entry), None)
            }
            _ => (delimited(number, &[]), None),
        };
        assert!(kept(&one), "{name}: {field} is lost");
        if let Some(expected) = not_text {
            assert_eq!(kept(&delimited(number, &[0xff])), expected, "{name}: {field} is of another type");
        }
        let many = field["repeated"] == true;
        if field["type"] != "map" {
            assert_eq!(kept(&one.repeat(2)), many, "{name}: {field}: repeated or not");
        }
    }
    fields.len()
}

#[test]
fn messages_of_the_certificate_service_are_the_official_ones() {
    use crate::istio_ca::{IstioCertificateRequest, IstioCertificateResponse};

    let fields = holds::<IstioCertificateRequest>("istio.v1.auth.IstioCertificateRequest")
        + holds::<IstioCertificateResponse>("istio.v1.auth.IstioCertificateResponse");
    println!("2 messages, {fields} fields");
}
