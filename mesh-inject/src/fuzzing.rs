//! Entry points for fuzzers: arbitrary bytes in, no panic and no broken promise out.

use std::sync::OnceLock;

use serde_json::{Value, json};

use crate::annotation as a;
use crate::cluster::Cluster;
use crate::injector::{Injector, Request};
use crate::patch::{self, Patch};
use crate::review::HttpRequest;
use crate::settings::Settings;

/// Every annotation whose value is read by more than a comparison.
const READ: [&str; 28] = [
    a::TEMPLATES,
    a::STATUS,
    a::OVERRIDES,
    a::PROXY_CONFIG,
    a::INTERCEPTION_MODE,
    a::NATIVE_SIDECAR,
    a::PROXY_IMAGE,
    a::PROXY_IMAGE_TYPE,
    a::PROXY_CPU,
    a::PROXY_MEMORY_LIMIT,
    a::LOG_LEVEL,
    a::BOOTSTRAP_OVERRIDE,
    a::USER_VOLUME,
    a::USER_VOLUME_MOUNT,
    a::REWRITE_PROBES,
    a::STATUS_PORT,
    a::READINESS_PERIOD,
    a::INCLUDE_OUTBOUND_RANGES,
    a::EXCLUDE_OUTBOUND_RANGES,
    a::INCLUDE_INBOUND_PORTS,
    a::EXCLUDE_INBOUND_PORTS,
    a::INCLUDE_OUTBOUND_PORTS,
    a::EXCLUDE_INTERFACES,
    a::REROUTE_INTERFACES,
    a::CNI_NETWORKS,
    a::MERGE_METRICS,
    a::SCRAPE_TARGETS,
    "prometheus.io/port",
];

fn injector() -> Option<&'static Injector> {
    static INJECTOR: OnceLock<Option<Injector>> = OnceLock::new();
    INJECTOR.get_or_init(|| Injector::new(Settings::default()).ok()).as_ref()
}

/// Any bytes as the body of a review. The answer is always valid JSON with `allowed`, or an HTTP error.
pub fn review(bytes: &[u8]) {
    let Some(injector) = injector() else { return };
    let request = HttpRequest { content_type: Some("application/json"), path: "/inject", body: bytes };
    let reply = injector.review(&request, &Cluster::default());
    if reply.status == 200 {
        let body: Value = serde_json::from_slice(&reply.body).unwrap_or(Value::Null);
        assert!(body.pointer("/response/allowed").is_some_and(Value::is_boolean), "no verdict");
    }
}

/// The annotation that the first byte of an input stands for: `A` for the first of [`READ`], `B` for the next, and so on, so
/// that a seed can be written by hand. Every other byte stands for one too.
fn key(first: u8) -> &'static str {
    READ[usize::from(first.wrapping_sub(b'A')) % READ.len()]
}

/// A byte that chooses an annotation which the injector reads, then any text as its value. Whatever is accepted gives a
/// patch that gives the pod, and a second injection that changes nothing.
pub fn annotation(bytes: &[u8]) {
    let (Some((first, value)), Some(injector)) = (bytes.split_first(), injector()) else { return };
    let (key, text) = (key(*first), String::from_utf8_lossy(value));
    let cluster = Cluster::default();
    let pod = json!({"metadata": {"annotations": {key: text}}, "spec": {"containers": [{"name": "a"}]}});
    let Ok(injected) = injector.inject(&Request::new(&pod, "ns", &cluster)) else { return };
    let patched = patch::diff(&pod, &injected.pod).apply(&pod);
    assert_eq!(patched.as_ref(), Ok(&injected.pod), "{key}: the patch does not give the pod");
    let again = injector.inject(&Request::new(&injected.pod, "ns", &cluster));
    let again = again.unwrap_or_else(|error| panic!("{key}: our own pod is refused: {error}"));
    assert_eq!(again.pod, injected.pod, "{key}: a second injection changes something");
}

/// Two JSON documents separated by a zero byte: the second is tried as a patch of the first, and as a target.
pub fn patch(bytes: &[u8]) {
    let mut parts = bytes.splitn(2, |byte| *byte == 0);
    let (Some(first), Some(second)) = (parts.next(), parts.next()) else { return };
    let (Ok(document), Ok(other)) = (crate::json::parse(first), crate::json::parse(second)) else { return };
    if let Ok(patch) = Patch::from_json(&other) {
        let _ = patch.apply(&document);
    }
    assert_eq!(patch::diff(&document, &other).apply(&document).as_ref(), Ok(&other));
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::{fs, path::Path};

    use super::*;

    /// A fuzzer mutates what it is given: a seed that the injector accepts takes it past each annotation's first check.
    #[test]
    fn each_annotation_has_a_seed_that_is_accepted() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/seeds/inject_annotation");
        let mut seen = BTreeSet::new();
        for entry in fs::read_dir(&folder).expect("the seeds lie beside the crate in the repository") {
            let path = entry.unwrap().path();
            let bytes = fs::read(&path).unwrap();
            let (first, value) = bytes.split_first().unwrap();
            let value = std::str::from_utf8(value).unwrap();
            let pod = json!({"metadata": {"annotations": {key(*first): value}}, "spec": {"containers": [{"name": "a"}]}});
            let cluster = Cluster::default();
            let request = Request::new(&pod, "ns", &cluster);
            if let Err(error) = injector().unwrap().inject(&request) {
                panic!("{}: {error}", path.display());
            }
            annotation(&bytes);
            seen.insert(key(*first));
        }
        assert_eq!(seen, BTreeSet::from(READ));
    }
}
