//! The gRPC services. Responses are framed here so that encoded resources are shared between clients, not copied.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::fmt;
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{BufMut as _, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue};
use http_body::Frame as HttpFrame;
use tokio::sync::{mpsc, oneshot};
use tonic::body::Body;
use tonic::metadata::MetadataMap;
use tonic::server::NamedService;
use tonic::{Code, Status};

use crate::resource::TypeUrl;

use super::ads::AdsServer;
use super::auth::Caller;
use super::requests::Requests;
use super::response::length;
use super::stream::ServerStream;
use super::task::{self, Frame, Inbound};

/// Which service a [`DiscoveryService`] is.
pub trait ServiceKind: Send + Sync + 'static {
    /// The full gRPC service name.
    const NAME: &'static str;
    /// The Delta method.
    const DELTA: &'static str;
    /// The State-of-the-World method; empty when there is none.
    const SOTW: &'static str;
    /// The only type it serves; `None` for ADS.
    const TYPE: Option<TypeUrl>;
}

macro_rules! kinds {
    ($($(#[$doc:meta])* $kind:ident = $name:literal, $delta:literal, $sotw:literal, $type:expr;)*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy)]
        pub struct $kind;

        impl ServiceKind for $kind {
            const NAME: &'static str = concat!("envoy.service.", $name);
            const DELTA: &'static str = $delta;
            const SOTW: &'static str = $sotw;
            const TYPE: Option<TypeUrl> = $type;
        }
    )*};
}

kinds! {
    /// All types on one stream.
    Ads = "discovery.v3.AggregatedDiscoveryService", "DeltaAggregatedResources", "StreamAggregatedResources", None;
    /// CDS.
    Clusters = "cluster.v3.ClusterDiscoveryService", "DeltaClusters", "StreamClusters", Some(TypeUrl::CLUSTER);
    /// EDS.
    Endpoints = "endpoint.v3.EndpointDiscoveryService", "DeltaEndpoints", "StreamEndpoints", Some(TypeUrl::ENDPOINTS);
    /// LDS.
    Listeners = "listener.v3.ListenerDiscoveryService", "DeltaListeners", "StreamListeners", Some(TypeUrl::LISTENER);
    /// RDS.
    Routes = "route.v3.RouteDiscoveryService", "DeltaRoutes", "StreamRoutes", Some(TypeUrl::ROUTE);
    /// SRDS.
    ScopedRoutes = "route.v3.ScopedRoutesDiscoveryService", "DeltaScopedRoutes", "StreamScopedRoutes",
        Some(TypeUrl::SCOPED_ROUTE);
    /// VHDS.
    VirtualHosts = "route.v3.VirtualHostDiscoveryService", "DeltaVirtualHosts", "", Some(TypeUrl::VIRTUAL_HOST);
    /// SDS.
    Secrets = "secret.v3.SecretDiscoveryService", "DeltaSecrets", "StreamSecrets", Some(TypeUrl::SECRET);
    /// ECDS.
    Extensions = "extension.v3.ExtensionConfigDiscoveryService", "DeltaExtensionConfigs", "StreamExtensionConfigs",
        Some(TypeUrl::EXTENSION_CONFIG);
    /// RTDS.
    Runtimes = "runtime.v3.RuntimeDiscoveryService", "DeltaRuntime", "StreamRuntime", Some(TypeUrl::RUNTIME);
}

/// One gRPC discovery service of an [`AdsServer`].
pub struct DiscoveryService<K> {
    server: AdsServer,
    kind: PhantomData<fn() -> K>,
}

impl<K: ServiceKind> DiscoveryService<K> {
    /// The service of this server.
    #[must_use]
    pub const fn new(server: AdsServer) -> Self {
        Self { server, kind: PhantomData }
    }

    fn answer(&self, request: http::Request<Body>) -> Result<http::Response<Body>, Status> {
        let shared = &self.server.shared;
        let method = request.uri().path().rsplit('/').next().unwrap_or_default();
        let delta = method == K::DELTA;
        if !delta && (method != K::SOTW || K::SOTW.is_empty()) {
            return Err(Status::unimplemented(format!("{} has no method {method:?}", K::NAME)));
        }
        if *shared.stopping.borrow() {
            return Err(Status::unavailable("the server is shutting down"));
        }
        if !shared.admission.admit(tokio::time::Instant::now()) {
            return Err(Status::resource_exhausted("too many new streams; try again later"));
        }
        let (parts, body) = request.into_parts();
        let limit = shared.config.max_request_bytes;
        let rules = shared.rules.clone();
        let (stream, inbound) = if delta {
            (ServerStream::delta(rules), Inbound::Delta(Requests::new(body, limit)))
        } else {
            (ServerStream::sotw(rules), Inbound::Sotw(Requests::new(body, limit)))
        };
        let stream = match K::TYPE {
            Some(type_url) => stream.for_type(type_url),
            None => stream,
        };
        let caller =
            Caller { metadata: MetadataMap::from_headers(parts.headers), extensions: parts.extensions };
        // One message in flight: what a slow client misses is never queued, it is compared when there is room again.
        let (out, frames) = mpsc::channel(1);
        let (ended, end) = oneshot::channel();
        tokio::spawn(task::run(Arc::clone(shared), stream, inbound, caller, out, ended));
        let body = Body::new(ResponseBody { frames, end, pieces: VecDeque::new(), done: false });
        let mut response = http::Response::new(body);
        response
            .headers_mut()
            .insert(http::header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        Ok(response)
    }
}

impl<K> Clone for DiscoveryService<K> {
    fn clone(&self) -> Self {
        Self { server: self.server.clone(), kind: PhantomData }
    }
}

impl<K: ServiceKind> fmt::Debug for DiscoveryService<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DiscoveryService").field("name", &K::NAME).field("server", &self.server).finish()
    }
}

impl<K: ServiceKind> NamedService for DiscoveryService<K> {
    const NAME: &'static str = K::NAME;
}

impl<K: ServiceKind> tonic::codegen::Service<http::Request<Body>> for DiscoveryService<K> {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = std::future::Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        std::future::ready(Ok(self.answer(request).unwrap_or_else(Status::into_http)))
    }
}

/// The body of a response: length-prefixed messages, then the status as trailers.
#[derive(Debug)]
struct ResponseBody {
    frames: mpsc::Receiver<Frame>,
    /// How the stream ended; nothing is sent when it ended well.
    end: oneshot::Receiver<Status>,
    pieces: VecDeque<Bytes>,
    done: bool,
}

impl http_body::Body for ResponseBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<HttpFrame<Bytes>, Status>>> {
        if let Some(piece) = self.pieces.pop_front() {
            return Poll::Ready(Some(Ok(HttpFrame::data(piece))));
        }
        if self.done {
            return Poll::Ready(None);
        }
        let status = match ready!(self.frames.poll_recv(cx)) {
            Some(pieces) => {
                let size = length(&pieces);
                let Ok(prefix) = u32::try_from(size) else {
                    self.done = true;
                    return Poll::Ready(Some(Ok(trailers(&Status::internal("a response exceeds 4 GiB")))));
                };
                let mut pieces = VecDeque::from(pieces);
                // The prefix shares a frame with the first piece, which is small or absent.
                let first = pieces.pop_front().unwrap_or_default();
                let mut head = BytesMut::with_capacity(5 + first.len());
                head.put_u8(0);
                head.put_u32(prefix);
                head.put_slice(&first);
                self.pieces = pieces;
                return Poll::Ready(Some(Ok(HttpFrame::data(head.freeze()))));
            }
            None => ready!(Pin::new(&mut self.end).poll(cx)).unwrap_or_else(|_| Status::new(Code::Ok, "")),
        };
        self.done = true;
        Poll::Ready(Some(Ok(trailers(&status))))
    }

    fn is_end_stream(&self) -> bool {
        self.done && self.pieces.is_empty()
    }
}

fn trailers(status: &Status) -> HttpFrame<Bytes> {
    let mut headers = HeaderMap::new();
    if status.add_header(&mut headers).is_err() {
        headers.insert(Status::GRPC_STATUS, HeaderValue::from_static("13"));
    }
    HttpFrame::trailers(headers)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http_body::Body as _;
    use prost::Message as _;
    use tokio::time::sleep;

    use super::*;
    use crate::pb::envoy::config::cluster::v3::Cluster;
    use crate::pb::envoy::config::core::v3::Node;
    use crate::pb::envoy::service::discovery::v3::DeltaDiscoveryRequest;
    use crate::server::{AllowAny, ServerConfig, Snapshot, SnapshotCache};

    /// Says one thing and stays.
    struct Once(Option<Bytes>);

    impl http_body::Body for Once {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<HttpFrame<Bytes>, Infallible>>> {
            self.0.take().map_or(Poll::Pending, |bytes| Poll::Ready(Some(Ok(HttpFrame::data(bytes)))))
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_reads_late_still_hears_why_the_stream_ended() {
        let cache = SnapshotCache::new();
        cache.set(
            "n",
            Snapshot::builder().add(&Cluster { name: "a".into(), ..Default::default() }).unwrap().build(),
        );
        let server = AdsServer::new(cache, AllowAny, ServerConfig::default());
        let request = DeltaDiscoveryRequest {
            node: Some(Node { id: "n".to_owned(), ..Default::default() }),
            type_url: TypeUrl::CLUSTER.to_string(),
            ..Default::default()
        };
        let mut bytes = vec![0];
        bytes.extend_from_slice(&u32::try_from(request.encoded_len()).unwrap().to_be_bytes());
        request.encode_raw(&mut bytes);
        let request = http::Request::builder().uri("/x/DeltaAggregatedResources");
        let request = request.body(Body::new(Once(Some(bytes.into())))).unwrap();
        let mut body = server.ads().answer(request).unwrap().into_body();
        // The response waits to be read when the server shuts down, and for a long time after that.
        sleep(Duration::from_secs(1)).await;
        assert_eq!(server.client_count(), 1);
        server.shut_down();
        sleep(Duration::from_secs(60)).await;
        assert_eq!(server.client_count(), 0, "nobody waits for the client");
        let mut frames = Vec::new();
        while let Some(frame) = std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
            frames.push(frame.unwrap());
        }
        assert!(frames[0].is_data(), "what was said before is read first");
        let trailers = frames.last().unwrap().trailers_ref().unwrap();
        assert_eq!(trailers[Status::GRPC_STATUS], "14");
    }
}
