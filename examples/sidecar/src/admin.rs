//! The admin server on 127.0.0.1:15000: Envoy's paths and JSON, and a few of ours.

mod certs;
mod clusters;
mod connections;
mod stats;

use std::sync::Arc;

use http::{Method, StatusCode};
use serde_json::json;

use crate::agent::{SharedAgent, millis};
use crate::dump;
use crate::http::{Call, Handler, Reply, json, reply, streamed_json, text};
use crate::logging;

pub use certs::{rfc3339, rotate};

/// Paths that change something and therefore need POST.
const MUTATIONS: &[&str] = &[
    "/logging",
    "/drain_listeners",
    "/quitquitquit",
    "/certs/rotate",
    "/healthcheck/fail",
    "/healthcheck/ok",
];

/// What `/help` lists.
const HELP: &str = "admin commands are:
  /certs: certificates in use
  /certs/rotate (POST): fetch a new certificate now
  /clusters: upstream cluster status (?format=json)
  /config_dump: the configuration in force (?include_eds, ?resource=FIELD)
  /connections: live sessions and their identities
  /drain_listeners (POST): drain (?inboundonly)
  /help: this text
  /listeners: listener addresses (?format=json)
  /logging (POST): levels (?level=L, ?SCOPE=L, ?paths=SCOPE:L,...)
  /memory: resident memory
  /quitquitquit (POST): exit
  /ready: 200 LIVE when ready
  /server_info: version, state, times
  /stats: statistics (?filter=REGEX, ?usedonly, ?format=json|prometheus)
  /stats/prometheus: statistics for Prometheus
";

/// Answers admin requests.
#[derive(Debug)]
pub struct Admin(pub SharedAgent);

impl Handler for Admin {
    async fn call(self: Arc<Self>, call: Call) -> Reply {
        let agent = &self.0;
        let mutation = MUTATIONS.contains(&call.path.as_str());
        // Envoy answers a GET on these with 400, so that nobody drains a proxy with a browser.
        if mutation && call.method != Method::POST {
            return text(StatusCode::BAD_REQUEST, format!("{} needs POST\n", call.path));
        }
        if !mutation && !matches!(call.method, Method::GET | Method::HEAD) {
            return text(StatusCode::METHOD_NOT_ALLOWED, "only GET here\n");
        }
        match call.path.as_str() {
            "/" | "/help" => text(StatusCode::OK, HELP),
            "/ready" => ready(agent),
            "/server_info" => json(server_info(agent)),
            "/certs" => json(certs::certs(agent)),
            "/certs/rotate" => rotate(agent).await,
            "/clusters" => clusters::clusters(agent, &call),
            "/listeners" => clusters::listeners(agent, &call),
            "/connections" => json(connections::connections(agent)),
            "/config_dump" => config_dump(agent, &call).await,
            "/stats" => stats::stats(agent, &call),
            "/stats/prometheus" => reply(StatusCode::OK, stats::PROMETHEUS, agent.handle.prometheus()),
            "/memory" => json(memory()),
            "/logging" => set_levels(agent, &call),
            "/drain_listeners" => {
                agent.drain(call.param("inboundonly").is_some());
                text(StatusCode::OK, "OK\n")
            }
            "/quitquitquit" => {
                agent.life.stop();
                text(StatusCode::OK, "OK\n")
            }
            "/healthcheck/fail" | "/healthcheck/ok" => {
                text(StatusCode::NOT_IMPLEMENTED, "readiness follows the proxy's state only\n")
            }
            _ => text(StatusCode::NOT_FOUND, HELP),
        }
    }
}

fn ready(agent: &SharedAgent) -> Reply {
    let status = if agent.is_ready() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    text(status, format!("{}\n", agent.life.state().name()))
}

fn server_info(agent: &SharedAgent) -> String {
    let uptime = format!("{}s", agent.started.elapsed().as_secs());
    let node = agent.bootstrap.node.clone().unwrap_or_default();
    let info = json!({
        "version": concat!("mesh-sidecar/", env!("CARGO_PKG_VERSION")),
        "state": agent.life.state().name(),
        "hot_restart_version": "disabled",
        "uptime_current_epoch": uptime,
        "uptime_all_epochs": uptime,
        "ready_ms": agent.life.ready_after().map(millis),
        "waiting_for": agent.waiting_for(),
        "node": { "id": node.id, "cluster": node.cluster },
        "command_line_options": {
            "concurrency": agent.pod.as_ref().map_or(1, |pod| pod.env.concurrency),
            "mode": "Serve",
        },
    });
    format!("{info:#}\n")
}

async fn config_dump(agent: &SharedAgent, call: &Call) -> Reply {
    if call.param("mask").is_some() || call.param("name_regex").is_some() {
        return text(StatusCode::BAD_REQUEST, "mask and name_regex are not supported; resource=FIELD is\n");
    }
    let include_eds = call.param("include_eds").is_some()
        || call.param("resource").is_some_and(|field| field.ends_with("endpoint_configs"));
    if let Some(Ok(states)) = match agent.ads.get() {
        Some(client) => Some(client.resources().await),
        None => None,
    } {
        for (kind, names) in &states {
            for (name, state) in names {
                agent.resources.set_version(kind, name, &state.version);
            }
        }
    }
    let collected = dump::collect(
        &agent.bootstrap,
        &agent.resources,
        agent.identity(),
        include_eds,
        agent.started.wall(),
    );
    match agent.reexec.render(collected.clone(), &call.query).await {
        Ok(chunks) => streamed_json(chunks),
        Err(error) => {
            tracing::debug!(%error, "no child to render the dump, it is done here");
            match dump::render_here(&collected, &call.query) {
                Ok(body) => json(body),
                Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
            }
        }
    }
}

fn memory() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kib = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|rest| rest.trim_matches([':', ' ', '\t']).split(' ').next()?.parse::<u64>().ok())
    };
    format!(
        "{:#}\n",
        json!({ "resident_kib": kib("VmRSS"), "peak_kib": kib("VmHWM"), "data_kib": kib("VmData") })
    )
}

fn set_levels(agent: &SharedAgent, call: &Call) -> Reply {
    for (key, value) in call.params() {
        let pairs: Vec<(Option<String>, String)> = match key.as_str() {
            "level" => vec![(None, value)],
            "paths" => value
                .split(',')
                .filter_map(|pair| pair.split_once(':'))
                .map(|(scope, level)| (Some(scope.to_owned()), level.to_owned()))
                .collect(),
            _ => vec![(Some(key), value)],
        };
        for (scope, name) in pairs {
            let Some(level) = logging::level(&name) else {
                return text(StatusCode::BAD_REQUEST, format!("{name:?} is no level\n"));
            };
            if !agent.logging.set(scope.as_deref(), level) {
                return text(StatusCode::BAD_REQUEST, format!("{scope:?} is no scope\n"));
            }
        }
    }
    text(StatusCode::OK, agent.logging.list())
}
