//! Answers that the router makes itself.

use std::sync::Arc;

use http::{HeaderValue, StatusCode, header, request};

use super::Local;
use crate::{
    config::{PathRewrite, Redirect, Route},
    filter::LocalReply,
    http::{exchange::Exchange, headers, path, retry::Failure, routes},
    telemetry::ResponseFlags,
};

/// What an error of the codec means.
pub(super) fn classify(error: &hyper::Error, reused: bool, exchange: &mut Exchange) -> Failure {
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
pub(super) fn failed(exchange: &mut Exchange, failure: &Failure, attempts: u32) -> Local {
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
