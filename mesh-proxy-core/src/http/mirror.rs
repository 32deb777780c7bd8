//! Request mirroring: a copy goes to another cluster, its answer is thrown away.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{HeaderValue, Request, Version, header, request, uri};
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::BodyExt;
use tokio::sync::mpsc;

use super::HttpConnection;
use crate::{
    Body,
    body::BodyError,
    config::{MirrorPolicy, UpstreamProtocol},
    upstream::{ConnectOptions, Pick, Protocol, checkout},
};

/// Most bytes of a body that may wait for a slow mirror; beyond, the mirror's request is aborted.
const LIMIT: usize = 1024 * 1024;

/// Starts the mirrors of a request; returns the body to send to the real upstream.
pub(super) fn start(
    connection: &Arc<HttpConnection>,
    policies: &[MirrorPolicy],
    head: &request::Parts,
    mut body: Body,
) -> Body {
    for policy in policies {
        if !policy.fraction.selects(connection.worker.random()) {
            continue;
        }
        let copy = if body.is_end_stream() {
            Body::empty()
        } else {
            let (frames, received) = mpsc::unbounded_channel();
            let waiting = Arc::new(AtomicUsize::new(0));
            let size = body.size_hint();
            body = Body::wrap(Tee { body, frames: Some(frames), waiting: Arc::clone(&waiting) });
            Body::wrap(Copied { received, waiting, size })
        };
        let mut request = Request::new(copy);
        *request.method_mut() = head.method.clone();
        *request.headers_mut() = head.headers.clone();
        *request.uri_mut() =
            head.uri.path_and_query().cloned().map_or_else(|| uri::Uri::from_static("/"), uri::Uri::from);
        *request.version_mut() = Version::HTTP_11;
        if policy.shadow_host_suffix
            && let Some(host) = head.headers.get(header::HOST).and_then(|h| h.to_str().ok())
            && let Ok(shadow) = HeaderValue::from_str(&format!("{host}-shadow"))
        {
            request.headers_mut().insert(header::HOST, shadow);
        }
        tokio::spawn(send(Arc::clone(connection), Arc::clone(&policy.cluster), request));
    }
    body
}

async fn send(connection: Arc<HttpConnection>, cluster: Arc<str>, mut request: Request<Body>) {
    let Some(cluster) = connection.shared.clusters.get(&cluster) else { return };
    let pick =
        Pick { worker: Some(&connection.worker), original: Some(connection.info.local), ..Pick::default() };
    let Ok(host) = cluster.pick(&pick) else { return };
    let protocol = match cluster.config.protocol {
        UpstreamProtocol::Http2 => Protocol::Http2,
        UpstreamProtocol::Http1 | UpstreamProtocol::Downstream => Protocol::Http1,
    };
    let options = ConnectOptions::default();
    let lease = checkout(&connection.shared, &connection.worker, &cluster, &host, protocol, &options).await;
    let Ok(mut lease) = lease else { return };
    cluster.stats.rq_total.inc();
    let response = match lease.http2() {
        Some(mut sender) => {
            let authority = request.headers_mut().remove(header::HOST);
            let authority = authority.as_ref().and_then(|h| h.to_str().ok()).unwrap_or("mirror");
            let path = request.uri().path_and_query().map_or("/", |p| p.as_str());
            let Ok(target) = format!("http://{authority}{path}").parse() else { return };
            *request.uri_mut() = target;
            *request.version_mut() = Version::HTTP_2;
            sender.send_request(request).await
        }
        None => match lease.http1() {
            Some(sender) => sender.send_request(request).await,
            None => return,
        },
    };
    let Ok(response) = response else { return };
    if response.into_body().collect().await.is_ok() {
        lease.release();
    }
}

/// Passes a body on and copies it.
struct Tee {
    body: Body,
    frames: Option<mpsc::UnboundedSender<Frame<Bytes>>>,
    waiting: Arc<AtomicUsize>,
}

impl HttpBody for Tee {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        let frame = ready!(Pin::new(&mut this.body).poll_frame(cx));
        match (&frame, &this.frames) {
            (Some(Ok(frame)), Some(frames)) => {
                let copy = match (frame.data_ref(), frame.trailers_ref()) {
                    (Some(data), _) => {
                        let waiting = this.waiting.fetch_add(data.len(), Relaxed) + data.len();
                        (waiting <= LIMIT).then(|| Frame::data(data.clone()))
                    }
                    (None, Some(trailers)) => Some(Frame::trailers(trailers.clone())),
                    (None, None) => None,
                };
                let sent = copy.is_some_and(|copy| frames.send(copy).is_ok());
                if !sent || this.body.is_end_stream() {
                    this.frames = None;
                }
            }
            _ => this.frames = None,
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The copy.
struct Copied {
    received: mpsc::UnboundedReceiver<Frame<Bytes>>,
    waiting: Arc<AtomicUsize>,
    size: SizeHint,
}

impl HttpBody for Copied {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        let frame = ready!(this.received.poll_recv(cx));
        if let Some(data) = frame.as_ref().and_then(|f| f.data_ref()) {
            this.waiting.fetch_sub(data.len(), Relaxed);
        }
        Poll::Ready(frame.map(Ok))
    }

    fn size_hint(&self) -> SizeHint {
        self.size
    }
}
