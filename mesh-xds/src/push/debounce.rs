//! Waiting for a pause, but not forever.

use std::fmt;
use std::future::Future;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use super::Merge;

/// How long changes are gathered before they are pushed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PushConfig {
    /// A push begins when nothing changed for this long. Default 100 ms, Istio's.
    pub quiet: Duration,
    /// A push begins at the latest this long after its first change. Default 10 s, Istio's.
    pub longest: Duration,
}

impl Default for PushConfig {
    fn default() -> Self {
        Self { quiet: Duration::from_millis(100), longest: Duration::from_secs(10) }
    }
}

/// The rule as a value: changes in, the moment of the push out.
#[derive(Debug, Clone)]
pub struct Debounce<E> {
    config: PushConfig,
    gathered: Option<(E, Instant, Instant)>,
}

impl<E: Merge> Debounce<E> {
    /// Nothing has changed yet.
    #[must_use]
    pub const fn new(config: PushConfig) -> Self {
        Self { config, gathered: None }
    }

    /// Something changed.
    pub fn add(&mut self, change: E, now: Instant) {
        match &mut self.gathered {
            Some((gathered, _, last)) => {
                gathered.merge(change);
                *last = now;
            }
            None => self.gathered = Some((change, now, now)),
        }
    }

    /// When to push; `None` while nothing has changed.
    #[must_use]
    pub fn due(&self) -> Option<Instant> {
        let (_, first, last) = self.gathered.as_ref()?;
        Some((*last + self.config.quiet).min(*first + self.config.longest))
    }

    /// What has changed, if it is time.
    pub fn take(&mut self, now: Instant) -> Option<E> {
        if self.due()? > now {
            return None;
        }
        self.gathered.take().map(|(change, ..)| change)
    }
}

/// Gathers changes and pushes them in batches, one at a time. Clones feed the same pusher; it stops with the last one.
pub struct Pusher<E> {
    changes: mpsc::UnboundedSender<E>,
}

impl<E: Merge + Send + 'static> Pusher<E> {
    /// Starts a pusher on the current tokio runtime. `push` is called with each batch and awaited before the next. One that
    /// panics has lost its batch; the next one is pushed all the same.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn start<F, R>(config: PushConfig, push: F) -> Self
    where
        F: FnMut(E) -> R + Send + 'static,
        R: Future<Output = ()> + Send + 'static,
    {
        let (changes, inbox) = mpsc::unbounded_channel();
        tokio::spawn(run(Debounce::new(config), inbox, push));
        Self { changes }
    }

    /// Something changed. Never waits.
    pub fn changed(&self, change: E) {
        // The task ends only when every sender is gone, so this cannot fail while `self` exists.
        let _ = self.changes.send(change);
    }
}

impl<E> Clone for Pusher<E> {
    fn clone(&self) -> Self {
        Self { changes: self.changes.clone() }
    }
}

impl<E> fmt::Debug for Pusher<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pusher").finish_non_exhaustive()
    }
}

async fn run<E, F, R>(mut debounce: Debounce<E>, mut inbox: mpsc::UnboundedReceiver<E>, mut push: F)
where
    E: Merge + Send,
    F: FnMut(E) -> R + Send,
    R: Future<Output = ()> + Send + 'static,
{
    let mut open = true;
    loop {
        let due = debounce.due();
        tokio::select! {
            biased;
            change = inbox.recv(), if open => match change {
                Some(change) => debounce.add(change, Instant::now()),
                None => open = false,
            },
            () = async { sleep_until(due.unwrap_or_else(Instant::now)).await }, if due.is_some() => {
                if let Some(batch) = debounce.take(Instant::now()) {
                    // A push that panics is lost; it must not be the last one.
                    let _ = tokio::spawn(push(batch)).await;
                }
            }
            else => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::{Arc, Mutex};

    use super::*;

    const MS: fn(u64) -> Duration = Duration::from_millis;

    #[tokio::test(start_paused = true)]
    async fn a_pause_or_the_cap_ends_the_waiting() {
        let start = Instant::now();
        let mut debounce = Debounce::new(PushConfig::default());
        assert_eq!(debounce.due(), None);
        debounce.add(BTreeSet::from([1]), start);
        assert_eq!(debounce.due(), Some(start + MS(100)));
        debounce.add(BTreeSet::from([2]), start + MS(50));
        assert_eq!(debounce.take(start + MS(100)), None);
        assert_eq!(debounce.take(start + MS(150)), Some(BTreeSet::from([1, 2])));
        assert_eq!(debounce.due(), None);
        for n in 0..200 {
            debounce.add(BTreeSet::from([n]), start + MS(n * 90));
        }
        assert_eq!(debounce.due(), Some(start + Duration::from_secs(10)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_push_that_panics_is_not_the_last_one() {
        let done = Arc::new(Mutex::new(Vec::new()));
        let seen = done.clone();
        let pusher = Pusher::start(PushConfig::default(), move |batch: BTreeSet<u32>| {
            let seen = seen.clone();
            async move {
                assert!(!batch.contains(&1), "this one fails");
                seen.lock().unwrap().push(batch);
            }
        });
        for n in [1, 2] {
            pusher.changed(BTreeSet::from([n]));
            tokio::time::sleep(MS(200)).await;
        }
        assert_eq!(*done.lock().unwrap(), [BTreeSet::from([2])]);
    }

    #[tokio::test(start_paused = true)]
    async fn changes_during_a_push_are_in_the_next_batch() {
        let batches = Arc::new(Mutex::new(Vec::new()));
        let seen = batches.clone();
        let pusher = Pusher::start(PushConfig::default(), move |batch: BTreeSet<u32>| {
            seen.lock().unwrap().push(batch);
            tokio::time::sleep(MS(500))
        });
        pusher.changed(BTreeSet::from([1]));
        pusher.changed(BTreeSet::from([2]));
        tokio::time::sleep(MS(200)).await;
        pusher.changed(BTreeSet::from([3]));
        tokio::time::sleep(MS(300)).await;
        pusher.changed(BTreeSet::from([4]));
        tokio::time::sleep(MS(1000)).await;
        let expected = [BTreeSet::from([1, 2]), BTreeSet::from([3, 4])];
        assert_eq!(*batches.lock().unwrap(), expected);
    }
}
