//! Packets at the places where given rules change their mind.

use std::net::IpAddr;

use ipnet::IpNet;
use mesh_netfilter::Ruleset;
use mesh_netfilter::net::{Owner, PortRange};
use mesh_netfilter::ruleset::{Match, OwnerKind, Target};
use mesh_netfilter::trace::{Direction, Packet};
use proptest::option;
use proptest::prelude::*;
use proptest::sample::Index;

use crate::strategies::packets;

/// Values that rules name, with their neighbours.
#[derive(Debug, Default)]
struct Boundaries {
    v4: Vec<IpAddr>,
    v6: Vec<IpAddr>,
    ports: Vec<u16>,
    ids: Vec<u32>,
    interfaces: Vec<String>,
    marks: Vec<u32>,
}

/// Names that rules use, as ids that no machine needs to know.
pub(crate) fn resolved(ruleset: &Ruleset) -> Ruleset {
    let id = |_: OwnerKind, name: &str| {
        let mix = |id: u32, byte: u8| id.wrapping_mul(31).wrapping_add(u32::from(byte)) % 1_000_000;
        Some(2_000_000 + name.bytes().fold(7, mix))
    };
    ruleset.resolve(id).expect("every name has an id")
}

/// Packets of every kind, most of them at some boundary of these rules.
pub(crate) fn packets_at(rulesets: &[&Ruleset]) -> impl Strategy<Value = Packet> + use<> {
    let mut at = Boundaries::default();
    for rule in rulesets.iter().flat_map(|ruleset| &ruleset.chains).flat_map(|chain| &chain.rules) {
        rule.matches.iter().for_each(|each| at.condition(each));
        at.target(&rule.target);
    }
    let choice = || option::of(any::<Index>());
    let ends = [choice(), choice(), choice(), choice()];
    let rest = [choice(), choice(), choice(), choice(), choice()];
    (packets(), ends, rest).prop_map(move |(packet, ends, rest)| at.move_there(packet, ends, rest))
}

impl Boundaries {
    fn condition(&mut self, each: &Match) {
        match each {
            Match::Source { net, .. } | Match::Destination { net, .. } => self.net(net),
            Match::SourcePorts { ports, .. } | Match::DestinationPorts { ports, .. } => {
                ports.iter().for_each(|port| self.port(*port));
            }
            Match::InInterface { interface, .. } | Match::OutInterface { interface, .. } => {
                self.interfaces.push(interface.as_str().replace('+', "7"));
            }
            Match::Uid { owner, .. } | Match::Gid { owner, .. } => {
                let (first, last) = match owner {
                    Owner::Id(id) => (*id, *id),
                    Owner::Range(first, last) => (*first, *last),
                    Owner::Name(_) => return,
                };
                self.ids.extend([first.saturating_sub(1), first, last, last.saturating_add(1)]);
            }
            Match::Mark { value, .. } | Match::ConnMark { value, .. } => self.marks.push(*value),
            _ => {}
        }
    }

    fn target(&mut self, target: &Target) {
        match target {
            Target::Redirect { port } => self.port(PortRange::single(*port)),
            Target::Tproxy { port, mark } => {
                self.port(PortRange::single(*port));
                self.marks.push(*mark);
            }
            Target::SetMark { value, .. } => self.marks.push(*value),
            _ => {}
        }
    }

    fn net(&mut self, net: &IpNet) {
        let (first, last) = (net.network(), net.broadcast());
        let all = [first, last, net.addr(), shifted(first, -1), shifted(last, 1)];
        if net.addr().is_ipv4() { self.v4.extend(all) } else { self.v6.extend(all) }
    }

    fn port(&mut self, port: PortRange) {
        let (first, last) = (port.first(), port.last());
        self.ports.extend([first.saturating_sub(1), first, last, last.saturating_add(1)]);
    }

    fn move_there(&self, mut packet: Packet, ends: [Option<Index>; 4], rest: [Option<Index>; 5]) -> Packet {
        let addresses = if packet.source.is_ipv4() { &self.v4 } else { &self.v6 };
        set(&mut packet.source, ends[0], addresses);
        set(&mut packet.destination, ends[1], addresses);
        if packet.protocol.has_ports() {
            set(&mut packet.source_port, ends[2], &self.ports);
            set(&mut packet.destination_port, ends[3], &self.ports);
        }
        set(&mut packet.interface, rest[0], &self.interfaces);
        set(&mut packet.mark, rest[1], &self.marks);
        set(&mut packet.connmark, rest[2], &self.marks);
        if packet.direction == Direction::Out
            && let (Some(uid), Some(gid)) = (&mut packet.uid, &mut packet.gid)
        {
            set(uid, rest[3], &self.ids);
            set(gid, rest[4], &self.ids);
        }
        packet
    }
}

fn set<T: Clone>(value: &mut T, choice: Option<Index>, from: &[T]) {
    if let Some(choice) = choice
        && !from.is_empty()
    {
        choice.get(from).clone_into(value);
    }
}

fn shifted(address: IpAddr, by: i8) -> IpAddr {
    match address {
        IpAddr::V4(v4) => IpAddr::V4(v4.to_bits().wrapping_add_signed(by.into()).into()),
        IpAddr::V6(v6) => IpAddr::V6(v6.to_bits().wrapping_add_signed(by.into()).into()),
    }
}
