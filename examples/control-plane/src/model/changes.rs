//! What differs between two meshes, by what configuration depends on: who has to be told follows from that.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use mesh_xds::push;

use super::{Discovery, Mesh, Service};

/// Something that what a proxy is told may depend on.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Dependency {
    /// All services of this host.
    Service(String),
    /// The VirtualService of this namespace and name.
    Route(String, String),
    /// The DestinationRule of this namespace and name.
    Traffic(String, String),
    /// The Sidecars of this namespace.
    Sidecars(String),
    /// The PeerAuthentications of this namespace.
    Peers(String),
    /// The AuthorizationPolicies of this namespace.
    Access(String),
    /// The workload of this namespace and name.
    Workload(String, String),
}

/// What changed. [`Endpoints`](push::Scope::Endpoints) says that outbound listeners, routes and clusters are what they
/// were; workloads among its keys are those whose own proxies have to be told something else.
pub type Change = push::Scope<Dependency>;

impl Mesh {
    /// What differs from an older mesh; `None` if no proxy is told anything else.
    pub fn changes_since(&self, old: &Self) -> Option<Change> {
        // What cannot be pinned down, and what all depend on.
        let everywhere = old.settings != self.settings
            || old.distinguishes_labels() != self.distinguishes_labels()
            || !old.peers.same_default(&self.peers)
            || reordered(&old.services, &self.services, |service| &service.host)
            || reordered(&old.routes, &self.routes, |rule| (&rule.namespace, &rule.name))
            || reordered(&old.traffic, &self.traffic, |rule| (&rule.namespace, &rule.name));
        if everywhere {
            return Some(Change::All);
        }
        let mut others = self.changed_rules(old);
        let mut endpoints = self.changed_workloads(old);
        for (host, before, after) in
            differing(&old.services, &self.services, |service| &service.host, same_service)
        {
            let only_endpoints = before.len() == after.len()
                && before.iter().zip(&after).all(|(before, after)| only_load_assignments(before, after));
            let found = if only_endpoints { &mut endpoints } else { &mut others };
            found.insert(Dependency::Service(host.clone()));
        }
        if !others.is_empty() {
            others.append(&mut endpoints);
            return Some(Change::Some(others));
        }
        (!endpoints.is_empty()).then_some(Change::Endpoints(endpoints))
    }

    fn changed_rules(&self, old: &Self) -> BTreeSet<Dependency> {
        let mut found = BTreeSet::new();
        let routes = differing(
            &old.routes,
            &self.routes,
            |rule| (&rule.namespace, &rule.name),
            |a, b| a.hosts == b.hosts && same(&a.spec, &b.spec),
        );
        found.extend(routes.into_iter().map(|((ns, name), ..)| Dependency::Route(ns.clone(), name.clone())));
        let traffic = differing(
            &old.traffic,
            &self.traffic,
            |rule| (&rule.namespace, &rule.name),
            |a, b| a.host == b.host && same(&a.spec, &b.spec),
        );
        found.extend(
            traffic.into_iter().map(|((ns, name), ..)| Dependency::Traffic(ns.clone(), name.clone())),
        );
        let sidecars =
            differing(&old.sidecars, &self.sidecars, |rule| &rule.namespace, |a, b| same(&a.spec, &b.spec));
        found.extend(sidecars.into_iter().map(|(namespace, ..)| Dependency::Sidecars(namespace.clone())));
        let access = differing(
            &old.access,
            &self.access,
            |rule| &rule.namespace,
            |a, b| (&a.name, a.dry_run) == (&b.name, b.dry_run) && same(&a.spec, &b.spec),
        );
        found.extend(access.into_iter().map(|(namespace, ..)| Dependency::Access(namespace.clone())));
        found.extend(old.peers.differing(&self.peers).into_iter().map(Dependency::Peers));
        found
    }

    /// Workloads whose own proxies are told something else. Their readiness is a matter of those who call them.
    fn changed_workloads(&self, old: &Self) -> BTreeSet<Dependency> {
        let keys: BTreeSet<_> = old.workloads.keys().chain(self.workloads.keys()).collect();
        let differs = |key: &&&(String, String)| match (old.workloads.get(**key), self.workloads.get(**key)) {
            (Some(before), Some(after)) => {
                (&before.labels, &before.ips, &before.named_ports)
                    != (&after.labels, &after.ips, &after.named_ports)
            }
            _ => true,
        };
        let changed = keys.iter().filter(differs);
        changed.map(|(namespace, name)| Dependency::Workload(namespace.clone(), name.clone())).collect()
    }
}

/// Whether the two say the same. Where something is written is no content; who is older shows in the order.
fn same_service(before: &Arc<Service>, after: &Arc<Service>) -> bool {
    before.same_but_endpoints(after)
        && before.selector == after.selector
        && before.endpoints == after.endpoints
}

/// Whether nothing but load assignments can tell the two apart. Listeners of headless services, endpoints inside of DNS
/// clusters and the one socket of a cluster without load assignment are no matter of EDS.
fn only_load_assignments(before: &Service, after: &Service) -> bool {
    after.discovery == Discovery::Eds
        && before.same_but_endpoints(after)
        && after.ports.iter().all(|p| before.all_speak_mtls(p.port) == after.all_speak_mtls(p.port))
}

fn same<T: PartialEq>(a: &Arc<T>, b: &Arc<T>) -> bool {
    Arc::ptr_eq(a, b) || a == b
}

/// What is listed under one key, before and after, where it differs.
fn differing<'m, T, K: Ord>(
    old: &'m [T],
    new: &'m [T],
    key: impl Fn(&'m T) -> K,
    same: impl Fn(&T, &T) -> bool,
) -> Vec<(K, Vec<&'m T>, Vec<&'m T>)> {
    let mut all: BTreeMap<K, (Vec<&'m T>, Vec<&'m T>)> = BTreeMap::new();
    for value in old {
        all.entry(key(value)).or_default().0.push(value);
    }
    for value in new {
        all.entry(key(value)).or_default().1.push(value);
    }
    let equal =
        |old: &[&T], new: &[&T]| old.len() == new.len() && old.iter().zip(new).all(|(a, b)| same(a, b));
    all.into_iter()
        .filter(|(_, (old, new))| !equal(old, new))
        .map(|(key, (old, new))| (key, old, new))
        .collect()
}

/// Whether what is in both lists stands in another order: the older one wins, so order is content.
fn reordered<'m, T, K: Ord>(old: &'m [T], new: &'m [T], key: impl Fn(&'m T) -> K) -> bool {
    let keys = |list: &'m [T]| list.iter().map(&key).collect::<Vec<_>>();
    let (old, new) = (keys(old), keys(new));
    let (in_old, in_new): (BTreeSet<_>, BTreeSet<_>) = (old.iter().collect(), new.iter().collect());
    let kept_before = old.iter().filter(|key| in_new.contains(key));
    let kept_after = new.iter().filter(|key| in_old.contains(key));
    !kept_before.eq(kept_after)
}
