//! The smallest patch we can find cheaply.

use std::collections::HashMap;

use serde::Serialize;
use serde_json::Value;

use super::pointer::{Pointer, push_escaped};
use super::{Operation, Patch};
use crate::json;

/// Largest table of the longest-common-subsequence search (cells). Beyond it lists without keys are compared index by
/// index, which is always right and only less small.
const MAX_TABLE: usize = 250_000;

/// Room for the text of a usual patch, in bytes.
const USUAL_TEXT: usize = 8 << 10;

/// Operations that turn `from` into `to`, in an order in which they can be applied.
///
/// Objects are compared key by key. List items are paired by their `name` (then `mountPath`, `containerPort`, `key`,
/// `ip`, `uid`) where every item has one, else by equality; what is not paired is removed or added at its place. No
/// `move`, `copy` or `test` is produced. `apply(diff(a, b), a) == b` for all documents.
#[must_use]
pub fn diff(from: &Value, to: &Value) -> Patch {
    Patch(changes(from, to).into_iter().map(Change::into_operation).collect())
}

/// The same as JSON text, without copying any part of `to`; and the number of operations.
pub(crate) fn diff_text(from: &Value, to: &Value) -> (Vec<u8>, usize) {
    let changes = changes(from, to);
    (json::to_vec(&changes, USUAL_TEXT), changes.len())
}

fn changes<'a>(from: &Value, to: &'a Value) -> Vec<Change<'a>> {
    let mut differ = Differ { path: String::new(), changes: Vec::new() };
    differ.values(from, to);
    differ.changes
}

/// An operation that borrows its value.
#[derive(Serialize)]
#[serde(tag = "op", rename_all = "lowercase")]
enum Change<'a> {
    Add { path: String, value: &'a Value },
    Remove { path: String },
    Replace { path: String, value: &'a Value },
}

impl Change<'_> {
    fn into_operation(self) -> Operation {
        // The text was made by this module, so it parses.
        let pointer = |path: &str| Pointer::parse(path).unwrap_or_default();
        match self {
            Self::Add { path, value } => Operation::Add { path: pointer(&path), value: value.clone() },
            Self::Remove { path } => Operation::Remove { path: pointer(&path) },
            Self::Replace { path, value } => {
                Operation::Replace { path: pointer(&path), value: value.clone() }
            }
        }
    }
}

struct Differ<'a> {
    path: String,
    changes: Vec<Change<'a>>,
}

impl<'a> Differ<'a> {
    /// Go one step deeper for the time of a closure.
    fn inside(&mut self, token: &str, work: impl FnOnce(&mut Self)) {
        let length = self.path.len();
        self.path.push('/');
        push_escaped(&mut self.path, token);
        work(self);
        self.path.truncate(length);
    }

    fn add(&mut self, value: &'a Value) {
        self.changes.push(Change::Add { path: self.path.clone(), value });
    }

    fn remove(&mut self) {
        self.changes.push(Change::Remove { path: self.path.clone() });
    }

    fn values(&mut self, from: &Value, to: &'a Value) {
        match (from, to) {
            (Value::Object(from), Value::Object(to)) => {
                for (key, value) in from {
                    self.inside(key, |differ| match to.get(key) {
                        Some(new) => differ.values(value, new),
                        None => differ.remove(),
                    });
                }
                for (key, value) in to {
                    if !from.contains_key(key) {
                        self.inside(key, |differ| differ.add(value));
                    }
                }
            }
            (Value::Array(from), Value::Array(to)) => self.lists(from, to),
            (from, to) if from == to => {}
            (_, to) => self.changes.push(Change::Replace { path: self.path.clone(), value: to }),
        }
    }

    fn lists(&mut self, from: &[Value], to: &'a [Value]) {
        if from == to {
            return;
        }
        let pairing = Pairing::of(from, to);
        let head = from.iter().zip(to).take_while(|(a, b)| pairing.pair(a, b)).count();
        let tail = from[head..]
            .iter()
            .rev()
            .zip(to[head..].iter().rev())
            .take_while(|(a, b)| pairing.pair(a, b))
            .count();
        for at in 0..head {
            self.item(at, &from[at], &to[at]);
        }
        let (old, new) = (&from[head..from.len() - tail], &to[head..to.len() - tail]);
        let mut at = head;
        for step in align(old, new, pairing) {
            match step {
                Step::Keep(i, j) => {
                    self.item(at, &old[i], &new[j]);
                    at += 1;
                }
                Step::Drop => self.inside(&at.to_string(), Self::remove),
                Step::Put(j) => {
                    self.inside(&at.to_string(), |differ| differ.add(&new[j]));
                    at += 1;
                }
            }
        }
        for (a, b) in from[from.len() - tail..].iter().zip(&to[to.len() - tail..]) {
            self.item(at, a, b);
            at += 1;
        }
    }

    fn item(&mut self, at: usize, from: &Value, to: &'a Value) {
        self.inside(&at.to_string(), |differ| differ.values(from, to));
    }
}

/// How list items find their partner.
#[derive(Clone, Copy)]
enum Pairing {
    Key(&'static str),
    Equal,
}

impl Pairing {
    fn of(from: &[Value], to: &[Value]) -> Self {
        for key in ["name", "mountPath", "containerPort", "key", "ip", "uid"] {
            let keyed =
                |item: &Value| item.get(key).is_some_and(|value| value.is_string() || value.is_number());
            if from.iter().chain(to).all(keyed) {
                return Self::Key(key);
            }
        }
        Self::Equal
    }

    fn pair(self, a: &Value, b: &Value) -> bool {
        match self {
            Self::Key(key) => a.get(key) == b.get(key),
            Self::Equal => a == b,
        }
    }
}

enum Step {
    Keep(usize, usize),
    Drop,
    Put(usize),
}

fn align(old: &[Value], new: &[Value], pairing: Pairing) -> Vec<Step> {
    match pairing {
        Pairing::Key(key) => align_by_key(old, new, key),
        Pairing::Equal => merge_replacements(align_by_table(old, new), old.len()),
    }
}

/// The longest run of pairs that stand in the same order in both lists; what is not in it goes or comes.
fn align_by_key(old: &[Value], new: &[Value], key: &str) -> Vec<Step> {
    // Of several items with one key, the first of one list is paired with the first of the other.
    let mut open: HashMap<Option<&Value>, usize> = HashMap::with_capacity(old.len());
    let mut next: Vec<Option<usize>> = vec![None; old.len()];
    for (i, item) in old.iter().enumerate().rev() {
        next[i] = open.insert(item.get(key), i);
    }
    let mut pairs = Vec::new();
    for (j, item) in new.iter().enumerate() {
        if let Some(i) = open.remove(&item.get(key)) {
            if let Some(following) = next[i] {
                open.insert(item.get(key), following);
            }
            pairs.push((i, j));
        }
    }
    let mut steps = Vec::with_capacity(old.len().max(new.len()));
    let (mut i, mut j) = (0, 0);
    for (old_place, new_place) in longest_rising(&pairs).into_iter().chain([(old.len(), new.len())]) {
        steps.extend((i..old_place).map(|_| Step::Drop));
        steps.extend((j..new_place).map(Step::Put));
        if old_place < old.len() {
            steps.push(Step::Keep(old_place, new_place));
        }
        (i, j) = (old_place + 1, new_place + 1);
    }
    steps
}

/// A longest subsequence of the pairs whose first numbers rise; their second numbers do already.
fn longest_rising(pairs: &[(usize, usize)]) -> Vec<(usize, usize)> {
    // ends[n]: the pair with the smallest first number in which a rising run of n + 1 pairs can end.
    let mut ends: Vec<usize> = Vec::new();
    let mut before: Vec<Option<usize>> = Vec::with_capacity(pairs.len());
    for (at, (first, _)) in pairs.iter().enumerate() {
        let length = ends.partition_point(|end| pairs[*end].0 < *first);
        before.push(length.checked_sub(1).map(|shorter| ends[shorter]));
        if length == ends.len() {
            ends.push(at);
        } else {
            ends[length] = at;
        }
    }
    let mut run: Vec<_> =
        std::iter::successors(ends.last().copied(), |at| before[*at]).map(|at| pairs[at]).collect();
    run.reverse();
    run
}

fn align_by_table(old: &[Value], new: &[Value]) -> Vec<Step> {
    let width = new.len() + 1;
    if old.is_empty() || new.is_empty() || (old.len() + 1).saturating_mul(width) > MAX_TABLE {
        let shared = old.len().min(new.len());
        let mut steps: Vec<Step> = (0..shared).map(|i| Step::Keep(i, i)).collect();
        steps.extend((shared..old.len()).map(|_| Step::Drop));
        steps.extend((shared..new.len()).map(Step::Put));
        return steps;
    }
    // lengths[i][j]: longest common subsequence of old[i..] and new[j..].
    let mut lengths = vec![0_u32; (old.len() + 1) * width];
    for i in (0..old.len()).rev() {
        for j in (0..new.len()).rev() {
            lengths[i * width + j] = if old[i] == new[j] {
                lengths[(i + 1) * width + j + 1] + 1
            } else {
                lengths[(i + 1) * width + j].max(lengths[i * width + j + 1])
            };
        }
    }
    let (mut i, mut j, mut steps) = (0, 0, Vec::new());
    while i < old.len() || j < new.len() {
        if i < old.len() && j < new.len() && old[i] == new[j] {
            steps.push(Step::Keep(i, j));
            i += 1;
            j += 1;
        } else if i < old.len()
            && (j == new.len() || lengths[(i + 1) * width + j] >= lengths[i * width + j + 1])
        {
            steps.push(Step::Drop);
            i += 1;
        } else {
            steps.push(Step::Put(j));
            j += 1;
        }
    }
    steps
}

/// A removal followed by an addition at the same place is one replacement, which may even turn out smaller inside.
fn merge_replacements(steps: Vec<Step>, old: usize) -> Vec<Step> {
    let mut merged: Vec<Step> = Vec::with_capacity(steps.len());
    let mut next_old = 0;
    let mut pending = Vec::new();
    for step in steps {
        match step {
            Step::Drop => {
                pending.push(next_old);
                next_old += 1;
            }
            Step::Put(j) if !pending.is_empty() => merged.push(Step::Keep(pending.remove(0), j)),
            Step::Put(j) => merged.push(Step::Put(j)),
            Step::Keep(i, j) => {
                merged.extend(pending.drain(..).map(|_| Step::Drop));
                merged.push(Step::Keep(i, j));
                next_old = i + 1;
            }
        }
    }
    debug_assert!(next_old <= old);
    merged.extend(pending.drain(..).map(|_| Step::Drop));
    merged
}
