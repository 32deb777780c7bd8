//! What the proxies of one view share: the services, routes and rules that they see.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::Proxy;
use crate::model::{Dependency, Mesh, RouteRule, Scope, Service, TrafficRule, exported, host_covers};
use crate::resources::scalar_subset;

/// What outbound configuration depends on besides the mesh.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ViewKey {
    /// The proxies' namespace.
    pub namespace: String,
    /// The proxies' labels, where any rule looks at them; empty otherwise.
    pub labels: BTreeMap<String, String>,
}

impl ViewKey {
    /// The key of a proxy's view.
    pub fn of(mesh: &Mesh, proxy: &Proxy) -> Self {
        let labels = if mesh.distinguishes_labels() { proxy.labels.clone() } else { BTreeMap::new() };
        Self { namespace: proxy.namespace.clone(), labels }
    }

    /// Some proxy of the view, as far as the view looks at proxies.
    pub fn proxy(&self) -> Proxy {
        Proxy { namespace: self.namespace.clone(), labels: self.labels.clone(), ..Proxy::default() }
    }
}

/// The outbound world of one view.
#[derive(Debug, Clone)]
pub(super) struct View {
    /// The namespace of the proxies.
    pub(super) namespace: String,
    /// Their labels.
    pub(super) labels: BTreeMap<String, String>,
    /// Whether unknown destinations are refused.
    pub(super) registry_only: bool,
    /// Services in view, oldest first.
    pub(super) services: Vec<Arc<Service>>,
}

/// A view together with the mesh that it was taken of.
#[derive(Debug, Clone)]
pub(super) struct Program<'m> {
    /// The mesh.
    pub(super) mesh: &'m Mesh,
    /// The view.
    pub(super) view: View,
    /// VirtualServices in view, oldest first.
    pub(super) routes: Vec<&'m RouteRule>,
    by_host: BTreeMap<String, Arc<Service>>,
}

impl<'m> Program<'m> {
    /// What `proxy` sees of `mesh`.
    pub(super) fn of(mesh: &'m Mesh, proxy: &Proxy) -> Self {
        let scope = Scope::of(mesh, &proxy.namespace, &proxy.labels);
        let routes = scope.routes(mesh);
        let services = scope.services(mesh, &routes);
        let by_host = services.iter().map(|s| (s.host.clone(), Arc::clone(s))).collect();
        let view = View {
            namespace: proxy.namespace.clone(),
            labels: proxy.labels.clone(),
            registry_only: scope.registry_only,
            services,
        };
        Self { mesh, view, routes, by_host }
    }

    /// What the view depends on. Whoever comes into view later is found by asking again.
    pub(super) fn dependencies(&self) -> BTreeSet<Dependency> {
        let mut all = BTreeSet::new();
        for namespace in [&self.view.namespace, &self.mesh.settings.root_namespace] {
            all.insert(Dependency::Sidecars(namespace.clone()));
        }
        for service in &self.view.services {
            all.insert(Dependency::Service(service.host.clone()));
            all.insert(Dependency::Peers(service.namespace.clone()));
        }
        let route = |rule: &&RouteRule| Dependency::Route(rule.namespace.clone(), rule.name.clone());
        all.extend(self.routes.iter().map(route));
        let exported =
            |rule: &&TrafficRule| exported(&rule.spec.export_to, &rule.namespace, &self.view.namespace);
        let traffic = |rule: &TrafficRule| Dependency::Traffic(rule.namespace.clone(), rule.name.clone());
        all.extend(self.mesh.traffic.iter().filter(exported).map(traffic));
        all
    }

    /// The service of this host, if in view.
    pub(super) fn service(&self, host: &str) -> Option<&Arc<Service>> {
        self.by_host.get(host)
    }

    /// The VirtualService for `host`: the most specific match, the oldest of equals.
    pub(super) fn route_for(&self, host: &str) -> Option<&'m RouteRule> {
        let mut best: Option<(&'m RouteRule, usize)> = None;
        for rule in &self.routes {
            for pattern in rule.hosts.iter().filter(|pattern| host_covers(pattern, host)) {
                // An exact name beats every wildcard; among wildcards the longest is most specific.
                let rank = if pattern == host { usize::MAX } else { pattern.len() };
                if best.is_none_or(|(_, known)| rank > known) {
                    best = Some((rule, rank));
                }
            }
        }
        best.map(|(rule, _)| rule)
    }

    /// The DestinationRules for `service`, oldest first: of the client's namespace, else the service's, else the root
    /// namespace's; the first namespace with a hit is the only one.
    pub(super) fn traffic_for(&self, service: &Service) -> Vec<&'m TrafficRule> {
        let root = self.mesh.settings.root_namespace.as_str();
        let own = self.view.namespace.as_str();
        let mut places = Vec::new();
        if own != root {
            places.push(own);
        }
        if !places.contains(&service.namespace.as_str()) {
            places.push(&service.namespace);
        }
        if !places.contains(&root) {
            places.push(root);
        }
        places
            .into_iter()
            .map(|namespace| self.traffic_in(namespace, &service.host))
            .find(|rules| !rules.is_empty())
            .unwrap_or_default()
    }

    fn traffic_in(&self, namespace: &str, host: &str) -> Vec<&'m TrafficRule> {
        let candidates: Vec<&TrafficRule> = self
            .mesh
            .traffic
            .iter()
            .filter(|rule| rule.namespace == namespace && host_covers(&rule.host, host))
            .filter(|rule| exported(&rule.spec.export_to, namespace, &self.view.namespace))
            .collect();
        let best = |candidates: &[&'m TrafficRule]| -> Vec<&'m TrafficRule> {
            let rank = |rule: &TrafficRule| if rule.host == host { usize::MAX } else { rule.host.len() };
            let top = candidates.iter().map(|rule| rank(rule)).max();
            candidates.iter().copied().filter(|rule| Some(rank(rule)) == top).collect()
        };
        let (selecting, general): (Vec<_>, Vec<_>) =
            candidates.into_iter().partition(|rule| rule.spec.workload_selector.is_some());
        let selected: Vec<_> = selecting
            .into_iter()
            .filter(|rule| rule.namespace == self.view.namespace)
            .filter(|rule| {
                let selector = rule.spec.workload_selector.as_ref();
                selector.is_some_and(|s| scalar_subset(&s.match_labels, &self.view.labels))
            })
            .collect();
        let selected = best(&selected);
        if selected.is_empty() { best(&general) } else { selected }
    }
}
