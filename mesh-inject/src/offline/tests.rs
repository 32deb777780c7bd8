use serde_json::json;

use super::*;
use crate::annotation as a;
use crate::settings::{NativeSidecars, Settings};

const DOCUMENTS: &str = "
apiVersion: v1
kind: Service
metadata: {name: web, annotations: {mode: 0o644}}
spec: {selector: {app: web}}
---
apiVersion: v1
kind: List
items:
- apiVersion: apps/v1
  kind: Deployment
  metadata: {name: web, namespace: shop}
  spec:
    template:
      metadata: {labels: {app: web}}
      spec:
        containers:
        - name: web
          image: example/web
          ports: [{containerPort: 80}]
          livenessProbe: {tcpSocket: {port: 80}}
          readinessProbe: {httpGet: {path: /ok, port: 80, scheme: HTTPS}}
- apiVersion: apps/v1
  kind: DaemonSet
  metadata: {name: node, namespace: shop}
  spec: {template: {spec: {hostNetwork: true, containers: [{name: n}]}}}
---
kind: Widget
spec: {unknown: [1, 2]}
";

fn injector() -> Injector {
    Injector::new(Settings::default()).unwrap()
}

#[test]
fn every_kind_is_found_and_others_are_untouched() {
    let documents = parse_documents(DOCUMENTS).unwrap();
    assert_eq!(documents.len(), 3);
    let cluster = Cluster::default();
    let (service, reports) = inject_document(&injector(), &cluster, &documents[0]).unwrap();
    assert_eq!((service, reports.len()), (documents[0].clone(), 0));
    let (list, reports) = inject_document(&injector(), &cluster, &documents[1]).unwrap();
    assert_eq!(list["items"][0]["spec"]["template"]["spec"]["initContainers"][1]["name"], "istio-proxy");
    assert_eq!(list["items"][1], documents[1]["items"][1]);
    assert_eq!(reports[0].skip_message(), None);
    assert_eq!(
        reports[1].skip_message().unwrap(),
        "===> Skipping injection because DaemonSet \"shop/node\" has host networking enabled"
    );
    assert_eq!(pods(&documents[1]).len(), 2);
    assert_eq!(inject_document(&injector(), &cluster, &documents[2]).unwrap().0, documents[2]);
}

#[test]
fn uninjecting_gives_back_what_was_there() {
    let cluster = Cluster::default();
    for document in parse_documents(DOCUMENTS).unwrap() {
        let (injected, _) = inject_document(&injector(), &cluster, &document).unwrap();
        let back = uninject(&injected).unwrap();
        assert_eq!(back.document, document, "{:?}", back.warnings);
    }
    let pod = json!({"kind":"Pod","metadata":{"name":"p","annotations":{"prometheus.io/port":"8080"}},
        "spec":{"containers":[{"name":"app"},{"name":"istio-proxy","image":"auto","args":["x"]}],"volumes":[{"name":"v"}]}});
    let (injected, _) = inject_document(&injector(), &cluster, &pod).unwrap();
    let back = uninject(&injected).unwrap();
    let mut expected = pod;
    expected["spec"]["containers"][1].as_object_mut().unwrap().remove("image");
    assert_eq!(back.document, expected);
    assert!(back.warnings.iter().any(|w| w.contains("istio-proxy is back")), "{:?}", back.warnings);
    assert_eq!(uninject(&expected).unwrap().changed, 0);
}

#[test]
fn a_cron_jobs_metadata_is_its_job_templates() {
    let job = json!({"kind":"CronJob","apiVersion":"batch/v1","metadata":{"name":"c"},
        "spec":{"jobTemplate":{"spec":{"template":{"spec":{"containers":[{"name":"a"}]}}}}}});
    let (out, _) = inject_document(&injector(), &Cluster::default(), &job).unwrap();
    assert!(out["spec"]["jobTemplate"]["metadata"]["annotations"]["sidecar.istio.io/status"].is_string());
    assert_eq!(
        out["spec"]["jobTemplate"]["spec"]["template"]["spec"]["initContainers"][0]["name"],
        "istio-init"
    );
}

#[test]
fn yaml_written_reads_back() {
    let document = json!({"a": "b: c", "n": "0400"});
    assert_eq!(parse_documents(&to_yaml(&document)).unwrap(), [document]);
}

/// A workload of a kind, its pod labelled and annotated, and where that pod's spec stands.
fn workload(kind: &str) -> (Value, &'static str) {
    let metadata = json!({"labels": {"app": "web"}, "annotations": {"example.com/own": "kept"}});
    let spec = json!({"containers": [{"name": "web", "image": "example/web:1", "env": [{"name": "A", "value": "1"}],
        "livenessProbe": {"httpGet": {"path": "/ok", "port": 80}}}], "nodeSelector": {"disk": "fast"}});
    let (spec, place) = match kind {
        "Pod" => {
            let mut metadata = metadata;
            metadata["name"] = json!("web");
            return (json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}), "/spec");
        }
        "CronJob" => (
            json!({"schedule": "* * * * *", "jobTemplate": {"metadata": metadata, "spec": {"template": {"spec": spec}}}}),
            "/spec/jobTemplate/spec/template/spec",
        ),
        _ => {
            (json!({"replicas": 2, "template": {"metadata": metadata, "spec": spec}}), "/spec/template/spec")
        }
    };
    (
        json!({"apiVersion": "x/v1", "kind": kind, "metadata": {"name": "web", "namespace": "shop"}, "spec": spec}),
        place,
    )
}

const KINDS: [&str; 9] = [
    "Pod",
    "Deployment",
    "StatefulSet",
    "DaemonSet",
    "ReplicaSet",
    "ReplicationController",
    "DeploymentConfig",
    "Job",
    "CronJob",
];

#[test]
fn every_kind_alone_in_a_list_and_back() {
    for native in [NativeSidecars::Always, NativeSidecars::Never] {
        let injector = Injector::new(Settings { native_sidecars: native, ..Settings::default() }).unwrap();
        let mut items = Vec::new();
        for kind in KINDS {
            let (object, place) = workload(kind);
            let (injected, reports) = inject_document(&injector, &Cluster::default(), &object).unwrap();
            assert_eq!((reports.len(), reports[0].kind.as_str()), (1, kind));
            let spec = injected.pointer(place).unwrap();
            let pod = json!({"spec": spec});
            assert!(pod::sidecar(&pod).is_some(), "{kind}");
            assert_eq!(spec["nodeSelector"], json!({"disk": "fast"}), "{kind}");
            // Outside the pod nothing moves.
            let mut outside = injected.clone();
            let (metadata, _) = Place::of(kind).unwrap().pointers();
            *outside.pointer_mut(place).unwrap() = object.pointer(place).unwrap().clone();
            *outside.pointer_mut(metadata).unwrap() = object.pointer(metadata).unwrap().clone();
            assert_eq!(outside, object, "{kind}");
            let back = uninject(&injected).unwrap();
            assert_eq!((back.document, back.changed), (object.clone(), 1), "{kind}: {:?}", back.warnings);
            items.push(object);
        }
        items
            .push(json!({"kind": "Widget", "spec": {"template": {"spec": {"containers": [{"name": "a"}]}}}}));
        items.push(json!({"kind": "List", "items": [workload("Job").0]}));
        let list = json!({"apiVersion": "v1", "kind": "List", "items": items});
        let (injected, reports) = inject_document(&injector, &Cluster::default(), &list).unwrap();
        assert_eq!(reports.len(), KINDS.len() + 1, "a list in a list is walked as well");
        assert_eq!(
            injected["items"][KINDS.len()],
            list["items"][KINDS.len()],
            "an unknown kind is untouched"
        );
        let back = uninject(&injected).unwrap();
        assert_eq!((back.document, back.changed), (list, KINDS.len() + 1));
    }
}

#[test]
fn one_bad_workload_leaves_the_document_as_it_was() {
    let (good, _) = workload("Deployment");
    let mut bad = good.clone();
    bad["spec"]["template"]["spec"]["containers"][0]["name"] = json!(7);
    let list = json!({"kind": "List", "items": [good, bad]});
    let error = inject_document(&injector(), &Cluster::default(), &list).unwrap_err();
    assert!(error.to_string().contains("spec.containers[0].name"), "{error}");
    assert!(uninject(&list).is_err());
}

/// Everything that taking back cannot restore is in the list that the documentation of [`uninject`] gives, and each is said.
#[test]
fn what_does_not_come_back_is_said() {
    let taken_back = |pod: &Value| {
        let (injected, _) = inject_document(&injector(), &Cluster::default(), pod).unwrap();
        let back = uninject(&injected).unwrap();
        (back.document, back.warnings.join("\n"))
    };
    let pod = || workload("Pod").0;

    let mut named = pod();
    named["spec"]["containers"][0]["ports"] = json!([{"name": "http", "containerPort": 80}]);
    named["spec"]["containers"][0]["livenessProbe"]["httpGet"]["port"] = json!("http");
    let (back, warnings) = taken_back(&named);
    assert_eq!(back["spec"]["containers"][0]["livenessProbe"]["httpGet"]["port"], 80);
    assert!(warnings.contains("probes of web name their ports by number now"), "{warnings}");

    let mut spelled = pod();
    spelled["metadata"]["annotations"]["prometheus.io.port"] = json!("9000");
    let (back, warnings) = taken_back(&spelled);
    assert_eq!(back["metadata"]["annotations"]["prometheus.io/port"], "9000");
    assert!(warnings.contains("Prometheus annotations are back under their usual names"), "{warnings}");

    let mut own_label = pod();
    own_label["metadata"]["labels"][a::TLS_MODE] = json!("disabled");
    own_label["metadata"]["annotations"][a::DEFAULT_CONTAINER] = json!("web");
    let (back, warnings) = taken_back(&own_label);
    assert!(back["metadata"]["labels"].get(a::TLS_MODE).is_none());
    assert!(warnings.contains(a::TLS_MODE) && warnings.contains(a::DEFAULT_CONTAINER), "{warnings}");

    let mut gateway = pod();
    gateway["metadata"]["annotations"][a::TEMPLATES] = json!("gateway");
    let (back, warnings) = taken_back(&gateway);
    assert!(back["spec"]["securityContext"].is_object());
    assert!(warnings.contains("spec.securityContext is left"), "{warnings}");

    // A volume of the user's under an injected name: the one with a source of its own comes back exactly, the other one is
    // left because something mounts it.
    let mut volumes = pod();
    volumes["spec"]["volumes"] =
        json!([{"name": "workload-socket", "csi": {"driver": "d"}}, {"name": "istio-data", "emptyDir": {}}]);
    volumes["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "workload-socket", "mountPath": "/run/s"},
        {"name": "istio-data", "mountPath": "/d"}]);
    let (back, warnings) = taken_back(&volumes);
    assert_eq!(back, volumes);
    assert!(
        warnings.contains("volume istio-data is left") && !warnings.contains("workload-socket"),
        "{warnings}"
    );

    let mut agent = pod();
    agent["metadata"]["annotations"][a::TEMPLATES] = json!("grpc-agent");
    let (back, warnings) = taken_back(&agent);
    assert_eq!(back, agent);
    assert!(warnings.contains(a::REWRITE_PROBES), "{warnings}");

    let values = json!({"pilot": {"cni": {"enabled": true, "provider": "multus"}}});
    let with_cni = Injector::new(Settings { values, ..Settings::default() }).unwrap();
    let mut networks = pod();
    networks["metadata"]["annotations"][a::CNI_NETWORKS] = json!("own/net");
    let (injected, _) = inject_document(&with_cni, &Cluster::default(), &networks).unwrap();
    let back = uninject(&injected).unwrap();
    assert_eq!(back.document["metadata"]["annotations"][a::CNI_NETWORKS], "own/net");
    assert_eq!(back.document["metadata"]["annotations"][a::INTERCEPTION_MODE], "REDIRECT");
    let warnings = back.warnings.join("\n");
    assert!(warnings.contains(a::INTERCEPTION_MODE) && warnings.contains("network istio-cni"), "{warnings}");

    let mut declared = pod();
    declared["spec"]["containers"]
        .as_array_mut()
        .unwrap()
        .push(json!({"name": "istio-proxy", "image": "auto"}));
    let (back, warnings) = taken_back(&declared);
    assert_eq!(back["spec"]["containers"][1], json!({"name": "istio-proxy"}));
    assert!(warnings.contains("istio-proxy has no image"), "{warnings}");

    let mut unreadable = pod();
    unreadable["metadata"]["annotations"][a::STATUS] = json!("{");
    let result = uninject(&unreadable).unwrap();
    assert_eq!((result.document, result.changed), (unreadable, 0));
    assert!(result.warnings[0].contains("cannot be read"), "{:?}", result.warnings);
}
