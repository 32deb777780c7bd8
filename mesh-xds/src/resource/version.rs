//! Versions as hashes of the content.

use std::fmt;

/// The version of one resource: a hash of its encoded bytes, written as 16 hexadecimal digits.
///
/// Equal content has an equal version on every server and after every restart, which is what lets a client that
/// reconnects with `initial_resource_versions` receive nothing it already has.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version(u64);

impl Version {
    /// The version of these bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(twox_hash::XxHash64::oneshot(0, bytes))
    }

    /// A version over several others, in their order: the version of a whole set.
    #[must_use]
    pub fn of_all<'a>(parts: impl IntoIterator<Item = (&'a str, Self)>) -> Self {
        let mut hasher = twox_hash::XxHash64::with_seed(1);
        for (name, version) in parts {
            std::hash::Hasher::write(&mut hasher, name.as_bytes());
            std::hash::Hasher::write(&mut hasher, &[0]);
            std::hash::Hasher::write(&mut hasher, &version.0.to_le_bytes());
        }
        Self(std::hash::Hasher::finish(&hasher))
    }

    /// Reads what [`Display`](fmt::Display) wrote; anything else is `None`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        (text.len() == 16).then(|| u64::from_str_radix(text, 16).ok().map(Self))?
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Version({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_displayed_parses_back() {
        let version = Version::of(b"cluster");
        assert_eq!(Version::parse(&version.to_string()), Some(version));
        assert_eq!(Version::parse("1"), None);
        assert_eq!(Version::parse("zzzzzzzzzzzzzzzz"), None);
    }

    #[test]
    fn a_set_depends_on_names_and_versions() {
        let (a, b) = (Version::of(b"a"), Version::of(b"b"));
        assert_eq!(Version::of_all([("x", a), ("y", b)]), Version::of_all([("x", a), ("y", b)]));
        assert_ne!(Version::of_all([("x", a), ("y", b)]), Version::of_all([("x", b), ("y", a)]));
        assert_ne!(Version::of_all([("x", a)]), Version::of_all([]));
    }
}
