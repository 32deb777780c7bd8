//! The statistics registry: handles are resolved once, then recorded without locks.

use std::{
    collections::BTreeMap,
    fmt::Write,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicI64, AtomicU64, Ordering::Relaxed},
    },
};

/// Counts up.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds one.
    pub fn inc(&self) {
        self.0.fetch_add(1, Relaxed);
    }

    /// Adds `n`.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Relaxed);
    }

    /// The count.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// Goes up and down.
#[derive(Debug, Default)]
pub struct Gauge(AtomicI64);

impl Gauge {
    /// Adds one.
    pub fn inc(&self) {
        self.0.fetch_add(1, Relaxed);
    }

    /// Takes one away.
    pub fn dec(&self) {
        self.0.fetch_sub(1, Relaxed);
    }

    /// Sets the value.
    pub fn set(&self, value: i64) {
        self.0.store(value, Relaxed);
    }

    /// The value.
    #[must_use]
    pub fn get(&self) -> i64 {
        self.0.load(Relaxed)
    }
}

/// Envoy's default bucket bounds, in milliseconds or bytes.
pub(crate) const BOUNDS: [f64; 19] = [
    0.5,
    1.0,
    5.0,
    10.0,
    25.0,
    50.0,
    100.0,
    250.0,
    500.0,
    1000.0,
    2500.0,
    5000.0,
    10_000.0,
    30_000.0,
    60_000.0,
    300_000.0,
    600_000.0,
    1_800_000.0,
    3_600_000.0,
];

/// A histogram with Envoy's default buckets. Values are recorded in thousandths, so that sums stay exact.
#[derive(Debug, Default)]
pub struct Histogram {
    buckets: [AtomicU64; BOUNDS.len() + 1],
    sum_milli: AtomicU64,
}

impl Histogram {
    /// Records a value given in thousandths (microseconds for a histogram of milliseconds).
    pub fn record_milli(&self, milli: u64) {
        let value = milli as f64 / 1000.0;
        let bucket = BOUNDS.iter().position(|bound| value <= *bound).unwrap_or(BOUNDS.len());
        self.buckets[bucket].fetch_add(1, Relaxed);
        self.sum_milli.fetch_add(milli, Relaxed);
    }

    /// How many values.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.buckets.iter().map(|b| b.load(Relaxed)).sum()
    }

    /// Their sum.
    #[must_use]
    pub fn sum(&self) -> f64 {
        self.sum_milli.load(Relaxed) as f64 / 1000.0
    }

    pub(crate) fn write_prometheus(&self, out: &mut String, name: &str, labels: &str) {
        let mut total = 0;
        let comma = if labels.is_empty() { "" } else { "," };
        for (bucket, bound) in self.buckets.iter().zip(BOUNDS) {
            total += bucket.load(Relaxed);
            let _infallible = writeln!(out, "{name}_bucket{{{labels}{comma}le=\"{bound}\"}} {total}");
        }
        total += self.buckets[BOUNDS.len()].load(Relaxed);
        let _infallible = writeln!(
            out,
            "{name}_bucket{{{labels}{comma}le=\"+Inf\"}} {total}\n{name}_sum{{{labels}}} {}\n{name}_count{{{labels}}} {total}",
            self.sum()
        );
    }
}

/// All statistics of a proxy, under Envoy's names.
#[derive(Debug, Default)]
pub struct Stats {
    metrics: Mutex<BTreeMap<Arc<str>, Metric>>,
}

#[derive(Debug, Clone)]
enum Metric {
    Counter(Arc<Counter>),
    Gauge(Arc<Gauge>),
    Histogram(Arc<Histogram>),
}

impl Stats {
    fn with<R>(&self, f: impl FnOnce(&mut BTreeMap<Arc<str>, Metric>) -> R) -> R {
        f(&mut self.metrics.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The counter of this name; made when missing. A name taken by another kind gives a counter that is not listed.
    #[must_use]
    pub fn counter(&self, name: &str) -> Arc<Counter> {
        self.with(|m| match m.entry(name.into()).or_insert_with(|| Metric::Counter(Arc::default())) {
            Metric::Counter(counter) => Arc::clone(counter),
            _ => Arc::default(),
        })
    }

    /// The gauge of this name; made when missing.
    #[must_use]
    pub fn gauge(&self, name: &str) -> Arc<Gauge> {
        self.with(|m| match m.entry(name.into()).or_insert_with(|| Metric::Gauge(Arc::default())) {
            Metric::Gauge(gauge) => Arc::clone(gauge),
            _ => Arc::default(),
        })
    }

    /// The histogram of this name; made when missing.
    #[must_use]
    pub fn histogram(&self, name: &str) -> Arc<Histogram> {
        self.with(|m| match m.entry(name.into()).or_insert_with(|| Metric::Histogram(Arc::default())) {
            Metric::Histogram(histogram) => Arc::clone(histogram),
            _ => Arc::default(),
        })
    }

    /// Forgets everything whose name begins with `prefix` (a cluster or listener that is gone).
    pub fn remove_prefix(&self, prefix: &str) {
        self.with(|m| m.retain(|name, _| !name.starts_with(prefix)));
    }

    /// Counters and gauges by name.
    #[must_use]
    pub fn values(&self) -> Vec<(Arc<str>, i64)> {
        self.with(|m| {
            m.iter()
                .filter_map(|(name, metric)| match metric {
                    Metric::Counter(c) => {
                        Some((Arc::clone(name), i64::try_from(c.get()).unwrap_or(i64::MAX)))
                    }
                    Metric::Gauge(g) => Some((Arc::clone(name), g.get())),
                    Metric::Histogram(_) => None,
                })
                .collect()
        })
    }

    /// Envoy's text form: `name: value`.
    #[must_use]
    pub fn text(&self) -> String {
        self.values().iter().fold(String::new(), |mut out, (name, value)| {
            let _infallible = writeln!(out, "{name}: {value}");
            out
        })
    }

    /// Prometheus' text form: `envoy_` and the name with every other character as `_`.
    #[must_use]
    pub fn prometheus(&self) -> String {
        let metrics = self.with(|m| m.clone());
        let mut out = String::new();
        for (name, metric) in metrics {
            let flat: String = "envoy_"
                .chars()
                .chain(name.chars().map(|c| if c.is_ascii_alphanumeric() || c == '_' { c } else { '_' }))
                .collect();
            let _infallible = match metric {
                Metric::Counter(c) => writeln!(out, "# TYPE {flat} counter\n{flat}{{}} {}", c.get()),
                Metric::Gauge(g) => writeln!(out, "# TYPE {flat} gauge\n{flat}{{}} {}", g.get()),
                Metric::Histogram(h) => {
                    let _infallible = writeln!(out, "# TYPE {flat} histogram");
                    h.write_prometheus(&mut out, &flat, "");
                    Ok(())
                }
            };
        }
        out
    }
}
