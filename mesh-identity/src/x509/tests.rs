use std::time::Duration;

use rcgen::{CertificateParams, KeyPair, SanType};

use super::*;
use crate::{
    Ca, SpiffeId, TrustDomain, WallClock,
    bundle::BundleSet,
    ca::{IssuancePolicy, RootOptions},
};

fn credential() -> (Ca, Credential) {
    let domain = TrustDomain::parse("td.example").unwrap();
    let ca =
        Ca::create(domain, &RootOptions::default(), IssuancePolicy::default(), WallClock::system()).unwrap();
    let credential = ca.issue_svid(&SpiffeId::parse("spiffe://td.example/web").unwrap(), None).unwrap();
    (ca, credential)
}

#[test]
fn pem_goes_there_and_back() {
    let (_, credential) = credential();
    let again =
        Credential::svid_from_pem(credential.chain_pem().as_bytes(), credential.key().to_pem().as_bytes());
    let again = again.unwrap();
    assert_eq!(again.chain(), credential.chain());
    assert_eq!(again.key().secret_der(), credential.key().secret_der());
    assert_eq!(again.id().unwrap().as_str(), "spiffe://td.example/web");
}

#[test]
fn a_key_of_somebody_else_is_refused() {
    let (_, one) = credential();
    let (_, two) = credential();
    let mixed = Credential::svid(one.chain().to_vec(), two.key().clone());
    assert_eq!(mixed.unwrap_err(), X509Error::KeyMismatch);
}

#[test]
fn secrets_are_not_shown() {
    let (_, credential) = credential();
    let shown = format!("{credential:?} {:?}", credential.key());
    let key: String = credential.key().to_pem().lines().nth(1).unwrap().chars().take(16).collect();
    assert!(shown.contains("redacted") || !shown.contains(&key), "{shown}");
    assert!(!shown.contains("PRIVATE"), "{shown}");
}

#[test]
fn ten_megabytes_of_pem_are_not_read() {
    let (_, credential) = credential();
    let one = credential.chain_pem();
    let huge = one.repeat((10 << 20) / one.len() + 1);
    let refused = certificates_from_pem(huge.as_bytes()).unwrap_err();
    assert_eq!(refused, X509Error::PemTooLarge { bytes: huge.len() });
    assert_eq!(private_key_from_pem(huge.as_bytes()).unwrap_err().reason(), "too_large");
}

#[test]
fn ten_thousand_names_are_refused() {
    let mut params = CertificateParams::default();
    for n in 0..10_000 {
        params.subject_alt_names.push(SanType::DnsName(format!("n{n}.x").try_into().unwrap()));
    }
    let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
    assert_eq!(CertificateFacts::read(certificate.der()).unwrap_err().reason(), "too_large");
    params.subject_alt_names.truncate(200);
    let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
    let refused = CertificateFacts::read(certificate.der()).unwrap_err();
    assert_eq!(refused, X509Error::TooManySans { count: 200 });
}

#[test]
fn a_chain_of_a_thousand_is_refused() {
    let (ca, credential) = credential();
    let long = vec![credential.chain()[0].clone(); 1000];
    let refused = Credential::svid(long.clone(), credential.key().clone()).unwrap_err();
    assert_eq!(refused, X509Error::ChainTooLong { count: 1000 });
    let now = WallClock::system().unix_time();
    let refused = verify_chain(&long[0], &long[1..], &ca.bundle_set(), PeerUsage::Client, now).unwrap_err();
    assert_eq!(refused, X509Error::ChainTooLong { count: 1000 });
}

#[test]
fn many_roots_and_the_right_one_last_is_fine() {
    let (ca, credential) = credential();
    let mut bundle = crate::TrustBundle::empty(ca.trust_domain().clone());
    for _ in 0..20 {
        bundle.add_root(self::credential().0.bundle().roots()[0].clone()).unwrap();
    }
    bundle.add_root(ca.bundle().roots()[0].clone()).unwrap();
    let now = WallClock::system().unix_time();
    let bundles = BundleSet::from(bundle);
    assert!(verify_chain(&credential.chain()[0], &[], &bundles, PeerUsage::Server, now).is_ok());
}

#[test]
fn key_texts_in_all_forms() {
    let texts: &[(&str, Option<&str>)] = &[
        ("", Some("key")),
        ("-----BEGIN PRIVATE KEY-----\n", Some("malformed")),
        ("-----BEGIN PRIVATE KEY-----\n!!!\n-----END PRIVATE KEY-----\n", Some("malformed")),
    ];
    for (text, reason) in texts {
        assert_eq!(private_key_from_pem(text.as_bytes()).err().map(|e| e.reason()), *reason, "{text:?}");
    }
    let two = format!("{}{}", *credential().1.key().to_pem(), *credential().1.key().to_pem());
    assert_eq!(private_key_from_pem(two.as_bytes()).unwrap_err(), X509Error::ManyKeys { count: 2 });
}

#[test]
fn serials_are_written_without_the_sign_byte() {
    assert_eq!(hex(&[0, 0x80, 1]), "8001");
    assert_eq!(hex(&[0x7f]), "7f");
    assert_eq!(hex(&[0]), "00");
}

#[test]
fn lifetimes() {
    let (_, credential) = credential();
    assert_eq!(credential.lifetime(), Duration::from_secs(24 * 3600 + 120));
    assert!(!credential.is_valid_at(credential.not_after() + Duration::from_secs(1)));
}
