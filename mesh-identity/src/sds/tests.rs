use std::{sync::Arc, time::Duration};

use mesh_xds::client::Protocol;

use super::*;
use crate::{
    Ca, Identity, SpiffeId, TrustDomain, WallClock,
    ca::{IssuancePolicy, RootOptions},
    x509::PeerIdentity,
};

fn new_ca() -> Ca {
    let domain = TrustDomain::parse("td.example").unwrap();
    Ca::create(domain, &RootOptions::default(), IssuancePolicy::default(), WallClock::system()).unwrap()
}

fn own_uid(path: &std::path::Path) -> u32 {
    std::os::unix::fs::MetadataExt::uid(&std::fs::metadata(path).unwrap())
}

#[tokio::test]
async fn our_client_follows_our_server_state_of_the_world() {
    follows_and_keeps_what_it_has(Protocol::Sotw).await;
}

#[tokio::test]
async fn our_client_follows_our_server_delta() {
    follows_and_keeps_what_it_has(Protocol::Delta).await;
}

async fn follows_and_keeps_what_it_has(protocol: Protocol) {
    let ca = new_ca();
    let id = SpiffeId::parse("spiffe://td.example/web").unwrap();
    let (publisher, identity) = Identity::channel(WallClock::system());
    let renew = || {
        let credential = ca.issue_svid(&id, None).unwrap();
        let serial = credential.serial().to_owned();
        publisher.publish(Some(Arc::new(credential)), ca.bundle_set());
        serial
    };
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("sds.sock");
    let server = Arc::new(SdsServer::new(identity, own_uid(directory.path())));
    let serving = tokio::spawn({
        let (server, socket) = (server.clone(), socket.clone());
        async move { server.serve(socket).await }
    });
    let source = SdsSource::spawn(&socket, "node", protocol, WallClock::system()).unwrap();
    let first = renew();
    let arrives = async |serial: &str| {
        let mut changes = source.identity().subscribe();
        let arrived = async {
            while source.identity().current().credential.as_ref().map(|c| c.serial()) != Some(serial) {
                changes.changed().await.unwrap();
            }
        };
        tokio::time::timeout(Duration::from_secs(10), arrived).await.unwrap();
    };
    arrives(&first).await;
    assert!(source.identity().is_ready());
    ca.prepare_root(&RootOptions::default()).unwrap();
    arrives(&renew()).await;
    let roots = |identity: &Identity| identity.current().bundles.get("td.example").unwrap().roots().len();
    while roots(source.identity()) != 2 {
        tokio::task::yield_now().await;
    }
    let last = source.identity().current().credential.clone().unwrap();
    let peer = PeerIdentity::of_verified_chain(last.chain()).unwrap();
    ca.revoke([last.serial()]).unwrap();
    publisher.publish_bundles(ca.bundle_set());
    let told = tokio::time::timeout(Duration::from_secs(1), source.identity().revoked(&peer));
    told.await.expect("revocation lists travel with the roots, within a second");
    serving.abort();
    tokio::task::yield_now().await;
    assert!(source.identity().is_ready(), "what came last is kept");
}

#[tokio::test]
async fn another_user_gets_nothing() {
    let ca = new_ca();
    let credential = ca.issue_svid(&SpiffeId::parse("spiffe://td.example/web").unwrap(), None).unwrap();
    let identity = Identity::fixed(Some(credential), ca.bundle_set(), WallClock::system());
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("sds.sock");
    let server = Arc::new(SdsServer::new(identity, own_uid(directory.path()) + 1));
    tokio::spawn({
        let (server, socket) = (server.clone(), socket.clone());
        async move { server.serve(socket).await }
    });
    while !socket.exists() {
        tokio::task::yield_now().await;
    }
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&socket).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    let source = SdsSource::spawn(&socket, "node", Protocol::Delta, WallClock::system()).unwrap();
    let ready = tokio::time::timeout(Duration::from_millis(300), source.identity().ready());
    assert!(ready.await.is_err());
}

#[test]
fn secrets_for_ads_hold_no_key() {
    let ca = new_ca();
    let serial = ca.issue_svid(&SpiffeId::parse("spiffe://td.example/web").unwrap(), None).unwrap();
    ca.revoke([serial.serial()]).unwrap();
    let secret = validation_secret(ROOT, &ca.bundle());
    let contains_key = |secret: &mesh_xds::pb::envoy::extensions::transport_sockets::tls::v3::Secret| {
        let bytes = prost::Message::encode_to_vec(secret);
        bytes.windows(11).any(|window| window == b"PRIVATE KEY")
    };
    let mut other = secrets::certificate_secret(WORKLOAD, &serial);
    assert!(contains_key(&other), "the other kind does");
    secrets::wipe(&mut other);
    assert!(!contains_key(&other));
    assert!(!contains_key(&secret));
    let read = secrets::read_roots(&secret).unwrap().bundle(ca.trust_domain().clone()).unwrap();
    assert_eq!(read, ca.bundle());
    assert_eq!(secrets::read_certificate(&secret).unwrap_err().reason(), "kind");
}

#[test]
fn a_certificate_is_taken_only_within_its_time() {
    let ca = new_ca();
    let credential = ca.issue_svid(&SpiffeId::parse("spiffe://td.example/web").unwrap(), None).unwrap();
    let secret = prost::Message::encode_to_vec(&secrets::certificate_secret(WORKLOAD, &credential));
    let mut taken = Secrets::default();
    let after = credential.not_after() + Duration::from_secs(1);
    let before = credential.not_before() - Duration::from_secs(1);
    assert_eq!(taken.take_one(&secret, after).unwrap_err().reason(), "expired");
    assert_eq!(taken.take_one(&secret, before).unwrap_err().reason(), "not_yet_valid");
    assert!(taken.take_one(&secret, credential.not_after()).is_ok());
}
