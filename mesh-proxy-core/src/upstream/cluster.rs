//! A cluster at run time.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
};

use arc_swap::{ArcSwap, Guard};
use tokio::time::Instant;

use super::{
    Host,
    breaker::Breakers,
    hash_lb::HashTable,
    host_set::{Group, HostSet, LocalityHosts},
    slow_start,
};
use crate::{
    config::{
        Cluster, Discovery, Endpoint, LbPolicy, LoadAssignment, Locality, LocalityEndpoints, TransportSocket,
    },
    telemetry::{ClusterStats, Stats},
    worker::Worker,
};

/// Draws before a host is taken whatever its ramp says: with a smallest share of 10 % one in 30 gets there.
const SLOW_START_DRAWS: u32 = 32;

/// A cluster with its hosts.
#[derive(Debug)]
pub(crate) struct ClusterRuntime {
    /// Unique in this process; a cheap key for caches.
    pub(crate) id: u64,
    pub(crate) config: Arc<Cluster>,
    pub(crate) stats: Arc<ClusterStats>,
    pub(crate) breakers: Breakers,
    /// EDS or DNS has answered (or nothing is needed).
    pub(crate) warm: AtomicBool,
    hosts: ArcSwap<HostSet>,
    members: Mutex<Members>,
    original: Mutex<HashMap<SocketAddr, Arc<Host>>>,
    hash_table: ArcSwap<HashTable>,
    turn: AtomicUsize,
    start: Instant,
}

#[derive(Debug, Default)]
struct Members {
    localities: Vec<LocalityHosts>,
    overprovisioning: u32,
}

/// What a pick may take into account.
#[derive(Debug, Default)]
pub(crate) struct Pick<'a> {
    pub(crate) worker: Option<&'a Worker>,
    pub(crate) original: Option<SocketAddr>,
    pub(crate) hash: Option<u64>,
    /// Hosts already tried, and how often to look for another.
    pub(crate) avoid: &'a [Arc<Host>],
    pub(crate) avoid_attempts: u32,
    pub(crate) avoid_priorities: &'a [u32],
}

/// No host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PickError {
    NoHealthyHost,
}

static NEXT_ID: AtomicU64 = AtomicU64::new(1);

impl ClusterRuntime {
    /// A cluster without hosts. One that replaces another goes on with its clock, on which ejections and slow starts of
    /// the hosts that stay are measured.
    pub(crate) fn new(config: Arc<Cluster>, old: Option<&Self>, stats: &Stats) -> Self {
        let cluster_stats = stats.cluster(config.stat_name());
        Self {
            id: NEXT_ID.fetch_add(1, Relaxed),
            warm: AtomicBool::new(!matches!(
                config.discovery,
                Discovery::Eds { .. } | Discovery::StrictDns { .. } | Discovery::LogicalDns { .. }
            )),
            config,
            stats: cluster_stats,
            breakers: Breakers::default(),
            hosts: ArcSwap::default(),
            members: Mutex::default(),
            original: Mutex::default(),
            hash_table: ArcSwap::default(),
            turn: AtomicUsize::new(0),
            start: old.map_or_else(Instant::now, |old| old.start),
        }
    }

    pub(crate) fn hosts(&self) -> Guard<Arc<HostSet>> {
        self.hosts.load()
    }

    /// Milliseconds since the cluster was first made; the clock of ejections and slow starts.
    pub(crate) fn age_ms(&self) -> u64 {
        self.start.elapsed().as_millis() as u64
    }

    fn members(&self) -> MutexGuard<'_, Members> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets the endpoints. Hosts whose endpoint and transport did not change are kept with their connections; `old` is
    /// the cluster that this one replaces.
    pub(crate) fn set_endpoints(&self, assignment: &LoadAssignment, old: Option<&Self>) {
        let previous: Vec<Arc<Host>> = match old {
            Some(old) => old.hosts().all.clone(),
            None => self.hosts().all.clone(),
        };
        let reusable = old.is_none_or(|old| same_transport(&old.config, &self.config));
        let mut known: HashMap<SocketAddr, Vec<Arc<Host>>> = HashMap::new();
        for host in &previous {
            known.entry(host.address()).or_default().push(Arc::clone(host));
        }
        let now_ms = self.age_ms();
        let mut localities = Vec::with_capacity(assignment.localities.len());
        for group in &assignment.localities {
            let locality = Arc::new(group.locality.clone());
            let hosts = group.endpoints.iter().map(|endpoint| {
                let transport = self.transport_for(endpoint);
                let kept = known.get_mut(&endpoint.address).filter(|_| reusable).and_then(|same| {
                    let at = same.iter().position(|h| {
                        h.endpoint == *endpoint
                            && h.priority == group.priority
                            && *h.locality == group.locality
                            && h.transport == *transport
                    })?;
                    Some(same.swap_remove(at))
                });
                kept.unwrap_or_else(|| {
                    Arc::new(Host::new(
                        endpoint.clone(),
                        Arc::clone(&locality),
                        group.priority,
                        transport.clone(),
                        now_ms,
                    ))
                })
            });
            localities.push(LocalityHosts {
                hosts: hosts.collect(),
                locality,
                weight: group.weight,
                priority: group.priority,
            });
        }
        for gone in known.into_values().flatten() {
            gone.retire();
        }
        {
            let mut members = self.members();
            members.localities = localities;
            members.overprovisioning = assignment.overprovisioning_factor;
        }
        self.warm.store(true, Relaxed);
        self.rebuild();
    }

    /// The endpoints as they were given, told from the hosts.
    pub(crate) fn assignment(&self, name: &str) -> LoadAssignment {
        let members = self.members();
        let localities = members.localities.iter().map(|group| LocalityEndpoints {
            locality: Locality::clone(&group.locality),
            weight: group.weight,
            priority: group.priority,
            endpoints: group.hosts.iter().map(|host| host.endpoint.clone()).collect(),
        });
        LoadAssignment {
            localities: localities.collect(),
            overprovisioning_factor: members.overprovisioning,
            ..LoadAssignment::new(name, [])
        }
    }

    /// Retires all hosts: the cluster is gone.
    pub(crate) fn retire(&self) {
        for host in &self.hosts().all {
            host.retire();
        }
        for host in self.original().values() {
            host.retire();
        }
    }

    fn original(&self) -> MutexGuard<'_, HashMap<SocketAddr, Arc<Host>>> {
        self.original.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes over the original-destination hosts of the cluster this one replaces.
    pub(crate) fn adopt_original(&self, old: &Self) {
        if same_transport(&old.config, &self.config) {
            *self.original() = std::mem::take(&mut *old.original());
        }
    }

    fn transport_for(&self, endpoint: &Endpoint) -> &TransportSocket {
        self.config
            .transport_matches
            .iter()
            .find(|m| m.matches.iter().all(|(k, v)| endpoint.transport_match.get(k) == Some(v)))
            .map_or(&self.config.transport, |m| &m.socket)
    }

    /// Recomputes the view after health changed.
    pub(crate) fn rebuild(&self) {
        let members = self.members();
        let set = HostSet::build(
            &members.localities,
            members.overprovisioning,
            self.config.panic_threshold,
            self.config.locality_weighted,
        );
        drop(members);
        let healthy: usize = set.priorities.iter().map(|p| p.healthy.hosts.len()).sum();
        self.stats.membership_total.set(set.all.len() as i64);
        self.stats.membership_healthy.set(healthy as i64);
        if matches!(self.config.lb, LbPolicy::RingHash { .. } | LbPolicy::Maglev { .. }) {
            let hosts = set
                .priorities
                .iter()
                .find(|p| !p.healthy.hosts.is_empty())
                .map(|p| p.healthy.hosts.as_slice());
            self.hash_table.store(Arc::new(HashTable::build(self.config.lb, hosts.unwrap_or(&[]))));
        }
        self.hosts.store(Arc::new(set));
    }

    /// Chooses a host.
    pub(crate) fn pick(&self, pick: &Pick<'_>) -> Result<Arc<Host>, PickError> {
        if let Discovery::OriginalDst { port_override } = &self.config.discovery {
            let mut to = pick.original.ok_or(PickError::NoHealthyHost)?;
            if let Some(port) = port_override {
                to.set_port(*port);
            }
            return Ok(self.original_host(to));
        }
        let hosts = self.hosts.load();
        let random = |bound: u64| pick.worker.map_or(0, |w| w.below(bound.max(1)));
        let excluded = |level: usize| pick.avoid_priorities.contains(&(level as u32));
        let mut chosen = None;
        for _ in 0..=pick.avoid_attempts {
            let group = hosts.group(&random, &excluded).ok_or(PickError::NoHealthyHost)?;
            let host = self.choose(group, pick, &random).ok_or(PickError::NoHealthyHost)?;
            let tried = pick.avoid.iter().any(|h| Arc::ptr_eq(h, &host));
            chosen = Some(host);
            if !tried {
                break;
            }
        }
        chosen.ok_or(PickError::NoHealthyHost)
    }

    fn choose(&self, group: &Group, pick: &Pick<'_>, random: &dyn Fn(u64) -> u64) -> Option<Arc<Host>> {
        match self.config.lb {
            LbPolicy::LeastRequest { choices } => {
                if let [only] = group.hosts.as_slice() {
                    return Some(Arc::clone(only));
                }
                let one = || self.ramped(random, || group.by_weight(random));
                let mut best = one()?;
                for _ in 1..choices.max(2) {
                    let other = one()?;
                    if other.rq_active.load(Relaxed) < best.rq_active.load(Relaxed) {
                        best = other;
                    }
                }
                Some(Arc::clone(best))
            }
            LbPolicy::RoundRobin => self.ramped(random, || self.in_turn(group)).cloned(),
            LbPolicy::RingHash { .. } | LbPolicy::Maglev { .. } => {
                let hash = pick.hash.unwrap_or_else(|| random(u64::MAX));
                self.hash_table.load().get(hash).or_else(|| group.by_weight(random).cloned())
            }
            LbPolicy::Random | LbPolicy::ClusterProvided => group.by_weight(random).cloned(),
        }
    }

    fn in_turn<'a>(&self, group: &'a Group) -> Option<&'a Arc<Host>> {
        let turn = self.turn.fetch_add(1, Relaxed);
        match group.cumulative.last() {
            None if group.hosts.is_empty() => None,
            None => group.hosts.get(turn % group.hosts.len()),
            // Every host gets its share in each round of the total.
            Some(total) => {
                let point = turn as u64 % total;
                group.hosts.get(group.cumulative.partition_point(|c| *c <= point))
            }
        }
    }

    /// Draws a host; one in its slow start is taken as often as its ramp says, else another is drawn. So shares follow
    /// the ramps without weights that change with time.
    fn ramped<'a>(
        &self,
        random: &dyn Fn(u64) -> u64,
        draw: impl Fn() -> Option<&'a Arc<Host>>,
    ) -> Option<&'a Arc<Host>> {
        let Some(config) = self.config.slow_start else { return draw() };
        let now = self.age_ms();
        let mut host = draw()?;
        for _ in 0..SLOW_START_DRAWS {
            let share = slow_start::share(config, now.saturating_sub(host.warms_since_ms.load(Relaxed)));
            if share >= slow_start::WHOLE || random(slow_start::WHOLE) < share {
                return Some(host);
            }
            host = draw()?;
        }
        // All are new: they are alike.
        Some(host)
    }

    fn original_host(&self, to: SocketAddr) -> Arc<Host> {
        let mut hosts = self.original();
        let host = hosts.entry(to).or_insert_with(|| {
            let endpoint = Endpoint::new(to);
            let transport = self.transport_for(&endpoint).clone();
            Arc::new(Host::new(endpoint, Arc::<Locality>::default(), 0, transport, 0))
        });
        Arc::clone(host)
    }

    /// Forgets original-destination hosts that nothing uses, and closes idle connections; called now and then.
    pub(crate) fn sweep_idle(&self) {
        if let Some(limit) = self.config.idle_timeout {
            for host in &self.hosts().all {
                host.close_idle_since(limit);
            }
            for host in self.original().values() {
                host.close_idle_since(limit);
            }
        }
        self.original().retain(|_, host| Arc::strong_count(host) > 1 || host.has_connections());
    }
}

fn same_transport(a: &Cluster, b: &Cluster) -> bool {
    a.bind == b.bind
        && a.protocol == b.protocol
        && a.tcp_keepalive == b.tcp_keepalive
        && a.transport == b.transport
        && a.transport_matches == b.transport_matches
        && a.alpn_override == b.alpn_override
}
