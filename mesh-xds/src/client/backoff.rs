//! How long to wait before connecting again.

use std::time::Duration;

/// Exponential backoff with jitter: between half and the whole of a step, which doubles from `base` to `cap`.
///
/// Randomness is a seed, so that tests repeat.
#[derive(Debug, Clone)]
pub struct Backoff {
    base: Duration,
    cap: Duration,
    step: Duration,
    random: u64,
}

impl Backoff {
    /// Envoy's figures: 500 ms, doubling to 30 s.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self::with_range(Duration::from_millis(500), Duration::from_secs(30), seed)
    }

    /// Other figures; `cap` is at least `base`.
    #[must_use]
    pub const fn with_range(base: Duration, cap: Duration, seed: u64) -> Self {
        Self { base, cap, step: base, random: seed }
    }

    /// The next wait.
    pub fn next_delay(&mut self) -> Duration {
        let step = self.step;
        self.step = (step * 2).min(self.cap.max(self.base));
        // SplitMix64: small, seeded, good enough to spread clients.
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.random;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        let share = u32::try_from(mixed >> 32).unwrap_or(u32::MAX);
        step / 2 + (step / 2).mul_f64(f64::from(share) / f64::from(u32::MAX))
    }

    /// Starts again at `base`: call it when a stream has proved good.
    pub const fn reset(&mut self) {
        self.step = self.base;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_to_the_cap_and_resets() {
        let mut backoff = Backoff::new(7);
        let mut step = Duration::from_millis(500);
        for _ in 0..12 {
            let wait = backoff.next_delay();
            assert!(wait >= step / 2 && wait <= step, "{wait:?} of {step:?}");
            step = (step * 2).min(Duration::from_secs(30));
        }
        backoff.reset();
        assert!(backoff.next_delay() <= Duration::from_millis(500));
    }

    #[test]
    fn two_seeds_differ() {
        assert_ne!(Backoff::new(1).next_delay(), Backoff::new(2).next_delay());
    }
}
