//! What the demo reads from the pods: counters of the apps, live sessions, certificates, statistics, rules, memory.

use std::fs;
use std::time::Duration;

use mesh_netfilter::{Netlink, RuleCounter};
use serde_json::Value;

use crate::error::{During as _, LabError, Result};
use crate::http::Call;
use crate::kubelet::Pod;

/// The sidecar's admin port.
const ADMIN: u16 = 15000;
/// The echo workload's counters.
const COUNTERS: u16 = 9079;
/// The sidecar's container.
pub(super) const SIDECAR: &str = "istio-proxy";

/// Requests that the app counted.
pub(super) async fn app_requests(pod: &Pod) -> Result<u64> {
    let answer = pod.local(COUNTERS, Call::get("/counters")).await?.json("/counters")?;
    Ok(answer["requests"].as_u64().unwrap_or(0))
}

/// A JSON page of the sidecar's admin interface.
pub(super) async fn admin(pod: &Pod, path: &str) -> Result<Value> {
    pod.local(ADMIN, Call::get(path)).await?.json(&format!("{} {path}", pod.key))
}

/// The sidecar's clusters with their endpoints, as Envoy prints them.
pub(super) async fn clusters(pod: &Pod) -> Result<String> {
    Ok(pod.local(ADMIN, Call::get("/clusters")).await?.text())
}

/// Makes the sidecar fetch a new certificate; the serial numbers before and after.
pub(super) async fn rotate(pod: &Pod) -> Result<(String, String)> {
    let url = format!("{} /certs/rotate", pod.key);
    let answer = pod.local(ADMIN, Call::post("/certs/rotate", Vec::new())).await?;
    if answer.status != 200 {
        return Err(LabError::Http { url, message: format!("status {}: {}", answer.status, answer.text()) });
    }
    let answer = answer.json(&url)?;
    let serial = |field: &str| answer[field].as_str().unwrap_or_default().to_owned();
    Ok((serial("old_serial"), serial("new_serial")))
}

/// A live mutual TLS session of a sidecar.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Session {
    pub(super) client: String,
    pub(super) server: String,
    pub(super) tls: String,
}

/// The live sessions in which both sides are known by identity.
pub(super) async fn sessions(pod: &Pod) -> Result<Vec<Session>> {
    let list = admin(pod, "/connections").await?;
    let text = |session: &Value, field: &str| session[field].as_str().map(str::to_owned);
    let sessions = list.as_array().into_iter().flatten().filter_map(|session| {
        let (local, peer) = (text(session, "local_identity")?, text(session, "peer_identity")?);
        let outbound = session["direction"] == "outbound";
        let (client, server) = if outbound { (local, peer) } else { (peer, local) };
        let version = text(session, "tls_version")?;
        let exchange = text(session, "key_exchange").unwrap_or_else(|| String::from("?"));
        Some(Session { client, server, tls: format!("{version} {exchange}") })
    });
    Ok(sessions.collect())
}

/// Retries of all clusters of a sidecar.
pub(super) async fn retries(pod: &Pod) -> Result<u64> {
    let stats = admin(pod, "/stats?format=json").await?;
    let stats = stats["stats"].as_array().cloned().unwrap_or_default();
    let of_clusters = stats.iter().filter(|stat| {
        stat["name"]
            .as_str()
            .is_some_and(|name| name.starts_with("cluster.") && name.ends_with(".upstream_rq_retry"))
    });
    Ok(of_clusters.filter_map(|stat| stat["value"].as_u64()).sum())
}

/// Time from exec to ready, as the sidecar says.
pub(super) async fn ready_ms(pod: &Pod) -> Result<f64> {
    let info = admin(pod, "/server_info").await?;
    info["ready_ms"].as_f64().ok_or_else(|| LabError::Http {
        url: format!("{} /server_info", pod.key),
        message: String::from("has no ready_ms"),
    })
}

/// Resident memory of a container's main process in KiB.
pub(super) fn rss_kib(pod: &Pod, container: &str) -> Result<u64> {
    let path = format!("/proc/{}/status", pod.pid(container)?);
    let status = fs::read_to_string(&path).during(format!("read {path}"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().trim_end_matches("kB").trim().parse().ok());
    kib.ok_or_else(|| LabError::process(path, "has no VmRSS"))
}

/// The kernel's rules of a pod with their counters.
pub(super) async fn rules(pod: &Pod) -> Result<Vec<RuleCounter>> {
    let netfilter = |error: mesh_netfilter::NetlinkError| LabError::Network {
        what: String::from("read the rules"),
        message: error.to_string(),
    };
    pod.place.net.run(move || Netlink::open().map_err(netfilter)?.counters().map_err(netfilter)).await
}

/// One request by the app of a pod: status (none without an answer), body, reason.
pub(super) async fn get(pod: &Pod, url: &str, headers: &[&str]) -> Result<Got> {
    let mut argv = vec!["mesh-echo", "get", "--json", "--timeout", "5"];
    for header in headers {
        argv.extend(["--header", header]);
    }
    argv.push(url);
    let output = pod.exec(pod.default_container(), &argv, Duration::from_secs(10)).await?;
    let answer: Value = serde_json::from_str(output.stdout.trim())
        .map_err(|_| LabError::process("mesh-echo get", format!("{} {}", output.stdout, output.stderr)))?;
    Ok(Got {
        status: answer["status"].as_u64(),
        body: answer["body"].clone(),
        reason: answer["error"].as_str().unwrap_or_default().to_owned(),
    })
}

/// What [`get`] saw.
#[derive(Debug, Clone)]
pub(super) struct Got {
    pub(super) status: Option<u64>,
    pub(super) body: Value,
    pub(super) reason: String,
}

impl Got {
    /// For people.
    pub(super) fn describe(&self) -> String {
        match self.status {
            Some(status) => format!("status {status} {}", self.body),
            None => self.reason.clone(),
        }
    }
}

/// Whether some object in `dump` has `weighted_clusters` with exactly these weights.
pub(super) fn has_weights(dump: &Value, wanted: &[u64]) -> bool {
    match dump {
        Value::Object(map) => {
            let weights = map.get("weighted_clusters").and_then(|clusters| clusters["clusters"].as_array());
            let found = weights.is_some_and(|clusters| {
                let mut weights: Vec<u64> =
                    clusters.iter().filter_map(|cluster| cluster["weight"].as_u64()).collect();
                weights.sort_unstable();
                weights == wanted
            });
            found || map.values().any(|value| has_weights(value, wanted))
        }
        Value::Array(list) => list.iter().any(|value| has_weights(value, wanted)),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn weights_are_found_at_any_depth() {
        let dump = json!({ "configs": [{ "route": { "weighted_clusters": { "clusters": [
            { "name": "a", "weight": 90 }, { "name": "b", "weight": 10 } ] } } }] });
        assert!(has_weights(&dump, &[10, 90]));
        assert!(!has_weights(&dump, &[50, 50]));
    }
}
