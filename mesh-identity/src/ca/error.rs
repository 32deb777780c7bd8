use std::time::Duration;

use crate::{id::SpiffeId, x509::X509Error};

/// Why the CA did not sign, or could not be created or loaded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CaError {
    /// The request is longer than is read.
    #[error("a request of {bytes} bytes; at most {max} are read", max = super::MAX_CSR_BYTES)]
    RequestTooLarge {
        /// Its length.
        bytes: usize,
    },
    /// Not a PKCS#10 request.
    #[error("malformed certificate request: {detail} (RFC 2986)")]
    Request {
        /// What the parser said.
        detail: String,
    },
    /// The request's signature is wrong: the requester does not have the private key.
    #[error("the request's signature does not verify (RFC 2986 3)")]
    RequestSignature,
    /// A key type or size that the policy does not allow.
    #[error("key type {kind} is not allowed by the policy of this CA")]
    Key {
        /// What the request has.
        kind: String,
    },
    /// A lifetime over the policy's maximum.
    #[error("a lifetime of {asked:?} was asked for; the policy of this CA gives at most {max:?}")]
    Lifetime {
        /// What was asked for.
        asked: Duration,
        /// The policy's maximum.
        max: Duration,
    },
    /// The identity belongs to another trust domain.
    #[error("{id} is not of this CA's trust domain")]
    ForeignTrustDomain {
        /// The identity.
        id: SpiffeId,
    },
    /// The identity has no path.
    #[error("a leaf's SPIFFE ID has a path (X.509-SVID 3.1)")]
    NoPath,
    /// A name that is not a DNS name.
    #[error("{name:?} is not a DNS name (RFC 1034 3.5)")]
    DnsName {
        /// The name.
        name: String,
    },
    /// The CA itself is about to expire.
    #[error("the CA's own certificate has {left:?} left, too little to sign with")]
    Expiring {
        /// How long it is still valid.
        left: Duration,
    },
    /// Root rotation was asked to take a step that does not follow from where it stands.
    #[error("root rotation: cannot {step} while {state}")]
    Rotation {
        /// The step asked for.
        step: &'static str,
        /// Where rotation stands.
        state: &'static str,
    },
    /// Certificates or keys that cannot be used.
    #[error(transparent)]
    Certificate {
        /// What is wrong.
        #[from]
        source: X509Error,
    },
    /// Key generation, encoding or signing failed.
    #[error("cannot sign: {detail}")]
    Internal {
        /// What failed.
        detail: String,
    },
}

impl CaError {
    /// A stable label of low cardinality, for metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::RequestTooLarge { .. } | Self::Request { .. } => "request",
            Self::RequestSignature => "request_signature",
            Self::Key { .. } => "key",
            Self::Lifetime { .. } => "lifetime",
            Self::ForeignTrustDomain { .. } | Self::NoPath => "identity",
            Self::DnsName { .. } => "dns_name",
            Self::Expiring { .. } => "expiring",
            Self::Rotation { .. } => "rotation",
            Self::Certificate { source } => source.reason(),
            Self::Internal { .. } => "internal",
        }
    }

    /// Whether the requester is at fault, and the same request will fail again.
    pub fn is_callers_fault(&self) -> bool {
        matches!(
            self,
            Self::RequestTooLarge { .. }
                | Self::Request { .. }
                | Self::RequestSignature
                | Self::Key { .. }
                | Self::Lifetime { .. }
        )
    }
}

impl From<rcgen::Error> for CaError {
    fn from(error: rcgen::Error) -> Self {
        Self::Internal { detail: error.to_string() }
    }
}
