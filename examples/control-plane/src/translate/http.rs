//! The HTTP connection manager of both directions, with its filters in Istio's order.

use mesh_xds::pb::envoy::config::core::v3 as core;
use mesh_xds::pb::envoy::config::listener::v3 as listener;
use mesh_xds::pb::envoy::config::route::v3::RouteConfiguration;
use mesh_xds::pb::envoy::extensions::filters::http::cors::v3::Cors;
use mesh_xds::pb::envoy::extensions::filters::http::fault::v3::HttpFault;
use mesh_xds::pb::envoy::extensions::filters::http::grpc_stats::v3 as grpc_stats;
use mesh_xds::pb::envoy::extensions::filters::http::grpc_web::v3::GrpcWeb;
use mesh_xds::pb::envoy::extensions::filters::http::router::v3::Router;
use mesh_xds::pb::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;
use mesh_xds::pb::envoy::extensions::filters::network::tcp_proxy::v3 as tcp;
use mesh_xds::pb::envoy::extensions::request_id::uuid::v3::UuidRequestIdConfig;
use prost::Message;
use prost_types::Any;

use super::proto::{ads, any, http_filter, http_filter_any, network_filter, seconds};

const HCM: &str = "envoy.filters.network.http_connection_manager";
const TCP_PROXY: &str = "envoy.filters.network.tcp_proxy";
const ALPN_TYPE_URL: &str = "type.googleapis.com/istio.envoy.config.filter.http.alpn.v2alpha1.FilterConfig";

/// Opaque bytes to one cluster.
pub(super) fn tcp_proxy(cluster: &str) -> listener::Filter {
    tcp_proxy_to(cluster, tcp::tcp_proxy::ClusterSpecifier::Cluster(cluster.to_owned()))
}

/// Opaque bytes to one or several clusters.
pub(super) fn tcp_proxy_to(stat_prefix: &str, to: tcp::tcp_proxy::ClusterSpecifier) -> listener::Filter {
    let config = tcp::TcpProxy {
        stat_prefix: stat_prefix.to_owned(),
        cluster_specifier: Some(to),
        ..tcp::TcpProxy::default()
    };
    network_filter(TCP_PROXY, &config)
}

/// HTTP on the client's side: routes by name over the same stream.
pub(super) fn outbound(stat_prefix: String, route_config_name: String, grpc_web: bool) -> listener::Filter {
    let mut filters = Vec::new();
    if grpc_web {
        filters.push(grpc_web_filter());
    }
    filters.push(stats());
    filters.push(http_filter_any("istio.alpn", alpn_config()));
    filters.extend(common());
    let mut manager = base(stat_prefix, filters);
    manager.server_name = "envoy".to_owned();
    manager.route_specifier = Some(hcm::http_connection_manager::RouteSpecifier::Rds(hcm::Rds {
        config_source: Some(ads()),
        route_config_name,
    }));
    network_filter(HCM, &manager)
}

/// HTTP on the server's side: one inline route, the peer's certificate told to the application.
pub(super) fn inbound(
    stat_prefix: String,
    routes: RouteConfiguration,
    authorization: Vec<hcm::HttpFilter>,
    grpc_web: bool,
) -> listener::Filter {
    let mut filters = authorization;
    if grpc_web {
        filters.push(grpc_web_filter());
    }
    filters.push(stats());
    filters.extend(common());
    let mut manager = base(stat_prefix, filters);
    manager.server_name = "istio-envoy".to_owned();
    // Istio's sidecars append to what the peer says. No gateway stands before ours: whatever a peer says about other
    // callers is its own invention, and the application is told the proven one only.
    manager.forward_client_cert_details =
        hcm::http_connection_manager::ForwardClientCertDetails::SanitizeSet.into();
    manager.set_current_client_cert_details =
        Some(hcm::http_connection_manager::SetCurrentClientCertDetails {
            subject: Some(true),
            dns: true,
            uri: true,
            ..hcm::http_connection_manager::SetCurrentClientCertDetails::default()
        });
    manager.route_specifier = Some(hcm::http_connection_manager::RouteSpecifier::RouteConfig(routes));
    network_filter(HCM, &manager)
}

fn base(stat_prefix: String, http_filters: Vec<hcm::HttpFilter>) -> hcm::HttpConnectionManager {
    hcm::HttpConnectionManager {
        codec_type: hcm::http_connection_manager::CodecType::Auto.into(),
        stat_prefix,
        http_filters,
        use_remote_address: Some(false),
        generate_request_id: Some(true),
        proxy_100_continue: true,
        upgrade_configs: vec![hcm::http_connection_manager::UpgradeConfig {
            upgrade_type: "websocket".to_owned(),
            ..hcm::http_connection_manager::UpgradeConfig::default()
        }],
        stream_idle_timeout: seconds(0),
        normalize_path: Some(true),
        path_with_escaped_slashes_action:
            hcm::http_connection_manager::PathWithEscapedSlashesAction::KeepUnchanged.into(),
        request_id_extension: Some(hcm::RequestIdExtension {
            typed_config: Some(any(&UuidRequestIdConfig {
                use_request_id_for_trace_sampling: Some(true),
                ..UuidRequestIdConfig::default()
            })),
        }),
        common_http_protocol_options: Some(core::HttpProtocolOptions::default()),
        ..hcm::HttpConnectionManager::default()
    }
}

/// Fault, CORS and, last, the router.
fn common() -> [hcm::HttpFilter; 3] {
    [
        http_filter("envoy.filters.http.fault", &HttpFault::default()),
        http_filter("envoy.filters.http.cors", &Cors {}),
        http_filter("envoy.filters.http.router", &Router::default()),
    ]
}

/// Optional: a proxy without it serves everything but browsers' gRPC.
fn grpc_web_filter() -> hcm::HttpFilter {
    hcm::HttpFilter { is_optional: true, ..http_filter("envoy.filters.http.grpc_web", &GrpcWeb {}) }
}

fn stats() -> hcm::HttpFilter {
    let config = grpc_stats::FilterConfig {
        emit_filter_state: true,
        per_method_stat_specifier: Some(
            grpc_stats::filter_config::PerMethodStatSpecifier::StatsForAllMethods(false),
        ),
        ..grpc_stats::FilterConfig::default()
    };
    http_filter("envoy.filters.http.grpc_stats", &config)
}

/// Istio's own message: ALPN to offer upstream, by the HTTP version that is used there.
#[derive(Clone, PartialEq, Message)]
struct AlpnFilterConfig {
    #[prost(message, repeated, tag = "1")]
    alpn_override: Vec<AlpnOverride>,
}

#[derive(Clone, PartialEq, Message)]
struct AlpnOverride {
    /// 0 is HTTP/1.0, 1 HTTP/1.1, 2 HTTP/2.
    #[prost(int32, tag = "1")]
    upstream_protocol: i32,
    #[prost(string, repeated, tag = "2")]
    alpn_override: Vec<String>,
}

fn alpn_config() -> Any {
    let entry = |upstream_protocol, protocols: [&str; 3]| AlpnOverride {
        upstream_protocol,
        alpn_override: protocols.iter().map(|p| (*p).to_owned()).collect(),
    };
    let config = AlpnFilterConfig {
        alpn_override: vec![
            entry(0, ["istio-http/1.0", "istio", "http/1.0"]),
            entry(1, ["istio-http/1.1", "istio", "http/1.1"]),
            entry(2, ["istio-h2", "istio", "h2"]),
        ],
    };
    Any { type_url: ALPN_TYPE_URL.to_owned(), value: config.encode_to_vec() }
}
