use std::{fmt, sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use http::{Request, Uri, header};
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::{
    AuthError, BoundPod, ServiceAccountToken, TokenVerifier,
    https::{exchange, is_https},
};
use crate::{grpc::TlsConnector, istio_ca::BearerToken};

/// The most bytes of an answer that are read.
const MAX_ANSWER_BYTES: usize = 256 << 10;

/// Checks tokens by asking an API server (`authentication.k8s.io/v1`, TokenReview). A revoked token or a deleted pod is
/// noticed at once, at the price of one request per token.
#[derive(Clone)]
pub struct TokenReviewVerifier {
    connector: TlsConnector,
    server: Uri,
    own_token: Arc<dyn BearerToken>,
    audiences: Vec<String>,
    timeout: Duration,
}

impl TokenReviewVerifier {
    /// Asks the API server at `server` (`https://host:port`), through `connector`, authenticated with `own_token`,
    /// whether tokens are good for one of `audiences`.
    ///
    /// # Errors
    /// A URI without host, or of another scheme than `https`.
    pub fn new(
        connector: TlsConnector,
        server: Uri,
        own_token: impl BearerToken,
        audiences: impl IntoIterator<Item = String>,
    ) -> Result<Self, AuthError> {
        if !is_https(&server) {
            return Err(AuthError::Unavailable { detail: format!("{server} is not an https address") });
        }
        let audiences = audiences.into_iter().collect();
        let timeout = Duration::from_secs(5);
        Ok(Self { connector, server, own_token: Arc::new(own_token), audiences, timeout })
    }

    /// How long one review may take; default 5 s.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    async fn review(&self, token: &str) -> Result<ServiceAccountToken, AuthError> {
        let unavailable = |detail: String| AuthError::Unavailable { detail };
        let asking = self.ask(token);
        let answer = match tokio::time::timeout(self.timeout, asking).await {
            Ok(answer) => answer.map_err(unavailable)?,
            Err(_) => return Err(unavailable("no answer in time".to_owned())),
        };
        judge(&answer, &self.audiences)
    }

    async fn ask(&self, token: &str) -> Result<Vec<u8>, String> {
        let body = Zeroizing::new(
            json!({
                "apiVersion": "authentication.k8s.io/v1",
                "kind": "TokenReview",
                "spec": {"token": token, "audiences": self.audiences},
            })
            .to_string(),
        );
        let request = Request::post("/apis/authentication.k8s.io/v1/tokenreviews")
            .header(header::CONTENT_TYPE, "application/json");
        let own = &*self.own_token;
        let body = body.as_bytes().to_vec();
        exchange(&self.connector, &self.server, own, request, body, MAX_ANSWER_BYTES).await
    }
}

impl TokenVerifier for TokenReviewVerifier {
    fn verify<'a>(&'a self, token: &'a str) -> BoxFuture<'a, Result<ServiceAccountToken, AuthError>> {
        Box::pin(self.review(token))
    }
}

impl fmt::Debug for TokenReviewVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenReviewVerifier")
            .field("server", &self.server)
            .field("audiences", &self.audiences)
            .finish_non_exhaustive()
    }
}

/// Reads a TokenReview's answer: whose token it was, if it is good for one of `audiences`.
pub(crate) fn judge(answer: &[u8], audiences: &[String]) -> Result<ServiceAccountToken, AuthError> {
    let review: Value = serde_json::from_slice(answer)
        .map_err(|e| AuthError::Unavailable { detail: format!("the API server's answer: {e}") })?;
    let status = &review["status"];
    if status["authenticated"] != true {
        let detail = status["error"].as_str().unwrap_or("not authenticated").chars().take(200).collect();
        return Err(AuthError::Rejected { detail });
    }
    // A server that knows nothing of audiences leaves them out: it did not check them.
    let texts = |value: &Value| -> Vec<String> {
        value.as_array().into_iter().flatten().filter_map(|t| t.as_str().map(str::to_owned)).collect()
    };
    if !texts(&status["audiences"]).iter().any(|audience| audiences.contains(audience)) {
        return Err(AuthError::Rejected { detail: "the audience was not confirmed".to_owned() });
    }
    let user = &status["user"];
    let name = user["username"].as_str().unwrap_or_default();
    if !texts(&user["groups"]).iter().any(|group| group == "system:serviceaccounts") {
        return Err(AuthError::NotServiceAccount { subject: name.chars().take(128).collect() });
    }
    let extra = |key: &str| user["extra"][key][0].as_str().map(str::to_owned);
    let pod_name = extra("authentication.kubernetes.io/pod-name");
    let pod_uid = extra("authentication.kubernetes.io/pod-uid");
    let mut account = ServiceAccountToken::from_user_name(name, None)?;
    account.pod =
        pod_name.zip(pod_uid).map(|(name, uid)| BoundPod { namespace: account.namespace.clone(), name, uid });
    Ok(account)
}

#[cfg(test)]
mod tests {
    use http_body_util::{BodyExt, Full};
    use hyper::{body::Incoming, server::conn::http1 as server, service::service_fn};
    use hyper_util::rt::TokioIo;
    use tokio::net::TcpListener;

    use super::*;
    use crate::{
        Ca, ClientTls, Identity, ServerTls, TrustDomain, WallClock,
        ca::{IssuancePolicy, RootOptions},
    };

    const NAME: &str = "kubernetes.default.svc";

    /// An API server that knows a few tokens, and answers only to somebody who has a token of its own.
    async fn api_server() -> TokenReviewVerifier {
        let domain = TrustDomain::parse("cluster.local").unwrap();
        let clock = WallClock::system();
        let ca =
            Ca::create(domain, &RootOptions::default(), IssuancePolicy::default(), clock.clone()).unwrap();
        let certificate = ca.issue_server_certificate(&[NAME.to_owned()], None).unwrap();
        let identity = Identity::fixed(Some(certificate), ca.bundle_set(), clock.clone());
        let config = ServerTls::without_client_certificate(identity).build().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        tokio::spawn(async move {
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                let acceptor = tokio_rustls::TlsAcceptor::from(config.clone());
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(tcp).await else { return };
                    let _ = server::Builder::new()
                        .serve_connection(TokioIo::new(stream), service_fn(answer))
                        .await;
                });
            }
        });
        let tls = ClientTls::dns(ca.bundle().to_pem().as_bytes(), clock).unwrap().build().unwrap();
        let connector = TlsConnector::new(tls).address(address);
        let own = || Ok(Some(Zeroizing::new("own".to_owned())));
        let server = Uri::from_static("https://kubernetes.default.svc:443");
        TokenReviewVerifier::new(connector, server, own, ["istio-ca".to_owned()]).unwrap()
    }

    async fn answer(request: Request<Incoming>) -> Result<http::Response<Full<bytes::Bytes>>, hyper::Error> {
        if request.uri().path() == "/openid/v1/jwks" {
            let keys = r#"{"keys":[{"kty":"RSA","n":"AQAB","e":"AQAB"}]}"#;
            return Ok(http::Response::new(Full::from(keys)));
        }
        let allowed = request.headers().get(header::AUTHORIZATION).is_some_and(|v| v == "Bearer own");
        let path_is_right = request.uri().path() == "/apis/authentication.k8s.io/v1/tokenreviews";
        let body = request.into_body().collect().await?.to_bytes();
        let review: Value = serde_json::from_slice(&body).unwrap();
        let groups = json!(["system:serviceaccounts", "system:serviceaccounts:shop"]);
        let extra = json!({
            "authentication.kubernetes.io/pod-name": ["cart-0"],
            "authentication.kubernetes.io/pod-uid": ["uid-0"],
        });
        let user = json!({"username": "system:serviceaccount:shop:cart", "groups": groups, "extra": extra});
        let status = match review["spec"]["token"].as_str().unwrap() {
            "good" => json!({"authenticated": true, "audiences": ["istio-ca"], "user": user}),
            "no audience" => json!({"authenticated": true, "user": user}),
            "person" => {
                json!({"authenticated": true, "audiences": ["istio-ca"], "user": {"username": "alice", "groups": []}})
            }
            _ => json!({"authenticated": false, "error": "token expired"}),
        };
        let code = if allowed && path_is_right { 201 } else { 403 };
        let body = json!({"kind": "TokenReview", "status": status}).to_string();
        Ok(http::Response::builder().status(code).body(Full::from(body)).unwrap())
    }

    #[tokio::test]
    async fn tokens_are_judged_by_the_api_server() {
        let verifier = api_server().await;
        let account = verifier.verify("good").await.unwrap();
        assert_eq!((account.namespace.as_str(), account.service_account.as_str()), ("shop", "cart"));
        assert_eq!(account.pod.unwrap().uid, "uid-0");
        for (token, reason) in
            [("bad", "rejected"), ("no audience", "rejected"), ("person", "not_service_account")]
        {
            assert_eq!(verifier.verify(token).await.unwrap_err().reason(), reason, "{token}");
        }
    }

    #[tokio::test]
    async fn an_api_server_that_refuses_us_or_is_gone_is_no_verdict() {
        let mut verifier = api_server().await;
        verifier.own_token = Arc::new(crate::istio_ca::NoToken);
        assert_eq!(verifier.verify("good").await.unwrap_err().reason(), "unavailable");
        verifier.connector = verifier.connector.address("127.0.0.1:1");
        let refused = verifier.verify("good").await.unwrap_err();
        assert_eq!(refused.to_status().code(), tonic::Code::Unavailable);
    }

    #[tokio::test]
    async fn a_key_set_is_fetched_from_a_url() {
        use crate::auth::{KeySetSource, KeySetUrl};
        let connector = api_server().await.connector;
        let url = Uri::from_static("https://kubernetes.default.svc/openid/v1/jwks");
        let fetched = KeySetUrl::new(connector.clone(), url, crate::istio_ca::NoToken).fetch().await.unwrap();
        assert!(fetched.starts_with(b"{\"keys\""));
        for bad in ["http://kubernetes.default.svc/openid/v1/jwks", "https://kubernetes.default.svc/other"] {
            let source = KeySetUrl::new(connector.clone(), bad.parse().unwrap(), crate::istio_ca::NoToken);
            assert!(source.fetch().await.is_err(), "{bad}");
        }
    }
}
