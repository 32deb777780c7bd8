//! Hostile and mistaken input, as a webhook gets it: each row is refused with a typed error that names field and value, and
//! carries no patch.

use mesh_inject::{
    Cluster, HttpRequest, InjectError, Injector, Outcome, Settings, Template, annotation as a,
};
use serde_json::{Value, json};

/// The answer to a body; panics when it is not one answer of the two kinds that there are.
fn answer(injector: &Injector, body: &[u8]) -> (Outcome, Value) {
    let request = HttpRequest { content_type: Some("application/json"), path: "/inject", body };
    let reply = injector.review(&request, &Cluster::default());
    assert_eq!(reply.status, 200);
    (reply.outcome, serde_json::from_slice(&reply.body).expect("an answer is JSON"))
}

/// Refused, with an error of that kind whose message holds every expected text; and no patch beside it. The answer is to
/// the question with uid `u`.
fn refused(injector: &Injector, body: &[u8], what: &str, reason: &str, expected: &[&str]) -> InjectError {
    refused_to("u", injector, body, what, reason, expected)
}

fn refused_to(
    uid: &str,
    injector: &Injector,
    body: &[u8],
    what: &str,
    reason: &str,
    expected: &[&str],
) -> InjectError {
    let (outcome, answer) = answer(injector, body);
    let Outcome::Refused(error) = outcome else { panic!("{what}: {outcome:?}") };
    assert_eq!(error.reason(), reason, "{what}: {error}");
    let response = &answer["response"];
    assert_eq!(response["allowed"], false, "{what}");
    assert_eq!(response["uid"], uid, "{what}");
    assert!(response.get("patch").is_none() && response.get("patchType").is_none(), "{what}: half a patch");
    let message = response["status"]["message"].as_str().expect("a refusal has a message");
    assert_eq!(message, error.to_string(), "{what}");
    for text in expected {
        assert!(message.contains(text), "{what}: {text:?} is not in {message:?}");
    }
    error
}

fn review(pod: &str) -> Vec<u8> {
    format!(
        r#"{{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":{{"uid":"u","operation":"CREATE","namespace":"shop","object":{pod}}}}}"#
    )
    .into_bytes()
}

fn plain() -> Injector {
    Injector::new(Settings::default()).expect("the defaults are good")
}

fn nested(depth: usize) -> String {
    format!("{}1{}", "[".repeat(depth), "]".repeat(depth))
}

#[test]
fn hostile_json() {
    let spec = r#""spec":{"containers":[{"name":"a"}]}"#;
    for (what, body, expected) in [
        ("not JSON", b"<html>".to_vec(), &["line 1 column 1"][..]),
        ("cut off", review("{")[..40].to_vec(), &["EOF"]),
        ("two documents", b"{} {}".to_vec(), &["trailing characters"]),
        ("not UTF-8", b"{\"a\":\"\xff\"}".to_vec(), &["unicode"]),
        ("a lone surrogate", br#"{"a":"\ud800"}"#.to_vec(), &["line 1"]),
        ("a control character", b"{\"a\":\"\x01\"}".to_vec(), &["control character"]),
        (
            "duplicate keys of the review",
            br#"{"request":{},"request":{}}"#.to_vec(),
            &["duplicate key \"request\""],
        ),
        ("duplicate keys of the pod", review(&format!("{{{spec},{spec}}}")), &["duplicate key \"spec\""]),
        ("duplicate keys, one escaped", review(r#"{"spec":{},"\u0073pec":{}}"#), &["duplicate key \"spec\""]),
        ("depth", review(&format!(r#"{{"x":{}}}"#, nested(200))), &["nested deeper than 64"]),
        ("depth beyond any stack", nested(3_000_000).into_bytes(), &["nested deeper than 64"]),
        ("a number out of range", review(r#"{"x":1e999}"#), &["number out of range"]),
        ("not a number", review(r#"{"x":NaN}"#), &["expected value"]),
        ("a number with a leading zero", review(r#"{"x":0123}"#), &["invalid number"]),
        ("no request", b"{}".to_vec(), &["no `request`"]),
        ("a list", b"[]".to_vec(), &["no `request`"]),
        ("a request that is text", br#"{"request":"x"}"#.to_vec(), &["no `request`"]),
        ("a kind that is a number", br#"{"kind":1,"request":{}}"#.to_vec(), &["`kind` is not a string"]),
        ("no object", br#"{"request":{"uid":"u"}}"#.to_vec(), &["`request.object` is not a pod"]),
        ("a list for a pod", review("[]"), &["`request.object` is not a pod"]),
    ] {
        // Where the bytes say who asks, the answer says so too.
        let uid = if String::from_utf8_lossy(&body).contains(r#""uid":"u""#) { "u" } else { "" };
        refused_to(uid, &plain(), &body, what, "document", expected);
    }
}

#[test]
fn the_size_is_bounded_before_anything_is_read() {
    let request = |length: usize| {
        let body = vec![b'['; length];
        let request = HttpRequest { content_type: Some("application/json"), path: "/inject", body: &body };
        plain().review(&request, &Cluster::default())
    };
    let most = mesh_inject::json::MAX_BODY;
    assert_eq!(request(most).status, 200, "read, and refused as JSON");
    let reply = request(most + 1);
    assert_eq!((reply.status, reply.outcome.reason()), (400, "bad_request"));
    assert!(String::from_utf8_lossy(&reply.body).contains(&most.to_string()));
}

#[test]
fn numbers_of_any_size_are_kept() {
    for number in ["18446744073709551615", "-9223372036854775808", "1e308", "0.1"] {
        let pod =
            format!(r#"{{"metadata":{{"name":"p"}},"spec":{{"x":{number},"containers":[{{"name":"a"}}]}}}}"#);
        let (outcome, answer) = answer(&plain(), &review(&pod));
        assert_eq!(outcome.reason(), "injected", "{number}");
        let patch = answer["response"]["patch"].as_str().expect("a patch");
        let patch =
            base64::Engine::decode(&base64::engine::general_purpose::STANDARD, patch).expect("base64");
        let patch: Vec<Value> = serde_json::from_slice(&patch).expect("JSON");
        let touched =
            |operation: &Value| operation["path"].as_str().is_some_and(|path| path.starts_with("/spec/x"));
        assert!(!patch.iter().any(touched), "{number}: the patch has no business there");
    }
}

#[test]
fn pods_of_the_wrong_shape() {
    for (pod, field, found) in [
        (json!({"metadata": 1, "spec": {}}), "metadata", "1"),
        (json!({"metadata": {"name": 7}}), "metadata.name", "7"),
        (json!({"metadata": {"labels": []}}), "metadata.labels", "a list"),
        (json!({"metadata": {"labels": {"app": 5}}}), "metadata.labels[app]", "5"),
        (json!({"metadata": {"annotations": {"x/y": true}}}), "metadata.annotations[x/y]", "true"),
        (json!({"metadata": {"ownerReferences": ["x"]}}), "metadata.ownerReferences[0]", "\"x\""),
        (json!({"spec": "x"}), "spec", "\"x\""),
        (json!({"spec": {"hostNetwork": "yes"}}), "spec.hostNetwork", "\"yes\""),
        (json!({"spec": {"securityContext": []}}), "spec.securityContext", "a list"),
        (json!({"spec": {"containers": {}}}), "spec.containers", "an object"),
        (json!({"spec": {"containers": ["x"]}}), "spec.containers[0]", "\"x\""),
        (json!({"spec": {"containers": [{}]}}), "spec.containers[0].name", "null"),
        (json!({"spec": {"containers": [{"name": ""}]}}), "spec.containers[0].name", "\"\""),
        (
            json!({"spec": {"containers": [{"name": "a"}, {"name": "a"}]}}),
            "spec.containers[1].name",
            "\"a\" a second time",
        ),
        (
            json!({"spec": {"initContainers": [{"name": "a"}], "containers": [{"name": "a"}]}}),
            "spec.containers[0].name",
            "\"a\" a second time",
        ),
        (json!({"spec": {"containers": [{"name": "a", "env": {}}]}}), "spec.containers[0].env", "an object"),
        (
            json!({"spec": {"containers": [{"name": "a", "ports": [{"containerPort": "80"}]}]}}),
            "spec.containers[0].ports[0].containerPort",
            "\"80\"",
        ),
        (
            json!({"spec": {"containers": [{"name": "a"}], "volumes": [{"emptyDir": {}}]}}),
            "spec.volumes[0].name",
            "null",
        ),
    ] {
        refused(&plain(), &review(&pod.to_string()), field, "invalid_pod", &[&format!("`{field}`"), found]);
    }
}

#[test]
fn annotation_values_that_cannot_be_honoured() {
    for (key, value, reason) in [
        (a::INTERCEPTION_MODE, "redirect", "invalid_annotation"),
        (a::STATUS_PORT, "65536", "invalid_annotation"),
        (a::STATUS_PORT, "+80", "invalid_annotation"),
        (a::READINESS_INITIAL_DELAY, "-1", "invalid_annotation"),
        (a::READINESS_PERIOD, "1.5", "invalid_annotation"),
        (a::READINESS_FAILURES, "4294967296", "invalid_annotation"),
        (a::INCLUDE_OUTBOUND_RANGES, "10.0.0.0/33", "invalid_annotation"),
        (a::INCLUDE_OUTBOUND_RANGES, "10.0.0.0/8,*", "invalid_annotation"),
        (a::EXCLUDE_OUTBOUND_RANGES, "*", "invalid_annotation"),
        (a::INCLUDE_INBOUND_PORTS, "80,*", "invalid_annotation"),
        (a::EXCLUDE_INBOUND_PORTS, "80 443", "invalid_annotation"),
        (a::EXCLUDE_OUTBOUND_PORTS, "5432;6379", "invalid_annotation"),
        (a::EXCLUDE_INTERFACES, "eth0\" -j ACCEPT", "invalid_annotation"),
        (a::KUBEVIRT_INTERFACES, "a/b", "invalid_annotation"),
        (a::REROUTE_INTERFACES, "longer-than-an-interface", "invalid_annotation"),
        (a::MERGE_METRICS, "yes", "invalid_annotation"),
        (a::PROXY_CONFIG, "concurrency: many", "invalid_annotation"),
        (a::PROXY_CONFIG, "a: [", "invalid_annotation"),
        (a::PROXY_CPU, "lots", "invalid_annotation"),
        (a::PROXY_MEMORY, "1Gi\nimage: evil", "invalid_annotation"),
        (a::PROXY_CPU_LIMIT, "", "invalid_annotation"),
        (a::PROXY_MEMORY_LIMIT, "1 Gi", "invalid_annotation"),
        (a::USER_VOLUME, "[]", "invalid_annotation"),
        (a::USER_VOLUME_MOUNT, "{", "invalid_annotation"),
        (a::OVERRIDES, "{\"containers\":[{}]}", "invalid_annotation"),
        (a::TEMPLATES, "sidecar,nowhere", "unknown_template"),
        ("prometheus.io/port", "15020x", "prometheus"),
        ("prometheus.io/port", "15090", "prometheus"),
        (a::SCRAPE_TARGETS, "70000:/metrics", "prometheus"),
    ] {
        let pod = json!({"metadata": {"annotations": {key: value}}, "spec": {"containers": [{"name": "a"}]}});
        let shown =
            if reason == "unknown_template" { "nowhere" } else { value.split(':').next().unwrap_or(value) };
        let shown = format!("{shown:?}");
        let shown = shown.trim_matches('"');
        let named = if reason == "unknown_template" { "template" } else { key };
        refused(&plain(), &review(&pod.to_string()), &format!("{key}={value}"), reason, &[named, shown]);
    }
    let pod = json!({"metadata": {"annotations": {a::PROXY_CPU: "x", a::STATUS_PORT: "y", a::MERGE_METRICS: "z"}},
        "spec": {"containers": [{"name": "a"}]}});
    let error = refused(
        &plain(),
        &review(&pod.to_string()),
        "three at once",
        "invalid_annotation",
        &["\"x\"", "\"y\"", "\"z\""],
    );
    assert!(matches!(error, InjectError::InvalidAnnotations { violations } if violations.len() == 3));
}

#[test]
fn names_that_clash() {
    for (pod, field, name) in [
        (
            json!({"initContainers": [{"name": "istio-proxy"}], "containers": [{"name": "istio-proxy"}]}),
            "spec.containers[0].name",
            "istio-proxy",
        ),
        (
            json!({"containers": [{"name": "a"}], "ephemeralContainers": [{"name": "istio-init"}]}),
            "spec.ephemeralContainers[0].name",
            "istio-init",
        ),
        (
            json!({"containers": [{"name": "a"}], "volumes": [{"name": "istio-token", "secret": {"secretName": "s"}}]}),
            "spec.volumes",
            "istio-token",
        ),
        (
            json!({"containers": [{"name": "a"}], "volumes": [{"name": "istiod-ca-cert", "emptyDir": {}}]}),
            "spec.volumes",
            "istiod-ca-cert",
        ),
    ] {
        let body = review(&json!({"spec": pod}).to_string());
        let (outcome, answer) = answer(&plain(), &body);
        assert!(matches!(outcome, Outcome::Refused(_)), "{pod}: {outcome:?}");
        let message = answer["response"]["status"]["message"].as_str().expect("a message").to_owned();
        assert!(message.contains(field) && message.contains(name), "{pod}: {message}");
        assert!(answer["response"].get("patch").is_none());
    }
    let refusing =
        Injector::new(Settings { refuse_clashes: true, ..Settings::default() }).expect("good settings");
    let pod = json!({"spec": {"containers": [{"name": "a", "securityContext": {"runAsUser": 1337}}]}});
    refused(
        &refusing,
        &review(&pod.to_string()),
        "the proxy's user",
        "refused",
        &["spec.containers[0].securityContext.runAsUser", "1337"],
    );
}

#[test]
fn templates_that_break_the_pod() {
    let rows: Vec<(&str, Template, &str, &[&str])> = vec![
        ("a list", Template::custom(|_| Ok(json!([]))), "template", &["\"bad\"", "a list"]),
        ("spec is text", Template::custom(|_| Ok(json!({"spec": "x"}))), "template", &["\"bad\"", "`spec`"]),
        (
            "labels are a list",
            Template::custom(|_| Ok(json!({"metadata": {"labels": []}}))),
            "template",
            &["`metadata.labels`"],
        ),
        (
            "an annotation is a number",
            Template::custom(|_| Ok(json!({"metadata": {"annotations": {"k": 1}}}))),
            "template",
            &["`metadata.annotations[k]`"],
        ),
        (
            "a container without a name",
            Template::custom(|_| Ok(json!({"spec": {"containers": [{"image": "x"}]}}))),
            "template",
            &["`spec.containers`"],
        ),
        (
            "a volume without a name",
            Template::custom(|_| Ok(json!({"spec": {"volumes": [{"emptyDir": {}}]}}))),
            "template",
            &["`spec.volumes`"],
        ),
        (
            "an environment that is text",
            Template::custom(|_| Ok(json!({"spec": {"containers": [{"name": "new", "env": "x"}]}}))),
            "refused",
            &["`spec.containers[0].env`", "\"x\""],
        ),
        (
            "an entry without its key",
            Template::custom(|_| {
                Ok(json!({"spec": {"containers": [{"name": "a", "env": [{"value": "x"}]}]}}))
            }),
            "merge",
            &["env"],
        ),
        (
            "an unknown directive",
            Template::custom(|_| Ok(json!({"spec": {"$patch": "explode"}}))),
            "merge",
            &["explode"],
        ),
        (
            "the name of a container of another list",
            Template::custom(|_| Ok(json!({"spec": {"initContainers": [{"name": "a"}]}}))),
            "refused",
            &["\"a\""],
        ),
        (
            "a second source",
            Template::custom(|_| {
                Ok(json!({"spec": {"volumes": [{"name": "v", "secret": {"secretName": "s"}}]}}))
            }),
            "refused",
            &["spec.volumes", "\"v\""],
        ),
        (
            "its own refusal",
            Template::custom(|_| {
                Err(InjectError::Template { name: "bad".to_owned(), message: "not today".to_owned() })
            }),
            "template",
            &["not today"],
        ),
    ];
    let pod = json!({"metadata": {"annotations": {a::TEMPLATES: "sidecar,bad"}},
        "spec": {"containers": [{"name": "a", "env": [{"name": "K", "value": "v"}]}], "volumes": [{"name": "v", "emptyDir": {}}]}});
    for (what, template, reason, expected) in rows {
        let mut settings = Settings::default();
        settings.templates.insert("bad".to_owned(), template);
        let injector = Injector::new(settings).expect("templates are looked at when they are used");
        refused(&injector, &review(&pod.to_string()), what, reason, expected);
    }
    for (what, text, expected) in
        [("not YAML", "a: [", "bad"), ("Go text", "spec:\n  {{ if .Spec }}\n", "bad")]
    {
        let error = Template::overlay("bad", text).expect_err(what);
        assert_eq!(error.reason(), "template", "{what}: {error}");
        assert!(error.to_string().contains(expected), "{what}: {error}");
    }
}
