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
    /// An `x509-svid` key without exactly one certificate.
    #[error(
        "x509-svid key {index} has {count} certificates in x5c, expected one (SPIFFE bundle 4.2.2, X.509-SVID 6.1)"
    )]
    CertificateCount {
        /// Its place in the document.
        index: usize,
        /// How many it has.
        count: usize,
    },
    /// An `x5c` entry that is not base64 of a usable certificate.
    #[error("x509-svid key {index}: {source}")]
    Certificate {
        /// Its place in the document.
        index: usize,
        /// What is wrong.
        source: X509Error,
    },
    /// A `jwt-svid` key without an ID.
    #[error("jwt-svid key {index} has no kid (JWT-SVID 6.1)")]
    KeyId {
        /// Its place in the document.
        index: usize,
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
            Self::CertificateCount { .. } => "certificate_count",
            Self::Certificate { source, .. } => source.reason(),
            Self::KeyId { .. } => "key_id",
            Self::Number { .. } => "number",
        }
    }
}

impl TrustBundle {
    /// Reads a SPIFFE bundle document (SPIFFE trust domain and bundle, section 4). Keys of an unknown `use`, or
    /// without one, are passed over as the standard says.
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
                    let root = x5c(jwk.get("x5c"), index)?;
                    bundle.add_root(root).map_err(|source| BundleJsonError::Certificate { index, source })?;
                }
                KeyUse::JwtSvid => {
                    if let Some(key) = VerifyingKey::from_jwk(jwk, index)? {
                        key.kid().ok_or(BundleJsonError::KeyId { index })?;
                        jwt_keys.push(key);
                    }
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

fn x5c(value: Option<&Value>, index: usize) -> Result<CertificateDer<'static>, BundleJsonError> {
    let entries = value.and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let [entry] = entries else {
        return Err(BundleJsonError::CertificateCount { index, count: entries.len() });
    };
    let der = entry.as_str().and_then(|text| STANDARD.decode(text).ok());
    let source = X509Error::Der { detail: "x5c is not base64".to_owned() };
    der.map(CertificateDer::from).ok_or(BundleJsonError::Certificate { index, source })
}

fn whole_number(document: &Value, field: &'static str) -> Result<Option<u64>, BundleJsonError> {
    match document.get(field) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => value.as_u64().map(Some).ok_or(BundleJsonError::Number { field }),
    }
}
