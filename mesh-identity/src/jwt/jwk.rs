use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, ECDSA_P521_SHA512_FIXED, RSA_PKCS1_2048_8192_SHA256,
    RSA_PKCS1_2048_8192_SHA384, RSA_PKCS1_2048_8192_SHA512, RSA_PSS_2048_8192_SHA256,
    RSA_PSS_2048_8192_SHA384, RSA_PSS_2048_8192_SHA512, RsaParameters, RsaPublicKeyComponents,
    UnparsedPublicKey,
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::{Map, Value, json};

use super::{Algorithm, JwtError};

/// The most bytes of a key set document.
pub const MAX_JWKS_BYTES: usize = 1 << 20;

/// The most keys of a key set.
pub const MAX_KEYS: usize = 128;

/// What a key is for: the `use` member of a JSON Web Key.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum KeyUse {
    /// Not said.
    Unspecified,
    /// `sig`: signatures (RFC 7517).
    Signature,
    /// `jwt-svid`: JWT-SVIDs (SPIFFE bundle 4.2.2).
    JwtSvid,
    /// `x509-svid`: an X.509 root, in `x5c` (SPIFFE bundle 4.2.2).
    X509Svid,
    /// Something else; such keys are passed over.
    Other(String),
}

impl KeyUse {
    pub(crate) fn of(jwk: &Map<String, Value>) -> Self {
        match jwk.get("use").and_then(Value::as_str) {
            None => Self::Unspecified,
            Some("sig") => Self::Signature,
            Some("jwt-svid") => Self::JwtSvid,
            Some("x509-svid") => Self::X509Svid,
            Some(other) => Self::Other(super::error::shortened(other)),
        }
    }
}

/// A public key that token signatures are checked with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifyingKey {
    kid: Option<String>,
    algorithm: Option<Algorithm>,
    material: Material,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Material {
    /// An uncompressed point.
    Ec {
        curve: Curve,
        point: Vec<u8>,
    },
    Rsa {
        modulus: Vec<u8>,
        exponent: Vec<u8>,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Curve {
    P256,
    P384,
    P521,
}

impl Curve {
    const ALL: [Self; 3] = [Self::P256, Self::P384, Self::P521];

    fn facts(self) -> (&'static str, usize, Algorithm) {
        match self {
            Self::P256 => ("P-256", 32, Algorithm::Es256),
            Self::P384 => ("P-384", 48, Algorithm::Es384),
            Self::P521 => ("P-521", 66, Algorithm::Es512),
        }
    }
}

impl VerifyingKey {
    /// Reads one key. `None` for a key type that is not supported (symmetric keys, other curves).
    pub(crate) fn from_jwk(jwk: &Map<String, Value>, index: usize) -> Result<Option<Self>, JwtError> {
        let bad = |detail| JwtError::Key { index, detail };
        let text = |name: &str| jwk.get(name).and_then(Value::as_str);
        let number = |name: &str, detail| {
            let bytes = text(name).and_then(|text| URL_SAFE_NO_PAD.decode(text).ok());
            bytes.filter(|bytes| !bytes.is_empty() && bytes.len() <= 1024).ok_or_else(|| bad(detail))
        };
        let material = match text("kty").ok_or_else(|| bad("kty is missing"))? {
            "EC" => {
                let name = text("crv").ok_or_else(|| bad("crv is missing"))?;
                let Some(curve) = Curve::ALL.into_iter().find(|c| c.facts().0 == name) else {
                    return Ok(None);
                };
                let (x, y) =
                    (number("x", "x is missing or malformed")?, number("y", "y is missing or malformed")?);
                let size = curve.facts().1;
                if x.len() != size || y.len() != size {
                    return Err(bad("a coordinate has the wrong length"));
                }
                Material::Ec { curve, point: [&[4], x.as_slice(), y.as_slice()].concat() }
            }
            "RSA" => {
                let modulus = number("n", "n is missing or malformed")?;
                let exponent = number("e", "e is missing or malformed")?;
                let modulus: Vec<u8> = modulus.into_iter().skip_while(|b| *b == 0).collect();
                if modulus.len() < 256 {
                    return Err(bad("an RSA key of fewer than 2048 bits"));
                }
                Material::Rsa { modulus, exponent }
            }
            _ => return Ok(None),
        };
        // A key that says its algorithm keeps to it, even where that is one we do not know.
        let algorithm = match text("alg") {
            None => None,
            Some(name) => match Algorithm::from_name(name) {
                None => return Ok(None),
                known => known,
            },
        };
        Ok(Some(Self { kid: text("kid").map(str::to_owned), algorithm, material }))
    }

    pub(super) fn from_p256_point(kid: String, point: &[u8]) -> Self {
        let material = Material::Ec { curve: Curve::P256, point: point.to_vec() };
        Self { kid: Some(kid), algorithm: Some(Algorithm::Es256), material }
    }

    /// The key's ID.
    pub fn kid(&self) -> Option<&str> {
        self.kid.as_deref()
    }

    /// The key as a JSON Web Key (RFC 7517) with this `use`.
    pub fn to_jwk(&self, key_use: &str) -> Value {
        let encode = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        let mut jwk = match &self.material {
            Material::Ec { curve, point } => {
                let (name, size, _) = curve.facts();
                json!({"kty": "EC", "crv": name, "x": encode(&point[1..=size]), "y": encode(&point[size + 1..])})
            }
            Material::Rsa { modulus, exponent } => {
                json!({"kty": "RSA", "n": encode(modulus), "e": encode(exponent)})
            }
        };
        jwk["use"] = key_use.into();
        if let Some(kid) = &self.kid {
            jwk["kid"] = kid.as_str().into();
        }
        if let Some(algorithm) = self.algorithm {
            jwk["alg"] = algorithm.name().into();
        }
        jwk
    }

    /// Whether the key may verify this algorithm: the key decides, the token's header only asks.
    pub fn allows(&self, algorithm: Algorithm) -> bool {
        if self.algorithm.is_some_and(|own| own != algorithm) {
            return false;
        }
        match &self.material {
            Material::Ec { curve, .. } => curve.facts().2 == algorithm,
            Material::Rsa { .. } => rsa_parameters(algorithm).is_some(),
        }
    }

    pub(super) fn verify(
        &self,
        algorithm: Algorithm,
        message: &[u8],
        signature: &[u8],
    ) -> Result<(), JwtError> {
        if !self.allows(algorithm) {
            return Err(JwtError::Signature);
        }
        let verified = match &self.material {
            Material::Ec { curve, point } => {
                let parameters = match curve {
                    Curve::P256 => &ECDSA_P256_SHA256_FIXED,
                    Curve::P384 => &ECDSA_P384_SHA384_FIXED,
                    Curve::P521 => &ECDSA_P521_SHA512_FIXED,
                };
                UnparsedPublicKey::new(parameters, point).verify(message, signature)
            }
            Material::Rsa { modulus, exponent } => {
                let parameters = rsa_parameters(algorithm).ok_or(JwtError::Signature)?;
                RsaPublicKeyComponents { n: modulus, e: exponent }.verify(parameters, message, signature)
            }
        };
        verified.map_err(|_| JwtError::Signature)
    }
}

fn rsa_parameters(algorithm: Algorithm) -> Option<&'static RsaParameters> {
    Some(match algorithm {
        Algorithm::Rs256 => &RSA_PKCS1_2048_8192_SHA256,
        Algorithm::Rs384 => &RSA_PKCS1_2048_8192_SHA384,
        Algorithm::Rs512 => &RSA_PKCS1_2048_8192_SHA512,
        Algorithm::Ps256 => &RSA_PSS_2048_8192_SHA256,
        Algorithm::Ps384 => &RSA_PSS_2048_8192_SHA384,
        Algorithm::Ps512 => &RSA_PSS_2048_8192_SHA512,
        _ => return None,
    })
}

/// A set of public keys (RFC 7517).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct JwkSet {
    keys: Vec<VerifyingKey>,
}

impl JwkSet {
    /// A set of these keys.
    pub fn new(keys: Vec<VerifyingKey>) -> Self {
        Self { keys }
    }

    /// Reads a key set document. Keys of unsupported types, and keys for encryption, are passed over.
    ///
    /// # Errors
    /// A document over the bounds, JSON of another shape, or a key of a supported type that is malformed.
    pub fn from_json(document: &[u8]) -> Result<Self, JwtError> {
        let jwks = read_keys(document)?;
        let mut keys = Vec::new();
        for (index, jwk) in jwks.iter().enumerate() {
            let for_tokens =
                matches!(KeyUse::of(jwk), KeyUse::Unspecified | KeyUse::Signature | KeyUse::JwtSvid);
            if for_tokens && let Some(key) = VerifyingKey::from_jwk(jwk, index)? {
                keys.push(key);
            }
        }
        Ok(Self { keys })
    }

    /// Writes the set with `use` set to `sig`, as Kubernetes publishes it.
    pub fn to_json(&self) -> String {
        let keys: Vec<_> = self.keys.iter().map(|key| key.to_jwk("sig")).collect();
        json!({ "keys": keys }).to_string()
    }

    /// The keys.
    pub fn keys(&self) -> &[VerifyingKey] {
        &self.keys
    }

    /// The keys that may have signed a token with this key ID and algorithm.
    pub fn candidates<'a>(
        &'a self,
        kid: Option<&'a str>,
        algorithm: Algorithm,
    ) -> impl Iterator<Item = &'a VerifyingKey> {
        self.keys
            .iter()
            .filter(move |key| key.allows(algorithm) && kid.is_none_or(|kid| key.kid() == Some(kid)))
    }
}

/// The `keys` of a key set document, as JSON objects.
pub(crate) fn read_keys(document: &[u8]) -> Result<Vec<Map<String, Value>>, JwtError> {
    if document.len() > MAX_JWKS_BYTES {
        return Err(JwtError::KeySetTooLarge { size: document.len(), unit: "bytes" });
    }
    let detail = |detail: String| JwtError::KeySet { detail };
    let document: Value = serde_json::from_slice(document).map_err(|e| detail(e.to_string()))?;
    let keys = document.get("keys").and_then(Value::as_array);
    let keys = keys.ok_or_else(|| detail("`keys` is not a list".to_owned()))?;
    if keys.len() > MAX_KEYS {
        return Err(JwtError::KeySetTooLarge { size: keys.len(), unit: "keys" });
    }
    keys.iter()
        .map(|key| key.as_object().cloned().ok_or_else(|| detail("a key is not an object".to_owned())))
        .collect()
}
