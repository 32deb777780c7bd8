//! What is counted of reviews: istiod's own names, and the outcome by reason.

use std::time::Duration;

use mesh_inject::Outcome;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

/// istiod's own buckets, in seconds.
const BUCKETS: [f64; 8] = [0.1, 1.0, 3.0, 5.0, 10.0, 20.0, 30.0, 60.0];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabel {
    outcome: String,
}

/// Counters of the webhook. Clones share.
#[derive(Debug, Clone)]
pub(super) struct InjectionMetrics {
    requests: Counter,
    success: Counter,
    failure: Counter,
    skip: Counter,
    seconds: Histogram,
    outcomes: Family<OutcomeLabel, Counter>,
}

impl InjectionMetrics {
    /// Counters in a registry, which puts `_total` behind their names.
    pub(super) fn register(registry: &mut Registry) -> Self {
        let this = Self {
            requests: Counter::default(),
            success: Counter::default(),
            failure: Counter::default(),
            skip: Counter::default(),
            seconds: Histogram::new(BUCKETS),
            outcomes: Family::default(),
        };
        for (name, help, counter) in [
            ("requests", "Reviews asked for", &this.requests),
            ("success", "Reviews that were answered, whatever the answer", &this.success),
            ("failure", "Reviews that were refused or could not be read", &this.failure),
            ("skip", "Reviews of pods that are left alone", &this.skip),
        ] {
            registry.register(format!("sidecar_injection_{name}"), help, counter.clone());
        }
        registry.register(
            "sidecar_injection_time_seconds",
            "Time from the whole request to its answer",
            this.seconds.clone(),
        );
        registry.register("sidecar_injection_reviews", "Admission reviews by outcome", this.outcomes.clone());
        this
    }

    /// A request came.
    pub(super) fn asked(&self) {
        self.requests.inc();
    }

    /// It could not be read, or not be answered.
    pub(super) fn failed(&self) {
        self.failure.inc();
    }

    /// It was answered. As upstream counts, an answered review is a success, also if the answer is a refusal.
    pub(super) fn answered(&self, outcome: &Outcome) {
        self.outcomes.get_or_create(&OutcomeLabel { outcome: outcome.reason().to_owned() }).inc();
        match outcome {
            Outcome::BadRequest { .. } => {
                self.failure.inc();
                return;
            }
            Outcome::Refused(_) => drop(self.failure.inc()),
            Outcome::Skipped(_) => drop(self.skip.inc()),
            _ => {}
        }
        self.success.inc();
    }

    /// How long it took.
    pub(super) fn took(&self, time: Duration) {
        self.seconds.observe(time.as_secs_f64());
    }
}
