use std::fmt;

use aws_lc_rs::{
    digest,
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair},
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::{JwkSet, JwtError, VerifyingKey};
use crate::x509::{PrivateKey, private_key_from_pem};

/// Signs tokens with ES256 (ECDSA on P-256).
pub struct JwtSigner {
    key: EcdsaKeyPair,
    kid: String,
}

impl JwtSigner {
    /// A new random key. Its ID is derived from the public key.
    ///
    /// # Errors
    /// Only when the system has no randomness.
    pub fn generate() -> Result<Self, JwtError> {
        EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).map(Self::new).map_err(|_| JwtError::Signing)
    }

    /// A key that was stored with [`JwtSigner::to_pem`]: PKCS#8, PEM.
    ///
    /// # Errors
    /// Text that is not one P-256 key in PKCS#8.
    pub fn from_pem(pem: &str) -> Result<Self, JwtError> {
        let bad = JwtError::Key { index: 0, detail: "not a P-256 key in PKCS#8" };
        let key = private_key_from_pem(pem.as_bytes()).map_err(|_| bad.clone())?;
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, key.secret_der());
        key.map(Self::new).map_err(|_| bad)
    }

    fn new(key: EcdsaKeyPair) -> Self {
        let digest = digest::digest(&digest::SHA256, key.public_key().as_ref());
        let kid = URL_SAFE_NO_PAD.encode(&digest.as_ref()[..16]);
        Self { key, kid }
    }

    /// The private key as PKCS#8, PEM. Store it with mode 0600.
    ///
    /// # Errors
    /// Only when the key cannot be encoded, which a generated key always can.
    pub fn to_pem(&self) -> Result<Zeroizing<String>, JwtError> {
        let der = self.key.to_pkcs8v1().map_err(|_| JwtError::Signing)?;
        Ok(PrivateKey::from_pkcs8(der.as_ref().to_vec()).to_pem())
    }

    /// The key's ID.
    pub fn kid(&self) -> &str {
        &self.kid
    }

    /// The public key.
    pub fn verifying_key(&self) -> VerifyingKey {
        VerifyingKey::from_p256_point(self.kid.clone(), self.key.public_key().as_ref())
    }

    /// A key set of this one key.
    pub fn jwks(&self) -> JwkSet {
        JwkSet::new(vec![self.verifying_key()])
    }

    /// Signs `claims`, a JSON object.
    ///
    /// # Errors
    /// Only when the system has no randomness.
    pub fn sign(&self, claims: &Value) -> Result<String, JwtError> {
        let header = json!({"alg": "ES256", "kid": self.kid, "typ": "JWT"});
        let mut token = URL_SAFE_NO_PAD.encode(header.to_string());
        token.push('.');
        URL_SAFE_NO_PAD.encode_string(claims.to_string(), &mut token);
        let signature =
            self.key.sign(&SystemRandom::new(), token.as_bytes()).map_err(|_| JwtError::Signing)?;
        token.push('.');
        URL_SAFE_NO_PAD.encode_string(signature.as_ref(), &mut token);
        Ok(token)
    }
}

impl fmt::Debug for JwtSigner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JwtSigner").field("kid", &self.kid).finish_non_exhaustive()
    }
}
