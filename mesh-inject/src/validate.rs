//! Annotations whose values are checked before anything is rendered. Every violation is reported, not only the first.

mod quantity;

use std::net::IpAddr;

use serde_json::Value;

use crate::annotation as a;
use crate::error::{AnnotationViolation, InjectError};
use crate::json::at;
use crate::proxy_config::ProxyConfig;

pub(crate) use quantity::is_quantity;

/// Check the pod's annotations.
pub(crate) fn annotations(pod: &Value) -> Result<(), InjectError> {
    let Some(annotations) = at(pod, ["metadata", "annotations"]).and_then(Value::as_object) else {
        return Ok(());
    };
    let mut violations: Vec<AnnotationViolation> = annotations
        .iter()
        .filter_map(|(key, value)| {
            let value = value.as_str()?;
            let message = one(key, value).err()?;
            Some(AnnotationViolation { annotation: key.clone(), value: value.to_owned(), message })
        })
        .collect();
    violations.sort_by(|x, y| x.annotation.cmp(&y.annotation));
    if violations.is_empty() { Ok(()) } else { Err(InjectError::InvalidAnnotations { violations }) }
}

fn one(key: &str, value: &str) -> Result<(), String> {
    match key {
        a::INTERCEPTION_MODE => match value {
            "REDIRECT" | "TPROXY" | "NONE" => Ok(()),
            _ => Err("interceptionMode invalid, use REDIRECT, TPROXY or NONE".to_owned()),
        },
        a::STATUS_PORT => port(value).map_err(|error| format!("status port invalid: {error}")),
        a::READINESS_INITIAL_DELAY | a::READINESS_PERIOD | a::READINESS_FAILURES => value
            .parse::<u32>()
            .map(drop)
            .map_err(|_| format!("{value:?} is not a whole number from 0 to 4294967295")),
        a::INCLUDE_OUTBOUND_RANGES if value == "*" => Ok(()),
        a::INCLUDE_OUTBOUND_RANGES => {
            prefixes(value).map_err(|error| format!("includeIPRanges invalid: {error}"))
        }
        a::EXCLUDE_OUTBOUND_RANGES => {
            prefixes(value).map_err(|error| format!("excludeIPRanges invalid: {error}"))
        }
        a::INCLUDE_INBOUND_PORTS if value == "*" => Ok(()),
        a::INCLUDE_INBOUND_PORTS => {
            ports(value).map_err(|error| format!("includeInboundPorts invalid: {error}"))
        }
        a::EXCLUDE_INBOUND_PORTS => {
            ports(value).map_err(|error| format!("excludeInboundPorts invalid: {error}"))
        }
        a::EXCLUDE_OUTBOUND_PORTS => {
            ports(value).map_err(|error| format!("excludeOutboundPorts invalid: {error}"))
        }
        a::EXCLUDE_INTERFACES | a::KUBEVIRT_INTERFACES | a::REROUTE_INTERFACES => interfaces(value),
        a::MERGE_METRICS => parse_bool(value).map(drop).ok_or_else(|| format!("{value:?} is not a boolean")),
        a::PROXY_CONFIG => ProxyConfig::built_in().apply_yaml(value).map(drop),
        a::PROXY_CPU | a::PROXY_MEMORY | a::PROXY_CPU_LIMIT | a::PROXY_MEMORY_LIMIT => {
            if value.chars().any(char::is_control) {
                Err("has control characters".to_owned())
            } else if is_quantity(value) {
                Ok(())
            } else {
                Err(format!("{value:?} is not a resource quantity"))
            }
        }
        _ => Ok(()),
    }
}

/// A boolean as Go reads it.
pub(crate) fn parse_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Some(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Some(false),
        _ => None,
    }
}

fn port(text: &str) -> Result<(), String> {
    let text = text.trim();
    match text.parse::<u16>() {
        Ok(_) if text.bytes().all(|b| b.is_ascii_digit()) => Ok(()),
        _ => Err(format!("failed parsing port {text:?}: not a number from 0 to 65535")),
    }
}

fn ports(list: &str) -> Result<(), String> {
    list.split(',').map(str::trim).filter(|item| !item.is_empty()).try_for_each(port)
}

/// Is this what [`annotations`] accepts as ports, or the wildcard?
pub(crate) fn is_port_list(text: &str) -> bool {
    text == "*" || ports(text).is_ok()
}

fn prefixes(list: &str) -> Result<(), String> {
    list.split(',').filter(|item| !list.is_empty() || !item.is_empty()).try_for_each(|item| {
        let failed = || format!("failed parsing cidr '{item}': expected ADDRESS/BITS");
        let (address, bits) = item.split_once('/').ok_or_else(failed)?;
        let address: IpAddr = address.parse().map_err(|_| failed())?;
        let bits: u8 = bits.parse().map_err(|_| failed())?;
        if bits <= if address.is_ipv4() { 32 } else { 128 } { Ok(()) } else { Err(failed()) }
    })
}

fn interfaces(list: &str) -> Result<(), String> {
    list.split(',').map(str::trim).filter(|name| !name.is_empty()).try_for_each(|name| {
        let fine = name.len() <= 15
            && name.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b'/' | b'"' | b'\'' | b'\\' | b';'));
        if fine { Ok(()) } else { Err(format!("{name:?} is not an interface name")) }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn check(key: &str, value: &str) -> Result<(), InjectError> {
        annotations(&json!({"metadata":{"annotations":{key: value}}}))
    }

    #[test]
    fn accepted_and_refused() {
        for (key, good, bad) in [
            (a::INTERCEPTION_MODE, "TPROXY", "tproxy"),
            (a::STATUS_PORT, "0", "65536"),
            (a::READINESS_PERIOD, "15", "-1"),
            (a::INCLUDE_OUTBOUND_RANGES, "*", "10.0.0.0/33"),
            (a::INCLUDE_OUTBOUND_RANGES, "", "10.0.0.1"),
            (a::EXCLUDE_OUTBOUND_RANGES, "10.0.0.0/8,fd00::/8", "*"),
            (a::INCLUDE_INBOUND_PORTS, "*", "http"),
            (a::EXCLUDE_INBOUND_PORTS, "80,443", "80;443"),
            (a::EXCLUDE_OUTBOUND_PORTS, "", "99999"),
            (a::EXCLUDE_INTERFACES, "net1,net2", "an-interface-name-that-is-too-long"),
            (a::MERGE_METRICS, "false", "maybe"),
            (a::PROXY_CONFIG, "concurrency: 2", "concurrency: many"),
            (a::PROXY_CPU, "100m", "100m\"\n - x"),
            (a::PROXY_MEMORY, "1Gi", ""),
        ] {
            assert!(check(key, good).is_ok(), "{key}={good}: {:?}", check(key, good));
            let error = check(key, bad).unwrap_err().to_string();
            assert!(error.contains(key) && error.contains(&format!("{bad:?}")), "{error}");
        }
    }

    #[test]
    fn every_violation_is_reported() {
        let pod = json!({"metadata":{"annotations":{a::PROXY_CPU:"x", a::STATUS_PORT:"y", "other":"z"}}});
        let Err(InjectError::InvalidAnnotations { violations }) = annotations(&pod) else {
            panic!("accepted")
        };
        assert_eq!(violations.len(), 2);
    }
}
