//! Rules in the plainest form: one rule per word of the intent, in the order in which Istio asks. What the crate writes has
//! fewer rules and must mean the same.

use ipnet::IpNet;
use mesh_netfilter::net::{Family, PortRange};
use mesh_netfilter::{Dns, InboundPorts, Interception, Mode, OutboundRanges, OwnerGroups, Ruleset};

/// The reference for both families of an intent.
pub(crate) fn ruleset(intent: &Interception) -> Ruleset {
    let v4 = Ruleset::from_iptables(&text(intent, Family::V4), Family::V4).expect("plain rules");
    if !intent.ipv6 {
        return v4;
    }
    v4.merge(Ruleset::from_iptables(&text(intent, Family::V6), Family::V6).expect("plain rules"))
}

struct Plain {
    raw: Vec<String>,
    mangle: Vec<String>,
    nat: Vec<String>,
}

fn text(intent: &Interception, family: Family) -> String {
    let mut plain = Plain { raw: Vec::new(), mangle: Vec::new(), nat: Vec::new() };
    let (lo, six) = match family {
        Family::V4 => (intent.loopback.to_string(), "127.0.0.6/32"),
        Family::V6 => ("::1/128".to_owned(), "::6/128"),
    };
    inbound(intent, family, &lo, &mut plain);
    outbound(intent, family, &lo, six, &mut plain);
    if let Mode::Tproxy { mark, .. } = intent.mode {
        tproxy_tail(intent, mark, &lo, six, &mut plain.mangle);
    }
    let mut text = String::new();
    for (name, rules) in [("raw", plain.raw), ("mangle", plain.mangle), ("nat", plain.nat)] {
        if !rules.is_empty() {
            text.push_str(&format!("*{name}\n{}\nCOMMIT\n", rules.join("\n")));
        }
    }
    text
}

fn of(nets: &[IpNet], family: Family) -> impl Iterator<Item = &IpNet> {
    nets.iter().filter(move |net| net.addr().is_ipv4() == (family == Family::V4))
}

fn inbound(intent: &Interception, family: Family, lo: &str, plain: &mut Plain) {
    let Plain { mangle, nat, .. } = plain;
    for name in &intent.exclude_interfaces {
        nat.push(format!("-A PREROUTING -i {name} -j RETURN"));
        nat.push(format!("-A OUTPUT -o {name} -j RETURN"));
        if intent.mode != Mode::Redirect {
            mangle.push(format!("-A PREROUTING -i {name} -j RETURN"));
            mangle.push(format!("-A OUTPUT -o {name} -j RETURN"));
        }
    }
    for name in &intent.virtual_interfaces {
        nat.push(format!("-I PREROUTING 1 -i {name} -j RETURN"));
    }
    if intent.drop_invalid {
        mangle.push("-A PREROUTING -m conntrack --ctstate INVALID -j DROP".into());
    }
    nat.push(format!("-A INBOUND -p tcp --dport {} -j RETURN", intent.tunnel_port));
    nat.push(format!("-A REDIRECT_OUT -p tcp -j REDIRECT --to-ports {}", intent.outbound_port));
    nat.push(format!("-A REDIRECT_IN -p tcp -j REDIRECT --to-ports {}", intent.inbound_port));
    if !intent.captures_inbound() {
        return;
    }
    let transparent = match intent.mode {
        Mode::Tproxy { mark, .. } => Some(mark),
        Mode::Redirect => None,
    };
    if let Some(mark) = transparent {
        mangle.push(format!("-A DIVERT -j MARK --set-mark {mark}"));
        mangle.push("-A DIVERT -j ACCEPT".into());
        let port = intent.inbound_port;
        mangle.push(format!(
            "-A TPROXIED ! -d {lo} -p tcp -j TPROXY --tproxy-mark {mark}/0xffffffff --on-port {port}"
        ));
    }
    let table = if transparent.is_some() { &mut *mangle } else { &mut *nat };
    table.push("-A PREROUTING -p tcp -j INBOUND".into());
    for net in of(&intent.inbound_exempt_sources, family) {
        table.push(format!("-A INBOUND -s {net} -j RETURN"));
    }
    let mut capture = |port: Option<&PortRange>| {
        let port = port.map_or_else(String::new, |port| format!(" --dport {port}"));
        if transparent.is_some() {
            table.push(format!(
                "-A INBOUND -p tcp{port} -m conntrack --ctstate RELATED,ESTABLISHED -j DIVERT"
            ));
            table.push(format!("-A INBOUND -p tcp{port} -j TPROXIED"));
        } else {
            table.push(format!("-A INBOUND -p tcp{port} -j REDIRECT_IN"));
        }
    };
    match &intent.inbound {
        InboundPorts::Only(ports) => ports.iter().for_each(|port| capture(Some(port))),
        InboundPorts::AllExcept(ports) => {
            for port in ports {
                table.push(format!("-A INBOUND -p tcp --dport {port} -j RETURN"));
            }
            let mut capture = |line: &str| table.push(line.to_owned());
            if transparent.is_some() {
                capture("-A INBOUND -p tcp -m conntrack --ctstate RELATED,ESTABLISHED -j DIVERT");
                capture("-A INBOUND -p tcp -j TPROXIED");
            } else {
                capture("-A INBOUND -p tcp -j REDIRECT_IN");
            }
        }
    }
}

fn outbound(intent: &Interception, family: Family, lo: &str, six: &str, plain: &mut Plain) {
    let nat = &mut plain.nat;
    let dns = intent.dns.port().is_some();
    nat.push("-A OUTPUT -j OUTBOUND".into());
    for port in &intent.outbound_exclude_ports {
        nat.push(format!("-A OUTBOUND -p tcp --dport {port} -j RETURN"));
        nat.push(format!("-A OUTBOUND -p udp --dport {port} -j RETURN"));
    }
    nat.push(format!("-A OUTBOUND -o lo -s {six} -j RETURN"));
    let loopback_included = matches!(&intent.outbound, OutboundRanges::Only(nets) if nets.iter().any(|net| net.addr().is_loopback()));
    let uids = intent.proxy_uids.iter().map(|owner| ("uid", owner));
    for (kind, owner) in uids.chain(intent.proxy_gids.iter().map(|owner| ("gid", owner))) {
        let own = format!("-m owner --{kind}-owner {owner}");
        let ports = if dns && kind == "uid" {
            format!("-m multiport ! --dports 53,{}", intent.tunnel_port)
        } else {
            format!("! --dport {}", intent.tunnel_port)
        };
        nat.push(format!("-A OUTBOUND -o lo ! -d {lo} -p tcp {ports} {own} -j REDIRECT_IN"));
        if !loopback_included {
            let ports = if dns { "-p tcp ! --dport 53 " } else { "" };
            nat.push(format!("-A OUTBOUND -o lo {ports}-m owner ! --{kind}-owner {owner} -j RETURN"));
        }
        nat.push(format!("-A OUTBOUND {own} -j RETURN"));
    }
    match &intent.owner_groups {
        OwnerGroups::AllExcept(groups) => {
            nat.extend(
                groups.iter().map(|group| format!("-A OUTBOUND -m owner --gid-owner {group} -j RETURN")),
            );
        }
        OwnerGroups::Only(groups) => {
            let not: String = groups.iter().map(|group| format!("-m owner ! --gid-owner {group} ")).collect();
            nat.push(format!("-A OUTBOUND {not}-j RETURN"));
        }
    }
    lookups(intent, family, plain);
    let nat = &mut plain.nat;
    nat.push(format!("-A OUTBOUND -d {lo} -j RETURN"));
    nat.extend(of(&intent.outbound_exclude, family).map(|net| format!("-A OUTBOUND -d {net} -j RETURN")));
    nat.extend(
        intent.outbound_ports.iter().map(|port| format!("-A OUTBOUND -p tcp --dport {port} -j REDIRECT_OUT")),
    );
    match &intent.outbound {
        OutboundRanges::All => {
            nat.push("-A OUTBOUND -j REDIRECT_OUT".into());
            nat.extend(
                intent
                    .virtual_interfaces
                    .iter()
                    .map(|name| format!("-I PREROUTING 1 -i {name} -j REDIRECT_OUT")),
            );
        }
        OutboundRanges::Only(nets) => {
            for net in of(nets, family) {
                for name in &intent.virtual_interfaces {
                    nat.push(format!("-I PREROUTING 1 -i {name} -d {net} -j REDIRECT_OUT"));
                }
                nat.push(format!("-A OUTBOUND -d {net} -j REDIRECT_OUT"));
            }
        }
    }
}

fn lookups(intent: &Interception, family: Family, plain: &mut Plain) {
    let Plain { raw, nat, .. } = plain;
    let Some(agent) = intent.dns.port() else { return };
    raw.push("-A OUTPUT -j DNS".into());
    let uids = intent.proxy_uids.iter().map(|owner| format!("-m owner --uid-owner {owner}"));
    for owner in uids.chain(intent.proxy_gids.iter().map(|owner| format!("-m owner --gid-owner {owner}"))) {
        raw.push(format!("-A DNS -p udp --dport 53 {owner} -j CT --zone 1"));
        raw.push(format!("-A DNS -p udp --sport {agent} {owner} -j CT --zone 2"));
    }
    raw.push("-A PREROUTING -j INBOUND".into());
    nat.push("-A OUTBOUND -j DNS".into());
    let servers: Vec<(String, String)> = match &intent.dns {
        Dns::Servers { servers, .. } => {
            let nets: Vec<IpNet> = servers.iter().map(|server| IpNet::from(*server)).collect();
            of(&nets, family).map(|net| (format!(" -d {net}"), format!(" -s {net}"))).collect()
        }
        _ => vec![(String::new(), String::new())],
    };
    for (to, from) in servers {
        nat.push(format!("-A DNS -p tcp --dport 53{to} -j REDIRECT --to-ports {agent}"));
        nat.push(format!("-A DNS -p udp --dport 53{to} -j REDIRECT --to-port {agent}"));
        raw.push(format!("-A DNS -p udp --dport 53{to} -j CT --zone 2"));
        raw.push(format!("-A INBOUND -p udp --sport 53{from} -j CT --zone 1"));
    }
    // Chains that a family without servers never fills.
    nat.push("-A DNS -j RETURN".into());
    raw.push("-A INBOUND -j RETURN".into());
}

fn tproxy_tail(intent: &Interception, mark: u32, lo: &str, six: &str, mangle: &mut Vec<String>) {
    mangle.push(format!("-A PREROUTING -p tcp -m mark --mark {mark} -j CONNMARK --save-mark"));
    mangle.push(format!("-A OUTPUT -p tcp -o lo -m mark --mark {mark} -j RETURN"));
    let uids = intent.proxy_uids.iter().map(|owner| format!("--uid-owner {owner}"));
    for owner in uids.chain(intent.proxy_gids.iter().map(|owner| format!("--gid-owner {owner}"))) {
        mangle.push(format!("-A OUTPUT ! -d {lo} -p tcp -o lo -m owner {owner} -j MARK --set-mark 1338"));
    }
    mangle.push(format!("-A OUTPUT -p tcp -m connmark --mark {mark} -j CONNMARK --restore-mark"));
    mangle.push(format!("-I INBOUND 1 -p tcp -m mark --mark {mark} -j RETURN"));
    mangle.push(format!("-I INBOUND 2 -p tcp -s {six} -i lo -j RETURN"));
    mangle.push("-I INBOUND 3 -p tcp -i lo -m mark ! --mark 1338 -j RETURN".into());
}
