//! One stream of either variant, and whose it is.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::pb::envoy::config::core::v3::Node;
use crate::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};
use crate::resource::TypeUrl;

use super::config::{StreamError, StreamRules};
use super::delta::DeltaStream;
use super::response::Response;
use super::snapshot::Snapshot;
use super::sotw::SotwStream;
use super::status::TypeStatus;

/// A request of either variant.
#[derive(Debug, Clone)]
pub enum Request {
    /// `DeltaDiscoveryRequest`.
    Delta(Box<DeltaDiscoveryRequest>),
    /// `DiscoveryRequest`.
    Sotw(Box<DiscoveryRequest>),
}

impl Request {
    /// The node, where the request names one.
    #[must_use]
    pub const fn node(&self) -> Option<&Node> {
        match self {
            Self::Delta(request) => request.node.as_ref(),
            Self::Sotw(request) => request.node.as_ref(),
        }
    }

    /// The rejection in it: the nonce of what was rejected.
    #[cfg(feature = "server")]
    pub(super) fn rejected_nonce(&self) -> Option<&str> {
        let (nonce, error) = match self {
            Self::Delta(request) => (&request.response_nonce, &request.error_detail),
            Self::Sotw(request) => (&request.response_nonce, &request.error_detail),
        };
        error.as_ref().map(|_| nonce.as_str())
    }

    const fn type_url_mut(&mut self) -> &mut String {
        match self {
            Self::Delta(request) => &mut request.type_url,
            Self::Sotw(request) => &mut request.type_url,
        }
    }
}

/// A stream of either variant.
#[derive(Debug)]
pub enum Variant {
    /// Incremental.
    Delta(DeltaStream),
    /// State of the world.
    Sotw(SotwStream),
}

/// One stream and its client: the node of the first request is the node of all that follow.
#[derive(Debug)]
pub struct ServerStream {
    rules: Arc<StreamRules>,
    variant: Variant,
    node: Option<Arc<Node>>,
    only: Option<TypeUrl>,
}

impl ServerStream {
    /// A Delta stream.
    #[must_use]
    pub fn delta(rules: Arc<StreamRules>) -> Self {
        let variant = Variant::Delta(DeltaStream::new(rules.clone()));
        Self { rules, variant, node: None, only: None }
    }

    /// A State-of-the-World stream.
    #[must_use]
    pub fn sotw(rules: Arc<StreamRules>) -> Self {
        let variant = Variant::Sotw(SotwStream::new(rules.clone()));
        Self { rules, variant, node: None, only: None }
    }

    /// Restricts the stream to one type, as a service beside ADS does; its requests may then leave the type out.
    #[must_use]
    pub fn for_type(mut self, type_url: TypeUrl) -> Self {
        self.only = Some(type_url);
        self
    }

    /// The client, once its first request came.
    #[must_use]
    pub const fn node(&self) -> Option<&Arc<Node>> {
        self.node.as_ref()
    }

    /// Takes a request.
    ///
    /// # Errors
    /// [`StreamError`] ends the stream.
    pub fn on_request(&mut self, now: Duration, mut request: Request) -> Result<(), StreamError> {
        self.identify(&request)?;
        if let Some(only) = &self.only {
            let type_url = request.type_url_mut();
            if type_url.is_empty() {
                only.as_str().clone_into(type_url);
            } else if type_url != only.as_str() {
                return Err(StreamError::WrongType {
                    expected: only.as_str().to_owned(),
                    actual: type_url.clone(),
                });
            }
        }
        match (&mut self.variant, request) {
            (Variant::Delta(stream), Request::Delta(request)) => stream.on_request(now, *request),
            (Variant::Sotw(stream), Request::Sotw(request)) => stream.on_request(now, *request),
            // The transport decodes one kind per stream; a mixture is the caller's mistake and changes nothing.
            (Variant::Delta(_), Request::Sotw(_)) | (Variant::Sotw(_), Request::Delta(_)) => Ok(()),
        }
    }

    fn identify(&mut self, request: &Request) -> Result<(), StreamError> {
        match (&self.node, request.node()) {
            (None, Some(node)) if !node.id.is_empty() => {
                self.node = Some(Arc::new(node.clone()));
                Ok(())
            }
            (None, _) => Err(StreamError::NoNode),
            (Some(first), Some(later)) if !later.id.is_empty() && later.id != first.id => {
                Err(StreamError::NodeChanged { first: first.id.clone(), later: later.id.clone() })
            }
            (Some(_), _) => Ok(()),
        }
    }

    /// Takes a newer snapshot.
    pub fn on_snapshot(&mut self, snapshot: Arc<Snapshot>) {
        match &mut self.variant {
            Variant::Delta(stream) => stream.on_snapshot(snapshot),
            Variant::Sotw(stream) => stream.on_snapshot(snapshot),
        }
    }

    /// The next response, if anything has to be said.
    pub fn next_response(&mut self, now: Duration) -> Option<Response> {
        match &mut self.variant {
            Variant::Delta(stream) => stream.next_response(now),
            Variant::Sotw(stream) => stream.next_response(now),
        }
    }

    /// When to ask again although nothing happened.
    #[must_use]
    pub fn next_timer(&self) -> Option<Duration> {
        match &self.variant {
            Variant::Delta(stream) => stream.next_timer(),
            Variant::Sotw(stream) => stream.next_timer(),
        }
    }

    /// The bytes of a response in this stream's variant, in pieces; large resources are shared, not copied.
    #[must_use]
    pub fn encode(&self, response: &Response) -> Vec<Bytes> {
        match &self.variant {
            Variant::Delta(_) => response.encode_delta(&self.rules.identifier),
            Variant::Sotw(_) => response.encode_sotw(&self.rules.identifier),
        }
    }

    /// The state of every type.
    #[must_use]
    pub fn status(&self) -> Vec<(TypeUrl, TypeStatus)> {
        match &self.variant {
            Variant::Delta(stream) => stream.status().map(|(t, s)| (t.clone(), s.clone())).collect(),
            Variant::Sotw(stream) => stream.status().map(|(t, s)| (t.clone(), s.clone())).collect(),
        }
    }
}
