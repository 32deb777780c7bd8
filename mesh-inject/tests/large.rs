//! Pods as large as an API server accepts, of every shape that asks for the most work: the work must grow with the size of
//! the pod and not with its square.
//!
//! Times are CPU times of the thread, so that other work on the machine does not count. The bound is generous: what is
//! linear takes a tenth of it without optimisation, what is quadratic a hundred times as much.

use base64::Engine as _;
use mesh_inject::patch::Patch;
use mesh_inject::{Cluster, HttpRequest, Injector, Request, Settings, Template};
use serde_json::{Value, json};

const SIZE: usize = 1 << 20;
const BOUND_SECONDS: f64 = 3.0;

/// CPU time of this thread so far.
fn cpu_seconds() -> f64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").expect("a kernel that counts");
    let nanoseconds: u64 = text.split(' ').next().and_then(|field| field.parse().ok()).expect("a number");
    nanoseconds as f64 / 1e9
}

/// As many items as fill a pod.
fn fill(item: impl Fn(usize) -> Value) -> Value {
    let each = item(100_000).to_string().len() + 1;
    (0..SIZE / each).map(item).collect()
}

fn env(more: &[&str]) -> Value {
    let mut entries = fill(|i| json!({"name": format!("VARIABLE_{i}"), "value": "0123456789"}));
    // The template's own names in the midst of the user's.
    for (i, name) in more.iter().enumerate() {
        entries[(i + 1) * 1_000]["name"] = json!(name);
    }
    entries
}

fn pod(template: &str, containers: Value) -> Value {
    let annotations =
        json!({"inject.istio.io/templates": template, "sidecar.istio.io/nativeSidecar": "false"});
    json!({"metadata": {"name": "large", "namespace": "shop", "annotations": annotations}, "spec": {"containers": containers}})
}

fn rows() -> Vec<(&'static str, Value)> {
    let app = || json!({"name": "app", "image": "example/app:1"});
    let with = |template: &str, field: &str, items: Value| {
        let mut container = app();
        container[field] = items;
        pod(template, json!([container]))
    };
    let mounts = || fill(|i| json!({"name": "v", "mountPath": format!("/data/{i}")}));
    let containers = |more: Value| {
        fill(|i| {
            let mut container = json!({"name": format!("c{i}")});
            container.as_object_mut().expect("a map").extend(more.as_object().expect("a map").clone());
            container
        })
    };
    let proxy =
        |field: &str, items: Value| pod("sidecar", json!([app(), {"name": "istio-proxy", field: items}]));
    let spec = |field: &str, items: Value| {
        let mut pod = pod("sidecar", json!([app()]));
        pod["spec"][field] = items;
        pod
    };
    let sources = || json!({"emptyDir": {}, "configMap": {"name": "c"}});
    let two_sources = fill(|i| {
        let mut volume = sources();
        volume["name"] = json!(format!("v{i}"));
        volume
    });
    let mut remembered = pod("sidecar", containers(json!({})));
    let names: Vec<&Value> =
        remembered["spec"]["containers"].as_array().expect("a list").iter().map(|c| &c["name"]).collect();
    let status = json!({"containers": names, "initContainers": null}).to_string();
    let half: Vec<Value> =
        remembered["spec"]["containers"].as_array().expect("a list").iter().step_by(2).cloned().collect();
    remembered["metadata"]["annotations"]["sidecar.istio.io/status"] = json!(status);
    remembered["metadata"]["annotations"]["proxy.istio.io/overrides"] =
        json!(json!({"containers": half}).to_string());
    vec![
        ("volumes", spec("volumes", fill(|i| json!({"name": format!("v{i}"), "emptyDir": {}})))),
        ("volumes of two sources", spec("volumes", two_sources)),
        ("pull secrets", spec("imagePullSecrets", fill(|i| json!({"name": format!("s{i}")})))),
        ("environment of an application", with("sidecar", "env", env(&[]))),
        ("environment of a declared sidecar", proxy("env", env(&["POD_NAME", "HOST_IP", "CA_ADDR"]))),
        ("mounts of a declared sidecar", proxy("volumeMounts", mounts())),
        ("ports of a declared sidecar", proxy("ports", fill(|i| json!({"containerPort": 1 + i % 60_000})))),
        ("arguments of a declared sidecar", proxy("args", fill(|i| json!(format!("--argument={i}"))))),
        ("environment under grpc-agent", with("grpc-agent", "env", env(&["GRPC_XDS_BOOTSTRAP"]))),
        ("mounts under grpc-agent", with("grpc-agent", "volumeMounts", mounts())),
        ("environment under an overlay", with("sidecar,all", "env", env(&["ZONE"]))),
        ("containers", pod("sidecar", containers(json!({})))),
        (
            "containers under grpc-agent",
            pod("grpc-agent", containers(json!({"image": "example/application:1"}))),
        ),
        (
            "containers under an overlay",
            pod("sidecar,all", containers(json!({"image": "example/application:1"}))),
        ),
        (
            "containers with probes",
            pod("sidecar", containers(json!({"livenessProbe": {"tcpSocket": {"port": 80}}}))),
        ),
        (
            "containers of the proxy's user",
            pod("sidecar", containers(json!({"securityContext": {"runAsUser": 1337}}))),
        ),
        ("remembered containers", remembered),
    ]
}

#[test]
fn work_grows_with_the_pod() {
    let mut settings =
        Settings { values: json!({"global": {"imagePullSecrets": ["pull"]}}), ..Settings::default() };
    let overlay = "spec: {containers: [{name: '*', env: [{name: ZONE, value: north}]}]}";
    settings.templates.insert("all".to_owned(), Template::overlay("all", overlay).expect("an overlay"));
    let injector = Injector::new(settings).expect("good settings");
    let cluster = Cluster::default();
    for (what, pod) in rows() {
        let body = json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
            "request": {"uid": "u", "operation": "CREATE", "namespace": "shop", "object": pod}})
        .to_string();
        assert!(body.len() > SIZE - SIZE / 8, "{what}: {} bytes", body.len());
        let request =
            HttpRequest { content_type: Some("application/json"), path: "/inject", body: body.as_bytes() };
        let start = cpu_seconds();
        let reply = injector.review(&request, &cluster);
        let took = cpu_seconds() - start;
        assert_eq!(
            reply.outcome.reason(),
            "injected",
            "{what}: {:.300}",
            String::from_utf8_lossy(&reply.body)
        );
        println!("{what}: {} KiB, {:.0} ms", body.len() >> 10, took * 1e3);
        assert!(took < BOUND_SECONDS, "{what}: {took:.1} s of CPU for {} KiB", body.len() >> 10);

        // And the answer is right: the patch gives the pod that `inject` gives.
        let answer: Value = serde_json::from_slice(&reply.body).expect("JSON");
        let patch = answer["response"]["patch"].as_str().expect("a patch");
        let patch = base64::engine::general_purpose::STANDARD.decode(patch).expect("Base64");
        let patch: Patch = serde_json::from_slice(&patch).expect("a patch");
        let intended = injector.inject(&Request::new(&pod, "shop", &cluster)).expect("a good pod").pod;
        let patched = patch.apply(&pod).expect("a patch that fits");
        assert!(patched == intended, "{what}: the patch gives another pod");
        let warnings: usize = answer["response"]["warnings"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|w| w.to_string().len())
            .sum();
        assert!(warnings < 5_000, "{what}: {warnings} bytes of warnings");
    }
}
