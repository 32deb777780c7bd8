//! Everything in nf_tables that is not ours, as far as it can meet our packets.

use super::foreign::all;
use super::live::{DORMANT, GET_CHAIN, GET_RULE, GET_TABLE, LiveChain, chain, rule};
use super::socket::Socket;
use super::{INET, NetlinkError};
use crate::net::Family;
use crate::ruleset::{Rule, TABLE};

/// A table of somebody else.
#[derive(Debug)]
pub(crate) struct OtherTable {
    /// The family of its packets; both for `inet`.
    pub(crate) family: Option<Family>,
    pub(crate) name: String,
    pub(crate) chains: Vec<OtherChain>,
}

/// One chain of it.
#[derive(Debug)]
pub(crate) struct OtherChain {
    pub(crate) name: String,
    pub(crate) base: Option<super::lower::BaseChain>,
    pub(crate) rules: Vec<Rule>,
}

impl OtherTable {
    /// As nft writes it.
    pub(crate) fn describe(&self) -> String {
        let family = match self.family {
            None => "inet",
            Some(Family::V4) => "ip",
            Some(Family::V6) => "ip6",
        };
        format!("{family} {}", self.name)
    }
}

/// The families whose packets ours are.
fn family(number: u8) -> Option<Option<Family>> {
    match number {
        INET => Some(None),
        2 => Some(Some(Family::V4)),
        10 => Some(Some(Family::V6)),
        _ => None,
    }
}

/// Reads all tables that are in use.
pub(super) fn read(socket: &mut Socket) -> Result<Vec<OtherTable>, NetlinkError> {
    let mut tables = socket.dump(all(GET_TABLE), |message| {
        let attributes = message.attributes();
        let table = OtherTable {
            family: family(*message.payload.first()?)?,
            name: attributes.string(1)?.to_owned(),
            chains: Vec::new(),
        };
        let dormant = attributes.be32(2).unwrap_or(0) & DORMANT != 0;
        let ours = table.family.is_none() && table.name == TABLE;
        (!dormant && !ours).then_some(table)
    })?;
    let chains = socket.dump(all(GET_CHAIN), |message| {
        let attributes = message.attributes();
        let place = (family(*message.payload.first()?)?, attributes.string(1)?.to_owned());
        Some((place, chain(attributes)?))
    })?;
    let rules = socket.dump(all(GET_RULE), |message| {
        let attributes = message.attributes();
        let place = (family(*message.payload.first()?)?, attributes.string(1)?.to_owned());
        Some((place, attributes.string(2)?.to_owned(), rule(attributes)?))
    })?;
    for ((family, name), LiveChain { name: chain, base, .. }) in chains {
        let found = tables.iter_mut().find(|table| table.family == family && table.name == name);
        if let Some(table) = found {
            table.chains.push(OtherChain { name: chain, base, rules: Vec::new() });
        }
    }
    for ((family, name), chain, rule) in rules {
        let found = tables.iter_mut().find(|table| table.family == family && table.name == name);
        if let Some(chain) = found.and_then(|table| table.chains.iter_mut().find(|found| found.name == chain))
        {
            chain.rules.push(rule.raised().only(family));
        }
    }
    Ok(tables)
}
