//! Why a rule matched, or did not.

use std::fmt::Display;

use super::walk::{Now, Said};
use crate::ruleset::{Match, Rule, Target};

/// What happened at a rule.
pub(super) fn why(rule: &Rule, said: Said<'_>, now: &Now<'_>) -> String {
    match said {
        Said::Matched => then(&rule.target),
        Said::OtherFamily => format!("the packet is {}", now.packet.family()),
        Said::Unknown(each) => match each {
            Match::Foreign { words } => format!("cannot be decided: {words}"),
            Match::Uid { owner, .. } | Match::Gid { owner, .. } => {
                format!("cannot be decided without this machine's id of {owner}")
            }
            _ => "cannot be decided".to_owned(),
        },
        Said::Not(each) => not(each, now),
    }
}

fn then(target: &Target) -> String {
    match target {
        Target::Accept => "passes this table".to_owned(),
        Target::Drop => "is dropped".to_owned(),
        Target::Reject { .. } => "is rejected".to_owned(),
        Target::Return => "leaves the chain".to_owned(),
        Target::Jump(chain) => format!("goes through {chain}"),
        Target::Goto(chain) => format!("goes on in {chain}"),
        Target::Redirect { port } => format!("goes to port {port} instead"),
        Target::Tproxy { port, .. } => format!("goes to the socket on port {port}"),
        Target::SetMark { value, .. } => format!("gets mark {value:#x}"),
        Target::SaveMark => "its mark is kept for the connection".to_owned(),
        Target::RestoreMark => "gets the connection's mark".to_owned(),
        Target::Zone(zone) => format!("is tracked in zone {zone}"),
        Target::Count => "is counted".to_owned(),
        Target::Foreign { words } => format!("goes to {words}, which is not known here"),
    }
}

fn not(each: &Match, now: &Now<'_>) -> String {
    fn is(what: &str, value: impl Display) -> String {
        format!("{what} is {value}")
    }
    let owner = |what: &str, id: Option<u32>| {
        id.map_or_else(|| "no local socket sent it".to_owned(), |id| is(what, id))
    };
    let interface = |way: &str, name: Option<&str>| {
        name.map_or_else(|| format!("it does not {way} here"), |name| is("interface", name))
    };
    match each {
        Match::Protocol { .. } => is("protocol", now.packet.protocol),
        Match::Source { .. } => is("source", now.packet.source),
        Match::Destination { .. } => is("destination", now.destination),
        Match::SourcePorts { .. } => is("source port", now.packet.source_port),
        Match::DestinationPorts { .. } => is("destination port", now.destination_port),
        Match::InInterface { .. } => interface("arrive", now.in_interface),
        Match::OutInterface { .. } => interface("leave", now.out_interface),
        Match::Uid { .. } => owner("uid", now.owner.map(|owner| owner.0)),
        Match::Gid { .. } => owner("gid", now.owner.map(|owner| owner.1)),
        Match::Mark { .. } => format!("mark is {:#x}", now.mark),
        Match::ConnMark { .. } => format!("connection's mark is {:#x}", now.connmark),
        Match::State { .. } => is("state", now.packet.state.as_str()),
        Match::Comment { text } | Match::Foreign { words: text } => text.clone(),
    }
}
