//! nf_tables expressions back to rules: what the kernel holds, in words.

use std::borrow::Cow;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use super::expr::{Base, Compare, Ct, Expr, Meta, Verdict};
use crate::net::{Family, Owner, PortRange, Protocol};
use crate::ruleset::{CtState, Match, Rule, Target};

/// The rule that these expressions are; what is not understood becomes [`Match::Foreign`] or [`Target::Foreign`].
pub(crate) fn raise(exprs: &[Expr], comment: Option<String>) -> Rule {
    let mut raised = Raised::default();
    let mut rest = exprs;
    while !rest.is_empty() {
        rest = raised.step(rest);
    }
    let target = raised.target.unwrap_or(Target::Count);
    Rule {
        family: raised.family,
        matches: raised.matches,
        target,
        note: comment.map_or(Cow::Borrowed(""), Cow::Owned),
    }
}

#[derive(Default)]
struct Raised {
    family: Option<Family>,
    matches: Vec<Match>,
    target: Option<Target>,
}

impl Raised {
    /// Takes the longest known beginning.
    fn step<'a>(&mut self, exprs: &'a [Expr]) -> &'a [Expr] {
        if let Some((family, rest)) = family(exprs) {
            self.family = Some(family);
            return rest;
        }
        if let Some((mut found, rest)) = one_match(exprs) {
            self.matches.append(&mut found);
            return rest;
        }
        if let Some((target, rest)) = one_target(exprs) {
            self.target = Some(target);
            return rest;
        }
        match exprs {
            [Expr::Counter, rest @ ..] => rest,
            [other, rest @ ..] => {
                let words = match other {
                    Expr::Other(name) => format!("({name})"),
                    known => format!("({known:?})"),
                };
                self.matches.push(Match::Foreign { words });
                rest
            }
            [] => exprs,
        }
    }
}

fn family(exprs: &[Expr]) -> Option<(Family, &[Expr])> {
    let [Expr::Meta(Meta::Family), Expr::Compare(Compare::Equal, value), rest @ ..] = exprs else {
        return None;
    };
    match value.as_slice() {
        [2] => Some((Family::V4, rest)),
        [10] => Some((Family::V6, rest)),
        _ => None,
    }
}

fn inverted(how: Compare) -> Option<bool> {
    match how {
        Compare::Equal => Some(false),
        Compare::NotEqual => Some(true),
        _ => None,
    }
}

fn host32(bytes: &[u8]) -> Option<u32> {
    bytes.try_into().ok().map(u32::from_ne_bytes)
}

fn port(bytes: &[u8]) -> Option<u16> {
    bytes.try_into().ok().map(u16::from_be_bytes)
}

/// A range of owners.
fn owners(exprs: &[Expr]) -> Option<(Match, &[Expr])> {
    let big = |bytes: &[u8]| bytes.try_into().ok().map(u32::from_be_bytes);
    let (key, owner, invert, rest) = match exprs {
        [
            Expr::Meta(key),
            Expr::NetworkOrder,
            Expr::Compare(Compare::AtLeast, first),
            Expr::Compare(Compare::AtMost, last),
            rest @ ..,
        ] => (key, Owner::Range(big(first)?, big(last)?), false, rest),
        [Expr::Meta(key), Expr::NetworkOrder, Expr::Outside(first, last), rest @ ..] => {
            (key, Owner::Range(big(first)?, big(last)?), true, rest)
        }
        _ => return None,
    };
    match key {
        Meta::Uid => Some((Match::Uid { owner, invert }, rest)),
        Meta::Gid => Some((Match::Gid { owner, invert }, rest)),
        _ => None,
    }
}

fn one_match(exprs: &[Expr]) -> Option<(Vec<Match>, &[Expr])> {
    if let Some((found, rest)) = owners(exprs) {
        return Some((vec![found], rest));
    }
    let (load, rest) = exprs.split_first()?;
    let (mask, rest) = match rest {
        [Expr::Mask(mask), rest @ ..] => (Some(mask.as_slice()), rest),
        rest => (None, rest),
    };
    if let Expr::Payload { base: Base::Transport, offset, len: 2 } = load {
        return ports(*offset, rest);
    }
    let [Expr::Compare(how, value), rest @ ..] = rest else { return None };
    let invert = inverted(*how)?;
    let found = match (load, mask) {
        (Expr::Meta(Meta::Protocol), None) => {
            Match::Protocol { protocol: Protocol::from_number(*value.first()?), invert }
        }
        (Expr::Meta(key @ (Meta::InName | Meta::OutName)), None) => {
            let end = value.iter().position(|byte| *byte == 0);
            let text = std::str::from_utf8(&value[..end.unwrap_or(value.len())]).ok()?;
            let text = if end.is_some() { text.to_owned() } else { format!("{text}+") };
            let interface = text.parse().ok()?;
            if *key == Meta::InName {
                Match::InInterface { interface, invert }
            } else {
                Match::OutInterface { interface, invert }
            }
        }
        (Expr::Meta(Meta::Uid), None) => Match::Uid { owner: Owner::Id(host32(value)?), invert },
        (Expr::Meta(Meta::Gid), None) => Match::Gid { owner: Owner::Id(host32(value)?), invert },
        (Expr::Meta(Meta::Mark), mask) => {
            Match::Mark { value: host32(value)?, mask: mask.map_or(Some(u32::MAX), host32)?, invert }
        }
        (Expr::Ct(Ct::Mark), mask) => {
            Match::ConnMark { value: host32(value)?, mask: mask.map_or(Some(u32::MAX), host32)?, invert }
        }
        (Expr::Ct(Ct::State), Some(mask)) if value.iter().all(|byte| *byte == 0) => {
            let bits = host32(mask)?;
            let states = CtState::ALL.into_iter().filter(|state| bits & state.bit() != 0).collect();
            Match::State { states, invert: !invert }
        }
        (Expr::Payload { base: Base::Network, offset, len }, mask) => {
            address(*offset, *len, mask, value, invert)?
        }
        _ => return None,
    };
    Some((vec![found], rest))
}

fn address(offset: u32, len: u32, mask: Option<&[u8]>, value: &[u8], invert: bool) -> Option<Match> {
    let read = |bytes: &[u8]| match len {
        4 => <[u8; 4]>::try_from(bytes).ok().map(|bytes| IpAddr::V4(Ipv4Addr::from(bytes))),
        16 => <[u8; 16]>::try_from(bytes).ok().map(|bytes| IpAddr::V6(Ipv6Addr::from(bytes))),
        _ => None,
    };
    let address = read(value)?;
    let net = match mask {
        Some(mask) => IpNet::with_netmask(address, read(mask)?).ok()?,
        None => IpNet::from(address),
    };
    match (len, offset) {
        (4, 12) | (16, 8) => Some(Match::Source { net, invert }),
        (4, 16) | (16, 24) => Some(Match::Destination { net, invert }),
        _ => None,
    }
}

/// One port, one range, or several that it must not be.
fn ports(offset: u32, exprs: &[Expr]) -> Option<(Vec<Match>, &[Expr])> {
    let build = |ports: Vec<PortRange>, invert| match offset {
        0 => Some(Match::SourcePorts { ports, invert }),
        2 => Some(Match::DestinationPorts { ports, invert }),
        _ => None,
    };
    match exprs {
        [Expr::Compare(Compare::Equal, value), rest @ ..] => {
            Some((vec![build(vec![port(value)?.into()], false)?], rest))
        }
        [Expr::Compare(Compare::AtLeast, first), Expr::Compare(Compare::AtMost, last), rest @ ..] => {
            let range = PortRange::new(port(first)?, port(last)?)?;
            Some((vec![build(vec![range], false)?], rest))
        }
        _ => {
            let mut not = Vec::new();
            let mut rest = exprs;
            loop {
                let (range, after) = match rest {
                    [Expr::Compare(Compare::NotEqual, value), after @ ..] => (port(value)?.into(), after),
                    [Expr::Outside(first, last), after @ ..] => {
                        (PortRange::new(port(first)?, port(last)?)?, after)
                    }
                    _ => break,
                };
                not.push(range);
                rest = after;
            }
            if not.is_empty() { None } else { Some((vec![build(not, true)?], rest)) }
        }
    }
}

fn one_target(exprs: &[Expr]) -> Option<(Target, &[Expr])> {
    Some(match exprs {
        [Expr::Verdict(verdict), rest @ ..] => {
            let target = match verdict {
                Verdict::Accept => Target::Accept,
                Verdict::Drop => Target::Drop,
                Verdict::Return => Target::Return,
                Verdict::Jump(chain) => Target::Jump(chain.clone().into()),
                Verdict::Goto(chain) => Target::Goto(chain.clone().into()),
            };
            (target, rest)
        }
        [Expr::Constant(to), Expr::Redirect, rest @ ..] => (Target::Redirect { port: port(to)? }, rest),
        [
            Expr::Constant(to),
            Expr::Tproxy,
            Expr::Constant(mark),
            Expr::SetMeta(Meta::Mark),
            Expr::Verdict(Verdict::Accept),
            rest @ ..,
        ] => (Target::Tproxy { port: port(to)?, mark: host32(mark)? }, rest),
        [Expr::Constant(mark), Expr::SetMeta(Meta::Mark), rest @ ..] => {
            (Target::SetMark { value: host32(mark)?, mask: u32::MAX }, rest)
        }
        [Expr::Constant(zone), Expr::SetCt(Ct::Zone), rest @ ..] => {
            (Target::Zone(u16::from_ne_bytes(zone.as_slice().try_into().ok()?)), rest)
        }
        [Expr::Meta(Meta::Mark), Expr::SetCt(Ct::Mark), rest @ ..] => (Target::SaveMark, rest),
        [Expr::Ct(Ct::Mark), Expr::SetMeta(Meta::Mark), rest @ ..] => (Target::RestoreMark, rest),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::super::lower::Lowered;
    use super::*;
    use crate::ruleset::Ruleset;
    use crate::{Dns, Interception, Mode};

    #[test]
    fn rules_survive_the_kernel_s_form() {
        let intent = Interception {
            mode: Mode::TPROXY,
            ipv6: true,
            dns: Dns::All { port: 15053 },
            drop_invalid: true,
            exclude_interfaces: vec!["eth+".parse().expect("a name")],
            proxy_gids: vec![Owner::Range(10, 20)],
            outbound_exclude_ports: vec![PortRange::new(10, 20).expect("a range")],
            ..Interception::default()
        };
        let ruleset = Ruleset::from(&intent);
        let lowered = Lowered::new(&ruleset).expect("our own rules");
        for (chain, lowered) in ruleset.chains.iter().flat_map(|chain| {
            let name = super::super::lower::chain_name(chain);
            lowered
                .chains
                .iter()
                .filter(move |lowered| lowered.name == name)
                .map(move |lowered| (chain, lowered))
        }) {
            let raised: Vec<_> = lowered.rules.iter().map(|rule| raise(&rule.exprs, None)).collect();
            // Rules with several ports become several; all others come back as they were.
            let whole: Vec<_> = chain.rules.iter().filter(|rule| !lists_ports(rule)).collect();
            for rule in whole {
                assert!(raised.iter().any(|each| each.target == rule.target && same(each, rule)), "{rule}");
            }
            assert!(raised.iter().all(|rule| !rule.to_string().contains('(')), "{}", chain.name);
        }
    }

    fn lists_ports(rule: &Rule) -> bool {
        let many = |each: &Match| matches!(each, Match::DestinationPorts { ports, invert: false } if ports.len() > 1);
        rule.matches.iter().any(many)
    }

    fn same(a: &Rule, b: &Rule) -> bool {
        a.family == b.family
            && a.matches.len() == b.matches.len()
            && a.matches.iter().all(|each| b.matches.contains(each))
    }
}
