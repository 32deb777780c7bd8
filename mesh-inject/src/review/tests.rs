use super::*;
use crate::patch::Patch;
use crate::settings::Settings;

fn injector() -> Injector {
    Injector::new(Settings::default()).unwrap()
}

fn post(body: &[u8]) -> HttpReply {
    let request = HttpRequest { content_type: Some("application/json"), path: "/inject", body };
    injector().review(&request, &Cluster::default())
}

fn review(version: &str, pod: &Value) -> Vec<u8> {
    json!({
        "apiVersion": format!("admission.k8s.io/{version}"),
        "kind": "AdmissionReview",
        "request": {"uid": "u-1", "operation": "CREATE", "namespace": "shop", "kind": {"kind": "Pod"}, "object": pod},
    })
    .to_string()
    .into_bytes()
}

fn body(reply: &HttpReply) -> Value {
    serde_json::from_slice(&reply.body).unwrap()
}

#[test]
fn both_versions_are_answered_in_kind() {
    let pod = json!({"metadata":{"name":"web","managedFields":[{}]},"spec":{"containers":[{"name":"web"}]}});
    for version in ["v1", "v1beta1"] {
        let reply = post(&review(version, &pod));
        let body = body(&reply);
        assert_eq!(reply.status, 200);
        assert_eq!(body["apiVersion"], format!("admission.k8s.io/{version}"));
        assert_eq!(body["response"]["uid"], "u-1");
        assert_eq!(body["response"]["allowed"], true);
        assert_eq!(body["response"]["patchType"], "JSONPatch");
        let patch = STANDARD.decode(body["response"]["patch"].as_str().unwrap()).unwrap();
        let patch: Patch = serde_json::from_slice(&patch).unwrap();
        let patched = patch.apply(&pod).unwrap();
        assert_eq!(patched["spec"]["initContainers"][1]["name"], "istio-proxy");
        assert!(patched["metadata"].get("namespace").is_none());
    }
}

/// The webhook's shortcut for long environments gives the patch that the long way gives, whatever the template.
#[test]
fn long_environments_survive_every_template() {
    let mut settings = Settings::default();
    let overlay = "spec: {containers: [{name: '*', env: [{name: VARIABLE_7, value: ours}]}]}";
    settings.templates.insert("extra".to_owned(), crate::Template::overlay("extra", overlay).unwrap());
    let injector = Injector::new(settings).unwrap();
    let mut env: Vec<Value> =
        (0..100).map(|i| json!({"name": format!("VARIABLE_{i}"), "value": "user's"})).collect();
    env.push(json!({"name": "VARIABLE_0", "value": null}));
    for template in ["sidecar", "gateway", "grpc-agent", "grpc-simple", "sidecar,extra"] {
        let pod = json!({
            "metadata": {"name": "web", "namespace": "shop", "annotations": {"inject.istio.io/templates": template}},
            "spec": {"containers": [{"name": "web", "env": env}, {"name": "small", "env": [{"name": "A"}]}]},
        });
        let text = review("v1", &pod);
        let request = HttpRequest { content_type: Some("application/json"), path: "/inject", body: &text };
        let reply = body(&injector.review(&request, &Cluster::default()));
        let patch = STANDARD.decode(reply["response"]["patch"].as_str().expect(template)).unwrap();
        let patch: Patch = serde_json::from_slice(&patch).unwrap();
        let intended = injector.inject(&Request::new(&pod, "shop", &Cluster::default())).unwrap().pod;
        assert_eq!(patch.apply(&pod).unwrap(), intended, "{template}");
    }
}

#[test]
fn http_errors() {
    assert_eq!(post(b"").status, 400);
    assert_eq!(post(b"").body, b"no body found");
    let request = HttpRequest { content_type: Some("application/yaml"), path: "/inject", body: b"{}" };
    assert_eq!(injector().review(&request, &Cluster::default()).status, 415);
    assert_eq!(post(&vec![b' '; MAX_BODY + 1]).status, 400);
}

#[test]
fn unreadable_reviews_are_refused_with_the_uid_where_there_is_one() {
    for (bytes, uid) in [
        (&b"{"[..], ""),
        (b"[]", ""),
        (b"{\"request\":{\"uid\":\"x\",\"uid\":\"y\"}}", ""),
        (b"{\"request\":{\"uid\":\"x\"},\"request\":{}}", ""),
        (b"{\"request\":{\"uid\":7,\"x\":1e999}}", ""),
        (b"{\"request\":{\"uid\":\"x\",\"object\":{\"a\":1,\"a\":1}}}", "x"),
        (b"{\"request\":{\"uid\":\"x\",\"object\":{", "x"),
        (b"{\"request\":{\"object\":{\"a\":{}},\"object\":[],\"uid\":\"x\"}}", "x"),
        (b"{\"request\":{\"uid\":\"x\",\"object\":3}}", "x"),
        (b"{\"apiVersion\":1,\"request\":{\"uid\":\"x\"}}", "x"),
    ] {
        let reply = post(bytes);
        let body = body(&reply);
        assert_eq!((reply.status, &body["response"]["allowed"]), (200, &json!(false)), "{body}");
        assert_eq!(body["response"]["uid"], uid);
        assert!(body["response"]["status"]["message"].as_str().is_some_and(|m| !m.is_empty()));
        assert!(body.get("apiVersion").is_none());
    }
}

/// Whatever is wrong inside the pod, the API server learns which of its questions is answered, in its own version.
#[test]
fn a_refusal_is_an_answer_to_the_question() {
    let deep = format!("{}{}", "[".repeat(5_000), "]".repeat(5_000));
    for object in ["{\"spec\":{},\"spec\":{}}", deep.as_str(), "{\"x\":1e999}", "{\"x\":nonsense}"] {
        let text = format!(
            "{{\"apiVersion\":\"admission.k8s.io/v1\",\"kind\":\"AdmissionReview\",\"request\":{{\"uid\":\"u-1\",\"object\":{object}}}}}"
        );
        let body = body(&post(text.as_bytes()));
        assert_eq!(body["response"]["uid"], "u-1", "{object:.40}");
        assert_eq!(body["response"]["allowed"], false, "{object:.40}");
        assert_eq!(
            (&body["apiVersion"], &body["kind"]),
            (&json!("admission.k8s.io/v1"), &json!("AdmissionReview"))
        );
    }
}

#[test]
fn bad_pods_are_refused_by_field() {
    let pod =
        json!({"metadata":{"annotations":{"traffic.sidecar.istio.io/excludeInboundPorts":"a"}},"spec":{}});
    let reply = post(&review("v1", &pod));
    let message = body(&reply)["response"]["status"]["message"].as_str().unwrap().to_owned();
    assert!(message.contains("excludeInboundPorts") && message.contains("\"a\""), "{message}");
    assert_eq!(reply.outcome.reason(), "invalid_annotation");
    let reply = post(&review("v1", &json!({"spec":{"containers":[{"name":7}]}})));
    assert!(
        body(&reply)["response"]["status"]["message"].as_str().unwrap().contains("spec.containers[0].name")
    );
}

#[test]
fn skips_say_nothing_and_patch_nothing() {
    let reply = post(&review("v1", &json!({"spec":{"hostNetwork":true}})));
    assert_eq!(body(&reply)["response"], json!({"uid":"u-1","allowed":true}));
    assert_eq!(reply.outcome, Outcome::Skipped(Decision::Skip(SkipReason::HostNetwork)));
    let update = String::from_utf8(review("v1", &json!({"spec":{}}))).unwrap().replace("CREATE", "UPDATE");
    let reply = post(update.as_bytes());
    assert_eq!(reply.outcome.reason(), "not_pod_creation");
}

#[test]
fn warnings_reach_the_user() {
    let pod = json!({"metadata":{"labels":{"sidecar.istio.io/inject":"perhaps"}},
        "spec":{"containers":[{"name":"web","securityContext":{"runAsUser":1337},"ports":[{"containerPort":80,"hostPort":80}]}]}});
    let warnings = body(&post(&review("v1", &pod)))["response"]["warnings"].clone();
    let text = warnings.to_string();
    assert_eq!(warnings.as_array().unwrap().len(), 3, "{text}");
    assert!(text.contains("perhaps") && text.contains("1337") && text.contains("hostPort 80"), "{text}");
}

#[test]
fn paths() {
    let env = |path: &str| {
        path_environment(path).into_iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(env("/inject"), "");
    assert_eq!(env("/inject/"), "");
    assert_eq!(env("/inject/cluster/c1/net/n1/"), "ISTIO_META_CLUSTER_ID=c1 ISTIO_META_NETWORK=n1");
    assert_eq!(env("/inject/key/a--slash--b/odd"), "KEY=a/b");
    assert_eq!(env("/inject/:ENV:cluster=c/1:ENV:x:ENV:=y:ENV:a=b"), "A=b ISTIO_META_CLUSTER_ID=c/1");
}
