use super::*;

fn service(name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: n}}\nspec: {{selector: {{app: web}}, {spec}}}\n"
    )
}

const POD: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: web-0, namespace: n, labels: {app: web}}\nspec: {}\nstatus: {podIP: 10.0.0.1, conditions: [{type: Ready, status: 'True'}]}\n";

#[test]
fn http_services_share_a_port() {
    let a = service("a", "clusterIP: 10.96.0.1, ports: [{name: http, port: 80}]");
    let b = service("b", "clusterIP: 10.96.0.2, ports: [{name: grpc, port: 80}]");
    let resources = translated(&format!("{POD}{a}{b}"), &client());
    let shared = listener(&resources, "0.0.0.0_80");
    assert_eq!(lines(&shared.filter_chains), ["raw_buffer http/1.1,h2c -> http 80"]);
    let default = shared.default_filter_chain.as_ref().expect("a default");
    assert_eq!(
        (default.name.as_str(), target(default)),
        ("PassthroughFilterChain", "tcp PassthroughCluster".to_owned())
    );
    assert_eq!(shared.bind_to_port, Some(false));
    assert_eq!(resources.routes.iter().map(|r| r.name.as_str()).collect::<Vec<_>>(), ["80"]);
}

#[test]
fn other_ports_have_addresses_of_their_own() {
    let tcp = service("t", "clusterIP: 10.96.0.1, ports: [{name: tcp, port: 5000}]");
    let auto = service("x", "clusterIP: 10.96.0.2, ports: [{port: 5000}]");
    let udp = service("u", "clusterIP: 10.96.0.3, ports: [{name: dns, port: 53, protocol: UDP}]");
    let resources = translated(&format!("{POD}{tcp}{auto}{udp}"), &client());
    let names: Vec<_> = resources.listeners.iter().map(|l| l.name.as_str()).collect();
    assert_eq!(names, ["virtualInbound", "10.96.0.1_5000", "10.96.0.2_5000", "virtualOutbound"]);
    assert_eq!(
        lines(&listener(&resources, "10.96.0.1_5000").filter_chains),
        [" -> tcp outbound|5000||t.n.svc.cluster.local"]
    );
    assert_eq!(
        lines(&listener(&resources, "10.96.0.2_5000").filter_chains),
        [
            "raw_buffer http/1.1,h2c -> http x.n.svc.cluster.local:5000",
            " -> tcp outbound|5000||x.n.svc.cluster.local"
        ]
    );
    let sniffed = resources.routes.iter().find(|r| r.name == "x.n.svc.cluster.local:5000").expect("routes");
    assert_eq!(sniffed.virtual_hosts.len(), 1);
    assert_eq!(sniffed.virtual_hosts[0].domains, ["*"]);
}

#[test]
fn headless_pods_are_listened_for_one_by_one() {
    let headless = service("db", "clusterIP: None, ports: [{name: tcp, port: 5432}]");
    let yaml = format!("{POD}{headless}");
    let resources = translated(&yaml, &client());
    assert_eq!(
        lines(&listener(&resources, "10.0.0.1_5432").filter_chains),
        [" -> tcp outbound|5432||db.n.svc.cluster.local"]
    );
    let own = Proxy { ips: vec![[10, 0, 0, 1].into()], ..client() };
    assert!(!translated(&yaml, &own).listeners.iter().any(|l| l.name == "10.0.0.1_5432"), "not for itself");
}

#[test]
fn a_tcp_service_merges_into_an_http_port() {
    let http = service("h", "clusterIP: 10.96.0.1, ports: [{name: http, port: 80}]");
    let tcp = service("t", "ports: [{name: tcp, port: 80}]");
    let resources = translated(&format!("{POD}{http}{tcp}"), &client());
    assert_eq!(
        lines(&listener(&resources, "0.0.0.0_80").filter_chains),
        ["raw_buffer http/1.1,h2c -> http 80", " -> tcp outbound|80||t.n.svc.cluster.local"]
    );
}

#[test]
fn service_entries_by_range_and_by_name() {
    let yaml = "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: a, namespace: n}\nspec: {hosts: [a.example], addresses: [192.0.2.0/24], ports: [{number: 9000, name: tcp, protocol: TCP}], resolution: NONE}\n---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: b, namespace: n}\nspec: {hosts: [b.example], ports: [{number: 443, name: tls, protocol: TLS}], resolution: DNS}\n";
    let resources = translated(yaml, &client());
    assert_eq!(
        lines(&listener(&resources, "0.0.0.0_9000").filter_chains),
        ["192.0.2.0/24 -> tcp outbound|9000||a.example"]
    );
    let tls = listener(&resources, "0.0.0.0_443");
    assert_eq!(lines(&tls.filter_chains), ["b.example -> tcp outbound|443||b.example"]);
    assert_eq!(tls.listener_filters[0].name, "envoy.filters.listener.tls_inspector");
}

#[test]
fn unknown_destinations_pass_or_are_refused() {
    let open = translated("", &client());
    assert_eq!(
        lines(&listener(&open, "virtualOutbound").filter_chains),
        ["15001  -> tcp BlackHoleCluster", " -> tcp PassthroughCluster"]
    );
    let yaml = "apiVersion: networking.istio.io/v1\nkind: Sidecar\nmetadata: {name: default, namespace: n}\nspec: {outboundTrafficPolicy: {mode: REGISTRY_ONLY}, egress: [{hosts: ['./*']}]}\n";
    let closed = translated(yaml, &client());
    assert_eq!(lines(&listener(&closed, "virtualOutbound").filter_chains)[1], " -> tcp BlackHoleCluster");
}

#[test]
fn tcp_routes_split_by_weight() {
    let tcp = service("t", "clusterIP: 10.96.0.1, ports: [{name: tcp, port: 5000}]");
    let other = service("o", "clusterIP: 10.96.0.2, ports: [{name: tcp, port: 5001}]");
    let rule = "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: v, namespace: n}\nspec: {hosts: [t], tcp: [{match: [{port: 1}], route: [{destination: {host: o}}]}, {route: [{destination: {host: t}, weight: 70}, {destination: {host: o}, weight: 30}]}]}\n";
    let resources = translated(&format!("{POD}{tcp}{other}{rule}"), &client());
    assert_eq!(
        lines(&listener(&resources, "10.96.0.1_5000").filter_chains),
        [" -> tcp outbound|5000||t.n.svc.cluster.local=70+outbound|5001||o.n.svc.cluster.local=30"]
    );
}
