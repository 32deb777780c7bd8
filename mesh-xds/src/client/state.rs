//! What a client knows about every resource it asked for.

use std::time::Duration;

/// How far one resource is. The words are those of `ClientResourceStatus` in CSDS and `config_dump`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ResourceStatus {
    /// Asked for, no answer yet.
    Requested,
    /// The server says that it does not exist.
    DoesNotExist,
    /// Received and accepted.
    Acked,
    /// The last version that was received was rejected; an earlier one may still be in use.
    Nacked,
    /// Nothing came within the time for missing resources.
    Timeout,
}

impl ResourceStatus {
    /// The enum value's name in protobuf: `REQUESTED`, `DOES_NOT_EXIST`, `ACKED`, `NACKED`, `TIMEOUT`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Requested => "REQUESTED",
            Self::DoesNotExist => "DOES_NOT_EXIST",
            Self::Acked => "ACKED",
            Self::Nacked => "NACKED",
            Self::Timeout => "TIMEOUT",
        }
    }
}

/// A resource that was rejected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejection {
    /// Its name.
    pub name: String,
    /// Why.
    pub reason: String,
}

/// The newest version of a resource, which was rejected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RejectedVersion {
    /// Why.
    pub reason: String,
    /// Its version; that of the whole response where the resource has none of its own.
    pub version: String,
    /// When it was rejected, on the client's clock.
    pub at: Duration,
}

/// One resource of one type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResourceState {
    /// How far it is.
    pub status: ResourceStatus,
    /// The version in use; empty when there is none.
    pub version: String,
    /// When the version in use was accepted, on the client's clock.
    pub accepted_at: Option<Duration>,
    /// The newest version, if it was rejected; the version in use may be an earlier one.
    pub error: Option<RejectedVersion>,
    /// Hash of the bytes in use, to tell an unchanged State-of-the-World resource.
    pub(super) content: Option<u64>,
    pub(super) requested_at: Option<Duration>,
    pub(super) expires_at: Option<Duration>,
}

impl Default for ResourceState {
    fn default() -> Self {
        Self {
            status: ResourceStatus::Requested,
            version: String::new(),
            accepted_at: None,
            error: None,
            content: None,
            requested_at: None,
            expires_at: None,
        }
    }
}
