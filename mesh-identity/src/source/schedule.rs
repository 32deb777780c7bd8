use std::time::{Duration, SystemTime};

use rand::{Rng, SeedableRng, rngs::SmallRng};

use crate::x509::Credential;

/// When to renew, and how to back off.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct RenewalPolicy {
    /// The share of the lifetime, as it is left when the credential comes, after which to renew; default 0.5. Backdating is
    /// not lifetime, and an old credential is not renewed as if it were new.
    pub renew_at: f64,
    /// How far that share is moved at random, in both directions, so that a fleet does not renew at once; default 0.05.
    pub jitter: f64,
    /// The shortest time between two renewals that succeeded; default 1 s.
    pub min_interval: Duration,
    /// The first pause after a failure; default 500 ms. Pauses double, and each is shortened at random by up to half.
    pub backoff_first: Duration,
    /// The longest pause after a failure; default 30 s.
    pub backoff_max: Duration,
    /// How long one fetch may take; default 30 s.
    pub fetch_timeout: Duration,
    /// The seed of the randomness; `None`, the default, takes the system's.
    pub seed: Option<u64>,
}

impl Default for RenewalPolicy {
    fn default() -> Self {
        Self {
            renew_at: 0.5,
            jitter: 0.05,
            min_interval: Duration::from_secs(1),
            backoff_first: Duration::from_millis(500),
            backoff_max: Duration::from_secs(30),
            fetch_timeout: Duration::from_secs(30),
            seed: None,
        }
    }
}

impl RenewalPolicy {
    /// The default policy with a seed, for tests.
    #[must_use]
    pub fn with_seed(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }
}

/// Decides when to fetch next. Has no clock and no tasks.
#[derive(Debug)]
pub(super) struct Schedule {
    policy: RenewalPolicy,
    random: SmallRng,
    failures: u32,
}

impl Schedule {
    pub(super) fn new(policy: RenewalPolicy) -> Self {
        let random = policy.seed.map_or_else(SmallRng::from_os_rng, SmallRng::seed_from_u64);
        Self { policy, random, failures: 0 }
    }

    pub(super) fn policy(&self) -> &RenewalPolicy {
        &self.policy
    }

    pub(super) fn after_success(&mut self, credential: &Credential, now: SystemTime) -> Duration {
        self.failures = 0;
        let jitter = self.policy.jitter.clamp(0.0, 0.5);
        let offset = if jitter > 0.0 { self.random.random_range(-jitter..=jitter) } else { 0.0 };
        let share = (self.policy.renew_at + offset).clamp(0.0, 0.95);
        let left = credential.not_after().duration_since(now).unwrap_or_default();
        left.mul_f64(share).max(self.policy.min_interval)
    }

    pub(super) fn after_failure(&mut self) -> Duration {
        let doubled = self.policy.backoff_first.saturating_mul(1 << self.failures.min(16));
        self.failures += 1;
        doubled.min(self.policy.backoff_max).mul_f64(self.random.random_range(0.5..=1.0))
    }
}
