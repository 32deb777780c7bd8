//! Service-account tokens, as a cluster's API server would issue them.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use mesh_identity::jwt::JwtSigner;
use serde_json::json;

use crate::error::{LabError, Result};
use crate::state::write_atomically;

/// Issuer of the lab's tokens.
pub(crate) const ISSUER: &str = "https://kubernetes.lab.local";
/// The longest validity, in seconds.
const MAX_SECONDS: u64 = 3600;

/// The key that signs all tokens of one lab.
#[derive(Debug)]
pub(crate) struct TokenIssuer {
    signer: JwtSigner,
}

/// Whom a token is for.
#[derive(Debug, Clone)]
pub(crate) struct Holder {
    pub(crate) namespace: String,
    pub(crate) service_account: String,
    pub(crate) pod: String,
    pub(crate) uid: String,
}

impl TokenIssuer {
    /// Makes a key; its public half is written to `jwks`.
    pub(crate) fn create(jwks: &Path) -> Result<Self> {
        let signer = JwtSigner::generate().map_err(|error| LabError::process("tokens", error.to_string()))?;
        write_atomically(jwks, signer.jwks().to_json().as_bytes())?;
        Ok(Self { signer })
    }

    /// A token for `audience`, bound to the holder's pod, valid for at most an hour.
    pub(crate) fn issue(&self, holder: &Holder, audience: &str, seconds: u64) -> Result<String> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
        let claims = json!({
            "iss": ISSUER,
            "sub": format!("system:serviceaccount:{}:{}", holder.namespace, holder.service_account),
            "aud": [audience],
            "iat": now,
            "nbf": now,
            "exp": now + seconds.min(MAX_SECONDS),
            "kubernetes.io": {
                "namespace": holder.namespace,
                "serviceaccount": { "name": holder.service_account, "uid": holder.uid },
                "pod": { "name": holder.pod, "uid": holder.uid },
            },
        });
        self.signer.sign(&claims).map_err(|error| LabError::process("tokens", error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use mesh_identity::jwt::{Algorithm, JwkSet, verify};

    use super::*;

    #[test]
    fn a_token_is_bound_to_its_pod_and_lives_an_hour_at_most() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("jwks.json");
        let issuer = TokenIssuer::create(&path).unwrap();
        let holder = Holder {
            namespace: String::from("shop"),
            service_account: String::from("client"),
            pod: String::from("client-1"),
            uid: String::from("u-1"),
        };
        let keys = JwkSet::from_json(&std::fs::read(&path).unwrap()).unwrap();
        for (asked, given) in [(43_200, 3600), (600, 600)] {
            let token = issuer.issue(&holder, "istio-ca", asked).unwrap();
            let claims = verify(&token, &keys, &[Algorithm::Es256]).unwrap();
            let claims = claims.as_map();
            assert_eq!(claims["iss"], ISSUER);
            assert_eq!(claims["aud"], json!(["istio-ca"]));
            assert_eq!(claims["sub"], "system:serviceaccount:shop:client");
            assert_eq!(claims["kubernetes.io"]["pod"], json!({ "name": "client-1", "uid": "u-1" }));
            let number = |name: &str| claims[name].as_u64().unwrap();
            assert_eq!(number("exp") - number("iat"), given);
        }
    }
}
