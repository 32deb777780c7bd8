//! Every injection case, offline and through the webhook.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use libtest_mimic::{Failed, Trial};
use mesh_inject::offline::{inject_document, parse_documents};
use mesh_inject::patch::Patch;
use mesh_inject::{Cluster, HttpRequest, Injector, Settings, Template};
use serde_json::{Value, json};

use super::normalise;
use crate::{json_file, text_file};

static AGREE: AtomicUsize = AtomicUsize::new(0);
static DECLARED: AtomicUsize = AtomicUsize::new(0);
static FAILED: AtomicUsize = AtomicUsize::new(0);

/// Cases in which we differ on purpose, and the places where. The README says why.
const DECLARED_DIFFERENCES: [(&str, &[&str]); 1] = [(
    "sidecar-spire.yaml",
    // Upstream makes a second container `istio-proxy` without an image; ours goes into the one that exists.
    &[
        "/spec/template/spec/containers/1",
        "/spec/template/spec/initContainers/1/volumeMounts/0/readOnly",
        "/spec/template/metadata/annotations/sidecar.istio.io/status/containers",
    ],
)];

/// The one template of the data that is Go text, restated as an overlay.
const CUSTOM_TEMPLATE: &str = r#"
metadata:
  annotations:
    prometheus.istio.io/merge-metrics: "false"
    sidecar.istio.io/rewriteAppHTTPProbers: "false"
    foo: bar
spec:
  containers:
  - name: "*"
    env:
    - {name: SOME_ENV, value: "true"}
    - {name: SOME_FILE, value: /var/lib/data/foo.json}
    volumeMounts:
    - {name: some-injected-file, mountPath: /var/lib/data/foo.json, subPath: foo.json}
  volumes:
  - name: some-injected-file
    downwardAPI:
      items:
      - {path: foo.json, fieldRef: {fieldPath: "metadata.annotations['foo']"}}
"#;

pub(crate) fn trials(folder: &Path) -> Vec<Trial> {
    let index = json_file(&folder.join("index.json"));
    let mut trials = Vec::new();
    for (i, case) in index["cases"].as_array().expect("index.json has cases").iter().enumerate() {
        let golden = case["golden"]
            .as_str()
            .or_else(|| case["input"].as_str())
            .unwrap_or_default()
            .replace("cases/", "");
        for webhook in [false, true] {
            let runs = if webhook { &case["run_webhook"] } else { &case["run_kube_inject"] };
            if runs != &json!(true) && case.get("expected_error_contains_ci").is_none_or(Value::is_null) {
                continue;
            }
            if webhook && runs != &json!(true) {
                continue;
            }
            let way = if webhook { "webhook" } else { "offline" };
            let (folder, case, common) = (folder.to_owned(), case.clone(), index["common"].clone());
            trials.push(Trial::test(format!("inject::{way}::{i:02} {golden}"), move || {
                let result = run(&folder, &case, &common, webhook);
                if result.is_err() {
                    FAILED.fetch_add(1, Ordering::Relaxed);
                }
                result
            }));
        }
    }
    trials
}

pub(crate) fn summary() {
    println!(
        "golden injection: {} agree, {} declared difference, {} fail",
        AGREE.load(Ordering::Relaxed),
        DECLARED.load(Ordering::Relaxed),
        FAILED.load(Ordering::Relaxed)
    );
}

fn settings(folder: &Path, case: &Value, common: &Value) -> Result<Settings, Failed> {
    let values = json_file(&folder.join(case["rendered_values"].as_str().unwrap_or_default()));
    let env = case["istiod_env"].as_object().cloned().unwrap_or_default();
    let mut settings = Settings::from_installation(&values)?
        .with_mesh(&common["mesh_defaults"])
        .with_mesh(&values["mesh_configmap"])
        .with_mesh(&case["mesh_overrides"])
        .with_environment(env.iter().map(|(key, value)| (key.as_str(), value.as_str().unwrap_or_default())));
    if settings.templates.contains_key("custom") {
        settings.templates.insert("custom".to_owned(), Template::overlay("custom", CUSTOM_TEMPLATE)?);
    }
    "enabled".clone_into(&mut settings.policy);
    Ok(settings)
}

fn cluster(case: &Value, common: &Value) -> Cluster {
    let mut cluster = Cluster::default();
    for (name, facts) in common["namespaces"].as_object().into_iter().flatten() {
        cluster.add_namespace(json!({"metadata": {"name": name, "annotations": facts["annotations"]}}));
    }
    for (i, version) in case["kubelet_versions"].as_array().into_iter().flatten().enumerate() {
        cluster.kubelets.insert(format!("node-{i}"), version.as_str().unwrap_or_default().to_owned());
    }
    cluster
}

fn run(folder: &Path, case: &Value, common: &Value, webhook: bool) -> Result<(), Failed> {
    let mut settings = settings(folder, case, common)?;
    let cluster = cluster(case, common);
    if let Some(native) = case["native_sidecar_default"].as_bool()
        && cluster.native_sidecars(settings.native_sidecars, &json!({})) != native
    {
        return Err("the default of native sidecars differs".into());
    }
    let input = text_file(&folder.join(case["input"].as_str().unwrap_or_default()))?;
    let inputs = parse_documents(&input)?;
    if let Some(expected) = case["expected_error_contains_ci"].as_str() {
        let injector = Injector::new(settings)?;
        let error = inputs.iter().find_map(|document| inject_document(&injector, &cluster, document).err());
        let text = error.ok_or("no error")?.to_string().to_lowercase();
        AGREE.fetch_add(1, Ordering::Relaxed);
        return if text.contains(expected) {
            Ok(())
        } else {
            Err(format!("{text:?} lacks {expected:?}").into())
        };
    }
    if webhook {
        "default".clone_into(&mut settings.revision);
    } else {
        settings.revision.clear();
    }
    let injector = Injector::new(settings)?;
    let name = case["input"].as_str().unwrap_or_default().replace("cases/", "");
    let goldens = parse_documents(&text_file(&folder.join(case["golden"].as_str().unwrap_or_default()))?)?;
    if inputs.len() != goldens.len() {
        return Err(format!("{} documents in, {} in the golden", inputs.len(), goldens.len()).into());
    }
    let mut declared = false;
    for (input, golden) in inputs.iter().zip(&goldens) {
        let (ours, theirs) = if webhook {
            let Some(pod) = fake_pod(input) else { continue };
            let golden = fake_pod(golden).ok_or("the golden is no workload")?;
            (through_webhook(&injector, &cluster, &pod)?, golden)
        } else {
            let (ours, reports) = inject_document(&injector, &cluster, input)?;
            if let Some(warning) = case["expected_warning_contains"].as_str() {
                let said =
                    reports.iter().filter_map(|report| report.skip_message()).any(|m| m.contains(warning));
                if !said {
                    return Err(format!("no report contains {warning:?}").into());
                }
            }
            (ours, golden.clone())
        };
        let (mut ours, mut theirs) = (normalise::document(&ours), normalise::document(&theirs));
        if webhook {
            for pod in [&mut ours, &mut theirs] {
                if let Some(annotations) =
                    pod.pointer_mut("/metadata/annotations").and_then(Value::as_object_mut)
                {
                    annotations.remove("sidecar.istio.io/status");
                }
            }
        }
        let places =
            DECLARED_DIFFERENCES.iter().find(|(case, _)| *case == name).map_or(&[][..], |(_, places)| places);
        let (expected, unexpected): (Vec<_>, Vec<_>) =
            normalise::differences(&ours, &theirs).into_iter().partition(|line| {
                places.iter().any(|place| {
                    let place =
                        if webhook { place.replace("/spec/template", "") } else { (*place).to_owned() };
                    line.starts_with(&place)
                })
            });
        if !unexpected.is_empty() {
            return Err(unexpected.join("\n").into());
        }
        declared |= !expected.is_empty();
    }
    if declared { &DECLARED } else { &AGREE }.fetch_add(1, Ordering::Relaxed);
    Ok(())
}

/// The pod that a controller would create for a workload.
fn fake_pod(object: &Value) -> Option<Value> {
    let kind = object["kind"].as_str()?;
    let name = object["metadata"]["name"].as_str().unwrap_or_default();
    let (mut pod, owner) = match kind {
        "Pod" => {
            let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": object["metadata"], "spec": object["spec"]});
            return Some(pod);
        }
        "CronJob" => return None,
        "Deployment" => {
            let mut pod = template(object);
            pod["metadata"]["labels"]["pod-template-hash"] = json!("fake");
            pod["metadata"]["generateName"] = json!(format!("{name}-fake-"));
            (
                pod,
                json!({"apiVersion": object["apiVersion"], "kind": "ReplicaSet", "name": format!("{name}-fake"), "controller": true}),
            )
        }
        "DaemonSet" | "ReplicaSet" | "StatefulSet" | "Job" | "ReplicationController" | "DeploymentConfig" => {
            let mut pod = template(object);
            pod["metadata"]["generateName"] = json!(name);
            (pod, json!({"apiVersion": object["apiVersion"], "kind": kind, "name": name, "controller": true}))
        }
        _ => return None,
    };
    pod["metadata"]["ownerReferences"] = json!([owner]);
    if let Some(namespace) = object["metadata"]["namespace"].as_str() {
        pod["metadata"]["namespace"] = json!(namespace);
    }
    Some(pod)
}

fn template(object: &Value) -> Value {
    let template = &object["spec"]["template"];
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": template["metadata"], "spec": template["spec"]})
}

fn through_webhook(injector: &Injector, cluster: &Cluster, pod: &Value) -> Result<Value, Failed> {
    let review = json!({
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "request": {"uid": "1", "operation": "CREATE", "namespace": pod["metadata"]["namespace"].as_str().unwrap_or_default(), "object": pod},
    })
    .to_string();
    let request =
        HttpRequest { content_type: Some("application/json"), path: "/inject", body: review.as_bytes() };
    let reply = injector.review(&request, cluster);
    let body: Value = serde_json::from_slice(&reply.body)?;
    if body["response"]["allowed"] != json!(true) {
        return Err(body["response"]["status"]["message"].to_string().into());
    }
    let Some(patch) = body["response"]["patch"].as_str() else { return Ok(pod.clone()) };
    let bytes = base64::Engine::decode(&base64::engine::general_purpose::STANDARD, patch)?;
    let patch: Patch = serde_json::from_slice(&bytes)?;
    Ok(patch.apply(pod)?)
}
