use std::time::SystemTime;

use crate::id::{SpiffeId, SpiffeIdError, TrustDomain};

/// Why certificates, keys or a peer's chain were refused. "X.509-SVID n" is the section of that standard. Limits are this
/// crate's own, and whom to talk to is the authorizer's matter: those errors name no standard.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum X509Error {
    /// The PEM text is longer than is read at once.
    #[error("PEM of {bytes} bytes; at most {max} are read", max = super::MAX_PEM_BYTES)]
    PemTooLarge {
        /// The length given.
        bytes: usize,
    },
    /// The text is not PEM.
    #[error("malformed PEM: {detail} (RFC 7468 3)")]
    Pem {
        /// What the PEM parser said.
        detail: String,
    },
    /// There is no certificate.
    #[error("no certificate found (RFC 7468 5)")]
    NoCertificate,
    /// More certificates than a chain may have.
    #[error("a chain of {count} certificates; at most {max} are accepted", max = super::MAX_CHAIN)]
    ChainTooLong {
        /// How many were given.
        count: usize,
    },
    /// A certificate that did not issue the one before it.
    #[error("certificate {place} of the chain did not issue the one before it (RFC 8446 4.4.2)")]
    ChainOrder {
        /// Its place, the leaf's being 0.
        place: usize,
    },
    /// More roots than one trust domain may have.
    #[error("{count} roots of one trust domain; at most {max} are accepted", max = crate::bundle::MAX_ROOTS)]
    TooManyRoots {
        /// How many there would be.
        count: usize,
    },
    /// One certificate is larger than is accepted.
    #[error("a certificate of {bytes} bytes; at most {max} are accepted", max = super::MAX_CERTIFICATE_BYTES)]
    CertificateTooLarge {
        /// Its length.
        bytes: usize,
    },
    /// Bytes that are not a certificate.
    #[error("malformed certificate: {detail} (RFC 5280 4.1)")]
    Der {
        /// What the parser said.
        detail: String,
    },
    /// Too many subject alternative names.
    #[error("{count} subject alternative names; at most {max} are accepted", max = super::MAX_SANS)]
    TooManySans {
        /// How many the certificate has.
        count: usize,
    },
    /// The leaf has no URI subject alternative name.
    #[error("the certificate has no URI name, an SVID has exactly one (X.509-SVID 2)")]
    NoUriSan,
    /// The leaf has several URI subject alternative names.
    #[error("the certificate has {count} URI names, an SVID has exactly one (X.509-SVID 2)")]
    ManyUriSans {
        /// How many it has.
        count: usize,
    },
    /// The URI name is not a SPIFFE ID.
    #[error("the URI name is not a SPIFFE ID (X.509-SVID 2): {source}")]
    SpiffeId {
        /// The rule that it breaks.
        #[from]
        source: SpiffeIdError,
    },
    /// A leaf whose ID has no path.
    #[error("a leaf's SPIFFE ID has a path, {id} has none (X.509-SVID 3.1)")]
    LeafWithoutPath {
        /// The ID.
        id: SpiffeId,
    },
    /// A leaf without a subject whose alternative names are not critical.
    #[error("without a subject, the subject alternative names are critical (X.509-SVID 3.1)")]
    NamesNotCritical,
    /// A leaf that is a CA.
    #[error("a leaf is not a CA (X.509-SVID 4.1)")]
    LeafIsCa,
    /// No key usage extension.
    #[error("the key usage extension is missing (X.509-SVID 4.3)")]
    KeyUsageMissing,
    /// The key usage extension is not critical.
    #[error("the key usage extension is not critical (X.509-SVID 4.3)")]
    KeyUsageNotCritical,
    /// A leaf without digitalSignature.
    #[error("a leaf sets digitalSignature (X.509-SVID 4.3)")]
    LeafWithoutDigitalSignature,
    /// A leaf with keyCertSign.
    #[error("a leaf does not set keyCertSign (X.509-SVID 4.3)")]
    LeafMaySignCertificates,
    /// A leaf with cRLSign.
    #[error("a leaf does not set cRLSign (X.509-SVID 4.3)")]
    LeafMaySignCrls,
    /// Extended key usage without both TLS purposes.
    #[error("extended key usage names both serverAuth and clientAuth (X.509-SVID 4.4)")]
    ExtendedKeyUsage,
    /// A signing certificate without the CA flag.
    #[error("a signing certificate sets cA (X.509-SVID 4.1)")]
    SignerNotCa,
    /// A signing certificate without keyCertSign.
    #[error("a signing certificate sets keyCertSign (X.509-SVID 4.3)")]
    SignerMayNotSign,
    /// A signing certificate whose ID has a path.
    #[error("a signing certificate's SPIFFE ID has no path, {id} has one (X.509-SVID 3.2)")]
    SignerWithPath {
        /// The ID.
        id: SpiffeId,
    },
    /// A signing certificate constrains URI names.
    #[error(
        "URI name constraints are not supported by path validation, so the chain is refused (X.509-SVID 4.2)"
    )]
    UriNameConstraints,
    /// No private key in the text.
    #[error("no private key found (RFC 7468 10, RFC 5915 4)")]
    NoKey,
    /// Several private keys in the text.
    #[error("{count} private keys found, expected one (RFC 7468 10)")]
    ManyKeys {
        /// How many were found.
        count: usize,
    },
    /// A private key that cannot be used.
    #[error(
        "the private key is malformed or of an unsupported type (RFC 5958 2, RFC 5915 3, RFC 8017 A.1.2)"
    )]
    Key,
    /// The key is not the leaf's.
    #[error("the private key does not belong to the certificate (RFC 5280 4.1.2.7)")]
    KeyMismatch,
    /// No roots are known for the peer's trust domain.
    #[error("no trust bundle for trust domain {trust_domain} (X.509-SVID 5.1)")]
    NoBundle {
        /// The peer's trust domain.
        trust_domain: TrustDomain,
    },
    /// The certificate's time is over.
    #[error("the certificate expired (X.509-SVID 5.1, RFC 5280 6.1.3)")]
    Expired,
    /// The certificate's time has not come.
    #[error("the certificate is not yet valid (X.509-SVID 5.1, RFC 5280 6.1.3)")]
    NotYetValid,
    /// The chain does not lead to a root of the trust domain.
    #[error("the chain leads to no root of the trust domain (X.509-SVID 5.1)")]
    UnknownIssuer,
    /// A certificate of the chain is revoked.
    #[error("the certificate is revoked (X.509-SVID 5.1, RFC 5280 6.3)")]
    Revoked,
    /// Path validation failed for another reason.
    #[error("path validation: {reason} (X.509-SVID 5.1, RFC 5280 6)")]
    Path {
        /// What the validator said.
        reason: webpki::Error,
    },
    /// The peer is who it says, but not whom we may talk to.
    #[error("peer {id} is not authorized: expected {expected}")]
    Denied {
        /// The verified ID.
        id: SpiffeId,
        /// Whom the authorizer expects.
        expected: String,
    },
    /// A revocation list that cannot be used.
    #[error("malformed certificate revocation list: {detail} (RFC 5280 5.1)")]
    Crl {
        /// What the parser said.
        detail: String,
    },
    /// A time that does not fit.
    #[error("a validity time is out of range: {time:?} (RFC 5280 4.1.2.5)")]
    Time {
        /// The time.
        time: SystemTime,
    },
}

impl X509Error {
    /// A stable label of low cardinality, for metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::PemTooLarge { .. } | Self::ChainTooLong { .. } => "too_large",
            Self::CertificateTooLarge { .. } | Self::TooManySans { .. } | Self::TooManyRoots { .. } => {
                "too_large"
            }
            Self::Pem { .. } | Self::NoCertificate | Self::Der { .. } | Self::Time { .. } => "malformed",
            Self::NoUriSan | Self::ManyUriSans { .. } => "uri_san_count",
            Self::SpiffeId { .. } | Self::LeafWithoutPath { .. } => "spiffe_id",
            Self::NamesNotCritical => "names_not_critical",
            Self::LeafIsCa | Self::SignerNotCa => "basic_constraints",
            Self::KeyUsageMissing | Self::KeyUsageNotCritical | Self::LeafWithoutDigitalSignature => {
                "key_usage"
            }
            Self::LeafMaySignCertificates | Self::LeafMaySignCrls | Self::SignerMayNotSign => "key_usage",
            Self::ExtendedKeyUsage => "extended_key_usage",
            Self::SignerWithPath { .. } => "signer_id",
            Self::UriNameConstraints => "name_constraints",
            Self::NoKey | Self::ManyKeys { .. } | Self::Key | Self::KeyMismatch => "key",
            Self::NoBundle { .. } => "no_bundle",
            Self::Expired => "expired",
            Self::NotYetValid => "not_yet_valid",
            Self::ChainOrder { .. } => "chain_order",
            Self::UnknownIssuer => "unknown_issuer",
            Self::Revoked => "revoked",
            Self::Path { .. } => "path",
            Self::Denied { .. } => "denied",
            Self::Crl { .. } => "crl",
        }
    }
}

impl From<webpki::Error> for X509Error {
    fn from(error: webpki::Error) -> Self {
        use webpki::Error as E;
        match error {
            E::CertExpired { .. } => Self::Expired,
            E::CertNotValidYet { .. } => Self::NotYetValid,
            E::UnknownIssuer => Self::UnknownIssuer,
            E::CertRevoked => Self::Revoked,
            E::CaUsedAsEndEntity => Self::LeafIsCa,
            E::EndEntityUsedAsCa => Self::SignerNotCa,
            reason => Self::Path { reason },
        }
    }
}

impl From<X509Error> for rustls::Error {
    fn from(error: X509Error) -> Self {
        use rustls::CertificateError as C;
        Self::InvalidCertificate(match error {
            X509Error::Expired => C::Expired,
            X509Error::NotYetValid => C::NotValidYet,
            X509Error::UnknownIssuer => C::UnknownIssuer,
            X509Error::Revoked => C::Revoked,
            X509Error::Der { .. } => C::BadEncoding,
            other => C::Other(rustls::OtherError(std::sync::Arc::new(other))),
        })
    }
}
