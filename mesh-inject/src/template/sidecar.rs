//! The `sidecar` template.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::TemplateContext;
use super::parts::{self, Env};
use crate::annotation as a;
use crate::error::InjectError;
use crate::json::{at, object};
use crate::pod;

pub(crate) mod cni;
mod init;
pub(crate) mod otel;

pub(super) fn render(context: &TemplateContext<'_>) -> Result<Value, InjectError> {
    let native = context.native();
    let mut spec = Map::new();
    let mut init_containers = Vec::new();
    if context.interception_mode() != "NONE" {
        init_containers.push(init::container(context));
    }
    let proxy = proxy(context, native)?;
    if native {
        init_containers.push(proxy);
    } else {
        spec.insert("containers".to_owned(), Value::Array(vec![proxy]));
    }
    if !init_containers.is_empty() {
        spec.insert("initContainers".to_owned(), Value::Array(init_containers));
    }
    spec.insert("volumes".to_owned(), Value::Array(volumes(context)?));
    parts::image_pull_secrets(&mut spec, context);

    let mut annotations = parts::annotations(context);
    if context.values.cni_enabled {
        cni::annotations(context, &mut annotations);
    }
    let mut labels = Map::new();
    labels.insert(a::TLS_MODE.to_owned(), json!(context.label(a::TLS_MODE).unwrap_or("istio")));
    if context.proxy.metadata().get("ISTIO_META_ENABLE_HBONE") == Some(&"true") {
        labels.insert(a::TUNNEL.to_owned(), json!(context.label(a::TUNNEL).unwrap_or("http")));
    }
    labels.insert(a::CANONICAL_NAME.to_owned(), Value::String(parts::canonical_name(context, true)));
    labels.insert(a::CANONICAL_REVISION.to_owned(), json!(parts::canonical_revision(context)));
    let metadata = object([("labels", Value::Object(labels)), ("annotations", Value::Object(annotations))]);
    Ok(object([("metadata", metadata), ("spec", Value::Object(spec))]))
}

fn proxy(context: &TemplateContext<'_>, native: bool) -> Result<Value, InjectError> {
    let values = context.values;
    let status_port = context.status_port();
    let mut proxy = Map::new();
    let mut set = |key: &str, value: Value| proxy.insert(key.to_owned(), value);
    set("name", json!(a::PROXY_CONTAINER));
    set("image", Value::String(parts::container_image(context, &values.proxy_image, false)));
    set("ports", json!([{"containerPort": 15090, "protocol": "TCP", "name": "http-envoy-prom"}]));
    if native {
        set("restartPolicy", json!("Always"));
    }
    set("args", Value::from(parts::proxy_args(context, "sidecar")));
    let hold = context.proxy.hold() == Some(true) || values.hold;
    if !values.lifecycle.is_null() {
        set("lifecycle", values.lifecycle.clone());
    } else if hold && !native {
        set("lifecycle", json!({"postStart": {"exec": {"command": ["pilot-agent", "wait"]}}}));
    } else if native {
        let port = format!("--debug-port={status_port}");
        let command = json!(["pilot-agent", "request", port, "POST", "drain"]);
        set("lifecycle", json!({"preStop": {"exec": {"command": command}}}));
    }
    if status_port != "0" {
        if values.startup_enabled {
            set(
                "startupProbe",
                json!({"httpGet": {"path": "/healthz/ready", "port": 15021}, "periodSeconds": 1,
                       "timeoutSeconds": 3, "failureThreshold": values.startup_failures}),
            );
        }
        set("readinessProbe", parts::readiness_probe(context, 15021, true));
    }
    set("securityContext", security_context(context));
    set("resources", parts::resources(context));
    set("env", Value::Array(env(context)?));
    set("volumeMounts", Value::Array(mounts(context)?));
    parts::image_pull_policy(&mut proxy, context);
    Ok(Value::Object(proxy))
}

fn security_context(context: &TemplateContext<'_>) -> Value {
    let values = context.values;
    let mut security = if context.proxy.metadata().get("IPTABLES_TRACE_LOGGING") == Some(&"true") {
        json!({
            "allowPrivilegeEscalation": true,
            "capabilities": {"add": ["NET_ADMIN"], "drop": ["ALL"]},
            "privileged": true,
            "readOnlyRootFilesystem": true,
            "runAsGroup": context.gid,
            "runAsNonRoot": false,
            "runAsUser": 0,
        })
    } else {
        let mut add = Vec::new();
        if context.interception_mode() == "TPROXY" {
            add.push("NET_ADMIN");
        }
        if context.annotation_or(a::CAP_NET_BIND_SERVICE, &values.cap_net_bind_service) == "true" {
            add.push("NET_BIND_SERVICE");
        }
        let mut security = json!({
            "allowPrivilegeEscalation": values.privileged,
            "capabilities": {"drop": ["ALL"]},
            "privileged": values.privileged,
            "readOnlyRootFilesystem": true,
        });
        let (user, group, non_root) =
            if add.is_empty() { (context.uid, context.gid, true) } else { (0, a::PROXY_ID, false) };
        security["runAsUser"] = json!(user);
        security["runAsGroup"] = json!(group);
        security["runAsNonRoot"] = json!(non_root);
        if !add.is_empty() {
            security["capabilities"]["add"] = json!(add);
        }
        security
    };
    if !values.seccomp.is_null() {
        security["seccompProfile"] = values.seccomp.clone();
    }
    security
}

fn env(context: &TemplateContext<'_>) -> Result<Vec<Value>, InjectError> {
    let mut env = Env(Vec::with_capacity(28));
    if at(context.mesh, ["inboundTrafficPolicy", "mode"]).and_then(Value::as_str) == Some("LOCALHOST") {
        env.set("REWRITE_PROBE_LEGACY_LOCALHOST_DESTINATION", "true");
    }
    parts::env_identity(&mut env, context);
    env.resource("ISTIO_CPU_LIMIT", "limits.cpu");
    parts::env_proxy(&mut env, context);
    parts::env_app_containers(&mut env, context);
    env.resource("GOMEMLIMIT", "limits.memory");
    parts::env_compliance(&mut env, context);
    parts::env_cluster(&mut env, context);
    env.set("ISTIO_META_INTERCEPTION_MODE", context.interception_mode());
    let name =
        context.label(a::WORKLOAD_NAME).filter(|name| !name.is_empty()).unwrap_or(&context.workload.name);
    parts::env_workload(&mut env, context, name);
    parts::env_bootstrap(&mut env, context);
    parts::env_mesh(&mut env, context);
    if context.values.tracer == "datadog" {
        let mut entries: Vec<_> =
            parts::json_map(context, a::DATADOG_ENV)?.unwrap_or_default().into_iter().collect();
        entries.sort_by(|x, y| x.0.cmp(&y.0));
        for (key, value) in entries {
            env.set(&key, value.as_str().map_or_else(|| value.to_string(), str::to_owned));
        }
    }
    let attributes = otel::resource_attributes(context);
    if !attributes.is_empty() {
        env.set("OTEL_RESOURCE_ATTRIBUTES", attributes);
    }
    parts::env_metadata(&mut env, context);
    Ok(env.0)
}

fn volumes(context: &TemplateContext<'_>) -> Result<Vec<Value>, InjectError> {
    let mut volumes = vec![
        json!({"name": "workload-socket", "emptyDir": null}),
        json!({"name": "credential-socket", "emptyDir": null}),
        parts::certificate_volume(context, Value::Null),
    ];
    parts::proxy_volumes(context, "istio-envoy", &mut volumes);
    parts::agent_volumes(context, &mut volumes);
    if context.values.cert_provider == "istiod" {
        volumes.push(json!({"name": "istio-ca-crl", "configMap": {
            "name": context.values.crl_config_map, "optional": true,
        }}));
    }
    parts::certs_volume(context, &mut volumes);
    for (name, mut source) in user_items(context, a::USER_VOLUME)? {
        source.insert("name".to_owned(), Value::String(name));
        volumes.push(Value::Object(source));
    }
    if lightstep(context).is_some() {
        volumes.push(json!({"name": "lightstep-certs", "secret": {
            "optional": true, "secretName": "lightstep.cacert",
        }}));
    }
    Ok(volumes)
}

fn mounts(context: &TemplateContext<'_>) -> Result<Vec<Value>, InjectError> {
    let mut mounts = vec![
        json!({"name": "workload-socket", "mountPath": "/var/run/secrets/workload-spiffe-uds"}),
        json!({"name": "credential-socket", "mountPath": "/var/run/secrets/credential-uds"}),
        parts::certificate_mount(context),
    ];
    if context.values.cert_provider == "istiod" {
        mounts.push(json!({"name": "istiod-ca-cert", "mountPath": "/var/run/secrets/istio"}));
        mounts.push(json!({"name": "istio-ca-crl", "mountPath": "/var/run/secrets/istio/crl"}));
    }
    parts::agent_mounts(context, "istio-envoy", &mut mounts);
    if let Some(file) = lightstep(context) {
        let directory = file.rsplit_once('/').map_or("", |(directory, _)| directory);
        mounts
            .push(json!({"name": "lightstep-certs", "mountPath": format!("{directory}/"), "readOnly": true}));
    }
    for (name, mut mount) in user_items(context, a::USER_VOLUME_MOUNT)? {
        mount.insert("name".to_owned(), Value::String(name));
        mounts.push(Value::Object(mount));
    }
    Ok(mounts)
}

fn lightstep<'a>(context: &TemplateContext<'a>) -> Option<&'a str> {
    if context.values.tracer == "lightstep" { context.proxy.tracing_ca() } else { None }
}

fn user_items(
    context: &TemplateContext<'_>,
    key: &str,
) -> Result<BTreeMap<String, Map<String, Value>>, InjectError> {
    let mut items = BTreeMap::new();
    for (name, value) in parts::json_map(context, key)?.unwrap_or_default() {
        match value {
            Value::Object(map) => drop(items.insert(name, map)),
            other => {
                return Err(InjectError::InvalidAnnotations {
                    violations: vec![crate::error::AnnotationViolation {
                        annotation: key.to_owned(),
                        value: context.annotation(key).unwrap_or_default().to_owned(),
                        message: format!("{name}: expected a map, found {}", crate::json::type_name(&other)),
                    }],
                });
            }
        }
    }
    Ok(items)
}

/// The first container's name, for attributes that name one.
fn first_container(pod_in: &Value) -> Option<&str> {
    pod::containers(pod_in).first().map(pod::name_of)
}
