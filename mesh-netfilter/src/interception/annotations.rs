//! A pod's annotations and its proxy container's environment as an intent.

use std::collections::BTreeMap;

use super::config::{invalid, list};
use super::{Interception, InterceptionConfig, InvalidInterception};
use crate::net::Interface;

const MODE: &str = "sidecar.istio.io/interceptionMode";
const INCLUDE_RANGES: &str = "traffic.sidecar.istio.io/includeOutboundIPRanges";
const EXCLUDE_RANGES: &str = "traffic.sidecar.istio.io/excludeOutboundIPRanges";
const INCLUDE_INBOUND: &str = "traffic.sidecar.istio.io/includeInboundPorts";
const EXCLUDE_INBOUND: &str = "traffic.sidecar.istio.io/excludeInboundPorts";
const INCLUDE_OUTBOUND: &str = "traffic.sidecar.istio.io/includeOutboundPorts";
const EXCLUDE_OUTBOUND: &str = "traffic.sidecar.istio.io/excludeOutboundPorts";
const EXCLUDE_INTERFACES: &str = "traffic.sidecar.istio.io/excludeInterfaces";
const VIRTUAL_INTERFACES: &str = "istio.io/reroute-virtual-interfaces";
const VIRTUAL_INTERFACES_OLD: &str = "traffic.sidecar.istio.io/kubevirtInterfaces";

/// The agent's own ports, never captured inbound.
const AGENT_PORTS: [&str; 3] = ["15020", "15021", "15090"];

impl Interception {
    /// The intent of a pod: its annotations, its proxy container's environment, and the proxy's user and group (`None`
    /// or 0 mean 1337), as Istio's CNI plugin reads them.
    ///
    /// IPv6 and name servers are facts of the machine, not of the pod: set [`Interception::ipv6`] afterwards. DNS
    /// capture, where the environment asks for it, takes every lookup.
    ///
    /// # Errors
    /// The first annotation whose value has no meaning; the error's field is the annotation.
    ///
    /// # Examples
    /// ```
    /// use std::collections::BTreeMap;
    /// use mesh_netfilter::Interception;
    ///
    /// let annotations = BTreeMap::from([(
    ///     "traffic.sidecar.istio.io/excludeOutboundPorts".to_owned(),
    ///     "3306".to_owned(),
    /// )]);
    /// let intent = Interception::from_annotations(&annotations, &BTreeMap::new(), None, None)?;
    /// assert_eq!(intent.outbound_exclude_ports, [3306.into()]);
    /// # Ok::<(), mesh_netfilter::InvalidInterception>(())
    /// ```
    pub fn from_annotations(
        annotations: &BTreeMap<String, String>,
        environment: &BTreeMap<String, String>,
        uid: Option<u32>,
        gid: Option<u32>,
    ) -> Result<Self, InvalidInterception> {
        let get =
            |name: &str, default: &str| annotations.get(name).map_or(default, String::as_str).to_owned();
        let on = |name: &'static str| match environment.get(name).map(String::as_str) {
            None | Some("") => Ok(false),
            Some(value) => truth(value).ok_or_else(|| invalid(name, value, "is neither true nor false")),
        };
        let id = |id: Option<u32>| id.filter(|id| *id != 0).unwrap_or(1337).to_string();

        let mode = get(MODE, "REDIRECT");
        if !matches!(mode.as_str(), "REDIRECT" | "TPROXY") {
            return Err(invalid(MODE, &mode, "is neither REDIRECT nor TPROXY"));
        }
        let mut excluded: Vec<String> = Vec::new();
        for port in get(EXCLUDE_INBOUND, "15020").split(',').map(str::trim).chain(AGENT_PORTS) {
            if !port.is_empty() && !excluded.iter().any(|known| known == port) {
                excluded.push(port.to_owned());
            }
        }
        let virtual_interfaces = annotations
            .get(VIRTUAL_INTERFACES)
            .or_else(|| annotations.get(VIRTUAL_INTERFACES_OLD))
            .cloned()
            .unwrap_or_default();
        let exclude_interfaces = get(EXCLUDE_INTERFACES, "");
        for (field, names) in
            [(EXCLUDE_INTERFACES, &exclude_interfaces), (VIRTUAL_INTERFACES, &virtual_interfaces)]
        {
            check_interfaces(field, names)?;
        }
        for field in [INCLUDE_INBOUND, EXCLUDE_INBOUND, INCLUDE_OUTBOUND, EXCLUDE_OUTBOUND] {
            let value = annotations.get(field).map_or("", String::as_str);
            if field != INCLUDE_INBOUND || value != "*" {
                check_ports(field, value)?;
            }
        }
        let dns = on("ISTIO_META_DNS_CAPTURE")?;
        InterceptionConfig {
            proxy_uid: id(uid),
            proxy_gid: id(gid),
            inbound_interception_mode: mode,
            inbound_ports_include: get(INCLUDE_INBOUND, "*"),
            inbound_ports_exclude: excluded.join(","),
            outbound_ip_ranges_include: get(INCLUDE_RANGES, "*"),
            outbound_ip_ranges_exclude: get(EXCLUDE_RANGES, ""),
            outbound_ports_include: get(INCLUDE_OUTBOUND, ""),
            outbound_ports_exclude: get(EXCLUDE_OUTBOUND, "15020"),
            exclude_interfaces,
            reroute_virtual_interfaces: virtual_interfaces,
            redirect_dns: dns,
            capture_all_dns: dns,
            drop_invalid: on("INVALID_DROP")?,
            ..InterceptionConfig::default()
        }
        .parse()
        .map(|intent| without_defaults(intent, annotations))
        .map_err(by_annotation)
    }
}

/// The agent's ports are always added to the exclusions; that they have no effect under a port list is no contradiction.
fn without_defaults(mut intent: Interception, annotations: &BTreeMap<String, String>) -> Interception {
    if !annotations.contains_key(EXCLUDE_INBOUND) {
        intent.warnings.retain(|warning| warning.field != "istio-local-exclude-ports");
    }
    intent
}

/// Annotations are stricter about ports than flags: decimal numbers, no ranges.
fn check_ports(field: &'static str, ports: &str) -> Result<(), InvalidInterception> {
    let decimal = |port: &str| port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok();
    match ports.split(',').map(str::trim).find(|port| !port.is_empty() && !decimal(port)) {
        Some(port) => Err(invalid(field, port, "is not a port number between 0 and 65535")),
        None => Ok(()),
    }
}

/// Annotations are stricter about interfaces than flags: no empty item, and the characters of a device's usual name.
fn check_interfaces(field: &'static str, names: &str) -> Result<(), InvalidInterception> {
    if names.is_empty() {
        return Ok(());
    }
    for name in names.split(',').map(str::trim) {
        if name.is_empty() {
            return Err(invalid(field, names, "has an empty item"));
        }
        let usual = name.starts_with(|first: char| first.is_ascii_alphabetic())
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte));
        if !usual {
            return Err(invalid(field, name, "is not an interface name"));
        }
        list::<Interface>(field, name)?;
    }
    Ok(())
}

/// Names the annotation instead of the flag.
fn by_annotation(error: InvalidInterception) -> InvalidInterception {
    let name = |field: &'static str| match field {
        "istio-inbound-ports" => INCLUDE_INBOUND,
        "istio-local-exclude-ports" => EXCLUDE_INBOUND,
        "istio-service-cidr" => INCLUDE_RANGES,
        "istio-service-exclude-cidr" => EXCLUDE_RANGES,
        "istio-outbound-ports" => INCLUDE_OUTBOUND,
        "istio-local-outbound-ports-exclude" => EXCLUDE_OUTBOUND,
        other => other,
    };
    match error {
        InvalidInterception::Word { field, value, reason } => {
            InvalidInterception::Word { field: name(field), value, reason }
        }
        other => other,
    }
}

/// A boolean as Go's `strconv.ParseBool` reads it.
pub(crate) fn truth(word: &str) -> Option<bool> {
    match word {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Dns, InboundPorts, Mode};
    use super::*;

    fn of(annotations: &[(&str, &str)]) -> Result<Interception, InvalidInterception> {
        let map = annotations.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Interception::from_annotations(&map, &BTreeMap::new(), None, Some(0))
    }

    #[test]
    fn nothing_annotated_is_the_default_but_for_the_probe_port() {
        let want = Interception {
            inbound: InboundPorts::AllExcept(vec![15020.into(), 15021.into(), 15090.into()]),
            outbound_exclude_ports: vec![15020.into()],
            ..Interception::default()
        };
        assert_eq!(of(&[]), Ok(want));
    }

    #[test]
    fn annotations_and_environment_are_read() {
        let environment = BTreeMap::from([("ISTIO_META_DNS_CAPTURE".to_owned(), "true".to_owned())]);
        let annotations = BTreeMap::from([(MODE.to_owned(), "TPROXY".to_owned())]);
        let intent = Interception::from_annotations(&annotations, &environment, Some(7), None);
        let Ok(intent) = intent else { panic!("{intent:?}") };
        assert_eq!(intent.mode, Mode::TPROXY);
        assert_eq!(intent.dns, Dns::All { port: 15053 });
        assert_eq!((intent.proxy_uids, intent.proxy_gids), (vec![7.into()], vec![1337.into()]));
    }

    #[test]
    fn a_wrong_variable_is_named() {
        for name in ["ISTIO_META_DNS_CAPTURE", "INVALID_DROP"] {
            let of = |value: &str| {
                let environment = BTreeMap::from([(name.to_owned(), value.to_owned())]);
                Interception::from_annotations(&BTreeMap::new(), &environment, None, None)
            };
            assert_eq!(of("perhaps").map_err(|error| error.field()), Err(name));
            assert!(of("").is_ok());
        }
    }

    #[test]
    fn a_wrong_annotation_is_named() {
        for (name, value) in [
            (MODE, "NONE"),
            (EXCLUDE_OUTBOUND, "mysql"),
            (INCLUDE_OUTBOUND, "80:90"),
            (INCLUDE_INBOUND, "80,*"),
            (EXCLUDE_INBOUND, "0x50"),
            (EXCLUDE_INBOUND, "65536"),
            (INCLUDE_RANGES, "10.0.0.0"),
            (EXCLUDE_INTERFACES, "eth0,,eth1"),
            (VIRTUAL_INTERFACES, "0eth"),
        ] {
            assert_eq!(of(&[(name, value)]).map_err(|error| error.field()), Err(name), "{value}");
        }
    }
}
