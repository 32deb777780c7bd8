use futures_util::future::{BoxFuture, FutureExt, ready};

use super::{AuthError, Authenticator, Caller, CallerCredentials};
use crate::{grpc::ExpiredCertificate, id::TrustDomain, x509::PeerIdentity};

/// Accepts callers by the X.509-SVID that the TLS handshake verified: how workloads renew without a token.
#[derive(Debug, Clone)]
pub struct ClientCertificateAuthenticator {
    trust_domain: TrustDomain,
}

impl ClientCertificateAuthenticator {
    /// Accepts SVIDs of this trust domain.
    pub fn new(trust_domain: TrustDomain) -> Self {
        Self { trust_domain }
    }

    fn check(&self, credentials: &CallerCredentials) -> Result<Caller, AuthError> {
        if let Some(expired) = &credentials.expired_certificate {
            let ExpiredCertificate { id, not_after } = ExpiredCertificate::clone(expired);
            return Err(AuthError::CertificateExpired { id, not_after });
        }
        let chain = credentials.verified_chain.as_ref().ok_or(AuthError::Absent)?;
        let PeerIdentity { id, .. } = PeerIdentity::of_verified_chain(chain)?;
        if id.trust_domain_str() != self.trust_domain.as_str() {
            return Err(AuthError::ForeignTrustDomain { id });
        }
        Ok(Caller::new(id, "certificate", None))
    }
}

impl Authenticator for ClientCertificateAuthenticator {
    fn name(&self) -> &'static str {
        "certificate"
    }

    fn authenticate<'a>(
        &'a self,
        credentials: &'a CallerCredentials,
    ) -> BoxFuture<'a, Result<Caller, AuthError>> {
        ready(self.check(credentials)).boxed()
    }
}
