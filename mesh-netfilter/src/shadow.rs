//! Rules of others that take packets before ours see them, or after.
//!
//! Nothing is guessed from the words of a rule: a packet is made that ours capture, held against our rules alone and against
//! both, and if it fares differently, the rule that made the difference is reported with that packet.

mod witness;

use std::borrow::Cow;
use std::fmt;

use crate::ruleset::{CHAIN_PREFIX, Chain, Hook, Match, Rule, Ruleset, TableKind, Target};
use crate::trace::{Fate, Packet, Verdict};
use witness::{Path, paths, witnesses};

/// A rule of somebody else that takes packets from our rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shadow {
    /// Where it stands: program or family, table, chain, and its number from 1; no number for a chain's policy.
    pub place: String,
    /// The rule, as `iptables-save` writes it.
    pub rule: String,
    /// A packet that it takes.
    pub packet: Packet,
    /// What happens to that packet by our rules alone.
    pub by_ours: Verdict,
    /// Whether the rule surely takes that packet; otherwise it has conditions that this crate does not model.
    pub certain: bool,
}

impl fmt::Display for Shadow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { place, rule, packet, by_ours, certain } = self;
        let takes = if *certain { "takes" } else { "may take" };
        write!(f, "{place} `{rule}` {takes} {packet} (by our rules {by_ours})")
    }
}

/// Where foreign chains stand, seen from our chains of the same table and hook.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// Packets meet them first.
    Before,
    /// Packets meet ours first.
    After,
    /// Ours hang on these.
    Around,
}

/// Chains of others that hang together. No two sets have a chain's name in common.
#[derive(Debug)]
pub(crate) struct Foreign {
    pub(crate) table: TableKind,
    pub(crate) place: Place,
    pub(crate) chains: Vec<Chain>,
}

/// Where a base chain of this priority stands, when our address translation has priority `nat`.
pub(crate) const fn place_of(priority: i32, translates: bool, nat: i32) -> (TableKind, Place) {
    match priority {
        priority if translates && priority <= nat => (TableKind::Nat, Place::Before),
        _ if translates => (TableKind::Nat, Place::After),
        ..=-300 => (TableKind::Raw, Place::Before),
        -299..=-150 => (TableKind::Mangle, Place::Before),
        priority if priority <= nat => (TableKind::Mangle, Place::After),
        _ => (TableKind::Filter, Place::Before),
    }
}

impl Foreign {
    /// The tables of one `iptables-save`, `program` being its name; our own chains are left out.
    pub(crate) fn of_iptables(live: &Ruleset, program: &str, around: bool, nat: i32) -> Vec<Self> {
        let one_table = |table: TableKind| {
            let (kind, place) = match table {
                TableKind::Raw => place_of(-300, false, nat),
                TableKind::Mangle => place_of(-150, false, nat),
                TableKind::Nat => place_of(-100, true, nat),
                TableKind::Filter => place_of(0, false, nat),
                TableKind::Security => place_of(50, false, nat),
            };
            let chains = live.chains.iter().filter(|chain| chain.table == table && !is_ours(&chain.name));
            let chains = chains.map(|chain| renamed(chain, kind, &format!("{program} {table}"))).collect();
            Self { table: kind, place: if around { Place::Around } else { place }, chains }
        };
        TableKind::ALL.into_iter().map(one_table).collect()
    }
}

fn is_ours(name: &str) -> bool {
    name.starts_with(CHAIN_PREFIX)
}

/// The chain under a name that says whose it is; jumps to chains of ours stay.
pub(crate) fn renamed(chain: &Chain, table: TableKind, prefix: &str) -> Chain {
    let name = |name: &str| Cow::Owned(format!("{prefix} {name}"));
    let mut renamed = Chain { table, name: name(&chain.name), ..chain.clone() };
    for rule in &mut renamed.rules {
        if let Target::Jump(to) | Target::Goto(to) = &mut rule.target
            && !is_ours(to)
        {
            *to = name(to);
        }
    }
    renamed
}

/// The rules among `foreign` that take packets which `desired` captures, drops or tracks apart.
pub(crate) fn find(desired: &Ruleset, foreign: &[Foreign]) -> Vec<Shadow> {
    let ours: Vec<Path<'_>> = paths(&desired.chains).filter(|path| acts(&path.rule.target)).collect();
    foreign.iter().flat_map(|foreign| Held::new(desired, foreign).shadows(&ours)).collect()
}

const fn acts(target: &Target) -> bool {
    matches!(
        target,
        Target::Redirect { .. }
            | Target::Tproxy { .. }
            | Target::Drop
            | Target::Reject { .. }
            | Target::Zone(_)
    )
}

/// One set of foreign chains, held against ours.
struct Held<'a> {
    desired: &'a Ruleset,
    foreign: &'a Foreign,
    /// The foreign chains as far as a walk can follow them.
    modelled: Vec<Chain>,
    /// Ours and theirs.
    both: Ruleset,
}

impl<'a> Held<'a> {
    fn new(desired: &'a Ruleset, foreign: &'a Foreign) -> Self {
        let mut modelled = foreign.chains.clone();
        for rule in modelled.iter_mut().flat_map(|chain| &mut chain.rules) {
            *rule = model(rule, foreign.place);
        }
        let around = |chain: &&Chain| {
            foreign.place != Place::Around || chain.table != foreign.table || chain.hook.is_none()
        };
        let ours: Vec<Chain> = desired.chains.iter().filter(around).cloned().collect();
        let chains = match foreign.place {
            Place::After => [ours, modelled.clone()].concat(),
            Place::Before | Place::Around => [modelled.clone(), ours].concat(),
        };
        Self { desired, foreign, modelled, both: Ruleset { chains, dialect: desired.dialect } }
    }

    fn shadows(&self, ours: &[Path<'_>]) -> Vec<Shadow> {
        let mut found: Vec<Shadow> = Vec::new();
        let theirs: Vec<Path<'_>> =
            paths(&self.modelled).filter(|path| self.takes(&path.rule.target)).collect();
        let policies = self.modelled.iter().filter(|chain| chain.drops).map(|_| &[][..]);
        let conditions = theirs.iter().map(|path| &path.matches[..]).chain(policies);
        for conditions in conditions {
            for packet in witnesses(ours, conditions) {
                let Some(shadow) = self.judge(&packet) else { continue };
                if !found.iter().any(|known| known.place == shadow.place) {
                    found.push(shadow);
                }
                break;
            }
        }
        found
    }

    /// Whether a target ends a packet's way to our rules.
    const fn takes(&self, target: &Target) -> bool {
        match target {
            Target::Accept | Target::Return | Target::Goto(_) => matches!(self.foreign.place, Place::Around),
            target => acts(target),
        }
    }

    /// The rule that makes a packet of ours fare otherwise.
    fn judge(&self, packet: &Packet) -> Option<Shadow> {
        let end = |fate: Fate| (fate.verdict, fate.zone);
        let alone = self.desired.fate(packet);
        if end(alone) == (Verdict::Accepted, 0) || end(self.both.fate(packet)) == end(alone) {
            return None;
        }
        let trace = self.both.trace(packet);
        let matched = trace.steps.iter().filter(|step| step.matched == Some(true));
        let theirs: Vec<_> = matched
            .filter_map(|step| {
                let index = self.modelled.iter().position(|chain| chain.name == step.chain)?;
                Some((
                    step,
                    self.foreign.chains.get(index)?.rules.get(step.number - 1)?,
                    &self.modelled[index],
                ))
            })
            .collect();
        let certain = theirs.iter().all(|(_, rule, _)| is_modelled(rule));
        let shadow =
            |place, rule| Shadow { place, rule, packet: packet.clone(), by_ours: alone.verdict, certain };
        let taker = theirs.iter().rev().find(|(step, _, chain)| {
            chain.rules.get(step.number - 1).is_some_and(|rule| self.takes(&rule.target))
        });
        if let Some((step, rule, _)) = taker {
            return Some(shadow(format!("{}#{}", step.chain, step.number), rule.to_string()));
        }
        let policy = self.modelled.iter().find(|chain| chain.drops && chain.hook.is_some())?;
        (trace.fate.verdict == Verdict::Dropped)
            .then(|| shadow(policy.name.to_string(), "policy DROP".to_owned()))
    }
}

/// What a condition or target that is only known by its words does to our packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Words {
    /// It loads something for another word.
    Nothing,
    /// It sends packets elsewhere.
    Elsewhere,
    /// It takes them out of the way, or hides them from address translation.
    Away,
    /// It may hold or not.
    Unknown,
}

impl Words {
    fn of(words: &str) -> Self {
        let words = words.trim_matches(['(', ')']);
        let words = words.strip_prefix("target ").unwrap_or(words);
        match words.split([' ', '(']).next().unwrap_or_default() {
            "Constant" => Self::Nothing,
            "nat" | "redir" | "DNAT" | "REDIRECT" | "NETMAP" => Self::Elsewhere,
            "queue" | "reject" | "notrack" | "synproxy" | "tproxy" => Self::Away,
            "NFQUEUE" | "QUEUE" | "REJECT" | "NOTRACK" | "SYNPROXY" | "TPROXY" => Self::Away,
            "CT" if words.contains("--notrack") => Self::Away,
            _ => Self::Unknown,
        }
    }
}

fn words(rule: &Rule) -> impl Iterator<Item = Words> {
    let target = match &rule.target {
        Target::Foreign { words } => Some(Words::of(words)),
        _ => None,
    };
    let matches = rule.matches.iter().filter_map(|each| match each {
        Match::Foreign { words } => Some(Words::of(words)),
        _ => None,
    });
    matches.chain(target)
}

/// Whether a rule has no condition whose outcome is unknown.
fn is_modelled(rule: &Rule) -> bool {
    let unknown =
        |each: &Match| matches!(each, Match::Foreign { words } if Words::of(words) == Words::Unknown);
    !rule.matches.iter().any(unknown)
}

/// A rule that a walk can follow, assumed to take packets where that cannot be known.
fn model(rule: &Rule, place: Place) -> Rule {
    let mut modelled = rule.clone();
    if words(rule).any(|words| words == Words::Elsewhere) {
        // To which port does not matter.
        modelled.target = Target::Redirect { port: 0 };
    } else if words(rule).any(|words| words == Words::Away) {
        modelled.target = Target::Drop;
    }
    let assumed = match &modelled.target {
        // Elsewhere these may as well save packets from a later rule.
        Target::Accept | Target::Return => place == Place::Around,
        Target::Count | Target::Foreign { .. } => false,
        _ => true,
    };
    if assumed {
        modelled.matches.retain(|each| !matches!(each, Match::Foreign { .. }));
    }
    modelled
}

/// Whether our packets come past this hook.
pub(crate) const fn concerns(hook: Hook) -> bool {
    matches!(hook, Hook::Prerouting | Hook::Input | Hook::Output)
}

#[cfg(test)]
mod tests;
