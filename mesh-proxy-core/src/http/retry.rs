//! Whether to try again, and with which body.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode};
use http_body::{Body as HttpBody, Frame, SizeHint};

use crate::{
    Body,
    body::BodyError,
    config::{RetryOn, RetryPolicy},
    worker::Worker,
};

/// How an attempt failed without a response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Failure {
    /// No connection; nothing was sent.
    Connect(Arc<str>),
    /// A circuit breaker is open; nothing was sent.
    Overflow,
    /// No host.
    NoHost,
    /// The connection ended before a response. `reused`: it had carried requests before.
    Terminated { reused: bool },
    /// The stream was reset.
    Reset,
    /// The peer refused the stream before processing it.
    Refused,
    /// The attempt's time is up.
    PerTryTimeout,
    /// The upstream's answer is not HTTP.
    Protocol,
    /// The client's body failed.
    Downstream,
}

/// Whether the policy asks for another attempt after a failure.
pub(crate) fn wants_failure(policy: &RetryPolicy, failure: &Failure, method: &Method) -> bool {
    let on = policy.on;
    let any_reset = RetryOn::FIVE_XX.union(RetryOn::GATEWAY_ERROR).union(RetryOn::RESET);
    match failure {
        Failure::Connect(_) => on.intersects(
            RetryOn::CONNECT_FAILURE
                .union(RetryOn::FIVE_XX)
                .union(RetryOn::GATEWAY_ERROR)
                .union(RetryOn::RESET)
                .union(RetryOn::RESET_BEFORE_REQUEST),
        ),
        Failure::Refused => {
            on.intersects(RetryOn::REFUSED_STREAM.union(RetryOn::FIVE_XX).union(RetryOn::RESET))
        }
        // A kept-alive connection that the peer closed at the same moment: safe to repeat for idempotent methods.
        Failure::Terminated { reused: true } if idempotent(method) && !on.is_empty() => true,
        Failure::Terminated { .. } | Failure::Reset | Failure::PerTryTimeout => on.intersects(any_reset),
        Failure::Overflow | Failure::NoHost | Failure::Protocol | Failure::Downstream => false,
    }
}

fn idempotent(method: &Method) -> bool {
    matches!(
        *method,
        Method::GET | Method::HEAD | Method::PUT | Method::DELETE | Method::OPTIONS | Method::TRACE
    )
}

/// Whether the policy asks for another attempt after a response.
pub(crate) fn wants_response(policy: &RetryPolicy, status: StatusCode, headers: &HeaderMap) -> bool {
    let on = policy.on;
    if on.is_empty() {
        return false;
    }
    let code = status.as_u16();
    if code >= 500 && on.intersects(RetryOn::FIVE_XX)
        || (502..=504).contains(&code) && on.intersects(RetryOn::GATEWAY_ERROR)
        || code == 409 && on.intersects(RetryOn::RETRIABLE_4XX)
        || on.intersects(RetryOn::RETRIABLE_STATUS_CODES) && policy.status_codes.contains(&status)
    {
        return true;
    }
    if !on.intersects(GRPC) {
        return false;
    }
    let condition = match headers.get("grpc-status").map(|v| v.as_bytes()) {
        Some(b"1") => RetryOn::GRPC_CANCELLED,
        Some(b"4") => RetryOn::GRPC_DEADLINE_EXCEEDED,
        Some(b"8") => RetryOn::GRPC_RESOURCE_EXHAUSTED,
        Some(b"13") => RetryOn::GRPC_INTERNAL,
        Some(b"14") => RetryOn::GRPC_UNAVAILABLE,
        _ => return false,
    };
    on.intersects(condition)
}

const GRPC: RetryOn = RetryOn::GRPC_CANCELLED
    .union(RetryOn::GRPC_DEADLINE_EXCEEDED)
    .union(RetryOn::GRPC_RESOURCE_EXHAUSTED)
    .union(RetryOn::GRPC_INTERNAL)
    .union(RetryOn::GRPC_UNAVAILABLE);

/// Whether a request may have to be sent again after its body was (partly) sent.
pub(crate) fn needs_replay(policy: &RetryPolicy) -> bool {
    !policy.on.is_empty()
        && (policy.on.intersects(
            RetryOn::FIVE_XX
                .union(RetryOn::GATEWAY_ERROR)
                .union(RetryOn::RESET)
                .union(RetryOn::RETRIABLE_4XX)
                .union(RetryOn::REFUSED_STREAM)
                .union(GRPC),
        ) || !policy.status_codes.is_empty())
}

/// Full jitter: uniform below `min(base * 2^(n-1) …, max)`.
pub(crate) fn back_off(policy: &RetryPolicy, retry: u32, worker: &Worker) -> Duration {
    let base = policy.base_interval.max(Duration::from_millis(1));
    let ceiling = base.saturating_mul(1 << retry.min(16)).min(policy.max_interval.max(base));
    Duration::from_micros(worker.below(ceiling.as_micros() as u64))
}

/// Most bytes kept for sending a body again; a larger one is sent once.
const REPLAY_LIMIT: usize = 64 * 1024;

/// A body that can be sent again as long as it is small.
#[derive(Debug, Clone)]
pub(crate) struct Replay(Arc<Mutex<Kept>>);

#[derive(Debug)]
struct Kept {
    frames: Vec<Bytes>,
    size: usize,
    trailers: Option<HeaderMap>,
    rest: Body,
    finished: bool,
    overflowed: bool,
}

impl Replay {
    pub(crate) fn new(body: Body) -> Self {
        Self(Arc::new(Mutex::new(Kept {
            frames: Vec::new(),
            size: 0,
            trailers: None,
            finished: body.is_end_stream(),
            rest: body,
            overflowed: false,
        })))
    }

    /// A body for one attempt; `None` when what was already sent is not kept any more. Earlier bodies must be dropped.
    pub(crate) fn attempt(&self) -> Option<Body> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.overflowed {
            return None;
        }
        let hint = kept.rest.size_hint();
        let size = kept.size as u64;
        let total = hint.exact().map(|rest| rest + size);
        let empty = kept.finished && kept.frames.is_empty() && kept.trailers.is_none();
        drop(kept);
        Some(if empty {
            Body::empty()
        } else {
            Body::wrap(ReplayBody { kept: Arc::clone(&self.0), next: 0, total, done: false })
        })
    }
}

struct ReplayBody {
    kept: Arc<Mutex<Kept>>,
    next: usize,
    total: Option<u64>,
    done: bool,
}

impl HttpBody for ReplayBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        let mut kept = this.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(frame) = kept.frames.get(this.next) {
            this.next += 1;
            return Poll::Ready(Some(Ok(Frame::data(frame.clone()))));
        }
        if kept.finished {
            let trailers = if this.done { None } else { kept.trailers.clone() };
            this.done = true;
            return Poll::Ready(trailers.map(|t| Ok(Frame::trailers(t))));
        }
        match ready!(Pin::new(&mut kept.rest).poll_frame(cx)) {
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    kept.size += data.len();
                    if kept.size > REPLAY_LIMIT {
                        kept.overflowed = true;
                        kept.frames.clear();
                        this.next = 0;
                    }
                    if !kept.overflowed {
                        kept.frames.push(data.clone());
                        this.next += 1;
                    }
                } else if let Some(trailers) = frame.trailers_ref() {
                    kept.trailers = Some(trailers.clone());
                    kept.finished = true;
                    this.done = true;
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Some(Err(error)) => {
                kept.overflowed = true;
                Poll::Ready(Some(Err(error)))
            }
            None => {
                kept.finished = true;
                this.done = true;
                Poll::Ready(None)
            }
        }
    }

    fn size_hint(&self) -> SizeHint {
        self.total.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}
