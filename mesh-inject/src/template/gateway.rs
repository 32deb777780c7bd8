//! The `gateway` template: a proxy at the edge, without interception.

use serde_json::{Map, Value, json};

use super::TemplateContext;
use super::parts::{self, Env};
use crate::annotation as a;

pub(super) fn render(context: &TemplateContext<'_>) -> Value {
    let values = context.values;
    let mut proxy = Map::new();
    let mut set = |key: &str, value: Value| proxy.insert(key.to_owned(), value);
    set("name", json!(a::PROXY_CONTAINER));
    set("image", json!(parts::container_image(context, &values.proxy_image, false)));
    set("ports", json!([{"containerPort": 15090, "protocol": "TCP", "name": "http-envoy-prom"}]));
    set("args", json!(parts::proxy_args(context, "router")));
    if !values.lifecycle.is_null() {
        set("lifecycle", values.lifecycle.clone());
    }
    set("securityContext", json!({"runAsUser": context.uid, "runAsGroup": context.gid}));
    set("readinessProbe", parts::readiness_probe(context, 15021, false));
    set("env", Value::Array(env(context)));
    set("volumeMounts", Value::Array(mounts(context)));
    parts::image_pull_policy(&mut proxy, context);

    let mut spec = Map::new();
    spec.insert(
        "securityContext".to_owned(),
        if values.gateway_security_context.is_null() {
            json!({"sysctls": [{"name": "net.ipv4.ip_unprivileged_port_start", "value": "0"}]})
        } else {
            values.gateway_security_context.clone()
        },
    );
    spec.insert("containers".to_owned(), Value::Array(vec![Value::Object(proxy)]));
    let mut volumes = vec![
        json!({"name": "workload-socket", "emptyDir": null}),
        json!({"name": "credential-socket", "emptyDir": {}}),
        parts::certificate_volume(context, json!({})),
    ];
    parts::proxy_volumes(context, "istio-envoy", &mut volumes);
    parts::agent_volumes(context, &mut volumes);
    parts::certs_volume(context, &mut volumes);
    spec.insert("volumes".to_owned(), Value::Array(volumes));
    parts::image_pull_secrets(&mut spec, context);
    parts::partial_pod(context, parts::annotations(context), spec)
}

fn env(context: &TemplateContext<'_>) -> Vec<Value> {
    let mut env = Env(Vec::with_capacity(24));
    parts::env_identity(&mut env, context);
    env.resource("ISTIO_CPU_LIMIT", "limits.cpu");
    parts::env_proxy(&mut env, context);
    env.resource("GOMEMLIMIT", "limits.memory");
    parts::env_compliance(&mut env, context);
    parts::env_app_containers(&mut env, context);
    parts::env_cluster(&mut env, context);
    env.set("ISTIO_META_INTERCEPTION_MODE", context.proxy.interception_mode());
    parts::env_workload(&mut env, context, &context.workload.name);
    parts::env_bootstrap(&mut env, context);
    parts::env_mesh(&mut env, context);
    parts::env_metadata(&mut env, context);
    env.0
}

fn mounts(context: &TemplateContext<'_>) -> Vec<Value> {
    let mut mounts = vec![
        json!({"name": "workload-socket", "mountPath": "/var/run/secrets/workload-spiffe-uds"}),
        json!({"name": "credential-socket", "mountPath": "/var/run/secrets/credential-uds"}),
        parts::certificate_mount(context),
    ];
    if context.values.cert_provider == "istiod" {
        mounts.push(json!({"name": "istiod-ca-cert", "mountPath": "/var/run/secrets/istio"}));
    }
    parts::agent_mounts(context, "istio-envoy", &mut mounts);
    mounts
}
