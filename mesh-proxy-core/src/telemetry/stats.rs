//! The statistics registry: handles are resolved once, then recorded without locks.

use std::{
    collections::BTreeMap,
    fmt::Write,
    ops::Bound::{Excluded, Included, Unbounded},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicI64, AtomicU64, Ordering::Relaxed},
    },
};

use super::cluster_stats::ClusterStats;

/// A value while it is visited.
#[derive(Debug, Clone, Copy)]
pub enum Sample<'a> {
    /// Of a counter.
    Counter(u64),
    /// Of a gauge.
    Gauge(i64),
    /// A histogram.
    Histogram(&'a Histogram),
}

impl Sample<'_> {
    /// The number of a counter (at most `i64::MAX`) or gauge; none for a histogram.
    #[must_use]
    pub fn number(&self) -> Option<i64> {
        match self {
            Self::Counter(count) => Some(i64::try_from(*count).unwrap_or(i64::MAX)),
            Self::Gauge(value) => Some(*value),
            Self::Histogram(_) => None,
        }
    }
}

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

    pub(super) fn sample(&self) -> Sample<'_> {
        Sample::Counter(self.get())
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

    pub(super) fn sample(&self) -> Sample<'_> {
        Sample::Gauge(self.get())
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

    pub(super) fn sample(&self) -> Sample<'_> {
        Sample::Histogram(self)
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
    clusters: Mutex<BTreeMap<Arc<str>, Arc<ClusterStats>>>,
}

/// Where the names of clusters' values begin.
const CLUSTERS: &str = "cluster.";

#[derive(Debug, Clone)]
enum Metric {
    Counter(Arc<Counter>),
    Gauge(Arc<Gauge>),
    Histogram(Arc<Histogram>),
}

impl Metric {
    fn sample(&self) -> Sample<'_> {
        match self {
            Self::Counter(counter) => counter.sample(),
            Self::Gauge(gauge) => gauge.sample(),
            Self::Histogram(histogram) => histogram.sample(),
        }
    }
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

    /// The values of the cluster with this name for statistics; made when missing.
    pub(crate) fn cluster(&self, name: &str) -> Arc<ClusterStats> {
        let mut clusters = self.clusters.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = clusters.get(name) {
            return Arc::clone(known);
        }
        Arc::clone(clusters.entry(name.into()).or_default())
    }

    /// Forgets a cluster.
    pub(crate) fn remove_cluster(&self, name: &str) {
        self.clusters.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
    }

    /// Visits every value in the order of the names. New statistics wait meanwhile, so `visit` must not ask for any.
    pub fn visit(&self, mut visit: impl FnMut(&str, Sample<'_>)) {
        let metrics = self.metrics.lock().unwrap_or_else(PoisonError::into_inner);
        let clusters = self.clusters.lock().unwrap_or_else(PoisonError::into_inner);
        let first = metrics.range::<str, _>((Unbounded, Excluded(CLUSTERS)));
        first.for_each(|(name, metric)| visit(name, metric.sample()));
        let mut name = String::from(CLUSTERS);
        for (cluster, values) in &*clusters {
            name.truncate(CLUSTERS.len());
            name.push_str(cluster);
            name.push('.');
            let length = name.len();
            values.visit(|tail, sample| {
                name.truncate(length);
                name.push_str(tail);
                visit(&name, sample);
            });
        }
        drop(clusters);
        let rest = metrics.range::<str, _>((Included(CLUSTERS), Unbounded));
        rest.for_each(|(name, metric)| visit(name, metric.sample()));
    }

    /// Envoy's text form of counters and gauges: `name: value`.
    #[must_use]
    pub fn text(&self) -> String {
        let mut out = String::new();
        self.visit(|name, sample| {
            if let Some(value) = sample.number() {
                let _infallible = writeln!(out, "{name}: {value}");
            }
        });
        out
    }

    /// Prometheus' text form: `envoy_` and the name with every other character as `_`.
    #[must_use]
    pub fn prometheus(&self) -> String {
        let (mut out, mut flat) = (String::new(), String::new());
        self.visit(|name, sample| {
            flat.clear();
            flat.push_str("envoy_");
            flat.extend(name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }));
            let _infallible = match sample {
                Sample::Counter(count) => writeln!(out, "# TYPE {flat} counter\n{flat}{{}} {count}"),
                Sample::Gauge(value) => writeln!(out, "# TYPE {flat} gauge\n{flat}{{}} {value}"),
                Sample::Histogram(histogram) => {
                    let _infallible = writeln!(out, "# TYPE {flat} histogram");
                    histogram.write_prometheus(&mut out, &flat, "");
                    Ok(())
                }
            };
        });
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clusters_stand_where_their_names_belong() {
        let stats = Stats::default();
        stats.gauge("server.state").set(1);
        stats.counter("access.total").add(2);
        stats.cluster("b").rq_total.inc();
        let again = stats.cluster("b");
        again.count_status(204);
        let mut names = Vec::new();
        stats.visit(|name, _| names.push(name.to_owned()));
        assert!(names.is_sorted(), "{names:?}");
        assert_eq!(names.len(), 32);
        let text = stats.text();
        assert!(text.starts_with("access.total: 2\ncluster.b.membership_healthy: 0\n"), "{text}");
        assert!(text.contains("cluster.b.upstream_rq_2xx: 1\n"), "{text}");
        assert!(text.contains("cluster.b.upstream_rq_total: 1\n"), "{text}");
        assert!(stats.prometheus().contains("envoy_cluster_b_upstream_rq_time_count{} 0\n"));
        stats.remove_cluster("b");
        assert_eq!(stats.text(), "access.total: 2\nserver.state: 1\n");
    }
}
