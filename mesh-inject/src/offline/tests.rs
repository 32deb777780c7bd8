use serde_json::json;

use super::*;
use crate::settings::Settings;

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
