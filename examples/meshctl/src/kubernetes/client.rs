//! GET requests to an API server: one connection each, bounded in time and size.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::credentials::Connection;
use super::error::KubernetesError;

/// Time for one request, from the name's resolution to the last byte.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Largest answer: a page of [`PAGE`] objects of 128 KiB.
const MAX_ANSWER: usize = 64 << 20;
/// Objects asked for at once.
const PAGE: usize = 500;
/// Pages of one list: a server that always promises one more must not keep us for ever.
const MAX_PAGES: usize = 1000;

/// Reads objects.
pub(crate) struct Client {
    connection: Connection,
}

impl Client {
    /// A client that connects when asked.
    pub(crate) fn new(connection: Connection) -> Self {
        Self { connection }
    }

    /// One object.
    ///
    /// # Errors
    /// [`KubernetesError`], with server and path.
    pub(crate) async fn get(&self, path: &str) -> Result<Value, KubernetesError> {
        match tokio::time::timeout(TIMEOUT, self.exchange(path)).await {
            Ok(answer) => answer,
            Err(_) => Err(self.unreachable(format!("no answer within {} s", TIMEOUT.as_secs()))),
        }
    }

    /// Every object of a collection, with the `kind` that list items lack.
    ///
    /// # Errors
    /// [`KubernetesError`], with server and path.
    pub(crate) async fn list(&self, path: &str, kind: &str) -> Result<Vec<Value>, KubernetesError> {
        let mut objects = Vec::new();
        let mut next = String::new();
        for _ in 0..MAX_PAGES {
            let mut page = self.get(&format!("{path}?limit={PAGE}{next}")).await?;
            let Some(Value::Array(items)) = page.get_mut("items").map(Value::take) else {
                return Err(self.answer(path, "has no list `items`"));
            };
            for mut item in items {
                let Value::Object(map) = &mut item else {
                    return Err(self.answer(path, "lists something that is not an object"));
                };
                map.entry("kind").or_insert_with(|| Value::String(kind.to_owned()));
                objects.push(item);
            }
            match page.pointer("/metadata/continue").and_then(Value::as_str) {
                None | Some("") => return Ok(objects),
                Some(token) => next = format!("&continue={}", query_value(token)),
            }
        }
        Err(self.answer(path, &format!("has more than {MAX_PAGES} pages")))
    }

    async fn exchange(&self, path: &str) -> Result<Value, KubernetesError> {
        let server = &self.connection.server;
        let tcp = TcpStream::connect((server.host.as_str(), server.port))
            .await
            .map_err(|error| self.unreachable(error.to_string()))?;
        let Some(tls) = &self.connection.tls else { return self.converse(tcp, path).await };
        let stream = TlsConnector::from(Arc::clone(&tls.config))
            .connect(tls.name.clone(), tcp)
            .await
            .map_err(|error| self.unreachable(error.to_string()))?;
        self.converse(stream, path).await
    }

    async fn converse(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        path: &str,
    ) -> Result<Value, KubernetesError> {
        let server = &self.connection.server;
        let mut request = Request::get(format!("{}{path}", server.prefix))
            .header(header::HOST, server.authority())
            .header(header::ACCEPT, "application/json")
            .header(header::USER_AGENT, concat!("meshctl/", env!("CARGO_PKG_VERSION")))
            .body(Empty::<Bytes>::new())
            .map_err(|error| self.unreachable(error.to_string()))?;
        if let Some(value) = self.connection.token.as_ref().and_then(|token| token.header()) {
            request.headers_mut().insert(header::AUTHORIZATION, value);
        }
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| self.unreachable(error.to_string()))?;
        let connection = tokio::spawn(connection);
        let answer =
            sender.send_request(request).await.map_err(|error| self.unreachable(error.to_string()))?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), MAX_ANSWER).collect().await;
        connection.abort();
        let body = body.map_err(|error| self.answer(path, &format!("broke off: {error}")))?.to_bytes();
        let value: Result<Value, _> = serde_json::from_slice(&body);
        if status != StatusCode::OK {
            let said = value.ok().and_then(|value| Some(value.get("message")?.as_str()?.to_owned()));
            return Err(KubernetesError::Refused {
                server: server.to_string(),
                path: path.to_owned(),
                code: status.as_u16(),
                message: said
                    .or_else(|| status.canonical_reason().map(str::to_owned))
                    .unwrap_or_else(|| "no explanation".to_owned()),
            });
        }
        value.map_err(|error| self.answer(path, &format!("is not JSON: {error}")))
    }

    fn unreachable(&self, message: String) -> KubernetesError {
        KubernetesError::Unreachable { server: self.connection.server.to_string(), message }
    }

    fn answer(&self, path: &str, message: &str) -> KubernetesError {
        KubernetesError::Answer {
            server: self.connection.server.to_string(),
            path: path.to_owned(),
            message: message.to_owned(),
        }
    }
}

/// A name that may stand in a path. Kubernetes' names are DNS names, so nothing has to be escaped; whatever else a person
/// typed is refused here, before it asks for something that was not meant.
///
/// # Errors
/// [`KubernetesError::Name`].
pub(crate) fn path_segment<'a>(what: &'static str, value: &'a str) -> Result<&'a str, KubernetesError> {
    let letter = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let good = !value.is_empty()
        && value.len() <= 253
        && value.bytes().all(|byte| letter(byte) || byte == b'-' || byte == b'.')
        && value.bytes().next().is_some_and(letter)
        && value.bytes().next_back().is_some_and(letter);
    if good { Ok(value) } else { Err(KubernetesError::Name { what, value: value.to_owned() }) }
}

/// Percent-encode everything that is not unreserved (RFC 3986, section 2.3).
fn query_value(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_tokens_cannot_change_the_path() {
        for name in ["web", "web-7d9.x", "0"] {
            assert_eq!(path_segment("pod", name).unwrap(), name);
        }
        for name in ["", "..", "a/b", "a?b", "A", "a%2f", "-a", "a ", &"a".repeat(254)] {
            let error = path_segment("pod", name).unwrap_err().to_string();
            assert!(error.contains(&format!("pod {name:?}")), "{error}");
        }
        assert_eq!(query_value("a+b=/c&d~"), "a%2Bb%3D%2Fc%26d~");
    }
}
