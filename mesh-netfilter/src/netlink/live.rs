//! What the kernel holds now.

use super::expr::Expr;
use super::lower::BaseChain;
use super::raise::raise;
use super::socket::Socket;
use super::wire::{Attributes, Message, Messages};
use super::{INET, NetlinkError, REQUEST, SUBSYSTEM, chain_of};
use crate::ruleset::{Dialect, Rule, Ruleset, TABLE, Target};

pub(super) const GET_TABLE: u16 = SUBSYSTEM | 1;
pub(super) const GET_CHAIN: u16 = SUBSYSTEM | 4;
pub(super) const GET_RULE: u16 = SUBSYSTEM | 7;
const GET_GENERATION: u16 = SUBSYSTEM | 16;
pub(super) const DUMP: u16 = 0x300;
/// `NFT_TABLE_F_DORMANT`.
pub(super) const DORMANT: u32 = 1;
/// `NFTNL_UDATA_RULE_COMMENT`.
const COMMENT: u8 = 0;

/// Our table.
#[derive(Debug)]
pub(super) struct Live {
    /// Whether the table is switched off.
    pub(super) dormant: bool,
    pub(super) chains: Vec<LiveChain>,
}

/// One chain of it.
#[derive(Debug)]
pub(super) struct LiveChain {
    pub(super) name: String,
    pub(super) base: Option<BaseChain>,
    pub(super) rules: Vec<LiveRule>,
}

/// One rule of it.
#[derive(Debug)]
pub(super) struct LiveRule {
    pub(super) handle: u64,
    pub(super) exprs: Vec<Expr>,
    pub(super) comment: Option<String>,
    pub(super) packets: u64,
    pub(super) bytes: u64,
}

impl LiveRule {
    /// The rule in words.
    pub(super) fn raised(&self) -> Rule {
        raise(&self.exprs, self.comment.clone())
    }
}

impl Live {
    /// Reads our table; `None` without one.
    pub(super) fn read(socket: &mut Socket) -> Result<Option<Self>, NetlinkError> {
        let tables = socket.dump(
            |sequence| ask(GET_TABLE, sequence, |_| {}),
            |message| {
                let attributes = message.attributes();
                let ours = ours(message) && attributes.string(1) == Some(TABLE);
                ours.then(|| attributes.be32(2).unwrap_or(0) & DORMANT != 0)
            },
        )?;
        let Some(dormant) = tables.first().copied() else { return Ok(None) };
        let in_table = |out: &mut Messages| out.string(1, TABLE);
        let mut chains = socket.dump(
            |sequence| ask(GET_CHAIN, sequence, in_table),
            |message| {
                (ours(message) && message.attributes().string(1) == Some(TABLE))
                    .then(|| chain(message.attributes()))?
            },
        )?;
        let rules = socket.dump(
            |sequence| ask(GET_RULE, sequence, in_table),
            |message| {
                let attributes = message.attributes();
                let ours = ours(message) && attributes.string(1) == Some(TABLE);
                if ours { Some((attributes.string(2)?.to_owned(), rule(attributes)?)) } else { None }
            },
        )?;
        for (name, rule) in rules {
            if let Some(chain) = chains.iter_mut().find(|chain: &&mut LiveChain| chain.name == name) {
                chain.rules.push(rule);
            }
        }
        Ok(Some(Self { dormant, chains }))
    }

    /// The chain of this name.
    pub(super) fn chain(&self, name: &str) -> Option<&LiveChain> {
        self.chains.iter().find(|chain| chain.name == name)
    }

    /// All of it in words. A chain stands in the table of the base chain that leads to it.
    pub(super) fn ruleset(&self) -> Ruleset {
        let mut ruleset = Ruleset { chains: Vec::new(), dialect: Dialect::Nftables };
        for live in &self.chains {
            let mut chain = chain_of(&live.name, live.base.as_ref());
            chain.rules = live.rules.iter().map(LiveRule::raised).collect();
            ruleset.chains.push(chain);
        }
        // Tables spread from base chains along jumps; a table of n chains is settled after n rounds.
        for _ in 0..ruleset.chains.len() {
            for from in 0..ruleset.chains.len() {
                let table = ruleset.chains[from].table;
                let targets: Vec<_> =
                    ruleset.chains[from].rules.iter().filter_map(|rule| jump(&rule.target)).collect();
                for chain in &mut ruleset.chains {
                    if chain.hook.is_none() && targets.iter().any(|target| *target == chain.name) {
                        chain.table = table;
                    }
                }
            }
        }
        ruleset
    }
}

fn jump(target: &Target) -> Option<String> {
    match target {
        Target::Jump(chain) | Target::Goto(chain) => Some(chain.to_string()),
        _ => None,
    }
}

fn ask(kind: u16, sequence: u32, filter: impl FnOnce(&mut Messages)) -> Messages {
    let mut out = Messages::default();
    out.begin(kind, REQUEST | DUMP, sequence, &[INET, 0, 0, 0]);
    filter(&mut out);
    out
}

fn ours(message: Message<'_>) -> bool {
    message.payload.first() == Some(&INET)
}

pub(super) fn chain(attributes: Attributes<'_>) -> Option<LiveChain> {
    let base = attributes.inside(4).and_then(|hook| {
        Some(BaseChain {
            kind: attributes.string(7)?.to_owned().into(),
            hook: hook.be32(1)?,
            priority: hook.be32(2)?.cast_signed(),
            drops: attributes.be32(5) == Some(0),
        })
    });
    Some(LiveChain { name: attributes.string(3)?.to_owned(), base, rules: Vec::new() })
}

pub(super) fn rule(attributes: Attributes<'_>) -> Option<LiveRule> {
    let mut found = LiveRule {
        handle: attributes.be64(3)?,
        exprs: Vec::new(),
        comment: attributes.get(7).and_then(comment),
        packets: 0,
        bytes: 0,
    };
    for (_, element) in attributes.inside(4).unwrap_or(Attributes(&[])) {
        let expr = Expr::read(Attributes(element));
        if expr == Expr::Counter
            && let Some(data) = Attributes(element).inside(2)
        {
            found.bytes = data.be64(1).unwrap_or(0);
            found.packets = data.be64(2).unwrap_or(0);
        }
        found.exprs.push(expr);
    }
    Some(found)
}

/// A rule's user data: type, length, value.
fn comment(mut data: &[u8]) -> Option<String> {
    while let [kind, length, rest @ ..] = data {
        let value = rest.get(..usize::from(*length))?;
        if *kind == COMMENT {
            let text = value.strip_suffix(&[0]).unwrap_or(value);
            return std::str::from_utf8(text).ok().map(str::to_owned);
        }
        data = &rest[usize::from(*length)..];
    }
    None
}

/// The reverse of [`comment`].
pub(super) fn comment_bytes(text: &str) -> Vec<u8> {
    let length = u8::try_from(text.len() + 1).unwrap_or(u8::MAX);
    let mut data = vec![COMMENT, length];
    data.extend_from_slice(&text.as_bytes()[..usize::from(length) - 1]);
    data.push(0);
    data
}

/// The number of the current ruleset; it grows with every change by anybody.
pub(super) fn generation(socket: &mut Socket) -> Result<u32, NetlinkError> {
    let request = |sequence| {
        let mut out = Messages::default();
        out.begin(GET_GENERATION, REQUEST, sequence, &[0; 4]);
        out
    };
    socket.get(request, |message| message.attributes().be32(1))
}
