//! Each MUST of the X.509-SVID standard that a validator can see, one line per statement: accepted, or refused.

use mesh_identity::{
    BundleSet, TrustBundle, TrustDomain,
    x509::{CertificateFacts, PeerUsage, X509Error, check_signer, verify_chain},
};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, CustomExtension, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose as Eku, GeneralSubtree, IsCa, KeyPair, KeyUsagePurpose as Ku, NameConstraints,
    SanType, date_time_ymd,
};
use rustls::pki_types::{CertificateDer, UnixTime};

type Edit = fn(&mut CertificateParams);

fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().unwrap())
}

fn base() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.not_before = date_time_ymd(2025, 1, 1);
    params.not_after = date_time_ymd(2035, 1, 1);
    params
}

/// A leaf that obeys every rule.
fn leaf() -> CertificateParams {
    let mut params = base();
    params.subject_alt_names = vec![uri("spiffe://td.example/web")];
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![Ku::DigitalSignature];
    params.extended_key_usages = vec![Eku::ServerAuth, Eku::ClientAuth];
    params
}

/// A signing certificate that obeys every rule.
fn signer(name: &str) -> CertificateParams {
    let mut params = base();
    params.distinguished_name.push(DnType::CommonName, name);
    params.subject_alt_names = vec![uri("spiffe://td.example")];
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![Ku::KeyCertSign, Ku::CrlSign];
    params
}

struct Root(CertifiedIssuer<'static, KeyPair>);

impl Root {
    fn new(name: &str) -> Self {
        Self(CertifiedIssuer::self_signed(signer(name), KeyPair::generate().unwrap()).unwrap())
    }

    fn sign(&self, params: &CertificateParams) -> CertificateDer<'static> {
        params.signed_by(&KeyPair::generate().unwrap(), &self.0).unwrap().der().clone()
    }

    fn bundles(&self) -> BundleSet {
        let domain = TrustDomain::parse("td.example").unwrap();
        TrustBundle::new(domain, [self.0.der().clone()]).unwrap().into()
    }
}

fn now() -> UnixTime {
    UnixTime::since_unix_epoch(std::time::Duration::from_secs(1_780_000_000))
}

fn verify(chain: &[CertificateDer<'_>], bundles: &BundleSet) -> Result<String, X509Error> {
    verify_chain(&chain[0], &chain[1..], bundles, PeerUsage::Client, now()).map(|peer| peer.id.to_string())
}

fn key_usage_not_critical(bits: u8) -> CustomExtension {
    CustomExtension::from_oid_content(&[2, 5, 29, 15], vec![3, 2, 0, bits])
}

fn names_not_critical(params: &mut CertificateParams) {
    let name = b"spiffe://td.example/web";
    let mut der = vec![0x30, 2 + name.len() as u8, 0x86, name.len() as u8];
    der.extend(name);
    params.subject_alt_names.clear();
    params.custom_extensions.push(CustomExtension::from_oid_content(&[2, 5, 29, 17], der));
}

fn with_a_subject(params: &mut CertificateParams) {
    params.distinguished_name.push(DnType::OrganizationName, "example");
    names_not_critical(params);
}

/// Section, statement, how a good leaf is changed, and the reason of the refusal (`None`: accepted).
const LEAVES: &[(&str, &str, Edit, Option<&str>)] = &[
    ("2", "one URI name", |_| {}, None),
    ("2", "no URI name", |p| p.subject_alt_names.clear(), Some("uri_san_count")),
    (
        "2",
        "only a DNS name",
        |p| p.subject_alt_names = vec![SanType::DnsName("a.example".try_into().unwrap())],
        Some("uri_san_count"),
    ),
    ("2", "two URI names", |p| p.subject_alt_names.push(uri("spiffe://td.example/b")), Some("uri_san_count")),
    (
        "2",
        "the same URI name twice",
        |p| p.subject_alt_names.push(uri("spiffe://td.example/web")),
        Some("uri_san_count"),
    ),
    (
        "2",
        "a second URI name of another scheme",
        |p| p.subject_alt_names.push(uri("https://td.example/")),
        Some("uri_san_count"),
    ),
    (
        "2",
        "DNS names beside the URI name",
        |p| p.subject_alt_names.push(SanType::DnsName("a.example".try_into().unwrap())),
        None,
    ),
    (
        "2",
        "the URI name is a SPIFFE ID",
        |p| p.subject_alt_names = vec![uri("https://td.example/web")],
        Some("spiffe_id"),
    ),
    (
        "2",
        "the URI name is a valid SPIFFE ID",
        |p| p.subject_alt_names = vec![uri("spiffe://td.example/a/../b")],
        Some("spiffe_id"),
    ),
    (
        "3.1",
        "a leaf's ID has a path",
        |p| p.subject_alt_names = vec![uri("spiffe://td.example")],
        Some("spiffe_id"),
    ),
    ("3.1", "without a subject, names are critical", names_not_critical, Some("names_not_critical")),
    ("3.1", "with a subject, names need not be critical", with_a_subject, None),
    ("4.1", "a leaf may leave basic constraints out", |p| p.is_ca = IsCa::NoCa, None),
    (
        "4.1",
        "a leaf is no CA",
        |p| p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained),
        Some("basic_constraints"),
    ),
    ("4.3", "key usage is there", |p| p.key_usages.clear(), Some("key_usage")),
    (
        "4.3",
        "key usage is critical",
        |p| {
            p.key_usages.clear();
            p.custom_extensions.push(key_usage_not_critical(0x80));
        },
        Some("key_usage"),
    ),
    ("4.3", "a leaf sets digitalSignature", |p| p.key_usages = vec![Ku::KeyEncipherment], Some("key_usage")),
    (
        "4.3",
        "a leaf may set keyEncipherment and keyAgreement",
        |p| p.key_usages.extend([Ku::KeyEncipherment, Ku::KeyAgreement]),
        None,
    ),
    ("4.3", "a leaf does not set keyCertSign", |p| p.key_usages.push(Ku::KeyCertSign), Some("key_usage")),
    ("4.3", "a leaf does not set cRLSign", |p| p.key_usages.push(Ku::CrlSign), Some("key_usage")),
    ("4.4", "extended key usage may be absent", |p| p.extended_key_usages.clear(), None),
    (
        "4.4",
        "not serverAuth alone",
        |p| p.extended_key_usages = vec![Eku::ServerAuth],
        Some("extended_key_usage"),
    ),
    (
        "4.4",
        "not clientAuth alone",
        |p| p.extended_key_usages = vec![Eku::ClientAuth],
        Some("extended_key_usage"),
    ),
    ("4.4", "further purposes are allowed", |p| p.extended_key_usages.push(Eku::CodeSigning), None),
    ("5.1", "not before its time", |p| p.not_before = date_time_ymd(2034, 1, 1), Some("not_yet_valid")),
    ("5.1", "not after its time", |p| p.not_after = date_time_ymd(2026, 1, 1), Some("expired")),
    (
        "5.1",
        "a trust domain without a bundle",
        |p| p.subject_alt_names = vec![uri("spiffe://other.example/web")],
        Some("no_bundle"),
    ),
];

#[test]
fn leaves() {
    let root = Root::new("root");
    for (section, statement, edit, refusal) in LEAVES {
        let mut params = leaf();
        edit(&mut params);
        check(section, statement, verify(&[root.sign(&params)], &root.bundles()), *refusal);
    }
}

/// That the outcome is the one expected, and that a refusal names the section.
fn check(section: &str, statement: &str, outcome: Result<String, X509Error>, refusal: Option<&str>) {
    let error = outcome.err();
    assert_eq!(error.as_ref().map(X509Error::reason), refusal, "section {section}: {statement}");
    if let Some(error) = error {
        let message = error.to_string();
        let named = message.split_once("(X.509-SVID ").and_then(|(_, rest)| rest.split_once(')'));
        let named: Vec<_> = named.map(|(sections, _)| sections.split(", ").collect()).unwrap_or_default();
        assert!(named.contains(&section), "section {section}: {statement}: {message}");
    }
}

/// The same for a signing certificate between leaf and root.
const SIGNERS: &[(&str, &str, Edit, Option<&str>)] = &[
    ("3.2", "a signing certificate with the trust domain's ID", |_| {}, None),
    ("3.2", "a signing certificate need not be an SVID", |p| p.subject_alt_names.clear(), None),
    (
        "3.2",
        "a signing certificate may be of another trust domain",
        |p| p.subject_alt_names = vec![uri("spiffe://parent.example")],
        None,
    ),
    (
        "3.2",
        "its ID has no path",
        |p| p.subject_alt_names = vec![uri("spiffe://td.example/ca")],
        Some("signer_id"),
    ),
    (
        "2",
        "it has at most one ID",
        |p| p.subject_alt_names.push(uri("spiffe://b.example")),
        Some("uri_san_count"),
    ),
    (
        "2",
        "its URI name is a SPIFFE ID",
        |p| p.subject_alt_names = vec![uri("https://ca.example/")],
        Some("spiffe_id"),
    ),
    (
        "2",
        "its URI name is a valid SPIFFE ID",
        |p| p.subject_alt_names = vec![uri("spiffe://td.example:80")],
        Some("spiffe_id"),
    ),
    ("4.1", "it sets cA", |p| p.is_ca = IsCa::ExplicitNoCa, Some("basic_constraints")),
    ("4.1", "basic constraints are there", |p| p.is_ca = IsCa::NoCa, Some("basic_constraints")),
    ("4.1", "a path length that suffices", |p| p.is_ca = IsCa::Ca(BasicConstraints::Constrained(0)), None),
    (
        "4.2",
        "DNS name constraints are evaluated by path validation",
        |p| {
            p.name_constraints = Some(NameConstraints {
                permitted_subtrees: vec![GeneralSubtree::DnsName("a.example".into())],
                excluded_subtrees: vec![],
            });
        },
        None,
    ),
    ("4.3", "it sets keyCertSign", |p| p.key_usages = vec![Ku::CrlSign], Some("key_usage")),
    ("4.3", "key usage is there", |p| p.key_usages.clear(), Some("key_usage")),
    (
        "4.3",
        "key usage is critical",
        |p| {
            p.key_usages.clear();
            // keyCertSign and cRLSign.
            p.custom_extensions.push(key_usage_not_critical(0x06));
        },
        Some("key_usage"),
    ),
    ("4.3", "cRLSign is optional", |p| p.key_usages = vec![Ku::KeyCertSign], None),
    ("5.1", "within its own time", |p| p.not_after = date_time_ymd(2026, 1, 1), Some("expired")),
];

#[test]
fn signers() {
    let root = Root::new("root");
    for (section, statement, edit, refusal) in SIGNERS {
        let mut params = signer("intermediate");
        edit(&mut params);
        // rcgen does not sign with an issuer that says it may not sign; its key usages are dropped for that.
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &root.0).unwrap().der().clone();
        let mut issuer = params.clone();
        issuer.key_usages.clear();
        let issuer = rcgen::Issuer::new(issuer, key);
        let leaf = leaf().signed_by(&KeyPair::generate().unwrap(), &issuer).unwrap();
        check(section, statement, verify(&[leaf.der().clone(), certificate], &root.bundles()), *refusal);
    }
}

#[test]
fn uri_name_constraints_are_refused_and_never_ignored() {
    // Section 4.2. `URI:.td.example` as a permitted or excluded subtree:
    // SEQUENCE { [0] or [1] { SEQUENCE { [6] ".td.example" } } }.
    for subtrees in [0xa0, 0xa1] {
        refuses_uri_name_constraints(subtrees);
    }
}

fn refuses_uri_name_constraints(subtrees: u8) {
    let name = b".td.example";
    let mut der = vec![0x30, 4 + name.len() as u8 + 2, subtrees, 4 + name.len() as u8];
    der.extend([0x30, 2 + name.len() as u8, 0x86, name.len() as u8]);
    der.extend(name);
    let mut params = signer("constrained");
    let constraints = CustomExtension::from_oid_content(&[2, 5, 29, 30], der);
    params.custom_extensions.push(constraints.clone());
    let constrained = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let facts = CertificateFacts::read(constrained.der()).unwrap();
    assert_eq!(check_signer(&facts), Err(X509Error::UriNameConstraints));
    let domain = TrustDomain::parse("td.example").unwrap();
    let refused = TrustBundle::new(domain, [constrained.der().clone()]).unwrap_err();
    assert_eq!(refused, X509Error::UriNameConstraints);

    // An intermediate as well, though the leaf's name lies within what it permits.
    let root = Root::new("root");
    let mut params = signer("intermediate");
    params.custom_extensions.push(constraints);
    let intermediate = CertifiedIssuer::signed_by(params, KeyPair::generate().unwrap(), &root.0).unwrap();
    let leaf = leaf().signed_by(&KeyPair::generate().unwrap(), &intermediate).unwrap();
    let chain = [leaf.der().clone(), intermediate.der().clone()];
    check("4.2", "URI name constraints", verify(&chain, &root.bundles()), Some("name_constraints"));
}

#[test]
fn a_path_longer_than_its_issuer_allows_is_refused() {
    let root = Root::new("root");
    let mut first = signer("first");
    first.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    let first = CertifiedIssuer::signed_by(first, KeyPair::generate().unwrap(), &root.0).unwrap();
    let second = CertifiedIssuer::signed_by(signer("second"), KeyPair::generate().unwrap(), &first).unwrap();
    let leaf = leaf().signed_by(&KeyPair::generate().unwrap(), &second).unwrap();
    let chain = [leaf.der().clone(), second.der().clone(), first.der().clone()];
    assert_eq!(verify(&chain, &root.bundles()).unwrap_err().reason(), "path");
}

#[test]
fn a_chain_to_another_root_is_refused() {
    let (ours, theirs) = (Root::new("root"), Root::new("root"));
    let refused = verify(&[theirs.sign(&leaf())], &ours.bundles()).unwrap_err();
    assert!(matches!(refused, X509Error::UnknownIssuer | X509Error::Path { .. }), "{refused}");
}

#[test]
fn a_federated_root_does_not_vouch_for_our_domain() {
    // SPIFFE Federation: a bundle is good for its own trust domain only.
    let (ours, theirs) = (Root::new("ours"), Root::new("theirs"));
    let mut bundles = ours.bundles();
    let other = TrustDomain::parse("other.example").unwrap();
    bundles.insert(TrustBundle::new(other, [theirs.0.der().clone()]).unwrap());
    assert!(verify(&[theirs.sign(&leaf())], &bundles).is_err());
    let mut federated = leaf();
    federated.subject_alt_names = vec![uri("spiffe://other.example/web")];
    assert!(verify(&[theirs.sign(&federated)], &bundles).is_ok());
    assert!(verify(&[ours.sign(&federated)], &bundles).is_err());
}

#[test]
fn a_signing_certificate_does_not_authenticate() {
    // Section 3.2: signing certificates are not used for authentication.
    let root = Root::new("root");
    assert_eq!(verify(&[root.0.der().clone()], &root.bundles()).unwrap_err().reason(), "spiffe_id");
}

#[test]
fn a_published_bundle_has_one_certificate_and_no_key_id_for_each_root() {
    // Section 6.1: `kid` is not set, and `x5c` holds exactly one certificate. 6.2: who reads it looks at no `kid`.
    let (one, two) = (Root::new("one"), Root::new("two"));
    let domain = TrustDomain::parse("td.example").unwrap();
    let bundle = TrustBundle::new(domain.clone(), [one.0.der().clone(), two.0.der().clone()]).unwrap();
    let mut document: serde_json::Value = serde_json::from_str(&bundle.to_json()).unwrap();
    let keys = document["keys"].as_array_mut().unwrap();
    assert_eq!(keys.len(), 2);
    for key in keys {
        assert_eq!((&key["use"], key.get("kid")), (&"x509-svid".into(), None));
        assert_eq!(key["x5c"].as_array().unwrap().len(), 1);
        key["kid"] = "one and the same".into();
    }
    assert_eq!(TrustBundle::from_json(domain, document.to_string().as_bytes()).unwrap(), bundle);
}
