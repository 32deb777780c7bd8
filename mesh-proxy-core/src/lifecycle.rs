//! Stages of a filter chain's (and its connections') life.

use std::sync::atomic::{AtomicU8, Ordering};

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

    pub(crate) fn draining(&self) -> bool {
        self.stage() >= DRAINING
    }

    /// Advances to a stage; going back is not possible.
    pub(crate) fn advance(&self, stage: u8) {
        if self.stage.fetch_max(stage, Ordering::AcqRel) < stage {
            self.bell.notify_waiters();
        }
    }

    /// Resolves at the next advance.
    pub(crate) fn changed(&self) -> Notified<'_> {
        self.bell.notified()
    }

    /// Resolves when the stage is at least `stage`.
    pub(crate) async fn reached(&self, stage: u8) {
        loop {
            let changed = self.changed();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if self.stage() >= stage {
                return;
            }
            changed.await;
        }
    }
}
