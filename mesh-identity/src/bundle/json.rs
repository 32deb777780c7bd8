use std::time::Duration;

use base64::{Engine, engine::general_purpose::STANDARD};
use rustls::pki_types::CertificateDer;
use serde_json::{Value, json};

use super::TrustBundle;
use crate::{
    id::TrustDomain,
    jwt::{JwkSet, JwtError, KeyUse, MAX_JWKS_BYTES, VerifyingKey, read_keys},
    x509::X509Error,
};

/// The most bytes of a SPIFFE bundle document.
pub const MAX_BUNDLE_JSON_BYTES: usize = MAX_JWKS_BYTES;

/// Why a SPIFFE bundle document was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BundleJsonError {
    /// Not a JSON document of the right shape, or a bad key.
    #[error(transparent)]
    Document {
        /// What is wrong.
        #[from]
        source: JwtError,
    },
    /// An `x5c` entry that is not base64 of a usable certificate.
    #[error("x509-svid key {index}: {source}")]
    Certificate {
        /// Its place in the document.
        index: usize,
        /// What is wrong.
        source: X509Error,
    },
    /// `spiffe_sequence` or `spiffe_refresh_hint` is not a whole number.
    #[error("{field} is not a whole number (SPIFFE bundle 4.1)")]
    Number {
        /// Which one.
        field: &'static str,
    },
}

impl BundleJsonError {
    /// A stable label of low cardinality, for metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Document { source } => source.reason(),
            Self::Certificate { source, .. } => source.reason(),
            Self::Number { .. } => "number",
        }
    }
}

impl TrustBundle {
    /// Reads a SPIFFE bundle document (SPIFFE trust domain and bundle, section 4). Keys of an unknown `use` or
    /// without one, `x509-svid` keys without a certificate (X.509-SVID 6.2) and `jwt-svid` keys without a `kid`
    /// (JWT-SVID 6.2) are passed over, as the standards say.
    ///
    /// # Errors
    /// A document over its bounds or of another shape, or a key for SVIDs that is malformed.
    pub fn from_json(trust_domain: TrustDomain, document: &[u8]) -> Result<Self, BundleJsonError> {
        let keys = read_keys(document)?;
        let mut bundle = Self::empty(trust_domain);
        let mut jwt_keys = Vec::new();
        for (index, jwk) in keys.iter().enumerate() {
            match KeyUse::of(jwk) {
                KeyUse::X509Svid => {
                    let Some(root) = x5c(jwk.get("x5c"), index)? else { continue };
                    bundle.add_root(root).map_err(|source| BundleJsonError::Certificate { index, source })?;
                }
                KeyUse::JwtSvid => {
                    let key = VerifyingKey::from_jwk(jwk, index)?;
                    jwt_keys.extend(key.filter(|key| key.kid().is_some_and(|kid| !kid.is_empty())));
                }
                _ => {}
            }
        }
        bundle.set_jwt_authorities(JwkSet::new(jwt_keys));
        let document: Value =
            serde_json::from_slice(document).map_err(|e| JwtError::KeySet { detail: e.to_string() })?;
        let sequence = whole_number(&document, "spiffe_sequence")?;
        let hint = whole_number(&document, "spiffe_refresh_hint")?;
        bundle.set_document_facts(sequence, hint.map(Duration::from_secs));
        Ok(bundle)
    }

    /// Writes the SPIFFE bundle document.
    ///
    /// The public key of an X.509 root is in its certificate; `kty` is all that is repeated of it.
    pub fn to_json(&self) -> String {
        let roots = self.roots().iter().map(|root| {
            let kind = if root.windows(RSA_OID.len()).any(|w| w == RSA_OID) { "RSA" } else { "EC" };
            json!({"use": "x509-svid", "kty": kind, "x5c": [STANDARD.encode(root)]})
        });
        let jwt_keys = self.jwt_authorities().keys().iter().map(|key| key.to_jwk("jwt-svid"));
        let mut document = json!({"keys": roots.chain(jwt_keys).collect::<Vec<_>>()});
        if let Some(sequence) = self.sequence() {
            document["spiffe_sequence"] = sequence.into();
        }
        if let Some(hint) = self.refresh_hint() {
            document["spiffe_refresh_hint"] = hint.as_secs().into();
        }
        document.to_string()
    }
}

/// rsaEncryption, 1.2.840.113549.1.1.1, DER.
const RSA_OID: &[u8] = &[0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01];

/// The first certificate of `x5c`; further ones, and keys without any, are passed over (X.509-SVID 6.2).
fn x5c(value: Option<&Value>, index: usize) -> Result<Option<CertificateDer<'static>>, BundleJsonError> {
    let Some(entry) = value.and_then(Value::as_array).and_then(|entries| entries.first()) else {
        return Ok(None);
    };
    let der = entry.as_str().and_then(|text| STANDARD.decode(text).ok());
    let source = X509Error::Der { detail: "x5c is not base64".to_owned() };
    der.map(|der| Some(CertificateDer::from(der))).ok_or(BundleJsonError::Certificate { index, source })
}

fn whole_number(document: &Value, field: &'static str) -> Result<Option<u64>, BundleJsonError> {
    match document.get(field) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => value.as_u64().map(Some).ok_or(BundleJsonError::Number { field }),
    }
}
