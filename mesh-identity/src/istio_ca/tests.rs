use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use tokio::net::TcpListener;
use tonic::{
    Code,
    server::NamedService,
    transport::{Channel, Endpoint, Server},
};
use zeroize::Zeroizing;

use super::{pb::CertificateServiceServer, *};
use crate::{
    Ca, ClientTls, Identity, RenewalPolicy, ServerTls, SpiffeId, SvidSource, TrustDomain, WallClock,
    auth::{
        Authenticators, ClientCertificateAuthenticator, JwksTokenVerifier, ServiceAccountAuthenticator,
        TokenRequest,
    },
    ca::{CertificateRequest, IssuancePolicy, KeyKind, RootOptions},
    grpc::{IncomingOptions, TlsConnector, tls_incoming},
    jwt::JwtSigner,
    x509::CertificateFacts,
};

const ISSUER: &str = "https://kubernetes.example";
const NAME: &str = "istiod.istio-system.svc";

/// A control plane's port: TLS by DNS name, client certificate optional, token otherwise.
struct ControlPlane {
    ca: Arc<Ca>,
    tokens: JwtSigner,
    address: String,
}

impl ControlPlane {
    async fn start() -> Self {
        Self::start_with(|service| service).await
    }

    async fn start_with(change: impl FnOnce(IstioCaServer) -> IstioCaServer) -> Self {
        let clock = WallClock::system();
        let domain = TrustDomain::parse("cluster.local").unwrap();
        let ca =
            Ca::create(domain.clone(), &RootOptions::default(), IssuancePolicy::default(), clock.clone());
        let ca = Arc::new(ca.unwrap());
        let tokens = JwtSigner::generate().unwrap();
        let verifier = JwksTokenVerifier::new(tokens.jwks(), ISSUER, ["istio-ca".to_owned()], clock.clone());
        let authenticators = Authenticators::new()
            .with(ClientCertificateAuthenticator::new(domain.clone()))
            .with(ServiceAccountAuthenticator::new(domain.clone(), verifier).require_bound_pod());
        let certificate = ca.issue_server_certificate(&[NAME.to_owned()], None).unwrap();
        let identity = Identity::fixed(Some(certificate), ca.bundle_set(), clock);
        let config = ServerTls::for_trust_domain(identity, domain).optional_client_certificate().alpn(["h2"]);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let incoming = tls_incoming(listener, config.build().unwrap(), IncomingOptions::default());
        let service = change(IstioCaServer::new(ca.clone(), authenticators)).into_service();
        tokio::spawn(Server::builder().add_service(service).serve_with_incoming(incoming));
        Self { ca, tokens, address }
    }

    fn token(&self, audience: &str, pod: Option<(&str, &str)>) -> String {
        let request = TokenRequest {
            issuer: ISSUER,
            audience,
            namespace: "shop",
            service_account: "cart",
            service_account_uid: "sa-uid",
            pod,
            lifetime: Duration::from_secs(600),
        };
        request.sign(&self.tokens, &WallClock::system()).unwrap()
    }

    fn channel(&self, presenting: Option<Identity>) -> Channel {
        let roots = self.ca.bundle().to_pem();
        let mut tls = ClientTls::dns(roots.as_bytes(), WallClock::system()).unwrap().alpn(["h2"]);
        if let Some(identity) = presenting {
            tls = tls.presenting(identity);
        }
        let connector = TlsConnector::new(tls.build().unwrap()).address(&self.address);
        Endpoint::from_shared(format!("http://{NAME}:15012")).unwrap().connect_with_connector_lazy(connector)
    }

    fn client(&self, token: &str) -> IstioCaClient {
        let token = token.to_owned();
        IstioCaClient::new(self.channel(None), move || Ok(Some(Zeroizing::new(token.clone()))))
    }
}

fn cart() -> SpiffeId {
    SpiffeId::parse("spiffe://cluster.local/ns/shop/sa/cart").unwrap()
}

async fn ask(client: &IstioCaClient, id: &str, lifetime: Option<Duration>) -> Result<Vec<String>, Code> {
    let request = CertificateRequest::generate(KeyKind::EcP256, &SpiffeId::parse(id).unwrap()).unwrap();
    match client.create_certificate(request.csr_pem(), lifetime).await {
        Ok(chain) => Ok(CertificateFacts::read(&chain[0]).unwrap().uri_sans),
        Err(IstioCaError::Refused { status }) => Err(status.code()),
        Err(other) => panic!("{other}"),
    }
}

#[tokio::test]
async fn a_bound_token_gives_its_own_identity_whatever_the_request_says() {
    let plane = ControlPlane::start().await;
    let client = plane.client(&plane.token("istio-ca", Some(("cart-1", "uid-1"))));
    let sans = ask(&client, "spiffe://cluster.local/ns/kube-system/sa/admin", None).await;
    assert_eq!(sans, Ok(vec![cart().to_string()]));
}

#[tokio::test]
async fn a_request_for_another_identity_can_be_refused() {
    let plane = ControlPlane::start_with(IstioCaServer::own_names_only).await;
    let client = plane.client(&plane.token("istio-ca", Some(("cart-1", "uid-1"))));
    for other in ["spiffe://cluster.local/ns/shop/sa/admin", "spiffe://elsewhere/ns/shop/sa/cart"] {
        assert_eq!(ask(&client, other, None).await, Err(Code::PermissionDenied), "{other}");
    }
    assert_eq!(ask(&client, cart().as_str(), None).await, Ok(vec![cart().to_string()]));
}

#[tokio::test]
async fn refusals_have_the_right_codes() {
    let plane = ControlPlane::start().await;
    let pod = Some(("cart-1", "uid-1"));
    let good = plane.token("istio-ca", pod);
    let foreign = JwtSigner::generate().unwrap();
    let forged = TokenRequest {
        issuer: ISSUER,
        audience: "istio-ca",
        namespace: "shop",
        service_account: "cart",
        service_account_uid: "u",
        pod,
        lifetime: Duration::from_secs(60),
    };
    let forged = forged.sign(&foreign, &WallClock::system()).unwrap();
    for token in [plane.token("somebody-else", pod), plane.token("istio-ca", None), "junk".into(), forged] {
        assert_eq!(ask(&plane.client(&token), cart().as_str(), None).await, Err(Code::Unauthenticated));
    }
    let anonymous = IstioCaClient::new(plane.channel(None), NoToken);
    assert_eq!(ask(&anonymous, cart().as_str(), None).await, Err(Code::Unauthenticated));
    let too_long = Some(Duration::from_secs(91 * 24 * 3600));
    assert_eq!(ask(&plane.client(&good), cart().as_str(), too_long).await, Err(Code::InvalidArgument));
    let bad_request = plane.client(&good).create_certificate("not a request", None).await.unwrap_err();
    assert_eq!(bad_request.reason(), "refused");
}

#[tokio::test]
async fn a_source_gets_its_svid_by_token_and_renews_by_certificate() {
    let plane = ControlPlane::start().await;
    let reads = Arc::new(AtomicUsize::new(0));
    let (counter, token) = (reads.clone(), plane.token("istio-ca", Some(("cart-1", "uid-1"))));
    let client = IstioCaClient::new(plane.channel(None), move || {
        counter.fetch_add(1, Ordering::Relaxed);
        Ok(Some(Zeroizing::new(token.clone())))
    });
    let fetcher = IstioCaFetcher::new(client, cart(), WallClock::system());
    let source = SvidSource::spawn(fetcher, RenewalPolicy::default(), WallClock::system());
    source.ready().await;
    let rotated = source.rotate_now().await.unwrap();
    assert_ne!(rotated.old_serial.unwrap(), rotated.new_serial);
    assert_eq!(reads.load(Ordering::Relaxed), 2, "the token is read for each request");
    assert_eq!(source.status().renewals, 2);

    let by_certificate = plane.channel(Some(source.identity().clone()));
    let sans = ask(&IstioCaClient::new(by_certificate, NoToken), cart().as_str(), None).await;
    assert_eq!(sans, Ok(vec![cart().to_string()]));
}

#[tokio::test]
async fn another_identity_than_expected_is_not_taken() {
    let plane = ControlPlane::start().await;
    let client = plane.client(&plane.token("istio-ca", Some(("cart-1", "uid-1"))));
    let other = SpiffeId::parse("spiffe://cluster.local/ns/shop/sa/web").unwrap();
    let fetcher = IstioCaFetcher::new(client, other, WallClock::system());
    let error = crate::SvidFetcher::fetch(&fetcher).await.unwrap_err();
    assert_eq!(error.reason, "denied");
}

/// Answers `Unavailable` this often, then like the CA; counts calls.
#[derive(Clone)]
struct Failing {
    inner: CertificateServiceServer,
    left: Arc<AtomicUsize>,
    calls: Arc<AtomicUsize>,
    code: Code,
}

impl NamedService for Failing {
    const NAME: &'static str = SERVICE_NAME;
}

impl tower_service::Service<http::Request<tonic::body::Body>> for Failing {
    type Response = http::Response<tonic::body::Body>;
    type Error = std::convert::Infallible;
    type Future = futures_util::future::BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<tonic::body::Body>) -> Self::Future {
        self.calls.fetch_add(1, Ordering::Relaxed);
        let fails = self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
        match fails {
            Ok(_) => {
                let answer = tonic::Status::new(self.code, "not now").into_http();
                Box::pin(std::future::ready(Ok(answer)))
            }
            Err(_) => tower_service::Service::call(&mut self.inner, request),
        }
    }
}

#[tokio::test]
async fn a_client_tries_again_while_the_server_is_unavailable_and_only_then() {
    let plane = ControlPlane::start().await;
    for (failures, code, expected, calls) in [
        (2, Code::Unavailable, Ok(()), 3),
        (3, Code::Unavailable, Err(Code::Unavailable), 3),
        (1, Code::PermissionDenied, Err(Code::PermissionDenied), 1),
    ] {
        let signer = &plane.tokens;
        let verifier =
            JwksTokenVerifier::new(signer.jwks(), ISSUER, ["istio-ca".to_owned()], WallClock::system());
        let domain = plane.ca.trust_domain().clone();
        let tokens = Authenticators::new().with(ServiceAccountAuthenticator::new(domain, verifier));
        let failing = Failing {
            inner: IstioCaServer::new(plane.ca.clone(), tokens).into_service(),
            left: Arc::new(AtomicUsize::new(failures)),
            calls: Arc::default(),
            code,
        };
        let counted = failing.calls.clone();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
        tokio::spawn(Server::builder().add_service(failing).serve_with_incoming(incoming));
        let channel = Endpoint::from_shared(format!("http://{address}")).unwrap().connect_lazy();
        let token = plane.token("istio-ca", None);
        let client = IstioCaClient::new(channel, move || Ok(Some(Zeroizing::new(token.clone()))));
        let outcome = ask(&client, cart().as_str(), None).await.map(|_| ());
        assert_eq!(
            (outcome, counted.load(Ordering::Relaxed)),
            (expected, calls),
            "{failures} times {code:?}"
        );
    }
}

#[tokio::test]
async fn a_server_under_another_root_gets_no_token() {
    let (ours, theirs) = (ControlPlane::start().await, ControlPlane::start().await);
    // The address of an impostor, the roots of ours.
    let tls = ClientTls::dns(ours.ca.bundle().to_pem().as_bytes(), WallClock::system()).unwrap().alpn(["h2"]);
    let connector = TlsConnector::new(tls.build().unwrap()).address(&theirs.address);
    let endpoint = Endpoint::from_shared(format!("http://{NAME}:15012")).unwrap();
    let token = theirs.token("istio-ca", Some(("cart-1", "uid-1")));
    let client = IstioCaClient::new(endpoint.connect_with_connector_lazy(connector), move || {
        Ok(Some(Zeroizing::new(token.clone())))
    });
    let outcome = ask(&client.attempts(1), cart().as_str(), None).await;
    assert_eq!(outcome, Err(Code::Unavailable));
    let fetcher = |plane: &ControlPlane| {
        let token = plane.token("istio-ca", Some(("cart-1", "uid-1")));
        IstioCaFetcher::new(plane.client(&token), cart(), WallClock::system())
    };
    assert!(crate::SvidFetcher::fetch(&fetcher(&theirs)).await.is_ok(), "it answers those who trust it");
}

#[tokio::test]
async fn a_revocation_list_in_a_file_counts_within_a_second_and_survives_renewals() {
    let plane = ControlPlane::start().await;
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("ca-crl.pem");
    let client = plane.client(&plane.token("istio-ca", Some(("cart-1", "uid-1"))));
    let fetcher = IstioCaFetcher::new(client, cart(), WallClock::system()).also_revoke(&file);
    let source = SvidSource::spawn(fetcher, RenewalPolicy::default(), WallClock::system());
    source.ready().await;
    let peer = plane.ca.issue_svid(&cart(), None).unwrap();
    let peer = crate::PeerIdentity::of_verified_chain(peer.chain()).unwrap();
    let revoked = |source: &SvidSource| source.identity().current().bundles.is_revoked(&peer);
    assert!(!revoked(&source));
    plane.ca.revoke([&peer.serial]).unwrap();
    let pem: String = plane.ca.bundle().crl_ders().iter().map(|der| crate::x509::crl_to_pem(der)).collect();
    let serial = source.identity().current().credential.as_ref().unwrap().serial().to_owned();

    // As kubelets do it: another file in its place.
    std::fs::write(directory.path().join("new"), &pem).unwrap();
    std::fs::rename(directory.path().join("new"), &file).unwrap();
    let told = tokio::time::timeout(Duration::from_secs(1), source.identity().revoked(&peer));
    told.await.expect("within a second");
    assert_eq!(
        source.identity().current().credential.as_ref().unwrap().serial(),
        serial,
        "nothing was fetched"
    );
    source.rotate_now().await.unwrap();
    assert!(revoked(&source), "a renewal brings the lists along");

    // Half of a file changes nothing, for renewals neither; an empty one takes the revocation back.
    std::fs::write(&file, &pem[..pem.len() / 2]).unwrap();
    source.rotate_now().await.unwrap();
    tokio::time::sleep(Duration::from_millis(600)).await;
    assert!(revoked(&source));
    let mut changes = source.identity().subscribe();
    std::fs::remove_file(&file).unwrap();
    tokio::time::timeout(Duration::from_secs(1), changes.changed()).await.expect("within a second").unwrap();
    assert!(!revoked(&source));
}
