//! What the built-in templates share: images, metadata, environment, volumes.

use std::fmt::Write as _;

use serde_json::{Map, Value, json};

use super::TemplateContext;
use crate::annotation as a;
use crate::json::{at, object};
use crate::pod;
use crate::values::Values;

/// A list of environment entries, in order.
pub(super) struct Env(pub(super) Vec<Value>);

impl Env {
    pub(super) fn set(&mut self, name: &str, value: impl Into<String>) {
        let (name, value) = (Value::from(name), value.into());
        self.0.push(if value.is_empty() {
            object([("name", name)])
        } else {
            object([("name", name), ("value", Value::String(value))])
        });
    }

    pub(super) fn field(&mut self, name: &str, path: &str) {
        self.0.push(json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}}));
    }

    pub(super) fn resource(&mut self, name: &str, resource: &str) {
        self.0.push(
            json!({"name": name, "valueFrom": {"resourceFieldRef": {"resource": resource, "divisor": "1"}}}),
        );
    }
}

/// Image of the proxy (`name` from the values), with the variant that settings, configuration and pod ask for.
pub(super) fn image(context: &TemplateContext<'_>, name: &str, init: bool) -> String {
    let values: &Values = context.values;
    let configured = if init { None } else { context.proxy.image_type() };
    let kind = context.annotation(a::PROXY_IMAGE_TYPE).or(configured).unwrap_or(&values.variant);
    image_url(&values.hub, name, &values.tag, kind)
}

pub(super) fn image_url(hub: &str, name: &str, tag: &str, kind: &str) -> String {
    let mut tag = tag.to_owned();
    if !kind.is_empty() {
        for suffix in ["-distroless", "-debug"] {
            if let Some(stripped) = tag.strip_suffix(suffix) {
                tag = stripped.to_owned();
                break;
            }
        }
        if kind != "default" {
            tag = format!("{tag}-{kind}");
        }
    }
    format!("{hub}/{name}:{tag}")
}

/// The image of a container: the annotation (or the configured name) if it is a full image, else hub, name and tag.
pub(super) fn container_image(context: &TemplateContext<'_>, name: &str, init: bool) -> String {
    let wanted = context.annotation_or(a::PROXY_IMAGE, name);
    if wanted.contains('/') { wanted.to_owned() } else { image(context, name, init) }
}

pub(super) fn canonical_name(context: &TemplateContext<'_>, truncate: bool) -> String {
    let candidates = [a::CANONICAL_NAME, "app.kubernetes.io/name", "app"];
    let found = candidates.iter().filter_map(|key| context.label(key)).find(|value| !value.is_empty());
    let name = found.unwrap_or(&context.workload.name);
    if !truncate {
        return name.to_owned();
    }
    let short: String = name.chars().take(63).collect();
    short.trim_matches(['-', '_', '.']).to_owned()
}

pub(super) fn canonical_revision<'a>(context: &TemplateContext<'a>) -> &'a str {
    let candidates = [a::CANONICAL_REVISION, "app.kubernetes.io/version", "version"];
    candidates.iter().filter_map(|key| context.label(key)).find(|value| !value.is_empty()).unwrap_or("latest")
}

/// The three annotations that every template but `grpc-simple` adds.
pub(super) fn annotations(context: &TemplateContext<'_>) -> Map<String, Value> {
    let mut annotations = Map::new();
    annotations.insert(a::REVISION.to_owned(), json!(context.revision()));
    if let Some(first) = context.app_containers().next() {
        for key in [a::DEFAULT_LOGS_CONTAINER, a::DEFAULT_CONTAINER] {
            if context.annotation(key).is_none() {
                annotations.insert(key.to_owned(), json!(pod::name_of(first)));
            }
        }
    }
    annotations
}

pub(super) fn proxy_args(context: &TemplateContext<'_>, role: &str) -> Vec<String> {
    let values = context.values;
    let mut args = vec![
        "proxy".to_owned(),
        role.to_owned(),
        "--domain".to_owned(),
        format!("$(POD_NAMESPACE).svc.{}", values.cluster_domain),
        format!("--proxyLogLevel={}", context.annotation_or(a::LOG_LEVEL, &values.log_level)),
        format!(
            "--proxyComponentLogLevel={}",
            context.annotation_or(a::COMPONENT_LOG_LEVEL, &values.component_log_level)
        ),
        format!("--log_output_level={}", context.annotation_or(a::AGENT_LOG_LEVEL, &values.agent_log_level)),
    ];
    if !matches!(values.sts_port.as_str(), "" | "0") {
        args.push(format!("--stsPort={}", values.sts_port));
    }
    if values.log_as_json {
        args.push("--log_as_json".to_owned());
    }
    if !values.outlier_log_path.is_empty() {
        args.push(format!("--outlierLogPath={}", values.outlier_log_path));
    }
    args
}

/// From `PILOT_CERT_PROVIDER` to `HOST_IP`.
pub(super) fn env_identity(env: &mut Env, context: &TemplateContext<'_>) {
    let values = context.values;
    env.set("PILOT_CERT_PROVIDER", &values.cert_provider);
    if values.ca_address.is_empty() {
        let revision =
            if values.revision.is_empty() { String::new() } else { format!("-{}", values.revision) };
        env.set("CA_ADDR", format!("istiod{revision}.{}.svc:15012", values.namespace));
    } else {
        env.set("CA_ADDR", &values.ca_address);
    }
    env.field("POD_NAME", "metadata.name");
    env.field("POD_NAMESPACE", "metadata.namespace");
    env.field("INSTANCE_IP", "status.podIP");
    env.field("SERVICE_ACCOUNT", "spec.serviceAccountName");
    env.field("HOST_IP", "status.hostIP");
}

/// `PROXY_CONFIG` and `ISTIO_META_POD_PORTS`.
pub(super) fn env_proxy(env: &mut Env, context: &TemplateContext<'_>) {
    env.set("PROXY_CONFIG", context.proxy_text);
    let ports = pod_ports(context.pod);
    // The order in which an earlier injection found the containers is lost; its list is as good if it says the same.
    let same = |previous: &&str| port_lines(previous) == port_lines(&ports);
    env.set("ISTIO_META_POD_PORTS", context.previous_ports.filter(same).unwrap_or(&ports));
}

pub(super) fn env_app_containers(env: &mut Env, context: &TemplateContext<'_>) {
    let names: Vec<&str> = context.app_containers().map(pod::name_of).collect();
    env.set("ISTIO_META_APP_CONTAINERS", names.join(","));
}

pub(super) fn env_compliance(env: &mut Env, context: &TemplateContext<'_>) {
    let policy = &context.settings.compliance_policy;
    if !policy.is_empty() {
        env.set("COMPLIANCE_POLICY", policy);
        if policy == "fips-140-3" {
            env.set("GODEBUG", "fips140=only");
        }
    }
}

pub(super) fn env_cluster(env: &mut Env, context: &TemplateContext<'_>) {
    // A known cluster is put at the end of the list later on.
    if context.cluster.is_empty() {
        env.set("ISTIO_META_CLUSTER_ID", "Kubernetes");
    }
    env.field("ISTIO_META_NODE_NAME", "spec.nodeName");
}

pub(super) fn env_workload(env: &mut Env, context: &TemplateContext<'_>, name: &str) {
    let workload = context.workload;
    if !name.is_empty() {
        env.set("ISTIO_META_WORKLOAD_NAME", name);
    }
    if !workload.api_version.is_empty() && !workload.kind.is_empty() {
        let namespace = if workload.namespace.is_empty() { "default" } else { &workload.namespace };
        env.set(
            "ISTIO_META_OWNER",
            format!(
                "kubernetes://apis/{}/namespaces/{namespace}/{}s/{}",
                workload.api_version,
                workload.kind.to_lowercase(),
                workload.name
            ),
        );
    }
}

pub(super) fn env_bootstrap(env: &mut Env, context: &TemplateContext<'_>) {
    if context.annotation(a::BOOTSTRAP_OVERRIDE).is_some() {
        env.set("ISTIO_BOOTSTRAP_OVERRIDE", "/etc/istio/custom-bootstrap/custom_bootstrap.json");
    }
}

pub(super) fn env_mesh(env: &mut Env, context: &TemplateContext<'_>) {
    let trust_domain = context.trust_domain();
    let mesh_id = &context.values.mesh_id;
    if !mesh_id.is_empty() {
        env.set("ISTIO_META_MESH_ID", mesh_id);
    } else if !trust_domain.is_empty() {
        env.set("ISTIO_META_MESH_ID", trust_domain);
    }
    if !trust_domain.is_empty() {
        env.set("TRUST_DOMAIN", trust_domain);
    }
}

pub(super) fn env_metadata(env: &mut Env, context: &TemplateContext<'_>) {
    for (key, value) in context.proxy.metadata() {
        env.set(key, value);
    }
}

/// The entries of a list of ports, whatever their order.
fn port_lines(text: &str) -> Vec<&str> {
    let mut lines: Vec<&str> = text.lines().map(|line| line.trim_start_matches([' ', ','])).collect();
    lines.sort_unstable();
    lines
}

/// The ports of all containers, in the layout that upstream's text template gives them.
fn pod_ports(pod_in: &Value) -> String {
    let mut text = String::from("[\n");
    let ports = pod::containers(pod_in)
        .iter()
        .flat_map(|container| container.get("ports").and_then(Value::as_array).into_iter().flatten());
    for (i, port) in ports.enumerate() {
        text.push_str("    ");
        if i > 0 {
            text.push(',');
        }
        text.push('{');
        let mut first = true;
        for field in ["name", "hostPort", "containerPort", "protocol", "hostIP"] {
            let Some(value) = port.get(field).filter(|value| !crate::values::is_empty(value)) else {
                continue;
            };
            let _ = write!(text, "{}\"{field}\":{value}", if first { "" } else { "," });
            first = false;
        }
        text.push_str("}\n");
    }
    text.push(']');
    text
}

pub(super) fn image_pull_policy(container: &mut Map<String, Value>, context: &TemplateContext<'_>) {
    let policy = &context.values.image_pull_policy;
    if !policy.is_empty() {
        container.insert("imagePullPolicy".to_owned(), json!(policy));
    }
}

pub(super) fn image_pull_secrets(spec: &mut Map<String, Value>, context: &TemplateContext<'_>) {
    let secrets: Vec<Value> =
        context.values.image_pull_secrets.iter().map(|name| json!({"name": name})).collect();
    if !secrets.is_empty() {
        spec.insert("imagePullSecrets".to_owned(), Value::Array(secrets));
    }
}

pub(super) fn resources(context: &TemplateContext<'_>) -> Value {
    let annotated = [
        (a::PROXY_CPU, "requests", "cpu"),
        (a::PROXY_MEMORY, "requests", "memory"),
        (a::PROXY_CPU_LIMIT, "limits", "cpu"),
        (a::PROXY_MEMORY_LIMIT, "limits", "memory"),
    ];
    let mut resources = json!({});
    let mut any = false;
    for (key, group, resource) in annotated {
        if let Some(value) = context.annotation(key) {
            resources[group][resource] = json!(value);
            any = true;
        }
    }
    if any {
        return resources;
    }
    match &context.values.resources {
        Value::Null => json!({}),
        configured => configured.clone(),
    }
}

/// Source of `workload-certs` when GKE provides the certificate.
pub(super) fn gke(context: &TemplateContext<'_>) -> bool {
    context.values.ca_name == "GkeWorkloadCertificate"
}

/// The volume of the workload's certificates: GKE's CSI driver or `otherwise`.
pub(super) fn certificate_volume(context: &TemplateContext<'_>, otherwise: Value) -> Value {
    if gke(context) {
        json!({"name": "gke-workload-certificate",
               "csi": {"driver": "workloadcertificates.security.cloud.google.com"}})
    } else {
        json!({"name": "workload-certs", "emptyDir": otherwise})
    }
}

/// The mount of [`certificate_volume`].
pub(super) fn certificate_mount(context: &TemplateContext<'_>) -> Value {
    let path = "/var/run/secrets/workload-spiffe-credentials";
    if gke(context) {
        json!({"name": "gke-workload-certificate", "mountPath": path, "readOnly": true})
    } else {
        json!({"name": "workload-certs", "mountPath": path})
    }
}

/// The volume in which an annotation brings the proxy's own bootstrap, then the proxy's directory in memory, `proxy`.
pub(super) fn proxy_volumes(context: &TemplateContext<'_>, proxy: &str, volumes: &mut Vec<Value>) {
    if let Some(name) = context.annotation(a::BOOTSTRAP_OVERRIDE) {
        volumes.push(json!({"name": "custom-bootstrap-volume", "configMap": {"name": name}}));
    }
    volumes.push(json!({"name": proxy, "emptyDir": {"medium": "Memory"}}));
}

/// From `istio-data` to `istio-podinfo`: mounts that all agents need. `proxy` is the volume of the proxy's directory.
pub(super) fn agent_mounts(context: &TemplateContext<'_>, proxy: &str, mounts: &mut Vec<Value>) {
    mounts.push(json!({"name": "istio-data", "mountPath": "/var/lib/istio/data"}));
    if context.annotation(a::BOOTSTRAP_OVERRIDE).is_some() {
        mounts.push(json!({"name": "custom-bootstrap-volume", "mountPath": "/etc/istio/custom-bootstrap"}));
    }
    mounts.push(json!({"name": proxy, "mountPath": "/etc/istio/proxy"}));
    mounts.push(json!({"name": "istio-token", "mountPath": "/var/run/secrets/tokens"}));
    if context.values.mount_mtls_certs {
        mounts.push(json!({"name": "istio-certs", "mountPath": "/etc/certs/", "readOnly": true}));
    }
    mounts.push(json!({"name": "istio-podinfo", "mountPath": "/etc/istio/pod"}));
}

/// A readiness probe of the agent on `port`, with the periods that the values and, where `annotated`, the pod ask for.
pub(super) fn readiness_probe(context: &TemplateContext<'_>, port: u16, annotated: bool) -> Value {
    let values = context.values;
    let number = |key: &str, default: i64| {
        let asked = if annotated { context.annotation(key) } else { None };
        asked.and_then(|text| text.parse().ok()).unwrap_or(default)
    };
    let mut readiness = json!({
        "httpGet": {"path": "/healthz/ready", "port": port},
        "timeoutSeconds": 3,
        "periodSeconds": number(a::READINESS_PERIOD, values.readiness_period),
        "failureThreshold": number(a::READINESS_FAILURES, values.readiness_failures),
    });
    let delay = number(a::READINESS_INITIAL_DELAY, values.readiness_initial_delay);
    if delay != 0 {
        readiness["initialDelaySeconds"] = json!(delay);
    }
    readiness
}

/// What a template without interception gives: its labels, these annotations, this spec.
pub(super) fn partial_pod(
    context: &TemplateContext<'_>,
    annotations: Map<String, Value>,
    spec: Map<String, Value>,
) -> Value {
    let labels = json!({
        a::CANONICAL_NAME: canonical_name(context, false),
        a::CANONICAL_REVISION: canonical_revision(context),
    });
    let metadata = object([("labels", labels), ("annotations", Value::Object(annotations))]);
    object([("metadata", metadata), ("spec", Value::Object(spec))])
}

/// From `istio-data` to the authority's certificate: volumes that all agents need.
pub(super) fn agent_volumes(context: &TemplateContext<'_>, volumes: &mut Vec<Value>) {
    let values = context.values;
    volumes.push(json!({"name": "istio-data", "emptyDir": {}}));
    volumes.push(json!({"name": "istio-podinfo", "downwardAPI": {"items": [
        {"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}},
        {"path": "annotations", "fieldRef": {"fieldPath": "metadata.annotations"}},
    ]}}));
    volumes.push(json!({"name": "istio-token", "projected": {"sources": [{"serviceAccountToken": {
        "path": "istio-token", "expirationSeconds": 43200, "audience": values.token_audience,
    }}]}}));
    if values.cert_provider == "istiod" {
        let name = &values.trust_bundle_name;
        volumes.push(if values.cluster_trust_bundle {
            let name = if name.is_empty() { "root-cert" } else { name };
            json!({"name": "istiod-ca-cert", "projected": {"sources": [{"clusterTrustBundle": {
                "name": format!("istio.io:istiod-ca:{name}"), "path": "root-cert.pem",
            }}]}})
        } else {
            let name = if name.is_empty() { "istio-ca-root-cert" } else { name };
            json!({"name": "istiod-ca-cert", "configMap": {"name": name}})
        });
    }
}

/// The secret of `mountMtlsCerts`.
pub(super) fn certs_volume(context: &TemplateContext<'_>, volumes: &mut Vec<Value>) {
    if context.values.mount_mtls_certs {
        let account = at(context.pod, ["spec", "serviceAccountName"]).and_then(Value::as_str);
        let account = account.filter(|account| !account.is_empty()).unwrap_or("default");
        volumes.push(json!({"name": "istio-certs", "secret": {
            "optional": true, "secretName": format!("istio.{account}"),
        }}));
    }
}

/// Parse an annotation that holds a JSON map.
pub(super) fn json_map(
    context: &TemplateContext<'_>,
    key: &str,
) -> Result<Option<Map<String, Value>>, crate::error::InjectError> {
    let Some(text) = context.annotation(key) else { return Ok(None) };
    let failed = |message: String| crate::error::InjectError::InvalidAnnotations {
        violations: vec![crate::error::AnnotationViolation {
            annotation: key.to_owned(),
            value: text.to_owned(),
            message,
        }],
    };
    match crate::json::parse(text.as_bytes()) {
        Ok(Value::Object(map)) => Ok(Some(map)),
        Ok(other) => Err(failed(format!("expected a JSON map, found {}", crate::json::type_name(&other)))),
        Err(error) => Err(failed(error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::image_url;

    #[test]
    fn variants() {
        assert_eq!(image_url("h", "proxyv2", "1.2", ""), "h/proxyv2:1.2");
        assert_eq!(image_url("h", "proxyv2", "1.2", "distroless"), "h/proxyv2:1.2-distroless");
        assert_eq!(image_url("h", "proxyv2", "1.2-debug", "distroless"), "h/proxyv2:1.2-distroless");
        assert_eq!(image_url("h", "proxyv2", "1.2-distroless", "default"), "h/proxyv2:1.2");
        assert_eq!(image_url("h", "proxyv2", "1.2-distroless", ""), "h/proxyv2:1.2-distroless");
    }
}
