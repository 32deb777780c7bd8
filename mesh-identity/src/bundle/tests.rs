use std::time::Duration;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::{
    Ca, WallClock,
    ca::{IssuancePolicy, KeyKind, RootOptions},
    jwt::JwtSigner,
};

fn domain(name: &str) -> TrustDomain {
    TrustDomain::parse(name).unwrap()
}

fn ca(name: &str) -> Ca {
    let policy = IssuancePolicy::default();
    Ca::create(domain(name), &RootOptions::default(), policy, WallClock::system()).unwrap()
}

fn full_bundle() -> TrustBundle {
    let mut bundle = ca("td.example").bundle();
    bundle.add_root(ca("td.example").bundle().roots()[0].clone()).unwrap();
    bundle.set_jwt_authorities(JwtSigner::generate().unwrap().jwks());
    bundle.set_document_facts(Some(7), Some(Duration::from_secs(300)));
    bundle
}

#[test]
fn documents_go_there_and_back() {
    let bundle = full_bundle();
    let document = bundle.to_json();
    assert_eq!(TrustBundle::from_json(domain("td.example"), document.as_bytes()).unwrap(), bundle);
    let parsed: Value = serde_json::from_str(&document).unwrap();
    assert_eq!((&parsed["spiffe_sequence"], &parsed["spiffe_refresh_hint"]), (&json!(7), &json!(300)));
    assert_eq!(parsed["keys"][0]["use"], "x509-svid");
    assert_eq!(parsed["keys"][2]["use"], "jwt-svid");
}

#[test]
fn pem_goes_there_and_back() {
    let bundle = full_bundle();
    let again = TrustBundle::from_pem(domain("td.example"), bundle.to_pem().as_bytes()).unwrap();
    assert_eq!(again.roots(), bundle.roots());
    assert_eq!(TrustBundle::from_pem(domain("a"), b"").unwrap_err(), X509Error::NoCertificate);
}

#[test]
fn documents_that_are_refused_or_passed_over() {
    let good: Value = serde_json::from_str(&full_bundle().to_json()).unwrap();
    let edited = |edit: &dyn Fn(&mut Value)| {
        let mut document = good.clone();
        edit(&mut document);
        let outcome = TrustBundle::from_json(domain("td.example"), document.to_string().as_bytes());
        outcome.map(|bundle| bundle.roots().len()).map_err(|error| error.reason())
    };
    assert_eq!(edited(&|_| {}), Ok(2));
    assert_eq!(edited(&|d| d["keys"][0]["use"] = "else".into()), Ok(1));
    assert_eq!(edited(&|d| d["keys"][0]["use"] = Value::Null), Ok(1));
    assert_eq!(edited(&|d| d["keys"][0]["x5c"] = json!([])), Ok(1));
    assert_eq!(edited(&|d| d["keys"][0]["x5c"] = Value::Null), Ok(1));
    let two = |d: &mut Value| {
        let first = d["keys"][0]["x5c"][0].clone();
        d["keys"][0]["x5c"] = json!([first, "not base64, not looked at"]);
    };
    assert_eq!(edited(&two), Ok(2));
    assert_eq!(edited(&|d| d["keys"][0]["x5c"] = json!(["!"])), Err("malformed"));
    assert_eq!(edited(&|d| d["keys"][0]["x5c"] = json!(["AAAA"])), Err("malformed"));
    assert_eq!(edited(&|d| d["keys"][2]["kid"] = Value::Null), Ok(2));
    assert_eq!(edited(&|d| d["keys"][2]["x"] = "AA".into()), Err("key_set"));
    assert_eq!(edited(&|d| d["spiffe_sequence"] = "7".into()), Err("number"));
    assert_eq!(edited(&|d| d["spiffe_refresh_hint"] = json!(-1)), Err("number"));
    assert_eq!(edited(&|d| d["keys"] = json!("none")), Err("key_set"));
}

#[test]
fn leaves_are_no_roots() {
    let ca = ca("td.example");
    let id = crate::SpiffeId::parse("spiffe://td.example/web").unwrap();
    let leaf = ca.issue_svid(&id, None).unwrap().chain()[0].clone();
    let refused = TrustBundle::new(domain("td.example"), [leaf]).unwrap_err();
    assert_eq!(refused, X509Error::SignerNotCa);
}

#[test]
fn roots_count_once_and_are_bounded() {
    let root = ca("td.example").bundle().roots()[0].clone();
    let mut bundle = TrustBundle::new(domain("td.example"), vec![root.clone(); 100]).unwrap();
    assert_eq!(bundle.roots().len(), 1);
    assert!(bundle.remove_root(&root) && !bundle.remove_root(&root));
    assert!(bundle.anchors().is_empty());
    let options = RootOptions { key: KeyKind::Ed25519, ..RootOptions::default() };
    for _ in 0..MAX_ROOTS {
        let ca = Ca::create(domain("a"), &options, IssuancePolicy::default(), WallClock::system()).unwrap();
        bundle.add_root(ca.bundle().roots()[0].clone()).unwrap();
    }
    assert_eq!(bundle.add_root(root).unwrap_err().reason(), "too_large");
}

#[test]
fn merge_and_diff() {
    let (one, two, other) = (ca("td.example"), ca("td.example"), ca("other.example"));
    let mut set = BundleSet::from(one.bundle());
    let before = set.clone();
    set.merge(&[two.bundle(), other.bundle()].into_iter().collect()).unwrap();
    assert_eq!(set.get("td.example").unwrap().roots().len(), 2);
    assert_eq!(set.get("other.example").unwrap().roots().len(), 1);
    let diff = before.diff(&set);
    assert_eq!((diff.added.len(), diff.removed.len()), (2, 0));
    let back = set.diff(&before);
    assert_eq!((back.added, back.removed), (vec![], diff.added));
    assert!(set.diff(&set).is_empty());
}

proptest! {
    #[test]
    fn no_bytes_panic(bytes in any::<Vec<u8>>()) {
        let _ = TrustBundle::from_json(domain("a"), &bytes);
        let _ = TrustBundle::from_pem(domain("a"), &bytes);
        let _ = TrustBundle::empty(domain("a")).set_crls([bytes]);
    }
}
