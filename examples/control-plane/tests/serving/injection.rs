//! The webhook, its published configuration, and the monitoring port.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::TokioIo;
use mesh_identity::{ClientTls, WallClock};
use serde_json::{Value, json};
use tokio::net::TcpStream;

use crate::fixture::Fixture;

async fn send(
    io: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
    request: http::Request<Full<Bytes>>,
) -> (u16, Bytes) {
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(io)).await.expect("HTTP");
    tokio::spawn(connection);
    let answer = sender.send_request(request).await.expect("an answer");
    let status = answer.status().as_u16();
    (status, answer.into_body().collect().await.expect("a body").to_bytes())
}

/// Sends a review; status, body, and the certificate that the server showed.
async fn review(fixture: &Fixture, body: Vec<u8>) -> (u16, Bytes, Vec<u8>) {
    let published = std::fs::read_to_string(
        fixture.path("publish/MutatingWebhookConfiguration.istio-sidecar-injector.yaml"),
    )
    .expect("published");
    let configuration: Value = serde_saphyr::from_str(&published).expect("YAML");
    let bundle =
        configuration.pointer("/webhooks/0/clientConfig/caBundle").and_then(Value::as_str).expect("caBundle");
    let roots = base64::Engine::decode(&base64::engine::general_purpose::STANDARD, bundle).expect("base64");
    let tls =
        ClientTls::dns(&roots, WallClock::system()).expect("roots").alpn(["http/1.1"]).build().expect("TLS");
    let tcp = TcpStream::connect(fixture.control().addresses().webhook).await.expect("connect");
    let name = "istiod.istio-system.svc".try_into().expect("a name");
    let stream = tokio_rustls::TlsConnector::from(tls).connect(name, tcp).await.expect("a handshake");
    let request = http::Request::post("/inject")
        .header("host", "istiod.istio-system.svc")
        .header("content-type", "application/json")
        .body(Full::new(Bytes::from(body)))
        .expect("a request");
    let shown =
        stream.get_ref().1.peer_certificates().and_then(|chain| chain.first()).map(|leaf| leaf.to_vec());
    let (status, body) = send(stream, request).await;
    (status, body, shown.expect("a certificate"))
}

async fn get(fixture: &Fixture, path: &str) -> (u16, Bytes) {
    let tcp = TcpStream::connect(fixture.control().addresses().monitoring).await.expect("connect");
    let request = http::Request::get(path).header("host", "x").body(Full::default()).expect("a request");
    send(tcp, request).await
}

fn asked() -> Vec<u8> {
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

#[tokio::test(flavor = "multi_thread")]
async fn pods_are_injected_over_https() {
    let fixture = Fixture::start().await;
    let (status, body, _) = review(&fixture, asked()).await;
    assert_eq!(status, 200);
    let answer: Value = serde_json::from_slice(&body).expect("JSON");
    assert_eq!(answer.pointer("/response/uid"), Some(&json!("42")));
    assert_eq!(answer.pointer("/response/allowed"), Some(&json!(true)));
    assert!(answer.pointer("/response/patch").is_some(), "{answer}");

    let (status, ..) = review(&fixture, vec![b' '; 7 << 20]).await;
    assert_eq!(status, 413, "bodies are bounded");
    let root = std::fs::read_to_string(fixture.path("publish/ConfigMap.shop.istio-ca-root-cert.yaml"))
        .expect("published");
    let root: Value = serde_saphyr::from_str(&root).expect("YAML");
    let pem = root.pointer("/data/root-cert.pem").and_then(Value::as_str).expect("a certificate");
    assert_eq!(pem.as_bytes(), fixture.roots());
}

#[tokio::test(flavor = "multi_thread")]
async fn monitoring_tells_what_is_wrong() {
    let fixture = Fixture::start().await;
    assert_eq!(get(&fixture, "/ready").await.0, 200);
    fixture.write("config/bad.yaml", "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: x, namespace: shop}\nspec:\n  hosts: [x]\n  http: [{rout: []}]\n");
    let deadline = tokio::time::Instant::now() + crate::fixture::DEADLINE;
    let status = loop {
        let (code, body) = get(&fixture, "/debug/status").await;
        assert_eq!(code, 200);
        let status: Value = serde_json::from_slice(&body).expect("JSON");
        if status["rejected"] != json!([]) {
            break status;
        }
        assert!(tokio::time::Instant::now() < deadline, "{status}");
    };
    let rejected = &status["rejected"][0];
    assert_eq!(
        (&rejected["line"], &rejected["kind"], &rejected["name"]),
        (&json!(6), &json!("VirtualService"), &json!("x"))
    );
    assert_eq!(rejected["field"], json!("spec.http[0].rout"));
    let (_, metrics) = get(&fixture, "/metrics").await;
    let metrics = String::from_utf8_lossy(&metrics);
    assert!(metrics.contains("mesh_control_rejected_resources 1"), "{metrics}");
    let (_, dump) = get(&fixture, "/debug/config_dump?proxyID=client.shop").await;
    assert!(String::from_utf8_lossy(&dump).contains("virtualInbound"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_certificate_rotates_without_a_failure() {
    let fixture = Fixture::start_with(|config| config.server_ttl = Duration::from_secs(8)).await;
    let (status, _, first) = review(&fixture, asked()).await;
    assert_eq!(status, 200);
    let deadline = tokio::time::Instant::now() + crate::fixture::DEADLINE;
    loop {
        // Every handshake and every request on the way succeeds.
        let (status, _, shown) = review(&fixture, asked()).await;
        assert_eq!(status, 200);
        if shown != first {
            break;
        }
        assert!(tokio::time::Instant::now() < deadline, "no new certificate");
    }
}
