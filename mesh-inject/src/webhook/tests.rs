use serde_json::json;

use super::*;

fn namespace(labels: Value) -> Value {
    json!({"metadata": {"name": "shop", "labels": labels}})
}

fn pod(labels: Value) -> Value {
    json!({"metadata": {"labels": labels}})
}

#[test]
fn entries_by_revision_and_tag() {
    let names = |options: &WebhookOptions| -> Vec<String> {
        options.build()["webhooks"].as_array().unwrap().iter().map(|e| text(e, "/name")).collect()
    };
    let default = WebhookOptions::default();
    assert_eq!(names(&default).len(), 4);
    assert_eq!(names(&WebhookOptions { enable_namespaces_by_default: true, ..default.clone() }).len(), 5);
    let canary = WebhookOptions { revision: "canary".into(), namespace: "mesh".into(), ..default };
    assert_eq!(names(&canary).len(), 2);
    assert_eq!(canary.object_name(), "istio-sidecar-injector-canary-mesh");
    let tag = WebhookOptions { tag: Some("default".into()), ..canary };
    assert_eq!(names(&tag).len(), 4);
    assert_eq!(tag.object_name(), "istio-revision-tag-default-mesh");
    assert_eq!(tag.build()["webhooks"][0]["clientConfig"]["service"]["name"], "istiod-canary");
}

#[test]
fn configurations_of_an_installation() {
    let settings = Settings::from_values(json!({
        "revision": "canary", "revisionTags": ["prod", "default"], "global": {"istioNamespace": "mesh"},
        "sidecarInjectorWebhook": {"enableNamespacesByDefault": true, "reinvocationPolicy": "IfNeeded"},
        "istiodRemote": {"injectionPath": "/inject/cluster/c1"},
    }))
    .unwrap();
    let all: Vec<Value> = WebhookOptions::of_settings(&settings).iter().map(WebhookOptions::build).collect();
    let names: Vec<String> = all.iter().map(|object| text(object, "/metadata/name")).collect();
    assert_eq!(
        names,
        [
            "istio-sidecar-injector-canary-mesh",
            "istio-revision-tag-prod-mesh",
            "istio-revision-tag-default-mesh"
        ]
    );
    let entries: Vec<usize> = all.iter().map(|object| object["webhooks"].as_array().unwrap().len()).collect();
    assert_eq!(entries, [2, 2, 5]);
    for object in &all {
        let entry = &object["webhooks"][0];
        assert_eq!(entry["reinvocationPolicy"], "IfNeeded");
        assert_eq!(entry["clientConfig"]["service"]["path"], "/inject/cluster/c1");
        assert_eq!(entry["clientConfig"]["service"]["namespace"], "mesh");
        assert_eq!(object["metadata"]["labels"]["istio.io/rev"], "canary");
    }
    assert_eq!(WebhookOptions::of_settings(&Settings::default()), [WebhookOptions::default()]);
}

#[test]
fn the_first_unmet_requirement_is_named() {
    let configurations = [WebhookOptions::default().build()];
    let all = selections(&configurations, &namespace(json!({"istio-injection":"enabled"})), &pod(json!({})));
    let selected: Vec<_> = all.iter().filter(|s| s.selected()).map(|s| s.webhook.as_str()).collect();
    assert_eq!(selected, ["namespace.sidecar-injector.istio.io"]);
    assert_eq!(all[0].unmet.as_deref(), Some("namespace label istio.io/rev In [default] (it is not set)"));
    let refused = pod(json!({"sidecar.istio.io/inject":"false"}));
    assert!(
        selected_by(&configurations, &namespace(json!({"istio-injection":"enabled"})), &refused).is_empty()
    );
}

#[test]
fn the_bundle_is_patched_once_and_only_in_our_revision() {
    let mut configuration = WebhookOptions::default().build();
    assert!(!patch_ca_bundle(&mut configuration, "canary", "PEM"));
    assert!(patch_ca_bundle(&mut configuration, "", "PEM"));
    assert!(!patch_ca_bundle(&mut configuration, "default", "PEM"));
    assert_eq!(configuration["webhooks"][3]["clientConfig"]["caBundle"], "UEVN");
}

#[test]
fn findings() {
    let good = WebhookOptions { ca_bundle: Some("PEM".into()), ..WebhookOptions::default() };
    let namespaces = [
        namespace(json!({"istio-injection":"enabled"})),
        namespace(json!({})),
        namespace(json!({"istio-injection":"disabled"})),
    ];
    assert_eq!(check(&[good.build()], &namespaces), []);
    let twice = [good.build(), WebhookOptions { tag: Some("default".into()), ..good.clone() }.build()];
    let findings = check(&twice, &namespaces);
    assert!(matches!(&findings[0], Finding::Overlap { webhooks, .. } if webhooks.len() == 2), "{findings:?}");
    let findings =
        check(&[good.build()], &[namespace(json!({"istio.io/rev":"typo","istio-injection":"enabled"}))]);
    assert_eq!(findings, [Finding::BothLabels { namespace: "shop".into() }]);
    let findings = check(&[good.build()], &[namespace(json!({"istio.io/rev":"typo"}))]);
    assert!(findings[0].to_string().contains("istio.io/rev=typo asks for injection"), "{findings:?}");
    // A second entry for pods of a label that nobody else looks at.
    let mut own = good.build();
    own["webhooks"].as_array_mut().unwrap().push(json!({
        "name": "canary.sidecar-injector.istio.io", "clientConfig": {"url": "https://x", "caBundle": "UEVN"},
        "rules": [{"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"]}],
        "objectSelector": {"matchExpressions": [{"key": "example.com/canary", "operator": "Exists"},
            {"key": "example.com/track", "operator": "In", "values": ["new"]}]},
    }));
    let findings = check(&[own], &namespaces[..1]);
    let [Finding::Overlap { pod, webhooks, .. }] = &findings[..] else { panic!("{findings:?}") };
    assert!(pod.contains("example.com/canary") && pod.contains("example.com/track"), "{pod}");
    assert!(webhooks.iter().any(|name| name.ends_with("canary.sidecar-injector.istio.io")), "{webhooks:?}");
    let open = WebhookOptions { failure_policy: "Ignore".into(), ..WebhookOptions::default() };
    assert_eq!(check(&[open.build()], &[]).len(), 8);
}
