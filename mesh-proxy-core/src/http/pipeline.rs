//! One request through the connection manager: checks, header rules, route, filters, router, response.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::SystemTime,
};

use http::{
    Extensions, HeaderValue, Method, Request, Response, StatusCode, Version, header, request, response,
};
use hyper::body::Incoming;
use tokio::time::Instant;

use super::{
    HttpConnection,
    exchange::{Exchange, Held, ResponseBody},
    headers::{self, RequestRules},
    manager::FilterSlot,
    path::{self, Normalized},
    reply, router, routes, upgrade,
    watch::{Expired, Progress, Watch},
};
use crate::{
    Body,
    body::Observed,
    config::{
        Codec, Forward, ForwardClientCert, HeadersWithUnderscores, HttpConnectionManager, Route, RouteAction,
        ServerHeader, StripHostPort, is_grpc, names,
    },
    filter::{Flow, LocalReply, RequestContext, Resume, UpstreamInfo},
    telemetry::{Captured, ResponseFlags},
};

/// What the codec gets.
pub(crate) type Answer = Response<ResponseBody>;

/// What the router or a filter answers with.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) head: response::Parts,
    pub(crate) body: Body,
    pub(crate) held: Held,
    /// Response headers are subject to the route's operations (not so for replies before a route was chosen).
    pub(crate) upgraded: bool,
    /// Ends the response when a limit is over.
    pub(crate) watch: Option<Watch>,
}

/// Handles one request.
pub(crate) async fn handle(connection: Arc<HttpConnection>, mut request: Request<Incoming>) -> Answer {
    let upgrade = upgrade::requested(&mut request);
    let (mut head, incoming) = request.into_parts();
    let mut exchange = begin(&connection, &head);
    let body = body_of(&mut exchange, incoming);
    let reply = match process(&connection, &mut exchange, &mut head, body, upgrade).await {
        Ok(reply) => reply,
        Err(local) => {
            capture_request(&mut exchange, &head);
            local_reply(&mut exchange, *local)
        }
    };
    respond(connection, exchange, reply)
}

fn begin(connection: &Arc<HttpConnection>, head: &request::Parts) -> Box<Exchange> {
    let stats = &connection.manager.stats;
    stats.rq_total.inc();
    stats.rq_active.inc();
    connection.active.fetch_add(1, Relaxed);
    connection.requests.fetch_add(1, Relaxed);
    Box::new(Exchange {
        cx: RequestContext {
            connection: Arc::clone(&connection.info),
            client: connection.info.peer.ip(),
            worker: Arc::clone(&connection.worker),
            start: Instant::now(),
            start_time: SystemTime::now(),
            routes: None,
            host: 0,
            route: None,
            weighted: None,
            alpn: None,
            upstream: UpstreamInfo::default(),
            flags: ResponseFlags::empty(),
            details: None,
            metadata: Vec::new(),
            extensions: Extensions::new(),
        },
        captured: Captured { version: Some(head.version), ..Captured::default() },
        cluster: None,
        status: 0,
        grpc: is_grpc(head),
        progress: None,
        sent: 0,
        first_byte: None,
        request_id: None,
        cookies: Vec::new(),
        complete: false,
        connection: Arc::clone(connection),
    })
}

fn body_of(exchange: &mut Exchange, incoming: Incoming) -> Body {
    match Body::from(incoming) {
        body if http_body::Body::is_end_stream(&body) => body,
        body => {
            let progress = Arc::new(Progress::new(exchange.cx.start));
            exchange.progress = Some(Arc::clone(&progress));
            Observed::wrap(body, progress)
        }
    }
}

/// Keeps what the logs print of the request as it is now (the last change wins, as in Envoy).
pub(crate) fn capture_request(exchange: &mut Exchange, head: &request::Parts) {
    let logs = &exchange.connection.manager.logs;
    if !logs.is_empty() && exchange.captured.method.is_none() {
        exchange.captured.request(head, &logs.captures);
    }
}

fn refuse(status: StatusCode, details: &'static str) -> Box<LocalReply> {
    Box::new(LocalReply::new(status, "", details))
}

async fn process(
    connection: &Arc<HttpConnection>,
    exchange: &mut Exchange,
    head: &mut request::Parts,
    body: Body,
    upgrade: Option<upgrade::Requested>,
) -> Result<Reply, Box<LocalReply>> {
    let manager = &connection.manager;
    let config = &manager.config;
    check(head, config, exchange)?;
    let peer = connection.info.peer.ip();
    exchange.cx.client =
        headers::client_address(&head.headers, config.use_remote_address, config.xff_trusted_hops, peer);
    if config.use_remote_address && !config.skip_xff_append {
        headers::append_forwarded_for(&mut head.headers, peer);
    }
    if (config.strip_host_port != StripHostPort::Keep || config.strip_trailing_host_dot)
        && let Some(host) = headers::host(head)
        && let Some(host) = headers::stripped_host(host, config, connection.info.local.port())
    {
        headers::set_host(head, &host);
    }
    let external = config.use_remote_address
        && !headers::is_internal(exchange.cx.client, config.internal_ranges.as_deref());
    let rules = RequestRules {
        client_cert: manager.config.forward_client_cert,
        element: connection.client_cert.as_ref(),
        generate_request_id: manager.config.generate_request_id,
        replace_request_id: external && !config.preserve_external_request_id,
        replace_proto: config.use_remote_address && config.xff_trusted_hops == 0,
        keep_upgrade: upgrade.as_ref().is_some_and(|u| !u.is_connect()),
        tls: connection.info.tls.is_some(),
        trusted_peer: connection.client_cert.is_some()
            && manager.config.forward_client_cert != ForwardClientCert::Sanitize,
    };
    headers::clean_request(&mut head.headers, &rules, &connection.worker);
    if manager.config.request_id_in_response {
        exchange.request_id = head.headers.get(names::REQUEST_ID).cloned();
    }
    match path::normalize(head, manager.config.normalization) {
        Normalized::Done => {}
        Normalized::Rejected => return Err(refuse(StatusCode::BAD_REQUEST, "path_normalization_failed")),
        Normalized::Redirect => {
            let mut redirect = refuse(StatusCode::TEMPORARY_REDIRECT, "path_normalization_redirect");
            let target = head.uri.path_and_query().map_or("/", |p| p.as_str());
            if let Ok(location) = HeaderValue::from_str(target) {
                redirect.headers.insert(header::LOCATION, location);
            }
            return Err(redirect);
        }
    }
    choose_route(connection, exchange, head);
    for slot in &manager.filters {
        if !runs(slot, &exchange.cx) {
            continue;
        }
        match slot.filter.on_request(&mut exchange.cx, head) {
            Flow::Continue => {}
            Flow::Reply(reply) => return Err(reply),
            Flow::Await(wait) => match wait.await {
                Resume::Continue => {}
                Resume::Edit(edit) => edit(&mut exchange.cx, head),
                Resume::Reply(reply) => return Err(reply),
            },
        }
    }
    let mut body = body;
    for slot in manager.filters.iter().filter(|slot| slot.wraps_bodies) {
        if runs(slot, &exchange.cx) {
            body = slot.filter.request_body(&mut exchange.cx, body);
        }
    }
    let Some(route) = exchange.cx.route.clone() else {
        exchange.cx.add_flags(ResponseFlags::NO_ROUTE);
        return Err(refuse(StatusCode::NOT_FOUND, "route_not_found"));
    };
    match &route.action {
        RouteAction::Forward(forward) => {
            let upgrade = allow_upgrade(config, forward, head, upgrade)?;
            forward_in_time(connection, exchange, &route, forward, head, body, upgrade).await
        }
        RouteAction::Redirect(redirect) => {
            Err(router::redirect(redirect, &route, head, connection.info.tls.is_some()))
        }
        RouteAction::Direct(direct) => Err(Box::new(LocalReply {
            body: direct.body.clone(),
            ..LocalReply::new(direct.status, "", "direct_response")
        })),
        RouteAction::Invalid { .. } => {
            Err(refuse(StatusCode::INTERNAL_SERVER_ERROR, "route_configuration_invalid"))
        }
    }
}

/// Drops an upgrade that is not allowed here: the client gets an ordinary answer, which is its upgrade refused. CONNECT
/// has no such answer.
fn allow_upgrade(
    config: &HttpConnectionManager,
    forward: &Forward,
    head: &mut request::Parts,
    upgrade: Option<upgrade::Requested>,
) -> Result<Option<upgrade::Requested>, Box<LocalReply>> {
    let allowed = upgrade.as_ref().is_some_and(|asked| asked.allowed(config, forward));
    if head.method == Method::CONNECT && !allowed {
        return Err(refuse(StatusCode::FORBIDDEN, "upgrade_failed"));
    }
    if upgrade.is_some() && !allowed {
        head.headers.remove(header::UPGRADE);
        head.headers.remove(header::CONNECTION);
        return Ok(None);
    }
    Ok(upgrade)
}

/// Forwards within the stream's idle timeout and the request's timeout.
async fn forward_in_time(
    connection: &Arc<HttpConnection>,
    exchange: &mut Exchange,
    route: &Arc<Route>,
    forward: &Forward,
    head: &mut request::Parts,
    body: Body,
    upgrade: Option<upgrade::Requested>,
) -> Result<Reply, Box<LocalReply>> {
    let config = &connection.manager.config;
    let start = exchange.cx.start;
    let progress = exchange.progress.get_or_insert_with(|| {
        let progress = Progress::new(start);
        progress.end_request();
        Arc::new(progress)
    });
    let progress = Arc::clone(progress);
    let Some(mut watch) = Watch::new(config, forward, &progress) else {
        return router::forward(connection, exchange, route, forward, head, body, upgrade).await;
    };
    let sending = router::forward(connection, exchange, route, forward, head, body, upgrade);
    let expired = tokio::select! {
        biased;
        reply = sending => {
            let mut reply = reply?;
            watch.touch();
            reply.watch = Some(watch.joined(reply.watch));
            return Ok(reply);
        }
        expired = watch.expired() => expired,
    };
    let status =
        if progress.request_ended() { StatusCode::GATEWAY_TIMEOUT } else { StatusCode::REQUEST_TIMEOUT };
    Err(Box::new(match expired {
        Expired::Idle => {
            exchange.cx.add_flags(ResponseFlags::STREAM_IDLE_TIMEOUT);
            LocalReply::new(status, "stream timeout", "stream_idle_timeout")
        }
        Expired::Request | Expired::Response => {
            LocalReply::new(status, "request timeout", "request_overall_timeout")
        }
    }))
}

fn runs(slot: &FilterSlot, cx: &RequestContext) -> bool {
    match cx.per_filter(&slot.name) {
        None => !slot.disabled,
        Some(own) => !own.disabled,
    }
}

/// What hyper lets through and HTTP does not.
fn check(
    head: &mut request::Parts,
    config: &HttpConnectionManager,
    exchange: &mut Exchange,
) -> Result<(), Box<LocalReply>> {
    let mut bad = |status, details| {
        exchange.cx.add_flags(ResponseFlags::DOWNSTREAM_PROTOCOL_ERROR);
        Err(refuse(status, details))
    };
    if head.version < Version::HTTP_11 && !config.accept_http_10 {
        return bad(StatusCode::UPGRADE_REQUIRED, "low_version");
    }
    let mut hosts = head.headers.get_all(header::HOST).iter();
    let (first, second) = (hosts.next(), hosts.next());
    if second.is_some() {
        return bad(StatusCode::BAD_REQUEST, "http1.multiple_hosts");
    }
    let authority = head.uri.authority().is_some();
    if first.is_none_or(HeaderValue::is_empty) && !authority && head.version >= Version::HTTP_11 {
        return bad(StatusCode::BAD_REQUEST, "missing_host_header");
    }
    // Who is meant must be plain: user names before the host are for people (RFC 9110, 4.2.4).
    if head.uri.authority().is_some_and(|authority| authority.as_str().contains('@')) {
        return bad(StatusCode::BAD_REQUEST, "userinfo_in_authority");
    }
    // Two lengths are how requests are smuggled (RFC 9112, 6.3).
    if head.headers.contains_key(header::TRANSFER_ENCODING)
        && head.headers.contains_key(header::CONTENT_LENGTH)
    {
        return bad(StatusCode::BAD_REQUEST, "http1.content_length_and_chunked_not_allowed");
    }
    if head.headers.len() > config.max_request_headers as usize {
        return bad(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "too_many_headers");
    }
    if config.underscores != HeadersWithUnderscores::Allow {
        let odd = head.headers.keys().filter(|name| name.as_str().contains('_'));
        let odd: Vec<header::HeaderName> = odd.cloned().collect();
        if !odd.is_empty() && config.underscores == HeadersWithUnderscores::Reject {
            return bad(StatusCode::BAD_REQUEST, "unexpected_underscore");
        }
        for name in odd {
            head.headers.remove(name);
        }
    }
    if head.method != Method::CONNECT && !head.uri.path().starts_with('/') && head.uri.path() != "*" {
        return bad(StatusCode::BAD_REQUEST, "missing_path");
    }
    Ok(())
}

fn choose_route(connection: &HttpConnection, exchange: &mut Exchange, head: &request::Parts) {
    let Some(table) = connection.manager.routes.load() else { return };
    if let Some(chosen) = table.choose(head, &connection.worker) {
        exchange.cx.host = chosen.host;
        exchange.cx.weighted = chosen.weighted;
        exchange.cx.route = Some(chosen.route);
    }
    exchange.cx.routes = Some(table);
}

pub(crate) fn local_reply(exchange: &mut Exchange, local: LocalReply) -> Reply {
    if exchange.cx.details.is_none() {
        exchange.cx.details = Some(local.details.to_string().into());
    }
    let (head, body) = reply::build(local, exchange.grpc);
    Reply { head, body, held: Held::default(), upgraded: false, watch: None }
}

fn respond(connection: Arc<HttpConnection>, mut exchange: Box<Exchange>, reply: Reply) -> Answer {
    let Reply { mut head, mut body, held, upgraded, watch } = reply;
    let manager = &connection.manager;
    if let (Some(table), Some(route)) = (&exchange.cx.routes, &exchange.cx.route) {
        let chosen = routes::Chosen {
            host: exchange.cx.host,
            route: Arc::clone(route),
            weighted: exchange.cx.weighted,
        };
        let operations = routes::header_operations(table, &chosen, routes::response_operations);
        for ops in operations.into_iter().flatten() {
            ops.apply(&mut head.headers, |template| router::expand(template, &exchange));
        }
        if table.host(chosen.host).include_attempt_count_in_response && exchange.cx.upstream.attempts > 0 {
            head.headers.insert(names::ATTEMPT_COUNT, HeaderValue::from(exchange.cx.upstream.attempts));
        }
    }
    for slot in manager.filters.iter().rev() {
        if runs(slot, &exchange.cx) {
            slot.filter.on_response(&mut exchange.cx, &mut head);
            if slot.wraps_bodies {
                body = slot.filter.response_body(&mut exchange.cx, body);
            }
        }
    }
    match manager.config.server_header {
        ServerHeader::Overwrite => {
            head.headers.insert(header::SERVER, manager.config.server_name.clone());
        }
        ServerHeader::AppendIfAbsent => {
            head.headers.entry(header::SERVER).or_insert_with(|| manager.config.server_name.clone());
        }
        ServerHeader::PassThrough => {}
    }
    finish_head(&connection, &exchange, &mut head, upgraded);
    if let Some(id) = exchange.request_id.take() {
        head.headers.insert(names::REQUEST_ID, id);
    }
    for cookie in exchange.cookies.drain(..) {
        head.headers.append(header::SET_COOKIE, cookie);
    }
    exchange.status = head.status.as_u16();
    exchange.first_byte = Some(Instant::now());
    if exchange.grpc {
        exchange.captured.grpc_status = head.headers.get("grpc-status").cloned();
    }
    if !manager.logs.is_empty() {
        exchange.captured.response(&head.headers, &manager.logs.captures);
    }
    Response::from_parts(head, ResponseBody::new(body, exchange, held, watch))
}

/// Connection-level headers.
fn finish_head(connection: &HttpConnection, exchange: &Exchange, head: &mut response::Parts, upgraded: bool) {
    let config = &connection.manager.config;
    let http2 = exchange.captured.version == Some(Version::HTTP_2) || config.codec == Codec::Http2;
    if http2 || upgraded {
        return;
    }
    let served = connection.requests.load(Relaxed);
    let spent = config.max_requests_per_connection > 0 && served >= config.max_requests_per_connection;
    if spent || connection.lifecycle.draining() {
        head.headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
}
