//! Rules to nf_tables expressions.

use std::borrow::Cow;

use ipnet::IpNet;

use super::expr::{Base, Compare, Ct, Expr, Meta, Verdict};
use crate::net::{Family, Interface, Owner, PortRange};
use crate::ruleset::{Chain, Hook, Match, Rule, Ruleset, TableKind, Target};

/// Longest comment that a rule keeps: its length is one byte, and the terminator counts.
const COMMENT: usize = 254;

/// One before iptables' nat: the first address translation of a connection wins.
pub(crate) const NAT_PRIORITY: i32 = -101;

/// What should be in the kernel's table, chain by chain.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Lowered {
    /// Chains that are jumped to come first.
    pub(crate) chains: Vec<LoweredChain>,
}

/// One chain of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LoweredChain {
    pub(crate) name: Cow<'static, str>,
    pub(crate) base: Option<BaseChain>,
    pub(crate) rules: Vec<LoweredRule>,
}

/// What makes a chain a base chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BaseChain {
    pub(crate) kind: Cow<'static, str>,
    pub(crate) hook: u32,
    pub(crate) priority: i32,
    pub(crate) drops: bool,
}

/// One rule of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LoweredRule {
    pub(crate) exprs: Vec<Expr>,
    pub(crate) comment: Cow<'static, str>,
}

/// A rule that this backend cannot express.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("chain {chain}: rule `{rule}` cannot be written as nf_tables expressions: {reason}")]
pub struct Unsupported {
    /// The chain it stands in.
    pub chain: String,
    /// The rule.
    pub rule: String,
    /// Why not.
    pub reason: &'static str,
}

impl Lowered {
    /// The whole ruleset; owner names must have been resolved.
    pub(crate) fn new(ruleset: &Ruleset) -> Result<Self, Unsupported> {
        let mut chains = Vec::with_capacity(ruleset.chains.len());
        for chain in &ruleset.chains {
            let mut rules = Vec::with_capacity(chain.rules.len());
            for rule in &chain.rules {
                lower(rule, &mut rules).map_err(|reason| Unsupported {
                    chain: chain.name.to_string(),
                    rule: rule.to_string(),
                    reason,
                })?;
            }
            chains.push(LoweredChain { name: chain_name(chain), base: base(chain), rules });
        }
        chains.sort_by_key(|chain| chain.base.is_some());
        Ok(Self { chains })
    }
}

/// A base chain's name in our one table, where `OUTPUT` could be of any of three.
pub(crate) fn chain_name(chain: &Chain) -> Cow<'static, str> {
    let Some(hook) = chain.hook else { return chain.name.clone() };
    format!("{}-{}", chain.table.as_str(), hook.as_str().to_ascii_lowercase()).into()
}

/// The reverse of [`chain_name`].
pub(crate) fn hook_of(name: &str) -> Option<(TableKind, Hook)> {
    let (table, hook) = name.split_once('-')?;
    let table = TableKind::ALL.into_iter().find(|kind| kind.as_str() == table)?;
    Some((table, Hook::from_name(&hook.to_ascii_uppercase())?))
}

fn base(chain: &Chain) -> Option<BaseChain> {
    let hook = chain.hook?;
    let kind = match (chain.table, hook) {
        (TableKind::Nat, _) => "nat",
        // A changed mark must change the route.
        (TableKind::Mangle, Hook::Output) => "route",
        _ => "filter",
    };
    let priority = match (chain.table, hook) {
        (TableKind::Raw, _) => -300,
        (TableKind::Mangle, _) => -150,
        (TableKind::Nat, Hook::Prerouting | Hook::Output) => NAT_PRIORITY,
        (TableKind::Nat, _) => 99,
        (TableKind::Filter, _) => 0,
        (TableKind::Security, _) => 50,
    };
    let hook = match hook {
        Hook::Prerouting => 0,
        Hook::Input => 1,
        Hook::Forward => 2,
        Hook::Output => 3,
        Hook::Postrouting => 4,
    };
    Some(BaseChain { kind: kind.into(), hook, priority, drops: chain.drops })
}

/// Appends the rule, or several when it names several ports.
fn lower(rule: &Rule, out: &mut Vec<LoweredRule>) -> Result<(), &'static str> {
    let mut alternatives = vec![Vec::with_capacity(8)];
    if let Some(family) = rule.family {
        let number = match family {
            Family::V4 => 2,
            Family::V6 => 10,
        };
        all(&mut alternatives, [Expr::Meta(Meta::Family), equal(false, vec![number])]);
    }
    // A port is read only when the protocol is known to have one.
    for protocol in [true, false] {
        for each in rule.matches.iter().filter(|each| matches!(each, Match::Protocol { .. }) == protocol) {
            alternatives = lower_match(each, alternatives)?;
        }
    }
    for mut exprs in alternatives {
        exprs.push(Expr::Counter);
        lower_target(&rule.target, &mut exprs)?;
        let mut comment = rule.note.clone();
        if comment.len() > COMMENT {
            comment = comment.chars().take(COMMENT / 4).collect::<String>().into();
        }
        out.push(LoweredRule { exprs, comment });
    }
    Ok(())
}

fn all(alternatives: &mut [Vec<Expr>], exprs: impl IntoIterator<Item = Expr> + Clone) {
    for each in alternatives {
        each.extend(exprs.clone());
    }
}

const fn equal(invert: bool, value: Vec<u8>) -> Expr {
    Expr::Compare(if invert { Compare::NotEqual } else { Compare::Equal }, value)
}

fn lower_match(each: &Match, mut alternatives: Vec<Vec<Expr>>) -> Result<Vec<Vec<Expr>>, &'static str> {
    match each {
        Match::Protocol { protocol, invert } => {
            all(&mut alternatives, [Expr::Meta(Meta::Protocol), equal(*invert, vec![protocol.number()])]);
        }
        Match::Source { net, invert } => all(&mut alternatives, address(net, true, *invert)),
        Match::Destination { net, invert } => all(&mut alternatives, address(net, false, *invert)),
        Match::SourcePorts { ports, invert } => return Ok(lower_ports(ports, *invert, 0, alternatives)),
        Match::DestinationPorts { ports, invert } => return Ok(lower_ports(ports, *invert, 2, alternatives)),
        Match::InInterface { interface, invert } => {
            all(&mut alternatives, name(Meta::InName, interface, *invert));
        }
        Match::OutInterface { interface, invert } => {
            all(&mut alternatives, name(Meta::OutName, interface, *invert));
        }
        Match::Uid { owner, invert } => all(&mut alternatives, id(Meta::Uid, owner, *invert)?),
        Match::Gid { owner, invert } => all(&mut alternatives, id(Meta::Gid, owner, *invert)?),
        Match::Mark { value, mask, invert } => {
            all(&mut alternatives, masked(Expr::Meta(Meta::Mark), *value, *mask, *invert));
        }
        Match::ConnMark { value, mask, invert } => {
            all(&mut alternatives, masked(Expr::Ct(Ct::Mark), *value, *mask, *invert));
        }
        Match::State { states, invert } => {
            let bits = states.iter().fold(0, |bits, state| bits | state.bit());
            // "Some of these bits" is "not none of them".
            let compare = equal(!*invert, vec![0; 4]);
            all(&mut alternatives, [Expr::Ct(Ct::State), Expr::Mask(bits.to_ne_bytes().into()), compare]);
        }
        Match::Comment { .. } => {}
        Match::Foreign { .. } => return Err("it has a match that is only known by its words"),
    }
    Ok(alternatives)
}

fn address(net: &IpNet, source: bool, invert: bool) -> Vec<Expr> {
    let octets = |address: std::net::IpAddr| match address {
        std::net::IpAddr::V4(address) => address.octets().to_vec(),
        std::net::IpAddr::V6(address) => address.octets().to_vec(),
    };
    let value = octets(net.network());
    let len = if value.len() == 4 { 4 } else { 16 };
    let start = if len == 4 { 12 } else { 8 };
    let offset = if source { start } else { start + len };
    let mut exprs = vec![Expr::Payload { base: Base::Network, offset, len }];
    if net.prefix_len() < net.max_prefix_len() {
        exprs.push(Expr::Mask(octets(net.netmask())));
    }
    exprs.push(equal(invert, value));
    exprs
}

fn lower_ports(
    ports: &[PortRange],
    invert: bool,
    offset: u32,
    mut alternatives: Vec<Vec<Expr>>,
) -> Vec<Vec<Expr>> {
    let load = Expr::Payload { base: Base::Transport, offset, len: 2 };
    let bytes = |port: u16| port.to_be_bytes().to_vec();
    if invert {
        all(&mut alternatives, [load]);
        for port in ports {
            let outside = if port.is_single() {
                equal(true, bytes(port.first()))
            } else {
                Expr::Outside(bytes(port.first()), bytes(port.last()))
            };
            all(&mut alternatives, [outside]);
        }
        return alternatives;
    }
    let mut expanded = Vec::with_capacity(alternatives.len() * ports.len());
    for start in alternatives {
        for port in ports {
            let mut exprs = start.clone();
            exprs.push(load.clone());
            if port.is_single() {
                exprs.push(equal(false, bytes(port.first())));
            } else {
                exprs.push(Expr::Compare(Compare::AtLeast, bytes(port.first())));
                exprs.push(Expr::Compare(Compare::AtMost, bytes(port.last())));
            }
            expanded.push(exprs);
        }
    }
    expanded
}

fn name(key: Meta, interface: &Interface, invert: bool) -> Vec<Expr> {
    let value = interface.prefix().map_or_else(
        || {
            let mut padded = interface.as_str().as_bytes().to_vec();
            padded.resize(16, 0);
            padded
        },
        |prefix| prefix.as_bytes().to_vec(),
    );
    // `+` alone is every name.
    if value.is_empty() && !invert { Vec::new() } else { vec![Expr::Meta(key), equal(invert, value)] }
}

fn id(key: Meta, owner: &Owner, invert: bool) -> Result<Vec<Expr>, &'static str> {
    Ok(match owner {
        Owner::Id(id) => vec![Expr::Meta(key), equal(invert, id.to_ne_bytes().into())],
        // Ranges compare as the kernel's register does: bytes, most significant first.
        Owner::Range(first, last) => {
            let (first, last) = (first.to_be_bytes().to_vec(), last.to_be_bytes().to_vec());
            let mut exprs = vec![Expr::Meta(key), Expr::NetworkOrder];
            if invert {
                exprs.push(Expr::Outside(first, last));
            } else {
                exprs.extend([Expr::Compare(Compare::AtLeast, first), Expr::Compare(Compare::AtMost, last)]);
            }
            exprs
        }
        Owner::Name(_) => return Err("an owner's name was not resolved"),
    })
}

fn masked(load: Expr, value: u32, mask: u32, invert: bool) -> Vec<Expr> {
    let mut exprs = vec![load];
    if mask != u32::MAX {
        exprs.push(Expr::Mask(mask.to_ne_bytes().into()));
    }
    exprs.push(equal(invert, value.to_ne_bytes().into()));
    exprs
}

fn lower_target(target: &Target, exprs: &mut Vec<Expr>) -> Result<(), &'static str> {
    let host = |number: u32| Expr::Constant(number.to_ne_bytes().into());
    let port = |port: u16| Expr::Constant(port.to_be_bytes().into());
    match target {
        Target::Accept => exprs.push(Expr::Verdict(Verdict::Accept)),
        Target::Drop => exprs.push(Expr::Verdict(Verdict::Drop)),
        Target::Return => exprs.push(Expr::Verdict(Verdict::Return)),
        Target::Jump(chain) => exprs.push(Expr::Verdict(Verdict::Jump(chain.to_string()))),
        Target::Goto(chain) => exprs.push(Expr::Verdict(Verdict::Goto(chain.to_string()))),
        Target::Redirect { port: to } => exprs.extend([port(*to), Expr::Redirect]),
        Target::Tproxy { port: to, mark } => exprs.extend([
            port(*to),
            Expr::Tproxy,
            host(*mark),
            Expr::SetMeta(Meta::Mark),
            Expr::Verdict(Verdict::Accept),
        ]),
        Target::SetMark { value, mask: u32::MAX } => exprs.extend([host(*value), Expr::SetMeta(Meta::Mark)]),
        Target::SetMark { .. } => return Err("only whole marks are set"),
        Target::SaveMark => exprs.extend([Expr::Meta(Meta::Mark), Expr::SetCt(Ct::Mark)]),
        Target::RestoreMark => exprs.extend([Expr::Ct(Ct::Mark), Expr::SetMeta(Meta::Mark)]),
        Target::Zone(zone) => {
            exprs.extend([Expr::Constant(zone.to_ne_bytes().into()), Expr::SetCt(Ct::Zone)]);
        }
        Target::Count => {}
        Target::Reject { .. } => return Err("rejecting is no part of an interception"),
        Target::Foreign { .. } => return Err("it has a target that is only known by its words"),
    }
    Ok(())
}
