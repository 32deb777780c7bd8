//! Small tables of single functions, replayed through the public interface.

use std::collections::BTreeMap;
use std::path::Path;

use libtest_mimic::{Failed, Trial};
use mesh_inject::{Cluster, Injector, LabelSelector, NativeSidecars, Request, Settings, path_environment};
use serde_json::{Map, Value, json};

use crate::json_file;

type Check = fn(&Value) -> Result<(), Failed>;

/// (file, table, check)
const TABLES: [(&str, &str, Check); 11] = [
    ("webhook", "TestInjectRequired", decision),
    ("webhook", "TestParseInjectEnvs", path),
    ("webhook", "TestEnablePrometheusAggregation", prometheus_enabled),
    ("webhook", "TestGetPrometheusScrapeConfigurationMultiTarget", scrape_targets),
    ("webhook", "TestDetectNativeSidecar", native_default),
    ("inject", "TestNativeSidecarAnnotationOverride", native_annotation),
    ("inject", "TestProxyImage", image),
    ("template", "TestOtelResourceAttributes", otel),
    ("validate", "TestValidateResourceQuantity", quantity),
    ("validate", "TestValidateAnnotations", annotations),
    ("app_probe", "TestDumpAppGRPCProbers", probers),
];

pub(crate) fn trials(folder: &Path) -> Vec<Trial> {
    let mut trials = Vec::new();
    for (file, table, check) in TABLES {
        let data = json_file(&folder.join(format!("pkg__kube__inject__{file}.json")));
        let rows = data["tests"][table][0]["rows"].as_array().cloned().unwrap_or_default();
        assert!(!rows.is_empty(), "{file}: no table {table}");
        for (i, row) in rows.into_iter().enumerate() {
            // Rows whose input was code that could not be restated as data.
            if row["in"]["$call"] == json!("?") {
                continue;
            }
            let name = row["name"]
                .as_str()
                .or_else(|| row["desc"].as_str())
                .or_else(|| row["meta"]["name"].as_str());
            let name = format!("tables::{table}::{i:02} {}", name.unwrap_or_default());
            trials.push(Trial::test(name, move || check(&row)));
        }
    }
    trials
}

fn expect<T: PartialEq + std::fmt::Debug>(ours: &T, theirs: &T) -> Result<(), Failed> {
    if ours == theirs { Ok(()) } else { Err(format!("{ours:?} instead of {theirs:?}").into()) }
}

fn inject(settings: Settings, pod: &Value) -> Result<Value, Failed> {
    let namespace = pod["metadata"]["namespace"].as_str().unwrap_or_default().to_owned();
    Ok(Injector::new(settings)?.inject(&Request::new(pod, &namespace, &Cluster::default()))?.pod)
}

fn proxy(pod: &Value) -> Value {
    ["containers", "initContainers"]
        .iter()
        .filter_map(|list| pod["spec"][list].as_array())
        .flatten()
        .find(|container| container["name"] == "istio-proxy")
        .cloned()
        .unwrap_or_default()
}

fn env(pod: &Value, name: &str) -> Value {
    let env = proxy(pod)["env"].as_array().cloned().unwrap_or_default();
    env.into_iter().find(|entry| entry["name"] == name).map_or(Value::Null, |entry| entry["value"].clone())
}

fn decision(row: &Value) -> Result<(), Failed> {
    let config = &row["config"];
    let selectors = |field: &str| -> Result<Vec<LabelSelector>, Failed> {
        let items = config[field].as_array().cloned().unwrap_or_default();
        items.iter().map(|item| Ok(LabelSelector::from_json(field, &from_code(item))?)).collect()
    };
    let settings = Settings {
        policy: config["policy"].as_str().unwrap_or_default().to_owned(),
        never_inject: selectors("neverInjectSelector")?,
        always_inject: selectors("alwaysInjectSelector")?,
        ..Settings::default()
    };
    let pod = json!({"metadata": row["meta"], "spec": row["podSpec"]});
    let namespace = row["meta"]["namespace"].as_str().unwrap_or_default();
    let decision = Injector::new(settings)?.decide(&pod, namespace);
    expect(&Some(decision.is_inject()), &row["want"].as_bool())
}

/// A selector that the table could only keep as code: `parseToLabelSelector(t, "KEY")`, which asks for the key.
fn from_code(item: &Value) -> Value {
    let code = item["$expr"].as_str().and_then(|text| serde_json::from_str::<Value>(text).ok());
    match code.as_ref().and_then(|code| code["$un"][1]["args"][1].as_str()) {
        Some(key) => json!({"matchExpressions": [{"key": key, "operator": "Exists"}]}),
        None => item.clone(),
    }
}

fn path(row: &Value) -> Result<(), Failed> {
    let wanted: BTreeMap<String, String> = serde_json::from_value(row["want"].clone())?;
    expect(&path_environment(row["in"].as_str().unwrap_or_default()), &wanted)
}

fn prometheus_enabled(row: &Value) -> Result<(), Failed> {
    let mesh = if row["mesh"].is_null() { json!({}) } else { row["mesh"].clone() };
    let pod = json!({"metadata": {"annotations": row["anno"]}, "spec": {"containers": [{"name": "a"}]}});
    let merged = inject(Settings { mesh, ..Settings::default() }, &pod)?;
    let enabled = merged["metadata"]["annotations"].get("prometheus.io/scrape").is_some();
    expect(&Some(enabled), &row["want"].as_bool())
}

fn scrape_targets(row: &Value) -> Result<(), Failed> {
    let pod =
        json!({"metadata": {"annotations": row["annotations"]}, "spec": {"containers": [{"name": "a"}]}});
    let merged = inject(Settings::default(), &pod)?;
    let text = env(&merged, "ISTIO_PROMETHEUS_ANNOTATIONS");
    let told: Value = text.as_str().map_or(Ok(Value::Null), serde_json::from_str)?;
    expect(&told["targets"], &row["wantTargets"])
}

fn native_default(row: &Value) -> Result<(), Failed> {
    let setup = row["setup"]["$func"].as_str().unwrap_or_default();
    let mode = if setup.contains("Disabled") {
        NativeSidecars::Never
    } else if setup.contains("ModeEnabled") {
        NativeSidecars::Always
    } else {
        NativeSidecars::Auto
    };
    let mut cluster = Cluster::default();
    for (i, node) in row["nodes"].as_array().into_iter().flatten().enumerate() {
        let version = node["status"]["nodeInfo"]["kubeletVersion"].as_str().unwrap_or_default();
        let name = node["metadata"]["name"].as_str().map_or_else(|| format!("node-{i}"), str::to_owned);
        cluster.kubelets.insert(name, version.to_owned());
    }
    expect(&Some(cluster.native_sidecars(mode, &json!({}))), &row["want"].as_bool())
}

fn native_annotation(row: &Value) -> Result<(), Failed> {
    let native = row["nativeSidecar"].as_bool().unwrap_or_default();
    let native_sidecars = if native { NativeSidecars::Always } else { NativeSidecars::Never };
    let pod =
        json!({"metadata": {"annotations": row["annotations"]}, "spec": {"containers": [{"name": "a"}]}});
    let merged = inject(Settings { native_sidecars, ..Settings::default() }, &pod)?;
    let stands = |list: &str| {
        merged["spec"][list]
            .as_array()
            .into_iter()
            .flatten()
            .any(|container| container["name"] == "istio-proxy")
    };
    let list = row["expectContainer"].as_str().unwrap_or_default();
    expect(&(stands(list), stands("containers") && stands("initContainers")), &(true, false))
}

fn image(row: &Value) -> Result<(), Failed> {
    let values = json!({"global": {"hub": row["v"]["args"][0], "tag": row["v"]["args"][1], "proxy": {"image": "proxyv2"}}});
    let mut settings = Settings { values, ..Settings::default() };
    if let Some(kind) = row["pc"]["args"][0].as_str() {
        settings.mesh = json!({"defaultConfig": {"image": {"imageType": kind}}});
    }
    let mut annotations = Map::new();
    if let Some(kind) = row["ann"]["args"][0].as_str() {
        annotations.insert("sidecar.istio.io/proxyImageType".to_owned(), json!(kind));
    }
    let pod = json!({"metadata": {"annotations": annotations}, "spec": {"containers": [{"name": "a"}]}});
    expect(&proxy(&inject(settings, &pod)?)["image"], &row["want"])
}

fn otel(row: &Value) -> Result<(), Failed> {
    let conventions = json!({"extensionProviders": [{"name": "otel", "opentelemetry": {"serviceAttributeEnrichment": "OTEL_SEMANTIC_CONVENTIONS"}}]});
    let mesh = if row["mc"].get("$call").is_some() { conventions } else { row["mc"].clone() };
    let pod = json!({
        "metadata": {"namespace": row["namespace"], "annotations": row["annotations"], "labels": row["labels"]},
        "spec": {"containers": row["containers"]},
    });
    let merged = inject(Settings { mesh, ..Settings::default() }, &pod)?;
    let ours = env(&merged, "OTEL_RESOURCE_ATTRIBUTES").as_str().unwrap_or_default().to_owned();
    expect(&ours, &row["want"].as_str().unwrap_or_default().to_owned())
}

fn quantity(row: &Value) -> Result<(), Failed> {
    let pod = json!({"metadata": {"annotations": {"sidecar.istio.io/proxyCPU": row["value"]}}, "spec": {}});
    expect(&Some(inject(Settings::default(), &pod).is_err()), &row["wantErr"].as_bool())
}

fn annotations(row: &Value) -> Result<(), Failed> {
    let pod = json!({"metadata": {"annotations": row["annotations"]}, "spec": {}});
    expect(&Some(inject(Settings::default(), &pod).is_err()), &row["wantErr"].as_bool())
}

fn probers(row: &Value) -> Result<(), Failed> {
    let merged = inject(Settings::default(), &from_go(&row["pod"]))?;
    let ours: Value =
        serde_json::from_str(env(&merged, "ISTIO_KUBE_APP_PROBERS").as_str().unwrap_or_default())?;
    let theirs: Value = serde_json::from_str(row["expected"].as_str().unwrap_or_default())?;
    expect(&ours, &theirs)
}

/// The table's pods carry the field names of Go structs.
fn from_go(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            let mut result = Map::new();
            for (key, inner) in map {
                match (key.as_str(), inner.get("intVal")) {
                    ("probeHandler", _) => {
                        if let Value::Object(handler) = from_go(inner) {
                            result.extend(handler);
                        }
                    }
                    ("gRPC", _) => drop(result.insert("grpc".to_owned(), from_go(inner))),
                    ("hTTPGet", _) => drop(result.insert("httpGet".to_owned(), from_go(inner))),
                    ("tCPSocket", _) => drop(result.insert("tcpSocket".to_owned(), from_go(inner))),
                    (_, Some(number)) => drop(result.insert(key.clone(), number.clone())),
                    _ => drop(result.insert(key.clone(), from_go(inner))),
                }
            }
            Value::Object(result)
        }
        Value::Array(items) => Value::Array(items.iter().map(from_go).collect()),
        scalar => scalar.clone(),
    }
}
