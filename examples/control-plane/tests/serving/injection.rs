//! The webhook, its published configuration, and the monitoring port.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpStream;

use crate::caller::{Caller, asked};
use crate::fixture::{DEADLINE, Fixture};

async fn get(fixture: &Fixture, path: &str) -> (u16, Bytes) {
    let tcp = TcpStream::connect(fixture.control().addresses().monitoring).await.expect("connect");
    let request =
        http::Request::get(path).header("host", "x").body(Full::<Bytes>::default()).expect("a request");
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(tcp)).await.expect("HTTP");
    tokio::spawn(connection);
    let answer = sender.send_request(request).await.expect("an answer");
    (answer.status().as_u16(), answer.into_body().collect().await.expect("a body").to_bytes())
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_are_injected_over_https() {
    let fixture = Fixture::start().await;
    let (status, body) = Caller::connect(&fixture).await.review(asked()).await;
    assert_eq!(status, 200);
    let answer: Value = serde_json::from_slice(&body).expect("JSON");
    assert_eq!(answer.pointer("/response/uid"), Some(&json!("42")));
    assert_eq!(answer.pointer("/response/allowed"), Some(&json!(true)));
    assert!(answer.pointer("/response/patch").is_some(), "{answer}");

    let (status, _) = Caller::connect(&fixture).await.review(vec![b' '; (6 << 20) + 1]).await;
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
    let deadline = tokio::time::Instant::now() + DEADLINE;
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
async fn the_certificate_rotates_under_load_without_a_failure() {
    let fixture = Fixture::start_with(|config| config.server_ttl = Duration::from_secs(4)).await;
    let first = Caller::connect(&fixture).await.certificate;
    // Connections that stay, and beside them one that is made anew for each review.
    let rotated = AtomicBool::new(false);
    let staying = async {
        let mut caller = Caller::connect(&fixture).await;
        let mut reviews = 0_u64;
        while !rotated.load(Ordering::Relaxed) {
            assert_eq!(caller.review(asked()).await.0, 200);
            reviews += 1;
        }
        reviews
    };
    let anew = async {
        let deadline = tokio::time::Instant::now() + DEADLINE;
        loop {
            let mut caller = Caller::connect(&fixture).await;
            assert_eq!(caller.review(asked()).await.0, 200);
            if caller.certificate != first {
                rotated.store(true, Ordering::Relaxed);
                return;
            }
            assert!(tokio::time::Instant::now() < deadline, "no new certificate");
        }
    };
    let (reviews, ()) = tokio::join!(staying, anew);
    assert!(reviews > 0, "the connection that stayed was served as well");
}
