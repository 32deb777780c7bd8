use super::*;

fn with_mode(port: &str, mode: &str) -> String {
    format!(
        "{}---\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: p, namespace: n}}\nspec: {{mtls: {{mode: {mode}}}}}\n",
        web(port)
    )
}

/// The chains of port 8080 only.
fn chains(port: &str, mode: &str) -> Vec<String> {
    let resources = translated(&with_mode(port, mode), &server());
    let inbound = listener(&resources, "virtualInbound");
    lines(inbound.filter_chains.iter().filter(|c| c.name == "0.0.0.0_8080"))
}

const HTTP: &str = "{name: http, port: 80, targetPort: 8080}";
const TCP: &str = "{name: tcp, port: 80, targetPort: 8080}";
const AUTO: &str = "{name: x, port: 80, targetPort: 8080}";

#[test]
fn chains_by_mode_and_protocol() {
    let all = "istio-peer-exchange,istio,istio-http/1.0,istio-http/1.1,istio-h2";
    let (h, t) = ("http inline inbound|8080||", "tcp inbound|8080||");
    let cases: [(&str, &str, Vec<String>); 9] = [
        (
            "PERMISSIVE",
            AUTO,
            vec![
                format!("8080 tls istio-http/1.0,istio-http/1.1,istio-h2 -> {h} mtls"),
                format!("8080 raw_buffer http/1.1,h2c -> {h}"),
                format!("8080 tls istio-peer-exchange,istio -> {t} mtls"),
                format!("8080 raw_buffer -> {t}"),
                format!("8080 tls -> {t}"),
            ],
        ),
        ("PERMISSIVE", HTTP, vec![format!("8080 tls {all} -> {h} mtls"), format!("8080 raw_buffer -> {h}")]),
        (
            "PERMISSIVE",
            TCP,
            vec![
                format!("8080 tls {all} -> {t} mtls"),
                format!("8080 tls -> {t}"),
                format!("8080 raw_buffer -> {t}"),
            ],
        ),
        (
            "STRICT",
            AUTO,
            vec![
                format!("8080 tls istio-http/1.0,istio-http/1.1,istio-h2 -> {h} mtls"),
                format!("8080 tls -> {t} mtls"),
            ],
        ),
        ("STRICT", HTTP, vec![format!("8080 tls -> {h} mtls")]),
        ("STRICT", TCP, vec![format!("8080 tls -> {t} mtls")]),
        (
            "DISABLE",
            AUTO,
            vec![format!("8080 raw_buffer http/1.1,h2c -> {h}"), format!("8080 raw_buffer -> {t}")],
        ),
        ("DISABLE", HTTP, vec![format!("8080 raw_buffer -> {h}")]),
        ("DISABLE", TCP, vec![format!("8080 raw_buffer -> {t}")]),
    ];
    for (mode, port, expected) in cases {
        assert_eq!(chains(port, mode), expected, "{mode} {port}");
    }
}

#[test]
fn the_listener_around_them() {
    let resources = translated(&with_mode(HTTP, "STRICT"), &server());
    let inbound = listener(&resources, "virtualInbound");
    let filters: Vec<_> = inbound.listener_filters.iter().map(|f| f.name.as_str()).collect();
    assert_eq!(
        filters,
        [
            "envoy.filters.listener.original_dst",
            "envoy.filters.listener.tls_inspector",
            "envoy.filters.listener.http_inspector"
        ]
    );
    assert_eq!(
        lines(inbound.filter_chains.iter().take(3)),
        [
            "15006  -> tcp BlackHoleCluster",
            "tls istio-http/1.0,istio-http/1.1,istio-h2 -> http inline InboundPassthroughCluster mtls",
            "tls -> tcp InboundPassthroughCluster mtls",
        ]
    );
    let own = cluster(&resources, "inbound|8080||");
    let bind = own.upstream_bind_config.as_ref().and_then(|b| b.source_address.as_ref());
    assert_eq!(bind.map(|b| b.address.as_str()), Some("127.0.0.6"));
    cluster(&resources, "InboundPassthroughCluster");
}

#[test]
fn a_port_of_its_own_mode_is_keyed_by_target_port() {
    let policy = "---\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: w, namespace: n}\nspec: {selector: {matchLabels: {app: web}}, mtls: {mode: STRICT}, portLevelMtls: {8080: {mode: DISABLE}, 9999: {mode: PERMISSIVE}}}\n";
    let resources = translated(&format!("{}{policy}", web(HTTP)), &server());
    let inbound = listener(&resources, "virtualInbound");
    let of = |name: &str| lines(inbound.filter_chains.iter().filter(|c| c.name == name));
    assert_eq!(of("0.0.0.0_8080"), ["8080 raw_buffer -> http inline inbound|8080||"]);
    let extra: Vec<_> = lines(&inbound.filter_chains).into_iter().filter(|l| l.starts_with("9999")).collect();
    assert_eq!(extra.len(), 5, "a port without a service that has a mode gets chains of its own: {extra:?}");

    // Clients hear of it through the endpoint: no mutual TLS where the port takes none.
    let resources = translated(&format!("{}{policy}", web(HTTP)), &client());
    let endpoints = &resources.endpoints[0].endpoints[0].lb_endpoints[0];
    let metadata = endpoints.metadata.as_ref().expect("metadata");
    assert!(!metadata.filter_metadata.contains_key("envoy.transport_socket_match"));
}

#[test]
fn inspectors_are_off_where_nothing_asks_for_them() {
    use pb::listener_filter_chain_match_predicate::Rule;
    let resources = translated(&with_mode(TCP, "DISABLE"), &server());
    let filters = &listener(&resources, "virtualInbound").listener_filters;
    let tls = filters[1].filter_disabled.as_ref().and_then(|p| p.rule.as_ref());
    assert_eq!(tls, Some(&Rule::AnyMatch(true)), "plaintext only: application TLS is opaque");
    let http = filters[2].filter_disabled.as_ref().and_then(|p| p.rule.as_ref());
    assert!(
        matches!(http, Some(Rule::DestinationPortRange(range)) if (range.start, range.end) == (8080, 8081))
    );
}

#[test]
fn a_pod_without_an_address_has_its_ports_already() {
    let yaml =
        web(HTTP).replace("status: {podIP: 10.0.0.1, conditions: [{type: Ready, status: 'True'}]}", "");
    let resources = translated(&yaml, &server());
    cluster(&resources, "inbound|8080||");
}

#[test]
fn nobody_is_believed_about_client_certificates() {
    use mesh_xds::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::ForwardClientCertDetails;
    let told = |resources: &Resources| -> Vec<(bool, ForwardClientCertDetails)> {
        let chains = resources.listeners.iter().flat_map(|listener| {
            let inbound = listener.name == "virtualInbound";
            listener.filter_chains.iter().chain(&listener.default_filter_chain).map(move |c| (inbound, c))
        });
        let filters = chains.flat_map(|(inbound, chain)| chain.filters.iter().map(move |f| (inbound, f)));
        let managers = filters.filter(|(_, f)| f.name.ends_with("http_connection_manager"));
        managers
            .map(|(inbound, f)| (inbound, typed::<HttpConnectionManager>(f).forward_client_cert_details()))
            .collect()
    };
    for mode in ["STRICT", "PERMISSIVE", "DISABLE"] {
        let all = told(&translated(&with_mode(HTTP, mode), &server()));
        assert!(
            all.iter().any(|(inbound, _)| *inbound) && all.iter().any(|(inbound, _)| !*inbound),
            "{all:?}"
        );
        for (inbound, details) in all {
            // The peer's proven identity in place of what was sent; from the own application, nothing.
            let expected = if inbound {
                ForwardClientCertDetails::SanitizeSet
            } else {
                ForwardClientCertDetails::Sanitize
            };
            assert_eq!(details, expected, "{mode}");
        }
    }
}
