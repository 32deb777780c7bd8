//! The monitoring port: readiness, metrics and, for those who may, debugging pages.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http::{Method, StatusCode};
use mesh_identity::Identity;
use mesh_identity::auth::CallerCredentials;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use super::http::{Answer, Call, Handler, answer, text};
use super::injection_metrics::InjectionMetrics;
use super::{Shared, debug};

/// Requests here have no body.
const MAX_BODY: usize = 4096;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TypeLabel {
    r#type: String,
}

/// What is counted. Clones share.
#[derive(Clone)]
pub(crate) struct Metrics {
    registry: Arc<Registry>,
    pub(super) connections: Gauge,
    pushes: Family<TypeLabel, Counter>,
    prepare_seconds: Histogram,
    push_seconds: Histogram,
    pending_pushes: Gauge,
    rejects: Family<TypeLabel, Counter>,
    pub(super) injection: InjectionMetrics,
    resources: Gauge,
    rejected_resources: Gauge,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::default();
        let this = Self {
            registry: Arc::default(),
            connections: Gauge::default(),
            pushes: Family::default(),
            prepare_seconds: Histogram::new(exponential_buckets(0.001, 2.0, 14)),
            push_seconds: Histogram::new(exponential_buckets(0.000_01, 4.0, 10)),
            pending_pushes: Gauge::default(),
            rejects: Family::default(),
            injection: InjectionMetrics::register(&mut registry),
            resources: Gauge::default(),
            rejected_resources: Gauge::default(),
        };
        registry.register("pilot_xds", "Connected xDS streams", this.connections.clone());
        registry.register("pilot_pushes", "Batches of changes by what they mean", this.pushes.clone());
        registry.register(
            "pilot_pushcontext_init_seconds",
            "Time to index a batch of changes and prepare what clients share",
            this.prepare_seconds.clone(),
        );
        registry.register(
            "pilot_xds_push_time",
            "Time to translate for one client and hand over, in seconds",
            this.push_seconds.clone(),
        );
        registry.register(
            "mesh_control_pending_pushes",
            "Clients that wait for their turn",
            this.pending_pushes.clone(),
        );
        registry.register("pilot_total_xds_rejects", "Responses that clients rejected", this.rejects.clone());
        registry.register("mesh_control_resources", "Resources in force", this.resources.clone());
        registry.register(
            "mesh_control_rejected_resources",
            "Resources whose newest version is not in force",
            this.rejected_resources.clone(),
        );
        Self { registry: Arc::new(registry), ..this }
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").field("connections", &self.connections.get()).finish_non_exhaustive()
    }
}

impl Metrics {
    /// `kind`: what is pushed, if anything.
    pub(super) fn prepared(&self, kind: Option<&str>, took: Duration) {
        if let Some(kind) = kind {
            self.pushes.get_or_create(&TypeLabel { r#type: kind.to_owned() }).inc();
        }
        self.prepare_seconds.observe(took.as_secs_f64());
    }

    pub(super) fn pushed(&self, took: Duration) {
        self.push_seconds.observe(took.as_secs_f64());
    }

    pub(super) fn rejected(&self, kind: &str) {
        self.rejects.get_or_create(&TypeLabel { r#type: kind.to_owned() }).inc();
    }
}

/// Ready is who has a certificate that the peers accept: without one no handshake succeeds.
pub(super) fn ready(identity: &Identity) -> Answer {
    if identity.is_ready() {
        text(StatusCode::OK, "ready\n")
    } else {
        text(StatusCode::SERVICE_UNAVAILABLE, "the server has no valid certificate\n")
    }
}

/// Answers on the monitoring port.
pub(super) struct Pages {
    shared: Arc<Shared>,
}

impl Pages {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    fn metrics(&self) -> Answer {
        let metrics = &self.shared.metrics;
        metrics.pending_pushes.set(i64::try_from(self.shared.engine.pending()).unwrap_or(i64::MAX));
        {
            let state = self.shared.state.borrow();
            metrics.resources.set(i64::try_from(state.objects.len()).unwrap_or(i64::MAX));
            metrics.rejected_resources.set(i64::try_from(state.rejected.len()).unwrap_or(i64::MAX));
        }
        let mut body = String::new();
        match encode(&mut body, &metrics.registry) {
            Ok(()) => {
                answer(StatusCode::OK, "application/openmetrics-text; version=1.0.0; charset=utf-8", body)
            }
            Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
        }
    }

    /// Debugging pages show every workload's configuration: loopback, or an identity of the root namespace.
    async fn may_debug(&self, call: &Call) -> bool {
        if self.shared.config.open_debug || call.peer.ip().to_canonical().is_loopback() {
            return true;
        }
        let header = call.headers.get(http::header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let Some(token) = header.and_then(|value| value.strip_prefix("Bearer ")) else { return false };
        let credentials = CallerCredentials::from_token(token.trim());
        match self.shared.authenticators.authenticate(&credentials).await {
            Ok(caller) => {
                caller.id.istio().is_some_and(|name| name.namespace == self.shared.config.mesh.root_namespace)
            }
            Err(_) => false,
        }
    }
}

impl Handler for Pages {
    fn max_body(&self) -> usize {
        MAX_BODY
    }

    async fn handle(&self, call: Call) -> Answer {
        if call.method != Method::GET {
            return text(StatusCode::METHOD_NOT_ALLOWED, "GET only\n");
        }
        match call.path.as_str() {
            "/ready" => ready(&self.shared.identity),
            "/metrics" => self.metrics(),
            path if path.starts_with("/debug/") || path == "/debug" => {
                if !self.may_debug(&call).await {
                    return text(
                        StatusCode::UNAUTHORIZED,
                        "debugging pages are for loopback and for identities of the root namespace\n",
                    );
                }
                debug::page(&self.shared, path.trim_start_matches("/debug").trim_matches('/'), &call.query)
            }
            _ => text(StatusCode::NOT_FOUND, "not found\n"),
        }
    }
}

#[cfg(test)]
mod tests {
    use mesh_identity::WallClock;
    use mesh_identity::ca::{Ca, IssuancePolicy, RootOptions};
    use mesh_identity::{Identity, TrustDomain};

    use super::*;

    #[tokio::test]
    async fn ready_with_a_valid_certificate_only() {
        let domain = TrustDomain::parse("cluster.local").expect("a trust domain");
        let clock = WallClock::system();
        let ca = Ca::create(domain, &RootOptions::default(), IssuancePolicy::default(), clock.clone())
            .expect("a CA");
        let (publisher, identity) = Identity::channel(clock);
        assert_eq!(ready(&identity).status(), StatusCode::SERVICE_UNAVAILABLE, "none yet");
        let names = ["istiod.istio-system.svc".to_owned()];
        let good = ca.issue_server_certificate(&names, Some(Duration::from_secs(60))).expect("a certificate");
        publisher.publish(Some(Arc::new(good)), ca.bundle_set());
        assert_eq!(ready(&identity).status(), StatusCode::OK);
        publisher.publish(None, ca.bundle_set());
        assert_eq!(ready(&identity).status(), StatusCode::SERVICE_UNAVAILABLE, "lost again");
    }
}
