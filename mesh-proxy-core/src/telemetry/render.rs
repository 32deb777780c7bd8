//! Writing values into a log buffer without allocating.

use std::{
    net::{IpAddr, SocketAddr},
    time::{SystemTime, UNIX_EPOCH},
};

use http::Version;

use super::{
    access_log::Record,
    format::{Op, Source},
};

/// Decimal digits.
pub(crate) fn number(out: &mut Vec<u8>, mut value: u64) {
    let mut digits = [0; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (value % 10) as u8;
        value /= 10;
        if value == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

fn padded(out: &mut Vec<u8>, value: u64, width: u32) {
    for place in (0..width).rev() {
        out.push(b'0' + (value / 10_u64.pow(place) % 10) as u8);
    }
}

/// `2016-04-15T20:17:00.310Z`.
pub(crate) fn timestamp(out: &mut Vec<u8>, time: SystemTime) {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    // Days to civil date (Howard Hinnant's algorithm, years from March).
    let z = days + 719_468;
    let era = z / 146_097;
    let day_of_era = z % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    padded(out, year, 4);
    out.push(b'-');
    padded(out, month, 2);
    out.push(b'-');
    padded(out, day, 2);
    out.push(b'T');
    padded(out, second / 3600, 2);
    out.push(b':');
    padded(out, second / 60 % 60, 2);
    out.push(b':');
    padded(out, second % 60, 2);
    out.push(b'.');
    padded(out, u64::from(since.subsec_millis()), 3);
    out.push(b'Z');
}

fn ip(out: &mut Vec<u8>, ip: IpAddr) {
    match ip {
        IpAddr::V4(v4) => {
            for (i, octet) in v4.octets().into_iter().enumerate() {
                if i > 0 {
                    out.push(b'.');
                }
                number(out, octet.into());
            }
        }
        IpAddr::V6(v6) => {
            use std::io::Write;
            let _infallible = write!(out, "{v6}");
        }
    }
}

pub(crate) fn address(out: &mut Vec<u8>, address: SocketAddr) {
    if address.is_ipv6() {
        out.push(b'[');
        ip(out, address.ip());
        out.push(b']');
    } else {
        ip(out, address.ip());
    }
    out.push(b':');
    number(out, address.port().into());
}

/// Writes one operator's value; false when there is none (`-` in text, `null` in JSON).
pub(crate) fn value(out: &mut Vec<u8>, op: &Op, record: &Record<'_>) -> bool {
    let connection = record.connection;
    match op {
        Op::Literal(text) => out.extend_from_slice(text.as_bytes()),
        Op::StartTime => timestamp(out, record.start_time),
        Op::StartTimeEpochSeconds => {
            number(out, record.start_time.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs()));
        }
        Op::Request { main, alternative, limit } => {
            return request(out, main, *limit, record)
                || alternative.as_ref().is_some_and(|a| request(out, a, *limit, record));
        }
        Op::Response { main, alternative, limit } => {
            let find = |i: &usize| record.captured.and_then(|c| c.response.get(*i)?.as_ref());
            let Some(found) = find(main).or_else(|| alternative.as_ref().and_then(find)) else {
                return false;
            };
            cut(out, found.as_bytes(), *limit);
        }
        Op::Protocol => match record.captured.and_then(|c| c.version) {
            Some(Version::HTTP_10) => out.extend_from_slice(b"HTTP/1.0"),
            Some(Version::HTTP_2) => out.extend_from_slice(b"HTTP/2"),
            Some(_) => out.extend_from_slice(b"HTTP/1.1"),
            None => return false,
        },
        Op::ResponseCode => number(out, record.status.into()),
        Op::ResponseFlags => {
            if record.flags.is_empty() {
                return false;
            }
            for (i, short) in record.flags.shorts().enumerate() {
                if i > 0 {
                    out.push(b',');
                }
                out.extend_from_slice(short.as_bytes());
            }
        }
        Op::ResponseCodeDetails => return details(out, record.details),
        Op::ConnectionTerminationDetails => return details(out, record.termination),
        Op::UpstreamTransportFailureReason => return text(out, record.upstream.transport_failure.as_deref()),
        Op::BytesReceived => number(out, record.received),
        Op::BytesSent => number(out, record.sent),
        Op::Duration => number(out, record.duration.as_millis() as u64),
        Op::ResponseDuration => match record.response_duration {
            Some(d) => number(out, d.as_millis() as u64),
            None => return false,
        },
        Op::UpstreamHost | Op::UpstreamRemoteAddress => return maybe_address(out, record.upstream.host),
        Op::UpstreamCluster | Op::UpstreamClusterRaw => return text(out, record.upstream.cluster.as_deref()),
        Op::UpstreamLocalAddress => return maybe_address(out, record.upstream.local),
        Op::UpstreamPeerUriSan => return text(out, record.upstream.identity.as_deref()),
        Op::DownstreamLocalAddress => address(out, connection.local),
        Op::DownstreamLocalAddressWithoutPort => ip(out, connection.local.ip()),
        Op::DownstreamLocalPort => number(out, connection.local.port().into()),
        Op::DownstreamDirectRemoteAddress => address(out, connection.peer),
        Op::DownstreamRemoteAddress if record.client == connection.peer.ip() => address(out, connection.peer),
        // A header names no port; Envoy prints 0.
        Op::DownstreamRemoteAddress => address(out, SocketAddr::new(record.client, 0)),
        Op::DownstreamRemoteAddressWithoutPort => ip(out, record.client),
        Op::DownstreamPeerUriSan => return text(out, connection.peer_identity().map(|id| &**id)),
        Op::DownstreamLocalUriSan => {
            return text(out, connection.tls.as_ref().and_then(|t| t.local_identity.as_deref()));
        }
        Op::DownstreamPeerSubject => {
            return text(out, connection.tls.as_ref().and_then(|t| Some(&*t.peer.as_ref()?.subject)));
        }
        Op::DownstreamTlsVersion => return text(out, connection.tls.as_ref().and_then(|t| t.version)),
        Op::DownstreamTlsCipher => return text(out, connection.tls.as_ref().and_then(|t| t.cipher)),
        Op::RequestedServerName => return text(out, connection.server_name.as_deref()),
        Op::RouteName => return text(out, record.route),
        Op::VirtualHostName | Op::Hostname => return false,
        Op::ConnectionId => number(out, connection.id),
        Op::GrpcStatus => {
            let Some(status) = record.captured.and_then(|c| c.grpc_status.as_ref()) else { return false };
            out.extend_from_slice(status.as_bytes());
        }
        Op::UpstreamRequestAttemptCount => number(out, record.upstream.attempts.into()),
        Op::DynamicMetadata { filter, key } => {
            let found = record.metadata.iter().rev().find(|(f, k, _)| **f == **filter && **k == **key);
            return text(out, found.map(|(_, _, v)| &**v));
        }
    }
    true
}

fn maybe_address(out: &mut Vec<u8>, found: Option<SocketAddr>) -> bool {
    found.inspect(|a| address(out, *a)).is_some()
}

fn text(out: &mut Vec<u8>, value: Option<&str>) -> bool {
    let value = value.filter(|v| !v.is_empty());
    value.inspect(|v| out.extend_from_slice(v.as_bytes())).is_some()
}

/// Details never contain spaces.
fn details(out: &mut Vec<u8>, value: Option<&str>) -> bool {
    let Some(value) = value else { return false };
    out.extend(value.bytes().map(|b| if b.is_ascii_whitespace() { b'_' } else { b }));
    true
}

fn cut(out: &mut Vec<u8>, bytes: &[u8], limit: Option<usize>) {
    let end = limit.map_or(bytes.len(), |l| l.min(bytes.len()));
    // A header must not be able to forge a line.
    out.extend(bytes[..end].iter().map(|b| if b.is_ascii_control() { b' ' } else { *b }));
}

fn request(out: &mut Vec<u8>, source: &Source, limit: Option<usize>, record: &Record<'_>) -> bool {
    let Some(captured) = record.captured else { return false };
    match source {
        Source::Method => match &captured.method {
            Some(method) => cut(out, method.as_str().as_bytes(), limit),
            None => return false,
        },
        Source::Path => match &captured.path {
            Some(path) => cut(out, path.as_str().as_bytes(), limit),
            None => return false,
        },
        Source::Authority => match (&captured.host, &captured.authority) {
            (Some(host), _) => cut(out, host.as_bytes(), limit),
            (None, Some(authority)) => cut(out, authority.as_str().as_bytes(), limit),
            _ => return false,
        },
        Source::Scheme => out.extend_from_slice(b"http"),
        Source::Header(i) => match captured.request.get(*i) {
            Some(Some(value)) => cut(out, value.as_bytes(), limit),
            _ => return false,
        },
    }
    true
}

/// A value as the inside of a JSON string.
pub(crate) fn json_escape(out: &mut Vec<u8>, text: &[u8]) {
    for byte in text {
        match byte {
            b'"' => out.extend_from_slice(b"\\\""),
            b'\\' => out.extend_from_slice(b"\\\\"),
            0..=31 => {
                out.extend_from_slice(b"\\u00");
                padded(out, u64::from(byte >> 4), 1);
                out.push(b"0123456789abcdef"[usize::from(byte & 15)]);
            }
            _ => out.push(*byte),
        }
    }
}
