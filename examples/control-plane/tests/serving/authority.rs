//! The CA's files under a running control plane: another signer plugged in, certificates revoked.

use std::time::Duration;

use mesh_identity::ca::{Ca, IssuancePolicy, RootOptions};
use mesh_identity::x509::crls_from_pem;
use mesh_identity::{PeerIdentity, TrustDomain, WallClock};
use tokio::time::Instant;

use crate::fixture::{DEADLINE, Fixture, World, accept};

#[tokio::test(flavor = "multi_thread")]
async fn a_signer_plugged_in_under_a_running_control_plane_signs_when_its_root_had_time_to_spread() {
    let grace = Duration::from_secs(6);
    let fixture = Fixture::start_with(|config| config.root_grace = Some(grace)).await;
    let before = fixture.roots();
    let domain = TrustDomain::parse("cluster.local").expect("a trust domain");
    let other = Ca::create(domain, &RootOptions::default(), IssuancePolicy::default(), WallClock::system())
        .expect("a CA");
    let pem = other.to_pem();
    // One after the other, as people copy files: halves in between must change nothing.
    fixture.write("state/ca-key.pem", &pem.key);
    fixture.write("state/ca-cert.pem", &pem.certificate);
    fixture.write("state/cert-chain.pem", &pem.chain);
    fixture.write("state/root-cert.pem", &pem.roots);
    let plugged_in = Instant::now();
    assert_ne!(fixture.roots(), before, "another root");

    // During the grace the old signer signs, for the control plane's own certificate too, and hands out both roots.
    let both_roots = async {
        let mut again = tokio::time::interval(Duration::from_millis(100));
        loop {
            again.tick().await;
            let token = fixture.token("client", "istio-ca");
            let answer = fixture.certificate_from(&before, "client", token).await.expect("the old signer");
            // The leaf, and the root that does not stand behind it.
            if answer.current().credential.as_ref().expect("a credential").chain().len() == 2 {
                return;
            }
        }
    };
    tokio::time::timeout(grace, both_roots).await.expect("both roots while the old one signs");

    // Who pins the new root gets an answer only once the server certificate is of the new signer as well.
    let ask = async {
        let mut again = tokio::time::interval(Duration::from_millis(100));
        loop {
            again.tick().await;
            if let Ok(identity) = fixture.certificate("client", fixture.token("client", "istio-ca")).await {
                return identity;
            }
        }
    };
    let under_the_new_root = tokio::time::timeout(DEADLINE, ask).await.expect("the new signer in time");
    assert!(under_the_new_root.is_ready());
    assert!(plugged_in.elapsed() >= grace, "not before the grace is over");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_serial_ends_the_connection_and_outlives_a_restart() {
    let mut fixture = Fixture::start().await;
    let identity = fixture.certificate("client", fixture.token("client", "istio-ca")).await.expect("an SVID");
    let serial = identity.valid_credential().expect("a credential").serial().to_owned();
    let client = fixture.client("client", "client", Some(identity.clone())).start().expect("a client");
    let mut configuration = client.configuration(accept);
    World::default().until(&mut configuration, "the first configuration", |w| !w.weights().is_empty()).await;

    let mut connection = client.connection();
    let published = ["shop", "istio-system"].map(|ns| format!("publish/ConfigMap.{ns}.istio-ca-crl.yaml"));
    assert!(published.iter().all(|name| !fixture.path(name).exists()), "nothing is revoked");
    fixture.write("state/revoked-serials", &format!("nonsense\n{serial} # stolen\n"));
    let ended = connection.wait_for(|state| !state.connected && state.last_error.is_some());
    tokio::time::timeout(DEADLINE, ended).await.expect("in time").expect("the client runs");
    drop((configuration, client));
    // What the sidecars mount, each in its namespace.
    for name in &published {
        let mut again = tokio::time::interval(Duration::from_millis(20));
        let text = async {
            loop {
                again.tick().await;
                if let Ok(text) = std::fs::read_to_string(fixture.path(name)) {
                    return text;
                }
            }
        };
        let text = tokio::time::timeout(DEADLINE, text).await.expect(name);
        let object: serde_json::Value = serde_saphyr::from_str(&text).expect("YAML");
        let lists = object.pointer("/data/ca-crl.pem").and_then(serde_json::Value::as_str).expect("lists");
        let lists = crls_from_pem(lists.as_bytes()).expect("PEM");
        let mut bundle = identity.current().bundles.iter().next().expect("a bundle").clone();
        let credential = identity.valid_credential().expect("a credential");
        let peer = PeerIdentity::of_verified_chain(credential.chain()).expect("an SVID");
        assert!(!bundle.is_revoked(&peer.issuer, &serial));
        bundle.set_crls(lists).expect("well formed");
        assert!(bundle.is_revoked(&peer.issuer, &serial));
    }

    fixture.kill();
    fixture.run().await;
    let late = fixture.client("client", "client", Some(identity)).start().expect("a client");
    let _configuration = late.configuration(accept);
    let mut connection = late.connection();
    let refused = connection.wait_for(|state| state.last_error.is_some());
    let state = tokio::time::timeout(DEADLINE, refused).await.expect("in time").expect("the client runs");
    assert!(!state.connected, "{:?}", state.last_error);

    // Taken out of the file, the number is good again after the next start, for the sidecars too.
    assert!(published.iter().all(|name| fixture.path(name).exists()));
    fixture.kill();
    fixture.write("state/revoked-serials", "");
    fixture.run().await;
    assert!(published.iter().all(|name| !fixture.path(name).exists()), "lists of before are withdrawn");
}
