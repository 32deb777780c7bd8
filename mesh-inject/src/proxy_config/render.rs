//! Field order, defaults and validation of `ProxyConfig`.

use std::fmt::Write as _;

use serde_json::{Map, Value};

/// Fields in the order of the protocol's declaration.
const FIELDS: [&str; 34] = [
    "configPath",
    "binaryPath",
    "serviceCluster",
    "tracingServiceName",
    "drainDuration",
    "discoveryAddress",
    "discoveryRefreshDelay",
    "zipkinAddress",
    "statsdUdpAddress",
    "proxyAdminPort",
    "controlPlaneAuthPolicy",
    "customConfigFile",
    "statNameLength",
    "concurrency",
    "proxyBootstrapTemplatePath",
    "interceptionMode",
    "tracing",
    "sds",
    "envoyAccessLogService",
    "envoyMetricsService",
    "proxyMetadata",
    "runtimeValues",
    "statusPort",
    "extraStatTags",
    "gatewayTopology",
    "terminationDrainDuration",
    "meshId",
    "readinessProbe",
    "proxyStatsMatcher",
    "holdApplicationUntilProxyStarts",
    "caCertificatesPem",
    "image",
    "privateKeyProvider",
    "proxyHeaders",
];

/// Newer fields, after all others.
const LATER: [&str; 3] = ["fileFlushInterval", "fileFlushMinSizeKb", "statsCompression"];

const DURATIONS: [&str; 4] =
    ["drainDuration", "terminationDrainDuration", "discoveryRefreshDelay", "fileFlushInterval"];

/// Order of the fields of nested messages, by the name of the field that holds them.
const NESTED: [(&str, &[&str]); 9] = [
    (
        "tracing",
        &[
            "zipkin",
            "lightstep",
            "datadog",
            "stackdriver",
            "openCensusAgent",
            "customTags",
            "maxPathTagLength",
            "sampling",
            "tlsSettings",
            "enableIstioTags",
        ],
    ),
    ("lightstep", &["address", "accessToken"]),
    (
        "tlsSettings",
        &[
            "mode",
            "clientCertificate",
            "privateKey",
            "caCertificates",
            "credentialName",
            "subjectAltNames",
            "sni",
            "insecureSkipVerify",
            "caCrl",
        ],
    ),
    ("envoyAccessLogService", &["address", "tlsSettings", "tcpKeepalive"]),
    ("envoyMetricsService", &["address", "tlsSettings", "tcpKeepalive"]),
    ("tcpKeepalive", &["probes", "time", "interval"]),
    ("gatewayTopology", &["numTrustedProxies", "forwardClientCertDetails", "proxyProtocol"]),
    ("proxyStatsMatcher", &["inclusionPrefixes", "inclusionSuffixes", "inclusionRegexps"]),
    (
        "proxyHeaders",
        &[
            "forwardedClientCert",
            "setCurrentClientCertDetails",
            "requestId",
            "server",
            "attemptCount",
            "envoyDebugHeaders",
            "metadataExchangeHeaders",
            "preserveHttp1HeaderCase",
        ],
    ),
];

pub(super) fn is_field(name: &str) -> bool {
    FIELDS.contains(&name) || LATER.contains(&name)
}

pub(super) fn camel_case(name: &str) -> String {
    let mut result = String::with_capacity(name.len());
    let mut upper = false;
    for c in name.chars() {
        if c == '_' {
            upper = true;
        } else if upper {
            result.extend(c.to_uppercase());
            upper = false;
        } else {
            result.push(c);
        }
    }
    result
}

/// Enumerations may be written as numbers.
pub(super) fn enum_name(value: &Value, names: &[&str]) -> Value {
    let index = value.as_u64().and_then(|index| usize::try_from(index).ok());
    index.and_then(|index| names.get(index)).map_or_else(|| value.clone(), |name| Value::from(*name))
}

pub(super) fn text(fields: &Map<String, Value>, defaults: &Map<String, Value>) -> String {
    let mut text = String::from("{");
    for name in FIELDS.iter().chain(&LATER) {
        let Some(value) = fields.get(*name) else { continue };
        let wrapper = matches!(*name, "concurrency" | "holdApplicationUntilProxyStarts");
        let unset = match value {
            Value::Object(map) => *name == "proxyMetadata" && map.is_empty(),
            scalar => !wrapper && crate::values::is_empty(scalar),
        };
        if unset || defaults.get(*name) == Some(value) || (*name == "interceptionMode" && value == "REDIRECT")
        {
            continue;
        }
        if text.len() > 1 {
            text.push(',');
        }
        let _ = write!(text, "\"{name}\":");
        message(&mut text, name, value);
    }
    text.push_str("}\n");
    text
}

fn message(text: &mut String, holder: &str, value: &Value) {
    match value {
        Value::Object(map) => {
            let order = NESTED.iter().find(|(name, _)| *name == holder).map_or(&[][..], |(_, order)| order);
            let rank = |key: &str| order.iter().position(|name| *name == key).unwrap_or(order.len());
            let mut keys: Vec<&String> = map.keys().collect();
            keys.sort_by(|a, b| rank(a).cmp(&rank(b)).then_with(|| a.cmp(b)));
            text.push('{');
            for (i, key) in keys.into_iter().enumerate() {
                if i > 0 {
                    text.push(',');
                }
                let _ = write!(text, "{}:", Value::from(key.as_str()));
                message(text, key, &map[key]);
            }
            text.push('}');
        }
        Value::Array(items) => {
            text.push('[');
            for (i, item) in items.iter().enumerate() {
                if i > 0 {
                    text.push(',');
                }
                message(text, holder, item);
            }
            text.push(']');
        }
        Value::Number(number) => match number.as_f64() {
            // 10.0 and 10 are one number; the protocol's JSON writes the shorter.
            Some(float) if number.is_f64() && float.fract() == 0.0 && float.abs() < 1e15 => {
                let _ = write!(text, "{float:.0}");
            }
            _ => {
                let _ = write!(text, "{number}");
            }
        },
        scalar => {
            let _ = write!(text, "{scalar}");
        }
    }
}

/// Compact JSON with sorted keys, whatever the order of the map.
pub(crate) fn canonical(value: &Value) -> String {
    let mut text = String::new();
    message(&mut text, "", value);
    text
}

pub(super) fn problem(fields: &Map<String, Value>) -> Option<String> {
    let wrong = |name: &str, expected: &str| {
        let value = fields.get(name).map(ToString::to_string).unwrap_or_default();
        Some(format!("{name}: expected {expected}, found {value:.80}"))
    };
    for (name, value) in fields {
        let fine = match name.as_str() {
            "configPath" | "binaryPath" | "serviceCluster" => {
                value.as_str().is_some_and(|text| !text.is_empty())
            }
            "discoveryAddress" | "zipkinAddress" | "statsdUdpAddress" => value.as_str().is_some_and(address),
            "customConfigFile" | "proxyBootstrapTemplatePath" | "meshId" => value.is_string(),
            name if DURATIONS.contains(&name) => value.as_str().is_some_and(duration),
            "proxyAdminPort" | "statusPort" => value
                .as_i64()
                .is_some_and(|port| (1..=65535).contains(&port) || (name == "statusPort" && port == 0)),
            "statNameLength" | "concurrency" => value.as_i64().is_some_and(|number| number >= 0),
            "interceptionMode" => matches!(value.as_str(), Some("REDIRECT" | "TPROXY" | "NONE")),
            "controlPlaneAuthPolicy" => matches!(value.as_str(), Some("NONE" | "MUTUAL_TLS")),
            "proxyMetadata" | "runtimeValues" => {
                value.as_object().is_some_and(|map| map.values().all(Value::is_string))
            }
            "holdApplicationUntilProxyStarts" => value.is_boolean(),
            "extraStatTags" | "caCertificatesPem" => {
                value.as_array().is_some_and(|items| items.iter().all(Value::is_string))
            }
            "tracing"
            | "envoyAccessLogService"
            | "envoyMetricsService"
            | "gatewayTopology"
            | "readinessProbe"
            | "proxyStatsMatcher"
            | "image"
            | "privateKeyProvider"
            | "proxyHeaders" => value.is_object(),
            _ => true,
        };
        if !fine {
            let expected = match name.as_str() {
                "discoveryAddress" | "zipkinAddress" | "statsdUdpAddress" => "host:port",
                "drainDuration"
                | "terminationDrainDuration"
                | "discoveryRefreshDelay"
                | "fileFlushInterval" => "a duration in seconds such as \"45s\"",
                "proxyAdminPort" | "statusPort" => "a port",
                "statNameLength" | "concurrency" => "a number of zero or more",
                "interceptionMode" => "REDIRECT, TPROXY or NONE",
                "controlPlaneAuthPolicy" => "NONE or MUTUAL_TLS",
                "proxyMetadata" | "runtimeValues" => "a map of strings",
                "holdApplicationUntilProxyStarts" => "true or false",
                "extraStatTags" | "caCertificatesPem" => "a list of strings",
                "tracing"
                | "envoyAccessLogService"
                | "envoyMetricsService"
                | "gatewayTopology"
                | "readinessProbe"
                | "proxyStatsMatcher"
                | "image"
                | "privateKeyProvider"
                | "proxyHeaders" => "a map",
                _ => "a non-empty string",
            };
            return wrong(name, expected);
        }
    }
    None
}

/// A duration as the protocol's JSON writes it: no needless zeros, fractions of 3, 6 or 9 digits.
pub(super) fn canonical_duration(name: &str, value: &Value) -> Option<String> {
    let text = value.as_str().filter(|text| DURATIONS.contains(&name) && duration(text))?;
    let seconds = text.strip_suffix('s').unwrap_or(text);
    let (whole, fraction) = seconds.split_once('.').unwrap_or((seconds, ""));
    let whole = whole.trim_start_matches('0');
    let whole = if whole.is_empty() { "0" } else { whole };
    let mut fraction: String = fraction.trim_end_matches('0').chars().take(9).collect();
    if fraction.is_empty() {
        return Some(format!("{whole}s"));
    }
    while !fraction.len().is_multiple_of(3) {
        fraction.push('0');
    }
    Some(format!("{whole}.{fraction}s"))
}

fn address(text: &str) -> bool {
    text.is_empty()
        || text
            .rsplit_once(':')
            .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0))
}

fn duration(text: &str) -> bool {
    text.strip_suffix('s').is_some_and(|seconds| {
        !seconds.is_empty()
            && seconds.bytes().all(|b| b.is_ascii_digit() || b == b'.')
            && seconds.parse::<f64>().is_ok_and(|seconds| seconds < 315_576_000_000.0)
    })
}
