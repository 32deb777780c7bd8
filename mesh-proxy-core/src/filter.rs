//! HTTP filters: explicit phases, an explicit per-request context, synchronous unless a filter really awaits.
//!
//! A filter is shared by all requests of all workers; what it remembers about one request goes into the context.
//! Request phases run in order, response phases in reverse order; attempt phases run once for each attempt, after load
//! balancing; completion runs once, after the last byte.

use std::{fmt, future::Future, pin::Pin, sync::Arc};

use http::{HeaderMap, StatusCode, request, response};

use crate::{Body, config::CustomFilter, error::ConfigError};

mod context;
pub mod layer;

pub use context::{ConnectionInfo, RequestContext, UpstreamInfo};

/// A filter. All phases have defaults that do nothing.
pub trait HttpFilter: Send + Sync + fmt::Debug + 'static {
    /// The request's head has arrived. Runs before a route is chosen only for header changes that routing should see;
    /// the route of the unchanged head is in the context.
    fn on_request(&self, _cx: &mut RequestContext, _head: &mut request::Parts) -> Flow {
        Flow::Continue
    }

    /// Whether [`request_body`](Self::request_body) and [`response_body`](Self::response_body) do anything. Asked once.
    fn wraps_bodies(&self) -> bool {
        false
    }

    /// Wraps the request's body. Called once, after every `on_request` said go on.
    fn request_body(&self, _cx: &mut RequestContext, body: Body) -> Body {
        body
    }

    /// A request head is about to be sent to `cx.upstream()`.
    fn on_attempt(&self, _cx: &mut RequestContext, _head: &mut request::Parts) {}

    /// The response's head is about to be sent to the client (the last attempt's, or a local reply).
    fn on_response(&self, _cx: &mut RequestContext, _head: &mut response::Parts) {}

    /// Wraps the response's body.
    fn response_body(&self, _cx: &mut RequestContext, body: Body) -> Body {
        body
    }

    /// The exchange is over. Must not block.
    fn on_complete(&self, _cx: &RequestContext) {}
}

/// What a request phase wants to happen next.
pub enum Flow {
    /// The next filter.
    Continue,
    /// Answer now; response phases of the filters passed so far still run.
    Reply(Box<LocalReply>),
    /// Wait, then go on as the future says. The only case that allocates a future.
    Await(Pin<Box<dyn Future<Output = Resume> + Send>>),
}

impl fmt::Debug for Flow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Continue => f.write_str("Continue"),
            Self::Reply(reply) => f.debug_tuple("Reply").field(reply).finish(),
            Self::Await(_) => f.write_str("Await(..)"),
        }
    }
}

/// A change to context and head after waiting.
pub type Edit = Box<dyn FnOnce(&mut RequestContext, &mut request::Parts) + Send>;

/// How to go on after waiting.
pub enum Resume {
    /// The next filter.
    Continue,
    /// Change head and context, then the next filter.
    Edit(Edit),
    /// Answer now.
    Reply(Box<LocalReply>),
}

impl fmt::Debug for Resume {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Continue => f.write_str("Continue"),
            Self::Edit(_) => f.write_str("Edit(..)"),
            Self::Reply(reply) => f.debug_tuple("Reply").field(reply).finish(),
        }
    }
}

/// An answer made here. gRPC requests get it as a trailers-only gRPC response.
#[derive(Debug, Clone, PartialEq)]
pub struct LocalReply {
    /// Status.
    pub status: StatusCode,
    /// Body; text.
    pub body: bytes::Bytes,
    /// More headers.
    pub headers: HeaderMap,
    /// gRPC status; `None` derives it from the HTTP status.
    pub grpc_status: Option<u32>,
    /// `%RESPONSE_CODE_DETAILS%`.
    pub details: Arc<str>,
}

impl LocalReply {
    /// A reply with a text body.
    #[must_use]
    pub fn new(status: StatusCode, body: &'static str, details: &str) -> Self {
        Self {
            status,
            body: bytes::Bytes::from_static(body.as_bytes()),
            headers: HeaderMap::new(),
            grpc_status: None,
            details: details.into(),
        }
    }
}

/// Makes filters from configuration ([`CustomFilter`]).
pub trait HttpFilterFactory: Send + Sync + fmt::Debug + 'static {
    /// The name or type URL that configuration refers to.
    fn name(&self) -> &str;

    /// Makes a filter.
    ///
    /// # Errors
    /// When the configuration is not valid; the listener is then refused.
    fn create(&self, config: &CustomFilter) -> Result<Arc<dyn HttpFilter>, ConfigError>;
}
