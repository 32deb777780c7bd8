//! The descriptors, loaded once, and the private message that carries what is not known.

use std::sync::OnceLock;

use prost_reflect::{DescriptorPool, MessageDescriptor};
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, FieldDescriptorProto, FileDescriptorProto};

use super::JsonError;

/// The full name of the private message that stands for an `Any` of an unknown type while JSON is read or printed.
pub(super) const OPAQUE: &str = "mesh.xds.json.OpaqueAny";
/// Its type URL.
pub(super) const OPAQUE_URL: &str = "type.googleapis.com/mesh.xds.json.OpaqueAny";

/// Two well-known types that are treated by name.
pub(super) const ANY: &str = "google.protobuf.Any";
pub(super) const EMPTY: &str = "google.protobuf.Empty";

/// Every message of `pb`, and [`OPAQUE`].
pub(super) fn pool() -> &'static DescriptorPool {
    static POOL: OnceLock<DescriptorPool> = OnceLock::new();
    POOL.get_or_init(|| {
        // The bytes are generated together with `pb` and a test loads them, so neither step can fail at run time.
        let mut pool = DescriptorPool::decode(include_bytes!("../pb/descriptors.binpb").as_slice())
            .expect("the committed descriptors are valid");
        pool.add_file_descriptor_proto(opaque_file()).expect("the private message has a name of its own");
        pool
    })
}

/// The descriptor of a message by its full name.
pub(super) fn descriptor(name: &str) -> Result<MessageDescriptor, JsonError> {
    known(name).ok_or_else(|| JsonError::UnknownType { name: name.to_owned() })
}

/// The descriptor of a message, unless it is unknown or private.
pub(super) fn known(name: &str) -> Option<MessageDescriptor> {
    (name != OPAQUE).then(|| pool().get_message_by_name(name))?
}

/// The message name behind a type URL.
pub(super) fn name_of(type_url: &str) -> &str {
    type_url.rsplit_once('/').map_or("", |(_, name)| name)
}

/// The key of the bytes of an `Any` whose type has a `value` of its own.
pub(super) const BYTES: &str = "@bytes";

/// Whether the JSON of a message is not the object of its fields.
pub(super) fn has_own_json(name: &str) -> bool {
    name.starts_with("google.protobuf.")
}

/// Whether text under "value" can be nothing but bytes: the type is unknown, or says nothing under that name itself.
pub(super) fn may_be_bytes(name: &str) -> bool {
    let Some(descriptor) = known(name) else { return true };
    !has_own_json(name) && descriptor.get_field_by_json_name("value").is_none()
}

fn opaque_file() -> FileDescriptorProto {
    let field = |name: &str, number, kind: Type| FieldDescriptorProto {
        name: Some(name.to_owned()),
        number: Some(number),
        label: Some(Label::Optional as i32),
        r#type: Some(kind as i32),
        ..Default::default()
    };
    FileDescriptorProto {
        name: Some("mesh/xds/json.proto".to_owned()),
        package: Some("mesh.xds.json".to_owned()),
        syntax: Some("proto3".to_owned()),
        message_type: vec![DescriptorProto {
            name: Some("OpaqueAny".to_owned()),
            field: vec![field("type_url", 1, Type::String), field("value", 2, Type::Bytes)],
            ..Default::default()
        }],
        ..Default::default()
    }
}
