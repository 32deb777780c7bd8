//! What one proxy gets to see: `exportTo` and the Sidecar that selects it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::{Mesh, RouteRule, Service, exported, host_covers};
use crate::resources::scalar_subset;
use crate::store::resolve_host;

/// The view of the proxies of one namespace that one Sidecar (or none) selects.
#[derive(Debug, Clone)]
pub struct Scope {
    /// The proxies' namespace.
    pub namespace: String,
    /// Whether unknown destinations are refused.
    pub registry_only: bool,
    /// Index of the selecting Sidecar.
    pub sidecar: Option<usize>,
    /// `namespace/dnsName` patterns; `None` means everything exported.
    imports: Option<Vec<(String, String)>>,
}

impl Scope {
    /// The view of a proxy: its namespace's Sidecars with a matching selector, then its namespace's selector-less one,
    /// then the root namespace's.
    pub fn of(mesh: &Mesh, namespace: &str, labels: &BTreeMap<String, String>) -> Self {
        let find = |ns: &str, selecting: bool| {
            mesh.sidecars.iter().position(|rule| {
                rule.namespace == ns
                    && match &rule.spec.workload_selector {
                        Some(selector) if !selector.labels.is_empty() => {
                            selecting && scalar_subset(&selector.labels, labels)
                        }
                        _ => !selecting,
                    }
            })
        };
        let sidecar = find(namespace, true)
            .or_else(|| find(namespace, false))
            .or_else(|| find(&mesh.settings.root_namespace, false));
        let rule = sidecar.and_then(|index| mesh.sidecars.get(index));
        let imports = rule.filter(|rule| !rule.spec.egress.is_empty()).map(|rule| {
            let hosts = rule.spec.egress.iter().flat_map(|listener| &listener.hosts);
            hosts
                .filter_map(|host| host.split_once('/'))
                .map(|(ns, host)| (ns.to_owned(), host.to_owned()))
                .collect()
        });
        let registry_only = rule.is_some_and(|rule| {
            rule.spec
                .outbound_traffic_policy
                .as_ref()
                .is_some_and(|policy| policy.mode == crate::resources::OutboundMode::RegistryOnly)
        });
        Self { namespace: namespace.to_owned(), registry_only, sidecar, imports }
    }

    fn imported(&self, namespace: &str, host: &str) -> bool {
        let Some(imports) = &self.imports else { return true };
        imports.iter().any(|(ns, pattern)| {
            let in_namespace = match ns.as_str() {
                "*" => true,
                "." => namespace == self.namespace,
                "~" => false,
                other => other == namespace,
            };
            in_namespace && (pattern == "*" || host_covers(pattern, host) || host_covers(host, pattern))
        })
    }

    /// The VirtualServices in view, oldest first.
    pub fn routes<'m>(&self, mesh: &'m Mesh) -> Vec<&'m RouteRule> {
        mesh.routes
            .iter()
            .filter(|rule| {
                exported(&rule.spec.export_to, &rule.namespace, &self.namespace)
                    && rule.hosts.iter().any(|host| self.imported(&rule.namespace, host))
            })
            .collect()
    }

    /// The services in view, oldest first; of several with one host, Kubernetes' own, then the own namespace's, then
    /// the oldest. Destinations of a VirtualService in view are in view as well.
    pub fn services(&self, mesh: &Mesh, routes: &[&RouteRule]) -> Vec<Arc<Service>> {
        let mut wanted = BTreeSet::new();
        if self.imports.is_some() {
            for rule in routes {
                let hosts = rule.spec.http.iter().flat_map(|r| r.route.iter().map(|to| &to.destination.host));
                let l4 = rule.spec.tcp.iter().flat_map(|r| &r.route);
                let l4 = l4.chain(rule.spec.tls.iter().flat_map(|r| &r.route)).map(|to| &to.destination.host);
                wanted
                    .extend(hosts.chain(l4).map(|h| resolve_host(h, &rule.namespace, &mesh.settings.domain)));
            }
        }
        let mut best: BTreeMap<&str, &Arc<Service>> = BTreeMap::new();
        for service in &mesh.services {
            let visible = exported(&service.export_to, &service.namespace, &self.namespace)
                && (self.imported(&service.namespace, &service.host) || wanted.contains(&service.host));
            if !visible {
                continue;
            }
            let rank = |s: &Service| (!s.kubernetes, s.namespace != self.namespace);
            best.entry(&service.host)
                .and_modify(|known| {
                    if rank(service) < rank(known) {
                        *known = service;
                    }
                })
                .or_insert(service);
        }
        let mut services: Vec<_> = best.into_values().cloned().collect();
        services.sort_by(|a, b| a.age.cmp(&b.age));
        services
    }
}
