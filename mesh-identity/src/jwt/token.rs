use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::{Algorithm, JwkSet, JwtError, error::shortened};

/// The most bytes of a token. Kubernetes' have about 1.2 KiB.
pub const MAX_TOKEN_BYTES: usize = 16 << 10;

/// How far clocks may differ for `nbf` and `iat`, in seconds. `exp` has no leeway.
const CLOCK_SKEW_SECONDS: u64 = 60;

/// A token that was taken apart, its signature not yet looked at.
pub struct UnverifiedToken<'a> {
    algorithm: Algorithm,
    kid: Option<String>,
    signed: &'a str,
    signature: Vec<u8>,
    claims: Map<String, Value>,
}

impl std::fmt::Debug for UnverifiedToken<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("UnverifiedToken")
            .field("algorithm", &self.algorithm)
            .field("kid", &self.kid)
            .finish_non_exhaustive()
    }
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: Option<String>,
    typ: Option<String>,
    crit: Option<Value>,
}

impl<'a> UnverifiedToken<'a> {
    /// Takes a token in compact form apart.
    ///
    /// # Errors
    /// A token over the limit, of another shape, with an unknown algorithm, type or critical header parameter.
    pub fn parse(token: &'a str) -> Result<Self, JwtError> {
        if token.len() > MAX_TOKEN_BYTES {
            return Err(JwtError::TooLarge { bytes: token.len() });
        }
        let malformed = |part| JwtError::Malformed { part };
        let (signed, signature) = token.rsplit_once('.').ok_or_else(|| malformed("three parts"))?;
        let (header, claims) = signed.split_once('.').ok_or_else(|| malformed("three parts"))?;
        if claims.contains('.') {
            return Err(malformed("three parts"));
        }
        let decode = |text: &str, part| URL_SAFE_NO_PAD.decode(text).map_err(|_| malformed(part));
        let header: Header =
            serde_json::from_slice(&decode(header, "header")?).map_err(|_| malformed("header"))?;
        if header.crit.is_some() {
            return Err(JwtError::CriticalHeader);
        }
        if let Some(kind) = header.typ.filter(|typ| typ != "JWT" && typ != "JOSE") {
            return Err(JwtError::Type { kind: shortened(&kind) });
        }
        let algorithm = Algorithm::from_name(&header.alg)
            .ok_or_else(|| JwtError::Algorithm { algorithm: shortened(&header.alg) })?;
        let claims = serde_json::from_slice(&decode(claims, "claims")?).map_err(|_| malformed("claims"))?;
        let signature = decode(signature, "signature")?;
        Ok(Self { algorithm, kid: header.kid, signed, signature, claims })
    }

    /// The key ID that the header names.
    pub fn kid(&self) -> Option<&str> {
        self.kid.as_deref()
    }

    /// The algorithm that the header names.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// A claim, unverified: good for choosing keys, never for a decision.
    pub fn claim(&self, name: &str) -> Option<&Value> {
        self.claims.get(name)
    }

    /// Checks the signature with the keys that fit the token.
    ///
    /// # Errors
    /// An algorithm outside `allowed`, no key that fits, or a wrong signature.
    pub fn verify(self, keys: &JwkSet, allowed: &[Algorithm]) -> Result<Claims, JwtError> {
        if !allowed.contains(&self.algorithm) {
            return Err(JwtError::Algorithm { algorithm: self.algorithm.name().to_owned() });
        }
        let mut outcome = Err(JwtError::UnknownKey { kid: self.kid.as_deref().map(shortened) });
        for key in keys.candidates(self.kid.as_deref(), self.algorithm) {
            outcome = key.verify(self.algorithm, self.signed.as_bytes(), &self.signature);
            if outcome.is_ok() {
                break;
            }
        }
        outcome.map(|()| Claims(self.claims))
    }
}

/// Parses a token and checks its signature: [`UnverifiedToken::parse`], then [`UnverifiedToken::verify`].
///
/// # Errors
/// As those two. Time, audience and issuer are checked by [`Claims`]' methods.
pub fn verify(token: &str, keys: &JwkSet, allowed: &[Algorithm]) -> Result<Claims, JwtError> {
    UnverifiedToken::parse(token)?.verify(keys, allowed)
}

/// Claims whose signature was verified.
#[derive(Debug, Clone, PartialEq)]
pub struct Claims(Map<String, Value>);

/// The `aud` claim: one text or a list of texts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Audience(pub Vec<String>);

impl Claims {
    /// All claims.
    pub fn as_map(&self) -> &Map<String, Value> {
        &self.0
    }

    /// A claim that is a text.
    ///
    /// # Errors
    /// It is missing or something else.
    pub fn text(&self, claim: &'static str) -> Result<&str, JwtError> {
        self.0.get(claim).and_then(Value::as_str).ok_or(JwtError::Claim { claim })
    }

    /// The expiry, in seconds since 1970.
    ///
    /// # Errors
    /// It is missing or not a number.
    pub fn expiry(&self) -> Result<u64, JwtError> {
        self.seconds("exp")?.ok_or(JwtError::Claim { claim: "exp" })
    }

    /// Whom the token is for.
    ///
    /// # Errors
    /// The claim is missing or neither a text nor a list of texts.
    pub fn audience(&self) -> Result<Audience, JwtError> {
        let bad = JwtError::Claim { claim: "aud" };
        match self.0.get("aud") {
            Some(Value::String(one)) => Ok(Audience(vec![one.clone()])),
            Some(Value::Array(many)) => {
                let texts = many.iter().map(|one| one.as_str().map(str::to_owned));
                texts.collect::<Option<Vec<_>>>().map(Audience).ok_or(bad)
            }
            _ => Err(bad),
        }
    }

    /// Checks `exp` (which must be there), `nbf` and `iat` against `now`, in seconds since 1970.
    ///
    /// # Errors
    /// The token expired or is not valid yet, or one of the claims is malformed.
    pub fn check_time(&self, now: u64) -> Result<(), JwtError> {
        let exp = self.expiry()?;
        if now >= exp {
            return Err(JwtError::Expired { exp, now });
        }
        for claim in ["nbf", "iat"] {
            if let Some(nbf) = self.seconds(claim)?.filter(|nbf| *nbf > now + CLOCK_SKEW_SECONDS) {
                return Err(JwtError::NotYetValid { nbf, now });
            }
        }
        Ok(())
    }

    /// Checks that the token is for one of `accepted`.
    ///
    /// # Errors
    /// It is for somebody else, or the claim is malformed.
    pub fn check_audience<S: AsRef<str>>(&self, accepted: &[S]) -> Result<(), JwtError> {
        let Audience(given) = self.audience()?;
        if given.iter().any(|one| accepted.iter().any(|a| a.as_ref() == one)) {
            return Ok(());
        }
        let expected = accepted.iter().map(AsRef::as_ref).collect::<Vec<_>>().join(", ");
        Err(JwtError::Audience { expected })
    }

    /// Checks the issuer.
    ///
    /// # Errors
    /// The claim is missing or names somebody else.
    pub fn check_issuer(&self, expected: &str) -> Result<(), JwtError> {
        if self.text("iss")? == expected {
            return Ok(());
        }
        Err(JwtError::Issuer { expected: expected.to_owned() })
    }

    /// A number of seconds; whole numbers and fractions (RFC 7519 2, NumericDate) are read, the fraction is dropped.
    fn seconds(&self, claim: &'static str) -> Result<Option<u64>, JwtError> {
        let Some(value) = self.0.get(claim) else { return Ok(None) };
        let fraction = || value.as_f64().filter(|s| (0.0..1e12).contains(s)).map(|s| s as u64);
        value.as_u64().or_else(fraction).map(Some).ok_or(JwtError::Claim { claim })
    }
}
