//! One HTTP/1.1 exchange over a connection that somebody else made.

use std::time::Duration;

use bytes::Bytes;
use http::header::{HeaderName, HeaderValue};
use http::{Method, Request};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;

use crate::error::{LabError, Result};

/// The largest body that is read: admin pages are far smaller.
const MAX_BODY: usize = 64 << 20;
/// Time for one exchange.
const LIMIT: Duration = Duration::from_secs(10);

/// A request.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    method: Method,
    path: String,
    host: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

/// A complete response.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: Vec<u8>,
}

impl Call {
    /// GET.
    pub(crate) fn get(path: &str) -> Self {
        Self {
            method: Method::GET,
            path: path.to_owned(),
            host: String::from("localhost"),
            headers: Vec::new(),
            body: Vec::new(),
        }
    }

    /// POST with a JSON body.
    pub(crate) fn post(path: &str, body: Vec<u8>) -> Self {
        Self { method: Method::POST, body, ..Self::get(path) }.header("content-type", "application/json")
    }

    /// Sets the Host header.
    pub(crate) fn host(mut self, host: &str) -> Self {
        host.clone_into(&mut self.host);
        self
    }

    /// Adds a header.
    pub(crate) fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    fn request(self) -> Result<Request<Full<Bytes>>> {
        let bad = |message: String| LabError::Http { url: self.path.clone(), message };
        let mut request = Request::new(Full::new(Bytes::from(self.body)));
        *request.method_mut() = self.method;
        *request.uri_mut() = self.path.parse().map_err(|error| bad(format!("not a path: {error}")))?;
        let host = HeaderValue::from_str(&self.host).map_err(|error| bad(error.to_string()))?;
        request.headers_mut().insert(http::header::HOST, host);
        for (name, value) in &self.headers {
            let name: HeaderName = name.parse().map_err(|_| bad(format!("{name:?} is not a header name")))?;
            let value = HeaderValue::from_str(value).map_err(|error| bad(error.to_string()))?;
            request.headers_mut().append(name, value);
        }
        Ok(request)
    }
}

impl Answer {
    /// The body as text.
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    pub(crate) fn json(&self, url: &str) -> Result<Value> {
        serde_json::from_slice(&self.body).map_err(|error| LabError::Http {
            url: url.to_owned(),
            message: format!("status {}, not JSON ({error}): {}", self.status, self.text()),
        })
    }
}

/// Sends `call` on `stream` and reads the whole answer.
pub(crate) async fn send(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    call: Call,
) -> Result<Answer> {
    let url = call.path.clone();
    let failed = |message: String| LabError::Http { url: url.clone(), message };
    let request = call.request()?;
    let exchange = async {
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let driver = tokio::spawn(connection);
        let response = sender.send_request(request).await?;
        let status = response.status().as_u16();
        let body = Limited::new(response.into_body(), MAX_BODY).collect().await;
        driver.abort();
        Ok::<_, hyper::Error>((status, body))
    };
    let (status, body) = timeout(LIMIT, exchange)
        .await
        .map_err(|_| failed(String::from("no answer in time")))?
        .map_err(|error| failed(error.to_string()))?;
    let body = body.map_err(|error| failed(error.to_string()))?.to_bytes().to_vec();
    Ok(Answer { status, body })
}
