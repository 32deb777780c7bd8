//! `cargo bench -p mesh-inject --bench review`: reviews per second on one core, latency, large pods, flat memory.
//!
//! `MESH_BENCH_REVIEWS` sets how many reviews the memory check runs (default 100,000).

use std::hint::black_box;
#[expect(clippy::disallowed_types, reason = "a benchmark measures the wall clock itself")]
use std::time::Instant;

use mesh_inject::{Cluster, HttpRequest, Injector, Settings};
use serde_json::{Value, json};

/// Reviews are made of many small maps, so the allocator counts; this is the one that `mesh-control` runs with.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

const TARGET_RATE: f64 = 10_000.0;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let injector = Injector::new(Settings::default())?;
    let cluster = Cluster::default();
    let typical = review(&pod(0));
    let reply = injector.review(&http(&typical), &cluster);
    println!("typical review: {} bytes in, {} bytes out", typical.len(), reply.body.len());

    let cpu = cpu_nanoseconds();
    let mut times = measure(20_000, || drop(black_box(injector.review(&http(&typical), &cluster))));
    // CPU time, not wall time: the machine may have other things to do.
    let rate = (times.len() + times.len() / 10) as f64 / ((cpu_nanoseconds() - cpu) as f64 / 1e9);
    times.sort_unstable();
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize] as f64 / 1e3;
    println!(
        "one core: {rate:.0} reviews/s (target {TARGET_RATE:.0}); p50 {:.1} us, p99 {:.1} us (target 1000)",
        at(0.5),
        at(0.99)
    );

    let again = injected_twice(&injector, &cluster)?;
    let mut times = measure(5_000, || drop(black_box(injector.review(&http(&again), &cluster))));
    times.sort_unstable();
    println!("already injected pod: p50 {:.1} us", times[times.len() / 2] as f64 / 1e3);

    let large = review(&pod(1 << 20));
    let cpu = cpu_nanoseconds();
    let times = measure(50, || drop(black_box(injector.review(&http(&large), &cluster))));
    let each = (cpu_nanoseconds() - cpu) as f64 / (times.len() + times.len() / 10) as f64;
    println!("{} KiB pod: {:.2} ms of CPU (target 10)", large.len() >> 10, each / 1e6);

    let rounds: u64 =
        std::env::var("MESH_BENCH_REVIEWS").ok().and_then(|text| text.parse().ok()).unwrap_or(100_000);
    let before = resident_kib();
    for _ in 0..rounds {
        drop(black_box(injector.review(&http(&typical), &cluster)));
    }
    println!("resident memory: {before} KiB before, {} KiB after {rounds} reviews", resident_kib());

    // Shapes that once took the square of their size.
    for (what, pod) in shapes() {
        let large = review(&pod);
        let cpu = cpu_nanoseconds();
        let times = measure(10, || drop(black_box(injector.review(&http(&large), &cluster))));
        let each = (cpu_nanoseconds() - cpu) as f64 / (times.len() + times.len() / 10) as f64;
        println!("{} KiB of {what}: {:.2} ms of CPU", large.len() >> 10, each / 1e6);
    }
    Ok(())
}

#[expect(clippy::disallowed_types, reason = "a benchmark measures the wall clock itself")]
fn measure(rounds: usize, mut work: impl FnMut()) -> Vec<u64> {
    for _ in 0..rounds / 10 {
        work();
    }
    (0..rounds)
        .map(|_| {
            let start = Instant::now();
            work();
            u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX)
        })
        .collect()
}

fn http(body: &[u8]) -> HttpRequest<'_> {
    HttpRequest { content_type: Some("application/json"), path: "/inject", body }
}

fn review(pod: &Value) -> Vec<u8> {
    json!({
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "request": {"uid": "0df28fbd-5f5f-11e8-bc74-36e6bb280816", "operation": "CREATE", "namespace": "shop",
                    "kind": {"group": "", "version": "v1", "kind": "Pod"}, "object": pod},
    })
    .to_string()
    .into_bytes()
}

fn injected_twice(injector: &Injector, cluster: &Cluster) -> Result<Vec<u8>, mesh_inject::InjectError> {
    let pod = pod(0);
    Ok(review(&injector.inject(&mesh_inject::Request::new(&pod, "shop", cluster))?.pod))
}

/// A pod as the API server sends it: two containers, probes, defaulted fields; padded with environment to `size`.
fn pod(size: usize) -> Value {
    let probe = |path: &str| {
        json!({"httpGet": {"path": path, "port": "http", "scheme": "HTTP"}, "timeoutSeconds": 1, "periodSeconds": 10,
               "successThreshold": 1, "failureThreshold": 3})
    };
    let token = json!({"name": "kube-api-access", "readOnly": true, "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount"});
    let mut pod = json!({
        "metadata": {
            "generateName": "web-5d4f8c7b9-", "creationTimestamp": null,
            "labels": {"app": "web", "version": "v1", "pod-template-hash": "5d4f8c7b9"},
            "annotations": {"prometheus.io/scrape": "true", "prometheus.io/port": "9102"},
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-5d4f8c7b9",
                                 "uid": "a", "controller": true, "blockOwnerDeletion": true}],
        },
        "spec": {
            "volumes": [{"name": "kube-api-access", "projected": {"defaultMode": 420, "sources": [{"serviceAccountToken": {"path": "token"}}]}}],
            "containers": [
                {"name": "web", "image": "example/web:1", "ports": [{"name": "http", "containerPort": 8080, "protocol": "TCP"}],
                 "env": [{"name": "MODE", "value": "prod"}], "resources": {"limits": {"cpu": "1", "memory": "512Mi"}},
                 "livenessProbe": probe("/live"), "readinessProbe": probe("/ready"), "volumeMounts": [token],
                 "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File", "imagePullPolicy": "IfNotPresent"},
                {"name": "worker", "image": "example/worker:1", "resources": {}, "volumeMounts": [token],
                 "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File", "imagePullPolicy": "IfNotPresent"},
            ],
            "restartPolicy": "Always", "terminationGracePeriodSeconds": 30, "dnsPolicy": "ClusterFirst",
            "serviceAccountName": "web", "serviceAccount": "web", "securityContext": {}, "schedulerName": "default-scheduler",
        },
    });
    let entries: Vec<Value> = (0..size / 64)
        .map(|i| json!({"name": format!("VARIABLE_{i:06}"), "value": "0123456789abcdef0123456789"}))
        .collect();
    if !entries.is_empty() {
        pod["spec"]["containers"][1]["env"] = Value::Array(entries);
    }
    pod
}

/// Pods of 1 MiB that are all volumes, a declared sidecar's environment, an application's environment under `grpc-agent`.
fn shapes() -> Vec<(&'static str, Value)> {
    let entries = |count: usize| -> Value {
        (0..count)
            .map(|i| json!({"name": format!("VARIABLE_{i:06}"), "value": "0123456789abcdef0123456789"}))
            .collect()
    };
    let mut volumes = pod(0);
    volumes["spec"]["volumes"] =
        (0..(1 << 20) / 40).map(|i| json!({"name": format!("volume-{i:06}"), "emptyDir": {}})).collect();
    let mut sidecar = pod(0);
    if let Some(list) = sidecar["spec"]["containers"].as_array_mut() {
        list.push(json!({"name": "istio-proxy", "env": entries((1 << 20) / 64)}));
    }
    let mut agent = pod(1 << 20);
    agent["metadata"]["annotations"]["inject.istio.io/templates"] = json!("grpc-agent");
    vec![
        ("volumes", volumes),
        ("a declared sidecar's environment", sidecar),
        ("environment under grpc-agent", agent),
    ]
}

/// CPU time of this process so far (`/proc/self/schedstat`).
fn cpu_nanoseconds() -> u64 {
    let text = std::fs::read_to_string("/proc/self/schedstat").unwrap_or_default();
    text.split_whitespace().next().and_then(|field| field.parse().ok()).unwrap_or_default()
}

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok()).unwrap_or_default()
}
