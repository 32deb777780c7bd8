//! The TCP proxy: bytes to a cluster, both directions, with half-close.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::SystemTime,
};

use crate::{
    config::{ClusterSpecifier, Direction, TcpProxy},
    error::ConfigError,
    filter::{ConnectionInfo, UpstreamInfo},
    http::{choose_weighted, source_hash},
    lifecycle::{KILLED, Life},
    net::{Ended, Moved, Stream, relay},
    proxy::Shared,
    registry::End,
    telemetry::{Counter, Gauge, Logs, Record, ResponseFlags, SeriesKey, SeriesLabels},
    upstream::{
        ClusterRuntime, ConnectError, ConnectOptions, Host, Outcome, Permit, Pick, Resource, connect, record,
    },
    worker::Worker,
};

/// A compiled TCP proxy.
#[derive(Debug)]
pub(crate) struct TcpRuntime {
    config: TcpProxy,
    logs: Logs,
    cx_total: Arc<Counter>,
    cx_active: Arc<Gauge>,
    rx_bytes: Arc<Counter>,
    tx_bytes: Arc<Counter>,
    idle_timeout: Arc<Counter>,
}

impl TcpRuntime {
    pub(crate) fn compile(config: &TcpProxy, shared: &Shared) -> Result<Self, ConfigError> {
        if matches!(config.cluster, ClusterSpecifier::Header(_)) {
            return Err(ConfigError::invalid("tcp_proxy.cluster", "header", "TCP has no headers"));
        }
        let prefix = config.stat_prefix.trim_end_matches(';');
        let counter = |tail: &str| shared.stats().counter(&format!("tcp.{prefix}.{tail}"));
        Ok(Self {
            logs: Logs::compile(&config.access_logs, &shared.logs)?,
            cx_total: counter("downstream_cx_total"),
            cx_active: shared.stats().gauge(&format!("tcp.{prefix}.downstream_cx_active")),
            rx_bytes: counter("downstream_cx_rx_bytes_total"),
            tx_bytes: counter("downstream_cx_tx_bytes_total"),
            idle_timeout: counter("idle_timeout"),
            config: config.clone(),
        })
    }
}

/// What became of a connection.
#[derive(Debug, Default)]
struct Outcomes {
    upstream: UpstreamInfo,
    flags: ResponseFlags,
    details: Option<&'static str>,
    moved: Moved,
    cluster: Option<Arc<ClusterRuntime>>,
}

/// Proxies a connection to its end.
pub(crate) async fn proxy(
    runtime: &TcpRuntime,
    mut client: Stream,
    info: Arc<ConnectionInfo>,
    shared: Arc<Shared>,
    worker: Arc<Worker>,
    life: &Life,
) {
    let start_time = SystemTime::now();
    runtime.cx_total.inc();
    runtime.cx_active.inc();
    let mut outcomes = Outcomes::default();
    let end = runtime.config.max_connection_duration.map(|most| info.start + most);
    let too_old = async {
        match end {
            Some(end) => tokio::time::sleep_until(end).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        () = run(runtime, &mut client, &info, &shared, &worker, life, &mut outcomes) => {}
        () = too_old => {
            outcomes.flags = outcomes.flags.union(ResponseFlags::DURATION_TIMEOUT);
            outcomes.details = Some("max_downstream_connection_duration");
        }
        () = life.reached(KILLED) => {
            outcomes.details = Some(if life.is_cut() { "peer_revoked" } else { "drained" });
        }
    }
    runtime.cx_active.dec();
    let (received, sent) = (outcomes.moved.received.load(Relaxed), outcomes.moved.sent.load(Relaxed));
    runtime.rx_bytes.add(received);
    runtime.tx_bytes.add(sent);
    record_istio(&info, &shared, &worker, &outcomes);
    if !runtime.logs.is_empty() {
        let line = Record {
            start_time,
            client: info.peer.ip(),
            duration: info.start.elapsed(),
            response_duration: None,
            connection: &info,
            captured: None,
            status: 0,
            flags: outcomes.flags,
            details: None,
            termination: outcomes.details,
            received,
            sent,
            upstream: &outcomes.upstream,
            route: None,
            metadata: &[],
        };
        runtime.logs.write(worker.id, &line);
    }
}

fn record_istio(info: &ConnectionInfo, shared: &Shared, worker: &Worker, outcomes: &Outcomes) {
    let inbound = info.direction != Direction::Outbound;
    let peer = if inbound { info.peer_key.as_ref() } else { outcomes.upstream.workload.as_ref() };
    let key = SeriesKey {
        cluster: outcomes.cluster.as_ref().map_or(0, |c| c.id),
        peer: peer.map_or(0, |p| Arc::as_ptr(p).cast::<u8>() as usize),
        flags: outcomes.flags,
        status: 0,
        grpc: 0,
        inbound,
        tcp: true,
        mutual_tls: info.peer_identity().is_some(),
    };
    let series = shared.istio.series(&worker.series, key, || SeriesLabels {
        direction: info.direction,
        peer_principal: if inbound {
            info.peer_identity().map(|id| &**id)
        } else {
            outcomes.upstream.identity.as_deref()
        },
        local_principal: info.tls.as_ref().and_then(|t| t.local_identity.as_deref()),
        peer_workload: if inbound { None } else { outcomes.upstream.workload.as_deref() },
        service: outcomes.cluster.as_ref().and_then(|c| c.config.services.first()),
        cluster: outcomes.upstream.cluster.as_deref().unwrap_or(""),
        flags: outcomes.flags,
        tcp: true,
        mutual_tls: key.mutual_tls,
        ..SeriesLabels::default()
    });
    series.opened.inc();
    series.closed.inc();
    series.sent.add(outcomes.moved.sent.load(Relaxed));
    series.received.add(outcomes.moved.received.load(Relaxed));
}

async fn run(
    runtime: &TcpRuntime,
    client: &mut Stream,
    info: &ConnectionInfo,
    shared: &Arc<Shared>,
    worker: &Arc<Worker>,
    life: &Life,
    outcomes: &mut Outcomes,
) {
    let name = match &runtime.config.cluster {
        ClusterSpecifier::Name(name) => Some(name),
        weighted @ ClusterSpecifier::Weighted(all) => {
            choose_weighted(weighted, worker).and_then(|at| all.get(at)).map(|w| &w.name)
        }
        ClusterSpecifier::Header(_) => None,
    };
    outcomes.upstream.cluster = name.cloned();
    let Some(cluster) = name.and_then(|name| shared.clusters.get(name)) else {
        outcomes.flags = ResponseFlags::NO_CLUSTER;
        return;
    };
    outcomes.cluster = Some(Arc::clone(&cluster));
    let Some(_permit) = Permit::acquire(&cluster, Resource::Connection) else {
        cluster.stats.cx_overflow.inc();
        outcomes.flags = ResponseFlags::UPSTREAM_OVERFLOW;
        return;
    };
    let Some((mut upstream, host)) = dial(runtime, info, shared, worker, &cluster, outcomes).await else {
        return;
    };
    let tls = match &upstream {
        Stream::Plain(_) => None,
        Stream::Tls(stream) => {
            Some(crate::tls::describe(stream.get_ref().1, shared.options.tls.local_identity()))
        }
    };
    let local = upstream.local_addr().unwrap_or(info.local);
    let session = shared.registry.upstream(&cluster, host.address(), local, tls);
    session.ends_with(End::Connection(life.clone()));
    if shared.is_revoked(session.tls.as_ref()) {
        // After the listing, so that a revocation that comes at this moment is seen by somebody.
        life.cut();
    }
    outcomes.upstream.local = Some(local);
    outcomes.upstream.identity = session.tls.as_ref().and_then(|t| t.peer.as_ref()?.spiffe_id().cloned());
    cluster.stats.cx_active.inc();
    host.cx_active.fetch_add(1, Relaxed);
    let _open = Open { cluster: Arc::clone(&cluster), host: Arc::clone(&host) };
    join(runtime, client, &mut upstream, outcomes).await;
}

struct Open {
    cluster: Arc<ClusterRuntime>,
    host: Arc<Host>,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.cluster.stats.cx_active.dec();
        self.host.cx_active.fetch_sub(1, Relaxed);
    }
}

async fn dial(
    runtime: &TcpRuntime,
    info: &ConnectionInfo,
    shared: &Arc<Shared>,
    worker: &Arc<Worker>,
    cluster: &Arc<ClusterRuntime>,
    outcomes: &mut Outcomes,
) -> Option<(Stream, Arc<Host>)> {
    let hash = runtime.config.hash_source_ip.then(|| source_hash(info.peer.ip()));
    let mut tried = Vec::new();
    let attempts = runtime.config.max_connect_attempts.max(1);
    for attempt in 1..=attempts {
        let pick = Pick {
            worker: Some(worker),
            original: Some(info.local),
            hash,
            avoid: &tried,
            avoid_attempts: if tried.is_empty() { 0 } else { 5 },
            ..Pick::default()
        };
        let Ok(host) = cluster.pick(&pick) else {
            cluster.stats.cx_none_healthy.inc();
            outcomes.flags = ResponseFlags::NO_HEALTHY_UPSTREAM;
            return None;
        };
        outcomes.upstream.host = Some(host.address());
        outcomes.upstream.workload.clone_from(&host.endpoint.workload);
        outcomes.upstream.attempts = attempt;
        match connect(shared, cluster, &host, &ConnectOptions::default()).await {
            Ok((stream, _session)) => {
                record(cluster, &host, Outcome::Status(200));
                return Some((stream, host));
            }
            Err(error) => {
                record(cluster, &host, Outcome::LocalOrigin);
                if !matches!(error, ConnectError::Timeout) || attempt == attempts {
                    outcomes.upstream.transport_failure = Some(error.to_string().into());
                }
                tried.push(host);
            }
        }
    }
    outcomes.flags = ResponseFlags::UPSTREAM_CONNECTION_FAILURE;
    if attempts > 1 {
        outcomes.flags = outcomes.flags.union(ResponseFlags::RETRY_LIMIT);
    }
    None
}

/// Copies until both directions have ended, or nothing moved for the idle timeout.
async fn join(runtime: &TcpRuntime, client: &mut Stream, upstream: &mut Stream, outcomes: &mut Outcomes) {
    if relay(client, upstream, runtime.config.idle_timeout, &outcomes.moved).await == Ended::Idle {
        runtime.idle_timeout.inc();
        outcomes.details = Some("idle_timeout");
    }
}
