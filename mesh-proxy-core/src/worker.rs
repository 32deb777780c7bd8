//! A worker: a runtime, its share of the pools and buffers, its random numbers.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread,
};

use tokio::{runtime, sync::oneshot};

use crate::{error::BuildError, telemetry::SeriesCache};

/// What tasks of one worker share. Its locks are only ever taken by its own thread (and by inspection).
#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) id: usize,
    pub(crate) runtime: runtime::Handle,
    pub(crate) series: SeriesCache,
    random: AtomicU64,
}

impl Worker {
    /// A worker on the current runtime.
    pub(crate) fn current(id: usize, seed: u64) -> Arc<Self> {
        Arc::new(Self::new(id, runtime::Handle::current(), seed))
    }

    fn new(id: usize, runtime: runtime::Handle, seed: u64) -> Self {
        let seed = seed.wrapping_add((id as u64).wrapping_mul(0x5851_f42d_4c95_7f2d));
        Self { id, runtime, series: SeriesCache::default(), random: AtomicU64::new(seed) }
    }

    /// A worker with a thread and a current-thread runtime of its own. The thread ends when the sender is dropped.
    pub(crate) fn spawn(id: usize, seed: u64) -> Result<(Arc<Self>, oneshot::Sender<()>), BuildError> {
        let failed = |source| BuildError::Worker { worker: id, source };
        let runtime = runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
        let worker = Arc::new(Self::new(id, runtime.handle().clone(), seed));
        let (stop, stopped) = oneshot::channel::<()>();
        thread::Builder::new()
            .name(format!("mesh-worker-{id}"))
            .spawn(move || {
                let _sender_dropped = runtime.block_on(stopped);
                runtime.shutdown_background();
            })
            .map_err(failed)?;
        Ok((worker, stop))
    }

    /// A uniform random number (splitmix64).
    pub(crate) fn random(&self) -> u64 {
        let mut z = self.random.fetch_add(0x9e37_79b9_7f4a_7c15, Relaxed);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A uniform random number below `bound` (which must not be 0).
    pub(crate) fn below(&self, bound: u64) -> u64 {
        // Multiply-shift: no division, bias below 2^-32 for the bounds used here.
        ((u128::from(self.random()) * u128::from(bound)) >> 64) as u64
    }
}
