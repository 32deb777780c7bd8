//! Stages of a filter chain's (and its connections') life.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU8, Ordering},
};

use tokio::sync::{Notify, futures::Notified};

/// Responses ask clients to go elsewhere; nothing is closed.
pub(crate) const DRAINING: u8 = 1;
/// Idle connections are closed, busy ones after their exchange.
pub(crate) const CLOSING: u8 = 2;
/// Everything is cut.
pub(crate) const KILLED: u8 = 3;

/// The stage (0: serving), which only ever advances, and a bell for those who wait.
#[derive(Debug, Default)]
pub(crate) struct Lifecycle {
    stage: AtomicU8,
    bell: Notify,
}

impl Lifecycle {
    pub(crate) fn stage(&self) -> u8 {
        self.stage.load(Ordering::Acquire)
    }

    /// Advances to a stage; going back is not possible.
    pub(crate) fn advance(&self, stage: u8) {
        if self.stage.fetch_max(stage, Ordering::AcqRel) < stage {
            self.bell.notify_waiters();
        }
    }

    /// Resolves when the stage is at least `stage`.
    pub(crate) async fn reached(&self, stage: u8) {
        self.until(|| self.stage() >= stage).await;
    }

    /// Resolves when the bell has rung for something that makes this true.
    async fn until(&self, done: impl Fn() -> bool) {
        loop {
            let changed = self.bell.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if done() {
                return;
            }
            changed.await;
        }
    }
}

/// The life of one connection: its chain's, or cut short. Connections listen to their chain's bell all the time; cutting
/// one rings it, so that a connection that is never cut pays nothing for it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Life {
    chain: Arc<Lifecycle>,
    cut: Arc<AtomicBool>,
}

impl Life {
    pub(crate) fn of(chain: &Arc<Lifecycle>) -> Self {
        Self { chain: Arc::clone(chain), cut: Arc::default() }
    }

    pub(crate) fn stage(&self) -> u8 {
        if self.is_cut() { KILLED } else { self.chain.stage() }
    }

    pub(crate) fn draining(&self) -> bool {
        self.stage() >= DRAINING
    }

    /// Resolves at the next advance, of others too.
    pub(crate) fn changed(&self) -> Notified<'_> {
        self.chain.bell.notified()
    }

    pub(crate) fn is_cut(&self) -> bool {
        self.cut.load(Ordering::Acquire)
    }

    /// Kills this connection alone.
    pub(crate) fn cut(&self) {
        if !self.cut.swap(true, Ordering::AcqRel) {
            self.chain.bell.notify_waiters();
        }
    }

    /// Resolves when the stage is at least `stage`.
    pub(crate) async fn reached(&self, stage: u8) {
        self.chain.until(|| self.stage() >= stage).await;
    }
}
