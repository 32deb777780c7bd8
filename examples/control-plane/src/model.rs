//! The mesh as translation needs it: services with their endpoints and identities, workloads, and policies in the
//! order in which they win. Built once per change, immutable, shared.

mod build;
mod changes;
mod peer;
mod protocol;
mod scope;

pub use changes::{Change, Dependency};
pub use peer::PeerPolicies;
pub use protocol::Protocol;
pub use scope::Scope;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use crate::resources::{
    AuthorizationPolicy, DestinationRule, Metadata, MtlsMode, Origin, Sidecar, VirtualService,
};
use crate::store::State;

/// What holds for the whole mesh.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MeshSettings {
    /// Trust domain of every identity.
    pub trust_domain: String,
    /// Namespace whose policies are mesh-wide.
    pub root_namespace: String,
    /// DNS suffix of services.
    pub domain: String,
}

impl Default for MeshSettings {
    fn default() -> Self {
        Self {
            trust_domain: "cluster.local".to_owned(),
            root_namespace: "istio-system".to_owned(),
            domain: "cluster.local".to_owned(),
        }
    }
}

impl MeshSettings {
    /// The SPIFFE ID of a service account.
    pub fn spiffe(&self, namespace: &str, account: &str) -> String {
        format!("spiffe://{}/ns/{namespace}/sa/{account}", self.trust_domain)
    }
}

/// Who is older: creation time where known, else the place in the files. Smaller is older.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Age {
    created: String,
    origin: Origin,
    name: (String, String),
}

impl Age {
    pub(crate) fn of(meta: &Metadata, origin: &Origin, namespace: &str, name: &str) -> Self {
        // "~" sorts after every time stamp: objects without one are younger than those with one.
        let created = meta.creation_timestamp.clone().unwrap_or_else(|| "~".to_owned());
        Self { created, origin: origin.clone(), name: (namespace.to_owned(), name.to_owned()) }
    }
}

/// A pod or workload entry.
#[derive(Debug, Clone, PartialEq)]
pub struct Workload {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Service account; empty for a workload without an identity.
    pub service_account: String,
    /// Addresses, first the primary one.
    pub ips: Vec<IpAddr>,
    /// Whether it is ready to serve.
    pub ready: bool,
    /// Whether a sidecar in front of it speaks mutual TLS.
    pub has_sidecar: bool,
    /// Whether it is going or gone.
    pub terminating: bool,
    /// Named ports.
    pub named_ports: BTreeMap<String, u16>,
    /// Whether it shares its node's network.
    pub host_network: bool,
}

impl Workload {
    /// Canonical service name: label, else `app`, else the workload's name.
    pub fn canonical_name(&self) -> &str {
        ["service.istio.io/canonical-name", "app.kubernetes.io/name", "app"]
            .iter()
            .find_map(|label| self.labels.get(*label))
            .unwrap_or(&self.name)
    }

    /// Canonical revision: label, else `version`, else `latest`.
    pub fn canonical_revision(&self) -> &str {
        ["service.istio.io/canonical-revision", "app.kubernetes.io/version", "version"]
            .iter()
            .find_map(|label| self.labels.get(*label).map(String::as_str))
            .unwrap_or("latest")
    }
}

/// How a service's endpoints are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Discovery {
    /// By the control plane, through EDS.
    Eds,
    /// The connection's own destination (headless, `NONE`).
    OriginalDst,
    /// Names resolved by the proxy, all answers.
    StrictDns,
    /// Names resolved by the proxy, one answer.
    LogicalDns,
}

/// A port of a service.
#[derive(Debug, Clone, PartialEq)]
pub struct ServicePort {
    /// Name; may be empty where there is only one.
    pub name: String,
    /// The number.
    pub port: u16,
    /// What it speaks.
    pub protocol: Protocol,
    /// The workload's port by number or name.
    pub target: crate::resources::IntOrString,
}

/// A service of the registry.
#[derive(Debug, Clone, PartialEq)]
pub struct Service {
    /// Full host name; may begin with `*.` for service entries.
    pub host: String,
    /// Name of the object.
    pub name: String,
    /// Namespace of the object.
    pub namespace: String,
    /// Age.
    pub age: Age,
    /// Virtual addresses.
    pub vips: Vec<IpAddr>,
    /// Virtual address ranges (service entries only).
    pub cidrs: Vec<ipnet::IpNet>,
    /// Ports in declaration order.
    pub ports: Vec<ServicePort>,
    /// How endpoints are found.
    pub discovery: Discovery,
    /// Whether it is outside the mesh.
    pub external: bool,
    /// Whether it comes from Kubernetes (and has short names).
    pub kubernetes: bool,
    /// Whether endpoints that are not ready count as healthy.
    pub publish_not_ready: bool,
    /// Namespaces that see it; `*`, `.`, `~` or names; empty means all.
    pub export_to: Vec<String>,
    /// Identities of everything behind it, sorted.
    pub identities: BTreeSet<String>,
    /// Labels of the workloads behind it; empty where endpoints are listed by hand.
    pub selector: BTreeMap<String, String>,
    /// Endpoints by service port.
    pub endpoints: BTreeMap<u16, Vec<Endpoint>>,
}

impl Service {
    /// The port with this number.
    pub fn port(&self, number: u16) -> Option<&ServicePort> {
        self.ports.iter().find(|port| port.port == number)
    }

    /// Whether `other` is the same service with, at most, other endpoints behind it.
    pub fn same_but_endpoints(&self, other: &Self) -> bool {
        (&self.host, &self.name, &self.namespace) == (&other.host, &other.name, &other.namespace)
            && (&self.vips, &self.cidrs, &self.ports) == (&other.vips, &other.cidrs, &other.ports)
            && (self.discovery, self.external, self.kubernetes)
                == (other.discovery, other.external, other.kubernetes)
            && (&self.export_to, &self.identities, self.publish_not_ready)
                == (&other.export_to, &other.identities, other.publish_not_ready)
    }

    /// Whether there is somebody behind a port and everybody there speaks mutual TLS.
    pub fn all_speak_mtls(&self, port: u16) -> bool {
        self.endpoints.get(&port).is_some_and(|all| !all.is_empty() && all.iter().all(|e| e.mtls))
    }

    /// Whether it has no virtual address and DNS names its endpoints.
    pub fn headless(&self) -> bool {
        self.kubernetes && self.discovery == Discovery::OriginalDst
    }
}

/// One address behind a service port.
#[derive(Debug, Clone, PartialEq)]
pub struct Endpoint {
    /// IP address, or a host name for DNS discovery.
    pub address: String,
    /// Port.
    pub port: u16,
    /// Whether traffic may go there.
    pub healthy: bool,
    /// Whether to speak mutual TLS to it (label and PeerAuthentication).
    pub mtls: bool,
    /// Labels, for subsets.
    pub labels: Arc<BTreeMap<String, String>>,
    /// The workload, if it is one of the mesh.
    pub workload: Option<Arc<Workload>>,
    /// `region/zone/subzone`.
    pub locality: String,
    /// Load-balancing weight, at least 1.
    pub weight: u32,
}

/// A VirtualService with its hosts resolved.
#[derive(Debug, Clone)]
pub struct RouteRule {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Age.
    pub age: Age,
    /// Full host names.
    pub hosts: Vec<String>,
    /// The object.
    pub spec: Arc<VirtualService>,
}

/// A DestinationRule with its host resolved.
#[derive(Debug, Clone)]
pub struct TrafficRule {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Age.
    pub age: Age,
    /// Full host name, maybe with a wildcard.
    pub host: String,
    /// The object.
    pub spec: Arc<DestinationRule>,
}

/// An AuthorizationPolicy.
#[derive(Debug, Clone)]
pub struct AccessRule {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Whether it only reports.
    pub dry_run: bool,
    /// The object.
    pub spec: Arc<AuthorizationPolicy>,
}

/// A Sidecar.
#[derive(Debug, Clone)]
pub struct SidecarRule {
    /// Namespace.
    pub namespace: String,
    /// Age.
    pub age: Age,
    /// The object.
    pub spec: Arc<Sidecar>,
}

/// Service (by index), service port and workload port, by namespace and name of the workload.
type ServedIndex = HashMap<(String, String), Vec<(usize, u16, u16)>>;

/// One port that a workload serves for a service.
#[derive(Debug, Clone, Copy)]
pub struct Served<'m> {
    /// The service.
    pub service: &'m Arc<Service>,
    /// The service's port.
    pub port: u16,
    /// The workload's port.
    pub target: u16,
}

/// Everything that translation reads.
#[derive(Debug, Clone, Default)]
pub struct Mesh {
    /// What holds for the whole mesh.
    pub settings: MeshSettings,
    /// Services, oldest first.
    pub services: Vec<Arc<Service>>,
    /// VirtualServices for sidecars, oldest first.
    pub routes: Vec<RouteRule>,
    /// DestinationRules, oldest first.
    pub traffic: Vec<TrafficRule>,
    /// AuthorizationPolicies by namespace and name.
    pub access: Vec<AccessRule>,
    /// Sidecars, oldest first.
    pub sidecars: Vec<SidecarRule>,
    /// PeerAuthentications.
    pub peers: PeerPolicies,
    /// Namespaces that exist.
    pub namespaces: BTreeSet<String>,
    by_host: HashMap<String, usize>,
    /// What each workload serves, oldest service first; endpoints without a workload are under their address.
    served: ServedIndex,
    workloads: HashMap<(String, String), Arc<Workload>>,
}

impl Mesh {
    /// Indexes `state`.
    pub fn build(state: &State, settings: MeshSettings) -> Self {
        build::build(state, settings)
    }

    /// The service of exactly this host.
    pub fn service(&self, host: &str) -> Option<&Arc<Service>> {
        self.services.get(*self.by_host.get(host)?)
    }

    /// The workload of this name.
    pub fn workload(&self, namespace: &str, name: &str) -> Option<&Arc<Workload>> {
        self.workloads.get(&(namespace.to_owned(), name.to_owned()))
    }

    /// All workloads, in no particular order.
    pub fn workloads(&self) -> impl Iterator<Item = &Arc<Workload>> {
        self.workloads.values()
    }

    /// What a workload serves, oldest service first.
    pub fn served(&self, namespace: &str, name: &str, ips: &[IpAddr]) -> Vec<Served<'_>> {
        let mut found: Vec<(usize, u16, u16)> = Vec::new();
        let by_ip = ips.iter().map(|ip| (String::new(), ip.to_string()));
        for key in std::iter::once((namespace.to_owned(), name.to_owned())).chain(by_ip) {
            found.extend(self.served.get(&key).into_iter().flatten());
        }
        found.sort_unstable();
        found.dedup();
        found
            .into_iter()
            .filter_map(|(service, port, target)| {
                Some(Served { service: self.services.get(service)?, port, target })
            })
            .collect()
    }

    /// Whether any rule distinguishes clients by labels.
    pub fn distinguishes_labels(&self) -> bool {
        let selecting = self.traffic.iter().any(|rule| rule.spec.workload_selector.is_some());
        let scoped = self.sidecars.iter().any(|rule| rule.spec.workload_selector.is_some());
        let by_source = self.routes.iter().any(|rule| {
            let http = rule.spec.http.iter().flat_map(|r| &r.matches).any(|m| !m.source_labels.is_empty());
            let tls = rule.spec.tls.iter().flat_map(|r| &r.matches).any(|m| !m.source_labels.is_empty());
            let tcp = rule.spec.tcp.iter().flat_map(|r| &r.matches).any(|m| !m.source_labels.is_empty());
            http || tls || tcp
        });
        selecting || scoped || by_source
    }

    /// Whether `service` selects `workload` by labels.
    pub fn selects(&self, service: &Service, workload: &Workload) -> bool {
        !service.selector.is_empty() && crate::resources::scalar_subset(&service.selector, &workload.labels)
    }

    /// The effective mode for a workload's port.
    pub fn mtls_mode(&self, namespace: &str, labels: &BTreeMap<String, String>, port: u16) -> MtlsMode {
        self.peers.mode(namespace, labels, Some(port))
    }
}

/// Whether something of `namespace` exported to `export_to` is visible in `viewer`.
pub fn exported(export_to: &[String], namespace: &str, viewer: &str) -> bool {
    export_to.is_empty()
        || export_to.iter().any(|to| match to.as_str() {
            "*" => true,
            "." => namespace == viewer,
            other => other == viewer,
        })
}

/// Whether `pattern` (exact or `*.suffix` or `*`) covers `host`.
pub fn host_covers(pattern: &str, host: &str) -> bool {
    match pattern.strip_prefix('*') {
        Some(suffix) => host.ends_with(suffix) && host.len() > suffix.len(),
        None => pattern == host,
    }
}

#[cfg(test)]
pub(crate) mod tests;
