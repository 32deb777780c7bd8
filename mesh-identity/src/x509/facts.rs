use std::time::{Duration, SystemTime, UNIX_EPOCH};

use x509_parser::{
    extensions::{GeneralName, ParsedExtension},
    prelude::{FromDer, X509Certificate},
};

use super::{MAX_CERTIFICATE_BYTES, MAX_SANS, X509Error};
use crate::id::SpiffeId;

/// What one certificate says, read but not yet judged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateFacts {
    /// URI subject alternative names, as they stand.
    pub uri_sans: Vec<String>,
    /// DNS subject alternative names, as they stand.
    pub dns_sans: Vec<String>,
    /// Whether the subject is empty and the subject alternative names are nevertheless not marked critical.
    pub names_not_critical: bool,
    /// The CA flag of basic constraints; `false` when the extension is missing.
    pub is_ca: bool,
    /// Key usage, if the extension is there.
    pub key_usage: Option<KeyUsageFacts>,
    /// Whether extended key usage names serverAuth and clientAuth; `None` when the extension is missing.
    pub extended_key_usage: Option<(bool, bool)>,
    /// Whether name constraints permit or exclude URIs.
    pub constrains_uris: bool,
    /// The serial number in lower-case hexadecimal digits.
    pub serial: String,
    /// The issuer's name, DER.
    pub issuer: Vec<u8>,
    /// The subject's name, DER; an empty sequence in a leaf that has only alternative names.
    pub subject: Vec<u8>,
    /// Whether issuer and subject are the same name.
    pub self_issued: bool,
    /// The first moment of validity.
    pub not_before: SystemTime,
    /// The last moment of validity.
    pub not_after: SystemTime,
}

/// The bits of a key usage extension that the X.509-SVID standard speaks of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyUsageFacts {
    /// Whether the extension is marked critical.
    pub critical: bool,
    /// digitalSignature.
    pub digital_signature: bool,
    /// keyCertSign.
    pub key_cert_sign: bool,
    /// cRLSign.
    pub crl_sign: bool,
}

impl CertificateFacts {
    /// Reads a certificate.
    ///
    /// # Errors
    /// Bytes that are not exactly one DER certificate, or over the limits of this module.
    pub fn read(der: &[u8]) -> Result<Self, X509Error> {
        if der.len() > MAX_CERTIFICATE_BYTES {
            return Err(X509Error::CertificateTooLarge { bytes: der.len() });
        }
        let (rest, certificate) = X509Certificate::from_der(der).map_err(|e| malformed(&e))?;
        if !rest.is_empty() {
            return Err(malformed(&"bytes after the certificate"));
        }
        let validity = certificate.validity();
        let mut facts = Self {
            uri_sans: Vec::new(),
            dns_sans: Vec::new(),
            names_not_critical: false,
            is_ca: false,
            key_usage: None,
            extended_key_usage: None,
            constrains_uris: false,
            serial: hex(certificate.raw_serial()),
            issuer: certificate.issuer().as_raw().to_vec(),
            subject: certificate.subject().as_raw().to_vec(),
            self_issued: certificate.issuer().as_raw() == certificate.subject().as_raw(),
            not_before: system_time(validity.not_before.timestamp()),
            not_after: system_time(validity.not_after.timestamp()),
        };
        facts.read_extensions(&certificate)?;
        Ok(facts)
    }

    fn read_extensions(&mut self, certificate: &X509Certificate<'_>) -> Result<(), X509Error> {
        let mut seen = Vec::new();
        for extension in certificate.extensions() {
            if seen.contains(&&extension.oid) {
                return Err(malformed(&"an extension occurs twice"));
            }
            seen.push(&extension.oid);
            match extension.parsed_extension() {
                ParsedExtension::SubjectAlternativeName(san) => {
                    if san.general_names.len() > MAX_SANS {
                        return Err(X509Error::TooManySans { count: san.general_names.len() });
                    }
                    self.names_not_critical =
                        !extension.critical && certificate.subject().iter_rdn().next().is_none();
                    for name in &san.general_names {
                        match name {
                            GeneralName::URI(uri) => self.uri_sans.push((*uri).to_owned()),
                            GeneralName::DNSName(name) => self.dns_sans.push((*name).to_owned()),
                            GeneralName::Invalid(..) => return Err(malformed(&"a subject alternative name")),
                            _ => {}
                        }
                    }
                }
                ParsedExtension::BasicConstraints(constraints) => self.is_ca = constraints.ca,
                ParsedExtension::KeyUsage(usage) => {
                    self.key_usage = Some(KeyUsageFacts {
                        critical: extension.critical,
                        digital_signature: usage.digital_signature(),
                        key_cert_sign: usage.key_cert_sign(),
                        crl_sign: usage.crl_sign(),
                    });
                }
                ParsedExtension::ExtendedKeyUsage(usage) => {
                    self.extended_key_usage = Some((usage.server_auth, usage.client_auth));
                }
                ParsedExtension::NameConstraints(constraints) => {
                    let lists = [&constraints.permitted_subtrees, &constraints.excluded_subtrees];
                    self.constrains_uris = lists
                        .into_iter()
                        .flatten()
                        .flatten()
                        .any(|subtree| matches!(subtree.base, GeneralName::URI(_)));
                }
                ParsedExtension::ParseError { .. } => return Err(malformed(&"an extension")),
                _ => {}
            }
        }
        Ok(())
    }
}

/// Checks a leaf against the X.509-SVID standard (sections 2, 3.1, 4) and returns its SPIFFE ID.
///
/// # Errors
/// The first rule it breaks. Signatures and validity times are not looked at; see [`super::verify_chain`].
pub fn check_leaf(facts: &CertificateFacts) -> Result<SpiffeId, X509Error> {
    let uri = match facts.uri_sans.as_slice() {
        [uri] => uri,
        [] => return Err(X509Error::NoUriSan),
        many => return Err(X509Error::ManyUriSans { count: many.len() }),
    };
    let id = SpiffeId::parse(uri)?;
    if id.path().is_empty() {
        return Err(X509Error::LeafWithoutPath { id });
    }
    if facts.names_not_critical {
        return Err(X509Error::NamesNotCritical);
    }
    if facts.is_ca {
        return Err(X509Error::LeafIsCa);
    }
    let usage = facts.key_usage.ok_or(X509Error::KeyUsageMissing)?;
    if usage.key_cert_sign {
        return Err(X509Error::LeafMaySignCertificates);
    }
    if usage.crl_sign {
        return Err(X509Error::LeafMaySignCrls);
    }
    if !usage.digital_signature {
        return Err(X509Error::LeafWithoutDigitalSignature);
    }
    if !usage.critical {
        return Err(X509Error::KeyUsageNotCritical);
    }
    if !matches!(facts.extended_key_usage, None | Some((true, true))) {
        return Err(X509Error::ExtendedKeyUsage);
    }
    Ok(id)
}

/// Checks a signing certificate, root or intermediate, against the X.509-SVID standard (sections 3.2, 4).
///
/// A signing certificate without a SPIFFE ID is accepted: the standard only says that it should have one.
///
/// # Errors
/// The first rule it breaks, and URI name constraints, which path validation cannot evaluate.
pub fn check_signer(facts: &CertificateFacts) -> Result<(), X509Error> {
    if !facts.is_ca {
        return Err(X509Error::SignerNotCa);
    }
    let usage = facts.key_usage.ok_or(X509Error::KeyUsageMissing)?;
    if !usage.key_cert_sign {
        return Err(X509Error::SignerMayNotSign);
    }
    if !usage.critical {
        return Err(X509Error::KeyUsageNotCritical);
    }
    if facts.constrains_uris {
        return Err(X509Error::UriNameConstraints);
    }
    match facts.uri_sans.as_slice() {
        [] => Ok(()),
        [uri] => {
            let id = SpiffeId::parse(uri)?;
            if id.path().is_empty() { Ok(()) } else { Err(X509Error::SignerWithPath { id }) }
        }
        many => Err(X509Error::ManyUriSans { count: many.len() }),
    }
}

fn malformed(detail: &dyn std::fmt::Display) -> X509Error {
    X509Error::Der { detail: detail.to_string() }
}

fn system_time(seconds: i64) -> SystemTime {
    let magnitude = Duration::from_secs(seconds.unsigned_abs());
    if seconds >= 0 { UNIX_EPOCH + magnitude } else { UNIX_EPOCH - magnitude }
}

/// Lower-case hexadecimal digits without separators; a leading zero byte, which only keeps DER's sign, is left out.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    let bytes = match bytes {
        [0, rest @ ..] if !rest.is_empty() => rest,
        all => all,
    };
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}
