//! Who is calling: authentication of requests to the control plane, by token or by client certificate.

mod certificate;
#[cfg(feature = "token-review")]
mod https;
mod service_account;
#[cfg(feature = "token-review")]
mod token_review;

#[cfg(test)]
mod tests;

use std::{fmt, sync::Arc, time::SystemTime};

use futures_util::future::BoxFuture;
use rustls::pki_types::CertificateDer;

#[cfg(feature = "token-review")]
pub(crate) use self::token_review::judge as judge_token_review;
pub use self::{
    certificate::ClientCertificateAuthenticator,
    service_account::{
        JwksTokenVerifier, KeySetFile, KeySetSource, ServiceAccountAuthenticator, ServiceAccountToken,
        TokenRequest, TokenVerifier,
    },
};
#[cfg(feature = "token-review")]
pub use self::{https::KeySetUrl, token_review::TokenReviewVerifier};
use crate::{
    grpc::{ExpiredCertificate, PeerInfo},
    id::{SpiffeId, SpiffeIdError},
    jwt::JwtError,
    x509::X509Error,
};

/// What a caller brought. `Debug` does not show the token.
#[derive(Clone, Default)]
#[non_exhaustive]
pub struct CallerCredentials {
    /// The bearer token of the `authorization` metadata.
    pub bearer_token: Option<String>,
    /// The client certificate chain, leaf first, which the TLS handshake verified.
    pub verified_chain: Option<Arc<Vec<CertificateDer<'static>>>>,
    /// A client certificate that was good once, but whose time was over at the handshake; then there is no chain.
    pub expired_certificate: Option<Arc<ExpiredCertificate>>,
}

impl CallerCredentials {
    /// Only a token.
    pub fn from_token(token: impl Into<String>) -> Self {
        Self { bearer_token: Some(token.into()), ..Self::default() }
    }

    /// What a gRPC request brought: its `authorization` metadata, and the client certificate when the connection came
    /// through [`tls_incoming`](crate::grpc::tls_incoming).
    pub fn from_request<T>(request: &tonic::Request<T>) -> Self {
        Self::from_parts(request.metadata(), request.extensions())
    }

    /// As [`CallerCredentials::from_request`], from a request's parts.
    pub fn from_parts(metadata: &tonic::metadata::MetadataMap, extensions: &tonic::Extensions) -> Self {
        let header = metadata.get("authorization").and_then(|value| value.to_str().ok());
        let bearer_token = header.and_then(|value| {
            let (scheme, token) = value.split_once(' ')?;
            scheme.eq_ignore_ascii_case("bearer").then(|| token.trim().to_owned())
        });
        let peer = extensions.get::<PeerInfo>();
        let verified_chain = peer.and_then(|peer| peer.chain.clone());
        let expired_certificate = peer.and_then(|peer| peer.expired.clone());
        Self { bearer_token, verified_chain, expired_certificate }
    }
}

impl fmt::Debug for CallerCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CallerCredentials")
            .field("bearer_token", &self.bearer_token.as_ref().map(|_| "redacted"))
            .field("verified_chain", &self.verified_chain.as_ref().map(|chain| chain.len()))
            .field("expired_certificate", &self.expired_certificate)
            .finish()
    }
}

/// An authenticated caller.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Caller {
    /// The caller's SPIFFE ID.
    pub id: SpiffeId,
    /// How it was authenticated: `token` or `certificate`.
    pub method: &'static str,
    /// The pod that a token is bound to.
    pub pod: Option<BoundPod>,
}

impl Caller {
    /// A caller that an authenticator of your own vouches for.
    pub fn new(id: SpiffeId, method: &'static str, pod: Option<BoundPod>) -> Self {
        Self { id, method, pod }
    }
}

/// The pod that a projected service-account token is bound to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BoundPod {
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub name: String,
    /// The pod's unique ID.
    pub uid: String,
}

/// Authenticates callers by one kind of credential.
pub trait Authenticator: Send + Sync + fmt::Debug {
    /// A short name for logs.
    fn name(&self) -> &'static str;

    /// Authenticates a caller.
    ///
    /// # Errors
    /// [`AuthError::Absent`] when the caller did not bring this kind of credential; anything else means it brought one
    /// that is not good.
    fn authenticate<'a>(
        &'a self,
        credentials: &'a CallerCredentials,
    ) -> BoxFuture<'a, Result<Caller, AuthError>>;
}

/// Several authenticators, asked in order; the first that accepts decides. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Authenticators(Vec<Arc<dyn Authenticator>>);

impl Authenticators {
    /// No authenticator: nobody is accepted.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an authenticator, to be asked after those that are there.
    #[must_use]
    pub fn with(mut self, authenticator: impl Authenticator + 'static) -> Self {
        self.0.push(Arc::new(authenticator));
        self
    }

    /// Authenticates a caller. The reason of a refusal is logged, not told to the caller.
    ///
    /// # Errors
    /// [`AuthError::Absent`] when no credential was brought, otherwise the last refusal.
    pub async fn authenticate(&self, credentials: &CallerCredentials) -> Result<Caller, AuthError> {
        let mut refusal = AuthError::Absent;
        for authenticator in &self.0 {
            match authenticator.authenticate(credentials).await {
                Ok(caller) => {
                    tracing::debug!(id = %caller.id, method = caller.method, "caller authenticated");
                    return Ok(caller);
                }
                Err(AuthError::Absent) => {}
                Err(error) => {
                    tracing::warn!(by = authenticator.name(), reason = error.reason(), %error, "caller refused");
                    refusal = error;
                }
            }
        }
        Err(refusal)
    }

    /// Authenticates the caller of a gRPC request.
    ///
    /// # Errors
    /// `Unauthenticated`, or `Unavailable` when the authority that checks tokens cannot be reached.
    pub async fn authenticate_request<T>(
        &self,
        request: &tonic::Request<T>,
    ) -> Result<Caller, tonic::Status> {
        let credentials = CallerCredentials::from_request(request);
        self.authenticate(&credentials).await.map_err(|error| error.to_status())
    }
}

/// Why a caller was not authenticated.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AuthError {
    /// The caller brought no credential.
    #[error("no credentials")]
    Absent,
    /// The token is not good.
    #[error("token: {source}")]
    Token {
        /// What is wrong.
        #[from]
        source: JwtError,
    },
    /// The token is good, but not of a service account.
    #[error("{subject:?} is not a service account")]
    NotServiceAccount {
        /// The token's subject.
        subject: String,
    },
    /// The token's claims disagree with each other.
    #[error("the token's subject and its {claim} claim disagree")]
    Inconsistent {
        /// The claim.
        claim: &'static str,
    },
    /// The token is not bound to a pod, or not to a pod that exists.
    #[error("the token is bound to no known pod")]
    NotBound,
    /// The token's review said no.
    #[error("the token was not accepted: {detail}")]
    Rejected {
        /// What the review said.
        detail: String,
    },
    /// The name does not make a SPIFFE ID.
    #[error("the caller has no SPIFFE ID: {source}")]
    Identity {
        /// The rule it breaks.
        #[from]
        source: SpiffeIdError,
    },
    /// The client certificate is not good.
    #[error("client certificate: {source}")]
    Certificate {
        /// What is wrong.
        #[from]
        source: X509Error,
    },
    /// The client certificate's time is over.
    #[error("the client certificate of {id} expired at {} (RFC 5280 6.1.3)", utc(*not_after))]
    CertificateExpired {
        /// Whom it was for.
        id: SpiffeId,
        /// The last moment of its validity.
        not_after: SystemTime,
    },
    /// The caller's trust domain is not ours.
    #[error("{id} is of another trust domain")]
    ForeignTrustDomain {
        /// The caller's ID.
        id: SpiffeId,
    },
    /// The authority that checks tokens cannot be reached.
    #[error("tokens cannot be checked: {detail}")]
    Unavailable {
        /// What failed.
        detail: String,
    },
}

impl AuthError {
    /// A stable label of low cardinality, for metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Absent => "absent",
            Self::Token { source } => source.reason(),
            Self::NotServiceAccount { .. } => "not_service_account",
            Self::Inconsistent { .. } => "inconsistent",
            Self::NotBound => "not_bound",
            Self::Rejected { .. } => "rejected",
            Self::Identity { .. } => "identity",
            Self::Certificate { source } => source.reason(),
            Self::CertificateExpired { .. } => "expired",
            Self::ForeignTrustDomain { .. } => "foreign_trust_domain",
            Self::Unavailable { .. } => "unavailable",
        }
    }

    /// The gRPC status to answer with. It does not say which check failed, except that a certificate expired: its
    /// owner knows that anyway, and whoever operates it must learn it.
    pub fn to_status(&self) -> tonic::Status {
        match self {
            Self::Unavailable { .. } => tonic::Status::unavailable("credentials cannot be checked now"),
            Self::CertificateExpired { not_after, .. } => tonic::Status::unauthenticated(format!(
                "the client certificate expired at {}",
                utc(*not_after)
            )),
            _ => tonic::Status::unauthenticated("request authentication failed"),
        }
    }
}

/// A time as RFC 3339 writes it, in whole seconds.
fn utc(time: SystemTime) -> String {
    let time = time::OffsetDateTime::from(time);
    let text =
        time.replace_nanosecond(0).unwrap_or(time).format(&time::format_description::well_known::Rfc3339);
    text.unwrap_or_else(|_| time.to_string())
}
