//! The CA's files under a running control plane: another signer plugged in, certificates revoked.

use std::time::Duration;

use mesh_identity::ca::{Ca, IssuancePolicy, RootOptions};
use mesh_identity::{TrustDomain, WallClock};

use crate::fixture::{DEADLINE, Fixture, World, accept};

#[tokio::test(flavor = "multi_thread")]
async fn a_signer_plugged_in_under_a_running_control_plane_signs_without_a_restart() {
    let fixture = Fixture::start().await;
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
    assert_ne!(fixture.roots(), before, "another root");

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
    let identity = tokio::time::timeout(DEADLINE, ask).await.expect("the new signer in time");
    let current = identity.current();
    let mut roots = current.bundles.iter().flat_map(|bundle| bundle.roots().to_vec());
    let new = other.bundle().roots().to_vec();
    assert!(roots.all(|root| new.contains(&root)), "signed under the new root");
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
    fixture.write("state/revoked-serials", &format!("nonsense\n{serial} # stolen\n"));
    let ended = connection.wait_for(|state| !state.connected && state.last_error.is_some());
    tokio::time::timeout(DEADLINE, ended).await.expect("in time").expect("the client runs");
    drop((configuration, client));

    fixture.kill();
    fixture.run().await;
    let late = fixture.client("client", "client", Some(identity)).start().expect("a client");
    let _configuration = late.configuration(accept);
    let mut connection = late.connection();
    let refused = connection.wait_for(|state| state.last_error.is_some());
    let state = tokio::time::timeout(DEADLINE, refused).await.expect("in time").expect("the client runs");
    assert!(!state.connected, "{:?}", state.last_error);
}
