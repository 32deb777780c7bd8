//! Bodies of the fuzz targets: parsers on arbitrary bytes, and properties that must hold for whatever they accept.

use rustls::pki_types::CertificateDer;

use crate::{
    bundle::{BundleSet, TrustBundle},
    ca::CertificateRequest,
    clock::WallClock,
    id::{SpiffeId, SpiffeIdRef, TrustDomain},
    jwt::{Algorithm, JwkSet, UnverifiedToken},
    x509::{
        CertificateFacts, Credential, MAX_CHAIN, MAX_PEM_BYTES, PeerUsage, certificates_from_pem,
        certificates_to_pem, check_leaf, check_signer, crls_from_pem, private_key_from_pem, verify_chain,
    },
};

/// One fuzz target: its name and its body.
pub type Target = (&'static str, fn(&[u8]));

/// Every target.
pub const TARGETS: &[Target] = &[
    ("spiffe_id", spiffe_id),
    ("certificate", certificate),
    ("pem", pem),
    ("certificate_request", certificate_request),
    ("token", token),
    ("bundle_json", bundle_json),
    ("workload_api_ders", workload_api_ders),
    ("workload_api_message", workload_api_message),
    ("crl", crl),
    ("istio_ca_answer", istio_ca_answer),
    #[cfg(feature = "token-review")]
    ("token_review", token_review),
    #[cfg(feature = "sds")]
    ("secret", secret),
];

/// SPIFFE IDs and trust domains; what is accepted is made of its parts and parses again to itself.
pub fn spiffe_id(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let _ = TrustDomain::parse_kubernetes(text);
    let Ok(id) = SpiffeIdRef::parse(text) else { return };
    let segments: Vec<&str> = id.segments().collect();
    let rebuilt = SpiffeId::from_segments(&id.trust_domain(), &segments);
    assert_eq!(rebuilt.as_ref().map(SpiffeId::as_str), Ok(text));
}

/// Certificates, DER; a leaf that is accepted is never also a signing certificate.
pub fn certificate(bytes: &[u8]) {
    let bundles = BundleSet::new();
    let now = WallClock::system().unix_time();
    let der = CertificateDer::from(bytes);
    let refused = verify_chain(&der, std::slice::from_ref(&der), &bundles, PeerUsage::Client, now);
    assert!(refused.is_err(), "nobody is trusted");
    let Ok(facts) = CertificateFacts::read(bytes) else { return };
    assert!(check_leaf(&facts).is_err() || check_signer(&facts).is_err());
}

/// PEM of certificates and keys; certificates that are accepted survive being written again.
pub fn pem(bytes: &[u8]) {
    let _ = private_key_from_pem(bytes);
    let _ = Credential::svid_from_pem(bytes, bytes);
    let Ok(certificates) = certificates_from_pem(bytes) else { return };
    let again = certificates_to_pem(&certificates);
    if again.len() <= MAX_PEM_BYTES {
        assert_eq!(certificates_from_pem(again.as_bytes()), Ok(certificates));
    }
}

/// Certificate requests, PEM and DER.
pub fn certificate_request(bytes: &[u8]) {
    let _ = CertificateRequest::from_der(bytes);
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = CertificateRequest::from_pem(text);
    }
}

/// Tokens and key sets; nothing verifies with no keys.
pub fn token(bytes: &[u8]) {
    if let Ok(keys) = JwkSet::from_json(bytes) {
        assert_eq!(JwkSet::from_json(keys.to_json().as_bytes()), Ok(keys));
    }
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let Ok(token) = UnverifiedToken::parse(text) else { return };
    assert!(token.verify(&JwkSet::default(), Algorithm::JWT_SVID).is_err());
}

/// SPIFFE bundle documents; what is accepted survives being written again.
pub fn bundle_json(bytes: &[u8]) {
    let Ok(domain) = TrustDomain::parse("td.example") else { return };
    let Ok(bundle) = TrustBundle::from_json(domain.clone(), bytes) else { return };
    let again = TrustBundle::from_json(domain, bundle.to_json().as_bytes());
    assert_eq!(again.as_ref().map(TrustBundle::roots), Ok(bundle.roots()));
}

/// Certificates one after the other, as the Workload API sends them; nothing is lost.
pub fn workload_api_ders(bytes: &[u8]) {
    if let Ok(certificates) = crate::workload_api::split(bytes, 16) {
        let joined: Vec<u8> = certificates.iter().flat_map(|c| c.iter().copied()).collect();
        assert_eq!(joined, bytes);
    }
}

/// The Workload API's message of SVIDs and bundles; what is accepted is an SVID with its own trust domain's bundle.
pub fn workload_api_message(bytes: &[u8]) {
    if let Ok(context) = crate::workload_api::read_message(bytes) {
        let id = context.credential.id().map(SpiffeId::trust_domain);
        assert!(id.is_some_and(|domain| context.bundles.get(domain.as_str()).is_some()));
    }
}

/// Revocation lists, DER and PEM; what is accepted can be asked about any serial.
pub fn crl(bytes: &[u8]) {
    let Ok(domain) = TrustDomain::parse("td.example") else { return };
    let mut bundle = TrustBundle::empty(domain);
    if let Ok(ders) = crls_from_pem(bytes) {
        let _ = bundle.set_crls(ders);
    }
    if bundle.set_crls([bytes.to_vec()]).is_ok() {
        assert_eq!(bundle.crl_ders().len(), 1);
        let _ = bundle.is_revoked(bytes, "0123456789abcdef");
    }
}

/// The certificate service's answer; what is accepted is a leaf and at least one root, and no more than a chain.
pub fn istio_ca_answer(bytes: &[u8]) {
    let Ok(answer) = prost::Message::decode(bytes) else { return };
    if let Ok(chain) = crate::istio_ca::chain_of(&answer) {
        assert!((2..=MAX_CHAIN).contains(&chain.len()));
    }
}

/// An API server's verdict on a token; who is accepted has a SPIFFE ID or a precise reason why not.
#[cfg(feature = "token-review")]
pub fn token_review(bytes: &[u8]) {
    let Ok(domain) = TrustDomain::parse("td.example") else { return };
    if let Ok(account) = crate::auth::judge_token_review(bytes, &["istio-ca".to_owned()]) {
        let _ = SpiffeId::workload(&domain, &account.namespace, &account.service_account);
    }
}

/// A secret of an SDS server.
#[cfg(feature = "sds")]
pub fn secret(bytes: &[u8]) {
    let _ = crate::sds::Secrets::default().take_one(bytes, std::time::SystemTime::now());
}

#[cfg(test)]
mod tests {
    use rand::{Rng, SeedableRng, rngs::SmallRng};
    use rustls::pki_types::{CertificateSigningRequestDer, pem::PemObject};

    use super::*;
    use crate::{
        Ca,
        ca::{IssuancePolicy, KeyKind, RootOptions},
        jwt::JwtSigner,
    };

    /// For each target, inputs that it accepts.
    fn seeds() -> Vec<(&'static str, Vec<u8>)> {
        let domain = TrustDomain::parse("td.example").unwrap();
        let ca = Ca::create(domain, &RootOptions::default(), IssuancePolicy::default(), WallClock::system())
            .unwrap();
        let id = SpiffeId::parse("spiffe://td.example/ns/shop/sa/cart").unwrap();
        let svid = ca.issue_svid(&id, None).unwrap();
        ca.revoke([ca.issue_svid(&id, None).unwrap().serial()]).unwrap();
        let signer = JwtSigner::generate().unwrap();
        let request = CertificateRequest::generate(KeyKind::EcP256, &id).unwrap();
        let mut bundle = ca.bundle();
        bundle.set_jwt_authorities(signer.jwks());
        let (leaf, root) = (svid.chain()[0].to_vec(), bundle.roots()[0].to_vec());
        let request_der = CertificateSigningRequestDer::from_pem_slice(request.csr_pem().as_bytes()).unwrap();
        let answer =
            crate::istio_ca::IstioCertificateResponse { cert_chain: vec![svid.chain_pem(), bundle.to_pem()] };
        #[allow(unused_mut, reason = "each feature adds its own")]
        let mut seeds = vec![
            ("spiffe_id", id.as_str().as_bytes().to_vec()),
            ("certificate", leaf.clone()),
            ("certificate", root.clone()),
            ("workload_api_ders", [leaf, root].concat()),
            ("workload_api_message", crate::workload_api::message_of(&svid, &bundle)),
            ("pem", [svid.chain_pem().as_bytes(), svid.key().to_pem().as_bytes()].concat()),
            ("certificate_request", request.csr_pem().as_bytes().to_vec()),
            ("certificate_request", request_der.to_vec()),
            ("token", signer.sign(&serde_json::json!({"sub": id, "exp": 1})).unwrap().into_bytes()),
            ("token", signer.jwks().to_json().into_bytes()),
            ("bundle_json", bundle.to_json().into_bytes()),
            ("crl", bundle.crl_ders()[0].to_vec()),
            ("istio_ca_answer", prost::Message::encode_to_vec(&answer)),
        ];
        #[cfg(feature = "token-review")]
        seeds.push((
            "token_review",
            serde_json::json!({"status": {"authenticated": true, "audiences": ["istio-ca"], "user": {
                "username": "system:serviceaccount:shop:cart",
                "groups": ["system:serviceaccounts"],
                "extra": {
                    "authentication.kubernetes.io/pod-name": ["cart-0"],
                    "authentication.kubernetes.io/pod-uid": ["uid-0"],
                },
            }}})
            .to_string()
            .into_bytes(),
        ));
        #[cfg(feature = "sds")]
        seeds.push((
            "secret",
            prost::Message::encode_to_vec(&crate::sds::validation_secret("ROOTCA", &bundle)),
        ));
        seeds
    }

    #[test]
    fn every_target_has_a_seed() {
        for (name, _) in TARGETS {
            assert!(seeds().iter().any(|(target, _)| target == name), "{name}");
        }
    }

    /// A short run without a fuzzer: every target on every seed, and on a few thousand mutations of them.
    #[test]
    fn targets_hold_on_seeds_and_their_mutations() {
        let mut random = SmallRng::seed_from_u64(1);
        for (_, seed) in seeds() {
            for round in 0..400 {
                let mut bytes = seed.clone();
                for _ in 0..round % 8 {
                    let at = random.random_range(0..bytes.len());
                    match random.random_range(0..4) {
                        0 => bytes[at] = random.random(),
                        1 => bytes[at] ^= 1 << random.random_range(0..8),
                        2 => bytes.truncate(at.max(1)),
                        _ => bytes.insert(at, random.random()),
                    }
                }
                for (_, target) in TARGETS {
                    target(&bytes);
                }
            }
        }
    }
}
