//! Istio's nft script for any options, written from the description of its tool and of nothing else.

use mesh_netfilter::InterceptionConfig;
use mesh_netfilter::net::Family;

use crate::istio::{DNS_PORT, Options, of, split};

/// A chain's name and place.
type Base = (&'static str, &'static str);

/// Base chains with their places, then the others, in the order in which they are made.
const TABLES: [(&str, &[Base], &[&str]); 3] = [
    (
        "nat",
        &[
            ("prerouting", "type nat hook prerouting priority -100"),
            ("output", "type nat hook output priority -100"),
        ],
        &["istio-inbound", "istio-redirect", "istio-in-redirect", "istio-output", "istio-output-dns"],
    ),
    (
        "mangle",
        &[
            ("prerouting", "type filter hook prerouting priority -150"),
            ("output", "type route hook output priority -150"),
        ],
        &["istio-divert", "istio-tproxy", "istio-inbound", "istio-drop"],
    ),
    (
        "raw",
        &[
            ("prerouting", "type filter hook prerouting priority -300"),
            ("output", "type filter hook output priority -300"),
        ],
        &["istio-inbound", "istio-output-dns"],
    ),
];

/// The transaction that `nft -f -` is given.
pub(crate) fn script(words: &InterceptionConfig) -> String {
    let options = Options::new(words);
    let mut rules = Rules { rules: Vec::new() };
    rules.interfaces(&options);
    rules.inbound(&options);
    rules.outbound(&options);
    rules.lookups(&options);
    rules.destinations(&options);
    if options.tproxy {
        rules.tproxy(&options);
    }
    rules.text()
}

fn families(options: &Options<'_>) -> &'static [Family] {
    if options.v6 { &Family::BOTH } else { &[Family::V4] }
}

const fn ip(family: Family) -> &'static str {
    match family {
        Family::V4 => "ip",
        Family::V6 => "ip6",
    }
}

struct Rules {
    /// Table, chain, place to insert at, and the rule.
    rules: Vec<(&'static str, &'static str, Option<usize>, String)>,
}

impl Rules {
    fn add(&mut self, chain: &'static str, table: &'static str, rule: impl Into<String>) {
        self.rules.push((table, chain, None, rule.into()));
    }

    fn insert(&mut self, place: usize, chain: &'static str, table: &'static str, rule: impl Into<String>) {
        let there = self.rules.iter().filter(|(own, name, ..)| *own == table && *name == chain).count();
        self.rules.push((table, chain, (place < there).then_some(place), rule.into()));
    }

    fn interfaces(&mut self, options: &Options<'_>) {
        let tables: &[&'static str] = if options.tproxy { &["nat", "mangle"] } else { &["nat"] };
        for table in tables {
            for name in options.interfaces() {
                self.add("prerouting", table, format!("iifname {name} counter return"));
                self.add("output", table, format!("oifname {name} counter return"));
            }
        }
        for name in options.virtual_interfaces() {
            self.insert(0, "prerouting", "nat", format!("iifname {name} counter return"));
        }
        if options.words.drop_invalid {
            self.add("prerouting", "mangle", "meta l4proto tcp ct state invalid counter jump istio-drop");
            self.add("istio-drop", "mangle", "counter drop");
        }
    }

    fn inbound(&mut self, options: &Options<'_>) {
        let words = options.words;
        let tcp = "meta l4proto tcp";
        let tunnel = &words.inbound_tunnel_port;
        self.add("istio-inbound", "nat", format!("{tcp} tcp dport {tunnel} counter return"));
        self.add("istio-redirect", "nat", format!("{tcp} counter redirect to :{}", words.proxy_port));
        let port = &words.inbound_capture_port;
        self.add("istio-in-redirect", "nat", format!("{tcp} counter redirect to :{port}"));
        if words.inbound_ports_include.is_empty() {
            return;
        }
        let table = if options.tproxy { "mangle" } else { "nat" };
        if options.tproxy {
            let mark = &words.inbound_tproxy_mark;
            self.add("istio-divert", table, format!("counter meta mark set {mark}"));
            self.add("istio-divert", table, "counter accept");
            for family in families(options) {
                let (ip, (lo, _)) = (ip(*family), options.local(*family));
                self.add(
                    "istio-tproxy",
                    table,
                    format!(
                        "{tcp} {ip} daddr != {lo} tproxy {ip} to :{port} meta mark set {mark} counter accept"
                    ),
                );
            }
        }
        self.add("prerouting", table, format!("{tcp} counter jump istio-inbound"));
        let known = "ct state related,established";
        let target = if options.tproxy { "istio-tproxy" } else { "istio-in-redirect" };
        if words.inbound_ports_include == "*" {
            for port in split(&words.inbound_ports_exclude) {
                self.add("istio-inbound", table, format!("{tcp} tcp dport {port} counter return"));
            }
            if options.tproxy {
                self.add("istio-inbound", table, format!("{tcp} {known} counter jump istio-divert"));
            }
            self.add("istio-inbound", table, format!("{tcp} counter jump {target}"));
            return;
        }
        for port in split(&words.inbound_ports_include) {
            if options.tproxy {
                let divert = format!("{tcp} {known} tcp dport {port} counter jump istio-divert");
                self.add("istio-inbound", table, divert);
            }
            self.add("istio-inbound", table, format!("{tcp} tcp dport {port} counter jump {target}"));
        }
    }

    fn outbound(&mut self, options: &Options<'_>) {
        let words = options.words;
        let tunnel = &words.inbound_tunnel_port;
        self.add("output", "nat", "counter jump istio-output");
        for port in split(&words.outbound_ports_exclude) {
            for protocol in ["tcp", "udp"] {
                self.add("istio-output", "nat", format!("{protocol} dport {port} counter return"));
            }
        }
        for family in families(options) {
            let (_, own) = options.local(*family);
            self.add("istio-output", "nat", format!("oifname lo {} saddr {own} counter return", ip(*family)));
        }
        for (kind, id) in options.ids() {
            let ports = if options.dns && kind == "uid" {
                format!("tcp dport != {{ 53, {tunnel} }}")
            } else {
                format!("tcp dport != {tunnel}")
            };
            for family in families(options) {
                let (lo, _) = options.local(*family);
                let to = format!("{} daddr != {lo}", ip(*family));
                self.add(
                    "istio-output",
                    "nat",
                    format!("oifname lo meta l4proto tcp {to} {ports} sk{kind} {id} counter jump istio-in-redirect"),
                );
            }
            if !options.includes_loopback {
                let ports = if options.dns { "meta l4proto tcp tcp dport != 53 " } else { "" };
                self.add("istio-output", "nat", format!("oifname lo {ports}sk{kind} != {id} counter return"));
            }
            self.add("istio-output", "nat", format!("sk{kind} {id} counter return"));
        }
        if words.owner_groups_include == "*" {
            for group in split(&words.owner_groups_exclude) {
                self.add("istio-output", "nat", format!("skgid {group} counter return"));
            }
        } else {
            let groups: String =
                split(&words.owner_groups_include).iter().map(|group| format!("skgid != {group} ")).collect();
            self.add("istio-output", "nat", format!("{groups}counter return"));
        }
    }

    fn lookups(&mut self, options: &Options<'_>) {
        if !options.dns {
            return;
        }
        let (dns, redirect) = ("istio-output-dns", format!("counter redirect to :{DNS_PORT}"));
        let jump = format!("counter jump {dns}");
        self.add("output", "raw", jump.clone());
        self.add("istio-output", "nat", jump);
        let mut servers = Vec::new();
        for family in Family::BOTH {
            let length = if family == Family::V4 { 32 } else { 128 };
            let named = |server: &str| (ip(family), format!("{server}/{length}"));
            servers.extend(options.servers(family).into_iter().map(named));
        }
        if options.words.capture_all_dns {
            self.add(dns, "nat", format!("meta l4proto tcp tcp dport 53 {redirect}"));
            self.add(dns, "nat", format!("udp dport 53 {redirect}"));
        } else {
            for protocol in ["tcp", "udp"] {
                for (ip, net) in &servers {
                    self.add(dns, "nat", format!("{ip} daddr {net} {protocol} dport 53 {redirect}"));
                }
            }
        }
        for (kind, id) in options.ids() {
            self.add(dns, "raw", format!("udp dport 53 meta sk{kind} {id} counter ct zone set 1"));
            self.add(dns, "raw", format!("udp sport {DNS_PORT} meta sk{kind} {id} counter ct zone set 2"));
        }
        self.add("prerouting", "raw", "counter jump istio-inbound");
        if options.words.capture_all_dns {
            self.add(dns, "raw", "udp dport 53 counter ct zone set 2");
            self.add("istio-inbound", "raw", "udp sport 53 counter ct zone set 1");
            return;
        }
        for (ip, net) in &servers {
            self.add(dns, "raw", format!("udp dport 53 {ip} daddr {net} counter ct zone set 2"));
            self.add("istio-inbound", "raw", format!("udp sport 53 {ip} saddr {net} counter ct zone set 1"));
        }
    }

    fn destinations(&mut self, options: &Options<'_>) {
        let words = options.words;
        for family in families(options) {
            let (lo, _) = options.local(*family);
            self.add("istio-output", "nat", format!("{} daddr {lo} counter return", ip(*family)));
        }
        for family in families(options) {
            for net in of(split(&words.outbound_ip_ranges_exclude), *family) {
                self.add("istio-output", "nat", format!("{} daddr {net} counter return", ip(*family)));
            }
        }
        let jump = "counter jump istio-redirect";
        for port in split(&words.outbound_ports_include) {
            self.add("istio-output", "nat", format!("tcp dport {port} {jump}"));
        }
        if words.outbound_ip_ranges_include == "*" {
            self.add("istio-output", "nat", jump);
            for name in options.virtual_interfaces() {
                self.insert(0, "prerouting", "nat", format!("iifname {name} {jump}"));
            }
            return;
        }
        for family in families(options) {
            for net in of(split(&words.outbound_ip_ranges_include), *family) {
                let to = format!("{} daddr {net}", ip(*family));
                for name in options.virtual_interfaces() {
                    self.insert(0, "prerouting", "nat", format!("iifname {name} {to} {jump}"));
                }
                self.add("istio-output", "nat", format!("{to} {jump}"));
            }
        }
    }

    fn tproxy(&mut self, options: &Options<'_>) {
        let mark = &options.words.inbound_tproxy_mark;
        let tcp = "meta l4proto tcp";
        self.add("prerouting", "mangle", format!("{tcp} mark {mark} counter ct mark set mark"));
        self.add("output", "mangle", format!("oifname lo {tcp} mark {mark} counter return"));
        for (kind, id) in options.ids() {
            for family in families(options) {
                let (lo, _) = options.local(*family);
                let to = format!("{} daddr != {lo}", ip(*family));
                self.add(
                    "output",
                    "mangle",
                    format!("oifname lo {tcp} {to} sk{kind} {id} counter meta mark set 1338"),
                );
            }
        }
        self.add("output", "mangle", format!("{tcp} ct mark {mark} counter meta mark set ct mark"));
        self.insert(0, "istio-inbound", "mangle", format!("{tcp} mark {mark} counter return"));
        for family in families(options) {
            let (_, own) = options.local(*family);
            let from = format!("iifname lo {tcp} {} saddr {own} counter return", ip(*family));
            self.insert(1, "istio-inbound", "mangle", from);
        }
        self.insert(2, "istio-inbound", "mangle", format!("iifname lo {tcp} mark != 1338 counter return"));
    }

    fn text(&self) -> String {
        let mut text = String::new();
        for (name, bases, chains) in TABLES {
            let rules: Vec<_> = self.rules.iter().filter(|(table, ..)| *table == name).collect();
            if rules.is_empty() {
                continue;
            }
            let table = format!("inet istio-proxy-{name}");
            text.push_str(&format!("add table {table}\nflush table {table}\n"));
            let used = |chain: &str| rules.iter().any(|(_, own, ..)| *own == chain);
            for (chain, place) in bases.iter().filter(|(chain, _)| used(chain)) {
                text.push_str(&format!("add chain {table} {chain} {{ {place} ; }}\n"));
            }
            for chain in chains.iter().filter(|chain| used(chain)) {
                text.push_str(&format!("add chain {table} {chain}\n"));
            }
            for (_, chain, place, rule) in rules {
                match place {
                    None => text.push_str(&format!("add rule {table} {chain} {rule}\n")),
                    Some(place) => {
                        text.push_str(&format!("insert rule {table} {chain} index {place} {rule}\n"));
                    }
                }
            }
        }
        text
    }
}
