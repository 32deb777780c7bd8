//! Rotation loses nothing: more than a hundred leaf rotations and one whole root rotation while new connections are
//! opened all the time and old ones go on talking.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use mesh_identity::{
    Authorizer, Ca, Credential, Identity, IdentityPublisher, RenewalPolicy, SpiffeId, SvidFetcher,
    SvidSource, TrustDomain, WallClock,
    ca::{IssuancePolicy, RootOptions},
    client_config, server_config,
    source::{FetchError, FetchedSvid},
    tls::peer_identity,
};
use rustls::{
    ClientConfig, HandshakeKind, ServerConfig, client::Resumption, pki_types::ServerName,
    server::ServerSessionMemoryCache,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
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

/// New connections all the time, and others that live long; none may fail.
struct Load {
    stop: Arc<AtomicBool>,
    opened: Arc<AtomicU64>,
    pings: Arc<AtomicU64>,
    tasks: Vec<JoinHandle<()>>,
}

impl Load {
    fn start(config: &Arc<ClientConfig>, address: &str) -> Self {
        let mut load =
            Self { stop: Arc::default(), opened: Arc::default(), pings: Arc::default(), tasks: vec![] };
        for _ in 0..4 {
            let (config, address) = (config.clone(), address.to_owned());
            let (stop, opened) = (load.stop.clone(), load.opened.clone());
            load.tasks.push(tokio::spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    connect(&config, &address).await.expect("a new connection");
                    opened.fetch_add(1, Ordering::Relaxed);
                }
            }));
        }
        for _ in 0..4 {
            let (config, address) = (config.clone(), address.to_owned());
            let (stop, pings) = (load.stop.clone(), load.pings.clone());
            load.tasks.push(tokio::spawn(async move {
                let mut stream = connect(&config, &address).await.expect("a long-lived connection");
                while !stop.load(Ordering::Relaxed) {
                    ping(&mut stream).await.expect("a long-lived connection goes on");
                    pings.fetch_add(1, Ordering::Relaxed);
                }
            }));
        }
        load
    }

    /// Waits until `count` more connections were opened, at most a minute.
    async fn more(&self, count: u64) {
        let target = self.opened.load(Ordering::Relaxed) + count;
        let reached = async {
            while self.opened.load(Ordering::Relaxed) < target {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), reached).await.expect("load goes on");
    }

    /// Ends it; gives the numbers of new connections and of pings.
    async fn stop(self) -> (u64, u64) {
        self.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            task.await.expect("no load task failed");
        }
        (self.opened.load(Ordering::Relaxed), self.pings.load(Ordering::Relaxed))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_fails_while_leaves_and_the_root_rotate() {
    let ca = new_ca();
    let (server, client) = (Party::new(&ca, SERVER), Party::new(&ca, CLIENT));
    let accepts = Authorizer::trust_domain(ca.trust_domain().clone());
    let failures = Arc::new(AtomicU64::new(0));
    let address = echo_server(server_config(&server.identity, accepts).unwrap(), failures.clone()).await;
    let config = client_config(&client.identity, Authorizer::exact(id(SERVER))).unwrap();

    let load = Load::start(&config, &address);
    let mut rotations = 0;
    let mut rotate = async |times: usize| {
        for _ in 0..times {
            // Not in step with each other: at any time one side is ahead.
            let (one, other) = if rotations % 2 == 0 { (&server, &client) } else { (&client, &server) };
            one.renew();
            load.more(2).await;
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

    load.more(8).await;
    let (opened, pings) = load.stop().await;
    assert!(rotations >= 100, "{rotations}");
    assert_eq!(failures.load(Ordering::Relaxed), 0, "handshakes that failed at the server");
    println!(
        "{rotations} leaf rotations, 1 root rotation, {opened} new connections, {pings} pings, 0 failures"
    );
}

/// A CA that can be away, for one identity.
struct Away {
    ca: Arc<Ca>,
    id: SpiffeId,
    away: Arc<AtomicBool>,
}

impl SvidFetcher for Away {
    async fn fetch(&self) -> Result<FetchedSvid, FetchError> {
        if self.away.load(Ordering::Relaxed) {
            return Err(FetchError::new("down", "the CA is away"));
        }
        let credential = self.ca.issue_svid(&self.id, None).map_err(|e| FetchError::new(e.reason(), e))?;
        Ok(FetchedSvid { credential: Arc::new(credential), bundles: self.ca.bundle_set() })
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_of_the_ca_drops_nothing_until_expiry_and_ends_by_itself() {
    const LIFETIME: Duration = Duration::from_secs(24 * 3600);
    // One clock for everybody, which the test moves through a day.
    let (start, ahead) = (SystemTime::now(), Arc::new(AtomicU64::new(0)));
    let seconds = ahead.clone();
    let clock = WallClock::from_fn(move || start + Duration::from_secs(seconds.load(Ordering::Relaxed)));
    let domain = TrustDomain::parse("mesh.example").unwrap();
    let policy = IssuancePolicy::default();
    let ca = Arc::new(Ca::create(domain.clone(), &RootOptions::default(), policy, clock.clone()).unwrap());
    let away = Arc::new(AtomicBool::new(false));
    let source = |name: &str| {
        let fetcher = Away { ca: ca.clone(), id: id(name), away: away.clone() };
        let mut policy = RenewalPolicy::default().with_seed(1);
        (policy.backoff_first, policy.backoff_max) = (Duration::from_millis(5), Duration::from_millis(5));
        SvidSource::spawn(fetcher, policy, clock.clone())
    };
    let (server, client) = (source(SERVER), source(CLIENT));
    server.ready().await;
    client.ready().await;
    let failures = Arc::new(AtomicU64::new(0));
    let accepting = server_config(server.identity(), Authorizer::trust_domain(domain)).unwrap();
    let address = echo_server(accepting, failures.clone()).await;
    let config = client_config(client.identity(), Authorizer::exact(id(SERVER))).unwrap();
    let serial =
        |source: &SvidSource| source.identity().current().credential.as_ref().unwrap().serial().to_owned();
    let before = (serial(&server), serial(&client));

    // The CA goes away, and nine tenths of the certificates' life pass in steps while renewal fails.
    away.store(true, Ordering::Relaxed);
    let load = Load::start(&config, &address);
    let mut lasting = connect(&config, &address).await.unwrap();
    for tenth in 1..=9u32 {
        ahead.store((LIFETIME * tenth / 10).as_secs(), Ordering::Relaxed);
        assert!(client.rotate_now().await.is_err() && server.rotate_now().await.is_err());
        load.more(4).await;
    }
    let (opened, pings) = load.stop().await;
    assert_eq!(failures.load(Ordering::Relaxed), 0, "handshakes that failed at the server");
    assert_eq!((serial(&server), serial(&client)), before, "all of it with the certificates of before");
    assert!(source_failed(&client) && source_failed(&server));

    // Their time is over: new connections are refused, the identities are not ready, who is connected stays so.
    ahead.store(LIFETIME.as_secs() + 1, Ordering::Relaxed);
    assert!(!server.identity().is_ready() && !client.identity().is_ready());
    assert!(connect(&config, &address).await.is_err());
    ping(&mut lasting).await.expect("a connection outlives the certificate it began with");

    // The CA is back: both renew by themselves.
    away.store(false, Ordering::Relaxed);
    let both = async {
        server.ready().await;
        client.ready().await;
    };
    tokio::time::timeout(Duration::from_secs(60), both).await.expect("renewed without being asked");
    connect(&config, &address).await.expect("connections are taken again");
    println!("CA away for nine tenths of a lifetime: {opened} new connections, {pings} pings, 0 failures");
}

fn source_failed(source: &SvidSource) -> bool {
    let status = source.status();
    status.consecutive_failures >= 9 && status.last_error.is_some_and(|error| error.reason == "down")
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
async fn our_client_resumes_nothing_even_when_a_server_hands_out_tickets() {
    let ca = new_ca();
    let (server, client) = (Party::new(&ca, SERVER), Party::new(&ca, CLIENT));
    let accepts = Authorizer::trust_domain(ca.trust_domain().clone());
    let mut eager = ServerConfig::clone(&server_config(&server.identity, accepts).unwrap());
    eager.session_storage = ServerSessionMemoryCache::new(32);
    eager.send_tls13_tickets = 2;
    let address = echo_server(Arc::new(eager), Arc::default()).await;
    let ours = client_config(&client.identity, Authorizer::exact(id(SERVER))).unwrap();
    let mut willing = ClientConfig::clone(&ours);
    willing.resumption = Resumption::in_memory_sessions(32);
    let willing = Arc::new(willing);
    for (config, second) in [(&willing, HandshakeKind::Resumed), (&ours, HandshakeKind::Full)] {
        connect(config, &address).await.unwrap();
        let stream = connect(config, &address).await.unwrap();
        assert_eq!(stream.get_ref().1.handshake_kind(), Some(second));
    }
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
