//! nf_tables over netlink: all our rules in one table, changed in one transaction, without any external program.

mod error;
mod expr;
mod foreign;
mod live;
mod lower;
mod others;
mod raise;
pub(crate) mod socket;
pub(crate) mod wire;

use std::os::fd::AsFd;

use nix::errno::Errno;
use nix::sys::socket::SockProtocol;

use crate::plan::{Applied, Change, Plan, RuleCounter};
use crate::ruleset::{Chain, Ruleset, TABLE};
use live::{Live, LiveRule};
use lower::{BaseChain, Lowered, LoweredChain, LoweredRule, hook_of};
pub(crate) use lower::{NAT_PRIORITY, chain_name};
pub(crate) use others::OtherTable;
use socket::Socket;
use wire::Messages;

pub use error::NetlinkError;
pub use lower::Unsupported;

/// `NFPROTO_INET`.
const INET: u8 = 1;
const SUBSYSTEM: u16 = 10 << 8;
const NEW_TABLE: u16 = SUBSYSTEM;
const DELETE_TABLE: u16 = SUBSYSTEM | 2;
const NEW_CHAIN: u16 = SUBSYSTEM | 3;
const DELETE_CHAIN: u16 = SUBSYSTEM | 5;
const NEW_RULE: u16 = SUBSYSTEM | 6;
const DELETE_RULE: u16 = SUBSYSTEM | 8;
const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;

const REQUEST: u16 = 1;
const ACK: u16 = 4;
const CREATE: u16 = 0x400;
const APPEND: u16 = 0x800;

/// How often a change is planned anew because somebody else changed rules between reading and writing.
const ATTEMPTS: usize = 32;

/// The kernel's nf_tables, in the network namespace in which this was opened.
///
/// All our rules are in table `inet mesh`. A change is one transaction: either all of it happens or none, and no packet
/// ever sees a half.
///
/// # Examples
/// ```no_run
/// use mesh_netfilter::{Interception, Netlink, Ruleset};
///
/// let desired = Ruleset::from(&Interception::default());
/// let mut kernel = Netlink::open()?;
/// let first = kernel.apply(&desired)?;
/// let second = kernel.apply(&desired)?;
/// assert!(first.changes > 0 && second.changes == 0);
/// # Ok::<(), mesh_netfilter::NetlinkError>(())
/// ```
#[derive(Debug)]
pub struct Netlink {
    socket: Socket,
}

impl Netlink {
    /// Opens the kernel's nf_tables in the calling thread's network namespace.
    ///
    /// # Errors
    /// When the kernel has no netlink for netfilter or refuses the socket.
    pub fn open() -> Result<Self, NetlinkError> {
        Socket::open(SockProtocol::NetlinkNetFilter).map(|socket| Self { socket })
    }

    /// The smallest change from what the kernel holds to `desired`.
    ///
    /// # Errors
    /// When the kernel cannot be read, `desired` has a rule that nf_tables cannot express, or an owner's name is unknown.
    pub fn plan(&mut self, desired: &Ruleset) -> Result<Plan, NetlinkError> {
        let lowered = Lowered::new(&desired.resolve_here()?)?;
        let live = Live::read(&mut self.socket)?;
        Ok(steps(&lowered, live.as_ref()).iter().map(Step::describe).collect())
    }

    /// Makes the kernel hold `desired`. Changes nothing, counters included, where it does already.
    ///
    /// # Errors
    /// As [`Netlink::plan`], and when the kernel refuses a rule; then nothing was changed.
    pub fn apply(&mut self, desired: &Ruleset) -> Result<Applied, NetlinkError> {
        let lowered = Lowered::new(&desired.resolve_here()?)?;
        self.change(|live| steps(&lowered, live))
    }

    /// Writes `desired` anew even where the kernel holds it already; counters begin at zero.
    ///
    /// # Errors
    /// As [`Netlink::apply`].
    pub fn replace(&mut self, desired: &Ruleset) -> Result<Applied, NetlinkError> {
        let lowered = Lowered::new(&desired.resolve_here()?)?;
        self.change(|live| {
            let mut all = Vec::new();
            if live.is_some() {
                all.push(Step::DeleteTable);
            }
            all.extend(steps(&lowered, None));
            all
        })
    }

    /// Removes our table and nothing else. Without one, nothing happens.
    ///
    /// # Errors
    /// When the kernel cannot be read or refuses.
    pub fn clean(&mut self) -> Result<Applied, NetlinkError> {
        self.change(|live| live.iter().map(|_| Step::DeleteTable).collect())
    }

    /// What the kernel holds in our table; `None` without one.
    ///
    /// # Errors
    /// When the kernel cannot be read.
    pub fn live(&mut self) -> Result<Option<Ruleset>, NetlinkError> {
        Ok(Live::read(&mut self.socket)?.map(|live| live.ruleset()))
    }

    /// How many packets each of our rules has matched, in the order in which the rules stand.
    ///
    /// # Errors
    /// When the kernel cannot be read.
    pub fn counters(&mut self) -> Result<Vec<RuleCounter>, NetlinkError> {
        let Some(live) = Live::read(&mut self.socket)? else { return Ok(Vec::new()) };
        let mut counters = Vec::new();
        for chain in &live.chains {
            for rule in &chain.rules {
                counters.push(RuleCounter {
                    chain: chain.name.clone(),
                    rule: rule.raised().to_string(),
                    note: rule.comment.clone().unwrap_or_default(),
                    packets: rule.packets,
                    bytes: rule.bytes,
                });
            }
        }
        Ok(counters)
    }

    /// Chains and tables of other programs that intercept too, as `family table chain`.
    ///
    /// # Errors
    /// When the kernel cannot be read.
    pub fn foreign_interception(&mut self) -> Result<Vec<String>, NetlinkError> {
        Ok(foreign::find(&mut self.socket)?.iter().map(foreign::ForeignChain::describe).collect())
    }

    /// The tables of other programs.
    pub(crate) fn others(&mut self) -> Result<Vec<OtherTable>, NetlinkError> {
        others::read(&mut self.socket)
    }

    /// Whether `iptables-nft` has written chains of ours.
    pub(crate) fn ours_by_iptables(&mut self) -> Result<bool, NetlinkError> {
        foreign::ours_by_iptables(&mut self.socket)
    }

    /// Removes Istio's chains and tables, and the rules that lead there, in one transaction. Everything else stays.
    ///
    /// # Errors
    /// When the kernel cannot be read or refuses; then nothing was removed.
    pub fn remove_foreign_interception(&mut self) -> Result<Applied, NetlinkError> {
        let mut last = NetlinkError::Busy { attempts: ATTEMPTS };
        for _ in 0..ATTEMPTS {
            let generation = live::generation(&mut self.socket)?;
            let chains = foreign::find(&mut self.socket)?;
            if chains.is_empty() {
                return Ok(Applied { changes: 0 });
            }
            let first = self.socket.take_sequence(1);
            let mut batch = Messages::default();
            begin_batch(&mut batch, first, generation);
            // Reading takes sequence numbers of its own, so those of the batch are counted from here.
            let count = foreign::removal(&mut self.socket, &chains, first.wrapping_add(1), &mut batch)?;
            self.socket.take_sequence(count + 2);
            end_batch(&mut batch, first.wrapping_add(count + 1));
            match self.socket.request(&batch, first, first.wrapping_add(count))?.first() {
                None => return Ok(Applied { changes: usize::try_from(count).unwrap_or(usize::MAX) }),
                Some(refused) => {
                    let change = "- Istio's own rules".to_owned();
                    let errno = refused.errno;
                    let error = if refused.index == 0 {
                        NetlinkError::refused_batch(errno)
                    } else {
                        NetlinkError::Refused { change, errno, hint: error::hint(errno) }
                    };
                    if !error.is_stale() {
                        return Err(error);
                    }
                    last = error;
                }
            }
        }
        Err(last)
    }

    /// Plans and writes, again while others change rules in between.
    fn change(&mut self, plan: impl Fn(Option<&Live>) -> Vec<Step>) -> Result<Applied, NetlinkError> {
        let mut last = NetlinkError::Busy { attempts: ATTEMPTS };
        for _ in 0..ATTEMPTS {
            let generation = live::generation(&mut self.socket)?;
            let live = Live::read(&mut self.socket)?;
            let steps = plan(live.as_ref());
            if steps.is_empty() {
                return Ok(Applied { changes: 0 });
            }
            match self.write(&steps, generation) {
                Ok(()) => return Ok(Applied { changes: steps.len() }),
                Err(error) if error.is_stale() => last = error,
                Err(error) => return Err(error),
            }
        }
        Err(last)
    }

    fn write(&mut self, steps: &[Step], generation: u32) -> Result<(), NetlinkError> {
        // Begin, one message per step, end; the last step asks for the acknowledgement.
        let count = u32::try_from(steps.len()).unwrap_or(u32::MAX - 2);
        let first = self.socket.take_sequence(count + 2);
        let mut batch = Messages::default();
        begin_batch(&mut batch, first, generation);
        for (index, step) in (1..).zip(steps) {
            let ack = if index == count { ACK } else { 0 };
            step.write(&mut batch, first.wrapping_add(index), ack);
        }
        end_batch(&mut batch, first.wrapping_add(count + 1));
        let refused = self.socket.request(&batch, first, first.wrapping_add(count))?;
        let Some(refused) = refused.first() else { return Ok(()) };
        Err(match usize::try_from(refused.index).ok().and_then(|index| index.checked_sub(1)) {
            None => NetlinkError::refused_batch(refused.errno),
            Some(index) => {
                let change = steps
                    .get(index)
                    .map_or_else(|| "the change".to_owned(), |step| step.describe().to_string());
                NetlinkError::Refused { change, errno: refused.errno, hint: error::hint(refused.errno) }
            }
        })
    }
}

/// The subsystem stands in `res_id`, in network order. The generation makes the kernel refuse a change that was planned
/// for another ruleset.
fn begin_batch(batch: &mut Messages, sequence: u32, generation: u32) {
    batch.begin(BATCH_BEGIN, REQUEST, sequence, &[0, 0, 0, 10]);
    batch.be32(1, generation);
}

fn end_batch(batch: &mut Messages, sequence: u32) {
    batch.begin(BATCH_END, REQUEST, sequence, &[0, 0, 0, 10]);
}

impl AsFd for Netlink {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// One message of a change.
#[derive(Debug)]
enum Step {
    NewTable,
    DeleteTable,
    NewChain(LoweredChain),
    DeleteChain {
        name: String,
    },
    DeleteRule {
        chain: String,
        handle: u64,
        text: String,
    },
    /// Before the rule with this handle, or at the end.
    NewRule {
        chain: String,
        before: Option<u64>,
        rule: LoweredRule,
    },
}

impl Step {
    fn describe(&self) -> Change {
        match self {
            Self::NewTable => Change::AddTable { table: format!("inet {TABLE}") },
            Self::DeleteTable => Change::RemoveTable { table: format!("inet {TABLE}") },
            Self::NewChain(chain) => Change::AddChain { chain: chain.name.to_string() },
            Self::DeleteChain { name } => Change::RemoveChain { chain: name.clone() },
            Self::DeleteRule { chain, text, .. } => {
                Change::RemoveRule { chain: chain.clone(), rule: text.clone() }
            }
            Self::NewRule { chain, rule, .. } => {
                Change::AddRule { chain: chain.clone(), rule: raise::raise(&rule.exprs, None).to_string() }
            }
        }
    }

    fn write(&self, out: &mut Messages, sequence: u32, ack: u16) {
        const GENERIC: [u8; 4] = [INET, 0, 0, 0];
        match self {
            Self::NewTable => {
                out.begin(NEW_TABLE, REQUEST | CREATE | ack, sequence, &GENERIC);
                out.string(1, TABLE);
                out.be32(2, 0);
            }
            Self::DeleteTable => {
                out.begin(DELETE_TABLE, REQUEST | ack, sequence, &GENERIC);
                out.string(1, TABLE);
            }
            Self::NewChain(chain) => {
                out.begin(NEW_CHAIN, REQUEST | CREATE | ack, sequence, &GENERIC);
                out.string(1, TABLE);
                out.string(3, &chain.name);
                if let Some(BaseChain { kind, hook, priority, drops }) = &chain.base {
                    out.nest(4, |out| {
                        out.be32(1, *hook);
                        out.be32(2, priority.cast_unsigned());
                    });
                    out.be32(5, u32::from(!*drops));
                    out.string(7, kind);
                }
            }
            Self::DeleteChain { name } => {
                out.begin(DELETE_CHAIN, REQUEST | ack, sequence, &GENERIC);
                out.string(1, TABLE);
                out.string(3, name);
            }
            Self::DeleteRule { chain, handle, .. } => {
                out.begin(DELETE_RULE, REQUEST | ack, sequence, &GENERIC);
                out.string(1, TABLE);
                out.string(2, chain);
                out.bytes(3, &handle.to_be_bytes());
            }
            Self::NewRule { chain, before, rule } => {
                let place = if before.is_some() { 0 } else { APPEND };
                out.begin(NEW_RULE, REQUEST | CREATE | place | ack, sequence, &GENERIC);
                out.string(1, TABLE);
                out.string(2, chain);
                out.nest(4, |out| rule.exprs.iter().for_each(|expr| expr.write(out)));
                if let Some(handle) = before {
                    out.bytes(6, &handle.to_be_bytes());
                }
                if !rule.comment.is_empty() {
                    out.bytes(7, &live::comment_bytes(&rule.comment));
                }
            }
        }
    }
}

/// The change from `live` to `desired`, in an order that the kernel takes.
fn steps(desired: &Lowered, live: Option<&Live>) -> Vec<Step> {
    let mut steps = Vec::new();
    if desired.chains.is_empty() {
        if live.is_some() {
            steps.push(Step::DeleteTable);
        }
        return steps;
    }
    let Some(live) = live else {
        steps.push(Step::NewTable);
        return whole(desired, steps);
    };
    let other_base =
        |chain: &LoweredChain| live.chain(&chain.name).is_some_and(|found| found.base != chain.base);
    if live.dormant || desired.chains.iter().any(other_base) {
        steps.extend([Step::DeleteTable, Step::NewTable]);
        return whole(desired, steps);
    }
    for chain in &desired.chains {
        if live.chain(&chain.name).is_none() {
            let empty = LoweredChain { rules: Vec::new(), ..chain.clone() };
            steps.push(Step::NewChain(empty));
        }
    }
    for chain in &desired.chains {
        let found = live.chain(&chain.name).map_or(&[][..], |found| &found.rules);
        change_rules(chain, found, &mut steps);
    }
    // First what refers to them, then the chains themselves.
    let residual: Vec<_> = live
        .chains
        .iter()
        .filter(|found| !desired.chains.iter().any(|chain| chain.name == found.name))
        .collect();
    for chain in &residual {
        for rule in &chain.rules {
            steps.push(delete(&chain.name, rule));
        }
    }
    for chain in residual {
        steps.push(Step::DeleteChain { name: chain.name.clone() });
    }
    steps
}

fn whole(desired: &Lowered, mut steps: Vec<Step>) -> Vec<Step> {
    for chain in &desired.chains {
        steps.push(Step::NewChain(LoweredChain { rules: Vec::new(), ..chain.clone() }));
    }
    for chain in &desired.chains {
        change_rules(chain, &[], &mut steps);
    }
    steps
}

fn delete(chain: &str, rule: &LiveRule) -> Step {
    Step::DeleteRule { chain: chain.to_owned(), handle: rule.handle, text: rule.raised().to_string() }
}

/// Keeps the longest common run of rules, removes and adds the others where they belong.
fn change_rules(chain: &LoweredChain, live: &[LiveRule], steps: &mut Vec<Step>) {
    let same = |desired: &LoweredRule, live: &LiveRule| desired.exprs == live.exprs;
    // The usual case costs one pass.
    if chain.rules.len() == live.len()
        && chain.rules.iter().zip(live).all(|(desired, live)| same(desired, live))
    {
        return;
    }
    // lengths[i][j]: the longest common subsequence of desired[i..] and live[j..].
    let mut lengths = vec![vec![0_usize; live.len() + 1]; chain.rules.len() + 1];
    for (i, desired) in chain.rules.iter().enumerate().rev() {
        for (j, found) in live.iter().enumerate().rev() {
            lengths[i][j] = if same(desired, found) {
                lengths[i + 1][j + 1] + 1
            } else {
                lengths[i + 1][j].max(lengths[i][j + 1])
            };
        }
    }
    let (mut i, mut j) = (0, 0);
    let mut pending: Vec<&LoweredRule> = Vec::new();
    let mut add = |pending: &mut Vec<&LoweredRule>, before: Option<u64>| {
        for rule in pending.drain(..) {
            steps.push(Step::NewRule { chain: chain.name.to_string(), before, rule: rule.clone() });
        }
    };
    let mut removed = Vec::new();
    while i < chain.rules.len() || j < live.len() {
        match (chain.rules.get(i), live.get(j)) {
            (Some(desired), Some(found)) if same(desired, found) => {
                add(&mut pending, Some(found.handle));
                (i, j) = (i + 1, j + 1);
            }
            (Some(desired), found) if found.is_none() || lengths[i + 1][j] >= lengths[i][j + 1] => {
                pending.push(desired);
                i += 1;
            }
            (_, Some(found)) => {
                removed.push(delete(&chain.name, found));
                j += 1;
            }
            _ => break,
        }
    }
    add(&mut pending, None);
    steps.extend(removed);
}

/// The table and hook of a live chain, or a regular chain.
fn chain_of(name: &str, base: Option<&BaseChain>) -> Chain {
    let table = |priority: i32, kind: &str| match (kind, priority) {
        ("nat", _) => crate::ruleset::TableKind::Nat,
        (_, ..=-200) => crate::ruleset::TableKind::Raw,
        (_, ..=-1) => crate::ruleset::TableKind::Mangle,
        _ => crate::ruleset::TableKind::Filter,
    };
    match (hook_of(name), base) {
        (Some((kind, hook)), Some(base)) => Chain { drops: base.drops, ..Chain::base(kind, hook) },
        (None, Some(base)) => {
            let hook = crate::ruleset::Hook::ALL.get(base.hook as usize).copied();
            Chain {
                hook,
                drops: base.drops,
                ..Chain::regular(table(base.priority, &base.kind), name.to_owned())
            }
        }
        _ => Chain::regular(crate::ruleset::TableKind::Nat, name.to_owned()),
    }
}

impl NetlinkError {
    fn refused_batch(errno: Errno) -> Self {
        match errno {
            Errno::EPERM | Errno::EACCES => Self::NotPermitted { errno },
            Errno::ERESTART | Errno::EINTR | Errno::EAGAIN => Self::Stale { errno },
            Errno::EOPNOTSUPP | Errno::EINVAL | Errno::ENOENT => Self::NoNfTables { errno },
            errno => Self::Refused { change: "the whole change".to_owned(), errno, hint: error::hint(errno) },
        }
    }
}
