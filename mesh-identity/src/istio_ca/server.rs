use std::{sync::Arc, time::Duration};

use tonic::{Request, Status};

use super::pb::{CertificateServiceServer, IstioCertificateRequest, IstioCertificateResponse};
use crate::{
    auth::Authenticators,
    ca::{Ca, CaError, CertificateRequest, SigningRequest},
    id::SpiffeId,
};

/// Answers certificate requests: authenticates the caller, then has the CA sign for the caller's identity.
#[derive(Debug, Clone)]
pub struct IstioCaServer {
    ca: Arc<Ca>,
    authenticators: Authenticators,
    own_names_only: bool,
}

impl IstioCaServer {
    /// Serves `ca` to the callers that `authenticators` accept.
    pub fn new(ca: Arc<Ca>, authenticators: Authenticators) -> Self {
        Self { ca, authenticators, own_names_only: false }
    }

    /// Refuses requests that name another identity than the caller's, instead of signing for the caller's as Istio does:
    /// whoever sends one is mistaken about who it is, or tries something.
    #[must_use]
    pub fn own_names_only(mut self) -> Self {
        self.own_names_only = true;
        self
    }

    /// The tonic service.
    pub fn into_service(self) -> CertificateServiceServer {
        CertificateServiceServer::new(self)
    }

    /// Answers one request.
    ///
    /// # Errors
    /// `Unauthenticated`: no or bad credentials, or an identity other than the caller's own was asked for.
    /// `InvalidArgument`: a bad request, a key that is not allowed, a lifetime over the maximum.
    /// `PermissionDenied`: an identity that this CA does not sign for, or with [`Self::own_names_only`] a request that
    /// names another one than the caller's. `Internal`: the CA cannot sign now.
    pub async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<IstioCertificateResponse, Status> {
        let caller = self.authenticators.authenticate_request(&request).await?;
        let request = request.into_inner();
        if asks_for_impersonation(&request) {
            tracing::warn!(id = %caller.id, reason = "impersonation", "certificate refused");
            return Err(Status::unauthenticated("impersonation is not allowed for this caller"));
        }
        if self.own_names_only
            && let Some(other) = other_name(&request.csr, &caller.id)
        {
            tracing::warn!(id = %caller.id, asked = other, reason = "identity", "certificate refused");
            return Err(Status::permission_denied("the request names another identity than the caller's"));
        }
        let lifetime = u64::try_from(request.validity_duration).ok().map(Duration::from_secs);
        let signing = SigningRequest { csr_pem: &request.csr, id: &caller.id, lifetime };
        match self.ca.sign(&signing) {
            Ok(issued) => {
                tracing::info!(id = %caller.id, by = caller.method, serial = issued.serial, "certificate issued");
                Ok(IstioCertificateResponse { cert_chain: issued.to_pem_list() })
            }
            Err(error) => {
                tracing::warn!(id = %caller.id, reason = error.reason(), %error, "certificate refused");
                Err(status_of(&error))
            }
        }
    }
}

/// A name in the request that is not the caller's.
fn other_name(csr_pem: &str, caller: &SpiffeId) -> Option<String> {
    CertificateRequest::named_uris(csr_pem).into_iter().find(|uri| uri != caller.as_str())
}

fn asks_for_impersonation(request: &IstioCertificateRequest) -> bool {
    let asked = request.metadata.as_ref().and_then(|metadata| metadata.fields.get("ImpersonatedIdentity"));
    match asked.and_then(|value| value.kind.as_ref()) {
        None => false,
        Some(prost_types::value::Kind::StringValue(identity)) => !identity.is_empty(),
        Some(_) => true,
    }
}

/// Only errors that are the caller's own doing say what is wrong.
fn status_of(error: &CaError) -> Status {
    match error {
        error if error.is_callers_fault() => Status::invalid_argument(error.to_string()),
        CaError::ForeignTrustDomain { .. } | CaError::NoPath => {
            Status::permission_denied("the CA does not sign for this identity")
        }
        _ => Status::internal("the CA cannot sign now"),
    }
}
