//! Istio's own cases: for each, our rules and Istio's give every packet the same fate.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use libtest_mimic::Trial;
use mesh_netfilter::net::Family;
use mesh_netfilter::ruleset::{CtState, OwnerKind};
use mesh_netfilter::trace::{Direction, Packet};
use mesh_netfilter::{Interception, InterceptionConfig, Ruleset};
use serde_json::Value;

use crate::strategies::{draw, packets, runner};
use crate::trial;

/// Packets per case.
const PACKETS: u64 = 5_000;

pub(crate) fn trials() -> Vec<Trial> {
    let Some(folder) = std::env::var_os("MESH_GOLDEN_DIR").map(PathBuf::from) else {
        let none = |name| trial(name, || Ok(())).with_ignored_flag(true);
        return ["golden::iptables", "golden::cni", "golden::nftables"].map(none).into();
    };
    let mut trials = Vec::new();
    let iptables = index(&folder.join("iptables"));
    let nftables = index(&folder.join("nftables"));
    for case in cases(&iptables, "capture") {
        let name = format!("golden::iptables::{}", name(&case));
        trials.push(trial(name, move || {
            let golden = both(text(&case, "v4_restore"), text(&case, "v6_restore"))?;
            equivalent(&config(&case)?, &golden, |_| true)
        }));
    }
    for case in cases(&iptables, "cni-plugin") {
        let folder = folder.join("iptables");
        trials.push(trial(format!("golden::cni::{}", name(&case)), move || {
            let golden = both(&read(&folder, &case)?, "")?;
            equivalent(&annotated(&case)?, &golden, |_| true)
        }));
    }
    for case in cases(&nftables, "capture") {
        let folder = folder.join("nftables");
        trials.push(trial(format!("golden::nftables::{}", name(&case)), move || {
            let golden = Ruleset::from_nft(&read(&folder, &case)?).map_err(|error| error.to_string())?;
            let intent = config(&case)?;
            // What differs between Istio's two backends; the README has the table.
            let same_meaning = |packet: &Packet| {
                let owned = packet.direction == Direction::In || packet.uid.is_some();
                let family = intent.ipv6 || packet.family() == Family::V4;
                let valid = !(intent.drop_invalid && packet.state == CtState::Invalid);
                owned && family && valid
            };
            equivalent(&intent, &golden, same_meaning)
        }));
    }
    let found = trials.len();
    trials.push(trial("golden::all_cases_are_there", move || {
        if found >= 3 { Ok(()) } else { Err(format!("{found} cases")) }
    }));
    trials
}

fn index(folder: &Path) -> Value {
    let text = std::fs::read_to_string(folder.join("index.json")).expect("MESH_GOLDEN_DIR has an index.json");
    serde_json::from_str(&text).expect("it is JSON")
}

fn cases(index: &Value, suite: &str) -> Vec<Value> {
    index["suites"][suite]["cases"].as_array().expect("a list of cases").clone()
}

fn name(case: &Value) -> String {
    text(case, "name").to_owned()
}

fn text<'a>(case: &'a Value, field: &str) -> &'a str {
    case[field].as_str().unwrap_or_default()
}

fn read(folder: &Path, case: &Value) -> Result<String, String> {
    let path = folder.join(text(case, "golden"));
    std::fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))
}

fn both(v4: &str, v6: &str) -> Result<Ruleset, String> {
    let v4 = Ruleset::from_iptables(v4, Family::V4).map_err(|error| error.to_string())?;
    let v6 = Ruleset::from_iptables(v6, Family::V6).map_err(|error| error.to_string())?;
    Ok(v4.merge(v6))
}

/// A case's configuration, field by field as Istio names them.
fn config(case: &Value) -> Result<Interception, String> {
    let config = &case["config"];
    let word = |field: &str| text(config, field).to_owned();
    let on = |field: &str| config[field].as_bool().unwrap_or_default();
    let servers =
        ["DNSServersV4", "DNSServersV6"].into_iter().filter_map(|field| config[field].as_array()).flatten();
    InterceptionConfig {
        proxy_port: word("ProxyPort"),
        inbound_capture_port: word("InboundCapturePort"),
        inbound_tunnel_port: word("InboundTunnelPort"),
        proxy_uid: word("ProxyUID"),
        proxy_gid: word("ProxyGID"),
        inbound_interception_mode: word("InboundInterceptionMode"),
        inbound_tproxy_mark: word("InboundTProxyMark"),
        inbound_tproxy_route_table: word("InboundTProxyRouteTable"),
        inbound_ports_include: word("InboundPortsInclude"),
        inbound_ports_exclude: word("InboundPortsExclude"),
        outbound_ip_ranges_include: word("OutboundIPRangesInclude"),
        outbound_ip_ranges_exclude: word("OutboundIPRangesExclude"),
        outbound_ports_include: word("OutboundPortsInclude"),
        outbound_ports_exclude: word("OutboundPortsExclude"),
        owner_groups_include: word("OwnerGroupsInclude"),
        owner_groups_exclude: word("OwnerGroupsExclude"),
        exclude_interfaces: word("ExcludeInterfaces"),
        reroute_virtual_interfaces: word("RerouteVirtualInterfaces"),
        host_ipv4_loopback_cidr: word("HostIPv4LoopbackCidr"),
        redirect_dns: on("RedirectDNS"),
        capture_all_dns: on("CaptureAllDNS"),
        dns_servers: servers.filter_map(Value::as_str).map(str::to_owned).collect(),
        drop_invalid: on("DropInvalid"),
        enable_ipv6: on("EnableIPv6"),
    }
    .parse()
    .map_err(|error| error.to_string())
}

fn annotated(case: &Value) -> Result<Interception, String> {
    let map = |field: &str| -> BTreeMap<String, String> {
        let entries = case[field].as_object().into_iter().flatten();
        entries.map(|(name, value)| (name.clone(), value.as_str().unwrap_or_default().to_owned())).collect()
    };
    let id = |field: &str| case[field].as_u64().and_then(|id| u32::try_from(id).ok());
    Interception::from_annotations(
        &map("annotations"),
        &map("proxy_container_env"),
        id("proxy_run_as_user"),
        id("proxy_run_as_group"),
    )
    .map_err(|error| error.to_string())
}

/// Names that cases use, as ids that no machine needs to know.
fn resolved(ruleset: &Ruleset) -> Ruleset {
    let id = |_: OwnerKind, name: &str| match name {
        "java" => Some(5001),
        "ftp" => Some(5002),
        _ => None,
    };
    ruleset.resolve(id).expect("a name of the cases")
}

fn equivalent(
    intent: &Interception,
    golden: &Ruleset,
    compared: impl Fn(&Packet) -> bool,
) -> Result<(), String> {
    let ours = resolved(&Ruleset::from(intent));
    let golden = resolved(golden);
    if ours.len() > golden.len() {
        return Err(format!("{} rules where Istio has {}", ours.len(), golden.len()));
    }
    let mut runner = runner(1);
    let packets = packets();
    for _ in 0..PACKETS {
        let packet = draw(&packets, &mut runner);
        if compared(&packet) && ours.fate(&packet) != golden.fate(&packet) {
            return Err(format!("ours:\n{}\n\nIstio's:\n{}", ours.trace(&packet), golden.trace(&packet)));
        }
    }
    Ok(())
}
