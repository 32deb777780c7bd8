use std::{
    collections::BTreeSet,
    time::{Duration, SystemTime},
};

use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, SanType};

use super::*;
use crate::x509::{CertificateFacts, PeerIdentity, PeerUsage, verify_chain};

const HOUR: Duration = Duration::from_secs(3600);

fn domain() -> TrustDomain {
    TrustDomain::parse("cluster.local").unwrap()
}

fn cart() -> SpiffeId {
    SpiffeId::parse("spiffe://cluster.local/ns/shop/sa/cart").unwrap()
}

fn new_ca() -> Ca {
    Ca::create(domain(), &RootOptions::default(), IssuancePolicy::default(), WallClock::system()).unwrap()
}

fn csr(kind: KeyKind) -> String {
    CertificateRequest::generate(kind, &cart()).unwrap().csr_pem().to_owned()
}

fn sign(ca: &Ca, csr_pem: &str, lifetime: Option<Duration>) -> Result<Issued, CaError> {
    ca.sign(&SigningRequest { csr_pem, id: &cart(), lifetime })
}

fn verified(ca: &Ca, issued: &Issued) -> Result<PeerIdentity, X509Error> {
    let (leaf, intermediates) = issued.chain.split_first().unwrap();
    verify_chain(leaf, intermediates, &ca.bundle_set(), PeerUsage::Client, ca.clock().unix_time())
}

#[test]
fn each_allowed_key_kind_gives_an_svid_that_verifies() {
    let ca = new_ca();
    for kind in [KeyKind::EcP256, KeyKind::EcP384, KeyKind::Ed25519] {
        let issued = sign(&ca, &csr(kind), None).unwrap();
        assert_eq!(verified(&ca, &issued).unwrap().id, cart(), "{kind}");
    }
}

#[test]
fn roots_of_other_key_kinds_sign_too() {
    for key in [KeyKind::EcP384, KeyKind::Ed25519] {
        let options = RootOptions { key, ..RootOptions::default() };
        let ca = Ca::create(domain(), &options, IssuancePolicy::default(), WallClock::system()).unwrap();
        let issued = sign(&ca, &csr(KeyKind::EcP256), None).unwrap();
        assert_eq!(verified(&ca, &issued).unwrap().id, cart(), "{key}");
    }
}

#[test]
fn what_a_request_asks_for_is_ignored() {
    let ca = new_ca();
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "admin");
    params.subject_alt_names = vec![
        SanType::URI("spiffe://cluster.local/ns/kube-system/sa/admin".try_into().unwrap()),
        SanType::DnsName("kubernetes.default.svc".try_into().unwrap()),
    ];
    params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::CodeSigning];
    let greedy = params.serialize_request(&key).unwrap().pem().unwrap();
    let issued = sign(&ca, &greedy, None).unwrap();
    let facts = CertificateFacts::read(&issued.chain[0]).unwrap();
    assert_eq!(facts.uri_sans, [cart().as_str()]);
    assert!(facts.dns_sans.is_empty() && !facts.is_ca);
    assert_eq!(facts.extended_key_usage, Some((true, true)));
    assert!(!facts.key_usage.unwrap().key_cert_sign);
}

#[test]
fn requests_that_are_refused() {
    let ca = new_ca();
    let mut tampered = rcgen_der(&csr(KeyKind::EcP256));
    let last = tampered.len() - 1;
    tampered[last] ^= 1;
    let cases: &[(&str, Vec<u8>)] = &[
        ("request", b"nonsense".to_vec()),
        ("request", vec![0; 100]),
        ("request", vec![0x30; MAX_CSR_BYTES + 1]),
        ("request_signature", tampered),
    ];
    for (reason, der) in cases {
        assert_eq!(CertificateRequest::from_der(der).unwrap_err().reason(), *reason);
    }
    assert_eq!(sign(&ca, &"x".repeat(MAX_CSR_BYTES + 1), None).unwrap_err().reason(), "request");
    let only_p384 = IssuancePolicy { key_kinds: vec![KeyKind::EcP384], ..IssuancePolicy::default() };
    let ca = Ca::create(domain(), &RootOptions::default(), only_p384, WallClock::system()).unwrap();
    assert_eq!(sign(&ca, &csr(KeyKind::EcP256), None).unwrap_err(), CaError::Key { kind: "P-256".into() });
}

fn rcgen_der(pem: &str) -> Vec<u8> {
    use rustls::pki_types::{CertificateSigningRequestDer, pem::PemObject};
    CertificateSigningRequestDer::from_pem_slice(pem.as_bytes()).unwrap().to_vec()
}

#[test]
fn lifetimes_follow_the_policy() {
    let ca = new_ca();
    let now = SystemTime::now();
    for (asked, given) in [(None, 24 * HOUR), (Some(Duration::ZERO), 24 * HOUR), (Some(HOUR), HOUR)] {
        let issued = sign(&ca, &csr(KeyKind::EcP256), asked).unwrap();
        let facts = CertificateFacts::read(&issued.chain[0]).unwrap();
        let error = facts.not_after.duration_since(now + given).unwrap_or_else(|e| e.duration());
        assert!(error < Duration::from_secs(5), "{asked:?}: {error:?}");
        let backdated = now.duration_since(facts.not_before).unwrap();
        assert!((Duration::from_secs(115)..Duration::from_secs(125)).contains(&backdated), "{backdated:?}");
    }
    let refused = sign(&ca, &csr(KeyKind::EcP256), Some(91 * 24 * HOUR)).unwrap_err();
    assert!(refused.is_callers_fault() && refused.reason() == "lifetime", "{refused}");
}

#[test]
fn a_certificate_never_outlives_its_issuer_and_an_expiring_issuer_refuses() {
    let start = SystemTime::now();
    let options = RootOptions { lifetime: 2 * HOUR, ..RootOptions::default() };
    let at = |offset: Duration| WallClock::from_fn(move || start + offset);
    let ca = Ca::create(domain(), &options, IssuancePolicy::default(), at(Duration::ZERO)).unwrap();
    let root = CertificateFacts::read(&ca.bundle().roots()[0]).unwrap();
    let issued = sign(&ca, &csr(KeyKind::EcP256), None).unwrap();
    assert_eq!(CertificateFacts::read(&issued.chain[0]).unwrap().not_after, root.not_after);

    let later =
        Ca::load(domain(), &ca.to_pem(), IssuancePolicy::default(), at(2 * HOUR - Duration::from_secs(599)));
    let refused = sign(&later.unwrap(), &csr(KeyKind::EcP256), None).unwrap_err();
    assert_eq!(refused.reason(), "expiring");
    let over = Ca::load(domain(), &ca.to_pem(), IssuancePolicy::default(), at(3 * HOUR)).unwrap_err();
    assert_eq!(over.reason(), "expired");
}

#[test]
fn serials_are_random_and_long() {
    let ca = new_ca();
    let request = csr(KeyKind::EcP256);
    let serials: BTreeSet<_> = (0..50).map(|_| sign(&ca, &request, None).unwrap().serial).collect();
    assert_eq!(serials.len(), 50, "the same key and request still get a new serial");
    assert!(serials.iter().all(|serial| serial.len() == 32), "16 bytes: {serials:?}");
}

#[test]
fn only_its_own_trust_domain() {
    let ca = new_ca();
    let foreign = SpiffeId::parse("spiffe://elsewhere/ns/a/sa/b").unwrap();
    let request = csr(KeyKind::EcP256);
    let refused = ca.sign(&SigningRequest { csr_pem: &request, id: &foreign, lifetime: None }).unwrap_err();
    assert_eq!(refused.reason(), "identity");
    let bare = domain().id();
    let refused = ca.sign(&SigningRequest { csr_pem: &request, id: &bare, lifetime: None }).unwrap_err();
    assert_eq!(refused, CaError::NoPath);
}

#[test]
fn a_stored_ca_goes_on_where_it_was() {
    let ca = new_ca();
    let before = sign(&ca, &csr(KeyKind::EcP256), None).unwrap();
    let again = Ca::load(domain(), &ca.to_pem(), IssuancePolicy::default(), WallClock::system()).unwrap();
    assert_eq!(again.bundle(), ca.bundle());
    let after = sign(&again, &csr(KeyKind::EcP256), None).unwrap();
    assert!(verified(&again, &before).is_ok() && verified(&ca, &after).is_ok());
    assert!(!format!("{:?}", ca.to_pem()).contains("PRIVATE"));
}

#[test]
fn a_plugged_in_intermediate_signs_under_its_root() {
    let root = CertifiedRoot::new();
    let pem = root.intermediate();
    let ca = Ca::load(domain(), &pem, IssuancePolicy::default(), WallClock::system()).unwrap();
    let issued = sign(&ca, &csr(KeyKind::EcP256), None).unwrap();
    assert_eq!(issued.chain.len(), 2);
    assert_eq!(issued.roots, [root.0.der().clone()]);
    assert!(verified(&ca, &issued).is_ok());
    let texts = issued.to_pem_list();
    assert_eq!(texts.len(), 3);
    assert_eq!(texts[2], root.0.pem().replace("\r\n", "\n"));
    let reloaded = Ca::load(domain(), &ca.to_pem(), IssuancePolicy::default(), WallClock::system()).unwrap();
    assert!(verified(&reloaded, &sign(&reloaded, &csr(KeyKind::EcP256), None).unwrap()).is_ok());

    let stranger = CaPem { roots: CertifiedRoot::new().0.pem(), ..pem.clone() };
    let refused = Ca::load(domain(), &stranger, IssuancePolicy::default(), WallClock::system()).unwrap_err();
    assert_eq!(refused.reason(), "unknown_issuer");
    let wrong_key = CaPem { key: new_ca().to_pem().key, ..pem };
    let refused = Ca::load(domain(), &wrong_key, IssuancePolicy::default(), WallClock::system()).unwrap_err();
    assert_eq!(refused.reason(), "key");
}

#[test]
fn a_plugged_in_signer_can_be_replaced_by_another() {
    let (one, two) = (CertifiedRoot::new(), CertifiedRoot::new());
    let ca = Ca::load(domain(), &one.intermediate(), IssuancePolicy::default(), WallClock::system()).unwrap();
    let before = sign(&ca, &csr(KeyKind::EcP256), None).unwrap();

    ca.replace_signer(&one.intermediate()).unwrap();
    assert_eq!(ca.root_rotation(), RootRotation::Stable, "another intermediate of the same root");
    assert_eq!(ca.bundle().roots().len(), 1);

    // Another root: everybody learns it first.
    let old_bundle = ca.bundle_set();
    ca.replace_signer(&two.intermediate()).unwrap();
    assert_eq!(ca.root_rotation(), RootRotation::Prepared);
    assert_eq!(ca.bundle().roots().len(), 2);
    let during = sign(&ca, &csr(KeyKind::EcP256), None).unwrap();
    let (leaf, intermediates) = during.chain.split_first().unwrap();
    let by_old_bundle =
        verify_chain(leaf, intermediates, &old_bundle, PeerUsage::Client, ca.clock().unix_time());
    assert_eq!(by_old_bundle.unwrap().id, cart(), "who has not renewed yet accepts the leaves of now");

    ca.activate_root().unwrap();
    assert_eq!(ca.root_rotation(), RootRotation::Activated);
    let after = sign(&ca, &csr(KeyKind::EcP256), None).unwrap();
    assert_eq!(after.roots.last(), Some(two.0.der()));
    assert!(verified(&ca, &before).is_ok() && verified(&ca, &after).is_ok());
    assert_eq!(ca.replace_signer(&one.intermediate()).unwrap_err().reason(), "rotation");

    ca.retire_root().unwrap();
    assert!(verified(&ca, &before).is_err() && verified(&ca, &after).is_ok());
    let broken = CaPem { certificate: "nothing".into(), ..two.intermediate() };
    assert!(ca.replace_signer(&broken).is_err());
    assert!(verified(&ca, &sign(&ca, &csr(KeyKind::EcP256), None).unwrap()).is_ok());
}

#[test]
fn a_signer_that_waits_gives_way_to_the_next_one_and_its_root_is_forgotten() {
    let (one, two, three) = (CertifiedRoot::new(), CertifiedRoot::new(), CertifiedRoot::new());
    let first = one.intermediate();
    let ca = Ca::load(domain(), &first, IssuancePolicy::default(), WallClock::system()).unwrap();
    ca.replace_signer(&two.intermediate()).unwrap();
    ca.replace_signer(&three.intermediate()).unwrap();
    assert_eq!(ca.root_rotation(), RootRotation::Prepared);
    assert_eq!(ca.bundle().roots(), [one.0.der().clone(), three.0.der().clone()]);
    ca.replace_signer(&first).unwrap();
    assert_eq!(ca.root_rotation(), RootRotation::Stable);
    assert_eq!(ca.bundle().roots(), [one.0.der().clone()]);
    ca.prepare_root(&RootOptions::default()).unwrap();
    assert_eq!(ca.replace_signer(&first).unwrap_err().reason(), "rotation", "a rotation that somebody began");
}

#[test]
fn a_new_root_that_is_trusted_in_advance_signs_at_once() {
    let (one, two) = (CertifiedRoot::new(), CertifiedRoot::new());
    let both = format!("{}{}", one.0.pem(), two.0.pem());
    let first = CaPem { roots: both.clone(), ..one.intermediate() };
    let ca = Ca::load(domain(), &first, IssuancePolicy::default(), WallClock::system()).unwrap();
    let before = sign(&ca, &csr(KeyKind::EcP256), None).unwrap();
    ca.replace_signer(&CaPem { roots: both, ..two.intermediate() }).unwrap();
    assert_eq!(ca.root_rotation(), RootRotation::Stable, "the files trust both: nothing is to be retired");
    let after = sign(&ca, &csr(KeyKind::EcP256), None).unwrap();
    assert_eq!(after.roots.last(), Some(two.0.der()));
    assert!(verified(&ca, &before).is_ok() && verified(&ca, &after).is_ok());
    ca.revoke([&before.serial]).unwrap();
    assert_eq!(verified(&ca, &before).unwrap_err(), X509Error::Revoked);
    assert!(verified(&ca, &after).is_ok());
}

#[test]
fn leaves_of_a_replaced_signer_can_be_revoked_until_the_last_is_over() {
    let ahead = Arc::new(std::sync::atomic::AtomicU64::new(0));
    let (hours, start) = (ahead.clone(), SystemTime::now());
    let clock =
        WallClock::from_fn(move || start + HOUR * hours.load(std::sync::atomic::Ordering::Relaxed) as u32);
    let root = CertifiedRoot::new();
    let policy = IssuancePolicy { max_lifetime: 24 * HOUR, ..IssuancePolicy::default() };
    let ca = Ca::load(domain(), &root.intermediate(), policy, clock).unwrap();
    let (early, old) =
        (sign(&ca, &csr(KeyKind::EcP256), None).unwrap(), sign(&ca, &csr(KeyKind::EcP256), None).unwrap());
    ca.revoke([&early.serial]).unwrap();
    // The same name, another key: the list of before is not this signer's.
    ca.replace_signer(&root.intermediate()).unwrap();
    let new = sign(&ca, &csr(KeyKind::EcP256), None).unwrap();
    assert_eq!(
        CertificateFacts::read(&new.chain[1]).unwrap().issuer,
        CertificateFacts::read(&old.chain[1]).unwrap().issuer
    );
    assert!(verified(&ca, &new).is_ok() && verified(&ca, &old).is_ok());
    assert_eq!(verified(&ca, &early).unwrap_err(), X509Error::Revoked);
    let peer = verified(&ca, &old).unwrap();

    ca.revoke([&old.serial]).unwrap();
    assert_eq!(verified(&ca, &old).unwrap_err(), X509Error::Revoked);
    assert_eq!(verified(&ca, &early).unwrap_err(), X509Error::Revoked);
    assert!(ca.bundle_set().is_revoked(&peer));
    assert!(verified(&ca, &new).is_ok());
    assert_eq!(ca.bundle().crls().len(), 2);

    ahead.store(25, std::sync::atomic::Ordering::Relaxed);
    ca.revoke([&old.serial]).unwrap();
    assert_eq!(ca.bundle().crls().len(), 1, "no certificate of the former signer is left");
}

#[tokio::test(start_paused = true)]
async fn a_plugged_in_ca_follows_its_files_and_keeps_what_is_good() {
    const INTERVAL: Duration = Duration::from_secs(5);
    const GRACE: Duration = Duration::from_secs(24 * 3600);
    let directory = tempfile::tempdir().unwrap();
    let files = CaFiles::in_directory(directory.path());
    let write = |pem: &CaPem| {
        std::fs::write(&files.key, pem.key.as_bytes()).unwrap();
        std::fs::write(&files.certificate, &pem.certificate).unwrap();
        std::fs::write(&files.chain, &pem.chain).unwrap();
        std::fs::write(&files.roots, &pem.roots).unwrap();
    };
    let (one, two, three) = (CertifiedRoot::new(), CertifiedRoot::new(), CertifiedRoot::new());
    let first = one.intermediate();
    write(&first);
    let loaded = files.read().await.unwrap();
    let ca = Arc::new(Ca::load(domain(), &loaded, IssuancePolicy::default(), WallClock::system()).unwrap());
    let follower = ca.follow_files(files.clone(), &loaded, INTERVAL);
    let mut statuses = follower.watch_status();
    let mut next = async || {
        tokio::time::timeout(INTERVAL * 3, statuses.changed()).await.expect("a change of status").unwrap();
        let status = statuses.borrow_and_update().clone();
        (status.reloads, status.refusals, status.last_error.map(|error| error.reason()))
    };
    let signs_with = |pem: &CaPem| {
        let issued = sign(&ca, &csr(KeyKind::EcP256), None).unwrap();
        assert!(verified(&ca, &issued).is_ok());
        certificates_to_pem([&issued.chain[1]]) == pem.certificate.replace("\r\n", "\n")
    };
    tokio::time::sleep(INTERVAL * 3).await;
    assert_eq!(follower.status().reloads, 0, "nothing changed");

    let second = one.intermediate();
    write(&second);
    assert_eq!(next().await, (1, 0, None));
    assert!(signs_with(&second));
    assert_eq!(ca.root_rotation(), RootRotation::Stable);

    // Half written: the new key beside the old certificate. Said once, tried again all the time.
    let other_root = two.intermediate();
    std::fs::write(&files.key, other_root.key.as_bytes()).unwrap();
    assert_eq!(next().await, (1, 1, Some("key")));
    tokio::time::sleep(INTERVAL * 10).await;
    assert_eq!(follower.status().refusals, 1);
    for (content, reason) in [
        (Vec::new(), "malformed"),
        (b"-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n".to_vec(), "malformed"),
        (vec![0xff; 10], "pem"),
        (vec![b'x'; 2 << 20], "too_large"),
    ] {
        std::fs::write(&files.certificate, content).unwrap();
        assert_eq!(next().await.2, Some(reason));
    }
    std::fs::remove_file(&files.certificate).unwrap();
    assert_eq!(next().await.2, Some("file"));
    assert!(signs_with(&second), "bad files change nothing");
    write(&second);
    assert_eq!(next().await, (1, 6, None), "the files are again what is in use");

    // Another root: trusted at once; its signer waits until everybody has had the time to learn it.
    write(&other_root);
    assert_eq!(next().await, (1, 6, None));
    assert!(follower.status().waiting);
    assert_eq!((ca.root_rotation(), ca.bundle().roots().len()), (RootRotation::Prepared, 2));
    tokio::time::sleep(GRACE - INTERVAL * 2).await;
    assert!(signs_with(&second));
    assert_eq!(next().await, (2, 6, None));
    assert!(signs_with(&other_root) && !follower.status().waiting);
    assert_eq!((ca.root_rotation(), ca.bundle().roots().len()), (RootRotation::Activated, 2));

    let last = three.intermediate();
    write(&last);
    assert_eq!(next().await, (2, 7, Some("rotation")), "both roots are still needed");
    ca.retire_root().unwrap();
    assert_eq!(next().await, (2, 7, None), "taken by itself once it can be");
    assert!(follower.status().waiting && signs_with(&other_root));
    write(&other_root);
    assert_eq!(next().await, (3, 7, None));
    assert_eq!(
        (ca.root_rotation(), ca.bundle().roots().len()),
        (RootRotation::Stable, 1),
        "and given up again"
    );
}

#[tokio::test(start_paused = true)]
async fn a_signer_about_to_expire_does_not_hold_up_the_next_one() {
    const INTERVAL: Duration = Duration::from_secs(5);
    let directory = tempfile::tempdir().unwrap();
    let files = CaFiles::in_directory(directory.path());
    let clock = WallClock::following_tokio(SystemTime::now());
    let options = RootOptions { lifetime: HOUR, ..RootOptions::default() };
    let ca = Ca::create(domain(), &options, IssuancePolicy::default(), clock.clone()).unwrap();
    let (loaded, ca) = (ca.to_pem(), Arc::new(ca));
    let other = Ca::create(domain(), &RootOptions::default(), IssuancePolicy::default(), clock).unwrap();
    let pem = other.to_pem();
    std::fs::write(&files.key, pem.key.as_bytes()).unwrap();
    std::fs::write(&files.certificate, &pem.certificate).unwrap();
    std::fs::write(&files.roots, &pem.roots).unwrap();
    let _follower = ca.follow_files(files, &loaded, INTERVAL);
    tokio::time::sleep(HOUR / 2).await;
    assert_eq!(ca.root_rotation(), RootRotation::Prepared);
    // Ten minutes before its end the old one may sign no more, hours before the end of the grace.
    tokio::time::sleep(HOUR / 3 + INTERVAL * 2).await;
    assert_eq!(ca.root_rotation(), RootRotation::Activated);
    assert!(verified(&ca, &sign(&ca, &csr(KeyKind::EcP256), None).unwrap()).is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_plugged_in_root_retires_the_former_one_when_its_last_certificate_is_over() {
    const INTERVAL: Duration = Duration::from_secs(60);
    let directory = tempfile::tempdir().unwrap();
    let files = CaFiles::in_directory(directory.path());
    let clock = WallClock::following_tokio(SystemTime::now());
    let mut policy = IssuancePolicy::default().with_default_lifetime(HOUR);
    policy.max_lifetime = HOUR * 3;
    let create = |policy| Ca::create(domain(), &RootOptions::default(), policy, clock.clone()).unwrap();
    let ca = Arc::new(create(policy));
    let write = |pem: &CaPem| {
        std::fs::write(&files.key, pem.key.as_bytes()).unwrap();
        std::fs::write(&files.certificate, &pem.certificate).unwrap();
        std::fs::write(&files.roots, &pem.roots).unwrap();
    };
    let _follower = ca.follow_files(files.clone(), &ca.to_pem(), INTERVAL);
    write(&create(IssuancePolicy::default()).to_pem());
    // The last one of the former root, with the longest lifetime, just before the new one signs.
    tokio::time::sleep(HOUR).await;
    assert_eq!(ca.root_rotation(), RootRotation::Prepared);
    let last = sign(&ca, &csr(KeyKind::EcP256), Some(HOUR * 3)).unwrap();
    tokio::time::sleep(HOUR * 3).await;
    assert_eq!(ca.root_rotation(), RootRotation::Activated);
    assert_eq!(ca.bundle().roots().len(), 2);
    assert!(ca.clock().now() + INTERVAL >= last.not_after, "the certificate is nearly over");
    tokio::time::sleep(INTERVAL * 4).await;
    assert!(ca.clock().now() > last.not_after);
    assert_eq!((ca.root_rotation(), ca.bundle().roots().len()), (RootRotation::Stable, 1));

    // The next root is welcome.
    write(&create(IssuancePolicy::default()).to_pem());
    tokio::time::sleep(INTERVAL * 2).await;
    assert_eq!(ca.root_rotation(), RootRotation::Prepared);
}

#[test]
fn a_ca_whose_time_has_not_come_is_not_loaded() {
    let pem = new_ca().to_pem();
    let early = WallClock::from_fn(|| SystemTime::now() - HOUR);
    let refused = Ca::load(domain(), &pem, IssuancePolicy::default(), early).unwrap_err();
    assert_eq!(refused.reason(), "not_yet_valid");
}

struct CertifiedRoot(rcgen::CertifiedIssuer<'static, KeyPair>);

impl CertifiedRoot {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "corporate root");
        params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        Self(rcgen::CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    fn intermediate(&self) -> CaPem {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "mesh intermediate");
        params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.signed_by(&key, &self.0).unwrap();
        CaPem {
            key: key.serialize_pem().into(),
            certificate: certificate.pem(),
            // As Istio's `cert-chain.pem`: the certificate itself, then its root.
            chain: format!("{}{}", certificate.pem(), self.0.pem()),
            roots: self.0.pem(),
        }
    }
}

#[test]
fn a_root_is_replaced_in_three_steps() {
    let ca = new_ca();
    let old = sign(&ca, &csr(KeyKind::EcP256), None).unwrap();
    let mut bundles = ca.watch_bundle();
    assert_eq!(ca.activate_root().unwrap_err().reason(), "rotation");
    assert_eq!(ca.retire_root().unwrap_err().reason(), "rotation");

    ca.prepare_root(&RootOptions::default()).unwrap();
    assert_eq!(ca.root_rotation(), RootRotation::Prepared);
    assert!(bundles.has_changed().unwrap());
    assert_eq!(bundles.borrow_and_update().roots().len(), 2);
    let during = sign(&ca, &csr(KeyKind::EcP256), None).unwrap();
    assert_eq!(during.roots.last(), old.roots.last(), "the old root still signs, and comes last");
    assert_eq!(during.roots.len(), 2);
    assert!(ca.prepare_root(&RootOptions::default()).is_err());

    ca.activate_root().unwrap();
    assert_eq!(ca.root_rotation(), RootRotation::Activated);
    let new = sign(&ca, &csr(KeyKind::EcP256), None).unwrap();
    assert_ne!(new.roots.last(), old.roots.last());
    assert!(verified(&ca, &old).is_ok() && verified(&ca, &during).is_ok() && verified(&ca, &new).is_ok());

    ca.retire_root().unwrap();
    assert_eq!(ca.root_rotation(), RootRotation::Stable);
    assert_eq!(ca.bundle().roots().len(), 1);
    assert!(verified(&ca, &new).is_ok());
    assert!(verified(&ca, &old).is_err() && verified(&ca, &during).is_err());
}

#[test]
fn revoked_certificates_are_refused_and_others_are_not() {
    let ca = new_ca();
    let bad = sign(&ca, &csr(KeyKind::EcP256), None).unwrap();
    let good = sign(&ca, &csr(KeyKind::EcP256), None).unwrap();
    let (bad_peer, good_peer) = (verified(&ca, &bad).unwrap(), verified(&ca, &good).unwrap());
    ca.revoke([&bad.serial]).unwrap();
    assert_eq!(verified(&ca, &bad).unwrap_err(), X509Error::Revoked);
    assert!(verified(&ca, &good).is_ok());
    assert!(ca.bundle_set().is_revoked(&bad_peer));
    assert!(!ca.bundle_set().is_revoked(&good_peer));
    ca.revoke([&good.serial]).unwrap();
    assert_eq!(
        verified(&ca, &bad).unwrap_err(),
        X509Error::Revoked,
        "a list holds all that was revoked before"
    );
    assert_eq!(verified(&ca, &good).unwrap_err(), X509Error::Revoked);
    for bad in ["not hexadecimal", "", "abc", "+1"] {
        assert!(ca.revoke([bad]).is_err(), "{bad:?}");
    }
    let again = Ca::load(domain(), &ca.to_pem(), IssuancePolicy::default(), WallClock::system()).unwrap();
    again.revoke(ca.revoked_serials()).unwrap();
    assert_eq!(verified(&again, &bad).unwrap_err(), X509Error::Revoked, "after a restart");
}

#[test]
fn revocation_reaches_certificates_of_the_former_root() {
    let ca = new_ca();
    let old = sign(&ca, &csr(KeyKind::EcP256), None).unwrap();
    ca.prepare_root(&RootOptions::default()).unwrap();
    ca.activate_root().unwrap();
    let new = sign(&ca, &csr(KeyKind::EcP256), None).unwrap();
    ca.revoke([&old.serial]).unwrap();
    assert_eq!(verified(&ca, &old).unwrap_err(), X509Error::Revoked);
    assert!(verified(&ca, &new).is_ok());
    ca.retire_root().unwrap();
    assert_eq!(ca.bundle().crls().len(), 1);
}

#[test]
fn a_restart_in_the_middle_of_a_rotation_keeps_both_roots_until_one_is_forgotten() {
    let ca = new_ca();
    let old = sign(&ca, &csr(KeyKind::EcP256), None).unwrap();
    ca.prepare_root(&RootOptions::default()).unwrap();
    ca.activate_root().unwrap();
    let again = Ca::load(domain(), &ca.to_pem(), IssuancePolicy::default(), WallClock::system()).unwrap();
    assert!(verified(&again, &old).is_ok());
    let new = sign(&again, &csr(KeyKind::EcP256), None).unwrap();
    assert_eq!(new.roots.len(), 2);
    assert!(again.forget_root(new.roots.last().unwrap()).is_err(), "the signer's own");
    assert_eq!(again.forget_root(old.roots.last().unwrap()), Ok(true));
    assert_eq!(again.forget_root(old.roots.last().unwrap()), Ok(false));
    assert!(verified(&again, &old).is_err() && verified(&again, &new).is_ok());
}

#[test]
fn server_certificates_carry_dns_names_only() {
    let ca = new_ca();
    let names = ["istiod.istio-system.svc".to_owned(), "istiod".to_owned()];
    let credential = ca.issue_server_certificate(&names, None).unwrap();
    assert_eq!(credential.facts().dns_sans, names);
    assert!(credential.id().is_none() && credential.facts().uri_sans.is_empty());
    for bad in [vec![], vec!["not a name".to_owned()], vec!["spiffe://a/b".to_owned()]] {
        assert_eq!(ca.issue_server_certificate(&bad, None).unwrap_err().reason(), "dns_name");
    }
}

#[test]
fn keys_are_held_once_and_in_the_form_they_came_in() {
    let ca = new_ca();
    assert!(ca.lock().signer().issuer().key().serialized_der().is_empty(), "a copy that nothing overwrites");
    let mut pair = request::generate_key(KeyKind::EcP256).unwrap();
    let before = pair.serialized_der().to_vec();
    assert_eq!(request::take_private_key(&mut pair).secret_der(), before);
    assert!(pair.serialized_der().is_empty());

    use aws_lc_rs::{
        encoding::{AsDer, EcPrivateKeyRfc5915Der},
        signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair},
    };
    use base64::{Engine, engine::general_purpose::STANDARD};
    let pem = ca.to_pem();
    let key = crate::x509::private_key_from_pem(pem.key.as_bytes()).unwrap();
    let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, key.secret_der()).unwrap();
    let sec1 = AsDer::<EcPrivateKeyRfc5915Der<'_>>::as_der(&key.private_key()).unwrap();
    let text = STANDARD.encode(sec1.as_ref());
    let sec1 = format!("-----BEGIN EC PRIVATE KEY-----\n{text}\n-----END EC PRIVATE KEY-----\n");
    let plugged = CaPem { key: sec1.into(), ..pem };
    let again = Ca::load(domain(), &plugged, IssuancePolicy::default(), WallClock::system()).unwrap();
    assert!(verified(&ca, &sign(&again, &csr(KeyKind::EcP256), None).unwrap()).is_ok());
    let stored = Ca::load(domain(), &again.to_pem(), IssuancePolicy::default(), WallClock::system()).unwrap();
    assert!(verified(&ca, &sign(&stored, &csr(KeyKind::EcP256), None).unwrap()).is_ok());
}
