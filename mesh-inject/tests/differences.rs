//! The README's table of declared differences, row by row: what stands there is what happens. A row without a check, or a
//! check without a row, fails.

use mesh_inject::patch::diff;
use mesh_inject::{
    Cluster, HttpRequest, InjectError, Injector, Outcome, Request, Settings, Template, json as strict,
};
use serde_json::{Value, json};

/// For each row, what its first column begins with, and the check.
const ROWS: [(&str, fn()); 13] = [
    ("a second template that patches `istio-proxy`", second_template),
    ("re-injection of a pod whose owner overrode injected containers", overrides_survive),
    ("re-injection with a known cluster or network", environment_keeps_its_place),
    ("a probe that names an undeclared port", undeclared_port),
    ("a probe or hook of the user's own at the agent's port", own_question),
    ("a status port of 0", no_status_port),
    ("a volume of the user's with an injected name", volume_with_two_sources),
    ("templates in Go text", go_text),
    ("list items that are new in front of old ones", one_operation_per_item),
    ("JSON with duplicate keys", strict_json),
    ("reviews of anything but the creation of a pod", other_reviews),
    ("images, where the values name none", own_images),
    ("an annotation whose value has no effect", ignored_with_a_warning),
];

#[test]
fn every_row_of_the_table_is_checked() {
    let (_, table) = include_str!("../README.md").split_once("## Declared differences").expect("the section");
    let (table, _) = table.split_once("\n## ").expect("a section after it");
    let rows: Vec<&str> = table.lines().filter_map(|line| line.strip_prefix("| ")).skip(1).collect();
    assert_eq!(rows.len(), ROWS.len(), "{rows:#?}");
    for (row, (begins, check)) in rows.iter().zip(ROWS) {
        assert!(row.starts_with(begins), "the row {row:?} is not the one of {begins:?}");
        check();
    }
}

fn injector(settings: Settings) -> Injector {
    Injector::new(settings).expect("good settings")
}

fn inject(injector: &Injector, pod: &Value) -> Result<Value, InjectError> {
    injector.inject(&Request::new(pod, "shop", &Cluster::default())).map(|injected| injected.pod)
}

fn inject_default(pod: &Value) -> Value {
    inject(&injector(Settings::default()), pod).expect("a good pod")
}

/// Containers of that name, over all lists.
fn named<'a>(pod: &'a Value, name: &str) -> Vec<&'a Value> {
    let lists = ["initContainers", "containers"].iter().filter_map(|list| pod["spec"][*list].as_array());
    lists.flatten().filter(|container| container["name"] == name).collect()
}

fn second_template() {
    let overlay = "spec: {containers: [{name: istio-proxy, env: [{name: SPIRE, value: 'on'}]}]}";
    let mut settings = Settings::default();
    settings.templates.insert("spire".to_owned(), Template::overlay("spire", overlay).expect("an overlay"));
    let pod = json!({"metadata": {"annotations": {"inject.istio.io/templates": "sidecar,spire"}},
        "spec": {"containers": [{"name": "app"}]}});
    let injected = inject(&injector(settings), &pod).expect("a good pod");
    let proxies = named(&injected, "istio-proxy");
    assert_eq!(proxies.len(), 1);
    assert!(proxies[0]["image"].is_string());
    assert!(
        proxies[0]["env"]
            .as_array()
            .is_some_and(|env| env.contains(&json!({"name": "SPIRE", "value": "on"})))
    );
}

fn overrides_survive() {
    let pod = json!({"spec": {"containers": [{"name": "app"}, {"name": "istio-proxy", "args": ["mine"]}]}});
    let once = inject_default(&pod);
    assert_eq!(named(&once, "istio-proxy")[0]["args"], json!(["mine"]));
    let twice = inject_default(&once);
    assert_eq!(twice, once);
}

fn environment_keeps_its_place() {
    let injector = injector(Settings {
        values: json!({"global": {"network": "n1", "multiCluster": {"clusterName": "c1"}}}),
        ..Settings::default()
    });
    let once = inject(&injector, &json!({"spec": {"containers": [{"name": "app"}]}})).expect("a good pod");
    let value = |name: &str| {
        let env = named(&once, "istio-proxy")[0]["env"].as_array().expect("an environment");
        env.iter().find(|entry| entry["name"] == name).map(|entry| entry["value"].clone())
    };
    assert_eq!(value("ISTIO_META_CLUSTER_ID"), Some(json!("c1")));
    assert_eq!(value("ISTIO_META_NETWORK"), Some(json!("n1")));
    assert_eq!(inject(&injector, &once).expect("a good pod"), once);
}

fn undeclared_port() {
    let probe = json!({"httpGet": {"path": "/", "port": "nowhere"}});
    let pod = json!({"spec": {"containers": [{"name": "app", "livenessProbe": probe}]}});
    let injected = injector(Settings::default())
        .inject(&Request::new(&pod, "shop", &Cluster::default()))
        .expect("a good pod");
    assert_eq!(injected.pod["spec"]["containers"][0]["livenessProbe"], probe);
    let warned = injected.warnings.iter().any(|warning| warning.to_string().contains("\"nowhere\""));
    assert!(warned, "{:?}", injected.warnings);
}

fn own_question() {
    let hook = json!({"httpGet": {"path": "/stop", "port": 15020}});
    let pod = json!({"spec": {"containers": [{"name": "app", "livenessProbe": {"httpGet": {"port": 80}},
        "lifecycle": {"preStop": hook}}]}});
    let once = inject_default(&pod);
    let app = &once["spec"]["containers"][0];
    assert_eq!(app["lifecycle"]["preStop"], hook);
    assert_eq!(app["livenessProbe"]["httpGet"]["path"], "/app-health/app/livez");
    let twice = inject_default(&once);
    assert_eq!(twice["spec"]["containers"][0], *app, "what points there already stays");
}

fn no_status_port() {
    let probe = json!({"httpGet": {"path": "/", "port": 80}});
    let pod = json!({"metadata": {"annotations": {"status.sidecar.istio.io/port": "0"}},
        "spec": {"containers": [{"name": "app", "livenessProbe": probe}]}});
    let injected = injector(Settings::default())
        .inject(&Request::new(&pod, "shop", &Cluster::default()))
        .expect("a good pod");
    assert_eq!(injected.pod["spec"]["containers"][0]["livenessProbe"], probe);
    let warned = injected.warnings.iter().any(|warning| warning.to_string().contains("probes of app"));
    assert!(warned, "{:?}", injected.warnings);
}

fn volume_with_two_sources() {
    let pod = json!({"spec": {"containers": [{"name": "app"}],
        "volumes": [{"name": "istio-envoy", "configMap": {"name": "c"}}]}});
    let error = inject(&injector(Settings::default()), &pod).expect_err("two sources");
    assert!(
        matches!(error, InjectError::Refused { .. }) && error.to_string().contains("\"istio-envoy\""),
        "{error}"
    );
}

fn go_text() {
    let values = json!({"sidecarInjectorWebhook": {"templates": {"go": "spec: {{ .Spec }}"}}});
    let injector = injector(Settings::from_values(values).expect("readable values"));
    let mut pod = json!({"metadata": {"annotations": {}}, "spec": {"containers": [{"name": "app"}]}});
    assert!(inject(&injector, &pod).is_ok(), "nobody asks for it");
    pod["metadata"]["annotations"]["inject.istio.io/templates"] = json!("go");
    let error = inject(&injector, &pod).expect_err("somebody asks for it");
    assert!(matches!(&error, InjectError::Template { name, .. } if name == "go"), "{error}");
}

fn one_operation_per_item() {
    let pod = json!({"metadata": {"annotations": {}}, "spec": {
        "containers": [{"name": "app"}],
        "volumes": [{"name": "a", "emptyDir": {}}, {"name": "b", "emptyDir": {}}],
    }});
    let injected = inject_default(&pod);
    let patch = serde_json::to_value(diff(&pod, &injected)).expect("a patch is JSON");
    let of_volumes: Vec<&Value> = patch
        .as_array()
        .into_iter()
        .flatten()
        .filter(|operation| operation["path"].as_str().is_some_and(|path| path.starts_with("/spec/volumes/")))
        .collect();
    let count = |pod: &Value| pod["spec"]["volumes"].as_array().map_or(0, Vec::len);
    assert_eq!(of_volumes.len(), count(&injected) - count(&pod));
    assert!(of_volumes.iter().all(|operation| operation["op"] == "add"), "{of_volumes:?}");
}

fn strict_json() {
    assert!(strict::parse(br#"{"a": 1, "a": 1}"#).is_err());
    let nested = |depth: usize| "[".repeat(depth) + &"]".repeat(depth);
    assert!(strict::parse(nested(64).as_bytes()).is_ok());
    assert!(strict::parse(nested(65).as_bytes()).is_err());
}

fn other_reviews() {
    let pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "app"}]}});
    for (operation, kind, subresource) in [
        ("UPDATE", "Pod", ""),
        ("DELETE", "Pod", ""),
        ("CONNECT", "PodExecOptions", "exec"),
        ("CREATE", "Deployment", ""),
        ("CREATE", "Pod", "ephemeralcontainers"),
    ] {
        let review = json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": {
            "uid": "u", "operation": operation, "kind": {"kind": kind}, "subResource": subresource, "object": pod}});
        let body = review.to_string();
        let request =
            HttpRequest { content_type: Some("application/json"), path: "/inject", body: body.as_bytes() };
        let reply = injector(Settings::default()).review(&request, &Cluster::default());
        assert!(matches!(reply.outcome, Outcome::Skipped(_)), "{operation} {kind}: {:?}", reply.outcome);
        let answer: Value = serde_json::from_slice(&reply.body).expect("JSON");
        assert_eq!(answer["response"], json!({"uid": "u", "allowed": true}), "{operation} {kind}");
    }
}

fn own_images() {
    let injected = inject_default(&json!({"spec": {"containers": [{"name": "app"}]}}));
    for (container, image) in [("istio-init", "mesh/mesh-init:"), ("istio-proxy", "mesh/mesh-sidecar:")] {
        let own = named(&injected, container)[0]["image"].as_str().expect("an image");
        assert!(own.starts_with(image), "{container}: {own}");
    }
    let values = json!({"global": {"hub": "h", "tag": "t", "proxy": {"image": "proxyv2"}, "proxy_init": {"image": "proxyv2"}}});
    let theirs = injector(Settings { values, ..Settings::default() });
    let injected = inject(&theirs, &json!({"spec": {"containers": [{"name": "app"}]}})).expect("a good pod");
    for container in ["istio-init", "istio-proxy"] {
        assert_eq!(named(&injected, container)[0]["image"], "h/proxyv2:t");
    }
}

fn ignored_with_a_warning() {
    let pod = json!({"metadata": {"annotations": {"sidecar.istio.io/rewriteAppHTTPProbers": "perhaps"}},
        "spec": {"containers": [{"name": "app"}]}});
    let injected = injector(Settings::default())
        .inject(&Request::new(&pod, "shop", &Cluster::default()))
        .expect("a good pod");
    let texts: Vec<String> = injected.warnings.iter().map(ToString::to_string).collect();
    assert!(texts.iter().any(|text| text.contains("perhaps") && text.contains("no effect")), "{texts:?}");
}
