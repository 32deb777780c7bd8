//! Every annotation and label that the injector reads: what it changes, and that a value which is ignored is not ignored in
//! silence. The list at the end is compared with the constants of the crate, so that no new one is forgotten.

use std::collections::BTreeSet;

use mesh_inject::{Cluster, Injected, Injector, NativeSidecars, Request, Settings, annotation as a};
use serde_json::{Value, json};

/// A pod after injection, and short ways to look at it.
struct Seen(Injected);

impl Seen {
    fn container(&self, name: &str) -> &Value {
        let spec = &self.0.pod["spec"];
        let all = ["initContainers", "containers"].iter().filter_map(|list| spec[*list].as_array()).flatten();
        all.into_iter().find(|c| c["name"] == name).unwrap_or(&Value::Null)
    }

    fn proxy(&self) -> &Value {
        self.container("istio-proxy")
    }

    fn init(&self) -> &Value {
        self.container("istio-init")
    }

    /// The value after a flag of the init container.
    fn flag(&self, flag: &str) -> &Value {
        let args = self.init()["args"].as_array().map_or(&[][..], Vec::as_slice);
        args.iter().position(|arg| arg == flag).and_then(|at| args.get(at + 1)).unwrap_or(&Value::Null)
    }

    fn proxy_argument(&self, prefix: &str) -> Value {
        let args = self.proxy()["args"].as_array().map_or(&[][..], Vec::as_slice);
        let found = args.iter().filter_map(Value::as_str).find_map(|arg| arg.strip_prefix(prefix));
        found.map_or(Value::Null, Value::from)
    }

    fn env(&self, name: &str) -> &Value {
        let env = self.proxy()["env"].as_array().map_or(&[][..], Vec::as_slice);
        env.iter().find(|entry| entry["name"] == name).map_or(&Value::Null, |entry| &entry["value"])
    }

    fn volume(&self, name: &str) -> &Value {
        let volumes = self.0.pod["spec"]["volumes"].as_array().map_or(&[][..], Vec::as_slice);
        volumes.iter().find(|volume| volume["name"] == name).unwrap_or(&Value::Null)
    }

    fn mount(&self, name: &str) -> &Value {
        let mounts = self.proxy()["volumeMounts"].as_array().map_or(&[][..], Vec::as_slice);
        mounts.iter().find(|mount| mount["name"] == name).unwrap_or(&Value::Null)
    }

    fn annotation(&self, key: &str) -> &Value {
        &self.0.pod["metadata"]["annotations"][key]
    }

    fn label(&self, key: &str) -> &Value {
        &self.0.pod["metadata"]["labels"][key]
    }

    fn app(&self) -> &Value {
        self.container("app")
    }
}

fn pod() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "web", "labels": {}, "annotations": {}},
        "spec": {"containers": [{
            "name": "app", "image": "example/app:1",
            "readinessProbe": {"httpGet": {"path": "/ok", "port": 8080}},
        }]},
    })
}

fn settings(values: Value, mesh: Value) -> Settings {
    Settings { values, mesh, ..Settings::default() }
}

fn plain() -> Settings {
    settings(json!({}), json!({}))
}

fn multus() -> Settings {
    settings(json!({"pilot": {"cni": {"enabled": true, "provider": "multus"}}}), json!({}))
}

fn inject(settings: Settings, pod: &Value) -> Seen {
    let injector = Injector::new(settings).expect("the settings are good");
    Seen(injector.inject(&Request::new(pod, "shop", &Cluster::default())).expect("the pod is good"))
}

fn with_annotation(settings: Settings, key: &str, value: &str) -> Seen {
    let mut pod = pod();
    pod["metadata"]["annotations"][key] = json!(value);
    inject(settings, &pod)
}

/// What a reader of [`Seen`] finds, and what it should find.
type Look = fn(&Seen) -> Value;

#[test]
fn annotations_of_the_sidecar() {
    let resources: Look = |seen| seen.proxy()["resources"].clone();
    let readiness: Look = |seen| seen.proxy()["readinessProbe"].clone();
    let probe = |field: &str, number: i64| {
        let mut probe = json!({"httpGet": {"path": "/healthz/ready", "port": 15021}, "timeoutSeconds": 3, "periodSeconds": 15, "failureThreshold": 4});
        probe[field] = json!(number);
        probe
    };
    let rows: Vec<(&str, &str, Look, Value)> = vec![
        (
            a::PROXY_IMAGE,
            "own.example/proxy:2",
            |seen| seen.proxy()["image"].clone(),
            json!("own.example/proxy:2"),
        ),
        (
            a::PROXY_IMAGE,
            "own.example/proxy:2",
            |seen| seen.init()["image"].clone(),
            json!("own.example/proxy:2"),
        ),
        (a::PROXY_IMAGE, "proxy", |seen| seen.proxy()["image"].clone(), json!("mesh/mesh-sidecar:0.1.0")),
        (
            a::PROXY_IMAGE_TYPE,
            "debug",
            |seen| seen.proxy()["image"].clone(),
            json!("mesh/mesh-sidecar:0.1.0-debug"),
        ),
        (
            a::PROXY_IMAGE_TYPE,
            "default",
            |seen| seen.proxy()["image"].clone(),
            json!("mesh/mesh-sidecar:0.1.0"),
        ),
        (a::PROXY_CPU, "250m", resources, json!({"requests": {"cpu": "250m"}})),
        (a::PROXY_MEMORY, "1Gi", resources, json!({"requests": {"memory": "1Gi"}})),
        (a::PROXY_CPU_LIMIT, "1", resources, json!({"limits": {"cpu": "1"}})),
        (a::PROXY_MEMORY_LIMIT, "2Gi", resources, json!({"limits": {"memory": "2Gi"}})),
        (a::LOG_LEVEL, "debug", |seen| seen.proxy_argument("--proxyLogLevel="), json!("debug")),
        (
            a::COMPONENT_LOG_LEVEL,
            "misc:info",
            |seen| seen.proxy_argument("--proxyComponentLogLevel="),
            json!("misc:info"),
        ),
        (
            a::AGENT_LOG_LEVEL,
            "all:debug",
            |seen| seen.proxy_argument("--log_output_level="),
            json!("all:debug"),
        ),
        (
            a::CAP_NET_BIND_SERVICE,
            "true",
            |seen| seen.proxy()["securityContext"]["capabilities"]["add"].clone(),
            json!(["NET_BIND_SERVICE"]),
        ),
        (
            a::CAP_NET_BIND_SERVICE,
            "true",
            |seen| seen.proxy()["securityContext"]["runAsUser"].clone(),
            json!(0),
        ),
        (
            a::CAP_NET_BIND_SERVICE,
            "false",
            |seen| seen.proxy()["securityContext"]["runAsUser"].clone(),
            json!(1337),
        ),
        (
            a::BOOTSTRAP_OVERRIDE,
            "mine",
            |seen| seen.volume("custom-bootstrap-volume")["configMap"]["name"].clone(),
            json!("mine"),
        ),
        (
            a::BOOTSTRAP_OVERRIDE,
            "mine",
            |seen| seen.mount("custom-bootstrap-volume")["mountPath"].clone(),
            json!("/etc/istio/custom-bootstrap"),
        ),
        (
            a::BOOTSTRAP_OVERRIDE,
            "mine",
            |seen| seen.env("ISTIO_BOOTSTRAP_OVERRIDE").clone(),
            json!("/etc/istio/custom-bootstrap/custom_bootstrap.json"),
        ),
        (
            a::USER_VOLUME,
            r#"{"extra":{"emptyDir":{"medium":"Memory"}}}"#,
            |seen| seen.volume("extra").clone(),
            json!({"name": "extra", "emptyDir": {"medium": "Memory"}}),
        ),
        (
            a::USER_VOLUME_MOUNT,
            r#"{"extra":{"mountPath":"/x","readOnly":true}}"#,
            |seen| seen.mount("extra").clone(),
            json!({"name": "extra", "mountPath": "/x", "readOnly": true}),
        ),
        (
            a::NATIVE_SIDECAR,
            "false",
            |seen| seen.0.pod["spec"]["containers"][1]["name"].clone(),
            json!("istio-proxy"),
        ),
        (
            a::NATIVE_SIDECAR,
            "true",
            |seen| seen.0.pod["spec"]["initContainers"][1]["name"].clone(),
            json!("istio-proxy"),
        ),
        (
            a::REWRITE_PROBES,
            "false",
            |seen| seen.app()["readinessProbe"]["httpGet"]["path"].clone(),
            json!("/ok"),
        ),
        (
            a::REWRITE_PROBES,
            "perhaps",
            |seen| seen.app()["readinessProbe"]["httpGet"]["path"].clone(),
            json!("/app-health/app/readyz"),
        ),
        (
            a::STATUS_PORT,
            "15999",
            |seen| seen.app()["readinessProbe"]["httpGet"]["port"].clone(),
            json!(15999),
        ),
        (a::STATUS_PORT, "15999", |seen| seen.flag("-d").clone(), json!("15090,15021,15999")),
        (
            a::STATUS_PORT,
            "0",
            |seen| seen.app()["readinessProbe"]["httpGet"].clone(),
            json!({"path": "/ok", "port": 8080}),
        ),
        (a::STATUS_PORT, "0", |seen| seen.env("ISTIO_KUBE_APP_PROBERS").clone(), json!(null)),
        (a::STATUS_PORT, "0", readiness, json!(null)),
        (a::STATUS_PORT, "0", |seen| seen.proxy()["startupProbe"].clone(), json!(null)),
        (a::READINESS_INITIAL_DELAY, "7", readiness, probe("initialDelaySeconds", 7)),
        (a::READINESS_PERIOD, "8", readiness, probe("periodSeconds", 8)),
        (a::READINESS_FAILURES, "9", readiness, probe("failureThreshold", 9)),
        (
            a::PROXY_CONFIG,
            "concurrency: 3",
            |seen| seen.env("PROXY_CONFIG").clone(),
            json!("{\"concurrency\":3}\n"),
        ),
        (
            a::PROXY_CONFIG,
            "proxyMetadata: {ISTIO_META_DNS_CAPTURE: 'true'}",
            |seen| seen.env("ISTIO_META_DNS_CAPTURE").clone(),
            json!("true"),
        ),
        (
            a::PROXY_CONFIG,
            "proxyMetadata: {ISTIO_DUAL_STACK: 'true'}",
            |seen| seen.init()["env"].clone(),
            json!([{"name": "ISTIO_DUAL_STACK", "value": "true"}]),
        ),
        (
            a::PROXY_CONFIG,
            "proxyMetadata: {ISTIO_META_ENABLE_HBONE: 'true'}",
            |seen| seen.label(a::TUNNEL).clone(),
            json!("http"),
        ),
        (a::TEMPLATES, " gateway ", |seen| seen.proxy()["args"][1].clone(), json!("router")),
        (a::TEMPLATES, "grpc-agent", |seen| seen.env("DISABLE_ENVOY").clone(), json!("true")),
        (a::DEFAULT_CONTAINER, "mine", |seen| seen.annotation(a::DEFAULT_CONTAINER).clone(), json!("mine")),
        (
            a::DEFAULT_LOGS_CONTAINER,
            "mine",
            |seen| seen.annotation(a::DEFAULT_LOGS_CONTAINER).clone(),
            json!("mine"),
        ),
        (a::SECURE_METRICS_PORT, "7", |seen| seen.annotation(a::SECURE_METRICS_PORT).clone(), json!("7")),
        (
            "unknown.example.com/x",
            "kept",
            |seen| seen.annotation("unknown.example.com/x").clone(),
            json!("kept"),
        ),
    ];
    for (key, value, look, expected) in rows {
        assert_eq!(look(&with_annotation(plain(), key, value)), expected, "{key}={value}");
    }
}

#[test]
fn annotations_of_the_interception() {
    let rows: Vec<(&str, &str, Look, Value)> = vec![
        (a::INTERCEPTION_MODE, "TPROXY", |seen| seen.flag("-m").clone(), json!("TPROXY")),
        (
            a::INTERCEPTION_MODE,
            "TPROXY",
            |seen| seen.proxy()["securityContext"]["capabilities"]["add"].clone(),
            json!(["NET_ADMIN"]),
        ),
        (a::INTERCEPTION_MODE, "NONE", |seen| seen.init().clone(), json!(null)),
        (a::INCLUDE_OUTBOUND_RANGES, "10.0.0.0/8", |seen| seen.flag("-i").clone(), json!("10.0.0.0/8")),
        (a::INCLUDE_OUTBOUND_RANGES, "", |seen| seen.flag("-i").clone(), json!("")),
        (
            a::EXCLUDE_OUTBOUND_RANGES,
            "10.1.0.0/16,fd00::/8",
            |seen| seen.flag("-x").clone(),
            json!("10.1.0.0/16,fd00::/8"),
        ),
        (a::INCLUDE_INBOUND_PORTS, "80", |seen| seen.flag("-b").clone(), json!("80")),
        (a::INCLUDE_INBOUND_PORTS, "", |seen| seen.flag("-b").clone(), json!("")),
        (
            a::EXCLUDE_INBOUND_PORTS,
            "22, 23",
            |seen| seen.flag("-d").clone(),
            json!("15090,15021,22,23,15020"),
        ),
        (a::EXCLUDE_INBOUND_PORTS, "15020", |seen| seen.flag("-d").clone(), json!("15090,15021,15020")),
        (a::INCLUDE_OUTBOUND_PORTS, "3306", |seen| seen.flag("-q").clone(), json!("3306")),
        (a::EXCLUDE_OUTBOUND_PORTS, "5432", |seen| seen.flag("-o").clone(), json!("5432")),
        (a::EXCLUDE_INTERFACES, "net1", |seen| seen.flag("-c").clone(), json!("net1")),
        (a::KUBEVIRT_INTERFACES, "net2", |seen| seen.flag("-k").clone(), json!("net2")),
        (a::REROUTE_INTERFACES, "net3", |seen| seen.flag("-k").clone(), json!("net3")),
    ];
    for (key, value, look, expected) in rows {
        assert_eq!(look(&with_annotation(plain(), key, value)), expected, "{key}={value}");
    }
    let seen = with_annotation(multus(), a::CNI_NETWORKS, "own/net");
    assert_eq!(seen.annotation(a::CNI_NETWORKS), "own/net, default/istio-cni");
    assert!(seen.init().is_null() && seen.container("istio-validation").is_object());
    let seen = with_annotation(multus(), a::EXCLUDE_OUTBOUND_PORTS, "5432");
    assert_eq!(seen.annotation(a::EXCLUDE_OUTBOUND_PORTS), "5432");
    assert_eq!(seen.annotation(a::INTERCEPTION_MODE), "REDIRECT");
}

#[test]
fn annotations_of_metrics_and_tracing() {
    let published: Look = |seen| seen.env("ISTIO_PROMETHEUS_ANNOTATIONS").clone();
    let port: Look = |seen| seen.annotation("prometheus.io/port").clone();
    let rows: Vec<(&str, &str, Look, Value)> = vec![
        ("prometheus.io/port", "9000", published, json!(r#"{"scrape":"","path":"","port":"9000"}"#)),
        ("prometheus.io.port", "9000", published, json!(r#"{"scrape":"","path":"","port":"9000"}"#)),
        ("prometheus.io/port", "9000", port, json!("15020")),
        ("prometheus.io/path", "/m", published, json!(r#"{"scrape":"","path":"/m","port":""}"#)),
        ("prometheus.io/scrape", "false", port, json!(null)),
        (a::MERGE_METRICS, "false", port, json!(null)),
        (
            a::SCRAPE_TARGETS,
            "9001, 9002:/x",
            published,
            json!(
                r#"{"scrape":"","path":"/metrics","port":"9001","targets":[{"port":"9001","path":"/metrics"},{"port":"9002","path":"/x"}]}"#
            ),
        ),
    ];
    for (key, value, look, expected) in rows {
        assert_eq!(look(&with_annotation(plain(), key, value)), expected, "{key}={value}");
    }
    let datadog = || settings(json!({"global": {"proxy": {"tracer": "datadog"}}}), json!({}));
    let seen = with_annotation(datadog(), a::DATADOG_ENV, r#"{"DD_B":"2","DD_A":"1"}"#);
    assert_eq!((seen.env("DD_A"), seen.env("DD_B")), (&json!("1"), &json!("2")));
    let otel = || {
        settings(
            json!({}),
            json!({"extensionProviders": [{"name": "o", "opentelemetry": {
            "serviceAttributeEnrichment": "OTEL_SEMANTIC_CONVENTIONS"}}]}),
        )
    };
    for (key, expected) in [
        (a::OTEL_NAMESPACE, "service.namespace=x,service.version=1,service.instance.id=shop.$(POD_NAME).app"),
        (
            a::OTEL_VERSION,
            "service.namespace=shop,service.version=x,service.instance.id=shop.$(POD_NAME).app",
        ),
        (a::OTEL_INSTANCE, "service.namespace=shop,service.version=1,service.instance.id=x"),
    ] {
        assert_eq!(with_annotation(otel(), key, "x").env("OTEL_RESOURCE_ATTRIBUTES"), expected, "{key}");
    }
}

#[test]
fn labels() {
    let rows: Vec<(&str, &str, Look, Value)> = vec![
        (a::TLS_MODE, "disabled", |seen| seen.label(a::TLS_MODE).clone(), json!("disabled")),
        (a::CANONICAL_NAME, "shopfront", |seen| seen.label(a::CANONICAL_NAME).clone(), json!("shopfront")),
        (
            "app.kubernetes.io/name",
            "shopfront",
            |seen| seen.label(a::CANONICAL_NAME).clone(),
            json!("shopfront"),
        ),
        ("app", "shopfront", |seen| seen.label(a::CANONICAL_NAME).clone(), json!("shopfront")),
        ("none", "x", |seen| seen.label(a::CANONICAL_NAME).clone(), json!("web")),
        (a::CANONICAL_REVISION, "v2", |seen| seen.label(a::CANONICAL_REVISION).clone(), json!("v2")),
        ("app.kubernetes.io/version", "v2", |seen| seen.label(a::CANONICAL_REVISION).clone(), json!("v2")),
        ("version", "v2", |seen| seen.label(a::CANONICAL_REVISION).clone(), json!("v2")),
        ("none", "x", |seen| seen.label(a::CANONICAL_REVISION).clone(), json!("latest")),
        (a::WORKLOAD_NAME, "front", |seen| seen.env("ISTIO_META_WORKLOAD_NAME").clone(), json!("front")),
        (a::NETWORK, "net-9", |seen| seen.env("ISTIO_META_NETWORK").clone(), json!("net-9")),
    ];
    for (key, value, look, expected) in rows {
        let mut pod = pod();
        pod["metadata"]["labels"][key] = json!(value);
        assert_eq!(look(&inject(plain(), &pod)), expected, "{key}={value}");
    }
}

#[test]
fn a_value_that_is_ignored_is_not_ignored_in_silence() {
    for (key, value, more, expected) in [
        (a::PROXY_IMAGE, "proxy", None, "not a full image"),
        (a::NATIVE_SIDECAR, "yes", None, "it is read as \"true\""),
        (a::REWRITE_PROBES, "perhaps", None, "not a boolean"),
        (a::CAP_NET_BIND_SERVICE, "yes", None, "it is read as \"false\""),
        (a::KUBEVIRT_INTERFACES, "net1", Some((a::REROUTE_INTERFACES, "net2")), "wins"),
        (a::INCLUDE_OUTBOUND_PORTS, "http", None, "not a list of ports"),
        (
            a::EXCLUDE_OUTBOUND_PORTS,
            "80",
            Some((a::TEMPLATES, "gateway")),
            "nothing redirects this pod's traffic",
        ),
        (
            a::INTERCEPTION_MODE,
            "TPROXY",
            Some((a::TEMPLATES, "gateway")),
            "nothing redirects this pod's traffic",
        ),
        (a::SCRAPE_TARGETS, "9001,:/x", None, "the whole list is ignored"),
        (a::STATUS, "{", None, "taken as not injected yet"),
        (a::PROXY_CONFIG, "concurency: 2", None, "not a field of ProxyConfig"),
        (a::PROXY_IMAGE_TYPE, "debug", Some((a::PROXY_IMAGE, "h/own:1")), "names a full image and wins"),
        (a::DATADOG_ENV, "{}", None, "tracer is not datadog"),
        (a::OTEL_NAMESPACE, "x", None, "no extension provider"),
        (a::OTEL_VERSION, "x", None, "no extension provider"),
        (a::OTEL_INSTANCE, "x", None, "no extension provider"),
        (a::PROXY_CPU, "1", Some((a::TEMPLATES, "gateway")), "do not read it"),
        (a::PROXY_MEMORY, "1Gi", Some((a::TEMPLATES, "gateway")), "do not read it"),
        (a::PROXY_CPU_LIMIT, "1", Some((a::TEMPLATES, "gateway")), "do not read it"),
        (a::PROXY_MEMORY_LIMIT, "1Gi", Some((a::TEMPLATES, "gateway")), "do not read it"),
        (a::READINESS_INITIAL_DELAY, "1", Some((a::TEMPLATES, "gateway")), "do not read it"),
        (a::READINESS_PERIOD, "1", Some((a::TEMPLATES, "gateway")), "do not read it"),
        (a::READINESS_FAILURES, "1", Some((a::TEMPLATES, "gateway")), "do not read it"),
        (a::USER_VOLUME, "{}", Some((a::TEMPLATES, "gateway")), "do not read it"),
        (a::USER_VOLUME_MOUNT, "{}", Some((a::TEMPLATES, "grpc-agent")), "do not read it"),
        (a::CAP_NET_BIND_SERVICE, "true", Some((a::TEMPLATES, "gateway")), "do not read it"),
        (a::NATIVE_SIDECAR, "true", Some((a::TEMPLATES, "grpc-agent")), "do not read it"),
    ] {
        let mut pod = pod();
        pod["metadata"]["annotations"][key] = json!(value);
        if let Some((key, value)) = more {
            pod["metadata"]["annotations"][key] = json!(value);
        }
        let warnings: Vec<String> =
            inject(plain(), &pod).0.warnings.iter().map(ToString::to_string).collect();
        assert_eq!(warnings.len(), 1, "{key}={value}: {warnings:?}");
        assert!(warnings[0].contains(key) && warnings[0].contains(expected), "{warnings:?}");
    }
    let mut no_agent = pod();
    no_agent["metadata"]["annotations"] = json!({a::READINESS_PERIOD: "3", a::STATUS_PORT: "0"});
    let warnings: Vec<String> =
        inject(plain(), &no_agent).0.warnings.iter().map(ToString::to_string).collect();
    assert_eq!(warnings.len(), 2, "{warnings:?}");
    assert!(
        warnings[0].contains("status port is 0") && warnings[0].contains("probes of app"),
        "{warnings:?}"
    );
    assert!(warnings[1].contains("the sidecar has no probes"), "{warnings:?}");
    let warnings = with_annotation(multus(), a::CNI_NETWORKS, "[{]").0.warnings;
    assert!(warnings.iter().any(|warning| warning.to_string().contains("not a JSON list")), "{warnings:?}");
}

/// A template reads what the warning says that it does not: for each annotation that one template reads and another does
/// not, the outcome changes with the value under the first one only.
#[test]
fn what_a_template_does_not_read_changes_nothing() {
    for (key, value) in [
        (a::PROXY_CPU, "1"),
        (a::READINESS_PERIOD, "77"),
        (a::USER_VOLUME, r#"{"own":{"emptyDir":{}}}"#),
        (a::USER_VOLUME_MOUNT, r#"{"own":{"mountPath":"/own"}}"#),
        (a::CAP_NET_BIND_SERVICE, "true"),
        (a::NATIVE_SIDECAR, "false"),
    ] {
        for template in ["sidecar", "gateway", "grpc-agent"] {
            let mut without = pod();
            without["metadata"]["annotations"][a::TEMPLATES] = json!(template);
            let mut with = without.clone();
            with["metadata"]["annotations"][key] = json!(value);
            let (mut seen, plain) = (inject(plain(), &with), inject(plain(), &without).0.pod);
            let warned = seen.0.warnings.iter().any(|warning| warning.to_string().contains("do not read it"));
            seen.0.pod["metadata"]["annotations"].as_object_mut().expect("a map").remove(key);
            assert_eq!(warned, seen.0.pod == plain, "{key} under {template}");
        }
    }
}

/// A second look at a pod must not find fault with what the first one wrote.
#[test]
fn our_own_annotations_earn_no_warning() {
    for native in [NativeSidecars::Always, NativeSidecars::Never] {
        for cni in [false, true] {
            let settings = || Settings {
                native_sidecars: native,
                values: json!({"pilot": {"cni": {"enabled": cni, "provider": "multus"}}}),
                ..Settings::default()
            };
            let once = inject(settings(), &pod());
            assert!(once.0.warnings.is_empty(), "{:?}", once.0.warnings);
            let twice = inject(settings(), &once.0.pod);
            assert!(twice.0.warnings.is_empty(), "{:?}", twice.0.warnings);
            assert_eq!(twice.0.pod, once.0.pod);
        }
    }
}

/// Each constant of the crate stands in this file or, where it is about the decision and re-injection, in another test.
#[test]
fn none_is_forgotten() {
    let constants: BTreeSet<&str> = include_str!("../src/annotation.rs")
        .lines()
        .filter(|line| line.contains(": &str") && line.contains('/'))
        .filter_map(|line| line.strip_prefix("pub const ")?.split(':').next())
        .collect();
    assert!(constants.len() > 40, "the constants are read as text, and the text changed: {constants:?}");
    let elsewhere = ["INJECT", "OVERRIDES", "REVISION", "POD_SECURITY_ENFORCE"];
    let here = include_str!("annotations.rs");
    for constant in constants.iter().filter(|constant| !elsewhere.contains(constant)) {
        assert!(here.contains(&format!("a::{constant}")), "no test for annotation::{constant}");
    }
}
