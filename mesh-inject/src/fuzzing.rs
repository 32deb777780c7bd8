//! Entry points for fuzzers: arbitrary bytes in, no panic and no broken promise out.

use serde_json::{Value, json};

use crate::cluster::Cluster;
use crate::injector::{Injector, Request};
use crate::patch::{self, Patch};
use crate::review::HttpRequest;
use crate::settings::Settings;

fn injector() -> Option<Injector> {
    Injector::new(Settings::default()).ok()
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

/// Any text as the value of each annotation that the injector reads.
pub fn annotation(bytes: &[u8]) {
    let Some(injector) = injector() else { return };
    let text = String::from_utf8_lossy(bytes);
    for key in [
        crate::annotation::PROXY_CONFIG,
        crate::annotation::USER_VOLUME,
        crate::annotation::USER_VOLUME_MOUNT,
        crate::annotation::OVERRIDES,
        crate::annotation::STATUS,
        crate::annotation::TEMPLATES,
        crate::annotation::SCRAPE_TARGETS,
        crate::annotation::INCLUDE_OUTBOUND_RANGES,
        crate::annotation::EXCLUDE_INBOUND_PORTS,
        crate::annotation::PROXY_CPU,
    ] {
        let pod = json!({"metadata":{"annotations":{key: text}},"spec":{"containers":[{"name":"a"}]}});
        if let Ok(injected) = injector.inject(&Request::new(&pod, "ns", &Cluster::default())) {
            let patched = patch::diff(&pod, &injected.pod).apply(&pod);
            assert_eq!(patched.as_ref(), Ok(&injected.pod), "the patch does not give the pod");
        }
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
