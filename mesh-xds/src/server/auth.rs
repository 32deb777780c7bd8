//! Who may be which node.

use std::future::Future;
use std::pin::Pin;

use tonic::Status;
use tonic::metadata::MetadataMap;

use crate::pb::envoy::config::core::v3::Node;

/// What the transport knows about a caller.
#[derive(Debug, Clone)]
pub struct Caller {
    /// The request's headers: `authorization`, for instance.
    pub metadata: MetadataMap,
    /// What the listener attached, by tonic's trait `Connected`: its `TcpConnectInfo` or `UdsConnectInfo`, or what a
    /// connection of one's own says of its peer, such as the certificate.
    pub extensions: http::Extensions,
}

/// The answer to "may this caller be this node?".
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Grant {
    /// Who the caller is, for status pages and logs; never a secret.
    pub identity: String,
    /// The group of snapshots, where the authorizer decides it; the server's group function is asked otherwise.
    pub group: Option<String>,
}

/// A future that an [`Authorizer`] returns.
pub type Authorization<'a> = Pin<Box<dyn Future<Output = Result<Grant, Status>> + Send + 'a>>;

/// Decides whether a caller may be a node. Asked once per stream, with its first request.
///
/// Return `UNAUTHENTICATED` for a missing or invalid credential and `PERMISSION_DENIED` when the identity is sound but
/// does not belong to the node. Nothing about the configuration is revealed before the answer.
pub trait Authorizer: Send + Sync + 'static {
    /// Decides about one stream.
    fn authorize<'a>(&'a self, caller: &'a Caller, node: &'a Node) -> Authorization<'a>;
}

/// Lets every caller be whatever node it says. For tests, and for listeners that are protected otherwise.
#[derive(Debug, Clone, Copy, Default)]
pub struct AllowAny;

impl Authorizer for AllowAny {
    fn authorize<'a>(&'a self, _: &'a Caller, _: &'a Node) -> Authorization<'a> {
        Box::pin(std::future::ready(Ok(Grant::default())))
    }
}
