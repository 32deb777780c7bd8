//! One type of one client.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use crate::client::state::{RejectedVersion, Rejection, ResourceState, ResourceStatus};
use crate::client::subscription::Names;
use crate::pb::google::rpc::Status;

use super::LapseReason;

/// gRPC's `INVALID_ARGUMENT`, which Envoy puts into a NACK.
const INVALID_ARGUMENT: i32 = 3;
/// The longest text of a NACK; a server logs it.
const MAX_NACK: usize = 4096;

/// An answer that is ready to be sent.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) nonce: String,
    pub(super) error: Option<Status>,
}

/// A resource that was rejected, and its version where it is known.
pub(super) type Bad = (Rejection, Option<String>);

/// A response that is not answered yet.
#[derive(Debug)]
pub(super) struct Pending {
    pub(super) id: u64,
    pub(super) nonce: String,
    pub(super) version: String,
    /// What was delivered: name, version, content hash, time to live.
    pub(super) offered: Vec<(String, String, u64, Option<Duration>)>,
    pub(super) removed: Vec<String>,
    /// Rejected before anybody was asked.
    pub(super) bad: Vec<Bad>,
    pub(super) decided: bool,
}

impl Pending {
    /// The consumer's word about what was delivered.
    fn reject(&mut self, rejections: &[Rejection]) {
        for rejection in rejections {
            let offered = self.offered.iter().find(|(name, ..)| *name == rejection.name);
            self.bad.push((rejection.clone(), offered.map(|(_, version, ..)| version.clone())));
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct TypeState {
    pub(super) resources: BTreeMap<String, ResourceState>,
    pub(super) wanted: Names,
    /// What the server was told on this stream; `None` before the first request.
    pub(super) told: Option<Names>,
    /// What was dropped since the last request. If it is wanted again by then, the server has to hear of both, for
    /// the client has forgotten what it had.
    pub(super) lapsed: Names,
    /// Names to subscribe to again although the server knows them.
    pub(super) again: BTreeSet<String>,
    pub(super) pending: VecDeque<Pending>,
    /// Responses of earlier streams that are still undecided: there is nobody to answer, but what the consumer takes
    /// from them it has.
    lost: Vec<Pending>,
    pub(super) answers: VecDeque<Answer>,
    /// State-of-the-World: what was last received and what was last accepted.
    pub(super) nonce: String,
    pub(super) version: String,
    pub(super) closing: bool,
    /// The subscription may differ from what the server was told.
    pub(super) touched: bool,
    /// State-of-the-World: something was named on this stream, so an empty list no longer means everything.
    pub(super) named_once: bool,
    /// A response came: from then on an empty one is no news.
    pub(super) answered: bool,
}

impl TypeState {
    pub(super) fn want(&mut self, names: Names) {
        self.closing = false;
        self.touched = true;
        self.resources.retain(|name, _| names.contains(name));
        self.lapsed.all |= self.wanted.all && !names.all;
        self.lapsed.names.extend(self.wanted.names.difference(&names.names).cloned());
        for name in &names.names {
            self.resources.entry(name.clone()).or_default();
        }
        self.wanted = names;
    }

    pub(super) fn add(&mut self, name: &str) {
        self.closing = false;
        self.touched = true;
        self.resources.entry(name.to_owned()).or_default();
        if !self.wanted.names.insert(name.to_owned()) {
            self.again.insert(name.to_owned());
        }
    }

    pub(super) fn remove(&mut self, name: &str) {
        self.touched = true;
        if self.wanted.names.remove(name) && !self.wanted.all {
            self.resources.remove(name);
            self.lapsed.names.insert(name.to_owned());
        }
        self.again.remove(name);
    }

    /// Forgets the stream, keeps what was accepted.
    pub(super) fn restart(&mut self) {
        self.told = None;
        self.touched = true;
        self.named_once = false;
        self.lapsed = Names::none();
        self.again.clear();
        self.lost.extend(self.pending.drain(..).filter(|p| !p.decided));
        self.answers.clear();
        self.nonce.clear();
        self.resources.values_mut().for_each(|r| r.requested_at = None);
    }

    /// What to ask for next: without what was dropped and is wanted again, which is asked for after that.
    pub(super) fn target(&mut self) -> Names {
        let lapsed = std::mem::take(&mut self.lapsed);
        let Some(told) = &self.told else { return self.wanted.clone() };
        let all = self.wanted.all && !(lapsed.all && told.all);
        let back = |name: &String| lapsed.names.contains(name) && told.names.contains(name);
        let names: BTreeSet<_> = self.wanted.names.iter().filter(|name| !back(name)).cloned().collect();
        self.touched = all != self.wanted.all || names.len() != self.wanted.names.len();
        Names { all, names }
    }

    /// Starts the clock of names that were asked for just now.
    pub(super) fn requested(&mut self, now: Duration) {
        for name in &self.wanted.names {
            if let Some(state) = self.resources.get_mut(name) {
                state.requested_at.get_or_insert(now);
            }
        }
    }

    pub(super) fn undecided(&self) -> usize {
        self.lost.len() + self.pending.iter().filter(|p| !p.decided).count()
    }

    /// Names of which nobody knows yet what the consumer will have, since a response about them is undecided.
    pub(super) fn open(&self) -> BTreeSet<String> {
        let names = |p: &Pending| {
            let offered = p.offered.iter().map(|(name, ..)| name.clone());
            offered.chain(p.removed.iter().cloned()).collect::<Vec<_>>()
        };
        self.lost.iter().chain(&self.pending).flat_map(names).collect()
    }

    /// What a client that comes back says it has. Of an open name only that it may have something, for which no version
    /// stands: the server then says what is true.
    pub(super) fn known(&self) -> BTreeMap<String, String> {
        let accepted = self.resources.iter().filter(|(_, r)| r.accepted_at.is_some());
        let mut known: BTreeMap<_, _> = accepted.map(|(n, r)| (n.clone(), r.version.clone())).collect();
        let open = self.open().into_iter().filter(|name| self.wanted.contains(name));
        known.extend(open.map(|name| (name, String::new())));
        known
    }

    /// What is known, or may be, and is not among `names`.
    pub(super) fn absent(&self, open: &BTreeSet<String>, names: &[String]) -> Vec<String> {
        let present: BTreeSet<&str> = names.iter().map(String::as_str).collect();
        let known: BTreeSet<&String> = self.resources.keys().chain(open).collect();
        known.into_iter().filter(|name| !present.contains(name.as_str())).cloned().collect()
    }

    pub(super) fn is_unchanged(&self, name: &str, version: Option<&str>, content: u64) -> bool {
        self.resources.get(name).is_some_and(|state| {
            state.content == Some(content) && version.is_none_or(|version| state.version == version)
        })
    }

    /// Decides the delivery `id`, if it is one of this type.
    pub(super) fn decide(&mut self, now: Duration, id: u64, rejections: &[Rejection]) -> bool {
        if let Some(at) = self.lost.iter().position(|p| p.id == id) {
            let mut pending = self.lost.remove(at);
            pending.reject(rejections);
            self.apply(now, pending);
            return true;
        }
        let Some(pending) = self.pending.iter_mut().find(|p| p.id == id && !p.decided) else { return false };
        pending.decided = true;
        pending.reject(rejections);
        while self.pending.front().is_some_and(|p| p.decided) {
            if let Some(pending) = self.pending.pop_front() {
                self.settle(now, pending);
            }
        }
        true
    }

    /// Applies a decided response and makes its answer.
    fn settle(&mut self, now: Duration, pending: Pending) {
        let answer = Answer { nonce: pending.nonce.clone(), error: nack(&pending.bad) };
        self.apply(now, pending);
        self.answers.push_back(answer);
    }

    fn apply(&mut self, now: Duration, pending: Pending) {
        let Pending { version: response_version, offered, removed, bad, .. } = pending;
        for (name, version, content, ttl) in offered {
            if bad.iter().any(|(r, _)| r.name == name) || !self.wanted.contains(&name) {
                continue;
            }
            let state = self.resources.entry(name).or_default();
            state.status = ResourceStatus::Acked;
            state.version = version;
            state.content = Some(content);
            state.accepted_at = Some(now);
            state.expires_at = ttl.map(|ttl| now + ttl);
            state.error = None;
        }
        for name in removed {
            if self.wanted.names.contains(&name) {
                let state = ResourceState { status: ResourceStatus::DoesNotExist, ..Default::default() };
                self.resources.insert(name, state);
            } else {
                self.resources.remove(&name);
            }
        }
        for (Rejection { name, reason }, version) in &bad {
            if self.wanted.contains(name) {
                let (reason, version) =
                    (reason.clone(), version.as_ref().unwrap_or(&response_version).clone());
                let state = self.resources.entry(name.clone()).or_default();
                state.status = ResourceStatus::Nacked;
                state.error = Some(RejectedVersion { reason, version, at: now });
            }
        }
        if bad.is_empty() {
            self.version = response_version;
        }
    }

    /// The next moment at which something lapses.
    pub(super) fn next_timer(&self, missing_after: Option<Duration>) -> Option<Duration> {
        let times = self.resources.values().filter_map(|state| match state.status {
            ResourceStatus::Requested => Some(state.requested_at?.saturating_add(missing_after?)),
            _ => state.expires_at,
        });
        times.min()
    }

    /// Names that lapsed, each with its reason.
    pub(super) fn lapsed(
        &mut self,
        now: Duration,
        missing_after: Option<Duration>,
    ) -> Vec<(String, LapseReason)> {
        let mut found = Vec::new();
        for (name, state) in &mut self.resources {
            if state.status == ResourceStatus::Requested {
                let due = state
                    .requested_at
                    .zip(missing_after)
                    .is_some_and(|(at, after)| at.saturating_add(after) <= now);
                if due {
                    state.status = ResourceStatus::Timeout;
                    found.push((name.clone(), LapseReason::Missing));
                }
            } else if state.expires_at.is_some_and(|at| at <= now) {
                *state = ResourceState { status: ResourceStatus::DoesNotExist, ..Default::default() };
                found.push((name.clone(), LapseReason::Expired));
            }
        }
        let wanted = &self.wanted;
        self.resources.retain(|name, state| {
            wanted.names.contains(name) || state.status != ResourceStatus::DoesNotExist
        });
        found
    }
}

/// Names every bad resource, within a bound.
fn nack(bad: &[Bad]) -> Option<Status> {
    if bad.is_empty() {
        return None;
    }
    let mut message = String::new();
    for (Rejection { name, reason }, _) in bad {
        if message.len() > MAX_NACK {
            message.push_str("; ...");
            break;
        }
        let separator = if message.is_empty() { "" } else { "; " };
        message = format!("{message}{separator}{name}: {reason}");
    }
    Some(Status { code: INVALID_ARGUMENT, message, details: Vec::new() })
}
