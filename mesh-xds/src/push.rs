//! From a storm of changes to few pushes: debounce, coalesce per client, bound the concurrency.
//!
//! A change of configuration rarely comes alone. [`Pusher`] waits until changes pause (and never longer than a cap),
//! merges them, and hands over one batch at a time; changes that arrive meanwhile are in the next batch.
//! [`PushQueue`] then does the work for each client: pending work of one client merges, and only so many clients are
//! worked for at once, so that one slow client delays nobody else.

mod debounce;
mod queue;

pub use debounce::{Debounce, PushConfig, Pusher};
pub use queue::PushQueue;

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
