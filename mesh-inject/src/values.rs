//! Chart values, read once into the types that templates use.

use serde_json::Value;

use crate::error::InjectError;

/// The values that templates read.
#[derive(Debug, Clone)]
pub(crate) struct Values {
    pub(crate) hub: String,
    pub(crate) tag: String,
    pub(crate) variant: String,
    pub(crate) image_pull_policy: String,
    pub(crate) image_pull_secrets: Vec<String>,
    pub(crate) namespace: String,
    pub(crate) ca_address: String,
    pub(crate) ca_name: String,
    pub(crate) cert_provider: String,
    pub(crate) trust_bundle_name: String,
    pub(crate) mesh_id: String,
    pub(crate) trust_domain: String,
    pub(crate) network: String,
    pub(crate) cluster_name: String,
    pub(crate) mount_mtls_certs: bool,
    pub(crate) log_as_json: bool,
    pub(crate) native_nftables: bool,
    pub(crate) agent_log_level: String,
    pub(crate) token_audience: String,
    pub(crate) sts_port: String,
    pub(crate) revision: String,
    pub(crate) proxy_image: String,
    pub(crate) cluster_domain: String,
    pub(crate) log_level: String,
    pub(crate) component_log_level: String,
    pub(crate) include_ip_ranges: String,
    pub(crate) exclude_ip_ranges: String,
    pub(crate) include_inbound_ports: String,
    pub(crate) exclude_inbound_ports: String,
    pub(crate) include_outbound_ports: String,
    pub(crate) exclude_outbound_ports: String,
    pub(crate) outlier_log_path: String,
    pub(crate) privileged: bool,
    pub(crate) cap_net_bind_service: String,
    pub(crate) readiness_initial_delay: i64,
    pub(crate) readiness_period: i64,
    pub(crate) readiness_failures: i64,
    pub(crate) startup_enabled: bool,
    pub(crate) startup_failures: i64,
    pub(crate) status_port: String,
    pub(crate) hold: bool,
    pub(crate) tracer: String,
    pub(crate) lifecycle: Value,
    pub(crate) seccomp: Value,
    pub(crate) resources: Value,
    pub(crate) init_image: String,
    pub(crate) force_apply: bool,
    pub(crate) cni_enabled: bool,
    pub(crate) cni_provider: String,
    pub(crate) cluster_trust_bundle: bool,
    pub(crate) crl_config_map: String,
    pub(crate) gateway_security_context: Value,
    pub(crate) rewrite_probes: bool,
}

impl Values {
    pub(crate) fn read(values: &Value) -> Result<Self, InjectError> {
        let at = |path: &str| values.pointer(path).unwrap_or(&Value::Null);
        let text = |path: &str| text(path, at(path));
        let flag = |path: &str| flag(path, at(path));
        let number = |path: &str| number(path, at(path));
        let some = |path: &str| if is_empty(at(path)) { Value::Null } else { at(path).clone() };
        let or = |value: String, default: &str| if value.is_empty() { default.to_owned() } else { value };
        Ok(Self {
            hub: text("/global/hub")?,
            tag: text("/global/tag")?,
            variant: text("/global/variant")?,
            image_pull_policy: text("/global/imagePullPolicy")?,
            image_pull_secrets: secrets(at("/global/imagePullSecrets"))?,
            namespace: or(text("/global/istioNamespace")?, "istio-system"),
            ca_address: text("/global/caAddress")?,
            ca_name: text("/global/caName")?,
            cert_provider: text("/global/pilotCertProvider")?,
            trust_bundle_name: text("/global/trustBundleName")?,
            mesh_id: text("/global/meshID")?,
            trust_domain: text("/global/trustDomain")?,
            network: text("/global/network")?,
            cluster_name: text("/global/multiCluster/clusterName")?,
            mount_mtls_certs: flag("/global/mountMtlsCerts")?,
            log_as_json: flag("/global/logAsJson")?,
            native_nftables: flag("/global/nativeNftables")?,
            agent_log_level: text("/global/logging/level")?,
            token_audience: or(text("/global/sds/token/aud")?, "istio-ca"),
            sts_port: text("/global/sts/servicePort")?,
            revision: text("/revision")?,
            proxy_image: or(text("/global/proxy/image")?, "proxyv2"),
            cluster_domain: text("/global/proxy/clusterDomain")?,
            log_level: text("/global/proxy/logLevel")?,
            component_log_level: text("/global/proxy/componentLogLevel")?,
            include_ip_ranges: text("/global/proxy/includeIPRanges")?,
            exclude_ip_ranges: text("/global/proxy/excludeIPRanges")?,
            include_inbound_ports: text("/global/proxy/includeInboundPorts")?,
            exclude_inbound_ports: text("/global/proxy/excludeInboundPorts")?,
            include_outbound_ports: text("/global/proxy/includeOutboundPorts")?,
            exclude_outbound_ports: text("/global/proxy/excludeOutboundPorts")?,
            outlier_log_path: text("/global/proxy/outlierLogPath")?,
            privileged: flag("/global/proxy/privileged")?,
            cap_net_bind_service: text("/global/proxy/capNetBindService")?,
            readiness_initial_delay: number("/global/proxy/readinessInitialDelaySeconds")?,
            readiness_period: number("/global/proxy/readinessPeriodSeconds")?,
            readiness_failures: number("/global/proxy/readinessFailureThreshold")?,
            startup_enabled: flag("/global/proxy/startupProbe/enabled")?,
            startup_failures: number("/global/proxy/startupProbe/failureThreshold")?,
            status_port: text("/global/proxy/statusPort")?,
            hold: flag("/global/proxy/holdApplicationUntilProxyStarts")?,
            tracer: text("/global/proxy/tracer")?,
            lifecycle: some("/global/proxy/lifecycle"),
            seccomp: some("/global/proxy/seccompProfile"),
            resources: quantities(without_nulls(at("/global/proxy/resources")).unwrap_or(Value::Null)),
            init_image: or(text("/global/proxy_init/image")?, "proxyv2"),
            force_apply: flag("/global/proxy_init/forceApplyIptables")?,
            cni_enabled: flag("/pilot/cni/enabled")?,
            cni_provider: text("/pilot/cni/provider")?,
            cluster_trust_bundle: at("/pilot/env/ENABLE_CLUSTER_TRUST_BUNDLE_API") == &Value::Bool(true),
            crl_config_map: or(text("/pilot/crlConfigMapName")?, "istio-ca-crl"),
            gateway_security_context: some("/gateways/securityContext"),
            rewrite_probes: flag("/sidecarInjectorWebhook/rewriteAppHTTPProbe")?,
        })
    }
}

/// Quantities are text to Kubernetes' clients; in values they may be numbers.
fn quantities(mut resources: Value) -> Value {
    for group in ["limits", "requests"] {
        for quantity in resources.get_mut(group).and_then(Value::as_object_mut).into_iter().flatten() {
            if quantity.1.is_number() {
                *quantity.1 = Value::String(quantity.1.to_string());
            }
        }
    }
    resources
}

/// Text of a scalar; absent and `null` are empty.
fn text(path: &str, value: &Value) -> Result<String, InjectError> {
    match value {
        Value::Null => Ok(String::new()),
        Value::String(text) => Ok(text.clone()),
        Value::Number(number) => Ok(number.to_string()),
        Value::Bool(flag) => Ok(flag.to_string()),
        other => Err(wrong(path, "a string", other)),
    }
}

fn flag(path: &str, value: &Value) -> Result<bool, InjectError> {
    match value {
        Value::Null => Ok(false),
        Value::Bool(flag) => Ok(*flag),
        Value::String(text) if text.is_empty() || text == "false" => Ok(false),
        Value::String(text) if text == "true" => Ok(true),
        other => Err(wrong(path, "a boolean", other)),
    }
}

fn number(path: &str, value: &Value) -> Result<i64, InjectError> {
    match value {
        Value::Null => Ok(0),
        Value::Number(number) => number.as_i64().ok_or_else(|| wrong(path, "a whole number", value)),
        Value::String(text) => text.parse().map_err(|_| wrong(path, "a whole number", value)),
        other => Err(wrong(path, "a whole number", other)),
    }
}

fn secrets(value: &Value) -> Result<Vec<String>, InjectError> {
    let path = "/global/imagePullSecrets";
    match value {
        Value::Null => Ok(Vec::new()),
        Value::Array(items) => items
            .iter()
            .map(|item| {
                let name = item.as_str().or_else(|| item.get("name").and_then(Value::as_str));
                name.map(str::to_owned).ok_or_else(|| wrong(path, "names of secrets", item))
            })
            .collect(),
        other => Err(wrong(path, "a list", other)),
    }
}

fn wrong(path: &str, expected: &str, found: &Value) -> InjectError {
    InjectError::Settings {
        field: format!("values{}", path.replace('/', ".")),
        message: format!("expected {expected}, found {found:.80}"),
    }
}

/// Null, empty text, empty list, empty object, false or zero: what a template's `if` takes for no.
pub(crate) fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(flag) => !flag,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(map) => map.is_empty(),
    }
}

/// The value without nulls; what is emptied by that disappears too.
pub(crate) fn without_nulls(value: &Value) -> Option<Value> {
    match value {
        Value::Null => None,
        Value::Object(map) => {
            let kept: serde_json::Map<String, Value> =
                map.iter().filter_map(|(key, value)| Some((key.clone(), without_nulls(value)?))).collect();
            (!kept.is_empty() || map.is_empty()).then_some(Value::Object(kept))
        }
        Value::Array(items) => {
            let kept: Vec<Value> = items.iter().filter_map(without_nulls).collect();
            (!kept.is_empty() || items.is_empty()).then_some(Value::Array(kept))
        }
        scalar => Some(scalar.clone()),
    }
}
