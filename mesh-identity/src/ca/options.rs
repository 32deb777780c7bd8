use std::{fmt, time::Duration};

use zeroize::Zeroizing;

use super::CaError;

/// How a self-signed root is made.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct RootOptions {
    /// How long the root is valid; default 10 years, as Istio's.
    pub lifetime: Duration,
    /// The organisation in the root's subject; default the trust domain. A number is added so that two roots of one
    /// trust domain never share a name.
    pub organization: Option<String>,
    /// The root's key; default P-256.
    pub key: KeyKind,
}

impl Default for RootOptions {
    fn default() -> Self {
        Self { lifetime: Duration::from_secs(10 * 365 * 24 * 3600), organization: None, key: KeyKind::EcP256 }
    }
}

/// A type of key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum KeyKind {
    /// ECDSA on P-256, the default everywhere.
    EcP256,
    /// ECDSA on P-384.
    EcP384,
    /// Ed25519.
    Ed25519,
    /// RSA of at least 2048 bits.
    Rsa,
}

impl fmt::Display for KeyKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::EcP256 => "P-256",
            Self::EcP384 => "P-384",
            Self::Ed25519 => "Ed25519",
            Self::Rsa => "RSA",
        })
    }
}

/// What a CA issues.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct IssuancePolicy {
    /// The lifetime when none is asked for; default 24 hours.
    pub default_lifetime: Duration,
    /// The longest lifetime; default 90 days. Asking for more is an error, not a shorter certificate.
    pub max_lifetime: Duration,
    /// How far validity begins in the past, for clocks that differ; default 2 minutes.
    pub backdate: Duration,
    /// With less than this left of its own validity the CA refuses to sign; default 10 minutes.
    pub min_remaining: Duration,
    /// How long [`Ca::follow_files`](super::Ca::follow_files) has a plugged-in root trusted before its signer signs, so
    /// that every workload has the bundle with both roots by then. `None`, the default, is one default lifetime:
    /// workloads renew, and fetch the bundle, at half of it. Longer where certificates of a longer lifetime are asked for.
    pub root_grace: Option<Duration>,
    /// The key types that requests may have; default all. RSA keys have 2048 to 8192 bits.
    pub key_kinds: Vec<KeyKind>,
}

impl Default for IssuancePolicy {
    fn default() -> Self {
        Self {
            default_lifetime: Duration::from_secs(24 * 3600),
            max_lifetime: Duration::from_secs(90 * 24 * 3600),
            backdate: Duration::from_secs(120),
            min_remaining: Duration::from_secs(600),
            root_grace: None,
            key_kinds: vec![KeyKind::EcP256, KeyKind::EcP384, KeyKind::Ed25519, KeyKind::Rsa],
        }
    }
}

impl IssuancePolicy {
    /// The default policy with another default lifetime, which raises the maximum when it is over it.
    #[must_use]
    pub fn with_default_lifetime(mut self, lifetime: Duration) -> Self {
        self.default_lifetime = lifetime;
        self.max_lifetime = self.max_lifetime.max(lifetime);
        self
    }

    pub(super) fn root_grace(&self) -> Duration {
        self.root_grace.unwrap_or(self.default_lifetime)
    }

    /// The lifetime to give: what was asked for, or the default for nothing or zero.
    pub(super) fn lifetime(&self, asked: Option<Duration>) -> Result<Duration, CaError> {
        match asked.filter(|asked| !asked.is_zero()) {
            None => Ok(self.default_lifetime),
            Some(asked) if asked > self.max_lifetime => {
                Err(CaError::Lifetime { asked, max: self.max_lifetime })
            }
            Some(asked) => Ok(asked),
        }
    }
}

/// A CA as PEM texts, named as in Istio's `cacerts` secret. `Debug` does not show the key.
#[derive(Clone)]
pub struct CaPem {
    /// `ca-key.pem`: the signing key.
    pub key: Zeroizing<String>,
    /// `ca-cert.pem`: the signing certificate.
    pub certificate: String,
    /// `cert-chain.pem`: intermediates above the signing certificate, nearest first; empty for a self-signed CA. May
    /// begin with the signing certificate itself and end with the root; both are recognised.
    pub chain: String,
    /// `root-cert.pem`: the roots to trust.
    pub roots: String,
}

impl fmt::Debug for CaPem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CaPem")
            .field("certificate", &self.certificate)
            .field("chain", &self.chain)
            .field("roots", &self.roots)
            .finish_non_exhaustive()
    }
}
