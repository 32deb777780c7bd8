//! Packets made to measure: one that our rule captures, changed as little as possible until another's rule matches it.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::net::{Family, Interface, Owner, PortRange, Protocol};
use crate::ruleset::{Chain, CtState, Hook, Match, Rule, Target};
use crate::trace::{Direction, Packet, holds_at_first};

/// How deep jumps are followed: as in the kernel.
const DEPTH: usize = 16;
/// How many ways to rules of one base chain are followed: rules that are jumped to from everywhere have many.
const PATHS: usize = 20_000;
/// How many packets are tried for one rule.
const TRIED: usize = 2_000;
/// Ports, users and interfaces that rules rarely speak of.
const PORTS: [u16; 3] = [80, 9080, 33445];
const IDS: [u32; 4] = [1000, 1337, 0, 54321];
const INTERFACES: [&str; 3] = ["eth0", "lo", "eth7"];
const V4: [&str; 4] = ["192.0.2.1", "10.0.0.5", "127.0.0.1", "198.51.100.9"];
const V6: [&str; 4] = ["2001:db8::1", "fd00::5", "::1", "2001:db8:ffff::9"];

/// A rule and all conditions on the way to it.
pub(super) struct Path<'a> {
    hook: Hook,
    family: Option<Family>,
    pub(super) matches: Vec<&'a Match>,
    pub(super) rule: &'a Rule,
}

/// The ways to all rules.
pub(super) fn paths(chains: &[Chain]) -> impl Iterator<Item = Path<'_>> {
    let mut found = Vec::new();
    for base in chains {
        if let Some(hook) = base.hook {
            follow(chains, base, hook, &[], 0, &mut found);
        }
    }
    found.into_iter()
}

fn follow<'a>(
    chains: &'a [Chain],
    chain: &'a Chain,
    hook: Hook,
    before: &[&'a Match],
    depth: usize,
    found: &mut Vec<Path<'a>>,
) {
    for rule in &chain.rules {
        if found.len() >= PATHS {
            return;
        }
        let matches: Vec<&Match> = before.iter().copied().chain(&rule.matches).collect();
        if let Target::Jump(name) | Target::Goto(name) = &rule.target
            && let Some(next) = chains.iter().find(|next| next.table == chain.table && next.name == *name)
            && depth < DEPTH
        {
            follow(chains, next, hook, &matches, depth + 1, found);
        }
        found.push(Path { hook, family: rule.family, matches, rule });
    }
}

/// Packets for which one of `ours` holds, and `theirs` too where that can be had.
pub(super) fn witnesses<'a>(ours: &'a [Path<'a>], theirs: &'a [&'a Match]) -> impl Iterator<Item = Packet> {
    let from_path = |path: &'a Path<'a>| {
        let families =
            Family::BOTH.into_iter().filter(|family| path.family.is_none_or(|only| only == *family));
        families.flat_map(move |family| {
            PORTS.into_iter().filter_map(move |port| {
                let mut packet = begin(path.hook, family, port);
                settle(&mut packet, &path.matches).then_some(packet)
            })
        })
    };
    let with_theirs = |packet: Packet| {
        let mut changed = packet.clone();
        // What a rule says of translated packets does not hold for them before.
        let settled = settle(&mut changed, theirs).then_some(changed);
        settled.into_iter().chain(std::iter::once(packet))
    };
    // The last rules are for packets that nothing else is said about.
    ours.iter().rev().flat_map(from_path).flat_map(with_theirs).take(TRIED)
}

fn address(text: &str) -> IpAddr {
    text.parse().unwrap_or(IpAddr::V4(std::net::Ipv4Addr::LOCALHOST))
}

fn begin(hook: Hook, family: Family, port: u16) -> Packet {
    let out = hook == Hook::Output;
    let names = if family == Family::V4 { V4 } else { V6 };
    let (pod, other) = (address(names[1]), address(names[0]));
    Packet {
        direction: if out { Direction::Out } else { Direction::In },
        protocol: Protocol::Tcp,
        source: if out { pod } else { other },
        source_port: 40000,
        destination: if out { other } else { pod },
        destination_port: port,
        interface: INTERFACES[0].to_owned(),
        uid: out.then_some(IDS[0]),
        gid: out.then_some(IDS[0]),
        mark: 0,
        connmark: 0,
        state: CtState::New,
    }
}

/// Changes what has to be changed for all conditions to hold; whether they do then. Unknown ones are assumed to.
fn settle(packet: &mut Packet, matches: &[&Match]) -> bool {
    let holds = |packet: &Packet, each: &Match| holds_at_first(each, packet) != Some(false);
    for each in matches {
        if holds(packet, each) {
            continue;
        }
        let Some(changed) = changes(packet, each).into_iter().find(|changed| holds(changed, each)) else {
            return false;
        };
        *packet = changed;
    }
    matches.iter().all(|each| holds(packet, each))
}

/// The packet with the property that a condition speaks of changed in likely ways.
fn changes(packet: &Packet, each: &Match) -> Vec<Packet> {
    let with = |change: &dyn Fn(&mut Packet)| {
        let mut changed = packet.clone();
        change(&mut changed);
        changed
    };
    match each {
        Match::Protocol { protocol, .. } => [*protocol, Protocol::Tcp, Protocol::Udp, Protocol::Other(1)]
            .iter()
            .map(|protocol| with(&|packet| packet.protocol = *protocol))
            .collect(),
        Match::Source { net, .. } => {
            addresses(packet, net).iter().map(|to| with(&|packet| packet.source = *to)).collect()
        }
        Match::Destination { net, .. } => {
            addresses(packet, net).iter().map(|to| with(&|packet| packet.destination = *to)).collect()
        }
        Match::SourcePorts { ports, .. } => {
            likely_ports(ports).map(|port| with(&|packet| packet.source_port = port)).collect()
        }
        Match::DestinationPorts { ports, .. } => {
            likely_ports(ports).map(|port| with(&|packet| packet.destination_port = port)).collect()
        }
        Match::InInterface { interface, .. } | Match::OutInterface { interface, .. } => {
            let own = name(interface);
            let all = std::iter::once(own.as_str()).chain(INTERFACES);
            all.map(|name| with(&|packet| name.clone_into(&mut packet.interface))).collect()
        }
        Match::Uid { owner, .. } => ids(owner).map(|id| with(&|packet| packet.uid = Some(id))).collect(),
        Match::Gid { owner, .. } => ids(owner).map(|id| with(&|packet| packet.gid = Some(id))).collect(),
        Match::Mark { value, .. } => {
            [*value, 0, 1].iter().map(|mark| with(&|packet| packet.mark = *mark)).collect()
        }
        Match::ConnMark { value, .. } => {
            [*value, 0, 1].iter().map(|mark| with(&|packet| packet.connmark = *mark)).collect()
        }
        Match::State { states, .. } => {
            let all = states.iter().copied().chain(CtState::ALL);
            all.map(|state| with(&|packet| packet.state = state)).collect()
        }
        Match::Comment { .. } | Match::Foreign { .. } => Vec::new(),
    }
}

fn addresses(packet: &Packet, net: &IpNet) -> Vec<IpAddr> {
    let names = if packet.source.is_ipv4() { V4 } else { V6 };
    let own = [net.hosts().next(), Some(net.network()), Some(net.broadcast())];
    let own = own.into_iter().flatten().filter(|own| own.is_ipv4() == packet.source.is_ipv4());
    own.chain(names.into_iter().map(address)).collect()
}

fn likely_ports(ports: &[PortRange]) -> impl Iterator<Item = u16> {
    ports.iter().flat_map(|range| [range.first(), range.last()]).chain(PORTS)
}

fn ids(owner: &Owner) -> impl Iterator<Item = u32> {
    let own = match owner {
        Owner::Id(id) => vec![*id],
        Owner::Range(first, last) => vec![*first, *last],
        Owner::Name(_) => Vec::new(),
    };
    own.into_iter().chain(IDS)
}

/// An interface that has this name or begins with it.
fn name(interface: &Interface) -> String {
    interface.prefix().map_or_else(|| interface.as_str().to_owned(), |prefix| format!("{prefix}0"))
}
