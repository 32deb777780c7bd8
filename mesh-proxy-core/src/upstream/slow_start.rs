//! Slow start: the share of its weight that a new host has.

use crate::config::SlowStart;

/// The whole weight.
pub(super) const WHOLE: u64 = 1_000_000;

/// The share of its weight, in millionths, that a host has `age_ms` after its start (Envoy: `max(min_percent, (age /
/// window) ^ (1 / aggression))`).
pub(super) fn share(config: SlowStart, age_ms: u64) -> u64 {
    let window = config.window.as_millis() as f64;
    if age_ms as f64 >= window {
        return WHOLE;
    }
    let ramp = (age_ms as f64 / window).powf(1.0 / config.aggression);
    let share = ramp.max(config.min_percent / 100.0).clamp(0.0, 1.0);
    (share * WHOLE as f64) as u64
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn shares_follow_the_ramp() {
        let linear = SlowStart { window: Duration::from_secs(10), aggression: 1.0, min_percent: 10.0 };
        let shares = [0, 500, 1_000, 5_000, 9_999, 10_000, u64::MAX].map(|age| share(linear, age));
        assert_eq!(shares, [100_000, 100_000, 100_000, 500_000, 999_900, WHOLE, WHOLE]);
        let steep = SlowStart { aggression: 2.0, ..linear };
        assert_eq!(share(steep, 2_500), 500_000, "the square root of a quarter");
        let slow = SlowStart { aggression: 0.5, min_percent: 0.0, ..linear };
        assert_eq!(share(slow, 5_000), 250_000);
        assert_eq!(share(slow, 0), 0);
        assert_eq!(share(SlowStart { window: Duration::ZERO, ..linear }, 0), WHOLE);
    }
}
