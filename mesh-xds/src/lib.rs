#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

pub mod client;
#[doc(hidden)]
pub mod fuzzing;
#[cfg(feature = "json")]
pub mod json;
#[cfg(feature = "server")]
pub mod push;
pub mod resource;
pub mod server;

/// The messages, enums and gRPC stubs, under the names of their protobuf packages: what the documentation of Envoy calls
/// `envoy.config.cluster.v3.Cluster` is `pb::envoy::config::cluster::v3::Cluster`.
///
/// Generated from `proto/*.proto` by the `mesh-xds-codegen` program; never edited. Users need neither it nor `protoc`. Maps
/// are `BTreeMap`, so that encoding is deterministic and a version can be a hash of the content. The well-known types
/// (`Any`, `Duration`, `Struct`, ...) are those of [`prost_types`]. Stubs are in `*_client` and `*_server` beside the
/// messages of their service, with the features `client` and `server`.
///
/// A field that is newer than these definitions is lost when a message is decoded and encoded again. Bytes that are passed
/// on as [`Any`], as a server does with [`EncodedResource::from_any`](crate::server::EncodedResource::from_any), keep it, and
/// `json::unknown_parts` finds it.
///
/// # Where things are
///
/// ```
/// // What is discovered: LDS, RDS, VHDS, SRDS, CDS, EDS, SDS, ECDS, RTDS.
/// use mesh_xds::pb::envoy::config::{cluster::v3::Cluster, endpoint::v3::ClusterLoadAssignment, listener::v3::Listener};
/// use mesh_xds::pb::envoy::config::route::v3::{RouteConfiguration, ScopedRouteConfiguration, VirtualHost};
/// use mesh_xds::pb::envoy::config::core::v3::TypedExtensionConfig;
/// use mesh_xds::pb::envoy::extensions::transport_sockets::tls::v3::Secret;
/// use mesh_xds::pb::envoy::service::runtime::v3::Runtime;
/// // What carries them, in both variants, and what a client is.
/// use mesh_xds::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};
/// use mesh_xds::pb::envoy::config::core::v3::Node;
/// // A file to start from, and what is printed of it: `config_dump`, `clusters`, `server_info`.
/// use mesh_xds::pb::envoy::config::bootstrap::v3::Bootstrap;
/// use mesh_xds::pb::envoy::admin::v3::{Clusters, ConfigDump, ServerInfo};
/// // CSDS, ALS, load reports.
/// use mesh_xds::pb::envoy::service::status::v3::ClientStatusResponse;
/// use mesh_xds::pb::envoy::service::accesslog::v3::StreamAccessLogsMessage;
/// use mesh_xds::pb::envoy::service::load_stats::v3::LoadStatsRequest;
/// // Extensions, which travel as an `Any` in the messages above; keywords are `r#type` and `r#match`.
/// use mesh_xds::pb::envoy::extensions::filters::network::http_connection_manager::v3::HttpConnectionManager;
/// use mesh_xds::pb::envoy::extensions::filters::http::router::v3::Router;
/// use mesh_xds::pb::envoy::r#type::matcher::v3::StringMatcher;
/// // Istio: the DNS table, workloads and services of the ambient mode, its authorization policies.
/// use mesh_xds::pb::istio::{networking::nds::v1::NameTable, security::Authorization, workload::{Address, Workload}};
///
/// use mesh_xds::{Any, prost_types::Duration};
///
/// let manager = HttpConnectionManager {
///     stat_prefix: "in".to_owned(),
///     drain_timeout: Some(Duration { seconds: 5, nanos: 0 }),
///     ..Default::default()
/// };
/// assert_eq!(Any::from_msg(&manager)?.to_msg::<HttpConnectionManager>()?, manager);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[rustfmt::skip]
#[allow(missing_docs, unreachable_pub, unused_qualifications, missing_debug_implementations, deprecated)]
#[allow(clippy::all, clippy::use_self, clippy::or_fun_call, clippy::large_futures)]
#[allow(rustdoc::all)]
pub mod pb;

// The versions that the messages are made with.
pub use prost;
pub use prost_types::{self, Any};
pub use resource::{Resource, TypeUrl, Version};
