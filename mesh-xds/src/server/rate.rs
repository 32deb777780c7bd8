//! Token buckets that protect the server from floods.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// `rate` tokens per second, at most `burst` saved.
#[derive(Debug)]
pub(super) struct Bucket {
    rate: f64,
    burst: f64,
    tokens: f64,
    filled_at: Instant,
}

impl Bucket {
    pub(super) fn new(rate: u32, burst: u32, now: Instant) -> Self {
        let burst = f64::from(burst.max(1));
        Self { rate: f64::from(rate.max(1)), burst, tokens: burst, filled_at: now }
    }

    /// Takes a token, or says how long it takes until there is one.
    pub(super) fn take(&mut self, now: Instant) -> Result<(), Duration> {
        let gained = now.saturating_duration_since(self.filled_at).as_secs_f64() * self.rate;
        self.tokens = (self.tokens + gained).min(self.burst);
        self.filled_at = now;
        if self.tokens >= 1.0 {
            self.tokens -= 1.0;
            return Ok(());
        }
        Err(Duration::from_secs_f64((1.0 - self.tokens) / self.rate))
    }
}

/// A bucket for all streams of a server, or none.
#[derive(Debug)]
pub(super) struct SharedBucket {
    rate: Option<u32>,
    bucket: Mutex<Option<Bucket>>,
}

impl SharedBucket {
    pub(super) const fn new(rate: Option<u32>) -> Self {
        Self { rate, bucket: Mutex::new(None) }
    }

    /// Whether one more may pass now.
    pub(super) fn admit(&self, now: Instant) -> bool {
        let Some(rate) = self.rate else { return true };
        let mut bucket = self.bucket.lock().unwrap_or_else(PoisonError::into_inner);
        bucket.get_or_insert_with(|| Bucket::new(rate, rate, now)).take(now).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_bucket_refills_with_time() {
        let mut bucket = Bucket::new(2, 2, Instant::now());
        assert!(bucket.take(Instant::now()).is_ok());
        assert!(bucket.take(Instant::now()).is_ok());
        assert_eq!(bucket.take(Instant::now()), Err(Duration::from_millis(500)));
        tokio::time::advance(Duration::from_millis(500)).await;
        assert!(bucket.take(Instant::now()).is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn no_rate_admits_everything() {
        let open = SharedBucket::new(None);
        assert!((0..1000).all(|_| open.admit(Instant::now())));
        let tight = SharedBucket::new(Some(3));
        assert_eq!((0..10).filter(|_| tight.admit(Instant::now())).count(), 3);
    }
}
