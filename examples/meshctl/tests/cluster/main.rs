//! `meshctl check-inject` against an API server, which here is a small one of our own: TLS, tokens, client certificates,
//! pages, refusals.

mod api_server;
#[path = "../support/mod.rs"]
mod support;

use std::process::Output;

use mesh_inject::WebhookOptions;
use serde_json::{Value, json};

use api_server::{ApiServer, CLIENT, TOKEN};
use support::{meshctl, text};

const NODES: &str = "/api/v1/nodes?limit=500";
const WEBHOOKS: &str = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations?limit=500";

fn list(items: &[Value]) -> Value {
    json!({"kind": "List", "apiVersion": "v1", "metadata": {}, "items": items})
}

/// A pod as an API server lists it: without kind and version.
fn pod(namespace: &str, name: &str, more: Value) -> Value {
    let mut metadata = more;
    metadata["name"] = json!(name);
    metadata["namespace"] = json!(namespace);
    json!({"metadata": metadata, "spec": {"containers": [{"name": "app", "image": "example/app:1"}]}})
}

fn namespace(name: &str, labels: Value) -> Value {
    json!({"metadata": {"name": name, "labels": labels}})
}

/// Two namespaces, the injector's webhooks, and somebody else's webhook that selects every pod.
fn cluster() -> ApiServer {
    let foreign = json!({"metadata": {"name": "other"}, "webhooks": [{
        "name": "everything.example.com", "clientConfig": {"url": "https://other.example"},
        "rules": [{"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"]}],
    }]});
    let ours = WebhookOptions { ca_bundle: Some("pem".to_owned()), ..WebhookOptions::default() }.build();
    let shop = namespace("shop", json!({"istio-injection": "enabled"}));
    let quiet = namespace("quiet", json!({}));
    let injected = pod("shop", "injected", json!({"annotations": {"sidecar.istio.io/status": "{}"}}));
    let old = pod("shop", "old", json!({}));
    let left = pod("quiet", "left", json!({"annotations": {"sidecar.istio.io/status": "{}"}}));
    ApiServer::start([
        (WEBHOOKS, 200, list(&[foreign, ours])),
        ("/api/v1/namespaces/shop", 200, shop.clone()),
        ("/api/v1/namespaces/quiet", 200, quiet.clone()),
        ("/api/v1/namespaces/shop/pods?limit=500", 200, list(&[injected.clone(), old.clone()])),
        ("/api/v1/namespaces/quiet/pods/left", 200, {
            let mut left = left.clone();
            left["kind"] = json!("Pod");
            left
        }),
        ("/api/v1/namespaces?limit=500", 200, list(&[shop, quiet])),
        ("/api/v1/pods?limit=500", 200, {
            let mut page = list(&[injected, old]);
            page["metadata"]["continue"] = json!("more/of=it");
            page
        }),
        ("/api/v1/pods?limit=500&continue=more%2Fof%3Dit", 200, list(&[left])),
        (
            "/api/v1/namespaces/gone",
            404,
            json!({"kind": "Status", "message": "namespaces \"gone\" not found"}),
        ),
        (
            "/api/v1/namespaces/secret",
            403,
            json!({"kind": "Status", "message": "namespaces \"secret\" is forbidden"}),
        ),
        (NODES, 200, list(&[])),
        ("/api/v1/namespaces/odd", 200, json!({"metadata": {"name": "odd"}})),
        ("/api/v1/namespaces/odd/pods?limit=500", 200, json!({"kind": "PodList"})),
    ])
}

fn check(server: &ApiServer, user: Value, arguments: &[&str]) -> Output {
    let kubeconfig = server.kubeconfig(user);
    let mut all = vec!["check-inject"];
    all.extend(arguments);
    meshctl(&all, "", &[("KUBECONFIG", kubeconfig.to_str().unwrap())])
}

#[test]
fn every_pod_of_the_contexts_namespace_with_a_token() {
    let server = cluster();
    let output = check(&server, json!({"token": TOKEN}), &[]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let table = text(&output.stdout);
    assert!(
        table.contains("Pod shop/injected: injected\n  namespace.sidecar-injector.istio.io; injected:"),
        "{table}"
    );
    assert!(table.contains("Pod shop/old: injected"), "{table}");
    assert!(
        table.contains("rev.namespace.sidecar-injector.istio.io  not selected: namespace label"),
        "{table}"
    );
    assert!(!table.contains("everything.example.com"), "{table}");
    let surprise = "warning: the pod runs without a sidecar; a pod created now would get one";
    assert_eq!(table.matches(surprise).count(), 1, "{table}");
    assert_eq!(text(&output.stderr), "");
    assert_eq!(
        server.asked(),
        [WEBHOOKS, "/api/v1/namespaces/shop", "/api/v1/namespaces/shop/pods?limit=500", NODES]
    );
}

#[test]
fn one_pod_with_a_client_certificate() {
    let server = cluster();
    let user = json!({"client-certificate": CLIENT.0, "client-key": CLIENT.1});
    let output = check(&server, user, &["-n", "quiet", "left", "-o", "json"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let answers: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(answers.as_array().unwrap().len(), 1);
    assert_eq!(answers[0]["name"], "left");
    assert_eq!(answers[0]["injected"], false);
    assert_eq!(answers[0]["reason"], "no webhook selects the pod");
    assert_eq!(answers[0]["webhooks"].as_array().unwrap().len(), 4);
    assert_eq!(
        answers[0]["warnings"],
        json!(["the pod was injected when it was created; one created now would not be"])
    );
    assert_eq!(
        server.asked(),
        [WEBHOOKS, "/api/v1/namespaces/quiet", "/api/v1/namespaces/quiet/pods/left", NODES]
    );
}

/// What the layout of the sidecar means for a Job depends on the oldest kubelet, not on the node of the pod that runs.
#[test]
fn old_kubelets_make_classic_sidecars() {
    let owner =
        json!({"apiVersion": "batch/v1", "kind": "Job", "name": "task", "uid": "1", "controller": true});
    let mut job = pod("shop", "task-x7", json!({"generateName": "task-", "ownerReferences": [owner]}));
    job["spec"]["nodeName"] = json!("new");
    let node = |name: &str, version: &str| json!({"metadata": {"name": name}, "status": {"nodeInfo": {"kubeletVersion": version}}});
    let ours = WebhookOptions { ca_bundle: Some("pem".to_owned()), ..WebhookOptions::default() }.build();
    let asked = |nodes: (u16, Value), arguments: &[&str]| {
        let server = ApiServer::start([
            (WEBHOOKS, 200, list(std::slice::from_ref(&ours))),
            ("/api/v1/namespaces/shop", 200, namespace("shop", json!({"istio-injection": "enabled"}))),
            ("/api/v1/namespaces/shop/pods?limit=500", 200, list(std::slice::from_ref(&job))),
            (NODES, nodes.0, nodes.1),
        ]);
        let output = check(&server, json!({"token": TOKEN}), arguments);
        assert!(output.status.success(), "{}", text(&output.stderr));
        let table = text(&output.stdout);
        assert!(table.contains("Pod shop/task-x7: injected"), "{table}");
        let classic = table.contains("this Job will not complete");
        (classic, text(&output.stderr), server.asked().contains(&NODES.to_owned()))
    };
    let (old, new) = (node("old", "v1.32.9"), node("new", "v1.34.0"));
    let both = list(&[old, new.clone()]);
    assert_eq!(asked((200, both.clone()), &[]), (true, String::new(), true));
    assert_eq!(asked((200, list(&[new])), &[]), (false, String::new(), true));
    assert_eq!(asked((200, both), &["--native-sidecars=true"]), (false, String::new(), false));
    let (classic, errors, _) = asked((403, json!({"kind": "Status", "message": "nodes is forbidden"})), &[]);
    assert!(!classic && errors.contains("every node is taken to run native sidecars: "), "{errors}");
    assert!(errors.contains("nodes is forbidden"), "{errors}");
}

#[test]
fn every_namespace_page_by_page() {
    let server = cluster();
    let output = check(&server, json!({"token": TOKEN}), &["--all-namespaces"]);
    let table = text(&output.stdout);
    for line in ["Pod shop/injected: injected", "Pod shop/old: injected", "Pod quiet/left: NOT injected"] {
        assert!(table.contains(line), "{line:?} is not in\n{table}");
    }
    let output = check(&server, json!({"token": TOKEN}), &["-A", "left"]);
    assert!(!text(&output.stdout).contains("shop/"));
    let kubeconfig = server.kubeconfig(json!({"token": TOKEN}));
    let flag = ["check-inject", "--kubeconfig", kubeconfig.to_str().unwrap(), "--context", "here", "old"];
    assert!(!meshctl(&flag, "", &[]).status.success(), "no such pod");
    assert_eq!(server.asked().last().unwrap(), "/api/v1/namespaces/shop/pods/old");
}

#[test]
fn a_cluster_without_an_injector_says_so() {
    let server = ApiServer::start([
        (WEBHOOKS, 200, list(&[])),
        ("/api/v1/namespaces/shop", 200, namespace("shop", json!({"istio-injection": "enabled"}))),
        ("/api/v1/namespaces/shop/pods?limit=500", 200, list(&[pod("shop", "a", json!({}))])),
        (NODES, 200, list(&[])),
    ]);
    let output = check(&server, json!({"token": TOKEN}), &[]);
    assert!(text(&output.stdout).contains("Pod shop/a: NOT injected\n  no webhook selects the pod"));
    let errors = text(&output.stderr);
    assert!(
        errors.contains("no MutatingWebhookConfiguration of the cluster has an entry of an injector"),
        "{errors}"
    );
    assert!(errors.contains("namespace shop: istio-injection=enabled asks for injection"), "{errors}");
}

#[test]
fn refusals_name_server_path_and_reason_and_no_secret() {
    let server = cluster();
    let address = server.url();
    for (user, arguments, expected) in [
        (
            json!({"token": "hidden"}),
            &[][..],
            format!("{address} answered 401 to GET /apis/admissionregistration.k8s.io"),
        ),
        (json!({}), &[], "401".to_owned()),
        (
            json!({"token": TOKEN}),
            &["-n", "gone"],
            format!("{address} answered 404 to GET /api/v1/namespaces/gone: namespaces \"gone\" not found"),
        ),
        (
            json!({"token": TOKEN}),
            &["-n", "secret"],
            "answered 403 to GET /api/v1/namespaces/secret: namespaces \"secret\" is forbidden".to_owned(),
        ),
        (
            json!({"token": TOKEN}),
            &["nobody"],
            "answered 404 to GET /api/v1/namespaces/shop/pods/nobody".to_owned(),
        ),
        (
            json!({"token": TOKEN}),
            &["-n", "odd"],
            "the answer to GET /api/v1/namespaces/odd/pods has no list `items`".to_owned(),
        ),
        (
            json!({"token": TOKEN}),
            &["../../secrets/x"],
            "pod \"../../secrets/x\" is not a Kubernetes name".to_owned(),
        ),
        (json!({"token": TOKEN}), &["-n", "a?b"], "namespace \"a?b\" is not a Kubernetes name".to_owned()),
        (
            json!({"token": TOKEN}),
            &["--context", "there"],
            "field `contexts`: there is no entry \"there\"".to_owned(),
        ),
        (json!({"exec": {"command": "x"}}), &[], "field `users[me].user.exec`: is not supported".to_owned()),
    ] {
        let output = check(&server, user, arguments);
        let errors = text(&output.stderr);
        assert!(!output.status.success() && output.stdout.is_empty(), "{expected}");
        assert!(errors.contains(&expected), "{expected:?} is not in {errors:?}");
        assert!(!errors.contains("hidden") && !errors.contains(TOKEN), "{errors}");
    }
    let unsent = server.asked().into_iter().filter(|path| path.contains("secrets") || path.contains("a?b"));
    assert_eq!(unsent.count(), 0);
}

#[test]
fn nobody_is_believed_without_the_right_certificate() {
    let server = cluster();
    let stranger = ApiServer::start([]);
    let kubeconfig = server.kubeconfig_trusting(&stranger, json!({"token": TOKEN}));
    let output = meshctl(&["check-inject"], "", &[("KUBECONFIG", kubeconfig.to_str().unwrap())]);
    let errors = text(&output.stderr);
    assert!(errors.contains(&format!("cannot reach {}: invalid peer certificate", server.url())), "{errors}");
    assert!(server.asked().is_empty(), "the token must not leave before the server is known");
}

#[test]
fn where_there_is_no_cluster() {
    let output = meshctl(&["check-inject"], "", &[("HOME", "/nonexistent")]);
    assert!(text(&output.stderr).contains("no Kubernetes cluster is configured"), "{}", text(&output.stderr));
    let output = meshctl(&["check-inject"], "", &[("KUBECONFIG", "/nonexistent/config")]);
    assert!(text(&output.stderr).contains("/nonexistent/config: No such file"), "{}", text(&output.stderr));
    let output = meshctl(&["check-inject", "-f", "-", "-A"], "", &[]);
    assert!(text(&output.stderr).contains("cannot be used with"), "{}", text(&output.stderr));
}
