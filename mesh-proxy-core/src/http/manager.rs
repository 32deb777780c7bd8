//! The HTTP connection manager at run time.

use std::sync::{Arc, Mutex, PoisonError, atomic::AtomicU32};

use arc_swap::Guard;
use http::HeaderValue;
use tokio::task::JoinHandle;

use super::{RouteSlot, RouteTable, headers};
use crate::{
    config::{HttpConnectionManager, HttpFilterKind, RouteSource},
    error::ConfigError,
    filter::{ConnectionInfo, HttpFilter},
    filters,
    lifecycle::Life,
    proxy::Shared,
    telemetry::{Counter, Gauge, Logs, Stats},
    worker::Worker,
};

/// A compiled connection manager.
#[derive(Debug)]
pub(crate) struct ManagerRuntime {
    pub(crate) config: Arc<HttpConnectionManager>,
    pub(crate) routes: Routes,
    pub(crate) filters: Box<[FilterSlot]>,
    pub(crate) logs: Logs,
    pub(crate) stats: HttpStats,
    pub(crate) suppress_envoy_headers: bool,
}

/// Where routes come from at run time.
#[derive(Debug)]
pub(crate) enum Routes {
    Inline(Arc<RouteTable>),
    Slot(Arc<RouteSlot>),
}

impl Routes {
    pub(crate) fn load(&self) -> Option<Arc<RouteTable>> {
        match self {
            Self::Inline(table) => Some(Arc::clone(table)),
            Self::Slot(slot) => Guard::into_inner(slot.table.load()),
        }
    }
}

/// A filter in its place.
#[derive(Debug)]
pub(crate) struct FilterSlot {
    pub(crate) name: Arc<str>,
    pub(crate) filter: Arc<dyn HttpFilter>,
    pub(crate) disabled: bool,
    pub(crate) wraps_bodies: bool,
}

/// Statistics of a connection manager.
#[derive(Debug)]
pub(crate) struct HttpStats {
    pub(crate) cx_total: Arc<Counter>,
    pub(crate) cx_active: Arc<Gauge>,
    pub(crate) cx_protocol_error: Arc<Counter>,
    pub(crate) rq_total: Arc<Counter>,
    pub(crate) rq_active: Arc<Gauge>,
    pub(crate) rq_xx: [Arc<Counter>; 5],
    pub(crate) rq_completed: Arc<Counter>,
}

impl HttpStats {
    fn new(stats: &Stats, prefix: &str) -> Self {
        let prefix = prefix.trim_end_matches(';');
        let counter = |tail: &str| stats.counter(&format!("http.{prefix}.{tail}"));
        Self {
            cx_total: counter("downstream_cx_total"),
            cx_active: stats.gauge(&format!("http.{prefix}.downstream_cx_active")),
            cx_protocol_error: counter("downstream_cx_protocol_error"),
            rq_total: counter("downstream_rq_total"),
            rq_active: stats.gauge(&format!("http.{prefix}.downstream_rq_active")),
            rq_xx: ["1xx", "2xx", "3xx", "4xx", "5xx"]
                .map(|class| counter(&format!("downstream_rq_{class}"))),
            rq_completed: counter("downstream_rq_completed"),
        }
    }
}

impl ManagerRuntime {
    /// Compiles; the last filter must be the router.
    pub(crate) fn compile(config: &Arc<HttpConnectionManager>, shared: &Shared) -> Result<Self, ConfigError> {
        let routes = match &config.routes {
            RouteSource::Inline(routes) => Routes::Inline(Arc::new(RouteTable::compile(Arc::clone(routes))?)),
            RouteSource::Rds(name) => Routes::Slot(shared.route_slot(name)),
        };
        let Some(last) = config.filters.last() else {
            return Err(ConfigError::Missing { field: "http_filters".into() });
        };
        let HttpFilterKind::Router { suppress_envoy_headers } = last.kind else {
            return Err(ConfigError::invalid(
                "http_filters",
                &last.name,
                "the last filter must be the router",
            ));
        };
        let mut slots = Vec::new();
        for filter in &config.filters[..config.filters.len() - 1] {
            if let Some(made) = filters::make(filter, shared, &config.stat_prefix)? {
                slots.push(FilterSlot {
                    name: Arc::clone(&filter.name),
                    wraps_bodies: made.wraps_bodies(),
                    filter: made,
                    disabled: filter.disabled,
                });
            }
        }
        Ok(Self {
            routes,
            filters: slots.into(),
            logs: Logs::compile(&config.access_logs, &shared.logs)?,
            stats: HttpStats::new(shared.stats(), &config.stat_prefix),
            suppress_envoy_headers,
            config: Arc::clone(config),
        })
    }
}

/// One connection that speaks HTTP.
#[derive(Debug)]
pub(crate) struct HttpConnection {
    pub(crate) info: Arc<ConnectionInfo>,
    pub(crate) manager: Arc<ManagerRuntime>,
    pub(crate) shared: Arc<Shared>,
    pub(crate) worker: Arc<Worker>,
    pub(crate) lifecycle: Life,
    /// Our `x-forwarded-client-cert` element for this peer.
    pub(crate) client_cert: Option<HeaderValue>,
    pub(crate) requests: AtomicU32,
    /// Requests in flight.
    pub(crate) active: AtomicU32,
    /// What an upgrade made of the connection.
    tunnel: Mutex<Option<JoinHandle<()>>>,
}

impl HttpConnection {
    pub(crate) fn new(
        info: Arc<ConnectionInfo>,
        manager: Arc<ManagerRuntime>,
        shared: Arc<Shared>,
        worker: Arc<Worker>,
        lifecycle: Life,
    ) -> Self {
        let client_cert = info
            .tls
            .as_ref()
            .and_then(|tls| headers::client_cert_element(tls, manager.config.set_client_cert));
        Self {
            info,
            manager,
            shared,
            worker,
            lifecycle,
            client_cert,
            requests: AtomicU32::new(0),
            active: AtomicU32::new(0),
            tunnel: Mutex::default(),
        }
    }

    pub(crate) fn set_tunnel(&self, tunnel: JoinHandle<()>) {
        *self.tunnel.lock().unwrap_or_else(PoisonError::into_inner) = Some(tunnel);
    }

    pub(crate) fn take_tunnel(&self) -> Option<JoinHandle<()>> {
        self.tunnel.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}
