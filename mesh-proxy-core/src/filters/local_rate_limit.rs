//! A token bucket per filter, shared by all workers.

use std::sync::{Arc, Mutex, PoisonError};

use http::{request, response};
use tokio::time::Instant;

use crate::{
    config::{LocalRateLimit, PerRoute},
    filter::{Flow, HttpFilter, LocalReply, RequestContext},
    telemetry::{ResponseFlags, Stats},
};

#[derive(Debug)]
pub(super) struct LocalRateLimitFilter {
    name: Arc<str>,
    limit: Arc<LocalRateLimit>,
    bucket: Bucket,
    /// Buckets of routes with limits of their own.
    routes: Mutex<Vec<(Arc<LocalRateLimit>, Arc<Bucket>)>>,
    stats: Arc<Stats>,
}

/// Tokens filled in steps.
#[derive(Debug)]
struct Bucket(Mutex<(u32, Instant)>);

/// The limit that refused, for the response.
#[derive(Debug, Clone)]
struct Refused(Arc<LocalRateLimit>);

impl Bucket {
    fn new(limit: &LocalRateLimit) -> Self {
        Self(Mutex::new((limit.max_tokens, Instant::now())))
    }

    fn take(&self, limit: &LocalRateLimit) -> bool {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let interval = limit.fill_interval.max(std::time::Duration::from_millis(1));
        let fills = state.1.elapsed().as_nanos() / interval.as_nanos();
        if fills > 0 {
            let fills = u32::try_from(fills).unwrap_or(u32::MAX);
            state.0 =
                state.0.saturating_add(fills.saturating_mul(limit.tokens_per_fill)).min(limit.max_tokens);
            state.1 += interval * fills;
        }
        let got = state.0 > 0;
        state.0 = state.0.saturating_sub(1);
        got
    }
}

impl LocalRateLimitFilter {
    pub(super) fn new(name: Arc<str>, limit: Arc<LocalRateLimit>, stats: Arc<Stats>) -> Self {
        Self { bucket: Bucket::new(&limit), name, limit, routes: Mutex::default(), stats }
    }

    fn route_bucket(&self, limit: &Arc<LocalRateLimit>) -> Arc<Bucket> {
        let mut routes = self.routes.lock().unwrap_or_else(PoisonError::into_inner);
        // Limits of route tables that are gone have no other owner.
        routes.retain(|(known, _)| Arc::strong_count(known) > 1);
        if let Some((_, bucket)) = routes.iter().find(|(known, _)| Arc::ptr_eq(known, limit)) {
            return Arc::clone(bucket);
        }
        let bucket = Arc::new(Bucket::new(limit));
        routes.push((Arc::clone(limit), Arc::clone(&bucket)));
        bucket
    }
}

impl HttpFilter for LocalRateLimitFilter {
    fn on_request(&self, cx: &mut RequestContext, _head: &mut request::Parts) -> Flow {
        let own = match cx.per_filter(&self.name).and_then(|own| own.config.as_ref()) {
            Some(PerRoute::LocalRateLimit(own)) => Some(Arc::clone(own)),
            _ => None,
        };
        let limit = own.as_ref().unwrap_or(&self.limit);
        if limit.max_tokens == 0 && limit.tokens_per_fill == 0 || !limit.enabled.selects(cx.random()) {
            return Flow::Continue;
        }
        let passed = match &own {
            Some(own) => self.route_bucket(own).take(own),
            None => self.bucket.take(limit),
        };
        let count = |what: &str| {
            self.stats.counter(&format!("{}.http_local_rate_limit.{what}", limit.stat_prefix)).inc();
        };
        if passed {
            count("ok");
            return Flow::Continue;
        }
        count("rate_limited");
        if !limit.enforced.selects(cx.random()) {
            return Flow::Continue;
        }
        count("enforced");
        cx.add_flags(ResponseFlags::RATE_LIMITED);
        let status = limit.status;
        let refused = Refused(Arc::clone(limit));
        cx.extensions_mut().insert(refused);
        Flow::Reply(Box::new(LocalReply::new(status, "local_rate_limited", "local_rate_limited")))
    }

    fn on_response(&self, cx: &mut RequestContext, head: &mut response::Parts) {
        if let Some(Refused(limit)) = cx.extensions().get::<Refused>() {
            limit.response_headers.apply(&mut head.headers, |_template| None);
        }
    }
}
