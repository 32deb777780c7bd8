//! One request and its response, until the last byte: context, log, statistics.

use std::{
    pin::Pin,
    sync::{Arc, atomic::Ordering::Relaxed},
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http::HeaderValue;
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::time::Instant;

use super::{
    HttpConnection,
    watch::{Expired, Progress, Watch},
};
use crate::{
    Body,
    body::BodyError,
    config::Direction,
    filter::RequestContext,
    telemetry::{Captured, Captures, Format, Record, ResponseFlags, SeriesKey, SeriesLabels},
    upstream::{ActiveRequest, ClusterRuntime, Lease, Permit},
};

/// An exchange. Dropping it ends it: filters are told, the log is written, statistics are recorded.
#[derive(Debug)]
pub(crate) struct Exchange {
    pub(crate) connection: Arc<HttpConnection>,
    pub(crate) cx: RequestContext,
    pub(crate) captured: Captured,
    pub(crate) cluster: Option<Arc<ClusterRuntime>>,
    pub(crate) status: u16,
    pub(crate) grpc: bool,
    /// What has moved; there when the request has a body or the stream a time limit.
    pub(crate) progress: Option<Arc<Progress>>,
    pub(crate) sent: u64,
    pub(crate) first_byte: Option<Instant>,
    /// To be returned with the response.
    pub(crate) request_id: Option<HeaderValue>,
    /// Cookies that consistent hashing made for the client.
    pub(crate) cookies: Vec<HeaderValue>,
    /// The response was handed over in full.
    pub(crate) complete: bool,
}

impl Drop for Exchange {
    fn drop(&mut self) {
        if !self.complete && self.cx.flags.is_empty() {
            // The client left: there is nobody to tell, so the code is 0 unless a response had begun.
            self.cx.flags = ResponseFlags::DOWNSTREAM_CLOSED;
            if self.cx.details.is_none() || self.status == 0 {
                self.cx.set_details("downstream_remote_disconnect");
            }
        }
        let manager = &self.connection.manager;
        for slot in &manager.filters {
            slot.filter.on_complete(&self.cx);
        }
        let duration = self.cx.start.elapsed();
        let received = self.progress.as_ref().map_or(0, |p| p.received());
        manager.stats.rq_active.dec();
        self.connection.active.fetch_sub(1, Relaxed);
        manager.stats.rq_completed.inc();
        if let Some(class) = manager.stats.rq_xx.get(usize::from(self.status / 100).wrapping_sub(1)) {
            class.inc();
        }
        self.record_istio(duration, received);
        if !manager.logs.is_empty() {
            let record = self.record(duration, received);
            manager.logs.write(self.connection.worker.id, &record);
        }
    }
}

impl Exchange {
    fn record(&self, duration: Duration, received: u64) -> Record<'_> {
        Record {
            start_time: self.cx.start_time,
            client: self.cx.client,
            duration,
            response_duration: self.first_byte.map(|at| at.duration_since(self.cx.start)),
            connection: &self.connection.info,
            captured: Some(&self.captured),
            status: self.status,
            flags: self.cx.flags,
            details: self.cx.details.as_deref(),
            termination: None,
            received,
            sent: self.sent,
            upstream: &self.cx.upstream,
            route: self.cx.route.as_ref().map(|r| &*r.name),
            metadata: &self.cx.metadata,
        }
    }

    /// A header template's value; `None` when it has no valid operators.
    pub(crate) fn expand(&self, template: &str) -> Option<Vec<u8>> {
        let format = Format::compile(template, &mut Captures::default()).ok()?;
        let mut out = Vec::new();
        format.render(&mut out, &self.record(self.cx.start.elapsed(), 0));
        Some(out)
    }

    fn record_istio(&self, duration: Duration, received: u64) {
        let info = &self.connection.info;
        let inbound = info.direction != Direction::Outbound;
        let peer: Option<&Arc<str>> =
            if inbound { info.peer_key.as_ref() } else { self.cx.upstream.workload.as_ref() };
        let grpc = self
            .grpc
            .then(|| self.captured.grpc_status.as_ref().and_then(|v| v.to_str().ok()).unwrap_or("2"));
        let key = SeriesKey {
            cluster: self.cluster.as_ref().map_or(0, |c| c.id),
            peer: peer.map_or(0, |p| Arc::as_ptr(p).cast::<u8>() as usize),
            flags: self.cx.flags,
            status: self.status,
            grpc: grpc.map_or(0, |g| g.parse::<u16>().unwrap_or(2) + 1),
            inbound,
            tcp: false,
            mutual_tls: info.peer_identity().is_some(),
        };
        let shared = &self.connection.shared;
        let series = shared.istio.series(&self.connection.worker.series, key, || SeriesLabels {
            direction: info.direction,
            peer_principal: if inbound {
                info.peer_identity().map(|id| &**id)
            } else {
                self.cx.upstream.identity.as_deref()
            },
            local_principal: info.tls.as_ref().and_then(|t| t.local_identity.as_deref()),
            peer_workload: if inbound { None } else { self.cx.upstream.workload.as_deref() },
            service: self.cluster.as_ref().and_then(|c| c.config.services.first()),
            cluster: self.cx.upstream.cluster.as_deref().unwrap_or(""),
            status: self.status,
            grpc_status: grpc,
            flags: self.cx.flags,
            tcp: false,
            mutual_tls: key.mutual_tls,
        });
        series.requests.inc();
        series.duration.record_milli(duration.as_micros() as u64);
        series.request_bytes.record_milli(received * 1000);
        series.response_bytes.record_milli(self.sent * 1000);
    }
}

/// What the upstream side holds while a response is sent.
#[derive(Debug, Default)]
pub(crate) struct Held {
    pub(crate) lease: Option<Lease>,
    /// Counted until the response is through.
    pub(crate) _counted: Option<(ActiveRequest, Permit)>,
}

/// A response body on its way to the client.
#[derive(Debug)]
pub(crate) struct ResponseBody {
    body: Body,
    exchange: Option<Box<Exchange>>,
    held: Held,
    watch: Option<Watch>,
}

impl ResponseBody {
    pub(crate) fn new(body: Body, exchange: Box<Exchange>, held: Held, watch: Option<Watch>) -> Self {
        let mut this = Self { body, exchange: Some(exchange), held, watch };
        if this.body.is_end_stream() {
            this.finish();
        }
        this
    }

    /// The body is through: the connection goes back to its pool, the exchange ends well.
    fn finish(&mut self) {
        if let Some(lease) = self.held.lease.take() {
            lease.release();
        }
        self.held = Held::default();
        self.watch = None;
        if let Some(exchange) = &mut self.exchange {
            exchange.complete = true;
        }
    }
}

impl HttpBody for ResponseBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        if let Some(watch) = &mut this.watch
            && let Poll::Ready(expired) = watch.poll_expired(cx)
        {
            let (flags, details, error) = match expired {
                Expired::Response => {
                    (ResponseFlags::UPSTREAM_TIMEOUT, "response_timeout", "upstream request timeout")
                }
                Expired::Request => (ResponseFlags::empty(), "request_overall_timeout", "request timeout"),
                Expired::Idle => {
                    (ResponseFlags::STREAM_IDLE_TIMEOUT, "stream_idle_timeout", "stream timeout")
                }
            };
            if let Some(exchange) = &mut this.exchange {
                exchange.cx.add_flags(flags);
                exchange.cx.set_details(details);
            }
            this.watch = None;
            return Poll::Ready(Some(Err(BodyError::Aborted(error))));
        }
        let frame = ready!(Pin::new(&mut this.body).poll_frame(cx));
        match &frame {
            Some(Ok(frame)) => {
                if let Some(watch) = &this.watch {
                    watch.touch();
                }
                if let Some(exchange) = &mut this.exchange {
                    if let Some(data) = frame.data_ref() {
                        exchange.sent += data.len() as u64;
                    } else if let Some(status) = frame.trailers_ref().and_then(|t| t.get("grpc-status")) {
                        exchange.captured.grpc_status = Some(status.clone());
                    }
                }
                if frame.is_trailers() || this.body.is_end_stream() {
                    this.finish();
                }
            }
            Some(Err(_)) => {
                if let Some(exchange) = &mut this.exchange {
                    exchange.cx.add_flags(ResponseFlags::UPSTREAM_TERMINATION);
                    exchange.cx.set_details("upstream_reset_after_response_started{connection_termination}");
                }
            }
            None => this.finish(),
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
