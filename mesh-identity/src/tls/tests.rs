use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use rustls::{ClientConfig, ServerConfig, pki_types::ServerName};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

use super::*;
use crate::{
    Authorizer, Ca, Identity, SpiffeId, TrustDomain, WallClock,
    ca::{IssuancePolicy, RootOptions},
    x509::PeerIdentity,
};

type Client = tokio_rustls::client::TlsStream<DuplexStream>;
type Server = tokio_rustls::server::TlsStream<DuplexStream>;

async fn handshake(
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
) -> std::io::Result<(Client, Server)> {
    let (a, b) = tokio::io::duplex(1 << 16);
    let name = ServerName::try_from("server.example").unwrap();
    let connecting = async {
        let mut stream = tokio_rustls::TlsConnector::from(client).connect(name, a).await?;
        // In TLS 1.3 a refused client certificate shows at the client's first read.
        stream.write_all(b"x").await?;
        let mut byte = [0];
        stream.read_exact(&mut byte).await?;
        Ok::<_, std::io::Error>(stream)
    };
    let accepting = async {
        let mut stream = tokio_rustls::TlsAcceptor::from(server).accept(b).await?;
        let mut byte = [0];
        stream.read_exact(&mut byte).await?;
        stream.write_all(b"y").await?;
        stream.flush().await?;
        Ok::<_, std::io::Error>(stream)
    };
    let (client, server) = tokio::join!(connecting, accepting);
    Ok((client?, server?))
}

fn ca(domain: &str) -> Ca {
    let domain = TrustDomain::parse(domain).unwrap();
    Ca::create(domain, &RootOptions::default(), IssuancePolicy::default(), WallClock::system()).unwrap()
}

fn id(text: &str) -> SpiffeId {
    SpiffeId::parse(text).unwrap()
}

fn identity(ca: &Ca, name: &str) -> Identity {
    let credential = ca.issue_svid(&id(name), None).unwrap();
    Identity::fixed(Some(credential), ca.bundle_set(), WallClock::system())
}

const CART: &str = "spiffe://mesh.example/ns/shop/sa/cart";
const WEB: &str = "spiffe://mesh.example/ns/shop/sa/web";

#[tokio::test]
async fn both_ends_know_each_other() {
    let ca = ca("mesh.example");
    let server =
        server_config(&identity(&ca, CART), Authorizer::trust_domain(ca.trust_domain().clone())).unwrap();
    let client = client_config(&identity(&ca, WEB), Authorizer::exact(id(CART))).unwrap();
    let (client, server) = handshake(client, server).await.unwrap();
    assert_eq!(peer_identity(client.get_ref().1).unwrap().id, id(CART));
    let facts = ConnectionFacts::of(server.get_ref().1);
    assert_eq!(facts.peer.unwrap().id, id(WEB));
    assert_eq!(facts.version, Some("TLSv1.3"));
    assert_eq!(facts.key_exchange.as_deref(), Some("X25519MLKEM768"));
}

#[tokio::test]
async fn a_client_refuses_a_server_it_did_not_name() {
    let ca = ca("mesh.example");
    let server =
        server_config(&identity(&ca, WEB), Authorizer::trust_domain(ca.trust_domain().clone())).unwrap();
    let client = client_config(&identity(&ca, WEB), Authorizer::exact(id(CART))).unwrap();
    let error = handshake(client, server).await.unwrap_err();
    assert!(error.to_string().contains("Denied"), "{error}");
}

#[tokio::test]
async fn a_server_refuses_a_client_of_another_domain_or_root() {
    let (ours, theirs, twin) = (ca("mesh.example"), ca("other.example"), ca("mesh.example"));
    let server =
        server_config(&identity(&ours, CART), Authorizer::trust_domain(ours.trust_domain().clone())).unwrap();
    for (stranger, name) in [(&theirs, "spiffe://other.example/a"), (&twin, WEB)] {
        let credential = stranger.issue_svid(&id(name), None).unwrap();
        let identity = Identity::fixed(Some(credential), ours.bundle_set(), WallClock::system());
        let client = client_config(&identity, Authorizer::exact(id(CART))).unwrap();
        assert!(handshake(client, server.clone()).await.is_err(), "{name}");
    }
}

#[tokio::test]
async fn an_optional_client_certificate_may_be_absent_but_not_bad() {
    let ca = ca("mesh.example");
    let names = ["istiod.istio-system.svc".to_owned(), "server.example".to_owned()];
    let certificate = ca.issue_server_certificate(&names, None).unwrap();
    let server_identity = Identity::fixed(Some(certificate), ca.bundle_set(), WallClock::system());
    let server = ServerTls::for_trust_domain(server_identity, ca.trust_domain().clone())
        .optional_client_certificate()
        .build()
        .unwrap();
    let by_name = ClientTls::dns(ca.bundle().to_pem().as_bytes(), WallClock::system()).unwrap();

    let (_, accepted) = handshake(by_name.build().unwrap(), server.clone()).await.unwrap();
    assert_eq!(peer_identity(accepted.get_ref().1), None);

    let presenting = by_name.clone().presenting(identity(&ca, WEB)).build().unwrap();
    let (_, accepted) = handshake(presenting, server.clone()).await.unwrap();
    assert_eq!(peer_identity(accepted.get_ref().1).unwrap().id, id(WEB));

    let bad = by_name.presenting(identity(&self::ca("mesh.example"), WEB)).build().unwrap();
    assert!(handshake(bad, server).await.is_err());
}

#[tokio::test]
async fn a_server_known_by_name_must_have_that_name() {
    let ca = ca("mesh.example");
    let certificate = ca.issue_server_certificate(&["elsewhere.example".to_owned()], None).unwrap();
    let identity = Identity::fixed(Some(certificate), ca.bundle_set(), WallClock::system());
    let server = ServerTls::without_client_certificate(identity).build().unwrap();
    let client =
        ClientTls::dns(ca.bundle().to_pem().as_bytes(), WallClock::system()).unwrap().build().unwrap();
    let error = handshake(client, server).await.unwrap_err();
    assert!(error.to_string().contains("NotValidForName"), "{error}");
}

#[tokio::test]
async fn an_expired_credential_is_not_presented() {
    let ca = ca("mesh.example");
    let later = WallClock::from_fn(|| SystemTime::now() + Duration::from_secs(48 * 3600));
    let credential = ca.issue_svid(&id(CART), None).unwrap();
    let expired = Identity::fixed(Some(credential), ca.bundle_set(), later);
    assert!(!expired.is_ready());
    let server = server_config(&expired, Authorizer::trust_domain(ca.trust_domain().clone())).unwrap();
    let client = client_config(&identity(&ca, WEB), Authorizer::exact(id(CART))).unwrap();
    assert!(handshake(client, server).await.is_err());
}

#[tokio::test]
async fn a_configuration_follows_its_identity() {
    let ca = ca("mesh.example");
    let (publisher, live) = Identity::channel(WallClock::system());
    let server = server_config(&live, Authorizer::trust_domain(ca.trust_domain().clone())).unwrap();
    let client = client_config(&identity(&ca, WEB), Authorizer::exact(id(CART))).unwrap();
    assert!(handshake(client.clone(), server.clone()).await.is_err());

    let mut serials = Vec::new();
    for _ in 0..2 {
        let credential = ca.issue_svid(&id(CART), None).unwrap();
        serials.push(credential.serial().to_owned());
        publisher.publish(Some(Arc::new(credential)), ca.bundle_set());
        let (connected, _) = handshake(client.clone(), server.clone()).await.unwrap();
        assert_eq!(Some(&peer_identity(connected.get_ref().1).unwrap().serial), serials.last());
    }
    assert_ne!(serials[0], serials[1]);
}

#[tokio::test]
async fn tls12_only_on_request() {
    let ca = ca("mesh.example");
    let own = ca.trust_domain().clone();
    let asking = ClientTls::spiffe(identity(&ca, WEB), Authorizer::exact(id(CART))).allow_tls12();
    let both = asking.build().unwrap();
    // A peer that knows nothing newer: the same verifier and identity, TLS 1.2 alone.
    let old_only = {
        let trust = identity(&ca, WEB);
        let verifier = verifier::SpiffeVerifier {
            identity: trust.clone(),
            authorizer: Authorizer::exact(id(CART)),
            mandatory: true,
            answer_expired: false,
        };
        let config = ClientConfig::builder_with_provider(crypto_provider())
            .with_protocol_versions(&[&rustls::version::TLS12])
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_client_cert_resolver(Arc::new(resolver::FollowIdentity(trust)));
        Arc::new(config)
    };
    let modern = server_config(&identity(&ca, CART), Authorizer::trust_domain(own.clone())).unwrap();
    let (client, _) = handshake(both.clone(), modern.clone()).await.unwrap();
    assert_eq!(ConnectionFacts::of(client.get_ref().1).version, Some("TLSv1.3"));
    assert!(handshake(old_only.clone(), modern).await.is_err(), "a server of TLS 1.3 takes nothing older");
    let allowing =
        ServerTls::for_trust_domain(identity(&ca, CART), own.clone()).allow_tls12().build().unwrap();
    let (client, _) = handshake(old_only, allowing.clone()).await.unwrap();
    let facts = ConnectionFacts::of(client.get_ref().1);
    assert_eq!((facts.version, facts.peer.unwrap().id), (Some("TLSv1.2"), id(CART)));
    let (client, _) = handshake(both, allowing).await.unwrap();
    assert_eq!(
        ConnectionFacts::of(client.get_ref().1).version,
        Some("TLSv1.3"),
        "the newer where both have it"
    );
}

#[tokio::test]
async fn a_revocation_wakes_the_reader_and_the_writer_of_a_split_stream() {
    let ca = ca("mesh.example");
    let (publisher, identity) = Identity::channel(WallClock::system());
    publisher.publish_bundles(ca.bundle_set());
    let peer = PeerIdentity::of_verified_chain(ca.issue_svid(&id(WEB), None).unwrap().chain()).unwrap();
    let serial = peer.serial.clone();
    let (near, _far) = tokio::io::duplex(16);
    let (mut reader, mut writer) = tokio::io::split(ClosedWhenRevoked::new(near, &identity, Some(peer)));
    let reading = tokio::spawn(async move { reader.read_u8().await.map_err(|error| error.kind()) });
    tokio::task::yield_now().await;
    // More than the other end takes: it waits, and it polled after the reader.
    let writing = tokio::spawn(async move { writer.write_all(&[0; 64]).await.map_err(|error| error.kind()) });
    tokio::task::yield_now().await;
    assert!(!reading.is_finished() && !writing.is_finished());
    ca.revoke([&serial]).unwrap();
    publisher.publish_bundles(ca.bundle_set());
    let aborted = std::io::ErrorKind::ConnectionAborted;
    let second = Duration::from_secs(1);
    let read = tokio::time::timeout(second, reading).await.expect("the reader is woken").unwrap();
    let written = tokio::time::timeout(second, writing).await.expect("the writer is woken").unwrap();
    assert_eq!((read, written), (Err(aborted), Err(aborted)));
}
