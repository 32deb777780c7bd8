//! Who is refused, and how.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use mesh_identity::ca::{Ca, CaPem, IssuancePolicy};
use mesh_identity::istio_ca::IstioCaError;
use mesh_identity::{Identity, SpiffeId, TrustDomain, WallClock};
use mesh_xds::client::AdsClient;
use tonic::Code;

use crate::fixture::{DEADLINE, Fixture, World, accept, node};

/// What this process has logged, all tests together.
static LOG: Mutex<Vec<u8>> = Mutex::new(Vec::new());

struct Sink;

impl std::io::Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        LOG.lock().expect("nobody panics here").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Begins to remember what is logged.
fn listen() {
    // The first one counts.
    let _ = tracing_subscriber::fmt().with_ansi(false).with_writer(|| Sink).try_init();
}

/// That some line has all these parts.
fn assert_logged(parts: &[&str]) {
    let log = String::from_utf8_lossy(&LOG.lock().expect("nobody panics here")).into_owned();
    let found = log.lines().any(|line| parts.iter().all(|part| line.contains(part)));
    assert!(found, "{parts:?} is not in\n{log}");
}

/// The status with which the server ends the client's stream.
async fn refusal(client: &AdsClient) -> String {
    let mut connection = client.connection();
    let failed = connection.wait_for(|state| state.last_error.is_some());
    let state = tokio::time::timeout(DEADLINE, failed).await.expect("in time").expect("the client runs");
    format!("{:?}", state.last_error)
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_and_impostors_are_refused() {
    listen();
    let fixture = Fixture::start().await;

    for (why, token) in
        [("another audience", fixture.token("client", "vault")), ("no token at all", "nonsense".to_owned())]
    {
        match fixture.certificate("client", token).await {
            Err(IstioCaError::Refused { status }) => {
                assert_eq!(status.code(), Code::Unauthenticated, "{why}");
            }
            other => panic!("{why}: {other:?}"),
        }
    }

    let nobody = fixture.client("client", "client", None).start().expect("a client");
    let _configuration = nobody.configuration(accept);
    let reason = refusal(&nobody).await;
    assert!(reason.contains("Unauthenticated"), "{reason}");

    // A sound identity of another account than the node's.
    let identity =
        fixture.certificate("reviews", fixture.token("reviews", "istio-ca")).await.expect("an SVID");
    for (name, account) in [("client", "client"), ("client", "reviews")] {
        let impostor = fixture.client(name, account, Some(identity.clone())).start().expect("a client");
        let _configuration = impostor.configuration(accept);
        let reason = refusal(&impostor).await;
        assert!(reason.contains("PermissionDenied"), "{reason}");
    }
    // The right account's name, in another namespace.
    let mut elsewhere = node("client", "reviews");
    elsewhere.id = elsewhere.id.replace(".shop~", ".other~");
    elsewhere.metadata = None;
    let impostor = fixture.client_as(elsewhere, Some(identity)).start().expect("a client");
    let _configuration = impostor.configuration(accept);
    let reason = refusal(&impostor).await;
    assert!(reason.contains("PermissionDenied") && reason.contains("namespace"), "{reason}");
    assert_logged(&["caller refused", "reason=\"audience\""]);
    assert_logged(&["xDS client refused", "reason=\"absent\""]);
    assert_logged(&["xDS client refused", "reason=\"identity\"", "is not service account \"client\""]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_for_another_identity_is_refused() {
    listen();
    let fixture = Fixture::start().await;
    // The request asks for `admin`; the token is `client`'s.
    match fixture.certificate("admin", fixture.token("client", "istio-ca")).await {
        Err(IstioCaError::Refused { status }) => assert_eq!(status.code(), Code::PermissionDenied),
        other => panic!("{other:?}"),
    }
    assert_logged(&[
        "certificate refused",
        "reason=\"identity\"",
        "asked=\"spiffe://cluster.local/ns/shop/sa/admin\"",
    ]);
    let identity = fixture.certificate("client", fixture.token("client", "istio-ca")).await.expect("an SVID");
    let id = identity.current().id().map(ToString::to_string);
    assert_eq!(id.as_deref(), Some("spiffe://cluster.local/ns/shop/sa/client"));
}

#[tokio::test(flavor = "multi_thread")]
async fn plaintext_is_off_unless_asked_for_and_then_on_loopback_only() {
    let quiet = Fixture::start().await;
    assert_eq!(quiet.control().addresses().plaintext, None);
    drop(quiet);

    let fixture = Fixture::start_with(|config| {
        config.listen = [0, 0, 0, 0].into();
        config.plaintext_port = Some(0);
    })
    .await;
    let plaintext = fixture.control().addresses().plaintext.expect("asked for");
    assert!(plaintext.ip().is_loopback(), "{plaintext}");
    let client = AdsClient::builder(node("client", "client")).server(format!("http://{plaintext}"));
    let client = client.start().expect("a client");
    let mut configuration = client.configuration(accept);
    let mut world = World::default();
    world.until(&mut configuration, "a configuration without TLS", |w| !w.weights().is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_certificate_is_answered_with_the_reason() {
    listen();
    let fixture = Fixture::start().await;
    // The control plane's own CA, in the hands of a clock that then goes back by three hours.
    let text = |name: &str| std::fs::read_to_string(fixture.path("state").join(name)).expect("the CA's file");
    let pem = CaPem {
        key: text("ca-key.pem").into(),
        certificate: text("ca-cert.pem"),
        chain: text("cert-chain.pem"),
        roots: text("root-cert.pem"),
    };
    let back = Arc::new(AtomicU64::new(0));
    let seconds = back.clone();
    let clock =
        WallClock::from_fn(move || SystemTime::now() - Duration::from_secs(seconds.load(Ordering::Relaxed)));
    let domain = TrustDomain::parse("cluster.local").expect("a trust domain");
    let ca = Ca::load(domain, &pem, IssuancePolicy::default(), clock.clone()).expect("the CA");
    back.store(3 * 3600, Ordering::Relaxed);
    let id = SpiffeId::parse("spiffe://cluster.local/ns/shop/sa/client").expect("an ID");
    let old = ca.issue_svid(&id, Some(Duration::from_secs(3600))).expect("an SVID");
    let identity = Identity::fixed(Some(old), ca.bundle_set(), clock);

    let late = fixture.client("client", "client", Some(identity)).start().expect("a client");
    let _configuration = late.configuration(accept);
    let reason = refusal(&late).await;
    assert!(reason.contains("Unauthenticated") && reason.contains("expired at"), "{reason}");
    assert_logged(&["xDS client refused", "reason=", "expired at"]);
}
