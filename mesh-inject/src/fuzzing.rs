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

/// Any text as the value of each annotation that the injector reads. Whatever is accepted gives a patch that gives the pod,
/// and a second injection that changes nothing.
pub fn annotation(bytes: &[u8]) {
    let Some(injector) = injector() else { return };
    let text = String::from_utf8_lossy(bytes);
    let cluster = Cluster::default();
    for key in READ {
        let pod = json!({"metadata": {"annotations": {key: text}}, "spec": {"containers": [{"name": "a"}]}});
        let Ok(injected) = injector.inject(&Request::new(&pod, "ns", &cluster)) else { continue };
        let patched = patch::diff(&pod, &injected.pod).apply(&pod);
        assert_eq!(patched.as_ref(), Ok(&injected.pod), "{key}: the patch does not give the pod");
        let again = injector.inject(&Request::new(&injected.pod, "ns", &cluster));
        let again = again.unwrap_or_else(|error| panic!("{key}: our own pod is refused: {error}"));
        assert_eq!(again.pod, injected.pod, "{key}: a second injection changes something");
    }
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
