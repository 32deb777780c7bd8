use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use futures_util::StreamExt;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    sync::oneshot,
};
use tonic::{
    Code,
    transport::{Endpoint, Server},
};
use zeroize::Zeroizing;

use super::*;
use crate::{
    Authorizer, Ca, ClientTls, Credential, Identity, IdentityPublisher, ServerTls, SpiffeId, TrustDomain,
    WallClock,
    auth::{
        Authenticators, CallerCredentials, ClientCertificateAuthenticator, JwksTokenVerifier,
        ServiceAccountAuthenticator, TokenRequest,
    },
    ca::{CertificateRequest, IssuancePolicy, KeyKind, RootOptions},
    istio_ca::{BearerToken, IstioCaClient, IstioCaError, IstioCaServer, NoToken},
    jwt::JwtSigner,
};

const NAME: &str = "istiod.istio-system.svc";
const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";
const HOUR: Duration = Duration::from_secs(3600);

fn domain() -> TrustDomain {
    TrustDomain::parse("cluster.local").unwrap()
}

fn new_ca(domain: &TrustDomain, clock: WallClock) -> Ca {
    Ca::create(domain.clone(), &RootOptions::default(), IssuancePolicy::default(), clock).unwrap()
}

/// A server whose clock can be set ahead while its clients' clocks stay.
struct Setup {
    ca: Ca,
    ahead: Arc<AtomicU64>,
    publisher: IdentityPublisher,
    tls: ServerTls,
}

impl Setup {
    fn new() -> Self {
        let ca = new_ca(&domain(), WallClock::system());
        let ahead = Arc::new(AtomicU64::new(0));
        let seconds = ahead.clone();
        let clock = WallClock::from_fn(move || {
            SystemTime::now() + Duration::from_secs(seconds.load(Ordering::Relaxed))
        });
        let (publisher, identity) = Identity::channel(clock);
        let certificate = ca.issue_server_certificate(&[NAME.to_owned()], Some(48 * HOUR)).unwrap();
        publisher.publish(Some(Arc::new(certificate)), ca.bundle_set());
        let peers = Authorizer::exact(SpiffeId::parse(WEB).unwrap());
        let tls = ServerTls::new(identity, peers).optional_client_certificate().alpn(["h2"]);
        Self { ca, ahead, publisher, tls }
    }

    fn web(&self) -> Credential {
        self.ca.issue_svid(&SpiffeId::parse(WEB).unwrap(), Some(HOUR)).unwrap()
    }

    fn pass(&self, time: Duration) {
        self.ahead.fetch_add(time.as_secs(), Ordering::Relaxed);
    }

    /// A connector that presents `credential`, whatever its own clock says about it.
    fn connector(&self, credential: Option<Credential>, address: &str) -> TlsConnector {
        let clock = WallClock::system();
        let presented = Identity::fixed(credential, self.ca.bundle_set(), clock.clone());
        let tls = ClientTls::dns(self.ca.bundle().to_pem().as_bytes(), clock).unwrap();
        let tls = tls.presenting(presented).alpn(["h2"]).build().unwrap();
        TlsConnector::new(tls).server_name(NAME).address(address)
    }

    /// What the server learns of a client; `None` when the handshake failed.
    async fn seen(&self, tls: impl Into<IncomingTls>, credential: Option<Credential>) -> Option<PeerInfo> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let mut incoming = tls_incoming(listener, tls, IncomingOptions::default());
        let connector = self.connector(credential, &address);
        let (refused, client_is_refused) = oneshot::channel();
        let client = async {
            let answer = async {
                let mut stream = connector.connect(&http::Uri::from_static("http://server")).await.ok()?;
                // In TLS 1.3 a refused client certificate shows at the client's first read.
                stream.read_u8().await.ok()
            };
            let answer = answer.await;
            if answer.is_none() {
                refused.send(()).unwrap();
            }
            answer
        };
        let server = async {
            let accepting = async {
                let mut accepted = incoming.next().await.unwrap().unwrap();
                let info = tonic::transport::server::Connected::connect_info(&accepted);
                accepted.write_all(b"x").await.unwrap();
                accepted.flush().await.unwrap();
                (info, accepted)
            };
            tokio::select! {
                accepted = accepting => Some(accepted),
                Ok(()) = client_is_refused => None,
            }
        };
        let (client, server) = tokio::join!(client, server);
        assert_eq!(client.is_some(), server.is_some(), "both ends agree");
        server.map(|(info, _)| info)
    }
}

#[tokio::test]
async fn an_expired_certificate_is_told_and_never_an_identity() {
    let setup = Setup::new();
    let tls = setup.tls.build_incoming().unwrap();
    let valid = setup.seen(tls.clone(), Some(setup.web())).await.unwrap();
    assert_eq!(valid.identity.unwrap().id.as_str(), WEB);
    assert!(valid.chain.is_some() && valid.expired.is_none());

    let old = setup.web();
    let not_after = old.not_after();
    setup.pass(2 * HOUR);
    let info = setup.seen(tls, Some(old)).await.unwrap();
    assert!(info.identity.is_none() && info.chain.is_none(), "{info:?}");
    let expired = info.expired.as_ref().unwrap();
    assert_eq!((expired.id.as_str(), expired.not_after), (WEB, not_after));

    // And so says the authenticator, whatever else is in the request.
    let mut request = tonic::Request::new(());
    request.extensions_mut().insert(info);
    let by_certificate = Authenticators::new().with(ClientCertificateAuthenticator::new(domain()));
    let refused = by_certificate.authenticate(&CallerCredentials::from_request(&request)).await.unwrap_err();
    assert_eq!(refused.reason(), "expired");
    assert!(refused.to_string().contains(WEB) && refused.to_string().contains("expired at 20"), "{refused}");
    let status = refused.to_status();
    assert_eq!(status.code(), Code::Unauthenticated);
    assert!(status.message().starts_with("the client certificate expired at 20"), "{status:?}");
}

#[tokio::test]
async fn only_the_time_is_forgiven_and_only_where_no_certificate_is_needed() {
    let setup = Setup::new();
    let id = SpiffeId::parse(WEB).unwrap();
    let answering = setup.tls.build_incoming().unwrap();
    let (old, revoked) = (setup.web(), setup.web());
    let copy = |credential: &Credential| {
        Credential::svid(credential.chain().to_vec(), credential.key().clone()).unwrap()
    };
    let other = SpiffeId::parse("spiffe://cluster.local/ns/shop/sa/other").unwrap();
    let not_authorized = setup.ca.issue_svid(&other, Some(HOUR)).unwrap();
    let other_root = new_ca(&domain(), WallClock::system()).issue_svid(&id, Some(HOUR)).unwrap();
    let elsewhere = TrustDomain::parse("elsewhere").unwrap();
    let foreign = new_ca(&elsewhere, WallClock::system());
    let foreign =
        foreign.issue_svid(&SpiffeId::parse("spiffe://elsewhere/web").unwrap(), Some(HOUR)).unwrap();
    setup.ca.revoke([revoked.serial()]).unwrap();
    setup.publisher.publish_bundles(setup.ca.bundle_set());
    setup.pass(2 * HOUR);

    assert!(setup.seen(answering.clone(), Some(copy(&old))).await.is_some(), "the one that is let through");
    for (why, credential) in [
        ("revoked", revoked),
        ("not authorized", not_authorized),
        ("of another root", other_root),
        ("of another trust domain", foreign),
    ] {
        assert!(setup.seen(answering.clone(), Some(credential)).await.is_none(), "expired and {why}");
    }
    let plain = setup.tls.build().unwrap();
    assert!(setup.seen(plain, Some(copy(&old))).await.is_none(), "a plain configuration");
    let peers = Authorizer::exact(id.clone());
    let required = ServerTls::new(setup.publisher.identity().clone(), peers).alpn(["h2"]);
    let required = required.build_incoming().unwrap();
    assert!(setup.seen(required.clone(), Some(copy(&old))).await.is_none(), "a certificate is required");
    assert!(setup.seen(required, Some(setup.web())).await.is_none(), "expired by the server's clock");

    // Issued now, while the server's clock is an hour behind.
    let behind = WallClock::from_fn(|| SystemTime::now() - HOUR);
    let (publisher, identity) = Identity::channel(behind);
    publisher.publish(setup.publisher.identity().current().credential.clone(), setup.ca.bundle_set());
    let tls = ServerTls::new(identity, Authorizer::exact(id)).optional_client_certificate().alpn(["h2"]);
    let early = setup.seen(tls.build_incoming().unwrap(), Some(setup.web())).await;
    assert!(early.is_none(), "not yet valid");
}

#[tokio::test]
async fn the_certificate_service_answers_an_expired_client_with_a_status_or_takes_its_token() {
    let setup = Setup::new();
    let signer = JwtSigner::generate().unwrap();
    let issuer = "https://kubernetes.example";
    let verifier =
        JwksTokenVerifier::new(signer.jwks(), issuer, ["istio-ca".to_owned()], WallClock::system());
    let authenticators = Authenticators::new()
        .with(ClientCertificateAuthenticator::new(domain()))
        .with(ServiceAccountAuthenticator::new(domain(), verifier));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let incoming = tls_incoming(listener, setup.tls.build_incoming().unwrap(), IncomingOptions::default());
    let service = IstioCaServer::new(Arc::new(new_ca(&domain(), WallClock::system())), authenticators);
    tokio::spawn(Server::builder().add_service(service.into_service()).serve_with_incoming(incoming));

    let old = setup.web();
    setup.pass(2 * HOUR);
    let presenting = |credential: &Credential, token: Arc<dyn BearerToken>| {
        let credential = Credential::svid(credential.chain().to_vec(), credential.key().clone()).unwrap();
        let connector = setup.connector(Some(credential), &address);
        let endpoint = Endpoint::from_shared(format!("http://{NAME}:15012")).unwrap();
        IstioCaClient::new(endpoint.connect_with_connector_lazy(connector), move || token.token())
    };
    let request = CertificateRequest::generate(KeyKind::EcP256, &SpiffeId::parse(WEB).unwrap()).unwrap();
    let refused = presenting(&old, Arc::new(NoToken)).create_certificate(request.csr_pem(), None).await;
    let IstioCaError::Refused { status } = refused.unwrap_err() else { panic!("another error") };
    assert_eq!(status.code(), Code::Unauthenticated);
    assert!(status.message().contains("expired at"), "{status:?}");

    let token = TokenRequest {
        issuer,
        audience: "istio-ca",
        namespace: "shop",
        service_account: "cart",
        service_account_uid: "u",
        pod: None,
        lifetime: Duration::from_secs(600),
    };
    let token = token.sign(&signer, &WallClock::system()).unwrap();
    let token = Arc::new(move || Ok(Some(Zeroizing::new(token.clone()))));
    let chain = presenting(&old, token).create_certificate(request.csr_pem(), None).await.unwrap();
    let facts = crate::x509::CertificateFacts::read(&chain[0]).unwrap();
    assert_eq!(
        facts.uri_sans,
        ["spiffe://cluster.local/ns/shop/sa/cart"],
        "the token's, not the certificate's"
    );
}

#[tokio::test]
async fn a_revoked_clients_connection_is_closed_within_a_second() {
    let setup = Setup::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let mut incoming =
        tls_incoming(listener, setup.tls.build_incoming().unwrap(), IncomingOptions::default());
    let (good, bad) = (setup.web(), setup.web());
    let serial = bad.serial().to_owned();
    let mut connections = Vec::new();
    for credential in [good, bad] {
        let connector = setup.connector(Some(credential), &address);
        let client = connector.connect(&http::Uri::from_static("http://server")).await.unwrap();
        let mut server = incoming.next().await.unwrap().unwrap();
        let reading = tokio::spawn(async move { server.read(&mut [0]).await.map_err(|error| error.kind()) });
        connections.push((client, reading));
    }
    tokio::task::yield_now().await;
    setup.ca.revoke([&serial]).unwrap();
    setup.publisher.publish_bundles(setup.ca.bundle_set());
    let (mut revoked_client, reading) = connections.pop().unwrap();
    let ended =
        tokio::time::timeout(Duration::from_secs(1), reading).await.expect("within a second").unwrap();
    assert_eq!(ended, Err(std::io::ErrorKind::ConnectionAborted));
    let at_the_client = tokio::time::timeout(Duration::from_secs(1), revoked_client.read(&mut [0])).await;
    assert!(matches!(at_the_client.expect("within a second"), Ok(0) | Err(_)));

    let (mut client, reading) = connections.pop().unwrap();
    client.write_all(b"x").await.unwrap();
    client.flush().await.unwrap();
    assert_eq!(reading.await.unwrap(), Ok(1), "others go on");
}

#[tokio::test]
async fn a_connector_says_what_failed() {
    let setup = Setup::new();
    let connector = setup.connector(None, "127.0.0.1:1");
    let no_host = connector.connect(&http::Uri::from_static("/path")).await.unwrap_err();
    assert_eq!(no_host.reason(), "address");
    let refused = connector.connect(&http::Uri::from_static("http://server")).await.unwrap_err();
    assert_eq!(refused.reason(), "connect");
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let silent = setup.connector(None, &listener.local_addr().unwrap().to_string());
    let late =
        silent.timeout(Duration::from_millis(20)).connect(&http::Uri::from_static("http://server")).await;
    assert_eq!(late.unwrap_err().reason(), "timeout");
}
