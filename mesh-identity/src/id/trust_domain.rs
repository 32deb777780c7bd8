use std::{borrow::Borrow, fmt, str::FromStr, sync::Arc};

use super::{MAX_TRUST_DOMAIN_BYTES, SCHEME, SpiffeId, SpiffeIdError};

/// A valid trust domain name such as `cluster.local` (SPIFFE-ID section 2.1).
///
/// Cheap to clone (one reference count). Compares, hashes and orders as its text.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TrustDomain(Arc<str>);

impl TrustDomain {
    /// Parses a trust domain name, without a scheme.
    ///
    /// # Errors
    /// The first rule of the SPIFFE-ID standard that `name` breaks.
    pub fn parse(name: &str) -> Result<Self, SpiffeIdError> {
        check_trust_domain(name, 0)?;
        Ok(Self::trusted(name))
    }

    /// Parses a name as Kubernetes installations configure it: Istio writes `.` for the `@` of Google's
    /// service-account-like domains (`id@project.iam.example` becomes `id.project.iam.example`).
    ///
    /// # Errors
    /// As [`TrustDomain::parse`], after the replacement.
    pub fn parse_kubernetes(name: &str) -> Result<Self, SpiffeIdError> {
        if name.contains('@') { Self::parse(&name.replace('@', ".")) } else { Self::parse(name) }
    }

    pub(super) fn trusted(name: &str) -> Self {
        Self(Arc::from(name))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The trust domain's own ID, `spiffe://<name>`.
    pub fn id(&self) -> SpiffeId {
        SpiffeId(Arc::from(format!("{SCHEME}{}", self.0)))
    }
}

impl fmt::Debug for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for TrustDomain {
    type Err = SpiffeIdError;
    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::parse(name)
    }
}

impl TryFrom<&str> for TrustDomain {
    type Error = SpiffeIdError;
    fn try_from(name: &str) -> Result<Self, Self::Error> {
        Self::parse(name)
    }
}

impl Borrow<str> for TrustDomain {
    fn borrow(&self) -> &str {
        &self.0
    }
}

/// Checks a trust domain that stands at byte `base` of the text the user gave.
pub(super) fn check_trust_domain(name: &str, base: usize) -> Result<(), SpiffeIdError> {
    if name.is_empty() {
        return Err(SpiffeIdError::TrustDomainMissing);
    }
    if name.len() > MAX_TRUST_DOMAIN_BYTES {
        return Err(SpiffeIdError::TrustDomainTooLong { length: name.len() });
    }
    let good = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-' | b'_');
    let Some(at) = name.bytes().position(|b| !good(b)) else { return Ok(()) };
    let offset = base + at;
    // Every byte before `at` is ASCII, so `at` is a character boundary.
    Err(match name[at..].chars().next().unwrap_or('\u{fffd}') {
        '%' => SpiffeIdError::PercentEncoding { offset },
        '?' => SpiffeIdError::Query { offset },
        '#' => SpiffeIdError::Fragment { offset },
        '@' => SpiffeIdError::UserInfo,
        ':' if name[at..].contains('@') => SpiffeIdError::UserInfo,
        ':' => SpiffeIdError::Port,
        character if character.is_ascii_uppercase() => {
            SpiffeIdError::TrustDomainUpperCase { character, offset }
        }
        character => SpiffeIdError::TrustDomainCharacter { character, offset },
    })
}
