//! Options as people write them: any combination, well formed.

use mesh_netfilter::InterceptionConfig;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};

fn list(items: &'static [&'static str], most: usize) -> impl Strategy<Value = String> {
    subsequence(items.to_vec(), 0..=most.min(items.len())).prop_shuffle().prop_map(|items| items.join(","))
}

fn sometimes(items: &'static [&'static str], most: usize) -> impl Strategy<Value = String> {
    prop_oneof![2 => Just(String::new()), 3 => list(items, most)]
}

fn word(choices: &'static [&'static str]) -> impl Strategy<Value = String> {
    select(choices.to_vec()).prop_map(str::to_owned)
}

const PORTS: &[&str] = &[
    "80",
    "443",
    "53",
    "3306",
    "8080",
    "15001",
    "15006",
    "15008",
    "15020",
    "15021",
    "15053",
    "15090",
    "8000:8010",
    "1:1023",
    "60000:",
    "22",
    "1",
    "65535",
    "9090",
    "9091",
];

const NETS: &[&str] = &[
    "10.0.0.0/8",
    "10.1.0.0/16",
    "10.1.2.3/32",
    "9.9.0.1/16",
    "0.0.0.0/0",
    "127.1.2.3/32",
    "169.254.169.254/32",
    "2001:db8::/32",
    "fd00:1::5/64",
    "::1/128",
    "::/0",
];

const SERVERS: &[&str] = &["10.96.0.10", "127.0.0.53", "10.1.2.3", "fd00:96::a", "::7f00:35"];

/// Any options of Istio's tool.
pub(crate) fn words() -> impl Strategy<Value = InterceptionConfig> {
    let everything = |some| prop_oneof![2 => Just("*".to_owned()), 3 => some];
    let ports = (
        prop_oneof![3 => Just("15001".to_owned()), 1 => word(&["1", "4000", "15002"])],
        prop_oneof![3 => Just("15006".to_owned()), 1 => word(&["6000", "15007"])],
        prop_oneof![3 => Just("15008".to_owned()), 1 => word(&["53", "80", "15018"])],
    );
    let owners = (
        prop_oneof![2 => Just("1337".to_owned()), 1 => word(&["", "3,4", "0", "7,7", "1000-1999"])],
        prop_oneof![2 => Just("1337".to_owned()), 1 => word(&["", "1,2", "3", "4,1337", "100-199,7"])],
        prop_oneof![3 => Just("*".to_owned()), 1 => list(&["java", "202", "1337", "7"], 3)],
        sometimes(&["java", "ftp", "202", "888", "4"], 3),
    );
    let inbound = (
        prop_oneof![2 => Just(String::new()), 1 => Just("REDIRECT".to_owned()), 3 => Just("TPROXY".to_owned())],
        prop_oneof![3 => Just("1337".to_owned()), 1 => word(&["1338", "7", "4294967295"])],
        everything(list(PORTS, 20)),
        sometimes(PORTS, 20),
    );
    let outbound =
        (everything(list(NETS, 5)), sometimes(NETS, 4), sometimes(PORTS, 17), sometimes(PORTS, 17));
    let rest = (
        prop_oneof![2 => Just(String::new()), 1 => list(&["eth1", "not-istio-nic", "vnet0", "wg+"], 3)],
        prop_oneof![2 => Just(String::new()), 1 => list(&["vnet0", "vnet1", "tap+", "eth1"], 3)],
        word(&["127.0.0.1/32", "127.0.0.1/32", "127.0.0.1/8", "127.1.2.3/32"]),
        (any::<bool>(), prop::bool::weighted(0.3), subsequence(SERVERS.to_vec(), 0..4)),
        any::<bool>(),
        any::<bool>(),
    );
    (ports, owners, inbound, outbound, rest).prop_map(|(ports, owners, inbound, outbound, rest)| {
        let (redirect_dns, capture_all_dns, servers) = rest.3;
        InterceptionConfig {
            proxy_port: ports.0,
            inbound_capture_port: ports.1,
            inbound_tunnel_port: ports.2,
            proxy_uid: owners.0,
            proxy_gid: owners.1,
            owner_groups_include: owners.2,
            owner_groups_exclude: owners.3,
            inbound_interception_mode: inbound.0,
            inbound_tproxy_mark: inbound.1,
            inbound_ports_include: inbound.2,
            inbound_ports_exclude: inbound.3,
            outbound_ip_ranges_include: outbound.0,
            outbound_ip_ranges_exclude: outbound.1,
            outbound_ports_include: outbound.2,
            outbound_ports_exclude: outbound.3,
            exclude_interfaces: rest.0,
            reroute_virtual_interfaces: rest.1,
            host_ipv4_loopback_cidr: rest.2,
            redirect_dns,
            capture_all_dns,
            dns_servers: servers.into_iter().map(str::to_owned).collect(),
            drop_invalid: rest.4,
            enable_ipv6: rest.5,
            ..InterceptionConfig::default()
        }
    })
}
