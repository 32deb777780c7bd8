//! Bytes into resources, and text into messages.

use prost_types::Any;

use crate::pb::envoy::config::cluster::v3::Cluster;
use crate::pb::envoy::config::core::v3::TypedExtensionConfig;
use crate::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use crate::pb::envoy::config::listener::v3::Listener;
use crate::pb::envoy::config::route::v3::{RouteConfiguration, ScopedRouteConfiguration, VirtualHost};
use crate::pb::envoy::extensions::transport_sockets::tls::v3::Secret;
use crate::pb::envoy::service::runtime::v3::Runtime;
use crate::pb::istio::networking::nds::v1::NameTable;
use crate::pb::istio::security::Authorization;
use crate::pb::istio::workload::{Address, Workload};
use crate::resource::{Resource, decode, peek_name};
use crate::server::EncodedResource;

/// Every way in which bytes become a resource.
///
/// # Panics
/// When the two phases of decoding disagree about the name, or when bytes change on their way through.
pub fn resources(data: &[u8]) {
    resource::<Cluster>(data);
    resource::<ClusterLoadAssignment>(data);
    resource::<Listener>(data);
    resource::<RouteConfiguration>(data);
    resource::<ScopedRouteConfiguration>(data);
    resource::<VirtualHost>(data);
    resource::<Secret>(data);
    resource::<TypedExtensionConfig>(data);
    resource::<Runtime>(data);
    resource::<NameTable>(data);
    resource::<Workload>(data);
    resource::<Address>(data);
    resource::<Authorization>(data);
}

fn resource<T: Resource>(data: &[u8]) {
    let any = Any { type_url: T::TYPE.as_str().to_owned(), value: data.to_vec() };
    let name = peek_name(&T::TYPE, data);
    match EncodedResource::from_any(&any) {
        Ok(encoded) => assert_eq!(encoded.to_any(), Ok(any.clone()), "not a byte is changed"),
        Err(error) => assert_eq!(name.as_ref(), Err(&error)),
    }
    let Ok(resource) = decode::<T>(&any) else { return };
    if let Ok(name) = name {
        assert_eq!(name, resource.resource_name(), "both phases read the same name");
    }
    let again = resource.to_any();
    let decoded = decode::<T>(&again).map(|resource| resource.to_any());
    assert_eq!(decoded, Ok(again), "what we encoded we read back");
}

/// JSON and YAML, strictly and not, and printing whatever decodes.
///
/// # Panics
/// When something that was printed is not what is read back from it, when reading leniently gives another message than
/// reading strictly, or when what is reported as unknown depends on anything but the bytes.
#[cfg(feature = "json")]
pub fn json(data: &[u8]) {
    use crate::json::{Redaction, any_to_value, from_value, unknown_parts};

    if let Ok(text) = std::str::from_utf8(data) {
        text_into::<crate::pb::envoy::config::bootstrap::v3::Bootstrap>(text);
        text_into::<Any>(text);
    }
    let any = Any { type_url: Listener::TYPE.as_str().to_owned(), value: data.to_vec() };
    let _ = any_to_value(&any, Redaction::On);
    let printed = any_to_value(&any, Redaction::Off);
    assert_eq!(unknown_parts(&any), unknown_parts(&any));
    // Longer inputs may nest so deeply that the rest is printed as bytes although it is known.
    if data.len() < 1024 {
        let again = from_value::<Any>(&printed).map(|any| any_to_value(&any, Redaction::Off));
        assert_eq!(again, Ok(printed));
    }
}

#[cfg(feature = "json")]
fn text_into<T: prost::Message + prost::Name + Default>(text: &str) {
    use crate::json::{
        Redaction, from_json, from_json_lossy, from_value, from_yaml, from_yaml_lossy, to_value,
    };

    let ways = [
        (from_json::<T>(text), from_json_lossy::<T>(text)),
        (from_yaml::<T>(text), from_yaml_lossy::<T>(text)),
    ];
    for (strict, lossy) in ways {
        if let Ok(lossy) = &lossy {
            assert_eq!(lossy.skipped.is_empty(), strict.is_ok(), "{:?}", lossy.skipped);
        }
        let bytes = |message: &T| message.encode_to_vec();
        if let Ok(strict) = &strict {
            assert_eq!(lossy.as_ref().map(|lossy| bytes(&lossy.message)), Ok(bytes(strict)));
        }
        let Ok(message) = strict.or_else(|_| lossy.map(|lossy| lossy.message)) else { continue };
        let Ok(printed) = to_value(&message, Redaction::Off) else { continue };
        let again = from_value::<T>(&printed).map(|message| bytes(&message));
        assert_eq!(again, Ok(bytes(&message)), "{printed}");
    }
}
