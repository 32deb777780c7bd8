//! The router: cluster, host, connection, attempts, response.

use std::sync::Arc;

use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Version, header, request};
use http_body::Body as HttpBody;
use hyper::body::Incoming;
use tokio::time::Instant;

mod answers;
mod prepare;

pub(crate) use answers::{expand, redirect};
pub(crate) use prepare::source_hash;

use answers::{classify, failed};
use prepare::{absolute_form, deadline, find_cluster, hash, options, origin_form, prepare, protocol};

use super::{
    HttpConnection,
    exchange::{Exchange, Held},
    headers, mirror,
    pipeline::Reply,
    retry::{self, Failure, Replay},
    upgrade,
    watch::Watch,
};
use crate::{
    Body,
    config::{Forward, HostRewrite, RetryPolicy, Route, names},
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
    // A tunnel has no copy.
    let body = if forward.mirrors.is_empty() || upgrade.is_some() {
        body
    } else {
        mirror::start(connection, forward, head, body)
    };
    let hash = hash(connection, exchange, &cluster, forward, head);
    let policy = forward.retry.as_ref().or_else(|| {
        let table = exchange.cx.routes.as_ref()?;
        table.host(exchange.cx.host).retry.as_ref()
    });
    let policy = policy.filter(|p| p.num_retries > 0 && upgrade.is_none()).cloned();
    let deadline = deadline(connection, exchange, forward, head);
    let mut run = Run {
        connection,
        cluster: &cluster,
        policy: policy.as_deref(),
        options: options(exchange, head, &cluster),
        // What HTTP/1.1 clients ask for is carried over HTTP/1.1.
        protocol: if upgrade.is_some() { Protocol::Http1 } else { protocol(&cluster, head.version) },
        hash,
        tried: Vec::new(),
        priorities: Vec::new(),
        attempt_count,
        upgrade: upgrade.as_ref().is_some_and(|u| !u.is_connect()),
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
    let status = response.status();
    if let Some(requested) = upgrade.filter(|asked| asked.agreed(status)) {
        let idle = forward.idle_timeout.or(connection.manager.config.stream_idle_timeout);
        let keep_upgrade = !requested.is_connect();
        requested.splice(connection, &mut response, (lease, active, request_permit), idle);
        let (mut head, _no_body) = response.into_parts();
        headers::clean_response(&mut head.headers, keep_upgrade);
        return Ok(Reply { head, body: Body::empty(), held: Held::default(), upgraded: true, watch: None });
    }
    if status == StatusCode::SWITCHING_PROTOCOLS {
        // Nobody asked: to pass it on would let the upstream speak for this connection.
        exchange.cx.details = None;
        return Err(failed(exchange, &Failure::Protocol, 1));
    }
    let (mut head, incoming) = response.into_parts();
    head.version = Version::HTTP_11;
    headers::clean_response(&mut head.headers, false);
    let held = Held { lease: Some(lease), _counted: Some((active, request_permit)) };
    // Only an answer with a body can be late.
    let progress = exchange.progress.as_ref().filter(|_| !incoming.is_end_stream());
    let watch = progress.and_then(|progress| Watch::response(progress, deadline));
    Ok(Reply { head, body: Body::from(incoming), held, upgraded: false, watch })
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
        let active = ActiveRequest::new(&host, &self.cluster.stats);
        exchange.cx.upstream.host = Some(host.address());
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
                stats.count_status(status);
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
