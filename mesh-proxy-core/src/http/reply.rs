//! Answers made here, as Envoy words them.

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header, response};

use crate::{Body, filter::LocalReply};

/// Builds the response of a local reply; gRPC callers get a trailers-only response.
pub(crate) fn build(reply: LocalReply, grpc: bool) -> (response::Parts, Body) {
    let mut response = Response::new(());
    *response.headers_mut() = reply.headers;
    if grpc {
        let status = reply.grpc_status.unwrap_or_else(|| grpc_status(reply.status));
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert("grpc-status", HeaderValue::from(status));
        if !reply.body.is_empty()
            && let Ok(message) = HeaderValue::from_bytes(&percent(&reply.body))
        {
            headers.insert("grpc-message", message);
        }
        return (response.into_parts().0, Body::empty());
    }
    *response.status_mut() = reply.status;
    if reply.body.is_empty() {
        return (response.into_parts().0, Body::empty());
    }
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(reply.body.len()));
    headers.entry(header::CONTENT_TYPE).or_insert(HeaderValue::from_static("text/plain"));
    (response.into_parts().0, Body::full(reply.body))
}

/// gRPC's mapping of HTTP statuses, in Envoy's version.
fn grpc_status(status: StatusCode) -> u32 {
    match status.as_u16() {
        200 => 0,
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502..=504 => 14,
        _ => 2,
    }
}

fn percent(text: &Bytes) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    for byte in text {
        if (b' '..=b'~').contains(byte) && *byte != b'%' {
            out.push(*byte);
        } else {
            out.extend(format!("%{byte:02X}").bytes());
        }
    }
    out
}
