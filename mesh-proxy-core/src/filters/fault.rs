//! Fault injection: a delay, an abort, or both.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering::Relaxed},
};

use http::request;

use crate::{
    config::{Fault, PerRoute},
    filter::{Flow, HttpFilter, LocalReply, RequestContext, Resume},
    telemetry::{Counter, ResponseFlags, Stats},
};

#[derive(Debug)]
pub(super) struct FaultFilter {
    name: Arc<str>,
    fault: Arc<Fault>,
    active: Arc<AtomicU32>,
    delays: Arc<Counter>,
    aborts: Arc<Counter>,
}

/// Counts a fault in progress.
struct Active(Arc<AtomicU32>);

impl Drop for Active {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

impl FaultFilter {
    pub(super) fn new(name: Arc<str>, fault: Arc<Fault>, stats: &Stats, prefix: &str) -> Self {
        let prefix = prefix.trim_end_matches(';');
        Self {
            name,
            fault,
            active: Arc::default(),
            delays: stats.counter(&format!("http.{prefix}.fault.delays_injected")),
            aborts: stats.counter(&format!("http.{prefix}.fault.aborts_injected")),
        }
    }
}

impl HttpFilter for FaultFilter {
    fn on_request(&self, cx: &mut RequestContext, head: &mut request::Parts) -> Flow {
        let own = match cx.per_filter(&self.name).and_then(|own| own.config.as_ref()) {
            Some(PerRoute::Fault(own)) => Some(Arc::clone(own)),
            _ => None,
        };
        let fault = own.as_deref().unwrap_or(&self.fault);
        let applies = fault.headers.iter().all(|h| h.matches(head))
            && fault.upstream_cluster.as_ref().is_none_or(|name| cx.cluster() == Some(name))
            && fault.max_active.is_none_or(|most| self.active.load(Relaxed) < most);
        if !applies {
            return Flow::Continue;
        }
        let delay = fault.delay.filter(|d| d.fraction.selects(cx.random()));
        let abort = fault.abort.filter(|a| a.fraction.selects(cx.random())).map(|abort| {
            self.aborts.inc();
            let mut reply = LocalReply::new(abort.status, "fault filter abort", "fault_filter_abort");
            reply.grpc_status = abort.grpc_status;
            Box::new(reply)
        });
        match (delay, abort) {
            (None, None) => Flow::Continue,
            (None, Some(reply)) => {
                cx.add_flags(ResponseFlags::FAULT_INJECTED);
                Flow::Reply(reply)
            }
            (Some(delay), abort) => {
                self.delays.inc();
                cx.add_flags(ResponseFlags::DELAY_INJECTED);
                if abort.is_some() {
                    cx.add_flags(ResponseFlags::FAULT_INJECTED);
                }
                self.active.fetch_add(1, Relaxed);
                let active = Active(Arc::clone(&self.active));
                Flow::Await(Box::pin(async move {
                    let _active = active;
                    tokio::time::sleep(delay.duration).await;
                    abort.map_or(Resume::Continue, Resume::Reply)
                }))
            }
        }
    }
}
