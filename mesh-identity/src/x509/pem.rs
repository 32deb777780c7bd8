use base64::{Engine, engine::general_purpose::STANDARD};
use rustls::pki_types::{
    CertificateDer, CertificateRevocationListDer, PrivateKeyDer,
    pem::{self, PemObject},
};

use super::{MAX_CERTIFICATE_BYTES, MAX_PEM_BYTES, PrivateKey, X509Error};

/// Reads every certificate of a PEM text, in order; other PEM sections are passed over.
///
/// # Errors
/// Text over [`MAX_PEM_BYTES`], malformed PEM, a certificate over its limit. No certificate at all gives an empty list.
pub fn certificates_from_pem(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, X509Error> {
    check_length(pem)?;
    CertificateDer::pem_slice_iter(pem)
        .map(|certificate| {
            let certificate = certificate.map_err(|e| malformed(&e))?;
            if certificate.len() > MAX_CERTIFICATE_BYTES {
                return Err(X509Error::CertificateTooLarge { bytes: certificate.len() });
            }
            Ok(certificate)
        })
        .collect()
}

/// Reads every revocation list of a PEM text, DER, in order; other PEM sections are passed over. Whether the lists
/// themselves are well formed shows in [`TrustBundle::set_crls`](crate::TrustBundle::set_crls).
///
/// # Errors
/// Text over [`MAX_PEM_BYTES`], malformed PEM. No list at all gives an empty one.
pub fn crls_from_pem(pem: &[u8]) -> Result<Vec<Vec<u8>>, X509Error> {
    check_length(pem)?;
    CertificateRevocationListDer::pem_slice_iter(pem)
        .map(|crl| crl.map(|crl| crl.to_vec()).map_err(|e| malformed(&e)))
        .collect()
}

/// Writes certificates as PEM, in order, 64 characters a line (RFC 7468).
pub fn certificates_to_pem<'a>(certificates: impl IntoIterator<Item = &'a CertificateDer<'a>>) -> String {
    let mut text = String::new();
    for certificate in certificates {
        text.push_str("-----BEGIN CERTIFICATE-----\n");
        push_base64_lines(&mut text, certificate);
        text.push_str("-----END CERTIFICATE-----\n");
    }
    text
}

/// Writes a revocation list as PEM.
pub fn crl_to_pem(der: &[u8]) -> String {
    let mut text = "-----BEGIN X509 CRL-----\n".to_owned();
    push_base64_lines(&mut text, der);
    text.push_str("-----END X509 CRL-----\n");
    text
}

/// Reads the one private key of a PEM text: PKCS#8, SEC1 or PKCS#1.
///
/// # Errors
/// Text over [`MAX_PEM_BYTES`], malformed PEM, no key, several keys.
pub fn private_key_from_pem(pem: &[u8]) -> Result<PrivateKey, X509Error> {
    check_length(pem)?;
    let mut keys = PrivateKeyDer::pem_slice_iter(pem);
    let key = match keys.next() {
        None => return Err(X509Error::NoKey),
        Some(key) => key.map_err(|e| malformed(&e))?,
    };
    match keys.count() {
        0 => Ok(PrivateKey::from(key)),
        more => Err(X509Error::ManyKeys { count: more + 1 }),
    }
}

fn check_length(pem: &[u8]) -> Result<(), X509Error> {
    if pem.len() > MAX_PEM_BYTES { Err(X509Error::PemTooLarge { bytes: pem.len() }) } else { Ok(()) }
}

/// What is wrong, without quoting the text: it may be a private key.
fn malformed(error: &pem::Error) -> X509Error {
    let detail = match error {
        pem::Error::MissingSectionEnd { .. } => "a section has no end",
        pem::Error::IllegalSectionStart { .. } => "a section has a malformed beginning",
        pem::Error::Base64Decode(_) => "a section is not base64",
        _ => "the text cannot be read",
    };
    X509Error::Pem { detail: detail.to_owned() }
}

pub(super) fn push_base64_lines(text: &mut String, bytes: &[u8]) {
    // 48 bytes make the 64 characters of a line, so padding can only stand in the last.
    for line in bytes.chunks(48) {
        STANDARD.encode_string(line, text);
        text.push('\n');
    }
}
