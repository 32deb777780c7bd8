use proptest::prelude::*;

use super::*;

#[test]
fn parts_of_an_id() {
    let id = SpiffeId::parse("spiffe://mesh.example/ns/shop/sa/cart").unwrap();
    assert_eq!(id.trust_domain_str(), "mesh.example");
    assert_eq!(id.path(), "/ns/shop/sa/cart");
    assert_eq!(id.as_ref().segments().collect::<Vec<_>>(), ["ns", "shop", "sa", "cart"]);
    let name = id.istio().unwrap();
    assert_eq!((name.namespace, name.service_account), ("shop", "cart"));
    assert_eq!(name.to_string(), "mesh.example/ns/shop/sa/cart");
}

#[test]
fn a_trust_domains_own_id_has_no_path() {
    let id = TrustDomain::parse("mesh.example").unwrap().id();
    assert_eq!((id.as_str(), id.path()), ("spiffe://mesh.example", ""));
    assert_eq!(id.as_ref().segments().count(), 0);
    assert_eq!(SpiffeId::parse(id.as_str()), Ok(id));
}

#[test]
fn other_shapes_are_ids_without_istios_view() {
    for path in ["", "/web", "/ns/a/sa", "/ns/a/sa/b/c", "/sa/a/ns/b"] {
        let id = SpiffeId::parse(&format!("spiffe://mesh.example{path}")).unwrap();
        assert_eq!(id.istio(), None, "{path}");
    }
}

#[test]
fn segments_cannot_smuggle_slashes() {
    let domain = TrustDomain::parse("mesh.example").unwrap();
    let error = SpiffeId::from_segments(&domain, &["ns", "a/sa/admin"]).unwrap_err();
    assert_eq!(error.reason(), "path_character");
    assert_eq!(SpiffeId::workload(&domain, "", "b").unwrap_err().reason(), "empty_segment");
    assert_eq!(SpiffeId::workload(&domain, "..", "b").unwrap_err().reason(), "dot_segment");
}

#[test]
fn deserializing_validates() {
    assert!(serde_json::from_str::<SpiffeId>("\"spiffe://mesh.example/a\"").is_ok());
    assert!(serde_json::from_str::<SpiffeId>("\"spiffe://mesh.example/a/\"").is_err());
}

fn trust_domain() -> impl Strategy<Value = String> {
    "[a-z0-9._-]{1,64}"
}

fn segment() -> impl Strategy<Value = String> {
    "[a-zA-Z0-9._-]{1,24}".prop_filter("dot segments are not segments", |s| s != "." && s != "..")
}

proptest! {
    #[test]
    fn what_is_built_parses_back(domain in trust_domain(), segments in prop::collection::vec(segment(), 0..8)) {
        let domain = TrustDomain::parse(&domain).unwrap();
        let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
        let id = SpiffeId::from_segments(&domain, &segments).unwrap();
        let parsed = SpiffeIdRef::parse(id.as_str()).unwrap();
        prop_assert_eq!(parsed.trust_domain(), domain);
        prop_assert_eq!(parsed.segments().collect::<Vec<_>>(), segments);
        prop_assert_eq!(parsed, id.as_ref());
    }

    #[test]
    fn whatever_is_accepted_has_only_what_the_standard_allows(text in "(spiffe://)?[a-zA-Z0-9._/%?#@: é-]{0,48}") {
        if let Ok(id) = SpiffeIdRef::parse(&text) {
            prop_assert!(id.trust_domain_str().bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b)));
            prop_assert!(!id.trust_domain_str().is_empty());
            prop_assert!(id.segments().all(|s| !s.is_empty() && s != "." && s != ".."));
            prop_assert!(id.path().bytes().all(|b| b.is_ascii_alphanumeric() || b"._-/".contains(&b)));
            prop_assert_eq!(id.as_str(), text.as_str());
        }
    }

    #[test]
    fn no_text_panics(text in any::<String>()) {
        let _ = SpiffeIdRef::parse(&text);
        let _ = SpiffeIdRef::parse(&format!("spiffe://{text}"));
        let _ = SpiffeIdRef::parse(&format!("spiffe://a/{text}"));
        let _ = TrustDomain::parse_kubernetes(&text);
    }
}
