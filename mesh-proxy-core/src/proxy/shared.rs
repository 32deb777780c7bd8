//! What handle and workers share.

use std::{
    collections::{BTreeMap, HashSet},
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use arc_swap::{ArcSwap, Guard};
use tokio::sync::oneshot;

use super::{ClusterSnapshot, ConnectionSnapshot, Missing, ProxyBuilder, Workers};
use crate::{
    config::{Cluster, Direction, Listener, LoadAssignment, RouteConfiguration},
    error::{ApplyError, BuildError, ConfigError},
    filter::HttpFilterFactory,
    http::{RouteSlot, RouteTable},
    lifecycle::{CLOSING, DRAINING, KILLED, Lifecycle},
    listener::{ChainRuntime, ListenerRuntime, ListenerSlot, ListenerTable, accept_loop},
    net,
    original_dst::OriginalDestination,
    registry::Registry,
    telemetry::{IstioMetrics, LogWriter, Stats},
    tls::{TlsProvider, TlsSession},
    upstream::ClusterManager,
    worker::Worker,
};

/// How often idle upstream connections are looked at.
const IDLE_SWEEP: Duration = Duration::from_secs(30);
/// Interned identities that nobody uses are forgotten when there are this many.
const INTERN_LIMIT: usize = 4096;

/// What a program plugged in.
#[derive(Debug)]
pub(crate) struct Options {
    pub(crate) original_dst: Arc<dyn OriginalDestination>,
    pub(crate) tls: Arc<dyn TlsProvider>,
    pub(crate) factories: Vec<Arc<dyn HttpFilterFactory>>,
    drain_time: Duration,
}

/// State of a running proxy.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) options: Options,
    pub(crate) clusters: ClusterManager,
    pub(crate) registry: Arc<Registry>,
    pub(crate) logs: LogWriter,
    pub(crate) istio: IstioMetrics,
    stats: Arc<Stats>,
    workers: Vec<Arc<Worker>>,
    stops: Mutex<Vec<oneshot::Sender<()>>>,
    listeners: ArcSwap<ListenerTable>,
    /// Serialises changes of listeners.
    change: Mutex<()>,
    routes: Mutex<BTreeMap<Arc<str>, Arc<RouteSlot>>>,
    interned: Mutex<HashSet<Arc<str>>>,
    draining_inbound: AtomicBool,
    draining_all: AtomicBool,
    stopped: AtomicBool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    pub(super) fn start(builder: ProxyBuilder) -> Result<Arc<Self>, BuildError> {
        for (at, factory) in builder.factories.iter().enumerate() {
            if builder.factories[..at].iter().any(|other| other.name() == factory.name()) {
                return Err(BuildError::DuplicateFactory { name: factory.name().to_owned() });
            }
        }
        let seed = builder.seed.unwrap_or_else(rand::random);
        let (mut workers, mut stops) = (Vec::new(), Vec::new());
        match builder.workers {
            Workers::CurrentRuntime => workers.push(Worker::current(0, seed)),
            Workers::Threads(n) => {
                for id in 0..n {
                    let (worker, stop) = Worker::spawn(id, seed)?;
                    workers.push(worker);
                    stops.push(stop);
                }
            }
        }
        let stats = Arc::<Stats>::default();
        let dropped = stats.counter("access_log.lines_dropped");
        let shared = Arc::new(Self {
            options: Options {
                original_dst: builder.original_dst,
                tls: builder.tls,
                factories: builder.factories,
                drain_time: builder.drain_time,
            },
            clusters: ClusterManager::default(),
            registry: Arc::default(),
            logs: LogWriter::new(builder.logs, workers.len(), builder.log_flush_interval, dropped),
            istio: IstioMetrics::new(builder.workload),
            stats,
            workers,
            stops: Mutex::new(stops),
            listeners: ArcSwap::default(),
            change: Mutex::default(),
            routes: Mutex::default(),
            interned: Mutex::default(),
            draining_inbound: AtomicBool::new(false),
            draining_all: AtomicBool::new(false),
            stopped: AtomicBool::new(false),
        });
        let weak = Arc::downgrade(&shared);
        shared.main_runtime().spawn(async move {
            loop {
                tokio::time::sleep(IDLE_SWEEP).await;
                let Some(shared) = weak.upgrade() else { return };
                shared.clusters.sweep_idle();
            }
        });
        Ok(shared)
    }

    /// Stops the workers' threads: dropping a sender ends its thread.
    pub(super) fn stop_workers(&self) {
        self.stopped.store(true, Relaxed);
        for slot in self.listener_table().by_name.values() {
            slot.sockets.advance(KILLED);
            for chain in slot.current.load().all_chains() {
                chain.lifecycle.advance(KILLED);
            }
        }
        self.logs.flush();
        lock(&self.stops).clear();
    }

    fn main_runtime(&self) -> &tokio::runtime::Handle {
        &self.workers[0].runtime
    }

    pub(crate) fn workers(&self) -> usize {
        self.workers.len()
    }

    pub(crate) fn stats(&self) -> &Arc<Stats> {
        &self.stats
    }

    pub(crate) fn listener_table(&self) -> Guard<Arc<ListenerTable>> {
        self.listeners.load()
    }

    /// Whether listeners of this direction are draining.
    pub(crate) fn drains(&self, direction: Direction) -> bool {
        self.draining_all.load(Relaxed)
            || direction == Direction::Inbound && self.draining_inbound.load(Relaxed)
    }

    /// One shared copy of a text, so that its address identifies it.
    pub(crate) fn intern(&self, text: &str) -> Arc<str> {
        let mut interned = lock(&self.interned);
        if let Some(known) = interned.get(text) {
            return Arc::clone(known);
        }
        if interned.len() >= INTERN_LIMIT {
            interned.retain(|known| Arc::strong_count(known) > 1);
        }
        let new: Arc<str> = text.into();
        interned.insert(Arc::clone(&new));
        new
    }

    pub(super) fn apply_listener(self: &Arc<Self>, config: Listener) -> Result<(), ApplyError> {
        if self.stopped.load(Relaxed) {
            return Err(ApplyError::ShuttingDown);
        }
        let _one_at_a_time = lock(&self.change);
        let name = Arc::clone(&config.name);
        let old_slot = self.listener_table().by_name.get(&name).cloned();
        let old = old_slot.as_ref().map(|slot| slot.current.load_full());
        if old.as_ref().is_some_and(|old| *old.config == config) {
            return Ok(());
        }
        let new = ListenerRuntime::compile(config, old.as_deref(), self)
            .map_err(|source| ApplyError::Config { kind: "listener", name: Arc::clone(&name), source })?;
        let new = Arc::new(new);
        let keeps_sockets = old.as_ref().is_some_and(|old| {
            old.config.addresses == new.config.addresses
                && old.config.bind_to_port == new.config.bind_to_port
                && old.config.transparent == new.config.transparent
        });
        match (&old_slot, keeps_sockets) {
            (Some(slot), true) => {
                slot.current.store(Arc::clone(&new));
                self.listeners.store(Arc::new(self.listener_table().with(Arc::clone(slot))));
            }
            _ => {
                let slot = self.open(&new)?;
                self.listeners.store(Arc::new(self.listener_table().with(slot)));
                if let Some(slot) = &old_slot {
                    slot.sockets.advance(CLOSING);
                }
            }
        }
        if let Some(old) = &old {
            let kept = |chain: &Arc<ChainRuntime>| new.all_chains().any(|c| Arc::ptr_eq(c, chain));
            self.retire(old.all_chains().filter(|chain| !kept(chain)).cloned().collect());
        }
        Ok(())
    }

    /// Binds a listener's addresses on every worker and starts accepting.
    fn open(self: &Arc<Self>, listener: &Arc<ListenerRuntime>) -> Result<Arc<ListenerSlot>, ApplyError> {
        let config = &listener.config;
        let sockets = Arc::<Lifecycle>::default();
        let mut bound = Vec::new();
        let mut accepting = Vec::new();
        if config.bind_to_port {
            let share_port = self.workers.len() > 1;
            for address in &config.addresses {
                let mut address = *address;
                for worker in &self.workers {
                    let _inside = worker.runtime.enter();
                    let failed =
                        |source| ApplyError::Bind { name: Arc::clone(&config.name), address, source };
                    let socket = net::listen(address, config.backlog, share_port, config.transparent)
                        .map_err(failed)?;
                    // Port 0: the first worker's port is everybody's.
                    address = socket.local_addr().map_err(failed)?;
                    accepting.push((socket, Arc::clone(worker)));
                }
                bound.push(address);
            }
        }
        let slot = Arc::new(ListenerSlot { current: ArcSwap::new(Arc::clone(listener)), sockets, bound });
        for (socket, worker) in accepting {
            let accept = accept_loop(socket, Arc::clone(&slot), Arc::clone(self), Arc::clone(&worker));
            worker.runtime.spawn(accept);
        }
        Ok(slot)
    }

    pub(super) fn remove_listener(&self, name: &str) -> bool {
        let _one_at_a_time = lock(&self.change);
        let Some(slot) = self.listener_table().by_name.get(name).cloned() else { return false };
        self.listeners.store(Arc::new(self.listener_table().without(name)));
        slot.sockets.advance(CLOSING);
        self.retire(slot.current.load().all_chains().cloned().collect());
        true
    }

    /// Drains chains: responses say so at once, after half of the drain time idle connections are closed, at its end
    /// all of them.
    fn retire(&self, chains: Vec<Arc<ChainRuntime>>) {
        if chains.is_empty() {
            return;
        }
        let time = self.options.drain_time;
        for chain in &chains {
            chain.lifecycle.advance(DRAINING);
        }
        self.main_runtime().spawn(async move {
            for stage in [CLOSING, KILLED] {
                tokio::time::sleep(time / 2).await;
                for chain in &chains {
                    chain.lifecycle.advance(stage);
                }
            }
        });
    }

    /// Where connection managers find the routes of this name.
    pub(crate) fn route_slot(&self, name: &Arc<str>) -> Arc<RouteSlot> {
        Arc::clone(lock(&self.routes).entry(Arc::clone(name)).or_default())
    }

    pub(super) fn apply_routes(&self, config: RouteConfiguration) -> Result<(), ApplyError> {
        let name = Arc::clone(&config.name);
        let refused =
            |source| ApplyError::Config { kind: "route configuration", name: Arc::clone(&name), source };
        if name.is_empty() {
            return Err(refused(ConfigError::Missing { field: "name".into() }));
        }
        let slot = self.route_slot(&name);
        if slot.table.load().as_ref().is_some_and(|table| *table.config == config) {
            return Ok(());
        }
        let table = RouteTable::compile(Arc::new(config)).map_err(refused)?;
        slot.table.store(Some(Arc::new(table)));
        Ok(())
    }

    pub(super) fn remove_routes(&self, name: &str) -> bool {
        let mut routes = lock(&self.routes);
        let Some(slot) = routes.get(name) else { return false };
        let known = slot.table.swap(None).is_some();
        routes.retain(|_, slot| slot.table.load().is_some() || Arc::strong_count(slot) > 1);
        known
    }

    pub(super) fn apply_cluster(&self, cluster: Cluster) -> Result<(), ApplyError> {
        let before = self.clusters.get(&cluster.name).map(|c| c.id);
        let cluster = self.clusters.apply(cluster, &self.stats)?;
        if before != Some(cluster.id) {
            ClusterManager::serve(&cluster, self.main_runtime());
        }
        Ok(())
    }

    pub(super) fn remove_cluster(&self, name: &str) -> bool {
        self.clusters.remove(name, &self.stats)
    }

    pub(super) fn apply_endpoints(&self, endpoints: LoadAssignment) -> Result<(), ApplyError> {
        self.clusters.apply_endpoints(endpoints)
    }

    pub(super) fn remove_endpoints(&self, service_name: &str) -> bool {
        self.clusters.remove_endpoints(service_name)
    }

    pub(super) fn missing(&self) -> Missing {
        let mut routes: Vec<Arc<str>> =
            self.listeners().iter().flat_map(|listener| listener.route_names()).collect();
        routes.sort();
        routes.dedup();
        let known = lock(&self.routes);
        routes.retain(|name| known.get(name).is_none_or(|slot| slot.table.load().is_none()));
        Missing { routes, endpoints: self.clusters.missing() }
    }

    pub(super) fn listeners(&self) -> Vec<Arc<Listener>> {
        let table = self.listener_table();
        let mut all: Vec<_> =
            table.by_name.values().map(|slot| Arc::clone(&slot.current.load().config)).collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }

    pub(super) fn bound_addresses(&self, listener: &str) -> Vec<SocketAddr> {
        self.listener_table().by_name.get(listener).map_or_else(Vec::new, |slot| slot.bound.clone())
    }

    pub(super) fn routes(&self) -> Vec<Arc<RouteConfiguration>> {
        let routes = lock(&self.routes);
        routes.values().filter_map(|slot| slot.table.load().as_ref().map(|t| Arc::clone(&t.config))).collect()
    }

    pub(super) fn clusters(&self) -> Vec<ClusterSnapshot> {
        self.clusters.snapshot()
    }

    /// Whether the provider says that this session's peer is not to be trusted any more.
    pub(crate) fn is_revoked(&self, tls: Option<&TlsSession>) -> bool {
        let peer = tls.and_then(|tls| tls.peer.as_deref());
        let revoked = peer.filter(|peer| self.options.tls.is_revoked(peer));
        if let Some(peer) = revoked {
            let id = peer.spiffe_id().map(|id| &**id);
            tracing::warn!(id, serial = %peer.serial, "peer revoked, connection closed");
        }
        revoked.is_some()
    }

    pub(super) fn close_revoked(&self) -> usize {
        let closed = self.registry.cut(|peer| self.options.tls.is_revoked(peer));
        if closed > 0 {
            tracing::warn!(closed, "connections of revoked peers closed");
        }
        closed
    }

    pub(super) fn connections(&self) -> Vec<ConnectionSnapshot> {
        self.registry.snapshot()
    }

    pub(super) fn prometheus(&self) -> String {
        let mut out = String::new();
        self.istio.write(&mut out);
        out.push_str(&self.stats.prometheus());
        out
    }

    pub(super) fn flush_logs(&self) {
        self.logs.flush();
    }

    fn advance(&self, inbound_only: bool, stage: u8) {
        for slot in self.listener_table().by_name.values() {
            let listener = slot.current.load();
            if inbound_only && listener.config.direction != Direction::Inbound {
                continue;
            }
            for chain in listener.all_chains() {
                chain.lifecycle.advance(stage);
            }
        }
    }

    pub(super) fn drain(&self, inbound_only: bool) {
        self.draining_inbound.store(true, Relaxed);
        if !inbound_only {
            self.draining_all.store(true, Relaxed);
        }
        self.advance(inbound_only, DRAINING);
    }

    pub(super) async fn shutdown(&self, deadline: Duration) -> usize {
        self.stopped.store(true, Relaxed);
        self.drain(false);
        for slot in self.listener_table().by_name.values() {
            slot.sockets.advance(CLOSING);
        }
        self.advance(false, CLOSING);
        let in_time = tokio::time::timeout(deadline, self.registry.empty()).await;
        let cut = if in_time.is_ok() { 0 } else { self.registry.open() };
        self.advance(false, KILLED);
        self.logs.flush();
        cut
    }
}
