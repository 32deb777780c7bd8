use std::time::{Duration, SystemTime};

use serde_json::json;

use super::*;
use crate::{
    Ca, TrustDomain, WallClock,
    ca::{IssuancePolicy, RootOptions},
    jwt::JwtSigner,
};

const ISSUER: &str = "https://kubernetes.example";

fn domain() -> TrustDomain {
    TrustDomain::parse("cluster.local").unwrap()
}

fn verifier(signer: &JwtSigner) -> JwksTokenVerifier {
    JwksTokenVerifier::new(signer.jwks(), ISSUER, ["istio-ca".to_owned()], WallClock::system())
}

fn request() -> TokenRequest<'static> {
    TokenRequest {
        issuer: ISSUER,
        audience: "istio-ca",
        namespace: "shop",
        service_account: "cart",
        service_account_uid: "sa-1",
        pod: Some(("cart-0", "pod-1")),
        lifetime: Duration::from_secs(600),
    }
}

#[tokio::test]
async fn a_projected_token_names_account_and_pod() {
    let signer = JwtSigner::generate().unwrap();
    let token = request().sign(&signer, &WallClock::system()).unwrap();
    let account = verifier(&signer).verify(&token).await.unwrap();
    assert_eq!((account.namespace.as_str(), account.service_account.as_str()), ("shop", "cart"));
    let pod = account.pod.unwrap();
    assert_eq!((pod.namespace.as_str(), pod.name.as_str(), pod.uid.as_str()), ("shop", "cart-0", "pod-1"));
}

#[tokio::test]
async fn tokens_that_are_refused() {
    let signer = JwtSigner::generate().unwrap();
    let verifier = verifier(&signer);
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    let sub = "system:serviceaccount:shop:cart";
    let base = json!({"iss": ISSUER, "sub": sub, "aud": ["istio-ca"], "iat": now, "exp": now + 60});
    let cases = [
        (json!({}), None),
        (json!({"aud": ["https://kubernetes.default.svc"]}), Some("audience")),
        (json!({"iss": "https://elsewhere"}), Some("issuer")),
        (json!({"iss": null}), Some("claim")),
        (json!({"exp": now - 1}), Some("expired")),
        (json!({"iat": now + 600}), Some("not_yet_valid")),
        (json!({"sub": "alice"}), Some("not_service_account")),
        (json!({"sub": "system:node:n1"}), Some("not_service_account")),
        (json!({"sub": "system:serviceaccount:shop"}), Some("not_service_account")),
        (json!({"sub": "system:serviceaccount:shop:"}), Some("not_service_account")),
        (json!({"sub": "system:serviceaccount:shop:a:b"}), Some("not_service_account")),
        (json!({"kubernetes.io": {"namespace": "other"}}), Some("inconsistent")),
        (
            json!({"kubernetes.io": {"namespace": "shop", "serviceaccount": {"name": "web"}}}),
            Some("inconsistent"),
        ),
    ];
    for (change, reason) in cases {
        let mut claims = base.clone();
        for (name, value) in change.as_object().unwrap() {
            claims[name] = value.clone();
        }
        let outcome = verifier.verify(&signer.sign(&claims).unwrap()).await;
        assert_eq!(outcome.err().map(|error| error.reason()), reason, "{change}");
    }
}

#[tokio::test]
async fn authenticators_are_asked_in_order_and_absence_is_no_refusal() {
    let signer = JwtSigner::generate().unwrap();
    let authenticators = Authenticators::new()
        .with(ClientCertificateAuthenticator::new(domain()))
        .with(ServiceAccountAuthenticator::new(domain(), verifier(&signer)).require_bound_pod());
    let nothing = authenticators.authenticate(&CallerCredentials::default()).await.unwrap_err();
    assert_eq!(nothing, AuthError::Absent);

    let token = request().sign(&signer, &WallClock::system()).unwrap();
    let caller = authenticators.authenticate(&CallerCredentials::from_token(token)).await.unwrap();
    assert_eq!((caller.id.as_str(), caller.method), ("spiffe://cluster.local/ns/shop/sa/cart", "token"));

    let unbound = TokenRequest { pod: None, ..request() }.sign(&signer, &WallClock::system()).unwrap();
    let refused = authenticators.authenticate(&CallerCredentials::from_token(unbound)).await.unwrap_err();
    assert_eq!(refused, AuthError::NotBound);

    let ca = |domain: &TrustDomain| {
        Ca::create(domain.clone(), &RootOptions::default(), IssuancePolicy::default(), WallClock::system())
            .unwrap()
    };
    for (name, expected) in [("cluster.local", Ok("certificate")), ("elsewhere", Err("foreign_trust_domain"))]
    {
        let domain = TrustDomain::parse(name).unwrap();
        let id = SpiffeId::workload(&domain, "shop", "web").unwrap();
        let chain = ca(&domain).issue_svid(&id, None).unwrap().chain().to_vec();
        let credentials =
            CallerCredentials { verified_chain: Some(Arc::new(chain)), ..CallerCredentials::default() };
        let outcome = authenticators.authenticate(&credentials).await;
        assert_eq!(outcome.as_ref().map(|c| c.method).map_err(|e| e.reason()), expected);
    }
}

#[tokio::test]
async fn bearer_tokens_are_found_in_metadata() {
    for (header, token) in
        [("Bearer abc", Some("abc")), ("bearer  abc ", Some("abc")), ("Basic abc", None), ("abc", None)]
    {
        let mut request = tonic::Request::new(());
        request.metadata_mut().insert("authorization", header.parse().unwrap());
        let credentials = CallerCredentials::from_request(&request);
        assert_eq!(credentials.bearer_token.as_deref(), token, "{header}");
        assert!(!format!("{credentials:?}").contains("abc"));
    }
}

#[tokio::test(start_paused = true)]
async fn a_key_file_is_read_again_for_unknown_keys_but_not_too_often() {
    let (old, new) = (JwtSigner::generate().unwrap(), JwtSigner::generate().unwrap());
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("jwks.json");
    std::fs::write(&path, old.jwks().to_json()).unwrap();
    let verifier =
        JwksTokenVerifier::from_file(&path, ISSUER, ["istio-ca".to_owned()], WallClock::system()).unwrap();
    let by_new = request().sign(&new, &WallClock::system()).unwrap();
    assert_eq!(verifier.verify(&by_new).await.unwrap_err().reason(), "unknown_key");

    std::fs::write(&path, new.jwks().to_json()).unwrap();
    assert_eq!(verifier.verify(&by_new).await.unwrap_err().reason(), "unknown_key", "read a moment ago");
    tokio::time::advance(Duration::from_secs(6)).await;
    assert!(verifier.verify(&by_new).await.is_ok());

    std::fs::write(&path, "broken").unwrap();
    tokio::time::advance(Duration::from_secs(6)).await;
    let by_old = request().sign(&old, &WallClock::system()).unwrap();
    assert_eq!(verifier.verify(&by_old).await.unwrap_err().reason(), "unknown_key");
    assert!(verifier.verify(&by_new).await.is_ok(), "a broken file leaves the old keys");
}

#[tokio::test(start_paused = true)]
async fn a_key_that_is_withdrawn_is_refused_within_minutes_though_it_is_known() {
    let (old, new) = (JwtSigner::generate().unwrap(), JwtSigner::generate().unwrap());
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("jwks.json");
    std::fs::write(&path, old.jwks().to_json()).unwrap();
    let verifier =
        JwksTokenVerifier::from_file(&path, ISSUER, ["istio-ca".to_owned()], WallClock::system()).unwrap();
    let by_old = request().sign(&old, &WallClock::system()).unwrap();
    assert!(verifier.verify(&by_old).await.is_ok());

    // While the set cannot be read, what is known stays.
    std::fs::write(&path, "broken").unwrap();
    tokio::time::advance(Duration::from_secs(301)).await;
    assert!(verifier.verify(&by_old).await.is_ok());
    std::fs::write(&path, new.jwks().to_json()).unwrap();
    assert!(verifier.verify(&by_old).await.is_ok(), "tried a moment ago");
    tokio::time::advance(Duration::from_secs(6)).await;
    assert_eq!(verifier.verify(&by_old).await.unwrap_err().reason(), "unknown_key");
    let by_new = request().sign(&new, &WallClock::system()).unwrap();
    assert!(verifier.verify(&by_new).await.is_ok());
}
