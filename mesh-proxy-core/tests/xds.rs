//! Conversion of xDS messages: what is taken over, what is refused and how the refusal names its field.
#![cfg(feature = "xds")]

use mesh_proxy_core::config::*;
use mesh_xds::pb::envoy::{
    config::{
        cluster::v3 as cluster, core::v3 as core, endpoint::v3 as endpoint, listener::v3 as listener,
        route::v3 as route,
    },
    extensions::filters::{
        http::router::v3::Router, listener::tls_inspector::v3::TlsInspector,
        network::http_connection_manager::v3 as hcm, network::tcp_proxy::v3 as tcp,
    },
};
use prost::{Message, Name};

fn any<M: Message + Name>(message: &M) -> prost_types::Any {
    prost_types::Any { type_url: M::type_url(), value: message.encode_to_vec() }
}

fn address(ip: &str, port: u32) -> core::Address {
    let socket = core::SocketAddress {
        address: ip.to_owned(),
        port_specifier: Some(core::socket_address::PortSpecifier::PortValue(port)),
        ..Default::default()
    };
    core::Address { address: Some(core::address::Address::SocketAddress(socket)) }
}

fn http_filter(name: &str, config: prost_types::Any, is_optional: bool) -> hcm::HttpFilter {
    hcm::HttpFilter {
        name: name.to_owned(),
        is_optional,
        config_type: Some(hcm::http_filter::ConfigType::TypedConfig(config)),
        ..Default::default()
    }
}

fn chain(name: &str, config: prost_types::Any) -> listener::FilterChain {
    listener::FilterChain {
        name: name.to_owned(),
        filters: vec![listener::Filter {
            name: name.to_owned(),
            config_type: Some(listener::filter::ConfigType::TypedConfig(config)),
        }],
        ..Default::default()
    }
}

fn manager(filters: Vec<hcm::HttpFilter>) -> hcm::HttpConnectionManager {
    let rds = hcm::Rds { route_config_name: "80".into(), ..Default::default() };
    hcm::HttpConnectionManager {
        stat_prefix: "outbound_0.0.0.0_80;".into(),
        http_filters: filters,
        route_specifier: Some(hcm::http_connection_manager::RouteSpecifier::Rds(rds)),
        ..Default::default()
    }
}

fn message(filters: Vec<hcm::HttpFilter>) -> listener::Listener {
    let proxy = tcp::TcpProxy {
        stat_prefix: "pass".into(),
        cluster_specifier: Some(tcp::tcp_proxy::ClusterSpecifier::Cluster("PassthroughCluster".into())),
        ..Default::default()
    };
    listener::Listener {
        name: "0.0.0.0_80".into(),
        address: Some(address("0.0.0.0", 80)),
        bind_to_port: Some(false),
        listener_filters: vec![listener::ListenerFilter {
            name: "envoy.filters.listener.tls_inspector".into(),
            config_type: Some(listener::listener_filter::ConfigType::TypedConfig(any(
                &TlsInspector::default(),
            ))),
            ..Default::default()
        }],
        listener_filters_timeout: Some(prost_types::Duration::default()),
        continue_on_listener_filters_timeout: true,
        filter_chains: vec![chain("http", any(&manager(filters)))],
        default_filter_chain: Some(chain("tcp", any(&proxy))),
        ..Default::default()
    }
}

fn router() -> hcm::HttpFilter {
    http_filter("envoy.filters.http.router", any(&Router::default()), false)
}

#[test]
fn a_listener_is_taken_over() {
    let converted = Listener::try_from(&message(vec![router()])).unwrap();
    assert!(!converted.bind_to_port && converted.listener_filters.timeout.is_none());
    assert!(converted.listener_filters.tls_inspector.is_some());
    assert_eq!(converted.route_names(), vec!["80".into()]);
    assert!(converted.default_filter_chain.is_some());
}

#[test]
fn an_unknown_filter_is_refused_by_name_unless_it_is_optional() {
    let unknown = prost_types::Any {
        type_url: "type.googleapis.com/envoy.extensions.filters.http.unknown.v3.Unknown".into(),
        value: Vec::new(),
    };
    let refused = message(vec![http_filter("x", unknown.clone(), false), router()]);
    let error = Listener::try_from(&refused).unwrap_err();
    assert_eq!(error.reason(), "unsupported");
    assert_eq!(
        error.to_string(),
        "filter_chains[0].filters[0].http_filters[0].typed_config: \
         envoy.extensions.filters.http.unknown.v3.Unknown is not supported"
    );
    assert!(Listener::try_from(&message(vec![http_filter("x", unknown, true), router()])).is_ok());
}

fn routes(action: Option<route::route::Action>, prefix: Option<&str>) -> route::RouteConfiguration {
    let one = route::Route {
        name: "r".into(),
        r#match: Some(route::RouteMatch {
            path_specifier: prefix.map(|p| route::route_match::PathSpecifier::Prefix(p.into())),
            ..Default::default()
        }),
        action,
        ..Default::default()
    };
    route::RouteConfiguration {
        name: "80".into(),
        virtual_hosts: vec![route::VirtualHost {
            name: "all".into(),
            domains: vec!["*".into()],
            routes: vec![one],
            ..Default::default()
        }],
        ..Default::default()
    }
}

#[test]
fn a_bad_action_is_one_bad_route_and_a_bad_match_a_bad_table() {
    let action = route::RouteAction {
        cluster_specifier: Some(route::route_action::ClusterSpecifier::Cluster("c".into())),
        retry_policy: Some(route::RetryPolicy {
            retry_on: "connect-failure,5xx".into(),
            num_retries: Some(2),
            ..Default::default()
        }),
        ..Default::default()
    };
    let good = routes(Some(route::route::Action::Route(action)), Some("/"));
    let good = RouteConfiguration::try_from(&good).unwrap();
    assert!(good.invalid_routes().is_empty());
    let RouteAction::Forward(forward) = &good.virtual_hosts[0].routes[0].action else { panic!("{good:?}") };
    assert_eq!(forward.retry.as_ref().map(|r| r.num_retries), Some(2));
    let bad_action = routes(Some(route::route::Action::Route(route::RouteAction::default())), Some("/"));
    let bad_action = RouteConfiguration::try_from(&bad_action).unwrap();
    assert_eq!(bad_action.invalid_routes(), ["all/r: route.cluster_specifier: missing"]);
    let bad_match = RouteConfiguration::try_from(&routes(None, None)).unwrap_err();
    assert_eq!(bad_match.to_string(), "virtual_hosts[0].routes[0].match.path_specifier: missing");
}

#[test]
fn a_cluster_and_its_endpoints_are_taken_over() {
    let wire = cluster::Cluster {
        name: "inbound|9080||".into(),
        cluster_discovery_type: Some(cluster::cluster::ClusterDiscoveryType::Type(
            cluster::cluster::DiscoveryType::OriginalDst.into(),
        )),
        lb_policy: cluster::cluster::LbPolicy::ClusterProvided.into(),
        upstream_bind_config: Some(core::BindConfig {
            source_address: Some(core::SocketAddress { address: "127.0.0.6".into(), ..Default::default() }),
            ..Default::default()
        }),
        ..Default::default()
    };
    let converted = Cluster::try_from(&wire).unwrap();
    assert_eq!(converted.discovery, Discovery::OriginalDst { port_override: None });
    assert_eq!(converted.bind, ["127.0.0.6".parse::<std::net::IpAddr>().unwrap()]);
    let text = |text: &str| prost_types::Value {
        kind: Some(prost_types::value::Kind::StringValue(text.to_owned())),
    };
    let fields = prost_types::Struct { fields: [("tlsMode".to_owned(), text("istio"))].into() };
    let one = endpoint::LbEndpoint {
        host_identifier: Some(endpoint::lb_endpoint::HostIdentifier::Endpoint(endpoint::Endpoint {
            address: Some(address("10.0.0.1", 80)),
            ..Default::default()
        })),
        metadata: Some(core::Metadata {
            filter_metadata: [("envoy.transport_socket_match".to_owned(), fields)].into(),
            ..Default::default()
        }),
        ..Default::default()
    };
    let wire = endpoint::ClusterLoadAssignment {
        cluster_name: "c".into(),
        endpoints: vec![endpoint::LocalityLbEndpoints { lb_endpoints: vec![one], ..Default::default() }],
        ..Default::default()
    };
    let converted = LoadAssignment::try_from(&wire).unwrap();
    let endpoint = &converted.localities[0].endpoints[0];
    assert_eq!(endpoint.transport_match["tlsMode"], "istio");
    let again = LoadAssignment::try_from(&wire).unwrap();
    let same = &again.localities[0].endpoints[0].transport_match;
    assert!(std::sync::Arc::ptr_eq(same, &endpoint.transport_match), "labels are held once");
    let mut nameless = wire;
    nameless.cluster_name.clear();
    assert_eq!(LoadAssignment::try_from(&nameless).unwrap_err().to_string(), "cluster_name: missing");
}
