use std::time::Duration;

use rcgen::{
    CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384,
    PKCS_ED25519, PKCS_RSA_SHA256, SanType, SubjectPublicKeyInfo,
};
use rustls::pki_types::{CertificateSigningRequestDer, pem::PemObject};
use x509_parser::{
    certification_request::X509CertificationRequest,
    extensions::{GeneralName, ParsedExtension},
    prelude::FromDer,
    public_key::PublicKey as X509PublicKey,
};

use zeroize::Zeroize;

use super::{CaError, IssuancePolicy, KeyKind};
use crate::{id::SpiffeId, x509::PrivateKey};

/// The most bytes of a request, PEM. Real ones have under 4 KiB.
pub const MAX_CSR_BYTES: usize = 64 << 10;

/// What [`Ca::sign`](super::Ca::sign) is asked for.
#[derive(Debug, Clone, Copy)]
pub struct SigningRequest<'a> {
    /// The PKCS#10 request, PEM. Only its public key is used.
    pub csr_pem: &'a str,
    /// The caller's identity, from its authentication.
    pub id: &'a SpiffeId,
    /// The lifetime asked for; `None` or zero means the policy's default.
    pub lifetime: Option<Duration>,
}

/// A PKCS#10 request that proved possession of its key.
#[derive(Debug)]
pub struct CertificateRequest {
    public_key: SubjectPublicKeyInfo,
    kind: Option<KeyKind>,
    described: String,
}

/// A new key and the request for it.
#[derive(Debug)]
pub struct NewRequest {
    csr_pem: String,
    key: PrivateKey,
}

impl NewRequest {
    /// The request, PEM.
    pub fn csr_pem(&self) -> &str {
        &self.csr_pem
    }

    /// The request, PEM, and the private key.
    pub fn into_parts(self) -> (String, PrivateKey) {
        (self.csr_pem, self.key)
    }
}

impl CertificateRequest {
    /// Makes a new key and a request that names `id` in its URI subject alternative name (for CAs that look at it).
    ///
    /// # Errors
    /// No randomness.
    pub fn generate(kind: KeyKind, id: &SpiffeId) -> Result<NewRequest, CaError> {
        let mut pair = generate_key(kind)?;
        let key = take_private_key(&mut pair);
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![SanType::URI(id.as_str().try_into()?)];
        let csr_pem = params.serialize_request(&pair)?.pem()?;
        Ok(NewRequest { csr_pem, key })
    }

    /// Reads a request and checks its signature. Everything it asks for is ignored but the public key.
    ///
    /// # Errors
    /// A request over the limit, malformed, or with a wrong signature.
    pub fn from_pem(pem: &str) -> Result<Self, CaError> {
        if pem.len() > MAX_CSR_BYTES {
            return Err(CaError::RequestTooLarge { bytes: pem.len() });
        }
        let der =
            CertificateSigningRequestDer::from_pem_slice(pem.as_bytes()).map_err(|_| malformed("not PEM"))?;
        Self::from_der(&der)
    }

    /// The URIs that a request names, whether or not it is otherwise in order. A CA never certifies them because of that;
    /// a service may refuse who asks for somebody else's.
    pub fn named_uris(pem: &str) -> Vec<String> {
        if pem.len() > MAX_CSR_BYTES {
            return Vec::new();
        }
        let Ok(der) = CertificateSigningRequestDer::from_pem_slice(pem.as_bytes()) else { return Vec::new() };
        let Ok((_, request)) = X509CertificationRequest::from_der(&der) else { return Vec::new() };
        let names = request.requested_extensions().into_iter().flatten().filter_map(|extension| {
            let ParsedExtension::SubjectAlternativeName(names) = extension else { return None };
            Some(names.general_names.iter().filter_map(|name| match name {
                GeneralName::URI(uri) => Some((*uri).to_owned()),
                _ => None,
            }))
        });
        names.flatten().collect()
    }

    /// As [`CertificateRequest::from_pem`], from DER.
    ///
    /// # Errors
    /// As [`CertificateRequest::from_pem`].
    pub fn from_der(der: &[u8]) -> Result<Self, CaError> {
        if der.len() > MAX_CSR_BYTES {
            return Err(CaError::RequestTooLarge { bytes: der.len() });
        }
        let (rest, request) =
            X509CertificationRequest::from_der(der).map_err(|_| malformed("not PKCS#10"))?;
        if !rest.is_empty() {
            return Err(malformed("bytes after the request"));
        }
        let info = &request.certification_request_info.subject_pki;
        let bad_key = |described: String| CaError::Key { kind: described };
        let parsed = info.parsed().map_err(|_| malformed("the public key"))?;
        let curve =
            || info.algorithm.parameters.as_ref().and_then(|p| p.as_oid().ok()).map(|o| o.to_id_string());
        let (kind, described) = match parsed {
            X509PublicKey::RSA(rsa) => {
                let bits = rsa.key_size();
                ((2048..=8192).contains(&bits).then_some(KeyKind::Rsa), format!("RSA of {bits} bits"))
            }
            X509PublicKey::EC(_) => match curve().as_deref() {
                Some("1.2.840.10045.3.1.7") => (Some(KeyKind::EcP256), "P-256".to_owned()),
                Some("1.3.132.0.34") => (Some(KeyKind::EcP384), "P-384".to_owned()),
                other => (None, format!("EC on curve {}", other.unwrap_or("unnamed"))),
            },
            _ => match info.algorithm.algorithm.to_id_string().as_str() {
                "1.3.101.112" => (Some(KeyKind::Ed25519), "Ed25519".to_owned()),
                oid => (None, format!("with OID {oid}")),
            },
        };
        // Before the signature: verifying with a key of a kind that is refused anyway would only cost time.
        if kind.is_none() {
            return Err(bad_key(described));
        }
        request.verify_signature().map_err(|_| CaError::RequestSignature)?;
        let public_key = SubjectPublicKeyInfo::from_der(info.raw).map_err(|_| bad_key(described.clone()))?;
        Ok(Self { public_key, kind, described })
    }

    /// The key's type.
    pub fn key_kind(&self) -> Option<KeyKind> {
        self.kind
    }

    pub(super) fn into_key(self, policy: &IssuancePolicy) -> Result<SubjectPublicKeyInfo, CaError> {
        match self.kind {
            Some(kind) if policy.key_kinds.contains(&kind) => Ok(self.public_key),
            _ => Err(CaError::Key { kind: self.described }),
        }
    }
}

pub(super) fn generate_key(kind: KeyKind) -> Result<KeyPair, CaError> {
    let algorithm = match kind {
        KeyKind::EcP256 => &PKCS_ECDSA_P256_SHA256,
        KeyKind::EcP384 => &PKCS_ECDSA_P384_SHA384,
        KeyKind::Ed25519 => &PKCS_ED25519,
        KeyKind::Rsa => &PKCS_RSA_SHA256,
    };
    Ok(KeyPair::generate_for(algorithm)?)
}

/// The key of a generated pair, PKCS#8. The pair still signs, but its own copy of the text, which nothing would overwrite
/// when it is dropped, is overwritten now.
pub(super) fn take_private_key(pair: &mut KeyPair) -> PrivateKey {
    let key = PrivateKey::from_pkcs8(pair.serialized_der().to_vec());
    pair.zeroize();
    key
}

fn malformed(detail: &str) -> CaError {
    CaError::Request { detail: detail.to_owned() }
}
