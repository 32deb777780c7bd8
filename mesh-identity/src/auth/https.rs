use std::{sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use http::{Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;

use super::KeySetSource;
use crate::{grpc::TlsConnector, istio_ca::BearerToken, jwt::MAX_JWKS_BYTES};

/// Sends one request on a connection of its own and reads an answer of at most `most` bytes.
pub(super) async fn exchange(
    connector: &TlsConnector,
    server: &Uri,
    own_token: &dyn BearerToken,
    mut request: http::request::Builder,
    body: Vec<u8>,
    most: usize,
) -> Result<Vec<u8>, String> {
    let stream = connector.connect(server).await.map_err(|e| e.to_string())?;
    let (mut sender, connection) =
        http1::handshake::<_, Full<bytes::Bytes>>(TokioIo::new(stream)).await.map_err(|e| e.to_string())?;
    let driving = tokio::spawn(connection);
    request = request
        .header(header::HOST, server.authority().map_or("", |authority| authority.as_str()))
        .header(header::ACCEPT, "application/json");
    if let Some(own) = own_token.token().map_err(|e| format!("own token: {e}"))? {
        request = request.header(header::AUTHORIZATION, format!("Bearer {}", own.as_str()));
    }
    let request = request.body(Full::from(body)).map_err(|e| e.to_string())?;
    let response = sender.send_request(request).await.map_err(|e| e.to_string())?;
    let status = response.status();
    let answer = Limited::new(response.into_body(), most).collect().await;
    driving.abort();
    let answer = answer.map_err(|e| e.to_string())?.to_bytes();
    if !matches!(status, StatusCode::OK | StatusCode::CREATED) {
        return Err(format!("the server answered {status}"));
    }
    Ok(answer.to_vec())
}

/// Whether a URI can be asked: `https`, with a host.
pub(super) fn is_https(server: &Uri) -> bool {
    server.host().is_some() && server.scheme() == Some(&http::uri::Scheme::HTTPS)
}

/// A key set behind a URL, for example a cluster's `https://…/openid/v1/jwks`.
#[derive(Clone)]
pub struct KeySetUrl {
    connector: TlsConnector,
    url: Uri,
    own_token: Arc<dyn BearerToken>,
}

impl KeySetUrl {
    /// Fetches from `url` through `connector`, authenticated with `own_token`.
    pub fn new(connector: TlsConnector, url: Uri, own_token: impl BearerToken) -> Self {
        Self { connector, url, own_token: Arc::new(own_token) }
    }
}

impl std::fmt::Debug for KeySetUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KeySetUrl").field("url", &self.url).finish_non_exhaustive()
    }
}

impl KeySetSource for KeySetUrl {
    fn fetch(&self) -> BoxFuture<'_, Result<Vec<u8>, String>> {
        Box::pin(async {
            if !is_https(&self.url) {
                return Err(format!("{} is not an https address", self.url));
            }
            let path = self.url.path_and_query().map_or("/", |path| path.as_str());
            let request = Request::get(path);
            let own = &*self.own_token;
            let exchange = exchange(&self.connector, &self.url, own, request, Vec::new(), MAX_JWKS_BYTES);
            let outcome = tokio::time::timeout(Duration::from_secs(5), exchange).await;
            outcome.unwrap_or_else(|_| Err("no answer in time".to_owned()))
        })
    }
}
