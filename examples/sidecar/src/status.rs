//! The agent's other servers: 15020 (probes, metrics, hooks), 15021 (the kubelet's health check), 15090 (metrics).

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::Full;
use serde::Deserialize;
use tokio::time::timeout;

use crate::agent::SharedAgent;
use crate::http::{Call, Handler, Outgoing, Reply, reply, text};

/// Content type of Prometheus' text.
const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";
/// Largest body taken from the application's own metrics endpoint.
const APP_METRICS_LIMIT: usize = 10 << 20;
/// How long the application may take for its metrics.
const APP_METRICS_TIMEOUT: Duration = Duration::from_secs(5);

/// Answers on 15020.
#[derive(Debug)]
pub struct Status {
    agent: SharedAgent,
    app_metrics: Vec<AppMetrics>,
}

/// One metrics endpoint of the application.
#[derive(Debug, Clone, PartialEq, Eq)]
struct AppMetrics {
    port: u16,
    path: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ScrapeConfig {
    scrape: String,
    path: String,
    port: String,
    targets: Vec<ScrapeTarget>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ScrapeTarget {
    port: String,
    path: String,
}

impl Status {
    /// For an agent; `scrape` is ISTIO_PROMETHEUS_ANNOTATIONS.
    pub fn new(agent: SharedAgent, scrape: Option<&str>) -> Self {
        let app_metrics = scrape.map(app_metrics).unwrap_or_default();
        Self { agent, app_metrics }
    }

    /// The application's metrics, then ours. A part that fails is left out.
    async fn metrics(&self) -> Reply {
        let mut body = Vec::new();
        for target in &self.app_metrics {
            match timeout(APP_METRICS_TIMEOUT, target.fetch()).await {
                Ok(Ok(text)) => {
                    body.extend_from_slice(&text);
                    if !body.ends_with(b"\n") {
                        body.push(b'\n');
                    }
                }
                Ok(Err(error)) => {
                    tracing::debug!(port = target.port, %error, "no metrics of the application");
                }
                Err(_) => tracing::debug!(port = target.port, "the application's metrics took too long"),
            }
        }
        body.extend_from_slice(self.agent.handle.prometheus().as_bytes());
        body.extend_from_slice(self.agent_metrics().as_bytes());
        reply(StatusCode::OK, PROMETHEUS, body)
    }

    fn agent_metrics(&self) -> String {
        let status =
            self.agent.svid.as_ref().map(mesh_identity::source::SvidSource::status).unwrap_or_default();
        let ready = self.agent.life.ready_after().map_or(0, crate::agent::millis);
        format!(
            "# TYPE istio_agent_cert_renewals_total counter\nistio_agent_cert_renewals_total {}\n\
             # TYPE istio_agent_cert_renewal_failures_total counter\nistio_agent_cert_renewal_failures_total {}\n\
             # TYPE istio_agent_startup_duration_milliseconds gauge\nistio_agent_startup_duration_milliseconds {ready}\n",
            status.renewals, status.failures,
        )
    }
}

fn app_metrics(variable: &str) -> Vec<AppMetrics> {
    let config: ScrapeConfig = match serde_json::from_str(variable) {
        Ok(config) => config,
        Err(error) => {
            tracing::warn!(%error, "ISTIO_PROMETHEUS_ANNOTATIONS is not understood");
            return Vec::new();
        }
    };
    if config.scrape == "false" {
        return Vec::new();
    }
    let mut targets = config.targets;
    if targets.is_empty() {
        let port = if config.port.is_empty() { "80".to_owned() } else { config.port };
        targets.push(ScrapeTarget { port, path: config.path });
    }
    targets
        .into_iter()
        .filter_map(|target| {
            let path = if target.path.is_empty() { "/metrics".to_owned() } else { target.path };
            let path = if path.starts_with('/') { path } else { format!("/{path}") };
            Some(AppMetrics { port: target.port.parse().ok()?, path })
        })
        .collect()
}

impl AppMetrics {
    async fn fetch(&self) -> std::io::Result<Bytes> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, self.port));
        let out = Outgoing { address, source: None, limit: APP_METRICS_LIMIT };
        let request = Request::get(self.path.as_str())
            .header("host", address.to_string())
            .header("accept", "text/plain;version=0.0.4")
            .header("connection", "close")
            .body(Full::default())
            .map_err(std::io::Error::other)?;
        let answer = out.send(request).await?;
        if answer.status() != StatusCode::OK {
            return Err(std::io::Error::other(format!("status {}", answer.status())));
        }
        Ok(answer.into_body())
    }
}

/// 200 when ready; otherwise 503 and what is missing.
fn health(agent: &SharedAgent) -> Reply {
    if agent.is_ready() {
        return text(StatusCode::OK, "ready\n");
    }
    let missing = agent.waiting_for().join(", ");
    let why = if missing.is_empty() { agent.life.state().name().to_owned() } else { missing };
    text(StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {why}\n"))
}

impl Handler for Status {
    async fn call(self: Arc<Self>, call: Call) -> Reply {
        let agent = &self.agent;
        match call.path.as_str() {
            "/healthz/ready" => health(agent),
            "/metrics" | "/stats/prometheus" => self.metrics().await,
            "/drain" => refuse_others(&call).unwrap_or_else(|| {
                agent.drain(true);
                text(StatusCode::OK, "OK\n")
            }),
            "/quitquitquit" => refuse_others(&call).unwrap_or_else(|| {
                agent.life.stop();
                text(StatusCode::OK, "OK\n")
            }),
            path if path.starts_with("/app-health/") || path.starts_with("/app-lifecycle/") => {
                match &agent.pod {
                    Some(pod) => pod.probes.run(path, &call.headers).await,
                    None => text(StatusCode::NOT_FOUND, "no such probe\n"),
                }
            }
            _ => text(StatusCode::NOT_FOUND, "not found\n"),
        }
    }
}

/// Only the pod's own containers may end or drain it, and only by POST.
fn refuse_others(call: &Call) -> Option<Reply> {
    let loopback = match call.peer.ip() {
        IpAddr::V4(ip) => ip.is_loopback(),
        IpAddr::V6(ip) => ip.is_loopback() || ip.to_ipv4_mapped().is_some_and(|ip| ip.is_loopback()),
    };
    if !loopback {
        return Some(text(StatusCode::FORBIDDEN, "only from inside the pod\n"));
    }
    (call.method != Method::POST).then(|| text(StatusCode::METHOD_NOT_ALLOWED, "needs POST\n"))
}

/// Answers on 15021.
#[derive(Debug)]
pub struct Health(pub SharedAgent);

impl Handler for Health {
    async fn call(self: Arc<Self>, call: Call) -> Reply {
        match call.path.as_str() {
            "/healthz/ready" => health(&self.0),
            _ => text(StatusCode::NOT_FOUND, "not found\n"),
        }
    }
}

/// Answers on 15090.
#[derive(Debug)]
pub struct Metrics(pub SharedAgent);

impl Handler for Metrics {
    async fn call(self: Arc<Self>, call: Call) -> Reply {
        match call.path.as_str() {
            "/stats/prometheus" => reply(StatusCode::OK, PROMETHEUS, self.0.handle.prometheus()),
            _ => text(StatusCode::NOT_FOUND, "not found\n"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scrape_annotations() {
        let metrics = |port, path: &str| AppMetrics { port, path: path.into() };
        assert_eq!(app_metrics(r#"{"scrape":"true","path":"m","port":"8080"}"#), [metrics(8080, "/m")]);
        assert_eq!(
            app_metrics(r#"{"scrape":"","targets":[{"port":"1","path":""},{"port":"x","path":"/y"}]}"#),
            [metrics(1, "/metrics")]
        );
        assert_eq!(app_metrics(r#"{"scrape":"false","port":"1"}"#), []);
        assert_eq!(app_metrics("nonsense"), []);
    }
}
