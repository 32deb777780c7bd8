//! Templates for applications that speak xDS themselves.

use serde_json::{Map, Value, json};

use super::TemplateContext;
use super::parts::{self, Env};
use crate::annotation as a;
use crate::pod;

/// `grpc-agent`: the agent fetches certificates and configuration, the application has no proxy in its way.
pub(super) fn agent(context: &TemplateContext<'_>) -> Value {
    let values = context.values;
    let mut proxy = Map::new();
    let mut set = |key: &str, value: Value| proxy.insert(key.to_owned(), value);
    set("name", json!(a::PROXY_CONTAINER));
    set("image", json!(parts::container_image(context, &values.proxy_image, false)));
    set("ports", json!([{"containerPort": 15020, "protocol": "TCP", "name": "mesh-metrics"}]));
    set("args", json!(parts::proxy_args(context, "sidecar")));
    let wait = json!(["pilot-agent", "wait", "--url=http://localhost:15020/healthz/ready"]);
    set("lifecycle", json!({"postStart": {"exec": {"command": wait}}}));
    set("env", Value::Array(agent_env(context)));
    // Upstream puts resources and mounts behind the same condition as the probe; so must we, to agree.
    if context.status_port() != "0" {
        set("readinessProbe", parts::readiness_probe(context, 15020, true));
        set("resources", parts::resources(context));
        set("volumeMounts", Value::Array(agent_mounts(context)));
    }
    parts::image_pull_policy(&mut proxy, context);

    let mut containers = vec![Value::Object(proxy)];
    for container in context.app_containers() {
        containers.push(json!({
            "name": pod::name_of(container),
            "env": [
                {"name": "GRPC_XDS_EXPERIMENTAL_SECURITY_SUPPORT", "value": "true"},
                {"name": "GRPC_XDS_BOOTSTRAP", "value": "/etc/istio/proxy/grpc-bootstrap.json"},
            ],
            "volumeMounts": [
                {"name": "istio-data", "mountPath": "/var/lib/istio/data"},
                {"name": "istio-xds", "mountPath": "/etc/istio/proxy"},
                parts::certificate_mount(context),
            ],
        }));
    }
    let mut volumes = vec![
        json!({"name": "workload-socket", "emptyDir": null}),
        parts::certificate_volume(context, Value::Null),
    ];
    parts::proxy_volumes(context, "istio-xds", &mut volumes);
    parts::agent_volumes(context, &mut volumes);
    parts::certs_volume(context, &mut volumes);
    let mut annotations = parts::annotations(context);
    annotations.insert(a::REWRITE_PROBES.to_owned(), json!("false"));
    let mut spec = Map::new();
    spec.insert("containers".to_owned(), Value::Array(containers));
    spec.insert("volumes".to_owned(), Value::Array(volumes));
    parts::image_pull_secrets(&mut spec, context);
    parts::partial_pod(context, annotations, spec)
}

fn agent_env(context: &TemplateContext<'_>) -> Vec<Value> {
    let mut env = Env(Vec::with_capacity(22));
    env.set("ISTIO_META_GENERATOR", "grpc");
    env.set("OUTPUT_CERTS", "/var/lib/istio/data");
    parts::env_identity(&mut env, context);
    parts::env_proxy(&mut env, context);
    parts::env_app_containers(&mut env, context);
    parts::env_cluster(&mut env, context);
    parts::env_workload(&mut env, context, &context.workload.name);
    parts::env_bootstrap(&mut env, context);
    parts::env_mesh(&mut env, context);
    parts::env_metadata(&mut env, context);
    env.set("ISTIO_META_DNS_CAPTURE", "false");
    env.set("DISABLE_ENVOY", "true");
    env.0
}

fn agent_mounts(context: &TemplateContext<'_>) -> Vec<Value> {
    let mut mounts = vec![
        json!({"name": "workload-socket", "mountPath": "/var/run/secrets/workload-spiffe-uds"}),
        parts::certificate_mount(context),
    ];
    if context.values.cert_provider == "istiod" {
        mounts.push(json!({"name": "istiod-ca-cert", "mountPath": "/var/run/secrets/istio"}));
    }
    parts::agent_mounts(context, "istio-xds", &mut mounts);
    mounts
}

/// Where `grpc-simple` keeps the bootstrap file.
const SIMPLE_PATH: &str = "/var/lib/grpc/data/";

/// `grpc-simple`: only a bootstrap file, written by an init container.
pub(super) fn simple(context: &TemplateContext<'_>) -> Value {
    let mount = json!({"name": "grpc-io-proxyless-bootstrap", "mountPath": SIMPLE_PATH});
    let mut env = Env(Vec::new());
    env.field("INSTANCE_IP", "status.podIP");
    env.field("POD_NAME", "metadata.name");
    env.field("POD_NAMESPACE", "metadata.namespace");
    env.set("ISTIO_NAMESPACE", format!("{}\n", context.values.namespace));
    let containers: Vec<Value> = context
        .app_containers()
        .map(|container| {
            json!({
                "name": pod::name_of(container),
                "env": [
                    {"name": "GRPC_XDS_BOOTSTRAP", "value": format!("{SIMPLE_PATH}bootstrap.json")},
                    {"name": "GRPC_GO_LOG_VERBOSITY_LEVEL", "value": "99"},
                    {"name": "GRPC_GO_LOG_SEVERITY_LEVEL", "value": "info"},
                ],
                "volumeMounts": [mount],
            })
        })
        .collect();
    json!({
        "metadata": {"annotations": {a::REWRITE_PROBES: "false"}},
        "spec": {
            "initContainers": [{
                "name": "grpc-bootstrap-init",
                "image": "busybox:1.28",
                "volumeMounts": [mount],
                "env": env.0,
                "command": ["sh", "-c", bootstrap_script()],
            }],
            "containers": containers,
            "volumes": [{"name": "grpc-io-proxyless-bootstrap", "emptyDir": {}}],
        },
    })
}

/// A shell script that writes the bootstrap file with the pod's own name and address filled in.
fn bootstrap_script() -> String {
    let node = "NODE_ID=\"sidecar~${INSTANCE_IP}~${POD_NAME}.${POD_NAMESPACE}~cluster.local\"";
    let server = "SERVER_URI=\"dns:///istiod.${ISTIO_NAMESPACE}.svc:15010\"";
    let lines = [
        node,
        server,
        "echo '",
        "{",
        "  \"xds_servers\": [",
        "    {",
        "      \"server_uri\": \"'${SERVER_URI}'\",",
        "      \"channel_creds\": [{\"type\": \"insecure\"}],",
        "      \"server_features\" : [\"xds_v3\"]",
        "    }",
        "  ],",
        "  \"node\": {",
        "    \"id\": \"'${NODE_ID}'\",",
        "    \"metadata\": {",
        "      \"GENERATOR\": \"grpc\"",
        "    }",
        "  }",
        "}' > /var/lib/grpc/data/bootstrap.json",
    ];
    lines.join("\n")
}
