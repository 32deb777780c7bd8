use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::net::TcpListener;
use tonic::{
    Code,
    transport::{Channel, Endpoint, Server},
};
use zeroize::Zeroizing;

use super::*;
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
