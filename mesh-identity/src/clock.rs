//! The wall clock as a value, so that tests decide what time it is.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rustls::pki_types::UnixTime;

/// Reads the wall clock. Cheap to clone.
#[derive(Clone)]
pub struct WallClock(Arc<dyn Fn() -> SystemTime + Send + Sync>);

impl WallClock {
    /// The machine's clock.
    pub fn system() -> Self {
        Self::from_fn(SystemTime::now)
    }

    /// A clock that calls `now` each time.
    pub fn from_fn(now: impl Fn() -> SystemTime + Send + Sync + 'static) -> Self {
        Self(Arc::new(now))
    }

    /// A clock that reads `start` now and then follows tokio's clock, which tests can pause and advance.
    ///
    /// # Panics
    /// Later, when it is read outside a tokio runtime that is paused.
    pub fn following_tokio(start: SystemTime) -> Self {
        let base = tokio::time::Instant::now();
        Self::from_fn(move || start + base.elapsed())
    }

    /// What time it is.
    pub fn now(&self) -> SystemTime {
        (self.0)()
    }

    /// What time it is, in the form that path validation takes.
    pub(crate) fn unix_time(&self) -> UnixTime {
        UnixTime::since_unix_epoch(self.now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO))
    }

    /// Seconds since 1970.
    pub(crate) fn unix_seconds(&self) -> u64 {
        self.unix_time().as_secs()
    }
}

impl Default for WallClock {
    fn default() -> Self {
        Self::system()
    }
}

impl fmt::Debug for WallClock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WallClock").finish_non_exhaustive()
    }
}

impl rustls::time_provider::TimeProvider for WallClock {
    fn current_time(&self) -> Option<UnixTime> {
        Some(self.unix_time())
    }
}
