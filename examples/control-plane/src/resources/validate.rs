//! Checks that a schema cannot express. Each failure names its field.

use ipnet::IpNet;

use super::{
    AuthorizationPolicy, Destination, DestinationRule, Headers, HttpMatch, HttpRoute, MtlsMode,
    PeerAuthentication, Service, ServiceEntry, Sidecar, Spec, StringMatch, TlsMode, TrafficPolicy,
    VirtualService,
};

type Checked = Result<(), (String, String)>;

/// Checks one object by itself; references to other objects are the store's business.
pub(super) fn check(spec: &Spec) -> Checked {
    match spec {
        Spec::Service(service) => self::service(service),
        Spec::VirtualService(vs) => virtual_service(vs),
        Spec::DestinationRule(rule) => destination_rule(rule),
        Spec::ServiceEntry(entry) => service_entry(entry),
        Spec::Sidecar(sidecar) => self::sidecar(sidecar),
        Spec::PeerAuthentication(pa) => peer_authentication(pa),
        Spec::AuthorizationPolicy(policy) => authorization_policy(policy),
        _ => Ok(()),
    }
}

fn fail(field: impl Into<String>, message: impl Into<String>) -> Checked {
    Err((field.into(), message.into()))
}

fn service(service: &Service) -> Checked {
    let spec = &service.spec;
    for (i, port) in spec.ports.iter().enumerate() {
        if port.port == 0 {
            return fail(format!("spec.ports[{i}].port"), "must be 1 to 65535");
        }
        if spec.ports.len() > 1 && port.name.as_deref().unwrap_or_default().is_empty() {
            return fail(format!("spec.ports[{i}].name"), "required where a service has several ports");
        }
        let protocol = port.protocol.as_deref().unwrap_or("TCP");
        if !["TCP", "UDP", "SCTP"].contains(&protocol) {
            return fail(format!("spec.ports[{i}].protocol"), format!("unknown protocol {protocol:?}"));
        }
    }
    for ip in spec.cluster_ip.iter().chain(&spec.cluster_ips) {
        if !ip.is_empty() && ip != "None" && ip.parse::<std::net::IpAddr>().is_err() {
            return fail("spec.clusterIP", format!("{ip:?} is not an address"));
        }
    }
    Ok(())
}

fn virtual_service(vs: &VirtualService) -> Checked {
    if vs.hosts.is_empty() {
        return fail("spec.hosts", "at least one host is required");
    }
    for (i, host) in vs.hosts.iter().enumerate() {
        host_name(&format!("spec.hosts[{i}]"), host)?;
    }
    if vs.http.is_empty() && vs.tls.is_empty() && vs.tcp.is_empty() {
        return fail("spec", "one of http, tls, tcp is required");
    }
    for (i, route) in vs.http.iter().enumerate() {
        http_route(&format!("spec.http[{i}]"), route)?;
    }
    for (i, route) in vs.tls.iter().enumerate() {
        let at = format!("spec.tls[{i}]");
        if route.matches.is_empty() {
            return fail(format!("{at}.match"), "at least one match is required");
        }
        for (j, m) in route.matches.iter().enumerate() {
            if m.sni_hosts.is_empty() {
                return fail(format!("{at}.match[{j}].sniHosts"), "at least one name is required");
            }
            cidrs(&format!("{at}.match[{j}].destinationSubnets"), &m.destination_subnets)?;
        }
        l4_destinations(&at, route.route.iter().map(|d| (&d.destination, d.weight)))?;
    }
    for (i, route) in vs.tcp.iter().enumerate() {
        let at = format!("spec.tcp[{i}]");
        for (j, m) in route.matches.iter().enumerate() {
            cidrs(&format!("{at}.match[{j}].destinationSubnets"), &m.destination_subnets)?;
        }
        l4_destinations(&at, route.route.iter().map(|d| (&d.destination, d.weight)))?;
    }
    Ok(())
}

fn http_route(at: &str, route: &HttpRoute) -> Checked {
    if route.delegate.is_some() {
        return fail(format!("{at}.delegate"), "delegation is not supported by this control plane");
    }
    let actions = [!route.route.is_empty(), route.redirect.is_some(), route.direct_response.is_some()];
    match actions.iter().filter(|given| **given).count() {
        1 => {}
        0 => return fail(format!("{at}.route"), "one of route, redirect, directResponse is required"),
        _ => return fail(at, "route, redirect and directResponse exclude each other"),
    }
    for (j, m) in route.matches.iter().enumerate() {
        http_match(&format!("{at}.match[{j}]"), m)?;
    }
    l4_destinations(at, route.route.iter().map(|d| (&d.destination, d.weight)))?;
    for (j, destination) in route.route.iter().enumerate() {
        header_ops(&format!("{at}.route[{j}].headers"), destination.headers.as_ref())?;
    }
    header_ops(&format!("{at}.headers"), route.headers.as_ref())?;
    if let Some(redirect) = &route.redirect {
        let code = redirect.redirect_code.unwrap_or(301);
        if ![301, 302, 303, 307, 308].contains(&code) {
            return fail(format!("{at}.redirect.redirectCode"), format!("{code} is not a redirect"));
        }
        if let Some(derive) = &redirect.derive_port
            && !["FROM_PROTOCOL_DEFAULT", "FROM_REQUEST_PORT"].contains(&derive.as_str())
        {
            return fail(format!("{at}.redirect.derivePort"), format!("unknown value {derive:?}"));
        }
    }
    if let Some(direct) = &route.direct_response
        && !(200..=599).contains(&direct.status)
    {
        return fail(format!("{at}.directResponse.status"), format!("{} is not a status", direct.status));
    }
    if let Some(rewrite) = &route.rewrite
        && let Some(by_regex) = &rewrite.uri_regex_rewrite
    {
        regex(&format!("{at}.rewrite.uriRegexRewrite.match"), &by_regex.pattern)?;
    }
    if route.retries.as_ref().is_some_and(|retries| retries.attempts < 0) {
        return fail(format!("{at}.retries.attempts"), "must not be negative");
    }
    if let Some(fault) = &route.fault {
        let shares = [
            ("delay", fault.delay.as_ref().and_then(|d| d.percentage)),
            ("abort", fault.abort.as_ref().and_then(|a| a.percentage)),
        ];
        for (which, share) in shares {
            percent(&format!("{at}.fault.{which}.percentage"), share.map(|p| p.value))?;
        }
        if let Some(abort) = &fault.abort {
            match (abort.http_status, &abort.grpc_status) {
                (Some(status), None) if (200..600).contains(&status) => {}
                (None, Some(_)) => {}
                (Some(status), None) => {
                    return fail(format!("{at}.fault.abort.httpStatus"), format!("{status} is not a status"));
                }
                _ => return fail(format!("{at}.fault.abort"), "exactly one of httpStatus, grpcStatus"),
            }
        }
        if fault.delay.as_ref().is_some_and(|delay| delay.fixed_delay.is_none()) {
            return fail(format!("{at}.fault.delay.fixedDelay"), "required");
        }
    }
    percent(&format!("{at}.mirrorPercentage"), route.mirror_percentage.map(|p| p.value))?;
    for (j, mirror) in route.mirrors.iter().enumerate() {
        percent(&format!("{at}.mirrors[{j}].percentage"), mirror.percentage.map(|p| p.value))?;
    }
    if let Some(cors) = &route.cors_policy {
        for (j, origin) in cors.allow_origins.iter().enumerate() {
            string_match(&format!("{at}.corsPolicy.allowOrigins[{j}]"), origin, false)?;
        }
    }
    Ok(())
}

fn http_match(at: &str, m: &HttpMatch) -> Checked {
    for (name, value) in
        [("uri", &m.uri), ("scheme", &m.scheme), ("method", &m.method), ("authority", &m.authority)]
    {
        if let Some(value) = value {
            string_match(&format!("{at}.{name}"), value, false)?;
        }
    }
    for (which, headers) in [("headers", &m.headers), ("withoutHeaders", &m.without_headers)] {
        for (name, value) in headers {
            if let Some(value) = value {
                string_match(&format!("{at}.{which}.{name}"), value, true)?;
            }
        }
    }
    for (name, value) in &m.query_params {
        string_match(&format!("{at}.queryParams.{name}"), value, true)?;
    }
    Ok(())
}

fn string_match(at: &str, value: &StringMatch, may_be_empty: bool) -> Checked {
    let given = [&value.exact, &value.prefix, &value.regex].iter().filter(|v| v.is_some()).count();
    match given {
        1 => {}
        0 if may_be_empty => {}
        _ => return fail(at, "exactly one of exact, prefix, regex"),
    }
    match &value.regex {
        Some(pattern) if pattern != "*" => regex(at, pattern),
        _ => Ok(()),
    }
}

fn regex(at: &str, pattern: &str) -> Checked {
    match regex::Regex::new(pattern) {
        Ok(_) => Ok(()),
        Err(error) => fail(at, format!("bad regular expression: {}", first_line(&error.to_string()))),
    }
}

fn first_line(text: &str) -> String {
    text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default().to_owned()
}

fn header_ops(at: &str, headers: Option<&Headers>) -> Checked {
    let Some(headers) = headers else { return Ok(()) };
    for (direction, ops) in [("request", &headers.request), ("response", &headers.response)] {
        let Some(ops) = ops else { continue };
        for name in ops.set.keys().chain(ops.add.keys()).chain(&ops.remove) {
            let plain = name.strip_prefix(':').unwrap_or(name);
            if http::HeaderName::from_bytes(plain.as_bytes()).is_err() {
                return fail(format!("{at}.{direction}"), format!("{name:?} is not a header name"));
            }
        }
    }
    Ok(())
}

fn l4_destinations<'a>(at: &str, destinations: impl Iterator<Item = (&'a Destination, u32)>) -> Checked {
    let mut weights = Vec::new();
    for (j, (destination, weight)) in destinations.enumerate() {
        host_name(&format!("{at}.route[{j}].destination.host"), &destination.host)?;
        if destination.port.as_ref().is_some_and(|port| port.number == 0) {
            return fail(format!("{at}.route[{j}].destination.port.number"), "must be 1 to 65535");
        }
        weights.push(weight);
    }
    if weights.len() > 1 && weights.iter().all(|weight| *weight == 0) {
        return fail(format!("{at}.route"), "all weights are 0");
    }
    Ok(())
}

fn percent(at: &str, value: Option<f64>) -> Checked {
    match value {
        Some(value) if !(0.0..=100.0).contains(&value) => fail(at, format!("{value} is not within 0 to 100")),
        _ => Ok(()),
    }
}

fn host_name(at: &str, host: &str) -> Checked {
    let plain = host.strip_prefix("*.").unwrap_or(host);
    let fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    let ip = host.parse::<std::net::IpAddr>().is_ok();
    if host == "*" || ip || (!plain.is_empty() && plain.chars().all(fine) && !plain.starts_with('.')) {
        return Ok(());
    }
    fail(at, format!("{host:?} is not a host name"))
}

fn cidrs(at: &str, values: &[String]) -> Checked {
    for (i, value) in values.iter().enumerate() {
        if cidr(value).is_none() {
            return fail(format!("{at}[{i}]"), format!("{value:?} is not an address or CIDR"));
        }
    }
    Ok(())
}

/// Reads an address or CIDR block.
pub(crate) fn cidr(text: &str) -> Option<IpNet> {
    text.parse::<IpNet>().ok().or_else(|| text.parse::<std::net::IpAddr>().ok().map(IpNet::from))
}

fn destination_rule(rule: &DestinationRule) -> Checked {
    host_name("spec.host", &rule.host)?;
    traffic_policy("spec.trafficPolicy", rule.traffic_policy.as_ref())?;
    for (i, subset) in rule.subsets.iter().enumerate() {
        if subset.name.is_empty() {
            return fail(format!("spec.subsets[{i}].name"), "required");
        }
        if rule.subsets.iter().take(i).any(|earlier| earlier.name == subset.name) {
            return fail(format!("spec.subsets[{i}].name"), format!("duplicate subset {:?}", subset.name));
        }
        traffic_policy(&format!("spec.subsets[{i}].trafficPolicy"), subset.traffic_policy.as_ref())?;
    }
    Ok(())
}

fn traffic_policy(at: &str, policy: Option<&TrafficPolicy>) -> Checked {
    let Some(policy) = policy else { return Ok(()) };
    for (i, port) in policy.port_level_settings.iter().enumerate() {
        if port.port.as_ref().is_none_or(|port| port.number == 0) {
            return fail(format!("{at}.portLevelSettings[{i}].port.number"), "required, 1 to 65535");
        }
        tls(&format!("{at}.portLevelSettings[{i}].tls"), port.tls.as_ref())?;
    }
    tls(&format!("{at}.tls"), policy.tls.as_ref())?;
    if let Some(outlier) = &policy.outlier_detection {
        for (name, value) in [
            ("maxEjectionPercent", outlier.max_ejection_percent),
            ("minHealthPercent", outlier.min_health_percent),
        ] {
            percent(&format!("{at}.outlierDetection.{name}"), value.map(f64::from))?;
        }
    }
    if let Some(hash) = policy.load_balancer.as_ref().and_then(|lb| lb.consistent_hash.as_ref()) {
        let keys = [
            hash.http_header_name.is_some(),
            hash.http_cookie.is_some(),
            hash.use_source_ip.is_some(),
            hash.http_query_parameter_name.is_some(),
        ];
        if keys.iter().filter(|given| **given).count() != 1 {
            return fail(format!("{at}.loadBalancer.consistentHash"), "exactly one key is required");
        }
    }
    Ok(())
}

fn tls(at: &str, tls: Option<&super::TlsSettings>) -> Checked {
    match tls {
        Some(tls) if tls.mode == TlsMode::Mutual && tls.client_certificate.is_empty() => {
            fail(format!("{at}.clientCertificate"), "required for MUTUAL")
        }
        Some(tls) if tls.mode == TlsMode::Mutual && tls.private_key.is_empty() => {
            fail(format!("{at}.privateKey"), "required for MUTUAL")
        }
        _ => Ok(()),
    }
}

fn service_entry(entry: &ServiceEntry) -> Checked {
    if entry.hosts.is_empty() {
        return fail("spec.hosts", "at least one host is required");
    }
    for (i, host) in entry.hosts.iter().enumerate() {
        host_name(&format!("spec.hosts[{i}]"), host)?;
    }
    cidrs("spec.addresses", &entry.addresses)?;
    for (i, port) in entry.ports.iter().enumerate() {
        if port.number == 0 {
            return fail(format!("spec.ports[{i}].number"), "must be 1 to 65535");
        }
    }
    for (i, endpoint) in entry.endpoints.iter().enumerate() {
        let is_ip = endpoint.address.parse::<std::net::IpAddr>().is_ok();
        if entry.resolution == super::Resolution::Static && !is_ip {
            return fail(
                format!("spec.endpoints[{i}].address"),
                format!("{:?} is not an address, as resolution STATIC needs", endpoint.address),
            );
        }
    }
    Ok(())
}

fn sidecar(sidecar: &Sidecar) -> Checked {
    for (i, listener) in sidecar.egress.iter().enumerate() {
        if listener.hosts.is_empty() {
            return fail(format!("spec.egress[{i}].hosts"), "at least one host is required");
        }
        for (j, host) in listener.hosts.iter().enumerate() {
            if host.split_once('/').is_none_or(|(ns, name)| ns.is_empty() || name.is_empty()) {
                return fail(
                    format!("spec.egress[{i}].hosts[{j}]"),
                    format!("{host:?} is not of the form namespace/dnsName"),
                );
            }
        }
    }
    Ok(())
}

fn peer_authentication(pa: &PeerAuthentication) -> Checked {
    for port in pa.port_level_mtls.keys() {
        if port.parse::<u16>().is_ok_and(|port| port != 0) {
            continue;
        }
        return fail(format!("spec.portLevelMtls.{port}"), "not a port");
    }
    let selects = pa.selector.as_ref().is_some_and(|selector| !selector.match_labels.is_empty());
    if !pa.port_level_mtls.is_empty() && !selects {
        return fail("spec.portLevelMtls", "needs a selector");
    }
    if pa.mtls.as_ref().is_some_and(|mtls| mtls.mode == MtlsMode::Unset) && pa.port_level_mtls.is_empty() {
        return Ok(());
    }
    Ok(())
}

/// `when` keys that the translation knows.
const CONDITION_KEYS: [&str; 11] = [
    "source.ip",
    "remote.ip",
    "source.namespace",
    "source.principal",
    "source.serviceAccount",
    "source.trustDomain",
    "request.auth.principal",
    "request.auth.audiences",
    "request.auth.presenter",
    "destination.ip",
    "destination.port",
];

fn authorization_policy(policy: &AuthorizationPolicy) -> Checked {
    if policy.action == super::Action::Custom {
        return fail("spec.action", "CUSTOM is not supported by this control plane");
    }
    for (i, rule) in policy.rules.iter().enumerate() {
        for (j, from) in rule.from.iter().enumerate() {
            let s = &from.source;
            let at = format!("spec.rules[{i}].from[{j}].source");
            for (name, values) in [
                ("ipBlocks", &s.ip_blocks),
                ("notIpBlocks", &s.not_ip_blocks),
                ("remoteIpBlocks", &s.remote_ip_blocks),
                ("notRemoteIpBlocks", &s.not_remote_ip_blocks),
            ] {
                cidrs(&format!("{at}.{name}"), values)?;
            }
        }
        for (j, to) in rule.to.iter().enumerate() {
            let at = format!("spec.rules[{i}].to[{j}].operation");
            for (name, values) in [("ports", &to.operation.ports), ("notPorts", &to.operation.not_ports)] {
                ports(&format!("{at}.{name}"), values)?;
            }
        }
        for (j, when) in rule.when.iter().enumerate() {
            let at = format!("spec.rules[{i}].when[{j}]");
            let known = CONDITION_KEYS.contains(&when.key.as_str())
                || when.key == "connection.sni"
                || bracketed(&when.key, "request.headers")
                || bracketed(&when.key, "request.auth.claims");
            if !known {
                return fail(format!("{at}.key"), format!("unknown attribute {:?}", when.key));
            }
            if when.values.is_empty() && when.not_values.is_empty() {
                return fail(at, "values or notValues is required");
            }
            let all: Vec<String> = when.values.iter().chain(&when.not_values).cloned().collect();
            match when.key.as_str() {
                "source.ip" | "remote.ip" | "destination.ip" => cidrs(&format!("{at}.values"), &all)?,
                "destination.port" => ports(&format!("{at}.values"), &all)?,
                _ => {}
            }
        }
    }
    Ok(())
}

fn bracketed(key: &str, name: &str) -> bool {
    key.strip_prefix(name).is_some_and(|rest| rest.len() > 2 && rest.starts_with('[') && rest.ends_with(']'))
}

fn ports(at: &str, values: &[String]) -> Checked {
    for (i, value) in values.iter().enumerate() {
        if value.parse::<u16>().is_err() {
            return fail(format!("{at}[{i}]"), format!("{value:?} is not a port"));
        }
    }
    Ok(())
}
