use mesh_xds::pb::envoy::config::cluster::v3::{Cluster, cluster as pb_cluster};
use mesh_xds::pb::envoy::config::core::v3::TransportSocket;
use mesh_xds::pb::envoy::config::core::v3::transport_socket::ConfigType;
use mesh_xds::pb::envoy::extensions::transport_sockets::tls::v3 as tls;
use mesh_xds::pb::envoy::r#type::matcher::v3::string_matcher::MatchPattern;

use super::*;

const NAME: &str = "outbound|80||web.n.svc.cluster.local";

fn rule(spec: &str) -> String {
    format!(
        "---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: d, namespace: n}}\nspec: {{host: web, {spec}}}\n"
    )
}

fn http_port() -> String {
    web("{name: http, port: 80, targetPort: 8080}")
}

fn upstream(socket: &TransportSocket) -> tls::UpstreamTlsContext {
    let Some(ConfigType::TypedConfig(any)) = &socket.config_type else { panic!("{socket:?}") };
    tls::UpstreamTlsContext::decode(any.value.as_slice()).expect("decodes")
}

fn identities(context: &tls::UpstreamTlsContext) -> Vec<String> {
    use tls::common_tls_context::ValidationContextType;
    let common = context.common_tls_context.as_ref().expect("a context");
    let Some(ValidationContextType::CombinedValidationContext(combined)) = &common.validation_context_type
    else {
        panic!("{common:?}")
    };
    let matchers =
        &combined.default_validation_context.as_ref().expect("a context").match_typed_subject_alt_names;
    matchers
        .iter()
        .map(|m| match m.matcher.as_ref().and_then(|m| m.match_pattern.as_ref()) {
            Some(MatchPattern::Exact(name)) => name.clone(),
            other => panic!("{other:?}"),
        })
        .collect()
}

fn kind(cluster: &Cluster) -> pb_cluster::DiscoveryType {
    match cluster.cluster_discovery_type {
        Some(pb_cluster::ClusterDiscoveryType::Type(kind)) => kind.try_into().expect("a known type"),
        _ => panic!("{cluster:?}"),
    }
}

#[test]
fn automatic_mutual_tls_by_endpoint() {
    let resources = translated(&http_port(), &client());
    let web = cluster(&resources, NAME);
    assert_eq!(kind(web), pb_cluster::DiscoveryType::Eds);
    let [with, without] = web.transport_socket_matches.as_slice() else { panic!("two matches") };
    assert_eq!((with.name.as_str(), without.name.as_str()), ("tlsMode-istio", "tlsMode-disabled"));
    let context = upstream(with.transport_socket.as_ref().expect("a socket"));
    assert_eq!(context.sni, "outbound_.80_._.web.n.svc.cluster.local");
    assert_eq!(identities(&context), ["spiffe://cluster.local/ns/n/sa/alice"]);
    assert_eq!(
        context.common_tls_context.expect("a context").alpn_protocols,
        ["istio-peer-exchange", "istio"]
    );
    let endpoint = &resources.endpoints[0].endpoints[0].lb_endpoints[0];
    let metadata = &endpoint.metadata.as_ref().expect("metadata").filter_metadata;
    assert!(metadata.contains_key("envoy.transport_socket_match"));
    let workload = metadata["istio"].fields["workload"].kind.clone();
    let expected = "web-0;n;web;v1;Kubernetes".to_owned();
    assert_eq!(workload, Some(prost_types::value::Kind::StringValue(expected)));
}

#[test]
fn tls_as_rules_say() {
    let with = |spec: &str| {
        let yaml = format!("{}{}", http_port(), rule(spec));
        cluster(&translated(&yaml, &client()), NAME).clone()
    };
    let mutual = with("trafficPolicy: {tls: {mode: ISTIO_MUTUAL}}");
    assert!(mutual.transport_socket_matches.is_empty());
    assert_eq!(identities(&upstream(mutual.transport_socket.as_ref().expect("TLS"))).len(), 1);
    let off = with("trafficPolicy: {tls: {mode: DISABLE}}");
    assert!(off.transport_socket.is_none() && off.transport_socket_matches.is_empty());
    let simple = with("trafficPolicy: {tls: {mode: SIMPLE}}");
    let context = upstream(simple.transport_socket.as_ref().expect("TLS"));
    assert!(context.auto_host_sni && context.auto_sni_san_validation);
    let istio = &simple.metadata.as_ref().expect("metadata").filter_metadata["istio"];
    assert!(istio.fields.contains_key("alpn_override"));
    let disabled = format!(
        "{}---\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: p, namespace: n}}\nspec: {{mtls: {{mode: DISABLE}}}}\n",
        http_port()
    );
    let plain = cluster(&translated(&disabled, &client()), NAME).clone();
    assert!(plain.transport_socket.is_none() && plain.transport_socket_matches.is_empty());
}

#[test]
fn subsets_are_clusters_with_policies_of_their_own() {
    let spec = "trafficPolicy: {connectionPool: {tcp: {maxConnections: 7}}, loadBalancer: {simple: ROUND_ROBIN}, portLevelSettings: [{port: {number: 80}, connectionPool: {http: {http2MaxRequests: 5}}}]}, subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}, trafficPolicy: {loadBalancer: {simple: RANDOM}}}]";
    let yaml = format!("{}{}", http_port(), rule(spec));
    let resources = translated(&yaml, &client());
    let whole = cluster(&resources, NAME);
    let limits = &whole.circuit_breakers.as_ref().expect("limits").thresholds[0];
    assert_eq!(
        (limits.max_connections, limits.max_requests),
        (Some(u32::MAX), Some(5)),
        "a port's settings replace the layer"
    );
    assert_eq!(whole.lb_policy(), pb_cluster::LbPolicy::LeastRequest);
    assert_eq!(
        cluster(&resources, "outbound|80|v2|web.n.svc.cluster.local").lb_policy(),
        pb_cluster::LbPolicy::Random
    );
    let size = |name: &str| {
        let found = resources.endpoints.iter().find(|e| e.cluster_name == name).expect("endpoints");
        found.endpoints.iter().map(|group| group.lb_endpoints.len()).sum::<usize>()
    };
    assert_eq!(size("outbound|80|v1|web.n.svc.cluster.local"), 1);
    assert_eq!(size("outbound|80|v2|web.n.svc.cluster.local"), 0, "an empty assignment, not none");
    let istio = &whole.metadata.as_ref().expect("metadata").filter_metadata["istio"];
    assert!(istio.fields.contains_key("config") && istio.fields.contains_key("services"));
}

#[test]
fn rules_are_looked_up_in_one_namespace_only() {
    let own = rule("trafficPolicy: {tls: {mode: DISABLE}}")
        .replace("namespace: n", "namespace: m")
        .replace("host: web", "host: web.n.svc.cluster.local");
    let service = rule("trafficPolicy: {loadBalancer: {simple: RANDOM}}");
    let yaml = format!("{}{own}{service}", http_port());
    let in_m = Proxy { namespace: "m".to_owned(), ..client() };
    let seen = cluster(&translated(&yaml, &in_m), NAME).clone();
    assert_eq!(
        seen.lb_policy(),
        pb_cluster::LbPolicy::LeastRequest,
        "the client's own namespace hides the service's"
    );
    assert!(seen.transport_socket_matches.is_empty());
    assert_eq!(cluster(&translated(&yaml, &client()), NAME).lb_policy(), pb_cluster::LbPolicy::Random);
}

#[test]
fn external_services_have_no_automatic_tls() {
    let yaml = "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: a, namespace: n}\nspec: {hosts: [a.example], ports: [{number: 80, name: http, protocol: HTTP}], resolution: DNS}\n";
    let resources = translated(yaml, &client());
    let external = cluster(&resources, "outbound|80||a.example");
    assert_eq!(kind(external), pb_cluster::DiscoveryType::StrictDns);
    assert!(external.transport_socket.is_none() && external.transport_socket_matches.is_empty());
    assert!(external.load_assignment.is_some() && resources.endpoints.is_empty());
}

#[test]
fn outlier_detection_sets_the_panic_threshold() {
    let yaml = format!(
        "{}{}",
        http_port(),
        rule(
            "trafficPolicy: {outlierDetection: {consecutive5xxErrors: 0, minHealthPercent: 30, interval: 5s}}"
        )
    );
    let web = cluster(&translated(&yaml, &client()), NAME).clone();
    let outlier = web.outlier_detection.expect("outlier detection");
    assert_eq!((outlier.consecutive_5xx, outlier.enforcing_consecutive_5xx), (None, Some(0)));
    let common = web.common_lb_config.expect("a configuration");
    assert_eq!(common.healthy_panic_threshold.map(|p| p.value), Some(30.0));
}

#[test]
fn the_upstream_protocol_follows_the_port() {
    use mesh_xds::pb::envoy::extensions::upstreams::http::v3 as upstream;
    use upstream::http_protocol_options::UpstreamProtocolOptions;
    let options = |port: &str| {
        let resources = translated(&web(port), &client());
        let any = cluster(&resources, NAME).typed_extension_protocol_options.values().next().cloned();
        any.map(|any| upstream::HttpProtocolOptions::decode(any.value.as_slice()).expect("decodes"))
            .and_then(|o| o.upstream_protocol_options)
    };
    assert!(matches!(options("{port: 80}"), Some(UpstreamProtocolOptions::UseDownstreamProtocolConfig(_))));
    assert!(matches!(
        options("{name: grpc, port: 80}"),
        Some(UpstreamProtocolOptions::ExplicitHttpConfig(_))
    ));
    assert!(options("{name: tcp, port: 80}").is_none());
}
