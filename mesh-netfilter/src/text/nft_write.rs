//! An nft script: our table, replaced as a whole.

use std::fmt::Write;

use ipnet::IpNet;

use crate::net::{Family, Owner, PortRange, Protocol};
use crate::ruleset::{Chain, CtState, Hook, Match, Rule, Ruleset, TABLE, TableKind, Target};

pub(super) fn write(ruleset: &Ruleset) -> String {
    let mut text = String::with_capacity(4096);
    // Adding first makes the deletion succeed whether or not the table was there.
    let _ = writeln!(text, "add table inet {TABLE}\ndelete table inet {TABLE}\nadd table inet {TABLE}");
    let (bases, regular): (Vec<&Chain>, Vec<&Chain>) =
        ruleset.chains.iter().partition(|chain| chain.hook.is_some());
    for chain in regular.iter().chain(&bases) {
        let _ = write!(text, "add chain inet {TABLE} {}", name(chain));
        if let Some(hook) = chain.hook {
            let (kind, priority) = place(chain.table, hook);
            let hook = hook.as_str().to_ascii_lowercase();
            let policy = if chain.drops { "drop" } else { "accept" };
            let _ = write!(text, " {{ type {kind} hook {hook} priority {priority} ; policy {policy} ; }}");
        }
        text.push('\n');
    }
    for chain in regular.iter().chain(&bases) {
        let mut rules = chain.rules.as_slice();
        while let Some((rule, rest)) = rules.split_first() {
            let more = rest.iter().take_while(|other| differs_by_net(rule, other)).count();
            let nets: Vec<IpNet> = rules[..=more].iter().filter_map(only_net).collect();
            let _ = write!(text, "add rule inet {TABLE} {} ", name(chain));
            write_rule(rule, &nets, &mut text);
            text.push('\n');
            rules = &rest[more..];
        }
    }
    text
}

/// As over netlink: one table holds what iptables spreads over three.
fn name(chain: &Chain) -> String {
    crate::netlink::chain_name(chain).into_owned()
}

fn place(table: TableKind, hook: Hook) -> (&'static str, i32) {
    match (table, hook) {
        (TableKind::Raw, _) => ("filter", -300),
        (TableKind::Mangle, Hook::Output) => ("route", -150),
        (TableKind::Mangle, _) => ("filter", -150),
        // One before iptables' nat: the first address translation of a connection wins.
        (TableKind::Nat, Hook::Prerouting | Hook::Output) => ("nat", -101),
        (TableKind::Nat, _) => ("nat", 99),
        (TableKind::Filter, _) => ("filter", 0),
        (TableKind::Security, _) => ("filter", 50),
    }
}

/// The one prefix of a rule that could be a set's element.
fn only_net(rule: &Rule) -> Option<IpNet> {
    let mut nets = rule.matches.iter().filter_map(|each| match each {
        Match::Source { net, invert: false } | Match::Destination { net, invert: false } => Some(*net),
        _ => None,
    });
    nets.next().filter(|_| nets.next().is_none())
}

/// Whether two rules are the same but for one prefix of one family.
fn differs_by_net(a: &Rule, b: &Rule) -> bool {
    let like = |a: &Match, b: &Match| match (a, b) {
        (Match::Source { net: one, invert: false }, Match::Source { net: other, invert: false })
        | (
            Match::Destination { net: one, invert: false },
            Match::Destination { net: other, invert: false },
        ) => Family::of_net(one) == Family::of_net(other),
        (a, b) => a == b,
    };
    only_net(a).is_some()
        && only_net(b).is_some()
        && a.target == b.target
        && a.family == b.family
        && a.matches.len() == b.matches.len()
        && a.matches.iter().zip(&b.matches).all(|(a, b)| like(a, b))
}

fn write_rule(rule: &Rule, nets: &[IpNet], out: &mut String) {
    let has_net = rule.matches.iter().any(|each| each.family().is_some());
    if let Some(family) = rule.family.filter(|_| !has_net) {
        let _ = write!(out, "meta nfproto {} ", if family == Family::V4 { "ipv4" } else { "ipv6" });
    }
    let protocol = rule.matches.iter().find_map(|each| match each {
        Match::Protocol { protocol, invert: false } => Some(*protocol),
        _ => None,
    });
    let ports = |each: &Match| matches!(each, Match::SourcePorts { .. } | Match::DestinationPorts { .. });
    let named = protocol.is_some_and(Protocol::has_ports) && rule.matches.iter().any(ports);
    for each in &rule.matches {
        // `tcp dport` says the protocol too.
        if named && matches!(each, Match::Protocol { invert: false, .. }) {
            continue;
        }
        write_match(each, nets, protocol, out);
        out.push(' ');
    }
    out.push_str("counter");
    write_target(rule, out);
    if !rule.note.is_empty() {
        let _ = write!(out, " comment \"{}\"", rule.note.replace(['"', '\\', '\n'], "'"));
    }
}

const fn not(invert: bool) -> &'static str {
    if invert { "!= " } else { "" }
}

/// Names may have characters that mean something to nft.
fn whom(owner: &Owner) -> String {
    match owner {
        Owner::Name(name) => format!("\"{name}\""),
        id => id.to_string(),
    }
}

fn set(items: &[String]) -> String {
    match items {
        [one] => one.clone(),
        many => format!("{{ {} }}", many.join(", ")),
    }
}

/// Ports without overlaps: a set refuses them.
fn port_set(ports: &[PortRange]) -> String {
    let mut sorted = ports.to_vec();
    sorted.sort_unstable();
    let mut merged: Vec<(u16, u16)> = Vec::new();
    for port in sorted {
        match merged.last_mut() {
            Some((_, last)) if port.first() <= last.saturating_add(1) => *last = (*last).max(port.last()),
            _ => merged.push((port.first(), port.last())),
        }
    }
    let item = |(first, last): &(u16, u16)| {
        if first == last { first.to_string() } else { format!("{first}-{last}") }
    };
    set(&merged.iter().map(item).collect::<Vec<_>>())
}

fn write_match(each: &Match, nets: &[IpNet], protocol: Option<Protocol>, out: &mut String) {
    let address = |out: &mut String, side: &str, net: &IpNet, invert: bool| {
        let ip = if Family::of_net(net) == Family::V4 { "ip" } else { "ip6" };
        let own = [net.trunc()];
        let nets = if invert || nets.len() < 2 { own.to_vec() } else { IpNet::aggregate(&nets.to_vec()) };
        let nets: Vec<String> = nets.iter().map(|net| net.trunc().to_string()).collect();
        let _ = write!(out, "{ip} {side} {}{}", not(invert), set(&nets));
    };
    let ports = |out: &mut String, side: &str, ports: &[PortRange], invert: bool| {
        let protocol = protocol.map_or_else(|| "th".to_owned(), |protocol| protocol.to_string());
        let _ = write!(out, "{protocol} {side} {}{}", not(invert), port_set(ports));
    };
    let name = |name: &str| format!("\"{}\"", name.replace('+', "*"));
    let masked = |value: u32, mask: u32, invert: bool| {
        if mask == u32::MAX {
            format!("{}{value:#x}", not(invert))
        } else {
            format!("and {mask:#x} {} {value:#x}", if invert { "!=" } else { "==" })
        }
    };
    let _ = match each {
        Match::Protocol { protocol, invert } => write!(out, "meta l4proto {}{protocol}", not(*invert)),
        Match::Source { net, invert } => return address(out, "saddr", net, *invert),
        Match::Destination { net, invert } => return address(out, "daddr", net, *invert),
        Match::SourcePorts { ports: list, invert } => return ports(out, "sport", list, *invert),
        Match::DestinationPorts { ports: list, invert } => return ports(out, "dport", list, *invert),
        Match::InInterface { interface, invert } => {
            write!(out, "iifname {}{}", not(*invert), name(interface.as_str()))
        }
        Match::OutInterface { interface, invert } => {
            write!(out, "oifname {}{}", not(*invert), name(interface.as_str()))
        }
        Match::Uid { owner, invert } => write!(out, "meta skuid {}{}", not(*invert), whom(owner)),
        Match::Gid { owner, invert } => write!(out, "meta skgid {}{}", not(*invert), whom(owner)),
        Match::Mark { value, mask, invert } => write!(out, "meta mark {}", masked(*value, *mask, *invert)),
        Match::ConnMark { value, mask, invert } => write!(out, "ct mark {}", masked(*value, *mask, *invert)),
        Match::State { states, invert } => {
            let wanted = CtState::ALL.into_iter().filter(|state| states.contains(state) != *invert);
            let names: Vec<String> = wanted.map(|state| state.as_str().to_ascii_lowercase()).collect();
            write!(out, "ct state {}", names.join(","))
        }
        Match::Comment { .. } => Ok(()),
        Match::Foreign { words } => write!(out, "xt {words}"),
    };
}

fn write_target(rule: &Rule, out: &mut String) {
    let _ = match &rule.target {
        Target::Accept => write!(out, " accept"),
        Target::Drop => write!(out, " drop"),
        Target::Reject { .. } => write!(out, " reject"),
        Target::Return => write!(out, " return"),
        Target::Jump(chain) => write!(out, " jump {chain}"),
        Target::Goto(chain) => write!(out, " goto {chain}"),
        Target::Redirect { port } => write!(out, " redirect to :{port}"),
        Target::Tproxy { port, mark } => {
            let family = match rule.family {
                Some(Family::V4) => " ip",
                Some(Family::V6) => " ip6",
                None => "",
            };
            write!(out, " tproxy{family} to :{port} meta mark set {mark:#x} accept")
        }
        Target::SetMark { value, mask } if *mask == u32::MAX => write!(out, " meta mark set {value:#x}"),
        Target::SetMark { value, mask } => {
            write!(out, " meta mark set meta mark and {:#x} xor {value:#x}", !mask)
        }
        Target::SaveMark => write!(out, " ct mark set meta mark"),
        Target::RestoreMark => write!(out, " meta mark set ct mark"),
        Target::Zone(zone) => write!(out, " ct zone set {zone}"),
        Target::Count => Ok(()),
        Target::Foreign { words } => write!(out, " xt {words}"),
    };
}
