//! Every type that travels as a resource: its URL, its name, and its two phases.

use std::collections::BTreeSet;

use mesh_xds::pb::envoy::config::cluster::v3::Cluster;
use mesh_xds::pb::envoy::config::core::v3::TypedExtensionConfig;
use mesh_xds::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use mesh_xds::pb::envoy::config::listener::v3::Listener;
use mesh_xds::pb::envoy::config::route::v3::{RouteConfiguration, ScopedRouteConfiguration, VirtualHost};
use mesh_xds::pb::envoy::extensions::transport_sockets::tls::v3::Secret;
use mesh_xds::pb::envoy::service::runtime::v3::Runtime;
use mesh_xds::pb::istio::networking::nds::v1::NameTable;
use mesh_xds::pb::istio::security::Authorization;
use mesh_xds::pb::istio::workload::{Address, Service, Workload, address};
use mesh_xds::resource::{decode, peek_name};
use mesh_xds::server::{EncodedResource, Snapshot};
use mesh_xds::{Any, Resource, TypeUrl};

/// What holds for every resource of every type; its type URL.
fn check<T: Resource + std::fmt::Debug>(resource: &T, name: &str, short: &str) -> TypeUrl {
    assert_eq!(T::TYPE.as_str(), T::type_url(), "the message's own name");
    assert_eq!(T::TYPE.short(), short);
    assert_eq!(resource.resource_name(), name);

    let any = resource.to_any();
    assert_eq!(any.type_url, T::TYPE.as_str());
    // Phase one and phase two.
    assert_eq!(peek_name(&T::TYPE, &any.value).as_deref(), Ok(name));
    assert_eq!(decode::<T>(&any).as_ref(), Ok(resource));
    // In between: what cannot be decoded still has its name, also on the server.
    let mut broken = any.value.clone();
    // Field 1 once more, in a message of this type a text, a message or a map, and here a number.
    broken.extend([0x08, 1]);
    let broken = Any { value: broken, ..any.clone() };
    assert_eq!(peek_name(&T::TYPE, &broken.value).as_deref(), Ok(name), "{short}");
    assert_eq!(decode::<T>(&broken).unwrap_err().reason(), "decode", "{short}");
    assert_eq!(&**EncodedResource::from_any(&broken).unwrap().name(), name);

    let other = Any { type_url: "type.googleapis.com/acme.Thing".to_owned(), ..any.clone() };
    assert_eq!(decode::<T>(&other).unwrap_err().reason(), "wrong_type");
    let snapshot = Snapshot::builder().add(resource).unwrap().build();
    assert_eq!(snapshot.get(&T::TYPE).unwrap().get(name).unwrap().to_any(), Ok(any));
    T::TYPE
}

#[test]
fn every_type_is_a_resource() {
    let named = || "n".to_owned();
    let workload = Workload { uid: "k//Pod/ns/p".to_owned(), name: "p".to_owned(), ..Default::default() };
    let service =
        Service { namespace: "ns".to_owned(), hostname: "h.local".to_owned(), ..Default::default() };
    let types = [
        check(&Listener { name: named(), ..Default::default() }, "n", "LDS"),
        check(&RouteConfiguration { name: named(), ..Default::default() }, "n", "RDS"),
        check(&ScopedRouteConfiguration { name: named(), ..Default::default() }, "n", "SRDS"),
        check(&VirtualHost { name: "routes/host".to_owned(), ..Default::default() }, "routes/host", "VHDS"),
        check(&Cluster { name: named(), ..Default::default() }, "n", "CDS"),
        check(&ClusterLoadAssignment { cluster_name: named(), ..Default::default() }, "n", "EDS"),
        check(&Secret { name: named(), ..Default::default() }, "n", "SDS"),
        check(&TypedExtensionConfig { name: named(), ..Default::default() }, "n", "ECDS"),
        check(&Runtime { name: named(), ..Default::default() }, "n", "RTDS"),
        // One table for each client: its name is its type.
        check(&NameTable::default(), TypeUrl::NAME_TABLE.as_str(), "NDS"),
        check(&workload, "k//Pod/ns/p", "WDS"),
        check(&Address { r#type: Some(address::Type::Workload(workload)) }, "k//Pod/ns/p", "WDS"),
        check(
            &Authorization { name: named(), namespace: "ns".to_owned(), ..Default::default() },
            "ns/n",
            "Authorization",
        ),
    ];
    let types: BTreeSet<_> = types.iter().collect();
    assert_eq!(types.len(), 13, "one URL for each");
    check(&Address { r#type: Some(address::Type::Service(service)) }, "ns/h.local", "WDS");
}

#[test]
fn a_resource_without_a_name_is_refused_whatever_its_type() {
    fn nameless<T: Resource>() {
        assert_eq!(peek_name(&T::TYPE, &T::default().encode_to_vec()).unwrap_err().reason(), "no_name");
        assert_eq!(EncodedResource::new(&T::default()).unwrap_err().reason(), "no_name");
    }
    nameless::<Listener>();
    nameless::<RouteConfiguration>();
    nameless::<ScopedRouteConfiguration>();
    nameless::<VirtualHost>();
    nameless::<Cluster>();
    nameless::<ClusterLoadAssignment>();
    nameless::<Secret>();
    nameless::<TypedExtensionConfig>();
    nameless::<Runtime>();
    nameless::<Workload>();
    nameless::<Address>();
    nameless::<Authorization>();
}
