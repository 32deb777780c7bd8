//! Istio's own cases: for each, our rules and Istio's give every packet the same fate, and the rules of [`crate::istio`] and
//! [`crate::istio_nft`] are Istio's to the letter.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use libtest_mimic::Trial;
use mesh_netfilter::net::Family;
use mesh_netfilter::trace::Packet;
use mesh_netfilter::{Interception, InterceptionConfig, InvalidInterception, Ruleset};
use serde_json::Value;

use crate::boundaries::{packets_at, resolved};
use crate::equivalence::difference;
use crate::strategies::{draw, runner};
use crate::{istio, istio_nft, trial};

/// Packets per case.
const PACKETS: u64 = 5_000;

pub(crate) fn trials() -> Vec<Trial> {
    let Some(folder) = std::env::var_os("MESH_GOLDEN_DIR").map(PathBuf::from) else {
        let none = |name| trial(name, || Ok(())).with_ignored_flag(true);
        return ["golden::iptables", "golden::cni", "golden::nftables", "golden::tables"].map(none).into();
    };
    let mut trials = Vec::new();
    let iptables = read_json(&folder.join("iptables/index.json"));
    let nftables = read_json(&folder.join("nftables/index.json"));
    for case in cases(&iptables, "capture") {
        trials.push(trial(format!("golden::iptables::{}", name(&case)), move || {
            let golden = both(text(&case, "v4_restore"), text(&case, "v6_restore"))?;
            let words = words(&case);
            equivalent(&parsed(words.parse())?, &golden, |_| true)?;
            letter(text(&case, "v4_restore"), &istio::restore(&words, Family::V4))?;
            letter(text(&case, "v6_restore"), &istio::restore(&words, Family::V6))
        }));
    }
    for case in cases(&iptables, "cni-plugin") {
        let folder = folder.join("iptables");
        trials.push(trial(format!("golden::cni::{}", name(&case)), move || {
            let golden = both(&read(&folder, &case)?, "")?;
            equivalent(&parsed(annotated(&case))?, &golden, |_| true)
        }));
    }
    for case in cases(&nftables, "capture") {
        let folder = folder.join("nftables");
        trials.push(trial(format!("golden::nftables::{}", name(&case)), move || {
            let script = read(&folder, &case)?;
            let golden = Ruleset::from_nft(&script).map_err(|error| error.to_string())?;
            let words = words(&case);
            equivalent(&parsed(words.parse())?, &golden, |packet| difference(&words, packet).is_none())?;
            letter(&script, &istio_nft::script(&words))
        }));
    }
    let found = trials.len();
    trials.push(trial("golden::all_cases_are_there", move || {
        if found >= 3 { Ok(()) } else { Err(format!("{found} cases")) }
    }));
    for table in ["config", "validation"] {
        let table = read_json(&folder.join(format!("iptables/tools__common__config__{table}.json")));
        // The program's: which addresses a machine has, and which iptables it is told to use.
        let ours = |test: &str| test != "TestGetLocalIP" && test != "TestValidateIptablesBinary";
        for (test, rows) in table["tests"].as_object().into_iter().flatten().filter(|(test, _)| ours(test)) {
            let (test, rows) = (test.clone(), rows.clone());
            trials.push(trial(format!("golden::tables::{test}"), move || rows_hold(&test, &rows)));
        }
    }
    trials
}

fn read_json(path: &Path) -> Value {
    let text = std::fs::read_to_string(path).expect("MESH_GOLDEN_DIR has this file");
    serde_json::from_str(&text).expect("it is JSON")
}

/// A suite's cases; what a case does not say of its configuration is the suite's.
fn cases(index: &Value, suite: &str) -> Vec<Value> {
    let suite = &index["suites"][suite];
    let mut cases = suite["cases"].as_array().expect("a list of cases").clone();
    for case in &mut cases {
        let mut config = suite["base_config"].as_object().cloned().unwrap_or_default();
        for part in ["options_set", "config"] {
            config.extend(case[part].as_object().cloned().unwrap_or_default());
        }
        case["config"] = config.into();
    }
    cases
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

fn parsed(intent: Result<Interception, InvalidInterception>) -> Result<Interception, String> {
    intent.map_err(|error| error.to_string())
}

fn both(v4: &str, v6: &str) -> Result<Ruleset, String> {
    let v4 = Ruleset::from_iptables(v4, Family::V4).map_err(|error| error.to_string())?;
    let v6 = Ruleset::from_iptables(v6, Family::V6).map_err(|error| error.to_string())?;
    Ok(v4.merge(v6))
}

/// A case's configuration, field by field as Istio names them.
fn words(case: &Value) -> InterceptionConfig {
    let config = &case["config"];
    let word = |field: &str| match &config[field] {
        Value::String(word) => word.clone(),
        Value::Number(number) => number.to_string(),
        _ => String::new(),
    };
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
}

fn annotated(case: &Value) -> Result<Interception, InvalidInterception> {
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
    let packets = packets_at(&[&ours, &golden]);
    for _ in 0..PACKETS {
        let packet = draw(&packets, &mut runner);
        if compared(&packet) && ours.fate(&packet) != golden.fate(&packet) {
            return Err(format!("ours:\n{}\n\nIstio's:\n{}", ours.trace(&packet), golden.trace(&packet)));
        }
    }
    Ok(())
}

fn letter(golden: &str, written: &str) -> Result<(), String> {
    let (golden, written) = (golden.trim(), written.trim());
    if golden == written { Ok(()) } else { Err(format!("Istio's:\n{golden}\n\nas described:\n{written}")) }
}

/// Istio's tables about what is a valid word. What each row expects stands in the test's name, or beside its input.
fn rows_hold(test: &str, tables: &Value) -> Result<(), String> {
    let valid = !test.ends_with("_Invalid");
    let mut held = 0;
    for row in tables.as_array().into_iter().flatten().filter_map(|table| table["rows"].as_array()).flatten()
    {
        let mut config = InterceptionConfig::default();
        let groups = |field: &str| match &row[field] {
            Value::String(word) => Some(word.clone()),
            call => call["args"][0]
                .as_u64()
                .map(|count| (1..=count).map(|id| id.to_string()).collect::<Vec<_>>().join(",")),
        };
        match test {
            name if name.contains("OwnerGroups") => {
                config.owner_groups_include = groups("include").unwrap_or_else(|| "*".to_owned());
                config.owner_groups_exclude = groups("exclude").unwrap_or_default();
            }
            name if name.contains("LoopbackCidr") => {
                text(row, "cidr").clone_into(&mut config.host_ipv4_loopback_cidr);
            }
            "TestSeparateV4V6" => {
                text(row, "cidr").clone_into(&mut config.outbound_ip_ranges_include);
            }
            other => return Err(format!("{other} is not known here")),
        }
        let parsed = config.parse();
        if parsed.is_ok() != valid {
            return Err(format!("{}: {parsed:?}", text(row, "name")));
        }
        if test == "TestSeparateV4V6" {
            separated(row, &parsed.map_err(|error| error.to_string())?)?;
        }
        held += 1;
    }
    if held > 0 { Ok(()) } else { Err("no rows".to_owned()) }
}

fn separated(row: &Value, intent: &Interception) -> Result<(), String> {
    let mesh_netfilter::OutboundRanges::Only(nets) = &intent.outbound else {
        let wildcard = row["v4"]["isWildcard"] == true && row["v6"]["isWildcard"] == true;
        return if wildcard { Ok(()) } else { Err(text(row, "name").to_owned()) };
    };
    for (family, field) in [(Family::V4, "v4"), (Family::V6, "v6")] {
        let ours: Vec<String> =
            nets.iter().filter(|net| Family::of_net(net) == family).map(ToString::to_string).collect();
        let want = row[field]["cIDRs"]["args"].as_array().cloned().unwrap_or_default();
        if ours != want.iter().filter_map(Value::as_str).collect::<Vec<_>>() {
            return Err(format!("{}: {field}: {ours:?}", text(row, "name")));
        }
    }
    Ok(())
}
