//! Istio's own interception, as its iptables (over nf_tables) and nft backends write it.

use super::expr::{Expr, Verdict};
use super::live::{DUMP, GET_CHAIN, GET_RULE};
use super::socket::Socket;
use super::wire::{Attributes, Message, Messages};
use super::{ACK, DELETE_CHAIN, DELETE_RULE, DELETE_TABLE, NetlinkError, REQUEST};
use crate::ruleset::CHAIN_PREFIX;

/// A chain of Istio's, wherever it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ForeignChain {
    family: u8,
    table: String,
    chain: String,
}

impl ForeignChain {
    /// `family table chain`.
    pub(super) fn describe(&self) -> String {
        let family = match self.family {
            1 => "inet",
            2 => "ip",
            10 => "ip6",
            _ => "?",
        };
        format!("{family} {} {}", self.table, self.chain)
    }

    /// Whether the whole table is Istio's.
    fn in_own_table(&self) -> bool {
        self.table.starts_with("istio-")
    }
}

fn is_istio_chain(name: &str) -> bool {
    name.starts_with("ISTIO_")
}

pub(super) fn all(kind: u16) -> impl Fn(u32) -> Messages {
    move |sequence| {
        let mut out = Messages::default();
        out.begin(kind, REQUEST | DUMP, sequence, &[0; 4]);
        out
    }
}

/// Whether `iptables-nft` has written chains of ours: they stand in the tables of one family.
pub(super) fn ours_by_iptables(socket: &mut Socket) -> Result<bool, NetlinkError> {
    let found = socket.dump(all(GET_CHAIN), |message| {
        let one_family = matches!(message.payload.first(), Some(2 | 10));
        (one_family && message.attributes().string(3)?.starts_with(CHAIN_PREFIX)).then_some(())
    })?;
    Ok(!found.is_empty())
}

/// Every chain of Istio's.
pub(super) fn find(socket: &mut Socket) -> Result<Vec<ForeignChain>, NetlinkError> {
    socket.dump(all(GET_CHAIN), |message| {
        let attributes = message.attributes();
        let found = ForeignChain {
            family: *message.payload.first()?,
            table: attributes.string(1)?.to_owned(),
            chain: attributes.string(3)?.to_owned(),
        };
        (is_istio_chain(&found.chain) || found.in_own_table()).then_some(found)
    })
}

/// Messages that remove `chains` and whatever jumps to them. Returns how many, each numbered from `first` on.
pub(super) fn removal(
    socket: &mut Socket,
    chains: &[ForeignChain],
    first: u32,
    batch: &mut Messages,
) -> Result<u32, NetlinkError> {
    let rules = socket.dump(all(GET_RULE), foreign_rule)?;
    let mut tables: Vec<(u8, &str)> = chains
        .iter()
        .filter(|chain| chain.in_own_table())
        .map(|chain| (chain.family, chain.table.as_str()))
        .collect();
    tables.sort_unstable();
    tables.dedup();
    let inside: Vec<_> = chains.iter().filter(|chain| !chain.in_own_table()).collect();
    let rules: Vec<_> = rules.iter().filter(|rule| !rule.table.starts_with("istio-")).collect();
    let total = tables.len() + rules.len() + inside.len();
    let mut count = 0_usize;
    let mut begin = |batch: &mut Messages, kind: u16, family: u8| {
        count += 1;
        let ack = if count == total { ACK } else { 0 };
        let sequence = first.wrapping_add(u32::try_from(count - 1).unwrap_or(0));
        batch.begin(kind, REQUEST | ack, sequence, &[family, 0, 0, 0]);
    };
    for (family, table) in tables {
        begin(batch, DELETE_TABLE, family);
        batch.string(1, table);
    }
    for rule in rules {
        begin(batch, DELETE_RULE, rule.family);
        batch.string(1, &rule.table);
        batch.string(2, &rule.chain);
        batch.bytes(3, &rule.handle);
    }
    for chain in inside {
        begin(batch, DELETE_CHAIN, chain.family);
        batch.string(1, &chain.table);
        batch.string(3, &chain.chain);
    }
    Ok(u32::try_from(total).unwrap_or(u32::MAX))
}

#[derive(Debug)]
struct ForeignRule {
    family: u8,
    table: String,
    chain: String,
    handle: [u8; 8],
}

/// A rule that stands in a chain of Istio's or leads there.
fn foreign_rule(message: Message<'_>) -> Option<ForeignRule> {
    let attributes = message.attributes();
    let rule = ForeignRule {
        family: *message.payload.first()?,
        table: attributes.string(1)?.to_owned(),
        chain: attributes.string(2)?.to_owned(),
        handle: *attributes.get(3)?.first_chunk()?,
    };
    let leads_there = || {
        attributes.inside(4).is_some_and(|list| {
            list.into_iter().any(|(_, element)| match Expr::read(Attributes(element)) {
                Expr::Verdict(Verdict::Jump(chain) | Verdict::Goto(chain)) => is_istio_chain(&chain),
                _ => false,
            })
        })
    };
    (is_istio_chain(&rule.chain) || leads_there()).then_some(rule)
}
