//! Istio's standard metrics. Each worker caches handles by a small key; labels are only made for new series.

use std::{
    collections::{BTreeMap, HashMap},
    fmt::Write,
    hash::{BuildHasherDefault, Hasher},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use super::{Counter, Histogram, ResponseFlags};
use crate::{
    config::{ClusterService, Direction},
    proxy::Workload,
};

/// Most series; further label sets share one series with every label `overflow`.
const MAX_SERIES: usize = 10_000;

/// What distinguishes series, cheap to compare.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct SeriesKey {
    /// The cluster's number.
    pub(crate) cluster: u64,
    /// Address of the interned peer (identity downstream, workload upstream); 0 is unknown.
    pub(crate) peer: usize,
    pub(crate) flags: ResponseFlags,
    pub(crate) status: u16,
    /// gRPC status plus one; 0 is not gRPC.
    pub(crate) grpc: u16,
    pub(crate) inbound: bool,
    pub(crate) tcp: bool,
    pub(crate) mutual_tls: bool,
}

/// What labels are made of.
#[derive(Debug, Clone, Default)]
pub(crate) struct SeriesLabels<'a> {
    pub(crate) direction: Direction,
    pub(crate) peer_principal: Option<&'a str>,
    pub(crate) local_principal: Option<&'a str>,
    pub(crate) peer_workload: Option<&'a str>,
    pub(crate) service: Option<&'a ClusterService>,
    pub(crate) cluster: &'a str,
    pub(crate) status: u16,
    pub(crate) grpc_status: Option<&'a str>,
    pub(crate) flags: ResponseFlags,
    pub(crate) tcp: bool,
    pub(crate) mutual_tls: bool,
}

/// One label set's instruments.
#[derive(Debug, Default)]
pub(crate) struct Series {
    pub(crate) requests: Counter,
    pub(crate) duration: Histogram,
    pub(crate) request_bytes: Histogram,
    pub(crate) response_bytes: Histogram,
    pub(crate) opened: Counter,
    pub(crate) closed: Counter,
    pub(crate) sent: Counter,
    pub(crate) received: Counter,
    tcp: bool,
}

/// A worker's handles.
#[derive(Debug, Default)]
pub(crate) struct SeriesCache {
    known: Mutex<HashMap<SeriesKey, Arc<Series>, BuildHasherDefault<Mix>>>,
    epoch: AtomicU64,
}

/// A multiply-rotate hasher: keys are small integers of our own making.
#[derive(Debug, Default)]
pub(crate) struct Mix(u64);

impl Hasher for Mix {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64((*byte).into());
        }
    }

    fn write_u8(&mut self, n: u8) {
        self.write_u64(n.into());
    }

    fn write_u16(&mut self, n: u16) {
        self.write_u64(n.into());
    }

    fn write_u32(&mut self, n: u32) {
        self.write_u64(n.into());
    }

    fn write_u64(&mut self, n: u64) {
        self.0 = (self.0.rotate_left(5) ^ n).wrapping_mul(0x517c_c1b7_2722_0a95);
    }

    fn write_usize(&mut self, n: usize) {
        self.write_u64(n as u64);
    }
}

/// All series.
#[derive(Debug)]
pub(crate) struct IstioMetrics {
    workload: Workload,
    series: Mutex<BTreeMap<String, Arc<Series>>>,
    overflow: Arc<Series>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl IstioMetrics {
    pub(crate) fn new(workload: Workload) -> Self {
        Self { workload, series: Mutex::default(), overflow: Arc::default() }
    }

    /// The series of a key; labels are made only when this worker has not seen the key.
    pub(crate) fn series<'a>(
        &self,
        cache: &SeriesCache,
        key: SeriesKey,
        labels: impl FnOnce() -> SeriesLabels<'a>,
    ) -> Arc<Series> {
        let mut known = lock(&cache.known);
        if let Some(series) = known.get(&key) {
            return Arc::clone(series);
        }
        let labels = labels();
        let series = self.resolve(&labels);
        // Keys name clusters and peers that come and go: start over now and then instead of growing.
        if known.len() >= MAX_SERIES {
            known.clear();
            cache.epoch.fetch_add(1, Relaxed);
        }
        known.insert(key, Arc::clone(&series));
        series
    }

    fn resolve(&self, labels: &SeriesLabels<'_>) -> Arc<Series> {
        let text = self.labels(labels);
        let mut all = lock(&self.series);
        if let Some(series) = all.get(&text) {
            return Arc::clone(series);
        }
        if all.len() >= MAX_SERIES {
            return Arc::clone(&self.overflow);
        }
        let series = Arc::new(Series { tcp: labels.tcp, ..Series::default() });
        all.insert(text, Arc::clone(&series));
        series
    }

    fn labels(&self, l: &SeriesLabels<'_>) -> String {
        let outbound = l.direction == Direction::Outbound;
        let own = Side {
            workload: &self.workload.name,
            namespace: &self.workload.namespace,
            principal: l.local_principal.unwrap_or(""),
            app: &self.workload.app,
            version: &self.workload.version,
            canonical_service: &self.workload.canonical_name,
            canonical_revision: &self.workload.canonical_revision,
            cluster: &self.workload.cluster,
        };
        let peer = Side::peer(l.peer_workload, l.peer_principal);
        let (source, destination) = if outbound { (&own, &peer) } else { (&peer, &own) };
        let fallback = ClusterService { name: l.cluster.into(), ..ClusterService::default() };
        let passthrough =
            matches!(l.cluster, "PassthroughCluster" | "BlackHoleCluster" | "InboundPassthroughCluster");
        let service = match l.service {
            Some(service) => service,
            None if passthrough => &fallback,
            None => &ClusterService::default(),
        };
        let mut out = String::with_capacity(1024);
        let mut put = |name: &str, value: &str| {
            if !out.is_empty() {
                out.push(',');
            }
            let _infallible = write!(out, "{name}=\"");
            for c in if value.is_empty() { "unknown" } else { value }.chars() {
                match c {
                    '"' => out.push_str("\\\""),
                    '\\' => out.push_str("\\\\"),
                    '\n' => out.push_str("\\n"),
                    c => out.push(c),
                }
            }
            out.push('"');
        };
        put("reporter", if outbound { "source" } else { "destination" });
        source.put("source", &mut put);
        destination.put("destination", &mut put);
        put("destination_service", &service.host);
        put("destination_service_name", &service.name);
        put("destination_service_namespace", &service.namespace);
        let protocol = match (l.tcp, l.grpc_status) {
            (true, _) => "tcp",
            (false, Some(_)) => "grpc",
            (false, None) => "http",
        };
        put("request_protocol", protocol);
        if !l.tcp {
            put("response_code", &l.status.to_string());
            put("grpc_response_status", l.grpc_status.unwrap_or_default());
        }
        put("response_flags", &l.flags.to_string());
        put(
            "connection_security_policy",
            match (outbound, l.mutual_tls) {
                (true, _) => "unknown",
                (false, true) => "mutual_tls",
                (false, false) => "none",
            },
        );
        out
    }

    /// Prometheus text.
    pub(crate) fn write(&self, out: &mut String) {
        let all: Vec<(String, Arc<Series>)> =
            lock(&self.series).iter().map(|(labels, series)| (labels.clone(), Arc::clone(series))).collect();
        type Get<T> = fn(&Series) -> &T;
        let counters: [(&str, bool, Get<Counter>); 5] = [
            ("istio_requests_total", false, |s| &s.requests),
            ("istio_tcp_connections_opened_total", true, |s| &s.opened),
            ("istio_tcp_connections_closed_total", true, |s| &s.closed),
            ("istio_tcp_sent_bytes_total", true, |s| &s.sent),
            ("istio_tcp_received_bytes_total", true, |s| &s.received),
        ];
        for (name, tcp, counter) in counters {
            let mut of_kind = all.iter().filter(|(_, s)| s.tcp == tcp).peekable();
            if of_kind.peek().is_some() {
                let _infallible = writeln!(out, "# TYPE {name} counter");
            }
            for (labels, series) in of_kind {
                let _infallible = writeln!(out, "{name}{{{labels}}} {}", counter(series).get());
            }
        }
        let histograms: [(&str, Get<Histogram>); 3] = [
            ("istio_request_duration_milliseconds", |s| &s.duration),
            ("istio_request_bytes", |s| &s.request_bytes),
            ("istio_response_bytes", |s| &s.response_bytes),
        ];
        for (name, histogram) in histograms {
            let mut of_kind = all.iter().filter(|(_, s)| !s.tcp).peekable();
            if of_kind.peek().is_some() {
                let _infallible = writeln!(out, "# TYPE {name} histogram");
            }
            for (labels, series) in of_kind {
                histogram(series).write_prometheus(out, name, labels);
            }
        }
    }
}

/// One side's labels.
struct Side<'a> {
    workload: &'a str,
    namespace: &'a str,
    principal: &'a str,
    app: &'a str,
    version: &'a str,
    canonical_service: &'a str,
    canonical_revision: &'a str,
    cluster: &'a str,
}

impl<'a> Side<'a> {
    /// From endpoint metadata `name;namespace;canonical-name;canonical-revision;cluster` and the SPIFFE ID.
    fn peer(workload: Option<&'a str>, principal: Option<&'a str>) -> Self {
        let mut parts = workload.unwrap_or("").split(';');
        let mut next = || parts.next().unwrap_or("");
        let (name, mut namespace, service, revision, cluster) = (next(), next(), next(), next(), next());
        let principal = principal.unwrap_or("");
        if namespace.is_empty() {
            namespace =
                principal.split_once("/ns/").and_then(|(_, rest)| rest.split('/').next()).unwrap_or("");
        }
        Side {
            workload: name,
            namespace,
            principal,
            app: service,
            version: revision,
            canonical_service: service,
            canonical_revision: revision,
            cluster,
        }
    }

    fn put(&self, side: &str, put: &mut impl FnMut(&str, &str)) {
        for (name, value) in [
            ("workload", self.workload),
            ("workload_namespace", self.namespace),
            ("principal", self.principal),
            ("app", self.app),
            ("version", self.version),
            ("cluster", self.cluster),
            ("canonical_service", self.canonical_service),
            ("canonical_revision", self.canonical_revision),
        ] {
            put(&format!("{side}_{name}"), value);
        }
    }
}
