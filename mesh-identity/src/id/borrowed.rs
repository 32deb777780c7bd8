use std::fmt;

use super::{IstioName, MAX_ID_BYTES, SCHEME, SpiffeIdError, TrustDomain, trust_domain::check_trust_domain};

/// A valid SPIFFE ID that borrows its text: parsing neither copies nor allocates.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SpiffeIdRef<'a> {
    text: &'a str,
    path_start: usize,
}

impl<'a> SpiffeIdRef<'a> {
    /// Parses and validates `text` without copying it.
    ///
    /// # Errors
    /// The first rule of the SPIFFE-ID standard that `text` breaks.
    pub fn parse(text: &'a str) -> Result<Self, SpiffeIdError> {
        if text.is_empty() {
            return Err(SpiffeIdError::Empty);
        }
        if text.len() > MAX_ID_BYTES {
            return Err(SpiffeIdError::TooLong { length: text.len() });
        }
        let rest = text.strip_prefix(SCHEME).ok_or(SpiffeIdError::Scheme)?;
        let host = rest.bytes().position(|b| b == b'/').unwrap_or(rest.len());
        check_trust_domain(&rest[..host], SCHEME.len())?;
        let path_start = SCHEME.len() + host;
        check_path(text, path_start)?;
        Ok(Self { text, path_start })
    }

    /// For text that [`SpiffeIdRef::parse`] accepted before.
    pub(super) fn trusted(text: &'a str) -> Self {
        let host = text.bytes().skip(SCHEME.len()).position(|b| b == b'/');
        Self { text, path_start: host.map_or(text.len(), |at| at + SCHEME.len()) }
    }

    /// The whole ID as text.
    pub fn as_str(&self) -> &'a str {
        self.text
    }

    /// The trust domain, as text without the scheme.
    pub fn trust_domain_str(&self) -> &'a str {
        &self.text[SCHEME.len()..self.path_start]
    }

    /// The trust domain as an owned value.
    pub fn trust_domain(&self) -> TrustDomain {
        TrustDomain::trusted(self.trust_domain_str())
    }

    /// The path with its leading slash, or the empty string for a trust domain's own ID.
    pub fn path(&self) -> &'a str {
        &self.text[self.path_start..]
    }

    /// The path's segments, without slashes.
    pub fn segments(&self) -> impl Iterator<Item = &'a str> + use<'a> {
        self.path().split('/').skip(1)
    }

    /// Istio's view of the ID, when its path is `/ns/<namespace>/sa/<service account>`.
    pub fn istio(&self) -> Option<IstioName<'a>> {
        let mut segments = self.segments();
        let name = match (segments.next(), segments.next(), segments.next(), segments.next()) {
            (Some("ns"), Some(namespace), Some("sa"), Some(service_account)) => {
                IstioName { trust_domain: self.trust_domain_str(), namespace, service_account }
            }
            _ => return None,
        };
        segments.next().is_none().then_some(name)
    }
}

impl fmt::Debug for SpiffeIdRef<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.text, f)
    }
}

impl fmt::Display for SpiffeIdRef<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text)
    }
}

/// Checks the path of `text`, which begins at byte `start` (SPIFFE-ID section 2.2).
fn check_path(text: &str, start: usize) -> Result<(), SpiffeIdError> {
    let bytes = text.as_bytes();
    if start == bytes.len() {
        return Ok(());
    }
    let mut segment_start = start + 1;
    for offset in start + 1..=bytes.len() {
        let at_end = offset == bytes.len();
        if !at_end && PATH_BYTE[usize::from(bytes[offset])] {
            continue;
        }
        if !at_end && bytes[offset] != b'/' {
            return Err(bad_path_character(text, offset));
        }
        match &bytes[segment_start..offset] {
            b"" if at_end => return Err(SpiffeIdError::TrailingSlash),
            b"" => return Err(SpiffeIdError::EmptySegment { offset: segment_start }),
            b"." | b".." => return Err(SpiffeIdError::DotSegment { offset: segment_start }),
            _ => segment_start = offset + 1,
        }
    }
    Ok(())
}

fn bad_path_character(text: &str, offset: usize) -> SpiffeIdError {
    // Every byte before `offset` is ASCII, so `offset` is a character boundary.
    match text[offset..].chars().next().unwrap_or('\u{fffd}') {
        '%' => SpiffeIdError::PercentEncoding { offset },
        '?' => SpiffeIdError::Query { offset },
        '#' => SpiffeIdError::Fragment { offset },
        character => SpiffeIdError::PathCharacter { character, offset },
    }
}

const PATH_BYTE: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < 256 {
        let b = byte as u8;
        table[byte] = b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
        byte += 1;
    }
    table
};
