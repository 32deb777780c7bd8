//! What the demo found, as a table for people and as JSON for programs, and whether every promise held.

use std::collections::BTreeMap;
use std::fmt;

use mesh_netfilter::RuleCounter;
use serde::Serialize;

/// Everything that the demo measures; the field names are the JSON keys.
#[derive(Debug, Clone, Default, Serialize)]
pub(super) struct Report {
    pub(super) split_before: BTreeMap<String, u64>,
    pub(super) split_after: BTreeMap<String, u64>,
    pub(super) failed_requests: u64,
    pub(super) retries: u64,
    pub(super) plaintext_refused: bool,
    pub(super) permissive_accepted: bool,
    pub(super) wrong_identity_refused: bool,
    pub(super) rotations: Vec<Rotation>,
    pub(super) control_plane_restarts: u64,
    pub(super) sidecars: Vec<SidecarFacts>,
    pub(super) rules_packets: u64,
    pub(super) latency_us: Latency,
    #[serde(skip)]
    pub(super) requests: u64,
    #[serde(skip)]
    pub(super) fresh: u64,
    #[serde(skip)]
    pub(super) failures: BTreeMap<String, u64>,
    #[serde(skip)]
    pub(super) rules: Vec<(String, RuleCounter)>,
    #[serde(skip)]
    pub(super) promises: Vec<Promise>,
    #[serde(skip)]
    pub(super) seconds: f64,
}

/// A certificate that was replaced.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Rotation {
    pub(super) pod: String,
    pub(super) old_serial: String,
    pub(super) new_serial: String,
}

/// A sidecar, and the identities of its live sessions.
#[derive(Debug, Clone, Serialize)]
pub(super) struct SidecarFacts {
    pub(super) pod: String,
    pub(super) ready_ms: f64,
    pub(super) rss_kib: u64,
    pub(super) client_id: String,
    pub(super) server_id: String,
    pub(super) tls: String,
}

/// Latencies in microseconds.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub(super) struct Latency {
    pub(super) direct_p50: u64,
    pub(super) direct_p99: u64,
    pub(super) mesh_p50: u64,
    pub(super) mesh_p99: u64,
}

/// Something that must be true, and what was seen.
#[derive(Debug, Clone)]
pub(super) struct Promise {
    what: String,
    held: bool,
    seen: String,
}

impl Report {
    /// Notes whether something that must be true was.
    pub(super) fn promise(&mut self, what: &str, held: bool, seen: impl fmt::Display) {
        self.promises.push(Promise { what: what.to_owned(), held, seen: seen.to_string() });
    }

    /// Whether every promise held.
    pub(super) fn all_held(&self) -> bool {
        !self.promises.is_empty() && self.promises.iter().all(|promise| promise.held)
    }
}

/// The share of `version` in percent.
pub(super) fn share(split: &BTreeMap<String, u64>, version: &str) -> f64 {
    let total: u64 = split.values().sum();
    let part = split.get(version).copied().unwrap_or(0);
    if total == 0 { 0.0 } else { part as f64 * 100.0 / total as f64 }
}

impl fmt::Display for Report {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            out,
            "\nTraffic   {} requests, {} on fresh connections, {} failed, {} retried by the sidecar",
            self.requests, self.fresh, self.failed_requests, self.retries
        )?;
        for (when, split) in [("before", &self.split_before), ("after", &self.split_after)] {
            let versions: Vec<String> =
                split.iter().map(|(v, n)| format!("{v} {n} ({:.1} %)", share(split, v))).collect();
            writeln!(out, "  split {when:<7} {}", versions.join("   "))?;
        }
        for (reason, count) in &self.failures {
            writeln!(out, "  failed {count} x {reason}")?;
        }
        writeln!(out, "\nLatency   {:>10} {:>10} {:>10}", "direct", "mesh", "added")?;
        let latency = &self.latency_us;
        for (name, direct, mesh) in
            [("p50", latency.direct_p50, latency.mesh_p50), ("p99", latency.direct_p99, latency.mesh_p99)]
        {
            writeln!(out, "  {name:<7} {direct:>7} us {mesh:>7} us {:>7} us", mesh.saturating_sub(direct))?;
        }
        writeln!(out, "\nSidecars  {:<17} {:>9} {:>10}  session", "", "ready", "memory")?;
        for sidecar in &self.sidecars {
            writeln!(
                out,
                "  {:<25} {:>6.0} ms {:>6} KiB  {} -> {} ({})",
                sidecar.pod,
                sidecar.ready_ms,
                sidecar.rss_kib,
                sidecar.client_id,
                sidecar.server_id,
                sidecar.tls
            )?;
        }
        writeln!(out, "\nCertificates")?;
        for rotation in &self.rotations {
            writeln!(out, "  {:<25} {} -> {}", rotation.pod, rotation.old_serial, rotation.new_serial)?;
        }
        writeln!(out, "\nRules     {} packets matched", self.rules_packets)?;
        for (pod, rule) in self.rules.iter().filter(|(_, rule)| rule.packets > 0) {
            writeln!(out, "  {pod:<17} {:>7}  {} {}", rule.packets, rule.rule, rule.note)?;
        }
        writeln!(out, "\nPromises")?;
        for promise in &self.promises {
            let mark = if promise.held { "ok  " } else { "FAIL" };
            writeln!(out, "  {mark} {}: {}", promise.what, promise.seen)?;
        }
        write!(
            out,
            "\n{} in {:.1} s",
            if self.all_held() { "Every promise held" } else { "A promise was broken" },
            self.seconds
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_has_the_promised_keys_and_nothing_else() {
        let json = serde_json::to_value(Report::default()).unwrap();
        let keys: Vec<&str> = json.as_object().unwrap().keys().map(String::as_str).collect();
        let mut wanted = [
            "split_before",
            "split_after",
            "failed_requests",
            "retries",
            "plaintext_refused",
            "permissive_accepted",
            "wrong_identity_refused",
            "rotations",
            "control_plane_restarts",
            "sidecars",
            "rules_packets",
            "latency_us",
        ];
        wanted.sort_unstable();
        let mut keys = keys;
        keys.sort_unstable();
        assert_eq!(keys, wanted);
        assert_eq!(json["latency_us"].as_object().unwrap().len(), 4);
    }

    #[test]
    fn nothing_promised_is_nothing_held() {
        let mut report = Report::default();
        assert!(!report.all_held());
        report.promise("a", true, "seen");
        assert!(report.all_held());
        report.promise("b", false, 7);
        assert!(!report.all_held());
        assert!(report.to_string().contains("FAIL b: 7"));
    }

    #[test]
    fn shares_are_percentages() {
        let split = BTreeMap::from([(String::from("v1"), 9), (String::from("v2"), 1)]);
        assert!((share(&split, "v2") - 10.0).abs() < f64::EPSILON);
        assert!(share(&BTreeMap::new(), "v1").abs() < f64::EPSILON);
    }
}
