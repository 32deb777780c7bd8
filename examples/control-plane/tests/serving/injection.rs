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

/// The status page, once it shows what is waited for.
async fn status_when(fixture: &Fixture, shows: impl Fn(&Value) -> bool) -> Value {
    let deadline = tokio::time::Instant::now() + DEADLINE;
    loop {
        let (code, body) = get(fixture, "/debug/status").await;
        assert_eq!(code, 200);
        let status: Value = serde_json::from_slice(&body).expect("JSON");
        if shows(&status) {
            return status;
        }
        assert!(tokio::time::Instant::now() < deadline, "{status}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_that_is_wrong_is_shown_with_its_place() {
    let fixture = Fixture::start().await;
    let broken = "apiVersion: v1\nkind: Namespace\nmetadata: {name: fine}\n---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata:\n  name: torn\n  namespace: shop\nspec:\n  hosts: [reviews\n";
    let missing = "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: lost, namespace: shop}\nspec:\n  hosts: [reviews]\n  http:\n  - route:\n    - destination: {host: nowhere}\n";
    let twice = "apiVersion: v1\nkind: Service\nmetadata: {name: reviews, namespace: shop}\nspec: {ports: [{port: 1}]}\n";
    for (name, text) in [("broken", broken), ("missing", missing), ("twice", twice)] {
        fixture.write(&format!("config/{name}.yaml"), text);
    }
    let count = |status: &Value| status["rejected"].as_array().map_or(0, Vec::len);
    let status = status_when(&fixture, |status| count(status) == 3).await;
    let mut seen: Vec<_> = status["rejected"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|r| {
            let file = r["file"].as_str().unwrap_or_default().rsplit('/').next().unwrap_or_default();
            let (reason, kind) = (r["reason"].as_str(), r["kind"].as_str());
            (
                file,
                reason.unwrap_or_default(),
                kind.unwrap_or_default(),
                r["name"].as_str().unwrap_or_default(),
            )
        })
        .collect();
    seen.sort_unstable();
    assert_eq!(
        seen,
        [
            ("broken.yaml", "syntax", "VirtualService", "torn"),
            ("missing.yaml", "reference", "VirtualService", "lost"),
            ("twice.yaml", "duplicate", "Service", "reviews"),
        ]
    );
    for rejection in status["rejected"].as_array().into_iter().flatten() {
        assert!(rejection["line"].as_u64() > Some(0), "{rejection}");
        assert!(rejection["message"].as_str().is_some_and(|message| !message.is_empty()), "{rejection}");
    }
    let fields = |reason: &str| {
        let all = status["rejected"].as_array().into_iter().flatten();
        all.filter(|r| r["reason"] == reason).map(|r| r["field"].clone()).collect::<Vec<_>>()
    };
    assert_eq!(fields("reference"), [json!("spec.http[0].route[0].destination.host")]);
    assert_eq!(fields("duplicate"), [json!("metadata.name")]);
}

#[tokio::test(flavor = "multi_thread")]
async fn policies_that_were_never_valid_close_and_are_shown() {
    let fixture = Fixture::start().await;
    let policy = |kind: &str, rest: &str| {
        format!(
            "apiVersion: security.istio.io/v1\nkind: {kind}\nmetadata: {{name: p, namespace: shop}}\nspec:\n  selector: {{matchLabels: {{app: client}}}}\n  {rest}\n"
        )
    };
    let chains = |dump: &Bytes| String::from_utf8_lossy(dump).matches("\"raw_buffer\"").count();
    let (_, before) = get(&fixture, "/debug/config_dump?proxyID=client.shop").await;
    fixture.write("config/peer.yaml", &policy("PeerAuthentication", "mtls: {mode: STRIKT}"));
    fixture.write("config/authorization.yaml", &policy("AuthorizationPolicy", "action: FORBID"));
    let closed = |status: &Value| status["fail_closed"].as_array().map_or(0, Vec::len) == 2;
    let status = status_when(&fixture, closed).await;
    let mut treated: Vec<_> = status["fail_closed"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|p| (p["kind"].clone(), p["treated_as"].clone(), p["selector"].clone()))
        .collect();
    treated.sort_by_key(|(kind, ..)| kind.to_string());
    let selector = json!({ "app": "client" });
    assert_eq!(
        treated,
        [
            (json!("AuthorizationPolicy"), json!("DENY"), selector.clone()),
            (json!("PeerAuthentication"), json!("STRICT"), selector),
        ]
    );
    assert_eq!(status["rejected"].as_array().map_or(0, Vec::len), 2, "{status}");
    // And so the selected proxy is told: no plaintext chain is left, every request is denied.
    let deadline = tokio::time::Instant::now() + DEADLINE;
    loop {
        let (_, dump) = get(&fixture, "/debug/config_dump?proxyID=client.shop").await;
        if chains(&dump) < chains(&before) && String::from_utf8_lossy(&dump).contains("\"DENY\"") {
            break;
        }
        assert!(tokio::time::Instant::now() < deadline, "{}", String::from_utf8_lossy(&dump));
    }
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
