//! Phase one: the name without the message.

use bytes::Buf;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};

use super::{ResourceError, TypeUrl};

/// The fields of an `Address`, and the name of a `Workload`.
const WORKLOAD: u32 = 1;
const SERVICE: u32 = 2;
const WORKLOAD_UID: u32 = 20;

/// Reads the name of an encoded resource without decoding the rest of it.
///
/// For a type without a rule of its own the name is taken from field 1 when that is a string, which is where all
/// xDS resource types have it.
///
/// # Errors
/// [`ResourceError::Decode`] when the bytes are not protobuf at all, [`ResourceError::NoName`] when the name is empty.
pub fn peek_name(type_url: &TypeUrl, bytes: &[u8]) -> Result<String, ResourceError> {
    let name = match type_url {
        t if *t == TypeUrl::NAME_TABLE => Ok(t.as_str().to_owned()),
        t if *t == TypeUrl::WORKLOAD_ADDRESS => address(bytes),
        t if *t == TypeUrl::WORKLOAD => string(bytes, WORKLOAD_UID),
        t if *t == TypeUrl::AUTHORIZATION => pair(bytes, 2, 1),
        _ => string(bytes, 1),
    }
    .map_err(|message| ResourceError::Decode { type_url: type_url.as_str().to_owned(), message })?;
    if name.is_empty() || name == "/" {
        return Err(ResourceError::NoName { type_url: type_url.as_str().to_owned() });
    }
    Ok(name)
}

/// `<workload uid>` or `<service namespace>/<service hostname>`.
///
/// The two are a oneof: the one that comes last counts, and parts of it that follow each other are one message.
fn address(bytes: &[u8]) -> Result<String, String> {
    let (mut kind, mut message) = (0, Vec::new());
    fields(bytes, |field, value| {
        if field == WORKLOAD || field == SERVICE {
            if field != kind {
                message.clear();
            }
            kind = field;
            message.extend_from_slice(value);
        }
    })?;
    match kind {
        WORKLOAD => string(&message, WORKLOAD_UID),
        SERVICE => pair(&message, 2, 3),
        _ => Ok(String::new()),
    }
}

fn pair(bytes: &[u8], first: u32, second: u32) -> Result<String, String> {
    Ok(format!("{}/{}", string(bytes, first)?, string(bytes, second)?))
}

fn string(bytes: &[u8], field: u32) -> Result<String, String> {
    let raw = last(bytes, field)?.unwrap_or_default();
    String::from_utf8(raw.to_vec()).map_err(|_| format!("field {field} is not UTF-8"))
}

/// The last occurrence of a length-delimited field at the top level, as protobuf's "last one wins" demands.
fn last(bytes: &[u8], wanted: u32) -> Result<Option<&[u8]>, String> {
    let mut found = None;
    fields(bytes, |field, value| {
        if field == wanted {
            found = Some(value);
        }
    })?;
    Ok(found)
}

/// Hands over every length-delimited field at the top level.
fn fields<'a>(mut bytes: &'a [u8], mut each: impl FnMut(u32, &'a [u8])) -> Result<(), String> {
    while bytes.has_remaining() {
        let (field, wire) = decode_key(&mut bytes).map_err(|e| e.to_string())?;
        if wire == WireType::LengthDelimited {
            let length = decode_varint(&mut bytes).map_err(|e| e.to_string())?;
            let length = usize::try_from(length).map_err(|e| e.to_string())?;
            if length > bytes.len() {
                return Err("length is beyond the end of the message".to_owned());
            }
            let (value, rest) = bytes.split_at(length);
            each(field, value);
            bytes = rest;
        } else {
            skip_field(wire, field, &mut bytes, DecodeContext::default()).map_err(|e| e.to_string())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;
    use crate::pb::envoy::config::cluster::v3::Cluster;
    use crate::pb::istio::security::Authorization;
    use crate::pb::istio::workload::{Address, Service, Workload, address};
    use crate::resource::Resource;

    fn check<T: Resource>(resource: &T) {
        let name = peek_name(&T::TYPE, &resource.encode_to_vec()).unwrap();
        assert_eq!(name, resource.resource_name());
    }

    #[test]
    fn the_name_is_that_of_the_message() {
        check(&Cluster { name: "c".into(), alt_stat_name: "other".into(), ..Default::default() });
        check(&Authorization { name: "p".into(), namespace: "n".into(), ..Default::default() });
        let workload = Workload { uid: "k/Pod/n/p".into(), name: "p".into(), ..Default::default() };
        check(&workload);
        check(&Address { r#type: Some(address::Type::Workload(workload)) });
        let service = Service { namespace: "n".into(), hostname: "h".into(), ..Default::default() };
        check(&Address { r#type: Some(address::Type::Service(service)) });
    }

    #[test]
    fn a_name_is_known_although_the_rest_is_broken() {
        // Field 2 of a Cluster is an enum; here it is a string: phase two fails, phase one does not.
        let bytes = [0x0a, 1, b'c', 0x12, 1, b'x'];
        assert_eq!(peek_name(&TypeUrl::CLUSTER, &bytes).as_deref(), Ok("c"));
        assert!(Cluster::decode(bytes.as_slice()).is_err());
    }

    #[test]
    fn hostile_bytes_are_errors() {
        assert_eq!(peek_name(&TypeUrl::CLUSTER, &[]).unwrap_err().reason(), "no_name");
        assert_eq!(peek_name(&TypeUrl::CLUSTER, &[0x0a, 0xff]).unwrap_err().reason(), "decode");
        assert_eq!(peek_name(&TypeUrl::CLUSTER, &[0x0a, 9, b'x']).unwrap_err().reason(), "decode");
        assert_eq!(peek_name(&TypeUrl::CLUSTER, &[0x0a, 1, 0xc3]).unwrap_err().reason(), "decode");
    }
}
