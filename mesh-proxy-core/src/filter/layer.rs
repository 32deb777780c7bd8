//! Any [`tower::Layer`] as a filter.
//!
//! The layer sees the request's head (with an empty body) and decides: it calls the inner service, with headers,
//! method, target and extensions changed as it likes, or it answers itself. What it does to the *response* of the inner
//! service is not seen: it gets an empty 200 there. Layers that only look at responses or bodies need a filter of their
//! own.

use std::{
    convert::Infallible,
    fmt,
    future::{Ready, ready},
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
};

use http::{Request, Response, request};
use http_body_util::{Empty, Full};
use tower::{Layer, Service, ServiceExt};

use super::{Flow, HttpFilter, LocalReply, RequestContext, Resume};

/// A request as a layer sees it.
pub type LayerRequest = Request<Empty<bytes::Bytes>>;
/// A response as a layer gives it.
pub type LayerResponse = Response<Full<bytes::Bytes>>;

/// A filter made of a layer. Waits, so it costs one boxed future per request.
pub struct LayerFilter<L> {
    layer: L,
}

impl<L> LayerFilter<L> {
    /// Wraps a layer.
    #[must_use]
    pub fn new(layer: L) -> Self {
        Self { layer }
    }
}

impl<L> fmt::Debug for LayerFilter<L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LayerFilter(..)")
    }
}

/// The service inside the layer: it keeps the request that reached it.
#[derive(Debug, Clone)]
pub struct Reached(Arc<Mutex<Option<request::Parts>>>);

impl Service<LayerRequest> for Reached {
    type Response = LayerResponse;
    type Error = Infallible;
    type Future = Ready<Result<LayerResponse, Infallible>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: LayerRequest) -> Self::Future {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(request.into_parts().0);
        ready(Ok(Response::new(Full::default())))
    }
}

impl<L> HttpFilter for LayerFilter<L>
where
    L: Layer<Reached> + Send + Sync + 'static,
    L::Service: Service<LayerRequest, Response = LayerResponse> + Send + 'static,
    <L::Service as Service<LayerRequest>>::Error: fmt::Display,
    <L::Service as Service<LayerRequest>>::Future: Send,
{
    fn on_request(&self, _cx: &mut RequestContext, head: &mut request::Parts) -> Flow {
        let slot = Arc::new(Mutex::new(None));
        let service = self.layer.layer(Reached(Arc::clone(&slot)));
        let request = Request::from_parts(head.clone(), Empty::new());
        Flow::Await(Box::pin(async move {
            let outcome = service.oneshot(request).await.map_err(|error| error.to_string());
            let reached = slot.lock().unwrap_or_else(PoisonError::into_inner).take();
            match (reached, outcome) {
                (Some(changed), _) => Resume::Edit(Box::new(move |_cx, head| *head = changed)),
                (None, Ok(response)) => Resume::Reply(Box::new(answer(response).await)),
                (None, Err(error)) => {
                    tracing::debug!(%error, "layer failed");
                    let status = http::StatusCode::INTERNAL_SERVER_ERROR;
                    Resume::Reply(Box::new(LocalReply::new(status, "", "layer_failed")))
                }
            }
        }))
    }
}

async fn answer(response: LayerResponse) -> LocalReply {
    use http_body_util::BodyExt;
    let (head, body) = response.into_parts();
    let body = match body.collect().await {
        Ok(collected) => collected.to_bytes(),
        Err(never) => match never {},
    };
    LocalReply { body, headers: head.headers, ..LocalReply::new(head.status, "", "layer") }
}
