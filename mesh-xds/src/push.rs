//! From a storm of changes to few pushes: debounce, find who is affected, coalesce per client, bound the concurrency.
//!
//! A change of configuration rarely comes alone. [`Pusher`] waits until changes pause (and never longer than a cap),
//! merges them, and hands over one batch at a time; changes that arrive meanwhile are in the next batch.
//! [`PushQueue`] does the work for each client: pending work of one client merges, and only so many clients are worked
//! for at once, so that one slow client delays nobody else. [`PushEngine`] puts the two together around a [`Publisher`],
//! which knows who is affected by what. [`Scope`] is a change as most configurations have it, with the case that is
//! frequent and cheap kept apart: only endpoints moved.

mod debounce;
mod engine;
mod queue;
mod scope;

pub use debounce::{Debounce, PushConfig, Pusher};
pub use engine::{Publisher, PushEngine};
pub use queue::PushQueue;
pub use scope::Scope;

/// A change that can take a newer one into itself.
pub trait Merge {
    /// Takes a newer change in; afterwards this one stands for both.
    fn merge(&mut self, newer: Self);
}

impl Merge for () {
    fn merge(&mut self, (): ()) {}
}

impl<T: Ord> Merge for std::collections::BTreeSet<T> {
    fn merge(&mut self, mut newer: Self) {
        self.append(&mut newer);
    }
}
