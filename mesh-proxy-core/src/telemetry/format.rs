//! Envoy's `%OPERATOR%` language, compiled once.

use http::HeaderName;

use crate::error::ConfigError;

/// A compiled format.
#[derive(Debug, Clone, Default)]
pub(crate) struct Format {
    pub(crate) ops: Vec<Op>,
}

/// Headers that a format prints; taken from messages before these move on.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Captures {
    pub(crate) request: Vec<HeaderName>,
    pub(crate) response: Vec<HeaderName>,
}

/// Where a request value comes from.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Source {
    Method,
    Path,
    Authority,
    Scheme,
    /// Index into the captured headers.
    Header(usize),
}

/// One piece of a format.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Op {
    Literal(Box<str>),
    StartTime,
    StartTimeEpochSeconds,
    Request { main: Source, alternative: Option<Source>, limit: Option<usize> },
    Response { main: usize, alternative: Option<usize>, limit: Option<usize> },
    Protocol,
    ResponseCode,
    ResponseFlags,
    ResponseCodeDetails,
    ConnectionTerminationDetails,
    UpstreamTransportFailureReason,
    BytesReceived,
    BytesSent,
    Duration,
    ResponseDuration,
    UpstreamHost,
    UpstreamCluster,
    UpstreamClusterRaw,
    UpstreamLocalAddress,
    UpstreamRemoteAddress,
    DownstreamLocalAddress,
    DownstreamLocalAddressWithoutPort,
    DownstreamLocalPort,
    DownstreamRemoteAddress,
    DownstreamRemoteAddressWithoutPort,
    DownstreamDirectRemoteAddress,
    DownstreamPeerUriSan,
    DownstreamLocalUriSan,
    DownstreamPeerSubject,
    DownstreamTlsVersion,
    DownstreamTlsCipher,
    UpstreamPeerUriSan,
    RequestedServerName,
    RouteName,
    VirtualHostName,
    ConnectionId,
    GrpcStatus,
    UpstreamRequestAttemptCount,
    DynamicMetadata { filter: Box<str>, key: Box<str> },
    Hostname,
}

impl Op {
    /// Whether the value is a number in typed JSON.
    pub(crate) fn is_number(&self) -> bool {
        matches!(
            self,
            Self::ResponseCode
                | Self::BytesReceived
                | Self::BytesSent
                | Self::Duration
                | Self::ResponseDuration
                | Self::ConnectionId
                | Self::UpstreamRequestAttemptCount
                | Self::DownstreamLocalPort
        )
    }
}

impl Format {
    /// Compiles a format; headers it needs are added to `captures`.
    pub(crate) fn compile(text: &str, captures: &mut Captures) -> Result<Self, ConfigError> {
        let invalid = |reason: &str| ConfigError::invalid("format", text, reason);
        let mut ops = Vec::new();
        let mut literal = String::new();
        let mut rest = text;
        while let Some(at) = rest.find('%') {
            literal.push_str(&rest[..at]);
            rest = &rest[at + 1..];
            if let Some(after) = rest.strip_prefix('%') {
                literal.push('%');
                rest = after;
                continue;
            }
            let end = operator_end(rest).ok_or_else(|| invalid("an operator does not end with %"))?;
            let op = operator(&rest[..end], captures)
                .ok_or_else(|| invalid(&format!("unknown operator %{}%", &rest[..end])))?;
            if !literal.is_empty() {
                ops.push(Op::Literal(std::mem::take(&mut literal).into()));
            }
            ops.push(op);
            rest = &rest[end + 1..];
        }
        literal.push_str(rest);
        if !literal.is_empty() {
            ops.push(Op::Literal(literal.into()));
        }
        Ok(Self { ops })
    }
}

/// The closing `%`: not inside the operator's parentheses (`%START_TIME(%Y)%`).
fn operator_end(text: &str) -> Option<usize> {
    let mut depth = 0_u32;
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'(' => depth += 1,
            b')' => depth = depth.saturating_sub(1),
            b'%' if depth == 0 => return Some(at),
            _ => {}
        }
    }
    None
}

fn operator(text: &str, captures: &mut Captures) -> Option<Op> {
    let (name, argument, limit) = split(text)?;
    Some(match (name, argument) {
        ("REQ", Some(headers)) => {
            let (main, alternative) = alternatives(headers);
            Op::Request {
                main: request_source(main, captures)?,
                alternative: alternative.map_or(Some(None), |a| request_source(a, captures).map(Some))?,
                limit,
            }
        }
        ("RESP", Some(headers)) => {
            let (main, alternative) = alternatives(headers);
            Op::Response {
                main: index(main, &mut captures.response)?,
                alternative: alternative
                    .map_or(Some(None), |a| index(a, &mut captures.response).map(Some))?,
                limit,
            }
        }
        ("START_TIME", None) => Op::StartTime,
        ("START_TIME", Some("%s")) => Op::StartTimeEpochSeconds,
        ("DYNAMIC_METADATA", Some(path)) => {
            let (filter, key) = path.split_once(':')?;
            Op::DynamicMetadata { filter: filter.into(), key: key.replace(':', ".").into() }
        }
        (name, None) => plain(name, captures)?,
        _ => return None,
    })
}

fn plain(name: &str, captures: &mut Captures) -> Option<Op> {
    Some(match name {
        "PROTOCOL" => Op::Protocol,
        "RESPONSE_CODE" => Op::ResponseCode,
        "RESPONSE_FLAGS" => Op::ResponseFlags,
        "RESPONSE_CODE_DETAILS" => Op::ResponseCodeDetails,
        "CONNECTION_TERMINATION_DETAILS" => Op::ConnectionTerminationDetails,
        "UPSTREAM_TRANSPORT_FAILURE_REASON" => Op::UpstreamTransportFailureReason,
        "BYTES_RECEIVED" => Op::BytesReceived,
        "BYTES_SENT" => Op::BytesSent,
        "DURATION" => Op::Duration,
        "RESPONSE_DURATION" => Op::ResponseDuration,
        "UPSTREAM_HOST" => Op::UpstreamHost,
        "UPSTREAM_CLUSTER" => Op::UpstreamCluster,
        "UPSTREAM_CLUSTER_RAW" => Op::UpstreamClusterRaw,
        "UPSTREAM_LOCAL_ADDRESS" => Op::UpstreamLocalAddress,
        "UPSTREAM_REMOTE_ADDRESS" => Op::UpstreamRemoteAddress,
        "DOWNSTREAM_LOCAL_ADDRESS" => Op::DownstreamLocalAddress,
        "DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT" => Op::DownstreamLocalAddressWithoutPort,
        "DOWNSTREAM_LOCAL_PORT" => Op::DownstreamLocalPort,
        "DOWNSTREAM_REMOTE_ADDRESS" => Op::DownstreamRemoteAddress,
        "DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT" => Op::DownstreamRemoteAddressWithoutPort,
        "DOWNSTREAM_DIRECT_REMOTE_ADDRESS" => Op::DownstreamDirectRemoteAddress,
        "DOWNSTREAM_PEER_URI_SAN" => Op::DownstreamPeerUriSan,
        "DOWNSTREAM_LOCAL_URI_SAN" => Op::DownstreamLocalUriSan,
        "DOWNSTREAM_PEER_SUBJECT" => Op::DownstreamPeerSubject,
        "DOWNSTREAM_TLS_VERSION" => Op::DownstreamTlsVersion,
        "DOWNSTREAM_TLS_CIPHER" => Op::DownstreamTlsCipher,
        "UPSTREAM_PEER_URI_SAN" => Op::UpstreamPeerUriSan,
        "REQUESTED_SERVER_NAME" => Op::RequestedServerName,
        "ROUTE_NAME" => Op::RouteName,
        "VIRTUAL_CLUSTER_NAME" => Op::VirtualHostName,
        "CONNECTION_ID" => Op::ConnectionId,
        "GRPC_STATUS" | "GRPC_STATUS_NUMBER" => {
            index("grpc-status", &mut captures.response)?;
            Op::GrpcStatus
        }
        "UPSTREAM_REQUEST_ATTEMPT_COUNT" => Op::UpstreamRequestAttemptCount,
        "HOSTNAME" => Op::Hostname,
        _ => return None,
    })
}

/// `NAME(argument):limit`.
fn split(text: &str) -> Option<(&str, Option<&str>, Option<usize>)> {
    let Some(open) = text.find('(') else {
        return match text.split_once(':') {
            Some((name, limit)) => Some((name, None, Some(limit.parse().ok()?))),
            None => Some((text, None, None)),
        };
    };
    let close = text.rfind(')')?;
    let limit = match &text[close + 1..] {
        "" => None,
        tail => Some(tail.strip_prefix(':')?.parse().ok()?),
    };
    Some((&text[..open], Some(text.get(open + 1..close)?), limit))
}

fn alternatives(headers: &str) -> (&str, Option<&str>) {
    match headers.split_once('?') {
        Some((main, alternative)) => (main, Some(alternative)),
        None => (headers, None),
    }
}

fn request_source(name: &str, captures: &mut Captures) -> Option<Source> {
    Some(match name.to_ascii_lowercase().as_str() {
        ":method" => Source::Method,
        ":path" => Source::Path,
        ":authority" | "host" => Source::Authority,
        ":scheme" => Source::Scheme,
        header => Source::Header(index(header, &mut captures.request)?),
    })
}

fn index(name: &str, names: &mut Vec<HeaderName>) -> Option<usize> {
    let name = HeaderName::from_bytes(name.to_ascii_lowercase().as_bytes()).ok()?;
    Some(names.iter().position(|n| *n == name).unwrap_or_else(|| {
        names.push(name);
        names.len() - 1
    }))
}
