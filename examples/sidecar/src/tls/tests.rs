use std::time::Duration;

use mesh_identity::Ca;
use mesh_identity::ca::{IssuancePolicy, RootOptions};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

const DOMAIN: &str = "cluster.local";

fn ca() -> Ca {
    let domain = TrustDomain::parse(DOMAIN).unwrap();
    Ca::create(domain, &RootOptions::default(), IssuancePolicy::default(), WallClock::system()).unwrap()
}

fn id(account: &str) -> SpiffeId {
    SpiffeId::parse(&format!("spiffe://{DOMAIN}/ns/shop/sa/{account}")).unwrap()
}

/// A provider of a workload that has its certificate.
fn workload(ca: &Ca, account: &str) -> SidecarTls {
    let credential = ca.issue_svid(&id(account), None).unwrap();
    let identity = Identity::fixed(Some(credential), ca.bundle_set(), WallClock::system());
    SidecarTls::of_workload(identity, TrustDomain::parse(DOMAIN).unwrap())
}

fn inbound() -> Arc<DownstreamTls> {
    Arc::new(DownstreamTls {
        certificates: vec![SecretRef::Named(DEFAULT.into())],
        validation: Some(SecretRef::Named(ROOTCA.into())),
        require_client_certificate: true,
        subject_alt_names: vec![StringMatcher::prefix("spiffe://cluster.local/")],
        ..DownstreamTls::default()
    })
}

fn outbound(names: &[&str]) -> Arc<UpstreamTls> {
    Arc::new(UpstreamTls {
        certificate: Some(SecretRef::Named(DEFAULT.into())),
        validation: Some(SecretRef::Named(ROOTCA.into())),
        subject_alt_names: names.iter().map(|name| StringMatcher::exact(name)).collect(),
        ..UpstreamTls::default()
    })
}

/// Whether a byte gets through from client to server.
async fn talk(client: Arc<ClientConfig>, server: Arc<ServerConfig>) -> std::io::Result<()> {
    let (near, far) = tokio::io::duplex(64 << 10);
    let accepting = tokio::spawn(async move {
        let mut stream = tokio_rustls::TlsAcceptor::from(server).accept(far).await?;
        let byte = stream.read_u8().await?;
        stream.write_u8(byte).await?;
        stream.shutdown().await
    });
    let name = ServerName::IpAddress(std::net::IpAddr::from([127, 0, 0, 1]).into());
    let mut stream = tokio_rustls::TlsConnector::from(client).connect(name, near).await?;
    stream.write_u8(7).await?;
    assert_eq!(tokio::time::timeout(Duration::from_secs(10), stream.read_u8()).await??, 7);
    accepting.await?
}

#[tokio::test]
async fn a_client_accepts_only_the_accounts_that_its_cluster_names() {
    let ca = ca();
    let (client, server) = (workload(&ca, "web"), workload(&ca, "reviews"));
    let serving = server.server_config(&inbound()).unwrap();
    let good = client.client_config(&outbound(&["spiffe://cluster.local/ns/shop/sa/reviews"])).unwrap();
    talk(good, Arc::clone(&serving)).await.unwrap();
    let other = client.client_config(&outbound(&["spiffe://cluster.local/ns/shop/sa/ratings"])).unwrap();
    assert!(talk(other, Arc::clone(&serving)).await.is_err());
    let unnamed = client.client_config(&outbound(&[])).unwrap();
    talk(unnamed, serving).await.unwrap();
    assert_eq!(client.local_identity().as_deref(), Some("spiffe://cluster.local/ns/shop/sa/web"));
}

#[tokio::test]
async fn a_server_refuses_strangers() {
    let (ours, theirs) = (ca(), ca());
    let server = workload(&ours, "reviews");
    let stranger = workload(&theirs, "web");
    let serving = server.server_config(&inbound()).unwrap();
    let calling = stranger.client_config(&outbound(&["spiffe://cluster.local/ns/shop/sa/reviews"])).unwrap();
    assert!(talk(calling, serving).await.is_err());
}

#[test]
fn configurations_are_kept_per_context() {
    let ca = ca();
    let tls = workload(&ca, "web");
    let (one, two) = (inbound(), inbound());
    let first = tls.server_config(&one).unwrap();
    assert!(Arc::ptr_eq(&first, &tls.server_config(&one).unwrap()));
    assert!(!Arc::ptr_eq(&first, &tls.server_config(&two).unwrap()));
    for _ in 0..PRUNE_ABOVE * 3 {
        tls.server_config(&inbound()).unwrap();
    }
    let kept = tls.servers.0.lock().unwrap().built.len();
    assert!(kept <= PRUNE_ABOVE + 1, "{kept} contexts are kept, only two live");
}

#[tokio::test]
async fn files_are_read_again_when_they_change() {
    let ca = ca();
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let write = |account: &str| {
        let credential = ca.issue_svid(&id(account), None).unwrap();
        std::fs::write(path("cert.pem"), credential.chain_pem()).unwrap();
        std::fs::write(path("key.pem"), credential.key().to_pem().as_bytes()).unwrap();
    };
    write("web");
    std::fs::write(path("root.pem"), ca.bundle().to_pem()).unwrap();
    let context = Arc::new(UpstreamTls {
        certificate: Some(SecretRef::CertificateFiles { chain: path("cert.pem"), key: path("key.pem") }),
        validation: Some(SecretRef::RootsFile(path("root.pem"))),
        ..(*outbound(&["spiffe://cluster.local/ns/shop/sa/reviews"])).clone()
    });
    let tls = SidecarTls::of_files();
    let first = tls.client_config(&context).unwrap();
    let serving = workload(&ca, "reviews").server_config(&inbound()).unwrap();
    talk(Arc::clone(&first), serving).await.unwrap();
    assert_eq!(tls.local_identity().as_deref(), Some(id("web").as_str()));

    write("shop");
    let file = std::fs::File::options().write(true).open(path("cert.pem")).unwrap();
    file.set_modified(std::time::SystemTime::now() + Duration::from_secs(5)).unwrap();
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(2)).await;
    let second = tls.client_config(&context).unwrap();
    assert!(!Arc::ptr_eq(&first, &second));
    assert_eq!(tls.local_identity().as_deref(), Some(id("shop").as_str()));
}

#[test]
fn what_is_missing_is_named() {
    let tls = SidecarTls::of_files();
    let error = tls.server_config(&inbound()).unwrap_err();
    assert_eq!(error.secret, DEFAULT);
    let unknown = DownstreamTls {
        certificates: vec![SecretRef::Named("kubernetes://credential".into())],
        ..DownstreamTls::default()
    };
    assert_eq!(tls.server_config(&Arc::new(unknown)).unwrap_err().secret, "kubernetes://credential");
    let absent = SecretRef::Named("file-cert:/nowhere/cert.pem~/nowhere/key.pem".into());
    let absent = DownstreamTls { certificates: vec![absent], ..DownstreamTls::default() };
    let error = tls.server_config(&Arc::new(absent)).unwrap_err();
    assert_eq!(error.secret, "/nowhere/cert.pem");
}

#[tokio::test]
async fn a_revoked_peers_live_connection_ends_within_a_second_and_others_go_on() {
    use mesh_proxy_core::Proxy;
    use mesh_proxy_core::config::{
        Cluster, Discovery, FilterChain, Listener, LoadAssignment, NetworkFilter, TcpProxy,
    };

    let ca = ca();
    let app = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = app.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = app.accept().await.unwrap();
            tokio::spawn(async move {
                let (mut reader, mut writer) = stream.split();
                let _until_it_ends = tokio::io::copy(&mut reader, &mut writer).await;
            });
        }
    });
    let (publisher, identity) = Identity::channel(WallClock::system());
    let credential = ca.issue_svid(&id("reviews"), None).unwrap();
    publisher.publish(Some(Arc::new(credential)), ca.bundle_set());
    let tls = SidecarTls::of_workload(identity.clone(), TrustDomain::parse(DOMAIN).unwrap());
    let proxy = Proxy::builder().on_current_runtime().tls(Arc::new(tls)).build().unwrap();
    let cluster = Cluster::new("app", Discovery::Static(Arc::new(LoadAssignment::new("app", [address]))));
    proxy.handle().apply_cluster(cluster).unwrap();
    let mut listener = Listener::new("in", "127.0.0.1:0".parse().unwrap());
    let mut chain = FilterChain::new("", vec![NetworkFilter::TcpProxy(TcpProxy::new("in", "app"))]);
    chain.tls = Some(inbound());
    listener.filter_chains = vec![chain];
    proxy.handle().apply_listener(listener).unwrap();
    let front = proxy.handle().bound_addresses("in")[0];
    tokio::spawn(crate::revocation::follow(identity, proxy.handle().clone()));

    let connect = async |account: &str| {
        let credential = ca.issue_svid(&id(account), None).unwrap();
        let serial = credential.serial().to_owned();
        let own = Identity::fixed(Some(credential), ca.bundle_set(), WallClock::system());
        let tls = SidecarTls::of_workload(own, TrustDomain::parse(DOMAIN).unwrap());
        let config = tls.client_config(&outbound(&["spiffe://cluster.local/ns/shop/sa/reviews"])).unwrap();
        let tcp = tokio::net::TcpStream::connect(front).await.unwrap();
        let name = ServerName::IpAddress(std::net::IpAddr::from([127, 0, 0, 1]).into());
        let mut stream = tokio_rustls::TlsConnector::from(config).connect(name, tcp).await.unwrap();
        stream.write_u8(7).await.unwrap();
        assert_eq!(stream.read_u8().await.unwrap(), 7);
        (stream, serial)
    };
    for _ in 0..3 {
        let (mut bad, serial) = connect("web").await;
        let (mut good, _) = connect("web").await;
        ca.revoke([&serial]).unwrap();
        publisher.publish_bundles(ca.bundle_set());
        let end = tokio::time::timeout(Duration::from_secs(1), bad.read_u8()).await.expect("within a second");
        assert!(end.is_err(), "the connection is over");
        good.write_u8(8).await.unwrap();
        assert_eq!(good.read_u8().await.unwrap(), 8, "the same account with another certificate");
    }
}
