//! The webhook, its published configuration, and the monitoring port.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::TokioIo;
use mesh_identity::ca::{Ca, IssuancePolicy, RootOptions};
use mesh_identity::{TrustDomain, WallClock};
use serde_json::{Value, json};
use tokio::net::TcpStream;

use crate::caller::{Caller, asked, configuration, patch_of};
use crate::fixture::{DEADLINE, Fixture};

pub(crate) async fn get(fixture: &Fixture, path: &str) -> (u16, Bytes) {
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
    let mut caller = Caller::connect(&fixture).await;
    let answer = caller.review(asked()).await;
    assert!(patch_of(&answer).is_some(), "{answer:?}");
    let answer: Value = serde_json::from_slice(&answer.1).expect("JSON");
    assert_eq!(answer.pointer("/response/uid"), Some(&json!("42")));

    // Left alone, refused, and not a review at all.
    let other = |from: &str, to: &str| String::from_utf8_lossy(&asked()).replace(from, to);
    let skipped = caller.review(other("\"spec\":{", "\"spec\":{\"hostNetwork\":true,")).await;
    assert!(skipped.0 == 200 && patch_of(&skipped).is_none(), "{skipped:?}");
    let refused = caller.review(other("\"name\":\"app\"", "\"name\":7")).await;
    assert!(refused.0 == 200 && patch_of(&refused).is_none(), "{refused:?}");
    assert_eq!(caller.review("").await.0, 400);
    let (status, body) = Caller::connect(&fixture).await.review(vec![b' '; (6 << 20) + 1]).await;
    assert_eq!(status, 400, "bodies are bounded");
    assert!(String::from_utf8_lossy(&body).contains("6291456"), "{body:?}");
    let (_, metrics) = get(&fixture, "/metrics").await;
    let metrics = String::from_utf8_lossy(&metrics);
    for (name, count) in [
        ("requests_total", 5),
        ("success_total", 3),
        ("failure_total", 3),
        ("skip_total", 1),
        ("time_seconds_count", 4),
        ("time_seconds_bucket{le=\"60.0\"}", 4),
    ] {
        let line = format!("sidecar_injection_{name} {count}\n");
        assert!(metrics.contains(&line), "{line}{metrics}");
    }

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
            assert!(patch_of(&caller.review(asked()).await).is_some());
            reviews += 1;
        }
        reviews
    };
    let anew = async {
        let deadline = tokio::time::Instant::now() + DEADLINE;
        loop {
            let mut caller = Caller::connect(&fixture).await;
            assert!(patch_of(&caller.review(asked()).await).is_some());
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

/// What the webhook is told by files and flags reaches pods and the published configurations.
#[tokio::test(flavor = "multi_thread")]
async fn the_installations_settings_are_honoured() {
    let fixture = Fixture::start_with(|config| {
        let directory = config.state_dir.parent().expect("a directory").to_owned();
        let write = |name: &str, text: &str| {
            std::fs::write(directory.join(name), text).expect("written");
            directory.join(name)
        };
        let values = "{values: {global: {hub: h, tag: t, istioNamespace: mesh}, revision: other, revisionTags: [prod]}, mesh_configmap: {trustDomain: cluster.local}}";
        config.injector.values = Some(write("values.yaml", values));
        config.injector.mesh_config = Some(write("mesh.json", r#"{"defaultConfig": {"concurrency": 3}}"#));
        config.injector.revision = Some("canary".to_owned());
        config.injector.environment = [("COMPLIANCE_POLICY".to_owned(), "fips-140-3".to_owned())].into();
        write(
            "config/old.yaml",
            "apiVersion: v1\nkind: Node\nmetadata: {name: old}\nspec: {podCIDR: 10.0.0.0/24}\nstatus: {nodeInfo: {kubeletVersion: v1.31.2}}\n",
        );
        write(
            "config/proxies.yaml",
            "apiVersion: networking.istio.io/v1beta1\nkind: ProxyConfig\nmetadata: {name: p, namespace: shop}\nspec:\n  environmentVariables: {FROM_RESOURCE: 'yes'}\n  image: {imageType: debug}\n",
        );
    })
    .await;
    // The name in the certificate is the revision's: the caller verifies it.
    let patch =
        patch_of(&Caller::connect(&fixture).await.review(asked()).await).expect("injected").to_string();
    for part in [
        "\"h/mesh-sidecar:t-debug\"",
        "\\\"concurrency\\\":3",
        "istiod-canary.mesh.svc:15012",
        "\"CA_ADDR\",\"value\":\"istiod-canary.mesh.svc:15012\"",
        "fips-140-3",
        "FROM_RESOURCE",
        "\"istio.io/rev\":\"canary\"",
    ] {
        assert!(patch.contains(part), "{part} in {patch}");
    }
    assert!(
        !patch.contains("\"restartPolicy\":\"Always\""),
        "a kubelet of 1.31 knows no native sidecars: {patch}"
    );
    let own = configuration(&fixture, "istio-sidecar-injector-canary");
    let tag = configuration(&fixture, "istio-revision-tag-prod");
    let selected = "/webhooks/0/namespaceSelector/matchExpressions/0/values/0";
    assert_eq!(own.pointer(selected), Some(&json!("canary")));
    assert_eq!(tag.pointer(selected), Some(&json!("prod")));

    // The node is upgraded.
    fixture.write(
        "config/old.yaml",
        "apiVersion: v1\nkind: Node\nmetadata: {name: old}\nstatus: {nodeInfo: {kubeletVersion: v1.33.0}}\n",
    );
    let mut caller = Caller::connect(&fixture).await;
    let native = async {
        loop {
            let patch = patch_of(&caller.review(asked()).await).expect("injected").to_string();
            if patch.contains("\"restartPolicy\":\"Always\"") {
                return;
            }
        }
    };
    tokio::time::timeout(DEADLINE, native).await.expect("native sidecars in time");
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_that_contradict_the_mesh_are_refused() {
    let folder = tempfile::tempdir().expect("a directory");
    let mut fixture = Fixture::start().await;
    fixture.kill();
    for (text, expected) in [
        (
            "trustDomain: other.example",
            "--trust-domain \"cluster.local\": the mesh configuration's trustDomain is \"other.example\"",
        ),
        ("a: [", "--mesh-config"),
        ("[]", "expected exactly one document, a map"),
        ("defaultConfig: {concurrency: many}", "mesh.defaultConfig"),
    ] {
        let path = folder.path().join("mesh.yaml");
        std::fs::write(&path, text).expect("written");
        let mut config = fixture.config.clone();
        config.injector.mesh_config = Some(path);
        let error = mesh_control::serve::ControlPlane::start(config).await.expect_err(text);
        assert!(error.to_string().contains(expected), "{text}: {error}");
    }
}

/// Files that somebody deletes or overwrites come back, and every configuration of the revision has the roots of today.
#[tokio::test(flavor = "multi_thread")]
async fn published_objects_are_kept_as_they_should_be() {
    let fixture = Fixture::start().await;
    let own = "publish/MutatingWebhookConfiguration.istio-sidecar-injector.yaml";
    let before = std::fs::read_to_string(fixture.path(own)).expect("published");
    let bundle = |name: &str| {
        let configuration = configuration(&fixture, name);
        configuration.pointer("/webhooks/0/clientConfig/caBundle").and_then(Value::as_str).map(str::to_owned)
    };
    let old = bundle("istio-sidecar-injector").expect("a bundle");

    std::fs::remove_file(fixture.path(own)).expect("removed");
    until("the deleted file is back", || {
        std::fs::read_to_string(fixture.path(own)).is_ok_and(|now| now == before)
    })
    .await;
    fixture.write("publish/ConfigMap.shop.istio-ca-root-cert.yaml", "data: {}\n");
    let root = || std::fs::read_to_string(fixture.path("publish/ConfigMap.shop.istio-ca-root-cert.yaml"));
    until("the overwritten file is back", || root().is_ok_and(|text| text.contains("BEGIN CERTIFICATE")))
        .await;

    // A tag that somebody made, and a configuration of another revision.
    let theirs = |name: &str, revision: &str| {
        json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingWebhookConfiguration",
            "metadata": {"name": name, "labels": {"istio.io/rev": revision}},
            "webhooks": [{"name": "rev.namespace.sidecar-injector.istio.io", "failurePolicy": "Ignore",
                "clientConfig": {"service": {"name": "istiod", "namespace": "istio-system"}}}]})
        .to_string()
    };
    fixture.write("publish/MutatingWebhookConfiguration.tag.yaml", &theirs("tag", "default"));
    fixture.write("publish/MutatingWebhookConfiguration.else.yaml", &theirs("else", "canary"));
    until("the tag has the bundle", || bundle("tag").as_ref() == Some(&old)).await;
    assert_eq!(configuration(&fixture, "tag").pointer("/webhooks/0/failurePolicy"), Some(&json!("Ignore")));

    // Another authority is plugged in.
    let domain = TrustDomain::parse("cluster.local").expect("a trust domain");
    let other = Ca::create(domain, &RootOptions::default(), IssuancePolicy::default(), WallClock::system())
        .expect("a CA");
    let pem = other.to_pem();
    for (name, text) in [
        ("ca-key", pem.key.as_str()),
        ("ca-cert", pem.certificate.as_str()),
        ("cert-chain", pem.chain.as_str()),
        ("root-cert", pem.roots.as_str()),
    ] {
        fixture.write(&format!("state/{name}.pem"), text);
    }
    let has_new_root = |name: &str| {
        let pem_of =
            |bundle: String| base64::Engine::decode(&base64::engine::general_purpose::STANDARD, bundle).ok();
        let text = bundle(name).and_then(pem_of).and_then(|bytes| String::from_utf8(bytes).ok());
        text.is_some_and(|text| text.contains(pem.roots.trim()))
    };
    until("both have the new root", || ["istio-sidecar-injector", "tag"].into_iter().all(has_new_root)).await;
    assert_eq!(bundle("else"), None, "not ours");
}

/// Waits until the condition holds; it is about files that another task writes.
async fn until(what: &str, condition: impl Fn() -> bool) {
    let mut again = tokio::time::interval(Duration::from_millis(20));
    let wait = async {
        while !condition() {
            again.tick().await;
        }
    };
    tokio::time::timeout(DEADLINE, wait).await.unwrap_or_else(|_| panic!("not in time: {what}"));
}
