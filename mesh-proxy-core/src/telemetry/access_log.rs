//! Access logs of a listener, a connection manager or a TCP proxy, compiled.

use std::{
    net::IpAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use http::{HeaderMap, HeaderValue, Method, Version, header, request, uri};

use super::{Captures, Format, LogWriter, ResponseFlags, log_writer::LogFile, render};
use crate::{
    config::{AccessLog, AccessLogFilter, AccessLogFormat},
    error::ConfigError,
    filter::{ConnectionInfo, UpstreamInfo},
};

/// Istio's text line.
const DEFAULT: &str = "[%START_TIME%] \"%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%\" \
    %RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% %CONNECTION_TERMINATION_DETAILS% \
    \"%UPSTREAM_TRANSPORT_FAILURE_REASON%\" %BYTES_RECEIVED% %BYTES_SENT% %DURATION% \
    %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% \"%REQ(X-FORWARDED-FOR)%\" \"%REQ(USER-AGENT)%\" \
    \"%REQ(X-REQUEST-ID)%\" \"%REQ(:AUTHORITY)%\" \"%UPSTREAM_HOST%\" %UPSTREAM_CLUSTER_RAW% \
    %UPSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_REMOTE_ADDRESS% \
    %REQUESTED_SERVER_NAME% %ROUTE_NAME%\n";

/// Request values kept for the log.
#[derive(Debug, Default)]
pub(crate) struct Captured {
    pub(crate) version: Option<Version>,
    pub(crate) method: Option<Method>,
    pub(crate) path: Option<uri::PathAndQuery>,
    pub(crate) authority: Option<uri::Authority>,
    pub(crate) host: Option<HeaderValue>,
    pub(crate) request: Vec<Option<HeaderValue>>,
    pub(crate) response: Vec<Option<HeaderValue>>,
    pub(crate) grpc_status: Option<HeaderValue>,
}

impl Captured {
    /// Keeps what the logs print of a request.
    pub(crate) fn request(&mut self, head: &request::Parts, captures: &Captures) {
        self.method = Some(head.method.clone());
        self.path = head.uri.path_and_query().cloned();
        self.authority = head.uri.authority().cloned();
        self.host = head.headers.get(header::HOST).cloned();
        self.request.clear();
        self.request.extend(captures.request.iter().map(|name| head.headers.get(name).cloned()));
    }

    /// Keeps what the logs print of a response.
    pub(crate) fn response(&mut self, headers: &HeaderMap, captures: &Captures) {
        self.response.clear();
        self.response.extend(captures.response.iter().map(|name| headers.get(name).cloned()));
    }
}

/// Everything one line is made of.
#[derive(Debug)]
pub(crate) struct Record<'a> {
    pub(crate) start_time: SystemTime,
    /// The client's address as far as it can be trusted.
    pub(crate) client: IpAddr,
    pub(crate) duration: Duration,
    pub(crate) response_duration: Option<Duration>,
    pub(crate) connection: &'a ConnectionInfo,
    pub(crate) captured: Option<&'a Captured>,
    pub(crate) status: u16,
    pub(crate) flags: ResponseFlags,
    pub(crate) details: Option<&'a str>,
    pub(crate) termination: Option<&'a str>,
    pub(crate) received: u64,
    pub(crate) sent: u64,
    pub(crate) upstream: &'a UpstreamInfo,
    pub(crate) route: Option<&'a str>,
    pub(crate) metadata: &'a [(Arc<str>, Arc<str>, Arc<str>)],
}

/// Compiled logs.
#[derive(Debug, Default)]
pub(crate) struct Logs {
    logs: Vec<Log>,
    pub(crate) captures: Captures,
}

#[derive(Debug)]
struct Log {
    file: Arc<LogFile>,
    form: Form,
    filters: Vec<Filter>,
}

#[derive(Debug)]
enum Form {
    Text(Format),
    Json(Vec<(Box<str>, Format)>),
}

#[derive(Debug)]
enum Filter {
    AnyFlag,
    Flags(ResponseFlags),
    StatusAtLeast(u16),
    DurationAtLeast(Duration),
}

impl Logs {
    /// Compiles formats and opens files.
    pub(crate) fn compile(configs: &[AccessLog], writer: &LogWriter) -> Result<Self, ConfigError> {
        let mut captures = Captures::default();
        let logs = configs.iter().map(|config| Log::compile(config, writer, &mut captures));
        let logs = logs.collect::<Result<Vec<_>, _>>()?;
        Ok(Self { logs, captures })
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.logs.is_empty()
    }

    /// Writes a record to every log that wants it.
    pub(crate) fn write(&self, worker: usize, record: &Record<'_>) {
        for log in &self.logs {
            if log.filters.iter().all(|f| f.wants(record)) {
                log.file.append(worker, |out| log.form.render(out, record));
            }
        }
    }
}

impl Log {
    fn compile(config: &AccessLog, writer: &LogWriter, captures: &mut Captures) -> Result<Self, ConfigError> {
        let form = match &config.format {
            AccessLogFormat::Default => Form::Text(Format::compile(DEFAULT, captures)?),
            AccessLogFormat::Text(text) => Form::Text(Format::compile(text, captures)?),
            AccessLogFormat::Json(fields) => Form::Json(
                fields
                    .iter()
                    .map(|(key, text)| Ok((json_key(key), Format::compile(text, captures)?)))
                    .collect::<Result<_, ConfigError>>()?,
            ),
        };
        let filters = config.filters.iter().map(|filter| match filter {
            AccessLogFilter::ResponseFlags(flags) if flags.is_empty() => Ok(Filter::AnyFlag),
            AccessLogFilter::ResponseFlags(flags) => flags
                .iter()
                .try_fold(ResponseFlags::empty(), |set, short| {
                    let flag = ResponseFlags::from_short(short);
                    flag.map(|f| set.union(f))
                        .ok_or_else(|| ConfigError::invalid("response_flag_filter", short, "unknown flag"))
                })
                .map(Filter::Flags),
            AccessLogFilter::StatusAtLeast(status) => Ok(Filter::StatusAtLeast(*status)),
            AccessLogFilter::DurationAtLeast(ms) => Ok(Filter::DurationAtLeast(Duration::from_millis(*ms))),
        });
        let filters = filters.collect::<Result<_, _>>()?;
        let file = writer
            .open(&config.path)
            .map_err(|error| ConfigError::invalid("access_log.path", &config.path, error.to_string()))?;
        Ok(Self { file, form, filters })
    }
}

fn json_key(key: &str) -> Box<str> {
    let mut out = Vec::new();
    render::json_escape(&mut out, key.as_bytes());
    String::from_utf8_lossy(&out).into()
}

impl Filter {
    fn wants(&self, record: &Record<'_>) -> bool {
        match self {
            Self::AnyFlag => !record.flags.is_empty(),
            Self::Flags(flags) => record.flags.intersects(*flags),
            Self::StatusAtLeast(status) => record.status >= *status,
            Self::DurationAtLeast(duration) => record.duration >= *duration,
        }
    }
}

impl Form {
    fn render(&self, out: &mut Vec<u8>, record: &Record<'_>) {
        match self {
            Self::Text(format) => format.render(out, record),
            Self::Json(fields) => {
                let mut scratch = Vec::new();
                out.push(b'{');
                for (i, (key, format)) in fields.iter().enumerate() {
                    if i > 0 {
                        out.push(b',');
                    }
                    out.push(b'"');
                    out.extend_from_slice(key.as_bytes());
                    out.extend_from_slice(b"\":");
                    scratch.clear();
                    match format.ops.as_slice() {
                        [op] if op.is_number() => {
                            if !render::value(out, op, record) {
                                out.extend_from_slice(b"null");
                            }
                            continue;
                        }
                        [op] => {
                            if !render::value(&mut scratch, op, record) {
                                out.extend_from_slice(b"null");
                                continue;
                            }
                        }
                        _ => format.render(&mut scratch, record),
                    }
                    out.push(b'"');
                    render::json_escape(out, &scratch);
                    out.push(b'"');
                }
                out.extend_from_slice(b"}\n");
            }
        }
    }
}

impl Format {
    /// Writes the text form.
    pub(crate) fn render(&self, out: &mut Vec<u8>, record: &Record<'_>) {
        for op in &self.ops {
            if !render::value(out, op, record) {
                out.push(b'-');
            }
        }
    }
}

#[cfg(test)]
mod tests;
