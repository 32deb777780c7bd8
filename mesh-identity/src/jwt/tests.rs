use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::{BundleSet, SpiffeId, TrustBundle, TrustDomain};

/// RFC 7515 A.2: a token signed with RS256, and its key.
const RFC_RSA_KEY: &str = r#"{"keys":[{"kty":"RSA","n":"ofgWCuLjybRlzo0tZWJjNiuSfb4p4fAkd_wWJcyQoTbji9k0l8W26mPddxHmfHQp-Vaw-4qPCJrcS2mJPMEzP1Pt0Bm4d4QlL-yRT-SFd2lZS-pCgNMsD1W_YpRPEwOWvG6b32690r2jZ47soMZo9wGzjb_7OMg0LOL-bSf63kpaSHSXndS5z5rexMdbBYUsLA9e-KXBdQOS-UTo7WTBEMa2R2CapHg665xsmtdVMTBQY4uDZlxvb3qCo5ZwKh9kG4LT6_I5IhlJH7aGhyxXFvUK-DWNmoudF8NAco9_h9iaGNj8q2ethFkMLs91kzk2PAcDTW9gb54h4FRWyuXpoQ","e":"AQAB"}]}"#;
const RFC_RSA_TOKEN: &str = "eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ.cC4hiUPoj9Eetdgtv3hF80EGrhuB__dzERat0XF9g2VtQgr9PJbu3XOiZj5RZmh7AAuHIm4Bh-0Qc_lF5YKt_O8W2Fp5jujGbds9uJdbF9CUAr7t1dnZcAcQjbKBYNX4BAynRFdiuB--f_nZLgrnbyTyWzO75vRK5h6xBArLIARNPvkSjtQBMHlb1L07Qe7K0GarZRmB_eSN9383LcOLn6_dO--xi12jzDwusC-eOkHWEsqtFZESc6BfI7noOPqvhJ1phCnvWh6IeYI2w9QOYEUipUTI8np6LbgGY9Fs98rqVt5AXLIhWkWywlVmtVrBp0igcN_IoypGlUPQGe77Rw";

fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_800_000_000)
}

fn claims() -> Value {
    json!({"sub": "spiffe://td.example/web", "aud": ["a"], "exp": 1_800_000_100u64})
}

fn with_header(token: &str, header: &Value) -> String {
    let rest = token.split_once('.').unwrap().1;
    format!("{}.{rest}", URL_SAFE_NO_PAD.encode(header.to_string()))
}

#[test]
fn the_rfcs_own_example_verifies() {
    let keys = JwkSet::from_json(RFC_RSA_KEY.as_bytes()).unwrap();
    let claims = verify(RFC_RSA_TOKEN, &keys, Algorithm::KUBERNETES).unwrap();
    assert_eq!(claims.text("iss").unwrap(), "joe");
    assert_eq!(claims.expiry().unwrap(), 1_300_819_380);
    assert_eq!(claims.check_time(1_800_000_000).unwrap_err().reason(), "expired");
    let only_ecdsa = verify(RFC_RSA_TOKEN, &keys, &[Algorithm::Es256]).unwrap_err();
    assert_eq!(only_ecdsa.reason(), "algorithm");
    let mut forged = RFC_RSA_TOKEN.to_owned();
    forged.replace_range(30..31, "J");
    assert!(verify(&forged, &keys, Algorithm::KUBERNETES).is_err());
}

#[test]
fn what_is_signed_verifies_and_only_with_its_key() {
    let signer = JwtSigner::generate().unwrap();
    let token = signer.sign(&claims()).unwrap();
    assert_eq!(verify(&token, &signer.jwks(), Algorithm::JWT_SVID).unwrap().as_map()["aud"], json!(["a"]));
    let document = signer.jwks().to_json();
    let published = JwkSet::from_json(document.as_bytes()).unwrap();
    assert_eq!(published, signer.jwks());
    let stored = JwtSigner::from_pem(&signer.to_pem().unwrap()).unwrap();
    assert_eq!(stored.kid(), signer.kid());
    let other = JwtSigner::generate().unwrap();
    let unknown = verify(&token, &other.jwks(), Algorithm::JWT_SVID).unwrap_err();
    assert_eq!(unknown.reason(), "unknown_key");
    let mut same_id = other.jwks().keys()[0].to_jwk("sig");
    same_id["kid"] = signer.kid().into();
    let impostor = JwkSet::from_json(json!({"keys": [same_id]}).to_string().as_bytes()).unwrap();
    assert_eq!(verify(&token, &impostor, Algorithm::JWT_SVID).unwrap_err(), JwtError::Signature);
}

#[test]
fn headers_that_are_refused() {
    let signer = JwtSigner::generate().unwrap();
    let token = signer.sign(&claims()).unwrap();
    let kid = signer.kid();
    let cases = [
        (json!({"alg": "none"}), "algorithm"),
        (json!({"alg": "HS256", "kid": kid}), "algorithm"),
        (json!({"alg": "es256", "kid": kid}), "algorithm"),
        (json!({"alg": "EdDSA", "kid": kid}), "algorithm"),
        (json!({"kid": kid}), "malformed"),
        (json!({"alg": "ES256", "kid": kid, "crit": ["b64"], "b64": false}), "header"),
        (json!({"alg": "ES256", "kid": kid, "typ": "JWE"}), "header"),
        (json!({"alg": "RS256", "kid": kid}), "unknown_key"),
        (json!({"alg": "ES384", "kid": kid}), "unknown_key"),
        (json!({"alg": "ES256", "kid": kid, "typ": "JOSE"}), "signature"),
    ];
    for (header, reason) in cases {
        let refused = verify(&with_header(&token, &header), &signer.jwks(), Algorithm::JWT_SVID).unwrap_err();
        assert_eq!(refused.reason(), reason, "{header}");
    }
    for bad in ["", ".", "..", "a.b", "a.b.c.d", "????.e30.AA", &"a".repeat(MAX_TOKEN_BYTES + 1)] {
        assert!(verify(bad, &signer.jwks(), Algorithm::JWT_SVID).is_err());
    }
}

#[test]
fn claims_that_are_refused() {
    let signer = JwtSigner::generate().unwrap();
    let mut bundle = TrustBundle::empty(TrustDomain::parse("td.example").unwrap());
    bundle.set_jwt_authorities(signer.jwks());
    let bundles = BundleSet::from(bundle);
    let cases = [
        (json!({}), None),
        (json!({"aud": "a"}), None),
        (json!({"nbf": 1_800_000_030u64}), None),
        (json!({"exp": 1_800_000_000u64}), Some("expired")),
        (json!({"exp": "1800000100"}), Some("claim")),
        (json!({"exp": null}), Some("claim")),
        (json!({"exp": 1_800_000_000.5}), Some("expired")),
        (json!({"nbf": 1_800_000_090u64}), Some("not_yet_valid")),
        (json!({"iat": 1_800_000_090u64}), Some("not_yet_valid")),
        (json!({"aud": ["b", "c"]}), Some("audience")),
        (json!({"aud": []}), Some("audience")),
        (json!({"aud": [1]}), Some("claim")),
        (json!({"aud": null}), Some("claim")),
        (json!({"sub": "web"}), Some("subject")),
        (json!({"sub": "spiffe://td.example/../web"}), Some("subject")),
        (json!({"sub": "spiffe://other.example/web"}), Some("unknown_key")),
        (json!({"sub": 5}), Some("claim")),
    ];
    for (change, reason) in cases {
        let mut claims = claims();
        for (name, value) in change.as_object().unwrap() {
            claims[name] = value.clone();
        }
        let outcome = JwtSvid::validate(&signer.sign(&claims).unwrap(), &bundles, &["a"], now());
        assert_eq!(outcome.err().map(|error| error.reason()), reason, "{change}");
    }
}

#[test]
fn minted_svids_validate() {
    let signer = JwtSigner::generate().unwrap();
    let mut bundle = TrustBundle::empty(TrustDomain::parse("td.example").unwrap());
    bundle.set_jwt_authorities(signer.jwks());
    let id = SpiffeId::parse("spiffe://td.example/web").unwrap();
    let ttl = Duration::from_secs(300);
    let token = JwtSvid::mint(&signer, &id, &["x".into(), "y".into()], now(), ttl).unwrap();
    let svid = JwtSvid::validate(&token, &bundle.into(), &["y"], now()).unwrap();
    assert_eq!((svid.id(), svid.audience().len(), svid.expiry()), (&id, 2, 1_800_000_300));
    assert!(JwtSvid::mint(&signer, &id, &[], now(), ttl).is_err());
}

#[test]
fn key_sets() {
    let cases = [
        (json!({"keys": []}), Ok(0)),
        (json!({"keys": [{"kty": "oct", "k": "AA"}]}), Ok(0)),
        (json!({"keys": [{"kty": "EC", "crv": "secp256k1", "x": "AA", "y": "AA"}]}), Ok(0)),
        (json!({"keys": [{"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA"}]}), Err("key_set")),
        (json!({"keys": [{"kty": "EC", "crv": "P-256", "x": "AA"}]}), Err("key_set")),
        (json!({"keys": [{"kty": "RSA", "n": "AQAB", "e": "AQAB"}]}), Err("key_set")),
        (json!({"keys": [{"crv": "P-256"}]}), Err("key_set")),
        (json!({"keys": {}}), Err("key_set")),
        (json!([]), Err("key_set")),
        (json!({"keys": vec![json!({"kty": "oct"}); MAX_KEYS + 1]}), Err("too_large")),
    ];
    for (document, expected) in cases {
        let outcome = JwkSet::from_json(document.to_string().as_bytes());
        let outcome = outcome.map(|set| set.keys().len()).map_err(|error| error.reason());
        assert_eq!(outcome, expected, "{document}");
    }
    let long = vec![b' '; MAX_JWKS_BYTES + 1];
    assert_eq!(JwkSet::from_json(&long).unwrap_err().reason(), "too_large");
}

#[test]
fn errors_never_quote_a_token() {
    let signer = JwtSigner::generate().unwrap();
    let token = signer.sign(&claims()).unwrap();
    let refused = verify(&token, &JwkSet::default(), Algorithm::JWT_SVID).unwrap_err();
    let payload = token.split('.').nth(1).unwrap();
    assert!(!format!("{refused} {refused:?}").contains(payload));
    let parsed = UnverifiedToken::parse(&token).unwrap();
    assert!(!format!("{parsed:?}").contains(payload));
}

proptest! {
    #[test]
    fn no_text_panics(text in any::<String>(), bytes in any::<Vec<u8>>()) {
        let _ = UnverifiedToken::parse(&text);
        let _ = JwkSet::from_json(&bytes);
        let _ = JwkSet::from_json(text.as_bytes());
    }
}
