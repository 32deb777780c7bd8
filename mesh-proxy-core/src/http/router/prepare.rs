//! What is decided about a request before its attempts: cluster, headers, deadline, protocol, hash.

use std::{net::IpAddr, sync::Arc, time::Duration};

use http::{HeaderValue, Method, Version, header, request, uri};
use tokio::time::Instant;

use super::{Local, answers::expand};
use crate::{
    config::{
        ClusterSpecifier, Forward, HashSource, HostRewrite, LbPolicy, PathRewrite, Route, UpstreamProtocol,
        names,
    },
    filter::LocalReply,
    http::{HttpConnection, exchange::Exchange, headers, path, pipeline::capture_request, routes},
    telemetry::ResponseFlags,
    upstream::{ClusterRuntime, ConnectOptions, Host, Protocol},
};

pub(super) fn origin_form(head: &request::Parts) -> uri::Uri {
    if head.method == Method::CONNECT {
        return head.uri.clone();
    }
    if head.uri.authority().is_none() {
        return head.uri.clone();
    }
    head.uri.path_and_query().cloned().map_or_else(|| uri::Uri::from_static("/"), uri::Uri::from)
}

pub(super) fn absolute_form(head: &request::Parts, host: Option<&HeaderValue>, endpoint: &Host) -> uri::Uri {
    let mut parts = uri::Parts::default();
    parts.scheme = Some(uri::Scheme::HTTP);
    parts.authority = host
        .and_then(|h| uri::Authority::try_from(h.as_bytes()).ok())
        .or_else(|| head.uri.authority().cloned())
        .or_else(|| uri::Authority::try_from(endpoint.address().to_string()).ok());
    parts.path_and_query =
        head.uri.path_and_query().cloned().or_else(|| Some(uri::PathAndQuery::from_static("/")));
    uri::Uri::from_parts(parts).unwrap_or_else(|_| uri::Uri::from_static("/"))
}

pub(super) fn find_cluster(
    connection: &HttpConnection,
    exchange: &mut Exchange,
    forward: &Forward,
    head: &request::Parts,
) -> Result<Arc<ClusterRuntime>, Local> {
    let by_header;
    let name: Option<&str> = match &forward.cluster {
        ClusterSpecifier::Name(name) => Some(name),
        ClusterSpecifier::Weighted(all) => exchange.cx.weighted.and_then(|at| all.get(at)).map(|w| &*w.name),
        ClusterSpecifier::Header(header) => {
            by_header = head.headers.get(header).and_then(|v| v.to_str().ok());
            by_header
        }
    };
    let cluster = name.and_then(|name| connection.shared.clusters.get(name));
    let Some(cluster) = cluster else {
        exchange.cx.upstream.cluster = name.map(Arc::from);
        exchange.cx.add_flags(ResponseFlags::NO_CLUSTER);
        return Err(Box::new(LocalReply::new(forward.cluster_not_found, "", "cluster_not_found")));
    };
    exchange.cx.upstream.cluster = Some(Arc::clone(&cluster.config.name));
    exchange.cluster = Some(Arc::clone(&cluster));
    Ok(cluster)
}

/// Route-level changes to the head, once; says whether attempts are counted in a header.
pub(super) fn prepare(
    connection: &HttpConnection,
    exchange: &mut Exchange,
    route: &Arc<Route>,
    forward: &Forward,
    head: &mut request::Parts,
) -> bool {
    // One form for the host: a header.
    if let Some(authority) = head.uri.authority()
        && let Ok(host) = HeaderValue::from_str(authority.as_str())
    {
        head.headers.insert(header::HOST, host);
    }
    let mut attempt_count = false;
    if let Some(table) = exchange.cx.routes.clone() {
        let chosen = routes::Chosen {
            host: exchange.cx.host,
            route: Arc::clone(route),
            weighted: exchange.cx.weighted,
        };
        for ops in
            routes::header_operations(&table, &chosen, routes::request_operations).into_iter().flatten()
        {
            ops.apply(&mut head.headers, |template| expand(template, exchange));
        }
        attempt_count = table.host(chosen.host).include_request_attempt_count;
    }
    let rewrite: Option<&PathRewrite> = forward.rewrite.as_ref();
    if let Some(target) = rewrite.and_then(|r| path::rewrite(&head.uri, &route.matches, r)) {
        let original = head.uri.path_and_query().and_then(|p| HeaderValue::from_str(p.as_str()).ok());
        if path::set_path(&mut head.uri, &target)
            && let Some(original) = original
            && !connection.manager.suppress_envoy_headers
        {
            head.headers.insert(names::ORIGINAL_PATH, original);
        }
    }
    let weighted_host = match (&forward.cluster, exchange.cx.weighted) {
        (ClusterSpecifier::Weighted(all), Some(at)) => all.get(at).and_then(|w| w.host_rewrite.clone()),
        _ => None,
    };
    let new_host = weighted_host.or_else(|| match &forward.host_rewrite {
        HostRewrite::Literal(value) => Some(value.clone()),
        HostRewrite::Header(name) => head.headers.get(name).cloned(),
        HostRewrite::None | HostRewrite::Endpoint => None,
    });
    if let Some(host) = new_host {
        if forward.append_forwarded_host {
            headers::append_forwarded_host(&mut head.headers);
        }
        head.headers.insert(header::HOST, host);
    } else if forward.append_forwarded_host && forward.host_rewrite == HostRewrite::Endpoint {
        headers::append_forwarded_host(&mut head.headers);
    }
    capture_request(exchange, head);
    attempt_count
}

pub(super) fn deadline(
    connection: &HttpConnection,
    exchange: &Exchange,
    forward: &Forward,
    head: &mut request::Parts,
) -> Option<Instant> {
    let mut limit = forward.timeout;
    if exchange.grpc
        && let Some(most) = forward.max_grpc_timeout
        && let Some(asked) = head.headers.get("grpc-timeout").and_then(grpc_timeout)
    {
        limit = Some(if most.is_zero() { asked } else { asked.min(most) });
    }
    let most = connection.manager.config.max_stream_duration;
    let limit = [limit, most].into_iter().flatten().filter(|l| !l.is_zero()).min()?;
    head.headers.insert(names::EXPECTED_TIMEOUT, HeaderValue::from(limit.as_millis() as u64));
    Some(exchange.cx.start + limit)
}

/// gRPC's `TimeoutValue TimeoutUnit`.
pub(super) fn grpc_timeout(value: &HeaderValue) -> Option<Duration> {
    let text = value.to_str().ok()?;
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let n: u64 = number.parse().ok().filter(|_| number.len() <= 8)?;
    Some(match unit {
        "H" => Duration::from_secs(n * 3600),
        "M" => Duration::from_secs(n * 60),
        "S" => Duration::from_secs(n),
        "m" => Duration::from_millis(n),
        "u" => Duration::from_micros(n),
        "n" => Duration::from_nanos(n),
        _ => return None,
    })
}

pub(super) fn protocol(cluster: &ClusterRuntime, downstream: Version) -> Protocol {
    match cluster.config.protocol {
        UpstreamProtocol::Http1 => Protocol::Http1,
        UpstreamProtocol::Http2 => Protocol::Http2,
        UpstreamProtocol::Downstream if downstream == Version::HTTP_2 => Protocol::Http2,
        UpstreamProtocol::Downstream => Protocol::Http1,
    }
}

pub(super) fn options(
    exchange: &Exchange,
    head: &request::Parts,
    cluster: &ClusterRuntime,
) -> ConnectOptions {
    let alpn = exchange.cx.alpn.as_ref().filter(|_| cluster.config.alpn_override).map(|lists| {
        match (protocol(cluster, head.version), head.version) {
            (Protocol::Http2, _) => &lists.http2,
            (Protocol::Http1, Version::HTTP_10) => &lists.http10,
            (Protocol::Http1, _) => &lists.http11,
        }
    });
    let host_name = cluster.config.wants_host_name().then(|| {
        let host = head.headers.get(header::HOST).and_then(|h| h.to_str().ok()).unwrap_or("");
        Arc::from(routes::without_port(host))
    });
    ConnectOptions { alpn: alpn.filter(|list| !list.is_empty()).cloned(), host_name }
}

pub(super) fn hash(
    connection: &HttpConnection,
    exchange: &mut Exchange,
    cluster: &ClusterRuntime,
    forward: &Forward,
    head: &request::Parts,
) -> Option<u64> {
    if !matches!(cluster.config.lb, LbPolicy::RingHash { .. } | LbPolicy::Maglev { .. }) {
        return None;
    }
    let mut hash: Option<u64> = None;
    for policy in &forward.hash_policies {
        let new = match &policy.source {
            HashSource::Header(name) => head.headers.get(name).map(|v| xxhash(v.as_bytes())),
            HashSource::SourceIp => Some(source_hash(exchange.cx.client)),
            HashSource::Query(name) => head.uri.query().and_then(|query| {
                let value =
                    query.split('&').find_map(|pair| pair.strip_prefix(&**name)?.strip_prefix('='))?;
                Some(xxhash(value.as_bytes()))
            }),
            HashSource::Cookie { name, ttl, path, attributes } => match (cookie(head, name), ttl) {
                (Some(value), _) => Some(xxhash(value.as_bytes())),
                (None, None) => None,
                (None, Some(ttl)) => {
                    let value = format!("{:016x}", connection.worker.random());
                    let text = set_cookie(name, &value, *ttl, path, attributes);
                    exchange.cookies.extend(HeaderValue::from_str(&text));
                    Some(xxhash(value.as_bytes()))
                }
            },
        };
        hash = match (hash, new) {
            // Envoy combines by rotation, so that the order of policies matters.
            (Some(old), Some(new)) => Some(old.rotate_left(1) ^ new),
            (old, new) => new.or(old),
        };
        if policy.terminal && hash.is_some() {
            break;
        }
    }
    hash
}

/// The hash of a client's address.
pub(crate) fn source_hash(client: IpAddr) -> u64 {
    xxhash(client.to_string().as_bytes())
}

fn xxhash(bytes: &[u8]) -> u64 {
    twox_hash::XxHash64::oneshot(0, bytes)
}

fn cookie<'a>(head: &'a request::Parts, name: &str) -> Option<&'a str> {
    let lines = head.headers.get_all(header::COOKIE).iter().filter_map(|v| v.to_str().ok());
    let mut pairs = lines.flat_map(|line| line.split(';'));
    let value = pairs.find_map(|pair| pair.trim().strip_prefix(name)?.strip_prefix('='))?;
    Some(value.trim_matches('"'))
}

fn set_cookie(
    name: &str,
    value: &str,
    ttl: Duration,
    path: &str,
    attributes: &[(Arc<str>, Arc<str>)],
) -> String {
    let mut text = format!("{name}=\"{value}\"");
    if !ttl.is_zero() {
        text.push_str(&format!("; Max-Age={}", ttl.as_secs()));
    }
    if !path.is_empty() {
        text.push_str(&format!("; Path={path}"));
    }
    for (name, value) in attributes {
        let equals = if value.is_empty() { "" } else { "=" };
        text.push_str(&format!("; {name}{equals}{value}"));
    }
    text.push_str("; HttpOnly");
    text
}
