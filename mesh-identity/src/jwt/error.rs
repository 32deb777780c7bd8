use crate::id::SpiffeIdError;

/// Why a token, a key or a key set was refused. Never quotes the token: a valid one is a secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum JwtError {
    /// A token over [`super::MAX_TOKEN_BYTES`].
    #[error("a token of {bytes} bytes; at most {max} are read", max = super::MAX_TOKEN_BYTES)]
    TooLarge {
        /// Its length.
        bytes: usize,
    },
    /// Not three base64url parts of JSON.
    #[error("malformed token: {part} (RFC 7515 7.1)")]
    Malformed {
        /// Which part is wrong.
        part: &'static str,
    },
    /// An algorithm outside the allow-list.
    #[error("algorithm {algorithm:?} is not allowed (RFC 8725 3.1)")]
    Algorithm {
        /// What the header says, shortened.
        algorithm: String,
    },
    /// A header that demands an extension.
    #[error("the token has critical header parameters, none is supported (RFC 7515 4.1.11)")]
    CriticalHeader,
    /// A `typ` other than JWT or JOSE.
    #[error("the token's type is {kind:?}, expected JWT or JOSE (JWT-SVID 2.3)")]
    Type {
        /// What the header says, shortened.
        kind: String,
    },
    /// No key fits the token.
    #[error("no key with id {kid:?} for the token's algorithm")]
    UnknownKey {
        /// The key ID of the header, shortened.
        kid: Option<String>,
    },
    /// The signature is wrong.
    #[error("the signature does not verify (RFC 7515 5.2)")]
    Signature,
    /// A claim that must be there is missing or of the wrong type.
    #[error("claim {claim:?} is missing or malformed (RFC 7519 4.1)")]
    Claim {
        /// Its name.
        claim: &'static str,
    },
    /// The token's time is over.
    #[error("the token expired at {exp}, it is {now} (RFC 7519 4.1.4)")]
    Expired {
        /// Seconds since 1970.
        exp: u64,
        /// Seconds since 1970.
        now: u64,
    },
    /// The token's time has not come.
    #[error("the token is not valid before {nbf}, it is {now} (RFC 7519 4.1.5)")]
    NotYetValid {
        /// Seconds since 1970.
        nbf: u64,
        /// Seconds since 1970.
        now: u64,
    },
    /// The token is for somebody else.
    #[error("the token's audience does not include {expected:?} (RFC 7519 4.1.3)")]
    Audience {
        /// Whom it should be for.
        expected: String,
    },
    /// The token comes from somebody else.
    #[error("the token's issuer is not {expected:?} (RFC 7519 4.1.1)")]
    Issuer {
        /// Who should have issued it.
        expected: String,
    },
    /// The subject is not a SPIFFE ID.
    #[error("the token's subject is not a SPIFFE ID: {source} (JWT-SVID 3.1)")]
    Subject {
        /// The rule it breaks.
        #[from]
        source: SpiffeIdError,
    },
    /// A key set over [`super::MAX_JWKS_BYTES`] or [`super::MAX_KEYS`].
    #[error("the key set is too large: {size} {unit}")]
    KeySetTooLarge {
        /// How large.
        size: usize,
        /// Of what.
        unit: &'static str,
    },
    /// A key set that is not JSON of the right shape.
    #[error("malformed key set: {detail} (RFC 7517 5)")]
    KeySet {
        /// What is wrong.
        detail: String,
    },
    /// A key that cannot be used.
    #[error("key {index}: {detail} (RFC 7518 6)")]
    Key {
        /// Its place in the set.
        index: usize,
        /// What is wrong with it.
        detail: &'static str,
    },
    /// Signing failed.
    #[error("signing failed")]
    Signing,
}

impl JwtError {
    /// A stable label of low cardinality, for metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::TooLarge { .. } | Self::KeySetTooLarge { .. } => "too_large",
            Self::Malformed { .. } => "malformed",
            Self::Algorithm { .. } => "algorithm",
            Self::CriticalHeader | Self::Type { .. } => "header",
            Self::UnknownKey { .. } => "unknown_key",
            Self::Signature => "signature",
            Self::Claim { .. } => "claim",
            Self::Expired { .. } => "expired",
            Self::NotYetValid { .. } => "not_yet_valid",
            Self::Audience { .. } => "audience",
            Self::Issuer { .. } => "issuer",
            Self::Subject { .. } => "subject",
            Self::KeySet { .. } | Self::Key { .. } => "key_set",
            Self::Signing => "signing",
        }
    }
}

/// At most 64 characters of something that a stranger sent, for an error message.
pub(super) fn shortened(text: &str) -> String {
    text.chars().take(64).collect()
}
