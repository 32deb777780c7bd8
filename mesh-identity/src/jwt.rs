//! Signed tokens: JSON Web Keys, verifying and signing (RFC 7515, 7517, 7518), and JWT-SVIDs.
//!
//! The signatures are aws-lc-rs'. What is ours is the strictness: a fixed list of asymmetric algorithms, the key
//! decides which of them it may be used with (never the token's header alone), and everything has a bound.

mod error;
mod jwk;
mod sign;
mod svid;
mod token;

#[cfg(test)]
mod tests;

pub(crate) use self::jwk::read_keys;
pub use self::{
    error::JwtError,
    jwk::{JwkSet, KeyUse, MAX_JWKS_BYTES, MAX_KEYS, VerifyingKey},
    sign::JwtSigner,
    svid::JwtSvid,
    token::{Audience, Claims, MAX_TOKEN_BYTES, UnverifiedToken, verify},
};

/// A signature algorithm of RFC 7518. Symmetric algorithms and `none` do not exist here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Algorithm {
    /// RSASSA-PKCS1-v1_5 with SHA-256.
    Rs256,
    /// RSASSA-PKCS1-v1_5 with SHA-384.
    Rs384,
    /// RSASSA-PKCS1-v1_5 with SHA-512.
    Rs512,
    /// ECDSA on P-256 with SHA-256.
    Es256,
    /// ECDSA on P-384 with SHA-384.
    Es384,
    /// ECDSA on P-521 with SHA-512.
    Es512,
    /// RSASSA-PSS with SHA-256.
    Ps256,
    /// RSASSA-PSS with SHA-384.
    Ps384,
    /// RSASSA-PSS with SHA-512.
    Ps512,
}

impl Algorithm {
    /// What the JWT-SVID standard allows (section 3).
    pub const JWT_SVID: &'static [Self] = &[
        Self::Rs256,
        Self::Rs384,
        Self::Rs512,
        Self::Es256,
        Self::Es384,
        Self::Es512,
        Self::Ps256,
        Self::Ps384,
        Self::Ps512,
    ];

    /// What Kubernetes signs service-account tokens with.
    pub const KUBERNETES: &'static [Self] =
        &[Self::Rs256, Self::Es256, Self::Es384, Self::Es512, Self::Rs384, Self::Rs512];

    /// The algorithm with this name in a token's header.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::JWT_SVID.iter().copied().find(|algorithm| algorithm.name() == name)
    }

    /// The name in a token's header.
    pub fn name(self) -> &'static str {
        match self {
            Self::Rs256 => "RS256",
            Self::Rs384 => "RS384",
            Self::Rs512 => "RS512",
            Self::Es256 => "ES256",
            Self::Es384 => "ES384",
            Self::Es512 => "ES512",
            Self::Ps256 => "PS256",
            Self::Ps384 => "PS384",
            Self::Ps512 => "PS512",
        }
    }
}
