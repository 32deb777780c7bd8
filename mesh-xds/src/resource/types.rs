//! The resource types of this crate.

use std::borrow::Cow;

use super::{Resource, TypeUrl};
use crate::pb::envoy::config::cluster::v3::Cluster;
use crate::pb::envoy::config::core::v3::TypedExtensionConfig;
use crate::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use crate::pb::envoy::config::listener::v3::Listener;
use crate::pb::envoy::config::route::v3::{RouteConfiguration, ScopedRouteConfiguration, VirtualHost};
use crate::pb::envoy::extensions::transport_sockets::tls::v3::Secret;
use crate::pb::envoy::service::runtime::v3::Runtime;
use crate::pb::istio::networking::nds::v1::NameTable;
use crate::pb::istio::security::Authorization;
use crate::pb::istio::workload::{Address, Workload, address};

macro_rules! resources {
    ($($type:ty, $url:ident, $field:ident;)*) => {$(
        impl Resource for $type {
            const TYPE: TypeUrl = TypeUrl::$url;

            fn resource_name(&self) -> Cow<'_, str> {
                Cow::Borrowed(&self.$field)
            }
        }
    )*};
}

resources! {
    Listener, LISTENER, name;
    RouteConfiguration, ROUTE, name;
    ScopedRouteConfiguration, SCOPED_ROUTE, name;
    VirtualHost, VIRTUAL_HOST, name;
    Cluster, CLUSTER, name;
    ClusterLoadAssignment, ENDPOINTS, cluster_name;
    Secret, SECRET, name;
    TypedExtensionConfig, EXTENSION_CONFIG, name;
    Runtime, RUNTIME, name;
    Workload, WORKLOAD, uid;
}

impl Resource for NameTable {
    const TYPE: TypeUrl = TypeUrl::NAME_TABLE;

    /// There is one table per client; its name is the type URL.
    fn resource_name(&self) -> Cow<'_, str> {
        Cow::Borrowed("type.googleapis.com/istio.networking.nds.v1.NameTable")
    }
}

impl Resource for Address {
    const TYPE: TypeUrl = TypeUrl::WORKLOAD_ADDRESS;

    /// A workload's uid, or a service's `namespace/hostname`.
    fn resource_name(&self) -> Cow<'_, str> {
        match &self.r#type {
            Some(address::Type::Workload(w)) => Cow::Borrowed(&w.uid),
            Some(address::Type::Service(s)) => Cow::Owned(format!("{}/{}", s.namespace, s.hostname)),
            None => Cow::Borrowed(""),
        }
    }
}

impl Resource for Authorization {
    const TYPE: TypeUrl = TypeUrl::AUTHORIZATION;

    /// `namespace/name`.
    fn resource_name(&self) -> Cow<'_, str> {
        Cow::Owned(format!("{}/{}", self.namespace, self.name))
    }
}
