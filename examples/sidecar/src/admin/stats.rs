//! `/stats`.

use std::fmt::Write;

use http::StatusCode;
use serde_json::json;

use crate::agent::SharedAgent;
use crate::http::{Call, Reply, json, reply, text};

/// Content type of Prometheus' text.
pub(super) const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";
/// Largest compiled filter.
const FILTER_LIMIT: usize = 1 << 18;

/// Statistics as text, JSON or for Prometheus, filtered.
pub(super) fn stats(agent: &SharedAgent, call: &Call) -> Reply {
    let format = call.param("format").unwrap_or_default();
    if format == "prometheus" {
        return reply(StatusCode::OK, PROMETHEUS, agent.handle.prometheus());
    }
    let filter =
        match call.param("filter").map(|f| regex::RegexBuilder::new(&f).size_limit(FILTER_LIMIT).build()) {
            None => None,
            Some(Ok(filter)) => Some(filter),
            Some(Err(error)) => return text(StatusCode::BAD_REQUEST, format!("{error}\n")),
        };
    let used_only = call.param("usedonly").is_some();
    agent
        .handle
        .stats()
        .gauge("server.uptime")
        .set(i64::try_from(agent.started.elapsed().as_secs()).unwrap_or(0));
    let wanted = |name: &str, value: i64| {
        (!used_only || value != 0) && filter.as_ref().is_none_or(|filter| filter.is_match(name))
    };
    match format.as_str() {
        "json" => {
            let mut values = Vec::new();
            each(agent, wanted, |name, value| values.push(json!({ "name": name, "value": value })));
            json(format!("{}\n", json!({ "stats": values })))
        }
        "" | "text" => {
            let mut out = String::new();
            each(agent, wanted, |name, value| {
                let _infallible = writeln!(out, "{name}: {value}");
            });
            text(StatusCode::OK, out)
        }
        other => text(StatusCode::BAD_REQUEST, format!("format {other:?} is not json, text or prometheus\n")),
    }
}

/// Counters and gauges that are wanted.
fn each(agent: &SharedAgent, wanted: impl Fn(&str, i64) -> bool, mut visit: impl FnMut(&str, i64)) {
    agent.handle.stats().visit(|name, sample| match sample.number() {
        Some(value) if wanted(name, value) => visit(name, value),
        _ => {}
    });
}
