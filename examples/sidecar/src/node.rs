//! The xDS node: who this proxy says it is, in the fields that an Istio-like control plane reads.

use mesh_xds::pb::envoy::config::core::v3::{Node, node::UserAgentVersionType};
use serde_json::{Map, Value};

use crate::environment::Environment;

/// Prefix of variables that become metadata as they are.
const META: &str = "ISTIO_META_";
/// Prefix of variables whose JSON object becomes metadata, member by member.
const META_JSON: &str = "ISTIO_METAJSON_";

/// Builds the node: id `sidecar~ip~pod.ns~ns.svc.domain` and metadata.
pub fn node(env: &Environment) -> Node {
    let Environment { instance_ip, pod_name, namespace, domain, .. } = env;
    Node {
        id: format!("sidecar~{instance_ip}~{pod_name}.{namespace}~{namespace}.svc.{domain}"),
        cluster: service_cluster(env),
        metadata: Some(to_struct(metadata(env))),
        user_agent_name: "mesh-sidecar".into(),
        user_agent_version_type: Some(UserAgentVersionType::UserAgentVersion(
            env!("CARGO_PKG_VERSION").into(),
        )),
        client_features: vec!["xds.config.supports-resource-ttl".into()],
        ..Node::default()
    }
}

/// The metadata as JSON.
pub fn metadata(env: &Environment) -> Map<String, Value> {
    let mut out = Map::new();
    for (name, value) in &env.vars {
        if let Some(key) = name.strip_prefix(META) {
            if !key.is_empty() && !value.is_empty() {
                out.insert(key.to_owned(), meta_value(key, value));
            }
        } else if name.starts_with(META_JSON)
            && let Ok(Value::Object(members)) = serde_json::from_str(value)
        {
            out.extend(members);
        }
    }
    let ips = std::iter::once(&env.instance_ip).chain(&env.extra_ips).map(ToString::to_string);
    let mut set = |key: &str, value: Value| {
        out.insert(key.to_owned(), value);
    };
    set("NAME", env.pod_name.clone().into());
    set("NAMESPACE", env.namespace.clone().into());
    set("SERVICE_ACCOUNT", env.service_account.clone().into());
    set("INSTANCE_IPS", ips.collect::<Vec<_>>().join(",").into());
    set("LABELS", strings(&env.labels));
    set("ANNOTATIONS", strings(&env.annotations));
    set("PROXY_CONFIG", Value::Object(env.proxy_config.clone()));
    set("ENVOY_STATUS_PORT", env.health_port.into());
    set("ENVOY_PROMETHEUS_PORT", env.prometheus_port.into());
    set("TRUST_DOMAIN", env.trust_domain.clone().into());
    set("PILOT_SAN", vec![Value::from(host(&env.discovery_address))].into());
    if !out.contains_key("MESH_ID") {
        out.insert("MESH_ID".into(), env.trust_domain.clone().into());
    }
    if !out.contains_key("CLUSTER_ID") {
        out.insert("CLUSTER_ID".into(), "Kubernetes".into());
    }
    out
}

/// The host of `host:port`.
pub fn host(address: &str) -> &str {
    address.rsplit_once(':').map_or(address, |(host, _)| host.trim_matches(['[', ']']))
}

fn meta_value(key: &str, value: &str) -> Value {
    match key {
        // The injector writes a JSON list with line breaks.
        "POD_PORTS" => serde_json::from_str(value).unwrap_or_else(|_| value.into()),
        _ => value.into(),
    }
}

fn strings(map: &std::collections::BTreeMap<String, String>) -> Value {
    map.iter().map(|(k, v)| (k.clone(), Value::from(v.clone()))).collect::<Map<_, _>>().into()
}

fn service_cluster(env: &Environment) -> String {
    let name = ["service.istio.io/canonical-name", "app.kubernetes.io/name", "app"]
        .iter()
        .find_map(|label| env.labels.get(*label).filter(|v| !v.is_empty()).cloned())
        .or_else(|| env.var("ISTIO_META_WORKLOAD_NAME").map(str::to_owned))
        .unwrap_or_else(|| "istio-proxy".into());
    format!("{name}.{}", env.namespace)
}

fn to_struct(map: Map<String, Value>) -> prost_types::Struct {
    prost_types::Struct { fields: map.into_iter().map(|(k, v)| (k, to_value(v))).collect() }
}

fn to_value(value: Value) -> prost_types::Value {
    use prost_types::value::Kind;
    let kind = match value {
        Value::Null => Kind::NullValue(0),
        Value::Bool(b) => Kind::BoolValue(b),
        Value::Number(n) => Kind::NumberValue(n.as_f64().unwrap_or_default()),
        Value::String(s) => Kind::StringValue(s),
        Value::Array(items) => {
            Kind::ListValue(prost_types::ListValue { values: items.into_iter().map(to_value).collect() })
        }
        Value::Object(map) => Kind::StructValue(to_struct(map)),
    };
    prost_types::Value { kind: Some(kind) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::ProxyArgs;
    use crate::environment::tests::pod;

    #[test]
    fn node_names_the_pod() {
        let mut env = Environment::from_vars(pod(), &ProxyArgs::default()).unwrap();
        env.labels.insert("app".into(), "reviews".into());
        let node = node(&env);
        assert_eq!(node.id, "sidecar~10.8.0.3~reviews-v1-0.shop~shop.svc.cluster.local");
        assert_eq!(node.cluster, "reviews.shop");
        let meta = metadata(&env);
        assert_eq!(meta["NAMESPACE"], "shop");
        assert_eq!(meta["CLUSTER_ID"], "Kubernetes");
        assert_eq!(meta["LABELS"]["app"], "reviews");
        assert_eq!(meta["POD_PORTS"][0]["containerPort"], 9080);
        assert_eq!(meta["PROXY_CONFIG"]["statusPort"], 15120);
        assert_eq!(meta["PILOT_SAN"][0], "istiod.istio-system.svc");
        assert!(!meta.contains_key("ENABLE_HBONE"), "empty values are not facts");
    }
}
