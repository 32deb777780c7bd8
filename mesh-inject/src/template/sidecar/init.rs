//! The container that writes the rules, or checks those that a CNI plugin wrote.

use serde_json::{Map, Value, json};

use crate::annotation as a;
use crate::template::TemplateContext;
use crate::template::parts;

pub(super) fn container(context: &TemplateContext<'_>) -> Value {
    let values = context.values;
    let cni = values.cni_enabled;
    let mut init = Map::new();
    let mut set = |key: &str, value: Value| init.insert(key.to_owned(), value);
    set("name", json!(if cni { a::VALIDATION_CONTAINER } else { a::INIT_CONTAINER }));
    set("image", Value::String(parts::container_image(context, &values.init_image, true)));
    set("args", Value::from(args(context)));
    set("resources", parts::resources(context));
    set("securityContext", security_context(context));
    let metadata = context.proxy.metadata();
    if !metadata.is_empty() {
        let mut env = parts::Env(Vec::new());
        for (key, value) in metadata {
            env.set(key, value);
        }
        set("env", Value::Array(env.0));
    }
    parts::image_pull_policy(&mut init, context);
    Value::Object(init)
}

fn args(context: &TemplateContext<'_>) -> Vec<String> {
    let values = context.values;
    let port = |field: &str, default: i64| {
        context
            .mesh
            .get(field)
            .and_then(Value::as_i64)
            .filter(|port| *port != 0)
            .unwrap_or(default)
            .to_string()
    };
    let mode = context.interception_mode();
    let uid = if mode == "TPROXY" { a::PROXY_ID } else { context.uid };
    let excluded = excluded_inbound(context);
    let mut args: Vec<String> = vec!["istio-iptables".to_owned()];
    let mut flag = |name: &str, value: &str| args.extend([name.to_owned(), value.to_owned()]);
    flag("-p", &port("proxyListenPort", 15001));
    flag("-z", &port("proxyInboundListenPort", 15006));
    flag("-u", &uid.to_string());
    flag("-m", mode);
    flag("-i", context.annotation_or(a::INCLUDE_OUTBOUND_RANGES, &values.include_ip_ranges));
    flag("-x", context.annotation_or(a::EXCLUDE_OUTBOUND_RANGES, &values.exclude_ip_ranges));
    flag("-b", context.annotation_or(a::INCLUDE_INBOUND_PORTS, &values.include_inbound_ports));
    flag(
        "-d",
        &if excluded.is_empty() { "15090,15021".to_owned() } else { format!("15090,15021,{excluded}") },
    );
    for (name, key, default) in [
        ("-q", a::INCLUDE_OUTBOUND_PORTS, &values.include_outbound_ports),
        ("-o", a::EXCLUDE_OUTBOUND_PORTS, &values.exclude_outbound_ports),
    ] {
        let annotated = context.annotation(key);
        if annotated.is_some() || !default.is_empty() {
            flag(name, annotated.unwrap_or(default));
        }
    }
    if let Some(interfaces) =
        context.annotation(a::REROUTE_INTERFACES).or_else(|| context.annotation(a::KUBEVIRT_INTERFACES))
    {
        flag("-k", interfaces);
    }
    if let Some(interfaces) = context.annotation(a::EXCLUDE_INTERFACES) {
        flag("-c", interfaces);
    }
    args.push(format!(
        "--log_output_level={}",
        context.annotation_or(a::AGENT_LOG_LEVEL, &values.agent_log_level)
    ));
    if values.log_as_json {
        args.push("--log_as_json".to_owned());
    }
    if values.cni_enabled {
        args.extend(["--run-validation".to_owned(), "--skip-rule-apply".to_owned()]);
    } else if values.force_apply {
        args.push("--force-apply".to_owned());
    }
    if values.native_nftables {
        args.push("--native-nftables".to_owned());
    }
    args
}

/// The excluded inbound ports, with the status port.
pub(super) fn excluded_inbound(context: &TemplateContext<'_>) -> String {
    let list = context.annotation_or(a::EXCLUDE_INBOUND_PORTS, &context.values.exclude_inbound_ports);
    let status = context.status_port().trim();
    if status.is_empty() || status == "0" || list.split(',').any(|port| port == status) {
        return list.to_owned();
    }
    let mut ports: Vec<&str> = list.split(',').map(str::trim).filter(|port| !port.is_empty()).collect();
    ports.push(status);
    ports.join(",")
}

fn security_context(context: &TemplateContext<'_>) -> Value {
    let values = context.values;
    let mut security = json!({
        "allowPrivilegeEscalation": values.privileged,
        "privileged": values.privileged,
    });
    if values.cni_enabled {
        let tproxy = context.interception_mode() == "TPROXY";
        let (user, group) = if tproxy { (a::PROXY_ID, a::PROXY_ID) } else { (context.uid, context.gid) };
        security["capabilities"] = json!({"drop": ["ALL"]});
        security["readOnlyRootFilesystem"] = json!(true);
        security["runAsGroup"] = json!(group);
        security["runAsUser"] = json!(user);
        security["runAsNonRoot"] = json!(true);
    } else {
        security["capabilities"] = json!({"add": ["NET_ADMIN", "NET_RAW"], "drop": ["ALL"]});
        security["readOnlyRootFilesystem"] = json!(false);
        security["runAsGroup"] = json!(0);
        security["runAsUser"] = json!(0);
        security["runAsNonRoot"] = json!(false);
    }
    if !values.seccomp.is_null() {
        security["seccompProfile"] = values.seccomp.clone();
    }
    security
}
