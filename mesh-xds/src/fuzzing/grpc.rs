//! The server as the network sees it: the body of a gRPC request is arbitrary.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body as _, Frame};
use tonic::body::Body;
use tonic::codegen::Service as _;

use crate::server::{AdsServer, AllowAny, ServerConfig, SnapshotCache};

/// How long a stream may take to end once its request ended.
const PATIENCE: Duration = Duration::from_secs(10);

/// A request body in the pieces in which it arrives.
struct Pieces(VecDeque<Bytes>);

impl http_body::Body for Pieces {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.0.pop_front().map(|piece| Ok(Frame::data(piece))))
    }
}

/// One stream whose frames are arbitrary: the first byte says Delta or not and how the rest is cut into pieces.
///
/// # Panics
/// When the stream does not end, or keeps a client in the list of the connected.
pub fn grpc(data: &[u8]) {
    let Some((&first, rest)) = data.split_first() else { return };
    let method = if first % 2 == 0 { "DeltaAggregatedResources" } else { "StreamAggregatedResources" };
    let pieces = rest.chunks(usize::from(first / 2) + 1).map(Bytes::copy_from_slice).collect();
    let mut request = http::Request::new(Body::new(Pieces(pieces)));
    let path = format!("/envoy.service.discovery.v3.AggregatedDiscoveryService/{method}");
    *request.uri_mut() = path.parse().expect("the path is constant");

    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    runtime.block_on(async {
        let cache = SnapshotCache::new();
        cache.set("", super::cores::snapshot(&[1, 1, 9, 1, 17, 1, 25, 1]));
        let config = ServerConfig {
            group: std::sync::Arc::new(|_| String::new()),
            max_request_bytes: 4096,
            ..ServerConfig::default()
        };
        let server = AdsServer::new(cache, AllowAny, config);
        let Ok(response) = server.ads().call(request).await;
        let mut body = response.into_body();
        let ended = tokio::time::timeout(PATIENCE, async {
            while let Some(frame) = std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
                drop(frame);
            }
        });
        assert!(ended.await.is_ok(), "the stream ends with its request");
        assert_eq!(server.client_count(), 0, "nobody is connected any more");
    });
}
