//! Rotation loses nothing: more than a hundred leaf rotations and one whole root rotation while new connections are
//! opened all the time and old ones go on talking.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use mesh_identity::{
    Authorizer, Ca, Credential, Identity, IdentityPublisher, SpiffeId, TrustDomain, WallClock,
    ca::{IssuancePolicy, RootOptions},
    client_config, server_config,
    tls::peer_identity,
};
use rustls::{ClientConfig, HandshakeKind, ServerConfig, client::Resumption, pki_types::ServerName};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::{TlsAcceptor, TlsConnector, client::TlsStream};

const SERVER: &str = "spiffe://mesh.example/ns/shop/sa/cart";
const CLIENT: &str = "spiffe://mesh.example/ns/shop/sa/web";

fn id(text: &str) -> SpiffeId {
    SpiffeId::parse(text).unwrap()
}

fn new_ca() -> Arc<Ca> {
    let domain = TrustDomain::parse("mesh.example").unwrap();
    let policy = IssuancePolicy::default();
    Arc::new(Ca::create(domain, &RootOptions::default(), policy, WallClock::system()).unwrap())
}

/// An identity that the test renews by hand.
struct Party {
    ca: Arc<Ca>,
    id: SpiffeId,
    publisher: IdentityPublisher,
    identity: Identity,
}

impl Party {
    fn new(ca: &Arc<Ca>, name: &str) -> Self {
        let (publisher, identity) = Identity::channel(WallClock::system());
        let party = Self { ca: ca.clone(), id: id(name), publisher, identity };
        party.renew();
        party
    }

    fn renew(&self) -> Arc<Credential> {
        let credential = Arc::new(self.ca.issue_svid(&self.id, None).unwrap());
        self.publisher.publish(Some(credential.clone()), self.ca.bundle_set());
        credential
    }
}

/// Echoes bytes on every connection; returns its address.
async fn echo_server(config: Arc<ServerConfig>, failures: Arc<AtomicU64>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            let (acceptor, failures) = (TlsAcceptor::from(config.clone()), failures.clone());
            tokio::spawn(async move {
                let Ok(mut stream) = acceptor.accept(tcp).await else {
                    failures.fetch_add(1, Ordering::Relaxed);
                    return;
                };
                let mut buffer = [0; 64];
                while let Ok(count @ 1..) = stream.read(&mut buffer).await {
                    if stream.write_all(&buffer[..count]).await.is_err() || stream.flush().await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    address
}

async fn connect(config: &Arc<ClientConfig>, address: &str) -> std::io::Result<TlsStream<TcpStream>> {
    let tcp = TcpStream::connect(address).await?;
    let name = ServerName::try_from("server.example").unwrap();
    let mut stream = TlsConnector::from(config.clone()).connect(name, tcp).await?;
    ping(&mut stream).await?;
    Ok(stream)
}

async fn ping(stream: &mut TlsStream<TcpStream>) -> std::io::Result<()> {
    stream.write_all(b"ping").await?;
    stream.flush().await?;
    let mut answer = [0; 4];
    stream.read_exact(&mut answer).await?;
    assert_eq!(&answer, b"ping");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_fails_while_leaves_and_the_root_rotate() {
    let ca = new_ca();
    let (server, client) = (Party::new(&ca, SERVER), Party::new(&ca, CLIENT));
    let accepts = Authorizer::trust_domain(ca.trust_domain().clone());
    let failures = Arc::new(AtomicU64::new(0));
    let address = echo_server(server_config(&server.identity, accepts).unwrap(), failures.clone()).await;
    let config = client_config(&client.identity, Authorizer::exact(id(SERVER))).unwrap();

    let stop = Arc::new(AtomicBool::new(false));
    let (opened, pings) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let mut load = Vec::new();
    for _ in 0..4 {
        let (config, address, stop, opened) = (config.clone(), address.clone(), stop.clone(), opened.clone());
        load.push(tokio::spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                connect(&config, &address).await.expect("a new connection");
                opened.fetch_add(1, Ordering::Relaxed);
            }
        }));
    }
    for _ in 0..4 {
        let (config, address, stop, pings) = (config.clone(), address.clone(), stop.clone(), pings.clone());
        load.push(tokio::spawn(async move {
            let mut stream = connect(&config, &address).await.expect("a long-lived connection");
            while !stop.load(Ordering::Relaxed) {
                ping(&mut stream).await.expect("a long-lived connection goes on");
                pings.fetch_add(1, Ordering::Relaxed);
            }
        }));
    }

    let mut rotations = 0;
    let mut rotate = async |times: usize| {
        for _ in 0..times {
            // Not in step with each other: at any time one side is ahead.
            let (one, other) = if rotations % 2 == 0 { (&server, &client) } else { (&client, &server) };
            one.renew();
            wait_for_more(&opened, 2).await;
            other.renew();
            rotations += 2;
        }
    };
    rotate(20).await;
    ca.prepare_root(&RootOptions::default()).unwrap();
    rotate(20).await;
    ca.activate_root().unwrap();
    rotate(20).await;
    ca.retire_root().unwrap();
    rotate(20).await;

    wait_for_more(&opened, 8).await;
    stop.store(true, Ordering::Relaxed);
    for task in load {
        task.await.expect("no load task failed");
    }
    assert!(rotations >= 100, "{rotations}");
    assert_eq!(failures.load(Ordering::Relaxed), 0, "handshakes that failed at the server");
    let (opened, pings) = (opened.load(Ordering::Relaxed), pings.load(Ordering::Relaxed));
    println!(
        "{rotations} leaf rotations, 1 root rotation, {opened} new connections, {pings} pings, 0 failures"
    );
}

/// Waits until `count` more connections were opened, at most a minute.
async fn wait_for_more(opened: &AtomicU64, count: u64) {
    let target = opened.load(Ordering::Relaxed) + count;
    let reached = async {
        while opened.load(Ordering::Relaxed) < target {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), reached).await.expect("load goes on");
}

#[tokio::test]
async fn resumption_never_skips_verification_even_when_a_client_wants_it() {
    let ca = new_ca();
    let (server, client) = (Party::new(&ca, SERVER), Party::new(&ca, CLIENT));
    let accepts = Authorizer::trust_domain(ca.trust_domain().clone());
    let failures = Arc::new(AtomicU64::new(0));
    let address = echo_server(server_config(&server.identity, accepts).unwrap(), failures).await;
    let ours = client_config(&client.identity, Authorizer::exact(id(SERVER))).unwrap();
    let mut eager = ClientConfig::clone(&ours);
    eager.resumption = Resumption::in_memory_sessions(32);
    let eager = Arc::new(eager);

    for config in [&ours, &eager] {
        for _ in 0..3 {
            let stream = connect(config, &address).await.unwrap();
            assert_eq!(stream.get_ref().1.handshake_kind(), Some(HandshakeKind::Full));
        }
    }

    // The root changes and the client keeps its old certificate: no session of before lets it in again.
    ca.prepare_root(&RootOptions::default()).unwrap();
    ca.activate_root().unwrap();
    ca.retire_root().unwrap();
    server.renew();
    client.publisher.publish_bundles(ca.bundle_set());
    for config in [&ours, &eager] {
        assert!(connect(config, &address).await.is_err());
    }
    client.renew();
    assert!(connect(&eager, &address).await.is_ok());
}

#[tokio::test]
async fn a_revoked_peer_is_noticed_at_once_and_refused_afterwards() {
    let ca = new_ca();
    let (server, client, other) = (Party::new(&ca, SERVER), Party::new(&ca, CLIENT), Party::new(&ca, CLIENT));
    let accepts = Authorizer::trust_domain(ca.trust_domain().clone());
    let address = echo_server(server_config(&server.identity, accepts).unwrap(), Arc::default()).await;
    let config = client_config(&client.identity, Authorizer::exact(id(SERVER))).unwrap();

    // The client watches the server's certificate on a live connection, as a proxy does on both sides.
    let stream = connect(&config, &address).await.unwrap();
    let peer = peer_identity(stream.get_ref().1).unwrap();
    let watching = tokio::spawn({
        let identity = client.identity.clone();
        async move { identity.revoked(&peer).await }
    });
    tokio::task::yield_now().await;
    assert!(!watching.is_finished());
    ca.revoke([server.identity.current().credential.as_ref().unwrap().serial()]).unwrap();
    client.publisher.publish_bundles(ca.bundle_set());
    tokio::time::timeout(Duration::from_secs(1), watching).await.expect("within a second").unwrap();
    assert!(connect(&config, &address).await.is_err(), "new connections are refused too");

    server.renew();
    assert!(connect(&config, &address).await.is_ok(), "a new certificate is not revoked");
    let config = client_config(&other.identity, Authorizer::exact(id(SERVER))).unwrap();
    assert!(connect(&config, &address).await.is_ok());
}
