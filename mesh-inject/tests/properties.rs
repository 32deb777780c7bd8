//! Promises that hold for every pod: nothing of the user's is lost or reordered, a second injection changes nothing, the
//! patch gives the pod, Kubernetes can read it.

use mesh_inject::offline::{inject_document, uninject};
use mesh_inject::patch::diff;
use mesh_inject::{Cluster, HttpRequest, InjectError, Injector, NativeSidecars, Request, Settings};
use proptest::prelude::*;
use serde_json::{Map, Value, json};

const OURS: [&str; 3] = ["istio-proxy", "istio-init", "istio-validation"];

fn injector(native: bool, cni: bool) -> Injector {
    let native_sidecars = if native { NativeSidecars::Always } else { NativeSidecars::Never };
    let values = json!({"pilot": {"cni": {"enabled": cni}}, "global": {"imagePullSecrets": ["pull"], "network": "n1"}});
    Injector::new(Settings { native_sidecars, values, ..Settings::default() }).expect("the settings are good")
}

fn inject(injector: &Injector, pod: &Value) -> Result<Value, InjectError> {
    injector.inject(&Request::new(pod, "shop", &Cluster::default())).map(|injected| injected.pod)
}

fn list<'a>(pod: &'a Value, field: &str) -> &'a [Value] {
    pod["spec"][field].as_array().map_or(&[], Vec::as_slice)
}

fn name(item: &Value) -> &str {
    item["name"].as_str().unwrap_or_default()
}

/// The container without the fields that injection may rewrite.
fn untouched(container: &Value) -> Value {
    let mut copy = container.clone();
    for field in ["livenessProbe", "readinessProbe", "startupProbe", "lifecycle"] {
        copy.as_object_mut().map(|map| map.remove(field));
    }
    copy
}

fn env() -> impl Strategy<Value = Value> {
    prop::collection::vec(("[A-C]", "[a-z]{0,3}"), 0..5).prop_map(|entries| {
        entries.into_iter().map(|(name, value)| json!({"name": name, "value": value})).collect()
    })
}

fn probe() -> impl Strategy<Value = Value> {
    let port = prop_oneof![(1_i64..65536).prop_map(Value::from), Just(json!("p0")), Just(json!("missing"))];
    prop_oneof![
        (port, prop::bool::ANY).prop_map(|(port, tls)| {
            json!({"httpGet": {"path": "/x", "port": port, "scheme": if tls { "HTTPS" } else { "HTTP" }}, "timeoutSeconds": 2})
        }),
        (1_i64..65536).prop_map(|port| json!({"tcpSocket": {"port": port}})),
        (1_i64..65536).prop_map(|port| json!({"grpc": {"port": port, "service": "s"}, "timeoutSeconds": 3})),
        Just(json!({"exec": {"command": ["true"]}})),
    ]
}

fn hook() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(json!({"preStop": {"exec": {"command": ["sleep", "1"]}}})),
        (1_i64..65536).prop_map(|port| json!({"preStop": {"httpGet": {"path": "/stop", "port": port}}})),
        (1_i64..65536).prop_map(|port| json!({"postStart": {"tcpSocket": {"port": port}}})),
    ]
}

fn container(name: String) -> impl Strategy<Value = Value> {
    let probes = prop::collection::vec(prop::option::of(probe()), 3);
    (env(), 0_i64..4, probes, prop::option::of(hook()), prop::option::of(0_i64..3000)).prop_map(
        move |(env, ports, probes, hook, user)| {
            let ports: Vec<Value> =
                (0..ports).map(|i| json!({"name": format!("p{i}"), "containerPort": 8000 + i, "protocol": "TCP"})).collect();
            let mut container = json!({"name": name, "image": "example/app:1", "env": env, "ports": ports, "x-unknown": {"k": [1]}});
            for (field, probe) in ["livenessProbe", "readinessProbe", "startupProbe"].iter().zip(probes) {
                if let Some(probe) = probe {
                    container[*field] = probe;
                }
            }
            if let Some(hook) = hook {
                container["lifecycle"] = hook;
            }
            if let Some(user) = user {
                container["securityContext"] = json!({"runAsUser": user});
            }
            container
        },
    )
}

fn containers(prefix: &'static str, most: usize) -> impl Strategy<Value = Vec<Value>> {
    (0..=most).prop_flat_map(move |count| {
        (0..count).map(|i| container(format!("{prefix}{i}")).boxed()).collect::<Vec<_>>()
    })
}

fn annotations() -> impl Strategy<Value = Map<String, Value>> {
    let one = prop_oneof![
        Just(("sidecar.istio.io/interceptionMode", "TPROXY")),
        Just(("sidecar.istio.io/interceptionMode", "NONE")),
        Just(("sidecar.istio.io/capNetBindService", "true")),
        Just(("status.sidecar.istio.io/port", "15999")),
        Just(("status.sidecar.istio.io/port", "0")),
        Just(("sidecar.istio.io/rewriteAppHTTPProbers", "false")),
        Just(("proxy.istio.io/config", "holdApplicationUntilProxyStarts: true\nproxyMetadata: {K: v}")),
        Just(("traffic.sidecar.istio.io/excludeInboundPorts", "80, 81")),
        Just(("traffic.sidecar.istio.io/includeOutboundIPRanges", "")),
        Just(("prometheus.io/port", "9000")),
        Just(("prometheus.istio.io/scrape-targets", "9001,9002:/x")),
        Just(("prometheus.io/scrape", "false")),
        Just(("sidecar.istio.io/proxyCPU", "200m")),
        Just(("sidecar.istio.io/userVolume", r#"{"extra":{"emptyDir":{}}}"#)),
        Just(("sidecar.istio.io/userVolumeMount", r#"{"extra":{"mountPath":"/extra"}}"#)),
        Just(("inject.istio.io/templates", "gateway")),
        Just(("inject.istio.io/templates", "grpc-agent")),
        Just(("inject.istio.io/templates", "grpc-simple")),
        Just(("example.com/own", "kept")),
    ];
    prop::collection::vec(one, 0..4)
        .prop_map(|items| items.into_iter().map(|(key, value)| (key.to_owned(), json!(value))).collect())
}

prop_compose! {
    fn pods()(
        app in containers("app", 3),
        init in containers("init", 2),
        proxy in prop::option::weighted(0.2, container("istio-proxy".to_owned())),
        at in 0_usize..4,
        volumes in prop::collection::btree_set("v[0-4]", 0..4),
        socket in prop::bool::weighted(0.2),
        annotations in annotations(),
        labels in prop::collection::btree_map("app|version|topology.istio.io/network", "[a-z]{1,8}", 0..3),
        secrets in prop::collection::vec(Just("own"), 0..2),
    ) -> Value {
        let mut app = app;
        if let Some(proxy) = proxy {
            app.insert(at.min(app.len()), proxy);
        }
        let mut volumes: Vec<Value> = volumes.into_iter().map(|name| json!({"name": name, "configMap": {"name": "c"}})).collect();
        if socket {
            volumes.push(json!({"name": "workload-socket", "csi": {"driver": "csi.example.com"}}));
        }
        json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "p", "labels": labels, "annotations": annotations, "x-unknown": 1},
            "spec": {
                "initContainers": init, "containers": app, "volumes": volumes, "x-unknown": {"deep": [null, 1.5]},
                "imagePullSecrets": secrets.into_iter().map(|name| json!({"name": name})).collect::<Vec<_>>(),
            },
        })
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(1_000) })]

    #[test]
    fn the_users_things_are_kept_in_order(pod in pods(), native: bool, cni: bool) {
        let merged = inject(&injector(native, cni), &pod).unwrap();
        let templates = pod["metadata"]["annotations"]["inject.istio.io/templates"].as_str().unwrap_or("sidecar");
        let patches_apps = templates.starts_with("grpc");
        for field in ["containers", "initContainers"] {
            let of_user = |items: &[Value]| -> Vec<Value> {
                let added = ["grpc-bootstrap-init"];
                items.iter().filter(|c| !OURS.contains(&name(c)) && !added.contains(&name(c))).map(untouched).collect()
            };
            let (before, mut after) = (of_user(list(&pod, field)), of_user(list(&merged, field)));
            if patches_apps && field == "containers" {
                // These templates add to the application's own containers; what was there stays, in order.
                for (before, after) in before.iter().zip(after.iter_mut()) {
                    let kept: Vec<Value> = after["env"].as_array().into_iter().flatten()
                        .filter(|entry| !name(entry).starts_with("GRPC_")).cloned().collect();
                    prop_assert_eq!(&Value::Array(kept), &before["env"]);
                    after["env"] = before["env"].clone();
                    after.as_object_mut().map(|map| map.remove("volumeMounts"));
                }
            }
            prop_assert_eq!(before, after);
        }
        let kept: Vec<&Value> = list(&merged, "volumes").iter()
            .filter(|volume| list(&pod, "volumes").iter().any(|own| name(own) == name(volume))).collect();
        let before: Vec<&str> = list(&pod, "volumes").iter().map(name).collect();
        let user_only: Vec<&str> = kept.iter().map(|volume| name(volume)).filter(|name| *name != "workload-socket").collect();
        prop_assert_eq!(user_only, before.iter().copied().filter(|name| *name != "workload-socket").collect::<Vec<_>>());
        for own in list(&pod, "volumes") {
            prop_assert!(kept.contains(&own), "{own} was changed");
        }
        prop_assert_eq!(&merged["spec"]["x-unknown"], &pod["spec"]["x-unknown"]);
        prop_assert_eq!(&merged["metadata"]["x-unknown"], &pod["metadata"]["x-unknown"]);
        for (key, value) in pod["metadata"]["labels"].as_object().into_iter().flatten() {
            prop_assert_eq!(&merged["metadata"]["labels"][key], value);
        }
    }

    #[test]
    fn injecting_twice_is_injecting_once(pod in pods(), native: bool, cni: bool) {
        let injector = injector(native, cni);
        let once = inject(&injector, &pod).unwrap();
        let twice = inject(&injector, &once).unwrap();
        prop_assert_eq!(serde_json::to_string(&diff(&once, &twice)).unwrap(), "[]");
        // Another webhook adds a container, a volume and an annotation in between.
        let mut changed = once.clone();
        changed["spec"]["containers"].as_array_mut().unwrap().push(json!({"name": "late", "image": "x"}));
        changed["spec"]["volumes"].as_array_mut().unwrap().push(json!({"name": "late", "emptyDir": {}}));
        changed["metadata"]["annotations"]["late"] = json!("1");
        let again = inject(&injector, &changed).unwrap();
        prop_assert!(list(&again, "containers").iter().any(|c| name(c) == "late"));
        prop_assert!(list(&again, "volumes").iter().any(|v| name(v) == "late"));
        let count = |pod: &Value| ["containers", "initContainers"].iter().map(|field| list(pod, field).len()).sum::<usize>();
        prop_assert_eq!(count(&again), count(&once) + 1);
        prop_assert_eq!(inject(&injector, &again).unwrap(), again);
    }

    #[test]
    fn the_patch_gives_the_pod_and_kubernetes_reads_it(pod in pods(), native: bool, cni: bool) {
        let injector = injector(native, cni);
        let merged = inject(&injector, &pod).unwrap();
        prop_assert_eq!(&diff(&pod, &merged).apply(&pod).unwrap(), &merged);
        // The types know any integer; the API server knows ports.
        prop_assert_eq!(bad_ports(&merged["spec"], ""), Vec::<String>::new());
        let mut known = merged;
        let read: k8s_openapi::api::core::v1::Pod = serde_json::from_value(known.clone()).unwrap();
        let written = serde_json::to_value(&read).unwrap();
        // What Kubernetes' types do not know would be pruned: nothing of ours may be.
        remove_unknown(&mut known);
        prop_assert_eq!(without_empty(&known), without_empty(&written));
    }

    #[test]
    fn pods_come_back_but_for_what_is_said(
        pod in pods(), native: bool, cni: bool, pull: bool,
        template in prop::sample::select(vec!["sidecar", "gateway", "grpc-agent", "grpc-simple"]),
    ) {
        let mut pod = plain(pod);
        pod["metadata"]["annotations"]["inject.istio.io/templates"] = json!(template);
        if pull {
            pod["spec"]["imagePullSecrets"] = json!([{"name": "own"}, {"name": "pull"}]);
        }
        let (injected, _) = inject_document(&injector(native, cni), &Cluster::default(), &pod).unwrap();
        let back = uninject(&injected).unwrap();
        let warnings = back.warnings.join("\n");
        let mut document = back.document;
        let mut expected = pod;
        // Each difference is one that a warning names.
        if pull && template != "grpc-simple" {
            prop_assert!(warnings.contains("pull secrets removed") && warnings.contains("pull"), "{}", warnings);
            expected["spec"]["imagePullSecrets"] = json!([{"name": "own"}]);
        }
        if template == "gateway" {
            prop_assert!(warnings.contains("spec.securityContext is left"), "{}", warnings);
            document["spec"].as_object_mut().unwrap().remove("securityContext");
        }
        let annotations = document["metadata"]["annotations"].as_object_mut().unwrap();
        for key in annotations.keys().cloned().collect::<Vec<_>>() {
            if expected["metadata"]["annotations"].get(&key).is_none() {
                prop_assert!(warnings.contains(&key), "{} stays and {}", key, warnings);
                annotations.remove(&key);
            }
        }
        prop_assert_eq!(without_empty(&document), without_empty(&expected));
    }

    #[test]
    fn arbitrary_bytes_get_an_answer(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        mesh_inject::fuzzing::review(&bytes);
        mesh_inject::fuzzing::annotation(&bytes);
        mesh_inject::fuzzing::patch(&bytes);
    }

    #[test]
    fn damaged_reviews_get_an_answer(pod in pods(), at in any::<prop::sample::Index>(), byte: u8) {
        let mut bytes = json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
            "request": {"uid": "u", "operation": "CREATE", "object": pod}}).to_string().into_bytes();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        let injector = injector(true, false);
        let request = HttpRequest { content_type: Some("application/json"), path: "/inject", body: &bytes };
        let reply = injector.review(&request, &Cluster::default());
        let body: Value = serde_json::from_slice(&reply.body).unwrap();
        prop_assert!(body["response"]["allowed"].is_boolean());
    }
}

/// Without what `uninject` says it cannot restore.
fn plain(mut pod: Value) -> Value {
    pod["metadata"]["annotations"] = json!({"example.com/own": "kept"});
    pod["metadata"]["labels"].as_object_mut().map(|map| map.remove("topology.istio.io/network"));
    let spec = &mut pod["spec"];
    spec["containers"].as_array_mut().expect("a list").retain(|item| name(item) != "istio-proxy");
    for field in ["containers", "initContainers"] {
        for container in spec[field].as_array_mut().expect("a list") {
            container.as_object_mut().map(|map| map.remove("ports"));
            for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
                if container[probe]["httpGet"]["port"].is_string() {
                    container[probe]["httpGet"]["port"] = json!(80);
                }
                if container[probe].is_null() {
                    container.as_object_mut().map(|map| map.remove(probe));
                }
            }
        }
    }
    pod
}

/// Places of numbers for ports outside of 1 to 65535.
fn bad_ports(value: &Value, place: &str) -> Vec<String> {
    let port = |key: &str| ["port", "containerPort"].contains(&key);
    match value {
        Value::Object(map) => map
            .iter()
            .flat_map(|(key, value)| match value {
                Value::Number(number)
                    if port(key) && !number.as_i64().is_some_and(|n| (1..=65535).contains(&n)) =>
                {
                    vec![format!("{place}.{key}: {number}")]
                }
                value => bad_ports(value, &format!("{place}.{key}")),
            })
            .collect(),
        Value::Array(items) => {
            items.iter().enumerate().flat_map(|(i, item)| bad_ports(item, &format!("{place}[{i}]"))).collect()
        }
        _ => Vec::new(),
    }
}

fn remove_unknown(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.remove("x-unknown");
            map.values_mut().for_each(remove_unknown);
        }
        Value::Array(items) => items.iter_mut().for_each(remove_unknown),
        _ => {}
    }
}

/// Without empty lists, maps and nulls, which typed clients drop.
fn without_empty(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            let kept = map.iter().map(|(key, value)| (key.clone(), without_empty(value)));
            Value::Object(kept.filter(|(_, value)| !empty(value)).collect())
        }
        Value::Array(items) => items.iter().map(without_empty).collect(),
        scalar => scalar.clone(),
    }
}

fn empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Object(map) => map.is_empty(),
        Value::Array(items) => items.is_empty(),
        _ => false,
    }
}
