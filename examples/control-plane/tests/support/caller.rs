//! The API server's side of the webhook: trusts the published bundle, keeps its connection.

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use mesh_identity::{ClientTls, WallClock};
use serde_json::{Value, json};
use tokio::net::TcpStream;

use super::fixture::Fixture;

/// One connection to the webhook.
pub(crate) struct Caller {
    sender: SendRequest<Full<Bytes>>,
    /// What the server showed in the handshake, DER.
    pub(crate) certificate: Vec<u8>,
}

impl Caller {
    /// Connects, verifying the server with the `caBundle` of the published configuration.
    pub(crate) async fn connect(fixture: &Fixture) -> Self {
        let configuration = configuration(fixture, "istio-sidecar-injector");
        let bundle = configuration
            .pointer("/webhooks/0/clientConfig/caBundle")
            .and_then(Value::as_str)
            .expect("caBundle");
        let roots =
            base64::Engine::decode(&base64::engine::general_purpose::STANDARD, bundle).expect("base64");
        let tls = ClientTls::dns(&roots, WallClock::system())
            .expect("roots")
            .alpn(["http/1.1"])
            .build()
            .expect("TLS");
        let tcp = TcpStream::connect(fixture.control().addresses().webhook).await.expect("connect");
        tcp.set_nodelay(true).expect("a socket");
        let service = |field: &str| {
            let place = format!("/webhooks/0/clientConfig/service/{field}");
            configuration.pointer(&place).and_then(Value::as_str).expect("a service").to_owned()
        };
        let name = format!("{}.{}.svc", service("name"), service("namespace")).try_into().expect("a name");
        let stream = tokio_rustls::TlsConnector::from(tls).connect(name, tcp).await.expect("a handshake");
        let shown = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
        let certificate = shown.expect("a certificate").to_vec();
        let (sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.expect("HTTP");
        tokio::spawn(connection);
        Self { sender, certificate }
    }

    /// Sends a review; status and body.
    pub(crate) async fn review(&mut self, body: impl Into<Bytes>) -> (u16, Bytes) {
        let request = http::Request::post("/inject")
            .header("host", "istiod.istio-system.svc")
            .header("content-type", "application/json")
            .body(Full::new(body.into()))
            .expect("a request");
        self.sender.ready().await.expect("an open connection");
        let answer = self.sender.send_request(request).await.expect("an answer");
        (answer.status().as_u16(), answer.into_body().collect().await.expect("a body").to_bytes())
    }
}

/// A published webhook configuration whose name begins like this.
pub(crate) fn configuration(fixture: &Fixture, name: &str) -> Value {
    let prefix = format!("MutatingWebhookConfiguration.{name}");
    let mut files = std::fs::read_dir(fixture.path("publish")).expect("a directory");
    let file = files.find_map(|file| {
        let file = file.expect("an entry");
        file.file_name().to_str().is_some_and(|name| name.starts_with(&prefix)).then(|| file.path())
    });
    let text = std::fs::read_to_string(file.expect("published")).expect("readable");
    serde_saphyr::from_str(&text).expect("YAML")
}

/// The patch of an answer: there is one exactly when the pod was injected. A refusal has status 200 as well.
pub(crate) fn patch_of((status, body): &(u16, Bytes)) -> Option<Value> {
    let answer: Value = serde_json::from_slice(body).ok().filter(|_| *status == 200)?;
    let allowed = answer.pointer("/response/allowed") == Some(&Value::Bool(true));
    let patch = answer.pointer("/response/patch").and_then(Value::as_str).filter(|_| allowed)?;
    let patch = base64::Engine::decode(&base64::engine::general_purpose::STANDARD, patch).ok()?;
    serde_json::from_slice(&patch).ok()
}

/// Whether the answer injects, without decoding its patch.
pub(crate) fn injected((status, body): &(u16, Bytes)) -> bool {
    let holds = |text: &[u8]| body.windows(text.len()).any(|window| window == text);
    *status == 200 && holds(br#""allowed":true"#) && holds(br#""patch":""#)
}

/// A review of a small pod.
pub(crate) fn asked() -> Vec<u8> {
    let review = json!({
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "request": {
            "uid": "42", "operation": "CREATE", "namespace": "shop",
            "kind": {"group": "", "version": "v1", "kind": "Pod"},
            "object": {
                "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "shop"},
                "spec": {"containers": [{"name": "app", "image": "mesh-echo"}]},
            },
        },
    });
    review.to_string().into_bytes()
}
