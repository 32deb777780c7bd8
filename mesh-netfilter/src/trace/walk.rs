//! The walk itself.
//!
//! What leaves: the OUTPUT hook's tables, then, over loopback, those of PREROUTING and INPUT, where address translation is
//! not asked again. What arrives: PREROUTING, then INPUT.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::packet::{Direction, Packet};
use super::{Fate, Step, Verdict, explain};
use crate::net::Family;
use crate::ruleset::{Chain, CtState, Dialect, Hook, Match, Rule, Ruleset, TableKind, Target};

/// How deep jumps go: as in the kernel.
const DEPTH: usize = 16;
/// How many rules one packet is held against: far more than any ruleset has that a kernel takes, but text may hold chains
/// that jump in circles.
const RULES: usize = 100_000;

/// Who watches a walk.
pub(super) trait Watch {
    /// A rule was asked, and what it said.
    fn rule(
        &mut self,
        chain: &Chain,
        number: usize,
        depth: usize,
        rule: &Rule,
        said: Said<'_>,
        now: &Now<'_>,
    );
}

/// What a rule said of a packet.
#[derive(Debug, Clone, Copy)]
pub(super) enum Said<'a> {
    /// All conditions hold.
    Matched,
    /// It is for the other family.
    OtherFamily,
    /// This condition does not hold.
    Not(&'a Match),
    /// This condition cannot be decided.
    Unknown(&'a Match),
}

/// Nobody.
pub(super) struct Silent;

impl Watch for Silent {
    fn rule(&mut self, _: &Chain, _: usize, _: usize, _: &Rule, _: Said<'_>, _: &Now<'_>) {}
}

impl Watch for Vec<Step> {
    fn rule(
        &mut self,
        chain: &Chain,
        number: usize,
        depth: usize,
        rule: &Rule,
        said: Said<'_>,
        now: &Now<'_>,
    ) {
        self.push(Step {
            table: chain.table,
            chain: chain.name.to_string(),
            number,
            depth,
            rule: rule.to_string(),
            note: rule.note.to_string(),
            matched: match said {
                Said::Matched => Some(true),
                Said::Not(_) | Said::OtherFamily => Some(false),
                Said::Unknown(_) => None,
            },
            why: explain::why(rule, said, now),
        });
    }
}

/// The packet as it is at this point of its way.
#[derive(Debug, Clone, Copy)]
pub(super) struct Now<'a> {
    pub(super) packet: &'a Packet,
    pub(super) destination: IpAddr,
    pub(super) destination_port: u16,
    pub(super) in_interface: Option<&'a str>,
    pub(super) out_interface: Option<&'a str>,
    pub(super) owner: Option<(u32, u32)>,
    pub(super) mark: u32,
    pub(super) connmark: u32,
    zone: Option<u16>,
    verdict: Verdict,
    certain: bool,
}

impl<'a> Now<'a> {
    /// Before any rule was asked.
    fn first(packet: &'a Packet) -> Self {
        let (in_interface, out_interface, owner) = match packet.direction {
            Direction::In => (Some(packet.interface.as_str()), None, None),
            Direction::Out => (None, Some(packet.interface.as_str()), packet.uid.zip(packet.gid)),
        };
        Self {
            packet,
            destination: packet.destination,
            destination_port: packet.destination_port,
            in_interface,
            out_interface,
            owner,
            mark: packet.mark,
            connmark: packet.connmark,
            zone: None,
            verdict: Verdict::Accepted,
            certain: true,
        }
    }
}

/// Whether a condition holds before any rule was asked; `None` when it is not modelled.
pub(crate) fn holds_at_first(each: &Match, packet: &Packet) -> Option<bool> {
    holds(each, &Now::first(packet), Dialect::Iptables)
}

/// One packet on its way.
pub(super) struct Walk<'a, W> {
    ruleset: &'a Ruleset,
    watch: &'a mut W,
    now: Now<'a>,
    asked: usize,
}

/// How a chain ended.
enum End {
    /// Nothing was decided.
    Fell,
    /// The base chain lets the packet pass.
    Accepted,
    /// The packet is gone.
    Dropped,
}

impl<'a, W: Watch> Walk<'a, W> {
    pub(super) fn new(ruleset: &'a Ruleset, packet: &'a Packet, watch: &'a mut W) -> Self {
        Self { ruleset, watch, now: Now::first(packet), asked: 0 }
    }

    pub(super) fn run(mut self) -> Fate {
        let passed = match self.now.packet.direction {
            Direction::In => self.arrive(true),
            Direction::Out => self.leave(),
        };
        Fate {
            verdict: if passed { self.now.verdict } else { Verdict::Dropped },
            mark: self.now.mark,
            connmark: self.now.connmark,
            zone: self.now.zone.unwrap_or(0),
            certain: self.now.certain,
        }
    }

    /// Whether address translation is asked: for the first packet of a tracked connection.
    fn translates(&self) -> bool {
        matches!(self.now.packet.state, CtState::New | CtState::Related)
    }

    fn arrive(&mut self, first: bool) -> bool {
        let nat = first && self.translates();
        self.hook(Hook::Prerouting, nat) && self.hook(Hook::Input, false)
    }

    fn leave(&mut self) -> bool {
        if !self.hook(Hook::Output, self.translates()) || !self.hook(Hook::Postrouting, self.translates()) {
            return false;
        }
        if self.now.out_interface != Some("lo") {
            return true;
        }
        // Over loopback: the same packet arrives, its socket forgotten, its connection known.
        self.now.in_interface = self.now.out_interface.take();
        self.now.owner = None;
        self.arrive(false)
    }

    /// Asks the base chains of a hook; whether the packet goes on.
    fn hook(&mut self, hook: Hook, nat: bool) -> bool {
        let ruleset = self.ruleset;
        for table in TableKind::ALL {
            if table == TableKind::Nat && !nat {
                continue;
            }
            for chain in
                ruleset.chains.iter().filter(|chain| chain.hook == Some(hook) && chain.table == table)
            {
                match self.chain(chain, 0) {
                    End::Dropped => return false,
                    End::Fell if chain.drops => return false,
                    End::Fell | End::Accepted => {}
                }
                // The first translation of a connection is the only one.
                if table == TableKind::Nat && matches!(self.now.verdict, Verdict::Redirected { .. }) {
                    break;
                }
            }
        }
        true
    }

    fn chain(&mut self, chain: &'a Chain, depth: usize) -> End {
        for (index, rule) in chain.rules.iter().enumerate() {
            self.asked += 1;
            if self.asked > RULES {
                self.now.certain = false;
                return End::Fell;
            }
            let said = ask(rule, &self.now, self.ruleset.dialect);
            self.watch.rule(chain, index + 1, depth, rule, said, &self.now);
            match said {
                Said::Matched => {}
                Said::Not(_) | Said::OtherFamily => continue,
                Said::Unknown(_) => {
                    self.now.certain = false;
                    continue;
                }
            }
            match &rule.target {
                Target::Accept => return End::Accepted,
                Target::Drop | Target::Reject { .. } => return End::Dropped,
                Target::Return => return End::Fell,
                Target::Jump(name) | Target::Goto(name) => {
                    let found = self.ruleset.chain(chain.table, name).filter(|_| depth < DEPTH);
                    let Some(target) = found else {
                        self.now.certain = false;
                        continue;
                    };
                    let end = self.chain(target, depth + 1);
                    match end {
                        End::Fell if matches!(rule.target, Target::Jump(_)) => {}
                        end => return end,
                    }
                }
                Target::Redirect { port } => {
                    self.redirect(*port);
                    return End::Accepted;
                }
                Target::Tproxy { port, mark } => {
                    self.now.mark = *mark;
                    self.now.verdict = Verdict::Delivered { port: *port };
                    return End::Accepted;
                }
                Target::SetMark { value, mask } => self.now.mark = (self.now.mark & !mask) ^ value,
                Target::SaveMark => self.now.connmark = self.now.mark,
                Target::RestoreMark => self.now.mark = self.now.connmark,
                // A zone is chosen before the packet is tracked; a later choice finds it made.
                Target::Zone(zone) => {
                    self.now.zone.get_or_insert(*zone);
                }
                Target::Count => {}
                Target::Foreign { .. } => self.now.certain = false,
            }
        }
        End::Fell
    }

    fn redirect(&mut self, port: u16) {
        // A packet that has its socket already goes there, whatever its addresses become.
        if !matches!(self.now.verdict, Verdict::Delivered { .. }) {
            self.now.verdict = Verdict::Redirected { port };
        }
        self.now.destination_port = port;
        if self.now.packet.direction == Direction::Out {
            self.now.out_interface = Some("lo");
            self.now.destination = match self.now.packet.family() {
                Family::V4 => IpAddr::V4(Ipv4Addr::LOCALHOST),
                Family::V6 => IpAddr::V6(Ipv6Addr::LOCALHOST),
            };
        }
    }
}

/// Holds the packet against one rule.
fn ask<'a>(rule: &'a Rule, now: &Now<'_>, dialect: Dialect) -> Said<'a> {
    if rule.family.is_some_and(|family| family != now.packet.family()) {
        return Said::OtherFamily;
    }
    for each in &rule.matches {
        match holds(each, now, dialect) {
            Some(true) => {}
            Some(false) => return Said::Not(each),
            None => return Said::Unknown(each),
        }
    }
    Said::Matched
}

/// Whether a condition holds; `None` when it is not modelled.
fn holds(each: &Match, now: &Now<'_>, dialect: Dialect) -> Option<bool> {
    let owned = |id: Option<u32>, owner: &crate::net::Owner, invert: bool| match (id, dialect) {
        // Only the machine knows whom a name means.
        (Some(_), _) if matches!(owner, crate::net::Owner::Name(_)) => None,
        (Some(id), _) => Some(owner.contains(id) != invert),
        (None, Dialect::Iptables) => Some(invert),
        (None, Dialect::Nftables) => Some(false),
    };
    let ports = |port: u16, ports: &[crate::net::PortRange], invert: bool| {
        now.packet.protocol.has_ports() && ports.iter().any(|range| range.contains(port)) != invert
    };
    let inside = |net: &ipnet::IpNet, address: IpAddr, invert: bool| {
        net.addr().is_ipv4() == address.is_ipv4() && net.contains(&address) != invert
    };
    let named = |name: Option<&str>, interface: &crate::net::Interface, invert: bool| {
        name.is_some_and(|name| interface.matches(name)) != invert
    };
    Some(match each {
        Match::Protocol { protocol, invert } => {
            (now.packet.protocol.number() == protocol.number()) != *invert
        }
        Match::Source { net, invert } => inside(net, now.packet.source, *invert),
        Match::Destination { net, invert } => inside(net, now.destination, *invert),
        Match::SourcePorts { ports: list, invert } => ports(now.packet.source_port, list, *invert),
        Match::DestinationPorts { ports: list, invert } => ports(now.destination_port, list, *invert),
        Match::InInterface { interface, invert } => named(now.in_interface, interface, *invert),
        Match::OutInterface { interface, invert } => named(now.out_interface, interface, *invert),
        Match::Uid { owner, invert } => return owned(now.owner.map(|owner| owner.0), owner, *invert),
        Match::Gid { owner, invert } => return owned(now.owner.map(|owner| owner.1), owner, *invert),
        Match::Mark { value, mask, invert } => ((now.mark & mask) == *value) != *invert,
        Match::ConnMark { value, mask, invert } => ((now.connmark & mask) == *value) != *invert,
        Match::State { states, invert } => states.contains(&now.packet.state) != *invert,
        Match::Comment { .. } => true,
        Match::Foreign { .. } => return None,
    })
}
