//! Request mirroring: a copy goes to another cluster, its answer is thrown away.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderValue, Request, Version, header, request, uri};
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::BodyExt;
use tokio::sync::mpsc;

use super::HttpConnection;
use crate::{
    Body,
    body::{BodyError, Observe, Observed},
    config::{Forward, UpstreamProtocol},
    upstream::{ConnectOptions, Permit, Pick, Protocol, Resource, checkout},
};

/// Most bytes of a body that may wait for a slow mirror; beyond, the mirror's request is aborted.
const LIMIT: usize = 1024 * 1024;
/// A mirror whose route has no timeout must not gather requests for ever.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Starts the mirrors of a request; returns the body to send to the real upstream.
pub(super) fn start(
    connection: &Arc<HttpConnection>,
    forward: &Forward,
    head: &request::Parts,
    mut body: Body,
) -> Body {
    for policy in &forward.mirrors {
        if !policy.fraction.selects(connection.worker.random()) {
            continue;
        }
        let copy = if body.is_end_stream() {
            Body::empty()
        } else {
            let (parts, received) = mpsc::unbounded_channel();
            let waiting = Arc::new(AtomicUsize::new(0));
            let size = body.size_hint();
            body = Observed::wrap(body, Tee { parts: Some(parts), waiting: Arc::clone(&waiting) });
            Body::wrap(Copied { received, waiting, size, ended: false })
        };
        let mut request = Request::new(copy);
        *request.method_mut() = head.method.clone();
        *request.headers_mut() = head.headers.clone();
        *request.uri_mut() =
            head.uri.path_and_query().cloned().map_or_else(|| uri::Uri::from_static("/"), uri::Uri::from);
        *request.version_mut() = Version::HTTP_11;
        if policy.shadow_host_suffix
            && let Some(host) = head.headers.get(header::HOST).and_then(|h| h.to_str().ok())
            && let Ok(shadow) = HeaderValue::from_str(&shadow(host))
        {
            request.headers_mut().insert(header::HOST, shadow);
        }
        let (connection, cluster) = (Arc::clone(connection), Arc::clone(&policy.cluster));
        let limit = forward.timeout.filter(|t| !t.is_zero()).unwrap_or(TIMEOUT);
        tokio::spawn(async move {
            let _late_or_not_nobody_waits =
                tokio::time::timeout(limit, send(connection, cluster, request)).await;
        });
    }
    body
}

/// `host-shadow:port`: the suffix belongs to the name.
fn shadow(host: &str) -> String {
    let name = super::routes::without_port(host);
    format!("{name}-shadow{}", &host[name.len()..])
}

async fn send(connection: Arc<HttpConnection>, cluster: Arc<str>, mut request: Request<Body>) {
    let Some(cluster) = connection.shared.clusters.get(&cluster) else { return };
    let Some(_permit) = Permit::acquire(&cluster, Resource::Request) else {
        cluster.stats.rq_pending_overflow.inc();
        return;
    };
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
    let mut body = response.into_body();
    // Read to the end and kept nowhere: the answer may be of any size.
    while let Some(frame) = body.frame().await {
        if frame.is_err() {
            return;
        }
    }
    lease.release();
}

/// What a mirror is told of a body.
enum Part {
    Frame(Frame<Bytes>),
    End,
}

/// Copies what passes. Dropped before its end, it leaves the copy without one, which aborts the mirror's request.
struct Tee {
    parts: Option<mpsc::UnboundedSender<Part>>,
    waiting: Arc<AtomicUsize>,
}

impl Observe for Tee {
    fn frame(&mut self, frame: &Frame<Bytes>) {
        let Some(parts) = &self.parts else { return };
        let copy = match (frame.data_ref(), frame.trailers_ref()) {
            (Some(data), _) => {
                let waiting = self.waiting.fetch_add(data.len(), Relaxed) + data.len();
                (waiting <= LIMIT).then(|| Frame::data(data.clone()))
            }
            (None, Some(trailers)) => Some(Frame::trailers(trailers.clone())),
            (None, None) => None,
        };
        if copy.is_none_or(|copy| parts.send(Part::Frame(copy)).is_err()) {
            self.parts = None;
        }
    }

    fn end(&mut self, complete: bool) {
        if let Some(parts) = self.parts.take().filter(|_| complete) {
            let _mirror_may_be_gone = parts.send(Part::End);
        }
    }
}

/// The copy.
struct Copied {
    received: mpsc::UnboundedReceiver<Part>,
    waiting: Arc<AtomicUsize>,
    size: SizeHint,
    ended: bool,
}

impl HttpBody for Copied {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        if this.ended {
            return Poll::Ready(None);
        }
        Poll::Ready(match ready!(this.received.poll_recv(cx)) {
            Some(Part::Frame(frame)) => {
                if let Some(data) = frame.data_ref() {
                    this.waiting.fetch_sub(data.len(), Relaxed);
                }
                Some(Ok(frame))
            }
            Some(Part::End) => {
                this.ended = true;
                None
            }
            // Not the end of the request: a whole-looking part of it must not arrive.
            None => {
                this.ended = true;
                Some(Err(BodyError::Aborted("the mirrored request broke off")))
            }
        })
    }

    fn size_hint(&self) -> SizeHint {
        self.size
    }
}
