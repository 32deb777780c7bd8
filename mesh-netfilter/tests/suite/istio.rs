//! Istio's iptables rules for any options, written from the description of its tool and of nothing else: what this crate
//! compiles is compared with these. That they are Istio's to the letter is shown by Istio's own cases.

use ipnet::IpNet;
use mesh_netfilter::InterceptionConfig;
use mesh_netfilter::net::Family;

/// The agent's port for lookups.
pub(crate) const DNS_PORT: u16 = 15053;

const BUILT_IN: [&str; 8] =
    ["INPUT", "OUTPUT", "FORWARD", "PREROUTING", "POSTROUTING", "ACCEPT", "RETURN", "DROP"];

/// The options as Istio reads them: lists split at commas, empty items dropped, nothing trimmed.
pub(crate) struct Options<'a> {
    pub(crate) words: &'a InterceptionConfig,
    pub(crate) v6: bool,
    pub(crate) tproxy: bool,
    /// Lookups are captured: asked for, and there is something to capture.
    pub(crate) dns: bool,
    pub(crate) uids: Vec<&'a str>,
    pub(crate) gids: Vec<&'a str>,
    /// A prefix of this machine is among the included.
    pub(crate) includes_loopback: bool,
}

impl<'a> Options<'a> {
    pub(crate) fn new(words: &'a InterceptionConfig) -> Self {
        let uids = split(if words.proxy_uid.is_empty() { "1337" } else { &words.proxy_uid });
        let gids = if words.proxy_gid.is_empty() { uids.clone() } else { split(&words.proxy_gid) };
        let includes_loopback = words.outbound_ip_ranges_include != "*"
            && split(&words.outbound_ip_ranges_include)
                .iter()
                .any(|net| net.parse::<IpNet>().is_ok_and(|net| net.addr().is_loopback()));
        Self {
            words,
            v6: words.enable_ipv6,
            tproxy: words.inbound_interception_mode == "TPROXY",
            dns: words.redirect_dns && (words.capture_all_dns || !words.dns_servers.is_empty()),
            uids,
            gids,
            includes_loopback,
        }
    }

    pub(crate) fn ids(&self) -> impl Iterator<Item = (&'static str, &'a str)> {
        let uids = self.uids.iter().map(|id| ("uid", *id));
        uids.chain(self.gids.iter().map(|id| ("gid", *id)))
    }

    /// The name servers of one family.
    pub(crate) fn servers(&self, family: Family) -> Vec<&'a str> {
        of(self.words.dns_servers.iter().map(String::as_str), family)
    }

    pub(crate) fn interfaces(&self) -> Vec<&'a str> {
        split(&self.words.exclude_interfaces)
    }

    pub(crate) fn virtual_interfaces(&self) -> Vec<&'a str> {
        split(&self.words.reroute_virtual_interfaces)
    }

    /// What means this machine, and the proxy's own source address.
    pub(crate) fn local(&self, family: Family) -> (&'a str, &'static str) {
        match family {
            Family::V4 => (&self.words.host_ipv4_loopback_cidr, "127.0.0.6/32"),
            Family::V6 => ("::1/128", "::6/128"),
        }
    }
}

pub(crate) fn split(list: &str) -> Vec<&str> {
    list.split(',').filter(|item| !item.is_empty()).collect()
}

/// The addresses and prefixes of one family.
pub(crate) fn of<'a>(words: impl IntoIterator<Item = &'a str>, family: Family) -> Vec<&'a str> {
    words.into_iter().filter(|word| word.contains(':') == (family == Family::V6)).collect()
}

/// What `iptables-restore --noflush` is given.
pub(crate) fn restore(words: &InterceptionConfig, family: Family) -> String {
    let options = Options::new(words);
    if family == Family::V6 && !options.v6 {
        return String::new();
    }
    let mut rules = Rules { family, rules: Vec::new() };
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

struct Rules {
    family: Family,
    /// Table, chain, and the words of the rule from `-A` or `-I` on.
    rules: Vec<(&'static str, &'static str, String)>,
}

impl Rules {
    fn append(&mut self, chain: &'static str, table: &'static str, rule: impl AsRef<str>) {
        self.rules.push((table, chain, format!("-A {chain} {}", rule.as_ref())));
    }

    fn insert(&mut self, place: usize, chain: &'static str, table: &'static str, rule: impl AsRef<str>) {
        self.rules.push((table, chain, format!("-I {chain} {place} {}", rule.as_ref())));
    }

    fn interfaces(&mut self, options: &Options<'_>) {
        let tables: &[&'static str] = if options.tproxy { &["nat", "mangle"] } else { &["nat"] };
        for table in tables {
            for name in options.interfaces() {
                self.append("PREROUTING", table, format!("-i {name} -j RETURN"));
                self.append("OUTPUT", table, format!("-o {name} -j RETURN"));
            }
        }
        for name in options.virtual_interfaces() {
            self.insert(1, "PREROUTING", "nat", format!("-i {name} -j RETURN"));
        }
        if options.words.drop_invalid {
            self.append("PREROUTING", "mangle", "-m conntrack --ctstate INVALID -j ISTIO_DROP");
            self.append("ISTIO_DROP", "mangle", "-j DROP");
        }
    }

    fn inbound(&mut self, options: &Options<'_>) {
        let words = options.words;
        let tunnel = &words.inbound_tunnel_port;
        self.append("ISTIO_INBOUND", "nat", format!("-p tcp --dport {tunnel} -j RETURN"));
        self.append("ISTIO_REDIRECT", "nat", format!("-p tcp -j REDIRECT --to-ports {}", words.proxy_port));
        let port = &words.inbound_capture_port;
        self.append("ISTIO_IN_REDIRECT", "nat", format!("-p tcp -j REDIRECT --to-ports {port}"));
        if words.inbound_ports_include.is_empty() {
            return;
        }
        let (lo, _) = options.local(self.family);
        let table = if options.tproxy { "mangle" } else { "nat" };
        if options.tproxy {
            let mark = &words.inbound_tproxy_mark;
            self.append("ISTIO_DIVERT", table, format!("-j MARK --set-mark {mark}"));
            self.append("ISTIO_DIVERT", table, "-j ACCEPT");
            self.append(
                "ISTIO_TPROXY",
                table,
                format!("! -d {lo} -p tcp -j TPROXY --tproxy-mark {mark}/0xffffffff --on-port {port}"),
            );
        }
        self.append("PREROUTING", table, "-p tcp -j ISTIO_INBOUND");
        let everything = words.inbound_ports_include == "*";
        if everything {
            for port in split(&words.inbound_ports_exclude) {
                self.append("ISTIO_INBOUND", table, format!("-p tcp --dport {port} -j RETURN"));
            }
        }
        let included = if everything { vec![String::new()] } else { Vec::new() };
        let listed = split(&words.inbound_ports_include).into_iter().filter(|_| !everything);
        for port in included.into_iter().chain(listed.map(|port| format!(" --dport {port}"))) {
            if options.tproxy {
                let known = "-m conntrack --ctstate RELATED,ESTABLISHED -j ISTIO_DIVERT";
                self.append("ISTIO_INBOUND", table, format!("-p tcp{port} {known}"));
                self.append("ISTIO_INBOUND", table, format!("-p tcp{port} -j ISTIO_TPROXY"));
            } else {
                self.append("ISTIO_INBOUND", table, format!("-p tcp{port} -j ISTIO_IN_REDIRECT"));
            }
        }
    }

    fn outbound(&mut self, options: &Options<'_>) {
        let words = options.words;
        let (lo, own) = options.local(self.family);
        let tunnel = &words.inbound_tunnel_port;
        self.append("OUTPUT", "nat", "-j ISTIO_OUTPUT");
        for port in split(&words.outbound_ports_exclude) {
            for protocol in ["tcp", "udp"] {
                self.append("ISTIO_OUTPUT", "nat", format!("-p {protocol} --dport {port} -j RETURN"));
            }
        }
        self.append("ISTIO_OUTPUT", "nat", format!("-o lo -s {own} -j RETURN"));
        for (kind, id) in options.ids() {
            let ports = if options.dns && kind == "uid" {
                format!("-m multiport ! --dports 53,{tunnel}")
            } else {
                format!("! --dport {tunnel}")
            };
            let owner = format!("-m owner --{kind}-owner {id}");
            self.append(
                "ISTIO_OUTPUT",
                "nat",
                format!("-o lo ! -d {lo} -p tcp {ports} {owner} -j ISTIO_IN_REDIRECT"),
            );
            if !options.includes_loopback {
                let ports = if options.dns { "-p tcp ! --dport 53 " } else { "" };
                self.append(
                    "ISTIO_OUTPUT",
                    "nat",
                    format!("-o lo {ports}-m owner ! --{kind}-owner {id} -j RETURN"),
                );
            }
            self.append("ISTIO_OUTPUT", "nat", format!("{owner} -j RETURN"));
        }
        if words.owner_groups_include == "*" {
            for group in split(&words.owner_groups_exclude) {
                self.append("ISTIO_OUTPUT", "nat", format!("-m owner --gid-owner {group} -j RETURN"));
            }
        } else {
            let groups: String = split(&words.owner_groups_include)
                .iter()
                .map(|group| format!("-m owner ! --gid-owner {group} "))
                .collect();
            self.append("ISTIO_OUTPUT", "nat", format!("{groups}-j RETURN"));
        }
    }

    fn lookups(&mut self, options: &Options<'_>) {
        if !options.dns {
            return;
        }
        let all = options.words.capture_all_dns;
        let servers = options.servers(self.family);
        let (length, dns) = (if self.family == Family::V4 { 32 } else { 128 }, "ISTIO_OUTPUT_DNS");
        self.append("OUTPUT", "raw", format!("-j {dns}"));
        if all || !servers.is_empty() {
            self.append("ISTIO_OUTPUT", "nat", format!("-j {dns}"));
        }
        for (protocol, to) in [("tcp", "--to-ports"), ("udp", "--to-port")] {
            if all {
                self.append(dns, "nat", format!("-p {protocol} --dport 53 -j REDIRECT {to} {DNS_PORT}"));
                continue;
            }
            for server in &servers {
                self.append(
                    dns,
                    "nat",
                    format!("-p {protocol} --dport 53 -d {server}/{length} -j REDIRECT {to} {DNS_PORT}"),
                );
            }
        }
        for (kind, id) in options.ids() {
            let owner = format!("-m owner --{kind}-owner {id}");
            self.append(dns, "raw", format!("-p udp --dport 53 {owner} -j CT --zone 1"));
            self.append(dns, "raw", format!("-p udp --sport {DNS_PORT} {owner} -j CT --zone 2"));
        }
        if all {
            self.append("PREROUTING", "raw", "-j ISTIO_INBOUND");
            self.append(dns, "raw", "-p udp --dport 53 -j CT --zone 2");
            self.append("ISTIO_INBOUND", "raw", "-p udp --sport 53 -j CT --zone 1");
        } else if !servers.is_empty() {
            self.append("PREROUTING", "raw", "-j ISTIO_INBOUND");
            for server in &servers {
                self.append(dns, "raw", format!("-p udp --dport 53 -d {server}/{length} -j CT --zone 2"));
                self.append(
                    "ISTIO_INBOUND",
                    "raw",
                    format!("-p udp --sport 53 -s {server}/{length} -j CT --zone 1"),
                );
            }
        }
    }

    fn destinations(&mut self, options: &Options<'_>) {
        let words = options.words;
        let (lo, _) = options.local(self.family);
        self.append("ISTIO_OUTPUT", "nat", format!("-d {lo} -j RETURN"));
        for net in of(split(&words.outbound_ip_ranges_exclude), self.family) {
            self.append("ISTIO_OUTPUT", "nat", format!("-d {net} -j RETURN"));
        }
        for port in split(&words.outbound_ports_include) {
            self.append("ISTIO_OUTPUT", "nat", format!("-p tcp --dport {port} -j ISTIO_REDIRECT"));
        }
        if words.outbound_ip_ranges_include == "*" {
            self.append("ISTIO_OUTPUT", "nat", "-j ISTIO_REDIRECT");
            for name in options.virtual_interfaces() {
                self.insert(1, "PREROUTING", "nat", format!("-i {name} -j ISTIO_REDIRECT"));
            }
            return;
        }
        for net in of(split(&words.outbound_ip_ranges_include), self.family) {
            for name in options.virtual_interfaces() {
                self.insert(1, "PREROUTING", "nat", format!("-i {name} -d {net} -j ISTIO_REDIRECT"));
            }
            self.append("ISTIO_OUTPUT", "nat", format!("-d {net} -j ISTIO_REDIRECT"));
        }
    }

    fn tproxy(&mut self, options: &Options<'_>) {
        let mark = &options.words.inbound_tproxy_mark;
        let (lo, own) = options.local(self.family);
        self.append("PREROUTING", "mangle", format!("-p tcp -m mark --mark {mark} -j CONNMARK --save-mark"));
        self.append("OUTPUT", "mangle", format!("-p tcp -o lo -m mark --mark {mark} -j RETURN"));
        for (kind, id) in options.ids() {
            let owner = format!("-m owner --{kind}-owner {id}");
            self.append(
                "OUTPUT",
                "mangle",
                format!("! -d {lo} -p tcp -o lo {owner} -j MARK --set-mark 1338"),
            );
        }
        self.append(
            "OUTPUT",
            "mangle",
            format!("-p tcp -m connmark --mark {mark} -j CONNMARK --restore-mark"),
        );
        self.insert(1, "ISTIO_INBOUND", "mangle", format!("-p tcp -m mark --mark {mark} -j RETURN"));
        self.insert(2, "ISTIO_INBOUND", "mangle", format!("-p tcp -s {own} -i lo -j RETURN"));
        self.insert(3, "ISTIO_INBOUND", "mangle", "-p tcp -i lo -m mark ! --mark 1338 -j RETURN");
    }

    /// Chains first: those that hold rules, then those that are only led to; tables by name.
    fn text(&self) -> String {
        let mut made: Vec<(&str, &str)> = Vec::new();
        let targets = self.rules.iter().filter_map(|(table, _, rule)| {
            let mut words = rule.rsplit(' ');
            let target = words.next()?;
            (words.next() == Some("-j")).then_some((*table, target))
        });
        for at in self.rules.iter().map(|(table, chain, _)| (*table, *chain)).chain(targets) {
            if !BUILT_IN.contains(&at.1) && !made.contains(&at) {
                made.push(at);
            }
        }
        let mut text = String::new();
        for table in ["filter", "mangle", "nat", "raw"] {
            let rules: Vec<_> = self.rules.iter().filter(|(own, ..)| *own == table).collect();
            if rules.is_empty() {
                continue;
            }
            text.push_str(&format!("* {table}\n"));
            for (_, chain) in made.iter().filter(|(own, _)| *own == table) {
                text.push_str(&format!("-N {chain}\n"));
            }
            for (_, _, rule) in rules {
                text.push_str(&format!("{rule}\n"));
            }
            text.push_str("COMMIT\n");
        }
        text
    }
}
