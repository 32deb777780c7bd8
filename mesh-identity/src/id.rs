//! SPIFFE names, to the letter of the SPIFFE-ID standard.
//!
//! A name that is nearly right is a hole: `spiffe://td/ns/a/../b` must not be able to mean `b` to one side and
//! something else to the other. So nothing is normalised, everything that is not exactly a SPIFFE ID is refused, and
//! each refusal says which rule of the standard was broken.

mod borrowed;
mod istio;
mod trust_domain;

#[cfg(test)]
mod tests;

use std::{borrow::Borrow, fmt, str::FromStr, sync::Arc};

pub use self::{
    borrowed::SpiffeIdRef,
    istio::{IstioName, expand_with_trust_domains},
    trust_domain::TrustDomain,
};

/// The longest SPIFFE ID in bytes (SPIFFE-ID section 2.3).
pub const MAX_ID_BYTES: usize = 2048;

/// The longest trust domain name in bytes (SPIFFE-ID section 2.3: the limit of a URI host).
pub const MAX_TRUST_DOMAIN_BYTES: usize = 255;

/// An owned, valid SPIFFE ID such as `spiffe://cluster.local/ns/shop/sa/cart`.
///
/// Cheap to clone (one reference count). Compares, hashes and orders as its text.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SpiffeId(Arc<str>);

impl SpiffeId {
    /// Parses and validates `text`; copies it once it is known to be valid.
    ///
    /// # Errors
    /// The first rule of the SPIFFE-ID standard that `text` breaks.
    pub fn parse(text: &str) -> Result<Self, SpiffeIdError> {
        SpiffeIdRef::parse(text).map(Into::into)
    }

    /// Builds an ID of `trust_domain` from path segments, for example `["ns", "shop", "sa", "cart"]`.
    ///
    /// # Errors
    /// An empty or dot segment, a character outside the standard's set, or an ID over [`MAX_ID_BYTES`].
    pub fn from_segments(trust_domain: &TrustDomain, segments: &[&str]) -> Result<Self, SpiffeIdError> {
        let length = segments.iter().map(|s| s.len() + 1).sum::<usize>();
        let mut text = String::with_capacity(SCHEME.len() + trust_domain.as_str().len() + length);
        text.push_str(SCHEME);
        text.push_str(trust_domain.as_str());
        for segment in segments {
            if segment.contains('/') {
                return Err(SpiffeIdError::PathCharacter { character: '/', offset: text.len() + 1 });
            }
            text.push('/');
            text.push_str(segment);
        }
        Self::parse(&text)
    }

    /// Istio's name of a workload: `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`.
    ///
    /// # Errors
    /// As [`SpiffeId::from_segments`].
    pub fn workload(
        trust_domain: &TrustDomain,
        namespace: &str,
        service_account: &str,
    ) -> Result<Self, SpiffeIdError> {
        Self::from_segments(trust_domain, &["ns", namespace, "sa", service_account])
    }

    /// The whole ID as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// A borrowed view with the parts.
    pub fn as_ref(&self) -> SpiffeIdRef<'_> {
        SpiffeIdRef::trusted(&self.0)
    }

    /// The trust domain, as text without the scheme.
    pub fn trust_domain_str(&self) -> &str {
        self.as_ref().trust_domain_str()
    }

    /// The trust domain.
    pub fn trust_domain(&self) -> TrustDomain {
        self.as_ref().trust_domain()
    }

    /// The path with its leading slash, or the empty string for a trust domain's own ID.
    pub fn path(&self) -> &str {
        self.as_ref().path()
    }

    /// Istio's view of the ID, when its path is `/ns/<namespace>/sa/<service account>`.
    pub fn istio(&self) -> Option<IstioName<'_>> {
        self.as_ref().istio()
    }
}

const SCHEME: &str = "spiffe://";

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for SpiffeId {
    type Err = SpiffeIdError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text)
    }
}

impl TryFrom<&str> for SpiffeId {
    type Error = SpiffeIdError;
    fn try_from(text: &str) -> Result<Self, Self::Error> {
        Self::parse(text)
    }
}

impl From<SpiffeIdRef<'_>> for SpiffeId {
    fn from(id: SpiffeIdRef<'_>) -> Self {
        Self(Arc::from(id.as_str()))
    }
}

impl Borrow<str> for SpiffeId {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl serde::Serialize for SpiffeId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> serde::Deserialize<'de> for SpiffeId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).map_err(serde::de::Error::custom)
    }
}

/// Why a text is not a SPIFFE ID or trust domain. Offsets are in bytes from the start of the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SpiffeIdError {
    /// The text is empty.
    #[error("a SPIFFE ID cannot be empty (SPIFFE-ID 2)")]
    Empty,
    /// The ID is longer than the standard allows.
    #[error("a SPIFFE ID has at most {MAX_ID_BYTES} bytes, this has {length} (SPIFFE-ID 2.3)")]
    TooLong {
        /// The length in bytes.
        length: usize,
    },
    /// The text does not begin with `spiffe://`.
    #[error("a SPIFFE ID begins with `spiffe://` (SPIFFE-ID 2)")]
    Scheme,
    /// Nothing stands between the scheme and the path.
    #[error("the trust domain is missing (SPIFFE-ID 2.1)")]
    TrustDomainMissing,
    /// The trust domain is longer than a host name may be.
    #[error("a trust domain has at most {MAX_TRUST_DOMAIN_BYTES} bytes, this has {length} (SPIFFE-ID 2.3)")]
    TrustDomainTooLong {
        /// The length in bytes.
        length: usize,
    },
    /// The trust domain names a user.
    #[error("a trust domain has no user information (SPIFFE-ID 2.1)")]
    UserInfo,
    /// The trust domain names a port.
    #[error("a trust domain has no port (SPIFFE-ID 2.1)")]
    Port,
    /// An upper-case letter in the trust domain.
    #[error("a trust domain is lower case, `{character}` at byte {offset} is not (SPIFFE-ID 2.1)")]
    TrustDomainUpperCase {
        /// The letter.
        character: char,
        /// Where it stands.
        offset: usize,
    },
    /// A character that a trust domain may not hold.
    #[error(
        "a trust domain holds only a-z, 0-9, `.`, `-` and `_`, not {character:?} at byte {offset} (SPIFFE-ID 2.1)"
    )]
    TrustDomainCharacter {
        /// The character.
        character: char,
        /// Where it stands.
        offset: usize,
    },
    /// Two slashes in a row.
    #[error("empty path segment at byte {offset} (SPIFFE-ID 2.2)")]
    EmptySegment {
        /// Where the segment would begin.
        offset: usize,
    },
    /// A slash at the end.
    #[error("a path has no trailing slash (SPIFFE-ID 2.2)")]
    TrailingSlash,
    /// A segment `.` or `..`.
    #[error("relative path segment at byte {offset} (SPIFFE-ID 2.2)")]
    DotSegment {
        /// Where the segment begins.
        offset: usize,
    },
    /// Percent-encoding.
    #[error("percent-encoding at byte {offset} (SPIFFE-ID 2.1, 2.2)")]
    PercentEncoding {
        /// Where the percent sign stands.
        offset: usize,
    },
    /// A query component.
    #[error("a SPIFFE ID has no query, found `?` at byte {offset} (SPIFFE-ID 2)")]
    Query {
        /// Where the question mark stands.
        offset: usize,
    },
    /// A fragment component.
    #[error("a SPIFFE ID has no fragment, found `#` at byte {offset} (SPIFFE-ID 2)")]
    Fragment {
        /// Where the hash sign stands.
        offset: usize,
    },
    /// A character that a path may not hold.
    #[error(
        "a path holds only letters, digits, `.`, `-` and `_`, not {character:?} at byte {offset} (SPIFFE-ID 2.2)"
    )]
    PathCharacter {
        /// The character.
        character: char,
        /// Where it stands.
        offset: usize,
    },
}

impl SpiffeIdError {
    /// A stable label of low cardinality, for metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Empty => "empty",
            Self::TooLong { .. } => "too_long",
            Self::Scheme => "scheme",
            Self::TrustDomainMissing => "trust_domain_missing",
            Self::TrustDomainTooLong { .. } => "trust_domain_too_long",
            Self::UserInfo => "user_info",
            Self::Port => "port",
            Self::TrustDomainUpperCase { .. } => "trust_domain_upper_case",
            Self::TrustDomainCharacter { .. } => "trust_domain_character",
            Self::EmptySegment { .. } => "empty_segment",
            Self::TrailingSlash => "trailing_slash",
            Self::DotSegment { .. } => "dot_segment",
            Self::PercentEncoding { .. } => "percent_encoding",
            Self::Query { .. } => "query",
            Self::Fragment { .. } => "fragment",
            Self::PathCharacter { .. } => "path_character",
        }
    }
}
