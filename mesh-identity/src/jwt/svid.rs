use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::json;

use super::{Algorithm, Audience, Claims, JwtError, JwtSigner, UnverifiedToken};
use crate::{bundle::BundleSet, id::SpiffeId};

/// A validated JWT-SVID (JWT-SVID section 3).
#[derive(Debug, Clone, PartialEq)]
pub struct JwtSvid {
    id: SpiffeId,
    audience: Vec<String>,
    expiry: u64,
    claims: Claims,
}

impl JwtSvid {
    /// Validates a token: algorithm, signature by the bundle of the trust domain that `sub` names, `exp`, `aud`.
    ///
    /// # Errors
    /// The rule it breaks. A trust domain without a bundle gives [`JwtError::UnknownKey`].
    pub fn validate<S: AsRef<str>>(
        token: &str,
        bundles: &BundleSet,
        audience: &[S],
        now: SystemTime,
    ) -> Result<Self, JwtError> {
        let token = UnverifiedToken::parse(token)?;
        let subject =
            token.claim("sub").and_then(|sub| sub.as_str()).ok_or(JwtError::Claim { claim: "sub" })?;
        let id = SpiffeId::parse(subject)?;
        let unknown = JwtError::UnknownKey { kid: token.kid().map(super::error::shortened) };
        let bundle = bundles.get(id.trust_domain_str()).ok_or(unknown)?;
        let claims = token.verify(bundle.jwt_authorities(), Algorithm::JWT_SVID)?;
        claims.check_time(now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs())?;
        claims.check_audience(audience)?;
        let Audience(audience) = claims.audience()?;
        Ok(Self { id, audience, expiry: claims.expiry()?, claims })
    }

    /// Issues a token for `id`, valid from `now` for `ttl`.
    ///
    /// # Errors
    /// An empty audience (JWT-SVID 3.2), or no randomness.
    pub fn mint(
        signer: &JwtSigner,
        id: &SpiffeId,
        audience: &[String],
        now: SystemTime,
        ttl: Duration,
    ) -> Result<String, JwtError> {
        if audience.is_empty() {
            return Err(JwtError::Claim { claim: "aud" });
        }
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let claims = json!({"sub": id, "aud": audience, "iat": now, "exp": now + ttl.as_secs()});
        signer.sign(&claims)
    }

    /// The SPIFFE ID.
    pub fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// Whom the token is for.
    pub fn audience(&self) -> &[String] {
        &self.audience
    }

    /// The expiry, in seconds since 1970.
    pub fn expiry(&self) -> u64 {
        self.expiry
    }

    /// All claims.
    pub fn claims(&self) -> &Claims {
        &self.claims
    }
}
