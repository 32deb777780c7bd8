//! Headers at the edges: what is removed, what is overwritten, what is added.

use std::net::IpAddr;

use http::{HeaderMap, HeaderName, HeaderValue, Uri, header, request};
use ipnet::IpNet;

use super::routes::without_port;
use crate::{
    config::{ForwardClientCert, HttpConnectionManager, SetClientCertDetails, StripHostPort, names},
    tls::{PeerCertificate, TlsSession},
    worker::Worker,
};

/// The host a request names: the authority of its target, else its `host` header.
#[must_use]
pub(crate) fn host(head: &request::Parts) -> Option<&str> {
    match head.uri.authority() {
        Some(authority) => Some(authority.as_str()),
        None => head.headers.get(header::HOST)?.to_str().ok(),
    }
}

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

/// What one pass over the names of a message found.
#[derive(Debug, Default, Clone, Copy)]
struct Found {
    connection: bool,
    keep_alive: bool,
    proxy_connection: bool,
    te: bool,
    transfer_encoding: bool,
    upgrade: bool,
    envoy: bool,
}

fn scan(headers: &HeaderMap) -> Found {
    let mut found = Found::default();
    for name in headers.keys() {
        let text = name.as_str().as_bytes();
        match (text[0], text.len()) {
            (b'c', 10) => found.connection |= text == b"connection",
            (b'k', 10) => found.keep_alive |= text == b"keep-alive",
            (b'p', 16) => found.proxy_connection |= text == b"proxy-connection",
            (b't', 2) => found.te |= text == b"te",
            (b't', 17) => found.transfer_encoding |= text == b"transfer-encoding",
            (b'u', 7) => found.upgrade |= text == b"upgrade",
            (b'x', 8..) => found.envoy |= text.starts_with(b"x-envoy-"),
            _ => {}
        }
    }
    found
}

/// Removes hop-by-hop headers (RFC 9110, 7.6.1); `keep_upgrade` lets an upgrade through.
fn remove_hop_by_hop(headers: &mut HeaderMap, found: Found, keep_upgrade: bool) {
    if found.connection {
        // Names that `connection` lists are hop-by-hop too.
        let listed: Vec<HeaderName> = headers
            .get_all(header::CONNECTION)
            .iter()
            .filter_map(|v| v.to_str().ok())
            .flat_map(|v| v.split(','))
            .filter_map(|name| HeaderName::from_bytes(name.trim().to_ascii_lowercase().as_bytes()).ok())
            .filter(|name| !matches!(*name, header::UPGRADE | header::HOST | header::CONTENT_LENGTH))
            .filter(|name| {
                !matches!(name.as_str(), "close" | "te" | "connection")
                    && !name.as_str().starts_with("x-forwarded-")
            })
            .collect();
        for name in listed {
            headers.remove(name);
        }
        headers.remove(header::CONNECTION);
    }
    if found.keep_alive {
        headers.remove(KEEP_ALIVE);
    }
    if found.proxy_connection {
        headers.remove(PROXY_CONNECTION);
    }
    if found.transfer_encoding {
        headers.remove(header::TRANSFER_ENCODING);
    }
    if found.te {
        // `trailers` is the only value that may travel (RFC 9113, 8.2.2).
        let trailers = headers.get_all(header::TE).iter().any(|v| {
            v.to_str().is_ok_and(|v| v.split(',').any(|t| t.trim().eq_ignore_ascii_case("trailers")))
        });
        if trailers {
            headers.insert(header::TE, HeaderValue::from_static("trailers"));
        } else {
            headers.remove(header::TE);
        }
    }
    if found.upgrade && !keep_upgrade {
        headers.remove(header::UPGRADE);
    }
    if keep_upgrade {
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    }
}

/// The `x-forwarded-client-cert` element for a connection's peer, made once per connection.
pub(crate) fn client_cert_element(tls: &TlsSession, details: SetClientCertDetails) -> Option<HeaderValue> {
    let peer: &PeerCertificate = tls.peer.as_deref()?;
    let mut text = String::with_capacity(256);
    let mut put = |key: &str, value: &str| {
        if !text.is_empty() {
            text.push(';');
        }
        text.push_str(key);
        text.push('=');
        // A name in a certificate must not be able to begin another pair or another element.
        if key == "Subject" || value.contains([',', ';', '=', '"', '\\']) {
            text.push('"');
            text.push_str(&value.replace('\\', "\\\\").replace('"', "\\\""));
            text.push('"');
        } else {
            text.push_str(value);
        }
    };
    if let Some(own) = &tls.local_identity {
        put("By", own);
    }
    put("Hash", &peer.sha256);
    if details.subject {
        put("Subject", &peer.subject);
    }
    if details.uri {
        for uri in &peer.uri_sans {
            put("URI", uri);
        }
    }
    if details.dns {
        for dns in &peer.dns_sans {
            put("DNS", dns);
        }
    }
    HeaderValue::from_str(&text).ok()
}

/// What a request's headers go through before anything looks at them.
#[derive(Debug)]
pub(crate) struct RequestRules<'a> {
    pub(crate) client_cert: ForwardClientCert,
    /// Our element, when the connection is mutual TLS.
    pub(crate) element: Option<&'a HeaderValue>,
    pub(crate) generate_request_id: bool,
    /// What the client says of the request's identity is not believed.
    pub(crate) replace_request_id: bool,
    /// Neither is what it says of the scheme.
    pub(crate) replace_proto: bool,
    pub(crate) keep_upgrade: bool,
    pub(crate) tls: bool,
    /// Headers of the mesh's own from a proven peer are believed.
    pub(crate) trusted_peer: bool,
}

/// Cleans a request's headers in place.
pub(crate) fn clean_request(headers: &mut HeaderMap, rules: &RequestRules<'_>, worker: &Worker) {
    let found = scan(headers);
    remove_hop_by_hop(headers, found, rules.keep_upgrade);
    if found.envoy {
        let gone: Vec<HeaderName> = headers
            .keys()
            .filter(|name| name.as_str().starts_with("x-envoy-"))
            .filter(|name| !(rules.trusted_peer && **name == names::ATTEMPT_COUNT))
            .cloned()
            .collect();
        for name in gone {
            headers.remove(name);
        }
    }
    match (rules.client_cert, rules.element) {
        (ForwardClientCert::AlwaysForwardOnly, _) | (ForwardClientCert::ForwardOnly, Some(_)) => {}
        (ForwardClientCert::SanitizeSet, Some(element)) => {
            headers.insert(names::XFCC, element.clone());
        }
        (ForwardClientCert::AppendForward, Some(element)) => {
            append(headers, &names::XFCC, element);
        }
        _ => {
            headers.remove(names::XFCC);
        }
    }
    if rules.replace_request_id {
        headers.remove(names::REQUEST_ID);
    }
    if rules.generate_request_id && !headers.contains_key(names::REQUEST_ID) {
        headers.insert(names::REQUEST_ID, request_id(worker));
    }
    if rules.replace_proto || !headers.contains_key(names::FORWARDED_PROTO) {
        let scheme = if rules.tls { "https" } else { "http" };
        headers.insert(names::FORWARDED_PROTO, HeaderValue::from_static(scheme));
    }
}

/// Removes hop-by-hop headers from a response.
pub(crate) fn clean_response(headers: &mut HeaderMap, keep_upgrade: bool) {
    let found = scan(headers);
    if found.connection
        || found.keep_alive
        || found.proxy_connection
        || found.transfer_encoding
        || found.upgrade
    {
        remove_hop_by_hop(headers, Found { te: false, ..found }, keep_upgrade);
    }
}

/// A random UUID (version 4).
pub(crate) fn request_id(worker: &Worker) -> HeaderValue {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&worker.random().to_ne_bytes());
    bytes[8..].copy_from_slice(&worker.random().to_ne_bytes());
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let mut text = [b'-'; 36];
    let mut at = 0;
    for (i, byte) in bytes.iter().enumerate() {
        if matches!(i, 4 | 6 | 8 | 10) {
            at += 1;
        }
        text[at] = b"0123456789abcdef"[usize::from(byte >> 4)];
        text[at + 1] = b"0123456789abcdef"[usize::from(byte & 15)];
        at += 2;
    }
    HeaderValue::from_bytes(&text).unwrap_or_else(|_| HeaderValue::from_static("-"))
}

/// Appends a value to a list header, all of whose lines become one.
fn append(headers: &mut HeaderMap, name: &HeaderName, value: &HeaderValue) {
    let mut joined = Vec::with_capacity(128);
    for old in headers.get_all(name) {
        joined.extend_from_slice(old.as_bytes());
        joined.push(b',');
    }
    joined.extend_from_slice(value.as_bytes());
    if let Ok(joined) = HeaderValue::from_bytes(&joined) {
        headers.insert(name.clone(), joined);
    }
}

/// Appends the peer's address to `x-forwarded-for`.
pub(crate) fn append_forwarded_for(headers: &mut HeaderMap, peer: IpAddr) {
    if let Ok(value) = HeaderValue::from_str(&peer.to_string()) {
        append(headers, &names::FORWARDED_FOR, &value);
    }
}

/// Appends the request's host to `x-forwarded-host`.
pub(crate) fn append_forwarded_host(headers: &mut HeaderMap) {
    if let Some(host) = headers.get(header::HOST).cloned() {
        append(headers, &names::FORWARDED_HOST, &host);
    }
}

/// The client's address as far as it can be trusted, see
/// [`RequestContext::client_address`](crate::filter::RequestContext::client_address).
pub(crate) fn client_address(headers: &HeaderMap, own: bool, hops: u32, peer: IpAddr) -> IpAddr {
    let skipped = match (own, hops as usize) {
        (true, 0) => return peer,
        (true, hops) => hops - 1,
        (false, hops) => hops,
    };
    let lines = headers.get_all(names::FORWARDED_FOR).iter().rev();
    // A line that is not text hides what it says: nothing before it can be counted.
    let addresses = lines.map_while(|line| line.to_str().ok()).flat_map(|line| line.rsplit(','));
    let named = addresses.map(str::trim).nth(skipped);
    named.and_then(|text| text.parse::<IpAddr>().ok()).map_or(peer, |ip| ip.to_canonical())
}

/// Whether an address is internal: as configured, else of a private network or this machine's own.
pub(crate) fn is_internal(address: IpAddr, ranges: Option<&[IpNet]>) -> bool {
    if let Some(ranges) = ranges {
        return ranges.iter().any(|range| range.contains(&address));
    }
    match address {
        IpAddr::V4(ip) => ip.is_private() || ip.is_loopback(),
        IpAddr::V6(ip) => ip.is_unique_local() || ip.is_loopback(),
    }
}

/// The host without what `strip_host_port` and `strip_trailing_host_dot` take away; `None` when nothing changes.
pub(crate) fn stripped_host(host: &str, config: &HttpConnectionManager, own_port: u16) -> Option<String> {
    let name = without_port(host);
    let port = host.get(name.len() + 1..).unwrap_or("");
    let strip = match config.strip_host_port {
        StripHostPort::Keep => false,
        StripHostPort::Matching => port.parse() == Ok(own_port),
        StripHostPort::Any => true,
    };
    let bare = if config.strip_trailing_host_dot { name.strip_suffix('.').unwrap_or(name) } else { name };
    let stripped = if strip || port.is_empty() { bare.to_owned() } else { format!("{bare}:{port}") };
    (stripped != host).then_some(stripped)
}

/// Sets the host of a request in both of its places.
pub(crate) fn set_host(head: &mut request::Parts, host: &str) {
    if let Ok(value) = HeaderValue::from_str(host) {
        head.headers.insert(header::HOST, value);
    }
    if head.uri.authority().is_some()
        && let Ok(authority) = host.parse()
    {
        let mut parts = std::mem::take(&mut head.uri).into_parts();
        parts.authority = Some(authority);
        head.uri = Uri::from_parts(parts).unwrap_or_default();
    }
}

#[cfg(test)]
mod tests;
