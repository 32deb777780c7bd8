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

    /// Takes a token if there is one.
    fn take(&mut self, now: Instant) -> bool {
        self.fill(now);
        let there = self.tokens >= 1.0;
        if there {
            self.tokens -= 1.0;
        }
        there
    }

    /// Takes a token for what has happened already, and says how long to wait until it is paid for.
    pub(super) fn owe(&mut self, now: Instant) -> Option<Duration> {
        self.fill(now);
        self.tokens -= 1.0;
        (self.tokens < 0.0).then(|| Duration::from_secs_f64(-self.tokens / self.rate))
    }

    fn fill(&mut self, now: Instant) {
        let gained = now.saturating_duration_since(self.filled_at).as_secs_f64() * self.rate;
        self.tokens = (self.tokens + gained).min(self.burst);
        self.filled_at = now;
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
        bucket.get_or_insert_with(|| Bucket::new(rate, rate, now)).take(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_bucket_refills_with_time() {
        let mut bucket = Bucket::new(2, 2, Instant::now());
        assert!(bucket.take(Instant::now()) && bucket.take(Instant::now()));
        assert!(!bucket.take(Instant::now()));
        tokio::time::advance(Duration::from_millis(500)).await;
        assert!(bucket.take(Instant::now()) && !bucket.take(Instant::now()));
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_waits_as_told_keeps_to_the_rate() {
        let started = Instant::now();
        let mut bucket = Bucket::new(10, 100, started);
        for _ in 0..150 {
            if let Some(wait) = bucket.owe(Instant::now()) {
                tokio::time::sleep(wait).await;
            }
        }
        // A hundred at once, and ten per second after that.
        let took = started.elapsed();
        assert!(took >= Duration::from_millis(4_990) && took <= Duration::from_millis(5_100), "{took:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn no_rate_admits_everything() {
        let open = SharedBucket::new(None);
        assert!((0..1000).all(|_| open.admit(Instant::now())));
        let tight = SharedBucket::new(Some(3));
        assert_eq!((0..10).filter(|_| tight.admit(Instant::now())).count(), 3);
    }
}
