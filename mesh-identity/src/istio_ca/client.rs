use std::{fmt, io, path::PathBuf, sync::Arc, time::Duration};

use tonic::{Code, Request, Status, client::Grpc, metadata::MetadataValue, transport::Channel};
use tonic_prost::ProstCodec;
use zeroize::Zeroizing;

use super::pb::{CREATE_CERTIFICATE, IstioCertificateRequest, IstioCertificateResponse};
use crate::x509::{MAX_CHAIN, X509Error, certificates_from_pem};

/// Gives the bearer token for each request, read anew each time because kubelets replace it.
pub trait BearerToken: Send + Sync + 'static {
    /// The token; `None` sends none, for callers that a client certificate authenticates.
    ///
    /// # Errors
    /// The token should be there and cannot be read.
    fn token(&self) -> io::Result<Option<Zeroizing<String>>>;
}

impl<F: Fn() -> io::Result<Option<Zeroizing<String>>> + Send + Sync + 'static> BearerToken for F {
    fn token(&self) -> io::Result<Option<Zeroizing<String>>> {
        self()
    }
}

/// No token: the client certificate is the credential.
#[derive(Debug, Clone, Copy)]
pub struct NoToken;

impl BearerToken for NoToken {
    fn token(&self) -> io::Result<Option<Zeroizing<String>>> {
        Ok(None)
    }
}

/// A token in a file, for example a projected service-account token.
#[derive(Debug, Clone)]
pub struct TokenFile(pub PathBuf);

impl BearerToken for TokenFile {
    fn token(&self) -> io::Result<Option<Zeroizing<String>>> {
        let text = Zeroizing::new(std::fs::read_to_string(&self.0)?);
        Ok(Some(Zeroizing::new(text.trim().to_owned())))
    }
}

/// A client of Istio's certificate service. Cheap to clone.
#[derive(Clone)]
pub struct IstioCaClient {
    channel: Channel,
    token: Arc<dyn BearerToken>,
    cluster_id: Option<String>,
    attempts: u32,
    timeout: Duration,
}

impl fmt::Debug for IstioCaClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IstioCaClient")
            .field("cluster_id", &self.cluster_id)
            .field("attempts", &self.attempts)
            .field("timeout", &self.timeout)
            .finish_non_exhaustive()
    }
}

impl IstioCaClient {
    /// Speaks over `channel` and sends what `token` gives. See [`TlsConnector`](crate::grpc::TlsConnector) for a
    /// channel whose server is known by DNS name and roots.
    pub fn new(channel: Channel, token: impl BearerToken) -> Self {
        Self {
            channel,
            token: Arc::new(token),
            cluster_id: None,
            attempts: 3,
            timeout: Duration::from_secs(10),
        }
    }

    /// Sends this cluster ID with each request (metadata `clusterid`).
    #[must_use]
    pub fn cluster_id(mut self, id: impl Into<String>) -> Self {
        self.cluster_id = Some(id.into());
        self
    }

    /// How often a request is sent at most when the server is unavailable; default 3.
    #[must_use]
    pub fn attempts(mut self, attempts: u32) -> Self {
        self.attempts = attempts.max(1);
        self
    }

    /// How long one attempt may take; default 10 s.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Sends a request and returns the certificates: leaf first, root last. Cancel safe.
    ///
    /// # Errors
    /// The token cannot be read, the server refused, or its answer is not a chain of certificates.
    pub async fn create_certificate(
        &self,
        csr_pem: &str,
        lifetime: Option<Duration>,
    ) -> Result<Vec<rustls::pki_types::CertificateDer<'static>>, IstioCaError> {
        let message = IstioCertificateRequest {
            csr: csr_pem.to_owned(),
            validity_duration: lifetime.map_or(0, |l| i64::try_from(l.as_secs()).unwrap_or(i64::MAX)),
            metadata: None,
        };
        let mut pause = Duration::from_millis(100);
        for attempt in 1.. {
            match self.attempt(message.clone()).await {
                Ok(response) => return chain_of(&response),
                Err(IstioCaError::Refused { status }) if attempt < self.attempts && is_transient(&status) => {
                    tracing::debug!(code = ?status.code(), attempt, "certificate request failed, trying again");
                    tokio::time::sleep(pause).await;
                    pause *= 2;
                }
                Err(error) => return Err(error),
            }
        }
        // The loop ends by returning; this keeps the compiler's count of attempts honest.
        Err(IstioCaError::Refused { status: Box::new(Status::unavailable("no attempts left")) })
    }

    async fn attempt(
        &self,
        message: IstioCertificateRequest,
    ) -> Result<IstioCertificateResponse, IstioCaError> {
        let mut request = Request::new(message);
        request.set_timeout(self.timeout);
        let token = self.token.token().map_err(|e| IstioCaError::Token { detail: e.to_string() })?;
        if let Some(token) = token {
            let header = Zeroizing::new(format!("Bearer {}", token.as_str()));
            let bad = |_| IstioCaError::Token { detail: "not a header value".to_owned() };
            let mut value: MetadataValue<_> = header.as_str().try_into().map_err(bad)?;
            value.set_sensitive(true);
            request.metadata_mut().insert("authorization", value);
        }
        if let Some(Ok(id)) = self.cluster_id.as_deref().map(MetadataValue::try_from) {
            request.metadata_mut().insert("clusterid", id);
        }
        let call = async {
            let mut grpc = Grpc::new(self.channel.clone()).max_decoding_message_size(MAX_RESPONSE_BYTES);
            grpc.ready().await.map_err(|e| Status::unavailable(format!("not connected: {e}")))?;
            let path = http::uri::PathAndQuery::from_static(CREATE_CERTIFICATE);
            let codec = ProstCodec::<IstioCertificateRequest, IstioCertificateResponse>::default();
            grpc.unary(request, path, codec).await
        };
        let outcome = match tokio::time::timeout(self.timeout, call).await {
            Ok(outcome) => outcome,
            Err(_) => Err(Status::deadline_exceeded("no answer in time")),
        };
        outcome
            .map(tonic::Response::into_inner)
            .map_err(|status| IstioCaError::Refused { status: Box::new(status) })
    }
}

/// A chain of at most [`MAX_CHAIN`] certificates, PEM, with room.
const MAX_RESPONSE_BYTES: usize = 1 << 20;

fn is_transient(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::Unavailable
            | Code::DeadlineExceeded
            | Code::Cancelled
            | Code::Aborted
            | Code::ResourceExhausted
    )
}

/// The certificates of an answer: leaf first, root last.
pub(crate) fn chain_of(
    response: &IstioCertificateResponse,
) -> Result<Vec<rustls::pki_types::CertificateDer<'static>>, IstioCaError> {
    let mut chain = Vec::new();
    for pem in &response.cert_chain {
        chain.extend(certificates_from_pem(pem.as_bytes())?);
        if chain.len() > MAX_CHAIN {
            return Err(X509Error::ChainTooLong { count: chain.len() }.into());
        }
    }
    if chain.len() < 2 {
        return Err(X509Error::NoCertificate.into());
    }
    Ok(chain)
}

/// Why no certificate came.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IstioCaError {
    /// The token cannot be read.
    #[error("cannot read the token: {detail}")]
    Token {
        /// What failed.
        detail: String,
    },
    /// The server refused or was not reached.
    #[error("the CA answered {code:?}: {message}", code = status.code(), message = status.message())]
    Refused {
        /// What it answered.
        status: Box<Status>,
    },
    /// The answer is not a chain of good certificates.
    #[error("the CA's answer: {source}")]
    Answer {
        /// What is wrong.
        #[from]
        source: X509Error,
    },
}

impl IstioCaError {
    /// A stable label of low cardinality, for metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Token { .. } => "token",
            Self::Refused { status } if is_transient(status) => "unavailable",
            Self::Refused { status } if status.code() == Code::Unauthenticated => "unauthenticated",
            Self::Refused { .. } => "refused",
            Self::Answer { source } => source.reason(),
        }
    }
}
