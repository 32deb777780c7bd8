//! Directories of YAML as a source of resources: read, watched, and merged into one consistent [`State`].
//!
//! The failures to prevent: a typing error that takes a working route or a security policy away, and a file caught
//! half-written. Every resource keeps its last good version while its newest one is bad; a policy that never was
//! good fails closed; whatever is not applied is listed in [`State::rejected`].

mod keep;
mod ledger;
mod references;
mod scan;

pub use ledger::{FailClosed, Rejection, State};
pub use references::resolve_host;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use keep::Keeper;
use ledger::Ledger;
use scan::Scanner;
use tokio::sync::watch;

use crate::blocking::blocking;

/// How often directories are looked at. A change in a directory that people edit is applied when two looks agree.
pub const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// Looking takes at most about one part in this many of a core where there are many files,
const MAX_SHARE: u32 = 20;
/// but no pause is longer than this: a change in two looks, however busy the machine is.
const MAX_PAUSE: Duration = Duration::from_millis(500);

/// What the store reads.
#[derive(Debug, Clone)]
pub struct StoreConfig {
    /// People's directories (or single files).
    pub config_dirs: Vec<PathBuf>,
    /// Directories with what an API server and kubelets would add.
    pub status_dirs: Vec<PathBuf>,
    /// DNS suffix of services, `cluster.local`.
    pub domain: String,
    /// Where good versions that serve in place of bad ones are kept over a restart; nowhere if absent.
    pub last_good: Option<PathBuf>,
}

/// The directories and everything known about them.
#[derive(Debug)]
pub struct Store {
    scanner: Scanner,
    ledger: Ledger,
    keeper: Keeper,
}

impl Store {
    /// A store that has read nothing yet but what an earlier process kept.
    pub fn new(config: StoreConfig) -> Self {
        let keeper = Keeper::new(config.last_good);
        Self {
            scanner: Scanner::new(config.config_dirs, config.status_dirs),
            ledger: Ledger::new(config.domain, keeper.load()),
            keeper,
        }
    }

    /// Looks at the directories once (blocking IO); the new state if anything changed. The first call always
    /// returns a state.
    pub fn poll(&mut self) -> Option<Arc<State>> {
        if !self.scanner.scan() {
            return None;
        }
        let state = self.ledger.update(&self.scanner);
        self.keeper.keep(&state.kept);
        Some(Arc::new(state))
    }
}

/// Polls `store` until every receiver is gone, sending each new state. Returns once the first state is there.
pub async fn watch(mut store: Store, interval: Duration) -> watch::Receiver<Arc<State>> {
    let (mut store, first) = blocking(move || {
        let first = store.poll().unwrap_or_default();
        (store, first)
    })
    .await;
    report(&State::default(), &first);
    let (sender, receiver) = watch::channel(first);
    tokio::spawn(async move {
        let mut pause = interval;
        loop {
            tokio::time::sleep(pause).await;
            if sender.is_closed() {
                return;
            }
            let started = tokio::time::Instant::now();
            let (returned, state) = blocking(move || {
                let state = store.poll();
                (store, state)
            })
            .await;
            store = returned;
            pause = pause_after(interval, started.elapsed());
            if let Some(state) = state {
                report(&sender.borrow(), &state);
                sender.send_replace(state);
            }
        }
    });
    receiver
}

/// The pause after a look that took so long. The time is not only the look's own: on a busy machine most of it is
/// waiting for a processor, and must not make the next look later still.
fn pause_after(interval: Duration, look: Duration) -> Duration {
    (look * MAX_SHARE).clamp(interval, interval.max(MAX_PAUSE))
}

/// Logs what is newly wrong and what is right again.
fn report(before: &State, after: &State) {
    for rejection in after.rejected.iter().filter(|r| !before.rejected.contains(r)) {
        tracing::warn!(
            reason = rejection.error.reason(),
            effect = rejection.effect,
            "resource rejected: {}",
            rejection.error
        );
    }
    for rejection in &before.rejected {
        let e = &rejection.error;
        let same = |r: &Rejection| {
            (&r.error.kind, &r.error.namespace, &r.error.name) == (&e.kind, &e.namespace, &e.name)
        };
        if !after.rejected.iter().any(same) {
            tracing::info!("resource no longer rejected: {} {}/{}", e.kind, e.namespace, e.name);
        }
    }
    for policy in after.fail_closed.iter().filter(|p| !before.fail_closed.contains(p)) {
        tracing::warn!("fail closed: {policy}");
    }
}

#[cfg(test)]
mod tests;
