//! Time limits of one stream: without a byte, for the whole request, for the whole response.
//!
//! A [`Progress`] says what has moved; a [`Watch`] owns one timer that looks at it when it fires. Traffic never touches
//! the timer.

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http_body::Frame;
use tokio::time::{Instant, Sleep};

use crate::{
    body::Observe,
    config::{Forward, HttpConnectionManager},
};

/// What has moved on a stream, in both directions.
#[derive(Debug)]
pub(crate) struct Progress {
    start: Instant,
    received: AtomicU64,
    /// Milliseconds after `start` at which a frame last passed.
    moved_ms: AtomicU64,
    request_ended: AtomicBool,
}

impl Progress {
    pub(crate) fn new(start: Instant) -> Self {
        Self {
            start,
            received: AtomicU64::new(0),
            moved_ms: AtomicU64::new(0),
            request_ended: AtomicBool::new(false),
        }
    }

    /// Bytes of the request's body so far.
    pub(crate) fn received(&self) -> u64 {
        self.received.load(Relaxed)
    }

    /// Whether the request has arrived in full.
    pub(crate) fn request_ended(&self) -> bool {
        self.request_ended.load(Relaxed)
    }

    pub(crate) fn end_request(&self) {
        self.request_ended.store(true, Relaxed);
    }

    /// Something moved.
    pub(crate) fn touch(&self) {
        self.moved_ms.store(self.start.elapsed().as_millis() as u64, Relaxed);
    }

    fn moved(&self) -> Instant {
        self.start + Duration::from_millis(self.moved_ms.load(Relaxed))
    }
}

impl Observe for Arc<Progress> {
    fn frame(&mut self, frame: &Frame<Bytes>) {
        if let Some(data) = frame.data_ref() {
            self.received.fetch_add(data.len() as u64, Relaxed);
        }
        self.touch();
    }

    fn end(&mut self, complete: bool) {
        // What broke off has not arrived; whoever reads it gets the error.
        if complete {
            self.end_request();
        }
    }
}

/// Which limit is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Expired {
    /// `stream_idle_timeout`, or a route's `idle_timeout`.
    Idle,
    /// `request_timeout`.
    Request,
    /// The route's timeout or the longest duration of a stream.
    Response,
}

/// The limits of one stream and the one timer for them.
#[derive(Debug)]
pub(crate) struct Watch {
    progress: Arc<Progress>,
    idle: Option<Duration>,
    request: Option<Instant>,
    response: Option<Instant>,
    timer: Pin<Box<Sleep>>,
}

impl Watch {
    /// `None` when nothing limits the stream.
    pub(crate) fn new(
        config: &HttpConnectionManager,
        forward: &Forward,
        progress: &Arc<Progress>,
    ) -> Option<Self> {
        // A route's own limit counts instead of the manager's; zero is none.
        let idle = forward.idle_timeout.or(config.stream_idle_timeout).filter(|limit| !limit.is_zero());
        let request = config
            .request_timeout
            .filter(|limit| !limit.is_zero() && !progress.request_ended())
            .map(|limit| progress.start + limit);
        Self::of(progress, idle, request, None)
    }

    fn of(
        progress: &Arc<Progress>,
        idle: Option<Duration>,
        request: Option<Instant>,
        response: Option<Instant>,
    ) -> Option<Self> {
        let idle_at = idle.map(|limit| progress.moved() + limit);
        let first = [idle_at, request, response].into_iter().flatten().min()?;
        let timer = Box::pin(tokio::time::sleep_until(first));
        Some(Self { progress: Arc::clone(progress), idle, request, response, timer })
    }

    /// Only a limit for the response's end.
    pub(crate) fn response(progress: &Arc<Progress>, at: Option<Instant>) -> Option<Self> {
        Self::of(progress, None, None, at)
    }

    /// The limits of both.
    pub(crate) fn joined(mut self, other: Option<Self>) -> Self {
        if let Some(at) = other.and_then(|other| other.response) {
            self.response = Some(at);
            let next = self.timer.deadline().min(at);
            self.timer.as_mut().reset(next);
        }
        self
    }

    /// Something moved; said by the response's body.
    pub(crate) fn touch(&self) {
        if self.idle.is_some() {
            self.progress.touch();
        }
    }

    /// Ready when a limit is over.
    pub(crate) fn poll_expired(&mut self, cx: &mut Context<'_>) -> Poll<Expired> {
        loop {
            ready!(self.timer.as_mut().poll(cx));
            if self.progress.request_ended() {
                self.request = None;
            }
            let now = Instant::now();
            let idle_at = self.idle.map(|limit| self.progress.moved() + limit);
            let limits = [
                (self.response, Expired::Response),
                (self.request, Expired::Request),
                (idle_at, Expired::Idle),
            ];
            if let Some((_, which)) = limits.iter().find(|(at, _)| at.is_some_and(|at| at <= now)) {
                return Poll::Ready(*which);
            }
            // Without any limit left the timer is not looked at again.
            let Some(next) = limits.iter().filter_map(|(at, _)| *at).min() else { return Poll::Pending };
            self.timer.as_mut().reset(next);
        }
    }

    /// Resolves when a limit is over. Cancel safe.
    pub(crate) async fn expired(&mut self) -> Expired {
        std::future::poll_fn(|cx| self.poll_expired(cx)).await
    }
}
