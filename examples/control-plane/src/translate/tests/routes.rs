use mesh_xds::pb::envoy::config::route::v3 as route;
use mesh_xds::pb::envoy::config::route::v3::route::Action;
use mesh_xds::pb::envoy::config::route::v3::route_action::ClusterSpecifier;
use mesh_xds::pb::envoy::config::route::v3::route_match::PathSpecifier;

use super::*;

fn rule(http: &str) -> String {
    format!(
        "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: v, namespace: n}}\nspec:\n  hosts: [web]\n  http: {http}\n"
    )
}

fn http_port() -> String {
    web("{name: http, port: 80, targetPort: 8080}")
}

fn host<'r>(resources: &'r Resources, name: &str) -> &'r route::VirtualHost {
    let hosts = resources.routes.iter().flat_map(|r| &r.virtual_hosts);
    hosts.into_iter().find(|h| h.name == name).unwrap_or_else(|| panic!("no {name}"))
}

fn routes_of(http: &str) -> Vec<route::Route> {
    let resources = translated(&format!("{}{}", http_port(), rule(http)), &client());
    host(&resources, "web.n.svc.cluster.local:80").routes.clone()
}

fn forward(route: &route::Route) -> &route::RouteAction {
    match &route.action {
        Some(Action::Route(action)) => action,
        other => panic!("{other:?}"),
    }
}

fn to(route: &route::Route) -> String {
    match &forward(route).cluster_specifier {
        Some(ClusterSpecifier::Cluster(name)) => name.clone(),
        Some(ClusterSpecifier::WeightedClusters(all)) => {
            all.clusters.iter().map(|c| format!("{}={} ", c.name, c.weight.unwrap_or_default())).collect()
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn names_by_which_a_service_is_called() {
    let resources = translated(&http_port(), &client());
    assert_eq!(
        host(&resources, "web.n.svc.cluster.local:80").domains,
        ["web.n.svc.cluster.local", "web.n.svc.cluster.local.", "web", "web.n", "web.n.svc", "10.96.0.1"]
    );
    let elsewhere = Proxy { namespace: "m".to_owned(), ..client() };
    let resources = translated(&http_port(), &elsewhere);
    let domains = &host(&resources, "web.n.svc.cluster.local:80").domains;
    assert!(!domains.contains(&"web".to_owned()) && domains.contains(&"web.n".to_owned()));
    assert_eq!(host(&resources, "allow_any").domains, ["*"]);
}

#[test]
fn the_default_route() {
    let resources = translated(&http_port(), &client());
    let config = &resources.routes[0];
    assert!(config.ignore_port_in_host_matching && config.validate_clusters == Some(false));
    let default = &host(&resources, "web.n.svc.cluster.local:80").routes[0];
    assert_eq!(
        (default.name.as_str(), to(default).as_str()),
        ("default", "outbound|80||web.n.svc.cluster.local")
    );
    let action = forward(default);
    assert_eq!(action.timeout.map(|t| t.seconds), Some(0));
    let retries = action.retry_policy.as_ref().expect("retries");
    assert_eq!(retries.num_retries, Some(2));
    assert_eq!(
        retries.retry_on,
        "connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes"
    );
    assert_eq!(retries.host_selection_retry_max_attempts, 5);
}

#[test]
fn weights_and_order() {
    let routes = routes_of(
        "[{name: a, match: [{uri: {prefix: /a}}, {name: h, headers: {x: {exact: '1'}}}], route: [{destination: {host: web, subset: v1}, weight: 90}, {destination: {host: web, subset: v2}, weight: 10}, {destination: {host: web, subset: v3}, weight: 0}]}, {route: [{destination: {host: web}}]}, {route: [{destination: {host: never}}]}]",
    );
    let seen: Vec<_> = routes.iter().map(|r| (r.name.as_str(), to(r))).collect();
    let split =
        "outbound|80|v1|web.n.svc.cluster.local=90 outbound|80|v2|web.n.svc.cluster.local=10 ".to_owned();
    assert_eq!(
        seen,
        [
            ("a", split.clone()),
            ("a.h", split),
            ("default", "outbound|80||web.n.svc.cluster.local".to_owned())
        ],
        "nothing follows a catch-all"
    );
}

#[test]
fn matches_known_beforehand_are_decided_here() {
    let http = "[{match: [{sourceLabels: {app: other}}, {port: 81}, {sourceNamespace: elsewhere}], route: [{destination: {host: a}}]}, {match: [{sourceLabels: {app: client}, uri: {exact: /x}}], route: [{destination: {host: web}}]}]";
    let routes = routes_of(http);
    assert_eq!(routes.len(), 1, "and there is no fall back to the service");
    let path = routes[0].r#match.as_ref().and_then(|m| m.path_specifier.as_ref());
    assert_eq!(path, Some(&PathSpecifier::Path("/x".to_owned())));
}

#[test]
fn retries_and_timeouts() {
    let retry = |text: &str| {
        let routes = routes_of(&format!(
            "[{{timeout: 1500ms, retries: {text}, route: [{{destination: {{host: web}}}}]}}]"
        ));
        let action = forward(&routes[0]).clone();
        assert_eq!(action.timeout.map(|t| (t.seconds, t.nanos)), Some((1, 500_000_000)));
        action.retry_policy
    };
    assert_eq!(retry("{perTryTimeout: 1s}"), None, "no attempts, no retries");
    let policy = retry(
        "{attempts: 3, retryOn: 'gateway-error, 503', perTryTimeout: 2s, retryIgnorePreviousHosts: false}",
    )
    .expect("a policy");
    assert_eq!((policy.num_retries, policy.retriable_status_codes.as_slice()), (Some(3), &[503][..]));
    assert_eq!(policy.retry_on, "gateway-error,retriable-status-codes");
    assert!(policy.retry_host_predicate.is_empty());
}

#[test]
fn redirects_rewrites_mirrors_and_faults() {
    let routes = routes_of(
        "[{match: [{uri: {exact: /r}}], redirect: {uri: /n, authority: h, redirectCode: 308, scheme: https, derivePort: FROM_PROTOCOL_DEFAULT}}, {match: [{uri: {exact: /d}}], directResponse: {status: 418, body: {string: tea}}}, {match: [{uri: {prefix: /w}}], rewrite: {uri: /, authority: other}, mirror: {host: web, subset: v2}, mirrorPercentage: {value: 12.5}, fault: {delay: {fixedDelay: 2s, percentage: {value: 50}}, abort: {httpStatus: 503}}, headers: {request: {set: {x-a: b, Host: ignored}, remove: [x-c]}}, corsPolicy: {allowOrigins: [{exact: 'https://a'}], maxAge: 1m}, route: [{destination: {host: web}, headers: {response: {add: {x-d: e}}}}]}]",
    );
    let Some(Action::Redirect(redirect)) = &routes[0].action else { panic!("{:?}", routes[0].action) };
    assert_eq!(
        (redirect.response_code, redirect.port_redirect, redirect.host_redirect.as_str()),
        (4, 443, "h")
    );
    let Some(Action::DirectResponse(direct)) = &routes[1].action else { panic!("{:?}", routes[1].action) };
    assert_eq!(direct.status, 418);
    let action = forward(&routes[2]);
    assert_eq!(action.prefix_rewrite, "/");
    assert_eq!(
        action.host_rewrite_specifier,
        Some(route::route_action::HostRewriteSpecifier::HostRewriteLiteral("other".to_owned()))
    );
    let mirror = &action.request_mirror_policies[0];
    let share = mirror.runtime_fraction.as_ref().and_then(|f| f.default_value).expect("a share");
    assert_eq!(
        (mirror.cluster.as_str(), share.numerator),
        ("outbound|80|v2|web.n.svc.cluster.local", 125_000)
    );
    let filters: Vec<_> = routes[2].typed_per_filter_config.keys().map(String::as_str).collect();
    assert_eq!(filters, ["envoy.filters.http.cors", "envoy.filters.http.fault"]);
    assert_eq!(routes[2].request_headers_to_add.len(), 1, "Host is a rewrite, not a header");
    assert_eq!(routes[2].request_headers_to_remove, ["x-c"]);
    assert_eq!(routes[2].response_headers_to_add.len(), 1, "the only destination's come after the route's");
}

#[test]
fn the_most_specific_rule_wins_and_the_oldest_of_equals() {
    let wildcard = "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: w, namespace: n}\nspec: {hosts: ['*.n.svc.cluster.local'], http: [{route: [{destination: {host: wild}}]}]}\n";
    let second = rule("[{route: [{destination: {host: second}}]}]").replace("name: v,", "name: a,");
    let first = rule("[{route: [{destination: {host: first}}]}]");
    let yaml = format!("{}{wildcard}{first}{second}", http_port());
    let resources = translated(&yaml, &client());
    assert_eq!(
        to(&host(&resources, "web.n.svc.cluster.local:80").routes[0]),
        "outbound|80||first.n.svc.cluster.local"
    );
}

#[test]
fn hosts_that_no_registry_knows_are_served_on_port_80() {
    let rule = "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: x, namespace: n}\nspec: {hosts: [made.up], http: [{route: [{destination: {host: web}}]}]}\n";
    let resources = translated(&format!("{}{rule}", http_port()), &client());
    assert_eq!(host(&resources, "made.up:80").domains, ["made.up"]);
}

#[test]
fn affinity_is_asked_for_by_the_route() {
    let yaml = "---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: d, namespace: n}\nspec: {host: web, trafficPolicy: {loadBalancer: {consistentHash: {httpHeaderName: x-user}}}}\n";
    let resources = translated(&format!("{}{yaml}", http_port()), &client());
    let action = forward(&host(&resources, "web.n.svc.cluster.local:80").routes[0]);
    assert_eq!(action.hash_policy.len(), 1);
    assert!(action.retry_policy.as_ref().is_some_and(|p| p.retry_host_predicate.is_empty()));
}
