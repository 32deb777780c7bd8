//! The router: cluster, host, connection, attempts, response.

use std::{sync::Arc, time::Duration};

use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version, header, request, uri};
use http_body::Body as HttpBody;
use hyper::body::Incoming;
use tokio::time::Instant;

use super::{
    HttpConnection,
    exchange::{Exchange, Held},
    headers, mirror, path,
    pipeline::{Reply, capture_request},
    retry::{self, Failure, Replay},
    routes, upgrade,
};
use crate::{
    Body,
    config::{
        ClusterSpecifier, Forward, HashPolicy, HostRewrite, LbPolicy, PathRewrite, Redirect, RetryPolicy,
        Route, UpstreamProtocol, names,
    },
    filter::LocalReply,
    telemetry::ResponseFlags,
    upstream::{
        ActiveRequest, ClusterRuntime, ConnectOptions, Host, Lease, Outcome, Permit, Pick, PoolError,
        Protocol, Resource, checkout, record,
    },
};

type Local = Box<LocalReply>;

/// Sends a request upstream and returns the answer.
pub(crate) async fn forward(
    connection: &Arc<HttpConnection>,
    exchange: &mut Exchange,
    route: &Arc<Route>,
    forward: &Forward,
    head: &mut request::Parts,
    body: Body,
    upgrade: Option<upgrade::Requested>,
) -> Result<Reply, Local> {
    let cluster = find_cluster(connection, exchange, forward, head)?;
    let Some(request_permit) = Permit::acquire(&cluster, Resource::Request) else {
        cluster.stats.rq_pending_overflow.inc();
        return Err(failed(exchange, &Failure::Overflow, 1));
    };
    let attempt_count = prepare(connection, exchange, route, forward, head);
    let body = if forward.mirrors.is_empty() {
        body
    } else {
        mirror::start(connection, &forward.mirrors, head, body)
    };
    let hash = hash(connection, &cluster, forward, head);
    let policy = forward.retry.as_ref().or_else(|| {
        let table = exchange.cx.routes.as_ref()?;
        table.host(exchange.cx.host).retry.as_ref()
    });
    let policy = policy.filter(|p| p.num_retries > 0 && upgrade.is_none()).cloned();
    let deadline = deadline(exchange, forward, head);
    let mut run = Run {
        connection,
        cluster: &cluster,
        policy: policy.as_deref(),
        options: options(exchange, head, &cluster),
        protocol: protocol(&cluster, head.version),
        hash,
        tried: Vec::new(),
        priorities: Vec::new(),
        attempt_count,
        upgrade: upgrade.is_some(),
    };
    let attempts = run.attempts(exchange, head, forward, body);
    let outcome = match deadline {
        None => attempts.await,
        Some(at) => match tokio::time::timeout_at(at, attempts).await {
            Ok(outcome) => outcome,
            Err(_elapsed) => {
                cluster.stats.rq_timeout.inc();
                exchange.cx.add_flags(ResponseFlags::UPSTREAM_TIMEOUT);
                return Err(Box::new(LocalReply::new(
                    StatusCode::GATEWAY_TIMEOUT,
                    "upstream request timeout",
                    "response_timeout",
                )));
            }
        },
    };
    let Sent { mut response, lease, active } = outcome?;
    exchange.cx.set_details("via_upstream");
    let upgraded = response.status() == StatusCode::SWITCHING_PROTOCOLS;
    if upgraded && let Some(requested) = upgrade {
        requested.splice(&mut response, lease, active, request_permit);
        let (mut head, _no_body) = response.into_parts();
        headers::clean_response(&mut head.headers, true);
        return Ok(Reply { head, body: Body::empty(), held: Held::default(), upgraded, deadline: None });
    }
    let (mut head, incoming) = response.into_parts();
    head.version = Version::HTTP_11;
    headers::clean_response(&mut head.headers, false);
    let held = Held { lease: Some(lease), _counted: Some((active, request_permit)) };
    Ok(Reply { head, body: Body::from(incoming), held, upgraded: false, deadline })
}

/// An attempt that was answered.
struct Sent {
    response: Response<Incoming>,
    lease: Lease,
    active: ActiveRequest,
}

/// One request's attempts.
struct Run<'a> {
    connection: &'a Arc<HttpConnection>,
    cluster: &'a Arc<ClusterRuntime>,
    policy: Option<&'a RetryPolicy>,
    options: ConnectOptions,
    protocol: Protocol,
    hash: Option<u64>,
    tried: Vec<Arc<Host>>,
    priorities: Vec<u32>,
    attempt_count: bool,
    upgrade: bool,
}

/// A request's body over attempts.
enum Source {
    /// Not sent yet.
    Fresh(Body),
    /// Kept while small.
    Replay(Replay),
    /// Sent; it cannot be sent again.
    Gone,
}

impl Source {
    fn take(&mut self) -> Option<Body> {
        match std::mem::replace(self, Self::Gone) {
            Self::Fresh(body) => {
                if body.is_end_stream() {
                    *self = Self::Fresh(Body::empty());
                }
                Some(body)
            }
            Self::Replay(replay) => {
                let body = replay.attempt();
                *self = Self::Replay(replay);
                body
            }
            Self::Gone => None,
        }
    }
}

impl Run<'_> {
    async fn attempts(
        &mut self,
        exchange: &mut Exchange,
        head: &mut request::Parts,
        forward: &Forward,
        body: Body,
    ) -> Result<Sent, Local> {
        let mut source = match self.policy {
            Some(policy) if !body.is_end_stream() && retry::needs_replay(policy) => {
                Source::Replay(Replay::new(body))
            }
            _ => Source::Fresh(body),
        };
        let mut retry_permit: Option<Permit> = None;
        let stats = &self.cluster.stats;
        loop {
            exchange.cx.upstream.attempts += 1;
            let attempt = exchange.cx.upstream.attempts;
            let outcome = self.attempt(exchange, head, forward, &mut source).await;
            let retries = attempt - 1;
            let policy = self.policy.filter(|p| retries < p.num_retries);
            let wanted = match (&outcome, self.policy) {
                (_, None) => false,
                (Ok(sent), Some(p)) => {
                    retry::wants_response(p, sent.response.status(), sent.response.headers())
                }
                (Err(failure), Some(p)) => retry::wants_failure(p, failure, &head.method),
            };
            let another = match policy {
                Some(policy) if wanted => {
                    let resendable = !matches!(source, Source::Gone);
                    retry_permit.take();
                    retry_permit = Permit::acquire(self.cluster, Resource::Retry);
                    if retry_permit.is_none() {
                        stats.rq_retry_overflow.inc();
                    }
                    (resendable && retry_permit.is_some()).then_some(policy)
                }
                None if wanted && self.policy.is_some() => {
                    stats.rq_retry_limit_exceeded.inc();
                    exchange.cx.add_flags(ResponseFlags::RETRY_LIMIT);
                    None
                }
                _ => None,
            };
            if let Some(policy) = another {
                drop(outcome);
                stats.rq_retry.inc();
                tokio::time::sleep(retry::back_off(policy, attempt, &self.connection.worker)).await;
                continue;
            }
            return match outcome {
                Ok(sent) => {
                    if attempt > 1 && !wanted {
                        stats.rq_retry_success.inc();
                    }
                    Ok(sent)
                }
                Err(failure) => Err(failed(exchange, &failure, attempt)),
            };
        }
    }

    /// One attempt: a host, a connection, the request, the response's head.
    async fn attempt(
        &mut self,
        exchange: &mut Exchange,
        head: &mut request::Parts,
        forward: &Forward,
        source: &mut Source,
    ) -> Result<Sent, Failure> {
        let host = self.pick(exchange)?;
        let active = ActiveRequest::new(&host, &self.cluster.stats.rq_active);
        exchange.cx.upstream.host = Some(host.address);
        exchange.cx.upstream.workload.clone_from(&host.endpoint.workload);
        self.cluster.stats.rq_total.inc();
        let begin = Instant::now();
        let send = self.send(exchange, head, forward, source, &host);
        let outcome = match self.policy.and_then(|p| p.per_try_timeout) {
            None => send.await,
            Some(limit) => tokio::time::timeout(limit, send).await.unwrap_or_else(|_elapsed| {
                self.cluster.stats.rq_per_try_timeout.inc();
                Err(Failure::PerTryTimeout)
            }),
        };
        match &outcome {
            Ok((response, _)) => {
                let status = response.status().as_u16();
                let stats = &self.cluster.stats;
                stats.rq_completed.inc();
                stats.rq_time.record_milli(begin.elapsed().as_micros() as u64);
                if let Some(class) = stats.rq_xx.get(usize::from(status / 100).wrapping_sub(1)) {
                    class.inc();
                }
                if status >= 500 {
                    host.rq_error.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                }
                record(self.cluster, &host, Outcome::Status(status));
            }
            Err(Failure::Overflow | Failure::NoHost | Failure::Downstream) => {}
            Err(_) => {
                host.rq_error.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                record(self.cluster, &host, Outcome::LocalOrigin);
            }
        }
        if self.policy.is_some_and(|p| p.avoid_previous_hosts) {
            self.tried.push(Arc::clone(&host));
        }
        let frequency = self.policy.and_then(|p| p.avoid_previous_priorities);
        if frequency.is_some_and(|f| f > 0 && exchange.cx.upstream.attempts.is_multiple_of(f)) {
            self.priorities.push(host.priority);
        }
        outcome.map(|(mut response, lease)| {
            if !self.connection.manager.suppress_envoy_headers {
                let time = HeaderValue::from(begin.elapsed().as_millis() as u64);
                response.headers_mut().insert(names::SERVICE_TIME, time);
            }
            Sent { response, lease, active }
        })
    }

    fn pick(&self, exchange: &Exchange) -> Result<Arc<Host>, Failure> {
        let pick = Pick {
            worker: Some(&self.connection.worker),
            original: Some(exchange.cx.connection.local),
            hash: self.hash,
            avoid: &self.tried,
            avoid_attempts: if self.tried.is_empty() {
                0
            } else {
                self.policy.map_or(0, |p| p.host_selection_attempts)
            },
            avoid_priorities: &self.priorities,
        };
        self.cluster.pick(&pick).map_err(|_no_host| {
            self.cluster.stats.cx_none_healthy.inc();
            Failure::NoHost
        })
    }

    async fn send(
        &self,
        exchange: &mut Exchange,
        head: &mut request::Parts,
        forward: &Forward,
        source: &mut Source,
        host: &Arc<Host>,
    ) -> Result<(Response<Incoming>, Lease), Failure> {
        // A pooled connection may turn out to be closed before anything was sent on it: then another one is taken,
        // which is not a retry.
        loop {
            let connection = self.connection;
            let checked_out = checkout(
                &connection.shared,
                &connection.worker,
                self.cluster,
                host,
                self.protocol,
                &self.options,
            );
            let mut lease = checked_out.await.map_err(|error| match error {
                PoolError::Overflow => Failure::Overflow,
                PoolError::Connect(error) => {
                    let reason: Arc<str> = error.to_string().into();
                    exchange.cx.upstream.transport_failure = Some(Arc::clone(&reason));
                    Failure::Connect(reason)
                }
            })?;
            if let Some(session) = lease.session() {
                exchange.cx.upstream.local = Some(session.local);
                exchange.cx.upstream.identity =
                    session.tls.as_ref().and_then(|tls| tls.peer.as_ref()?.spiffe_id().cloned());
            }
            let Some(body) = source.take() else { return Err(Failure::Terminated { reused: false }) };
            let moved = self.policy.is_none() && self.protocol == Protocol::Http1;
            let headers = if moved { std::mem::take(&mut head.headers) } else { head.headers.clone() };
            let request = self.request(exchange, head, headers, forward, host, body);
            let reused = lease.reused;
            let result = match lease.protocol() {
                Protocol::Http1 => match lease.http1() {
                    Some(sender) => sender.try_send_request(request).await,
                    None => return Err(Failure::Terminated { reused }),
                },
                Protocol::Http2 => match lease.http2() {
                    Some(mut sender) => sender.try_send_request(request).await,
                    None => return Err(Failure::Terminated { reused }),
                },
            };
            let mut error = match result {
                Ok(response) => return Ok((response, lease)),
                Err(error) => error,
            };
            let Some(unsent) = error.take_message() else {
                return Err(classify(error.error(), reused, exchange));
            };
            let (parts, body) = unsent.into_parts();
            if moved {
                head.headers = parts.headers;
            }
            if matches!(source, Source::Gone) {
                *source = Source::Fresh(body);
            }
            if !reused {
                return Err(Failure::Terminated { reused: false });
            }
        }
    }

    /// The message for one attempt.
    fn request(
        &self,
        exchange: &mut Exchange,
        head: &request::Parts,
        headers: HeaderMap,
        forward: &Forward,
        host: &Host,
        body: Body,
    ) -> Request<Body> {
        let mut request = Request::new(body);
        *request.method_mut() = head.method.clone();
        *request.headers_mut() = headers;
        if self.attempt_count {
            let count = HeaderValue::from(exchange.cx.upstream.attempts);
            request.headers_mut().insert(names::ATTEMPT_COUNT, count);
        }
        if matches!(forward.host_rewrite, HostRewrite::Endpoint)
            && !host.endpoint.hostname.is_empty()
            && let Ok(name) = HeaderValue::from_str(&host.endpoint.hostname)
        {
            request.headers_mut().insert(header::HOST, name);
        }
        match self.protocol {
            Protocol::Http1 => {
                *request.version_mut() = Version::HTTP_11;
                *request.uri_mut() = origin_form(head);
                let unknown_length = !request.body().is_end_stream()
                    && !request.headers().contains_key(header::CONTENT_LENGTH)
                    && request.body().size_hint().exact().is_none();
                if unknown_length {
                    // hyper would drop the body of a GET without this.
                    request
                        .headers_mut()
                        .insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
                }
            }
            Protocol::Http2 => {
                *request.version_mut() = Version::HTTP_2;
                let authority = request.headers_mut().remove(header::HOST);
                *request.uri_mut() = absolute_form(head, authority.as_ref(), host);
            }
        }
        let manager = &self.connection.manager;
        if !manager.filters.is_empty() {
            let (mut parts, body) = request.into_parts();
            for slot in &manager.filters {
                slot.filter.on_attempt(&mut exchange.cx, &mut parts);
            }
            request = Request::from_parts(parts, body);
        }
        if self.upgrade {
            request.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        }
        request
    }
}

fn origin_form(head: &request::Parts) -> uri::Uri {
    if head.method == Method::CONNECT {
        return head.uri.clone();
    }
    if head.uri.authority().is_none() {
        return head.uri.clone();
    }
    head.uri.path_and_query().cloned().map_or_else(|| uri::Uri::from_static("/"), uri::Uri::from)
}

fn absolute_form(head: &request::Parts, host: Option<&HeaderValue>, endpoint: &Host) -> uri::Uri {
    let mut parts = uri::Parts::default();
    parts.scheme = Some(uri::Scheme::HTTP);
    parts.authority = host
        .and_then(|h| uri::Authority::try_from(h.as_bytes()).ok())
        .or_else(|| head.uri.authority().cloned())
        .or_else(|| uri::Authority::try_from(endpoint.address.to_string()).ok());
    parts.path_and_query =
        head.uri.path_and_query().cloned().or_else(|| Some(uri::PathAndQuery::from_static("/")));
    uri::Uri::from_parts(parts).unwrap_or_else(|_| uri::Uri::from_static("/"))
}

fn find_cluster(
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
fn prepare(
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
        head.headers.insert(header::HOST, host);
    }
    capture_request(exchange, head);
    attempt_count
}

fn deadline(exchange: &Exchange, forward: &Forward, head: &mut request::Parts) -> Option<Instant> {
    let mut limit = forward.timeout;
    if exchange.grpc
        && let Some(most) = forward.max_grpc_timeout
        && let Some(asked) = head.headers.get("grpc-timeout").and_then(grpc_timeout)
    {
        limit = Some(if most.is_zero() { asked } else { asked.min(most) });
    }
    let limit = limit.filter(|l| !l.is_zero())?;
    head.headers.insert(names::EXPECTED_TIMEOUT, HeaderValue::from(limit.as_millis() as u64));
    Some(exchange.cx.start + limit)
}

/// gRPC's `TimeoutValue TimeoutUnit`.
fn grpc_timeout(value: &HeaderValue) -> Option<Duration> {
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

fn protocol(cluster: &ClusterRuntime, downstream: Version) -> Protocol {
    match cluster.config.protocol {
        UpstreamProtocol::Http1 => Protocol::Http1,
        UpstreamProtocol::Http2 => Protocol::Http2,
        UpstreamProtocol::Downstream if downstream == Version::HTTP_2 => Protocol::Http2,
        UpstreamProtocol::Downstream => Protocol::Http1,
    }
}

fn options(exchange: &Exchange, head: &request::Parts, cluster: &ClusterRuntime) -> ConnectOptions {
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

fn hash(
    connection: &HttpConnection,
    cluster: &ClusterRuntime,
    forward: &Forward,
    head: &request::Parts,
) -> Option<u64> {
    use twox_hash::XxHash64;
    if !matches!(cluster.config.lb, LbPolicy::RingHash { .. } | LbPolicy::Maglev { .. }) {
        return None;
    }
    forward.hash_policies.iter().fold(None, |so_far: Option<u64>, policy| {
        let new = match policy {
            HashPolicy::Header(name) => head.headers.get(name).map(|v| XxHash64::oneshot(0, v.as_bytes())),
            HashPolicy::SourceIp => {
                Some(XxHash64::oneshot(0, connection.info.peer.ip().to_string().as_bytes()))
            }
            HashPolicy::Query(name) => head.uri.query().and_then(|query| {
                let value =
                    query.split('&').find_map(|pair| pair.strip_prefix(&**name)?.strip_prefix('='))?;
                Some(XxHash64::oneshot(0, value.as_bytes()))
            }),
            HashPolicy::Cookie { name, .. } => head
                .headers
                .get_all(header::COOKIE)
                .iter()
                .filter_map(|v| v.to_str().ok())
                .flat_map(|v| v.split(';'))
                .find_map(|pair| pair.trim().strip_prefix(&**name)?.strip_prefix('='))
                .map(|value| XxHash64::oneshot(0, value.as_bytes())),
        };
        match (so_far, new) {
            // Envoy combines by rotation, so that the order of policies matters.
            (Some(old), Some(new)) => Some(old.rotate_left(1) ^ new),
            (old, new) => new.or(old),
        }
    })
}

/// What an error of the codec means.
fn classify(error: &hyper::Error, reused: bool, exchange: &mut Exchange) -> Failure {
    let reason = std::error::Error::source(error)
        .and_then(|s| s.downcast_ref::<h2::Error>())
        .and_then(h2::Error::reason);
    if let Some(reason) = reason {
        return match reason {
            h2::Reason::REFUSED_STREAM => Failure::Refused,
            _ => Failure::Reset,
        };
    }
    if error.is_user() {
        return Failure::Downstream;
    }
    if error.is_parse() {
        exchange.cx.add_flags(ResponseFlags::UPSTREAM_PROTOCOL_ERROR);
        return Failure::Protocol;
    }
    Failure::Terminated { reused }
}

/// The answer for a failure, as Envoy words it.
fn failed(exchange: &mut Exchange, failure: &Failure, attempts: u32) -> Local {
    const BEGIN: &str = "upstream connect error or disconnect/reset before headers. ";
    let retried = if attempts > 1 { "retried and the latest " } else { "" };
    let body = |reason: &str| format!("{BEGIN}{retried}reset reason: {reason}");
    let before = |reason: &str| format!("upstream_reset_before_response_started{{{reason}}}");
    let unavailable = StatusCode::SERVICE_UNAVAILABLE;
    let (status, flags, text, details) = match failure {
        Failure::NoHost => (
            unavailable,
            ResponseFlags::NO_HEALTHY_UPSTREAM,
            "no healthy upstream".to_owned(),
            "no_healthy_upstream".to_owned(),
        ),
        Failure::Connect(reason) => (
            unavailable,
            ResponseFlags::UPSTREAM_CONNECTION_FAILURE,
            format!("{}, transport failure reason: {reason}", body("remote connection failure")),
            before(&format!("remote_connection_failure|{reason}")),
        ),
        Failure::Overflow => {
            (unavailable, ResponseFlags::UPSTREAM_OVERFLOW, body("overflow"), before("overflow"))
        }
        Failure::Terminated { .. } => (
            unavailable,
            ResponseFlags::UPSTREAM_TERMINATION,
            body("connection termination"),
            before("connection_termination"),
        ),
        Failure::Reset => {
            (unavailable, ResponseFlags::UPSTREAM_REMOTE_RESET, body("remote reset"), before("remote_reset"))
        }
        Failure::Refused => (
            unavailable,
            ResponseFlags::UPSTREAM_REMOTE_RESET,
            body("remote refused stream reset"),
            before("remote_refused_stream_reset"),
        ),
        Failure::PerTryTimeout => (
            StatusCode::GATEWAY_TIMEOUT,
            ResponseFlags::UPSTREAM_TIMEOUT,
            "upstream request timeout".to_owned(),
            "upstream_per_try_timeout".to_owned(),
        ),
        Failure::Protocol => (
            StatusCode::BAD_GATEWAY,
            ResponseFlags::UPSTREAM_PROTOCOL_ERROR,
            body("protocol error"),
            before("protocol_error"),
        ),
        Failure::Downstream => (
            StatusCode::BAD_REQUEST,
            ResponseFlags::DOWNSTREAM_PROTOCOL_ERROR,
            String::new(),
            "downstream_body_failed".to_owned(),
        ),
    };
    exchange.cx.add_flags(flags);
    let mut reply = LocalReply { body: text.into(), ..LocalReply::new(status, "", &details) };
    if matches!(failure, Failure::Overflow) {
        reply.headers.insert("x-envoy-overloaded", HeaderValue::from_static("true"));
    }
    Box::new(reply)
}

/// The answer of a redirect route.
pub(crate) fn redirect(redirect: &Redirect, route: &Route, head: &request::Parts, tls: bool) -> Local {
    let scheme = redirect.scheme.as_deref().unwrap_or(if tls { "https" } else { "http" });
    let authority = headers::host(head).unwrap_or("");
    let old_host = routes::without_port(authority);
    let old_port = authority.get(old_host.len() + 1..).filter(|_| redirect.scheme.is_none());
    let host = redirect.host.as_deref().unwrap_or(old_host);
    let port = redirect.port.map(|p| p.to_string()).or_else(|| old_port.map(str::to_owned));
    let default = if scheme == "https" { "443" } else { "80" };
    let port = port.filter(|p| p != default).map_or_else(String::new, |p| format!(":{p}"));
    let rewritten = redirect
        .prefix_rewrite
        .as_ref()
        .and_then(|p| path::rewrite(&head.uri, &route.matches, &PathRewrite::Prefix(Arc::clone(p))));
    let mut target = match (&redirect.path, rewritten) {
        (Some(path), _) => path.to_string(),
        (None, Some(path)) => path,
        (None, None) => head.uri.path_and_query().map_or("/", |p| p.as_str()).to_owned(),
    };
    if redirect.strip_query {
        target.truncate(target.find('?').unwrap_or(target.len()));
    } else if redirect.path.is_some()
        && !target.contains('?')
        && let Some(query) = head.uri.query()
    {
        target = format!("{target}?{query}");
    }
    let mut reply = LocalReply::new(redirect.code, "", "direct_response");
    if let Ok(location) = HeaderValue::from_str(&format!("{scheme}://{host}{port}{target}")) {
        reply.headers.insert(header::LOCATION, location);
    }
    Box::new(reply)
}

/// A header template's value for an exchange.
pub(crate) fn expand(template: &str, exchange: &Exchange) -> Option<HeaderValue> {
    let text = exchange.expand(template)?;
    HeaderValue::from_bytes(&text).ok()
}
