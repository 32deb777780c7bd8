use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose, SanType,
    date_time_ymd,
};
use rustls::pki_types::CertificateDer;

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
    assert!(shown.contains("PrivateKey(redacted)"), "{shown}");
    let bytes: Vec<String> = credential.key().secret_der().iter().take(8).map(ToString::to_string).collect();
    for secret in ["PRIVATE", key.as_str(), &bytes.join(", "), &hex(&credential.key().secret_der()[..8])] {
        assert!(!shown.contains(secret), "{shown} contains {secret}");
    }
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

/// A signing certificate of its own name, valid until the first day of `last_year`.
fn signing(name: &str, last_year: i32) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = date_time_ymd(2020, 1, 1);
    params.not_after = date_time_ymd(last_year, 1, 1);
    params
}

/// A leaf under two intermediates; root, far and near intermediate, leaf with its key.
struct Deep {
    root: CertifiedIssuer<'static, KeyPair>,
    far: CertificateDer<'static>,
    near: CertificateDer<'static>,
    leaf: CertificateDer<'static>,
    key: PrivateKey,
}

impl Deep {
    fn new() -> Self {
        let new_key = || KeyPair::generate().unwrap();
        let root = CertifiedIssuer::self_signed(signing("root", 2090), new_key()).unwrap();
        let far = CertifiedIssuer::signed_by(signing("far", 2060), new_key(), &root).unwrap();
        let near = CertifiedIssuer::signed_by(signing("near", 2080), new_key(), &far).unwrap();
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI("spiffe://td.example/web".try_into().unwrap())];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.not_before = date_time_ymd(2021, 1, 1);
        params.not_after = date_time_ymd(2070, 1, 1);
        let key = new_key();
        let leaf = params.signed_by(&key, &near).unwrap().der().clone();
        let (far, near) = (far.der().clone(), near.der().clone());
        Self { root, far, near, leaf, key: PrivateKey::from_pkcs8(key.serialize_der()) }
    }
}

#[test]
fn a_chain_is_in_order_and_roots_may_follow() {
    let Deep { root, far, near, leaf, key } = Deep::new();
    let root = root.der().clone();
    let stranger = CertifiedIssuer::self_signed(signing("another root", 2090), KeyPair::generate().unwrap());
    let stranger = stranger.unwrap().der().clone();
    let cases: &[(&[&CertificateDer<'static>], Option<usize>)] = &[
        (&[&leaf], None),
        (&[&leaf, &near, &far], None),
        (&[&leaf, &near, &far, &root], None),
        (&[&leaf, &near, &far, &root, &stranger], None),
        (&[&leaf, &near, &far, &stranger, &root], None),
        (&[&leaf, &far, &near], Some(1)),
        (&[&leaf, &near, &near], Some(2)),
        (&[&leaf, &root, &near], Some(2)),
        (&[&leaf, &far], Some(1)),
    ];
    for (number, (chain, wrong)) in cases.iter().enumerate() {
        let chain: Vec<_> = chain.iter().map(|one| (*one).clone()).collect();
        let outcome = Credential::svid(chain, key.clone()).map(|_| ());
        assert_eq!(
            outcome,
            wrong.map_or(Ok(()), |place| Err(X509Error::ChainOrder { place })),
            "case {number}"
        );
    }
}

#[test]
fn a_peers_validity_is_that_of_its_whole_path() {
    let Deep { root, far, near, leaf, .. } = Deep::new();
    let domain = TrustDomain::parse("td.example").unwrap();
    let bundles = BundleSet::from(crate::TrustBundle::new(domain, [root.der().clone()]).unwrap());
    let now = WallClock::system().unix_time();
    // One that ends sooner but is not above the leaf does not count.
    let beside =
        CertifiedIssuer::signed_by(signing("beside", 2050), KeyPair::generate().unwrap(), &root).unwrap();
    let chain = [leaf, near, beside.der().clone(), far];
    let verified = verify_chain(&chain[0], &chain[1..], &bundles, PeerUsage::Client, now).unwrap();
    let year = |year| std::time::SystemTime::from(date_time_ymd(year, 1, 1));
    assert_eq!((verified.not_before, verified.not_after), (year(2021), year(2060)));
    assert_eq!(PeerIdentity::of_verified_chain(&chain).unwrap(), verified);
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
