//! One request: connect, send, read the whole answer; every failure has a short reason.

use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderName, HeaderValue};
use http::{Request, Uri};
use http_body_util::{BodyExt as _, Empty};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Where a request goes and what it carries.
#[derive(Debug, Clone)]
pub struct Target {
    host: String,
    port: u16,
    authority: HeaderValue,
    path: Uri,
    headers: Vec<(HeaderName, HeaderValue)>,
}

/// A URL or header that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TargetError {
    /// Not an `http://` URL with a host.
    #[error("{url:?} is not an http:// URL with a host")]
    Url {
        /// What was given.
        url: String,
    },
    /// Not `name: value`.
    #[error("{header:?} is not `name: value`")]
    Header {
        /// What was given.
        header: String,
    },
}

impl Target {
    /// Parses an `http://` URL and `name: value` headers.
    ///
    /// # Errors
    /// [`TargetError`] names what cannot be used.
    pub fn parse(url: &str, headers: &[String]) -> Result<Self, TargetError> {
        let bad = || TargetError::Url { url: url.to_owned() };
        let uri: Uri = url.parse().map_err(|_| bad())?;
        if uri.scheme_str() != Some("http") {
            return Err(bad());
        }
        let authority = uri.authority().ok_or_else(bad)?;
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        Ok(Self {
            host: authority.host().trim_start_matches('[').trim_end_matches(']').to_owned(),
            port: authority.port_u16().unwrap_or(80),
            authority: HeaderValue::from_str(authority.as_str()).map_err(|_| bad())?,
            path: path.parse().map_err(|_| bad())?,
            headers: headers.iter().map(|header| parse_header(header)).collect::<Result<_, _>>()?,
        })
    }

    fn request(&self) -> Request<Empty<Bytes>> {
        let mut request = Request::new(Empty::new());
        *request.uri_mut() = self.path.clone();
        request.headers_mut().insert(header::HOST, self.authority.clone());
        for (name, value) in &self.headers {
            request.headers_mut().append(name, value.clone());
        }
        request
    }
}

fn parse_header(text: &str) -> Result<(HeaderName, HeaderValue), TargetError> {
    let bad = || TargetError::Header { header: text.to_owned() };
    let (name, value) = text.split_once(':').ok_or_else(bad)?;
    Ok((name.trim().parse().map_err(|_| bad())?, value.trim().parse().map_err(|_| bad())?))
}

/// What came back.
#[derive(Debug, Clone)]
pub(crate) enum Answer {
    /// A complete response.
    Response { status: u16, version: Option<String>, body: String },
    /// No complete response.
    Failure { reason: String },
}

impl Answer {
    pub(crate) fn to_json(&self) -> Value {
        match self {
            Self::Response { status, version, body } => json!({
                "status": status,
                "version": version,
                "body": serde_json::from_str(body).unwrap_or_else(|_| Value::from(body.as_str())),
            }),
            Self::Failure { reason } => json!({ "error": reason }),
        }
    }
}

/// A connection that can be used again while the server keeps it open.
#[derive(Debug)]
pub(crate) struct Connection {
    sender: SendRequest<Empty<Bytes>>,
}

impl Connection {
    /// Connects and prepares HTTP/1.1; the error is the reason.
    pub(crate) async fn open(target: &Target) -> Result<Self, String> {
        let stream = TcpStream::connect((target.host.as_str(), target.port))
            .await
            .map_err(|error| format!("connect: {}", io_reason(&error)))?;
        let _ = stream.set_nodelay(true);
        let (sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| format!("handshake: {}", hyper_reason(&error)))?;
        tokio::spawn(connection);
        Ok(Self { sender })
    }

    /// Sends one request and reads the whole answer.
    pub(crate) async fn exchange(&mut self, target: &Target) -> Result<Answer, String> {
        let response = self
            .sender
            .send_request(target.request())
            .await
            .map_err(|error| format!("request: {}", hyper_reason(&error)))?;
        let (parts, body) = response.into_parts();
        let body = body
            .collect()
            .await
            .map_err(|error| format!("response body: {}", hyper_reason(&error)))?
            .to_bytes();
        let version = parts.headers.get("x-echo-version").and_then(|value| value.to_str().ok());
        Ok(Answer::Response {
            status: parts.status.as_u16(),
            version: version.map(str::to_owned),
            body: String::from_utf8_lossy(&body).into_owned(),
        })
    }

    /// Whether the connection can take another request now.
    pub(crate) async fn reusable(&mut self) -> bool {
        self.sender.ready().await.is_ok()
    }
}

/// One request on a connection of its own.
pub(crate) async fn get_once(target: &Target, limit: Duration) -> Answer {
    let exchange = async { Connection::open(target).await?.exchange(target).await };
    match timeout(limit, exchange).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(reason)) => Answer::Failure { reason },
        Err(_) => Answer::Failure { reason: String::from("timeout") },
    }
}

fn io_reason(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::ConnectionRefused => String::from("refused"),
        std::io::ErrorKind::ConnectionReset => String::from("reset"),
        _ => error.to_string(),
    }
}

fn hyper_reason(error: &hyper::Error) -> String {
    let mut source: Option<&dyn std::error::Error> = Some(error);
    while let Some(cause) = source {
        if let Some(io) = cause.downcast_ref::<std::io::Error>() {
            return io_reason(io);
        }
        source = cause.source();
    }
    if error.is_incomplete_message() || error.is_closed() || error.is_canceled() {
        return String::from("closed");
    }
    error.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_an_http_url() {
        let target = Target::parse("http://reviews:9080/a?b=1", &[String::from("x-test: 1")]).unwrap();
        assert_eq!((target.host.as_str(), target.port), ("reviews", 9080));
        let request = target.request();
        assert_eq!(request.uri(), "/a?b=1");
        assert_eq!(request.headers()["host"], "reviews:9080");
        assert_eq!(request.headers()["x-test"], "1");
        assert!(Target::parse("https://reviews/", &[]).is_err());
        assert!(Target::parse("reviews", &[]).is_err());
        assert!(Target::parse("http://reviews/", &[String::from("nothing")]).is_err());
    }
}
