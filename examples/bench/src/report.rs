//! Medians, ratios, a table for people and JSON for programs.

use std::fmt::Write;
use std::time::Duration;

use serde_json::{Value, json};

use crate::config::{Peer, Scenario};
use crate::load::Outcome;
use crate::options::Options;
use crate::process::Cpus;

/// One measurement of one peer.
#[derive(Debug)]
pub(crate) struct Sample {
    pub(crate) peer: Peer,
    pub(crate) scenario: Scenario,
    /// CPU time of all the peer's processes within the window.
    pub(crate) cpu: Duration,
    pub(crate) outcome: Outcome,
    /// From start to the first accepted connection, of the slower process of a pair.
    pub(crate) ready: Duration,
    pub(crate) idle_rss_kib: u64,
    pub(crate) loaded_rss_kib: u64,
    pub(crate) dumped_rss_kib: Option<u64>,
}

impl Sample {
    fn cpu_us(&self) -> f64 {
        self.cpu.as_secs_f64() * 1e6 / self.outcome.requests as f64
    }

    fn rate(&self) -> f64 {
        self.outcome.requests as f64 / self.outcome.elapsed.as_secs_f64()
    }

    /// One line of progress.
    pub(crate) fn line(&self) -> String {
        format!(
            "{:6.2} us/request, {:7.0} requests/s, {} errors",
            self.cpu_us(),
            self.rate(),
            self.outcome.errors
        )
    }
}

/// A measurement at a given rate, and the backend alone at the same rate.
#[derive(Debug)]
pub(crate) struct Paced {
    pub(crate) direct: hdrhistogram::Histogram<u64>,
    pub(crate) sample: Sample,
}

impl Paced {
    /// What the proxies add at a quantile, in microseconds.
    fn added_us(&self, quantile: f64) -> f64 {
        self.sample.outcome.latency.value_at_quantile(quantile) as f64
            - self.direct.value_at_quantile(quantile) as f64
    }
}

/// Half of the rate that Envoy (or, without it, the first peer) reached in a scenario.
pub(crate) fn half_of_saturation(samples: &[Sample], scenario: Scenario) -> Option<f64> {
    let of = |peer: Peer| {
        let rates: Vec<f64> =
            samples.iter().filter(|s| s.scenario == scenario && s.peer == peer).map(Sample::rate).collect();
        (!rates.is_empty()).then(|| median(rates) / 2.0)
    };
    of(Peer::Envoy).or_else(|| of(samples.iter().find(|s| s.scenario == scenario)?.peer))
}

/// Medians of one peer in one scenario.
#[derive(Debug)]
struct Row {
    scenario: Scenario,
    peer: Peer,
    cpu_us: f64,
    rate: f64,
    p50_us: f64,
    p99_us: f64,
    ready_ms: f64,
    idle_rss_mib: f64,
    loaded_rss_mib: f64,
    dumped_rss_mib: Option<f64>,
    errors: u64,
    /// Requests per second of the paced run, and what was added at p50 and p99.
    paced: Option<(f64, f64, f64)>,
}

/// Everything that is shown.
#[derive(Debug)]
pub(crate) struct Summary {
    rows: Vec<Row>,
    conditions: Value,
}

/// The middle value.
pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.get(middle) {
        Some(upper) if values.len() % 2 == 1 => *upper,
        Some(upper) => (upper + values.get(middle - 1).copied().unwrap_or(*upper)) / 2.0,
        None => f64::NAN,
    }
}

/// Takes medians over the runs.
pub(crate) fn summarise(samples: &[Sample], paced: &[Paced], options: &Options, cpus: Cpus) -> Summary {
    let peers = &options.peers;
    let mut rows = Vec::new();
    for scenario in &options.scenarios {
        for (peer, _) in peers {
            let of: Vec<&Sample> =
                samples.iter().filter(|s| s.peer == *peer && s.scenario == *scenario).collect();
            if of.is_empty() {
                continue;
            }
            let middle = |f: &dyn Fn(&Sample) -> f64| median(of.iter().map(|s| f(s)).collect());
            let dumped = of.iter().all(|s| s.dumped_rss_kib.is_some());
            rows.push(Row {
                scenario: *scenario,
                peer: *peer,
                cpu_us: middle(&Sample::cpu_us),
                rate: middle(&Sample::rate),
                p50_us: middle(&|s| s.outcome.latency.value_at_quantile(0.5) as f64),
                p99_us: middle(&|s| s.outcome.latency.value_at_quantile(0.99) as f64),
                ready_ms: middle(&|s| s.ready.as_secs_f64() * 1e3),
                idle_rss_mib: middle(&|s| s.idle_rss_kib as f64 / 1024.0),
                loaded_rss_mib: middle(&|s| s.loaded_rss_kib as f64 / 1024.0),
                dumped_rss_mib: dumped
                    .then(|| middle(&|s| s.dumped_rss_kib.unwrap_or_default() as f64 / 1024.0)),
                errors: of.iter().map(|s| s.outcome.errors).sum(),
                paced: paced
                    .iter()
                    .find(|p| p.sample.peer == *peer && p.sample.scenario == *scenario)
                    .map(|p| (p.sample.rate(), p.added_us(0.5), p.added_us(0.99))),
            });
        }
    }
    let now = time::OffsetDateTime::now_utc();
    let versions: serde_json::Map<String, Value> = peers
        .iter()
        .map(|(peer, program)| {
            let version = match peer {
                Peer::Mesh => env!("CARGO_PKG_VERSION").to_owned(),
                _ => peer.version(program),
            };
            (peer.name().to_owned(), version.into())
        })
        .collect();
    let conditions = json!({
        "when": format!("{} {:02}:{:02} UTC", now.date(), now.hour(), now.minute()),
        "runs": options.runs,
        "seconds": options.window.as_secs(),
        "connections": options.connections,
        "proxy_cpu": cpus.proxy,
        "load_cpu": cpus.load,
        "cpu": cpu_model(),
        "kernel": std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim(),
        "versions": versions,
        "release_build": !cfg!(debug_assertions),
    });
    Summary { rows, conditions }
}

fn cpu_model() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model =
        info.lines().find_map(|l| l.strip_prefix("model name")?.split_once(':').map(|(_, v)| v.trim()));
    model.unwrap_or("unknown").to_owned()
}

impl Summary {
    fn ratio(&self, row: &Row, to: Peer) -> Option<f64> {
        let other = self.rows.iter().find(|r| r.scenario == row.scenario && r.peer == to)?;
        Some(row.cpu_us / other.cpu_us)
    }

    /// One object, on one line when printed plainly.
    pub(crate) fn json(&self) -> Value {
        let rows: Vec<Value> = self
            .rows
            .iter()
            .map(|row| {
                json!({
                    "scenario": row.scenario.name(),
                    "peer": row.peer.name(),
                    "cpu_us_per_request": round(row.cpu_us),
                    "requests_per_second": row.rate.round(),
                    "p50_us": row.p50_us,
                    "p99_us": row.p99_us,
                    "ready_ms": round(row.ready_ms),
                    "idle_rss_mib": round(row.idle_rss_mib),
                    "loaded_rss_mib": round(row.loaded_rss_mib),
                    "rss_after_config_dump_mib": row.dumped_rss_mib.map(round),
                    "errors": row.errors,
                    "paced_requests_per_second": row.paced.map(|(rate, ..)| rate.round()),
                    "paced_added_p50_us": row.paced.map(|(_, p50, _)| p50),
                    "paced_added_p99_us": row.paced.map(|(.., p99)| p99),
                    "cpu_ratio_to_envoy": self.ratio(row, Peer::Envoy).map(round),
                    "cpu_ratio_to_haproxy": self.ratio(row, Peer::Haproxy).map(round),
                })
            })
            .collect();
        json!({ "conditions": self.conditions, "rows": rows })
    }

    /// Markdown, as the README holds it.
    pub(crate) fn table(&self) -> String {
        let mut out = String::from(
            "| scenario | proxy | CPU us/request | x Envoy | requests/s | p50 us | p99 us | ready ms | idle MiB | \
             loaded MiB | after dump MiB | added p50/p99 us at half load | errors |\n\
             |---|---|---|---|---|---|---|---|---|---|---|---|---|\n",
        );
        for row in &self.rows {
            let ratio = self.ratio(row, Peer::Envoy).map_or_else(|| "-".into(), |r| format!("{r:.2}"));
            let paced = row
                .paced
                .map_or_else(|| "-".into(), |(rate, p50, p99)| format!("{p50:.0} / {p99:.0} at {rate:.0}/s"));
            let dumped = row.dumped_rss_mib.map_or_else(|| "-".into(), |r| format!("{r:.1}"));
            let _infallible = writeln!(
                out,
                "| {} | {} | {:.1} | {ratio} | {:.0} | {:.0} | {:.0} | {:.0} | {:.1} | {:.1} | {dumped} | {paced} | {} |",
                row.scenario.name(),
                row.peer.name(),
                row.cpu_us,
                row.rate,
                row.p50_us,
                row.p99_us,
                row.ready_ms,
                row.idle_rss_mib,
                row.loaded_rss_mib,
                row.errors
            );
        }
        let _infallible = writeln!(out, "\n{}", self.conditions);
        out
    }
}

fn round(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), 2.5);
    }
}
