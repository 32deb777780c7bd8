//! From the store's objects to the indexed [`Mesh`].

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use super::{
    AccessRule, Age, Discovery, Endpoint, Mesh, MeshSettings, PeerPolicies, Protocol, RouteRule, ServedIndex,
    Service, ServicePort, SidecarRule, TrafficRule, Workload,
};
use crate::resources::{
    self, EndpointSlice, IntOrString, Location, MtlsMode, Object, Resolution, ServiceEntry, Spec,
    WorkloadEntry,
};
use crate::store::{State, resolve_host};

const TLS_MODE_LABEL: &str = "security.istio.io/tlsMode";
const SLICE_SERVICE_LABEL: &str = "kubernetes.io/service-name";

pub(super) fn build(state: &State, settings: MeshSettings) -> Mesh {
    let mut builder = Builder::collect(state, &settings);
    let mut services = Vec::new();
    for (object, service) in std::mem::take(&mut builder.services) {
        services.extend(builder.kubernetes_service(object, service));
    }
    for (object, entry) in std::mem::take(&mut builder.entries) {
        services.extend(builder.service_entry(object, entry));
    }
    services.sort_by(|a, b| a.age.cmp(&b.age));
    let services: Vec<Arc<Service>> = services.into_iter().map(Arc::new).collect();
    let mut by_host = HashMap::new();
    for (index, service) in services.iter().enumerate() {
        by_host.entry(service.host.clone()).or_insert(index);
    }
    let mut served = ServedIndex::new();
    for (index, service) in services.iter().enumerate() {
        for (port, endpoints) in &service.endpoints {
            for endpoint in endpoints {
                let key = match &endpoint.workload {
                    Some(workload) => (workload.namespace.clone(), workload.name.clone()),
                    None => (String::new(), endpoint.address.clone()),
                };
                served.entry(key).or_default().push((index, *port, endpoint.port));
            }
        }
    }
    let Builder { mut mesh, workloads, .. } = builder;
    mesh.routes.sort_by(|a, b| a.age.cmp(&b.age));
    mesh.traffic.sort_by(|a, b| a.age.cmp(&b.age));
    mesh.sidecars.sort_by(|a, b| a.age.cmp(&b.age));
    Mesh {
        settings,
        services,
        by_host,
        served,
        workloads: workloads.into_iter().map(|w| ((w.namespace.clone(), w.name.clone()), w)).collect(),
        ..mesh
    }
}

struct Builder<'s> {
    settings: &'s MeshSettings,
    mesh: Mesh,
    services: Vec<(&'s Object, &'s resources::Service)>,
    entries: Vec<(&'s Object, &'s ServiceEntry)>,
    workloads: Vec<Arc<Workload>>,
    /// Workloads by namespace and one of their labels: selection looks at the rarest label only.
    by_label: HashMap<(String, String, String), Vec<Arc<Workload>>>,
    workload_entries: Vec<(&'s Object, &'s WorkloadEntry)>,
    by_ip: HashMap<IpAddr, Arc<Workload>>,
    slices: HashMap<(String, String), Vec<&'s EndpointSlice>>,
    endpoints: HashMap<(String, String), &'s resources::Endpoints>,
}

impl<'s> Builder<'s> {
    fn collect(state: &'s State, settings: &'s MeshSettings) -> Self {
        let mut this = Builder {
            settings,
            mesh: Mesh::default(),
            services: Vec::new(),
            entries: Vec::new(),
            workloads: Vec::new(),
            by_label: HashMap::new(),
            workload_entries: Vec::new(),
            by_ip: HashMap::new(),
            slices: HashMap::new(),
            endpoints: HashMap::new(),
        };
        let mut peers = Vec::new();
        for object in state.objects.values() {
            let (namespace, name) = (object.key.namespace.clone(), object.key.name.clone());
            if !namespace.is_empty() {
                this.mesh.namespaces.insert(namespace.clone());
            }
            let age = || Age::of(&object.meta, &object.origin, &namespace, &name);
            let full = |host: &str| resolve_host(host, &namespace, &settings.domain);
            match &object.spec {
                Spec::Namespace => {
                    this.mesh.namespaces.insert(name.clone());
                }
                // Nodes and ProxyConfigs matter to the injector alone.
                Spec::ServiceAccount | Spec::Node(_) | Spec::ProxyConfig(_) => {}
                Spec::Service(service) => this.services.push((object, service)),
                Spec::Pod(pod) => this.add_pod(object, pod),
                Spec::Endpoints(endpoints) => {
                    this.endpoints.insert((namespace, name), endpoints);
                }
                Spec::EndpointSlice(slice) => {
                    if let Some(service) = object.meta.labels.get(SLICE_SERVICE_LABEL) {
                        this.slices.entry((namespace, service.clone())).or_default().push(slice);
                    }
                }
                Spec::ServiceEntry(entry) => this.entries.push((object, entry)),
                Spec::WorkloadEntry(entry) => this.workload_entries.push((object, entry)),
                Spec::VirtualService(spec) => {
                    if spec.gateways.is_empty() || spec.gateways.iter().any(|g| g == "mesh") {
                        let hosts = spec.hosts.iter().map(|host| full(host)).collect();
                        let (age, spec) = (age(), Arc::clone(spec));
                        this.mesh.routes.push(RouteRule { namespace, name, age, hosts, spec });
                    }
                }
                Spec::DestinationRule(spec) => {
                    let (age, host, spec) = (age(), full(&spec.host), Arc::clone(spec));
                    this.mesh.traffic.push(TrafficRule { namespace, name, age, host, spec });
                }
                Spec::Sidecar(spec) => {
                    let (age, spec) = (age(), Arc::clone(spec));
                    this.mesh.sidecars.push(SidecarRule { namespace, age, spec });
                }
                Spec::PeerAuthentication(spec) => peers.push((age(), namespace.clone(), Arc::clone(spec))),
                Spec::AuthorizationPolicy(spec) => {
                    let dry_run =
                        object.meta.annotations.get("istio.io/dry-run").is_some_and(|v| v == "true");
                    let spec = Arc::clone(spec);
                    this.mesh.access.push(AccessRule { namespace, name, dry_run, spec });
                }
            }
        }
        this.mesh.peers = PeerPolicies::new(peers, &settings.root_namespace);
        this
    }

    fn add_pod(&mut self, object: &Object, pod: &resources::Pod) {
        let status = &pod.status;
        let addresses = status.pod_ips.iter().map(|ip| ip.ip.as_str()).chain(status.pod_ip.as_deref());
        let mut ips: Vec<IpAddr> = Vec::new();
        for ip in addresses.filter_map(|ip| ip.parse().ok()) {
            if !ips.contains(&ip) {
                ips.push(ip);
            }
        }
        let containers = pod.spec.containers.iter().chain(&pod.spec.init_containers);
        let named_ports = containers
            .flat_map(|c| &c.ports)
            .filter_map(|port| Some((port.name.clone()?, port.container_port)))
            .collect();
        let labels = object.meta.labels.clone();
        let workload = Arc::new(Workload {
            namespace: object.key.namespace.clone(),
            name: object.key.name.clone(),
            service_account: pod.spec.service_account_name.clone().unwrap_or_else(|| "default".to_owned()),
            ips,
            ready: status.conditions.iter().any(|c| c.type_ == "Ready" && c.status == "True"),
            has_sidecar: labels.get(TLS_MODE_LABEL).is_some_and(|mode| mode == "istio"),
            terminating: object.meta.deletion_timestamp.is_some()
                || matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")),
            named_ports,
            host_network: pod.spec.host_network,
            labels,
        });
        for (key, value) in &workload.labels {
            let index = (workload.namespace.clone(), key.clone(), value.clone());
            self.by_label.entry(index).or_default().push(Arc::clone(&workload));
        }
        if !workload.host_network && !workload.terminating {
            for ip in &workload.ips {
                self.by_ip.insert(*ip, Arc::clone(&workload));
            }
        }
        self.workloads.push(workload);
    }

    fn selected(&self, namespace: &str, selector: &BTreeMap<String, String>) -> Vec<&Arc<Workload>> {
        let candidates = selector
            .iter()
            .map(|(key, value)| {
                let index = (namespace.to_owned(), key.clone(), value.clone());
                self.by_label.get(&index).map_or(&[][..], Vec::as_slice)
            })
            .min_by_key(|candidates| candidates.len());
        let Some(candidates) = candidates else { return Vec::new() };
        candidates.iter().filter(|w| resources::scalar_subset(selector, &w.labels)).collect()
    }

    fn kubernetes_service(&self, object: &Object, service: &resources::Service) -> Option<Service> {
        let spec = &service.spec;
        // An alias of another name: reached by that name; it has no cluster of its own.
        if spec.type_.as_deref() == Some("ExternalName") {
            return None;
        }
        let (namespace, name) = (&object.key.namespace, &object.key.name);
        let headless = spec.cluster_ip.as_deref() == Some("None");
        let mut vips: Vec<IpAddr> = Vec::new();
        for ip in spec.cluster_ip.iter().chain(&spec.cluster_ips).filter_map(|ip| ip.parse().ok()) {
            if !vips.contains(&ip) {
                vips.push(ip);
            }
        }
        let ports: Vec<ServicePort> = spec
            .ports
            .iter()
            .map(|port| {
                let name = port.name.clone().unwrap_or_default();
                ServicePort {
                    protocol: Protocol::select(
                        port.protocol.as_deref(),
                        port.app_protocol.as_deref(),
                        &name,
                        port.port,
                    ),
                    target: port.target_port.clone().unwrap_or(IntOrString::Int(port.port)),
                    port: port.port,
                    name,
                }
            })
            .collect();
        let mut result = Service {
            host: format!("{name}.{namespace}.svc.{}", self.settings.domain),
            name: name.clone(),
            namespace: namespace.clone(),
            age: Age::of(&object.meta, &object.origin, namespace, name),
            vips,
            cidrs: Vec::new(),
            ports,
            discovery: if headless { Discovery::OriginalDst } else { Discovery::Eds },
            external: false,
            kubernetes: true,
            publish_not_ready: spec.publish_not_ready_addresses,
            export_to: list_annotation(object, "networking.istio.io/exportTo"),
            identities: BTreeSet::new(),
            selector: spec.selector.clone(),
            endpoints: BTreeMap::new(),
        };
        for account in list_annotation(object, "alpha.istio.io/kubernetes-serviceaccounts") {
            result.identities.insert(self.settings.spiffe(namespace, &account));
        }
        result.identities.extend(list_annotation(object, "alpha.istio.io/canonical-serviceaccounts"));
        self.fill_endpoints(&mut result, spec);
        Some(result)
    }

    fn fill_endpoints(&self, service: &mut Service, spec: &resources::ServiceSpec) {
        let key = (service.namespace.clone(), service.name.clone());
        if let Some(slices) = self.slices.get(&key) {
            for slice in slices {
                let ready = |e: &resources::EndpointSliceEndpoint| {
                    e.conditions.get("ready").copied().flatten().unwrap_or(true)
                };
                let terminating = |e: &resources::EndpointSliceEndpoint| {
                    e.conditions.get("terminating").copied().flatten().unwrap_or(false)
                };
                let addresses = slice
                    .endpoints
                    .iter()
                    .filter(|e| !terminating(e))
                    .flat_map(|e| e.addresses.iter().map(move |a| (a.as_str(), ready(e))));
                self.by_address(service, &slice.ports, addresses);
            }
        } else if let Some(endpoints) = self.endpoints.get(&key) {
            for subset in &endpoints.subsets {
                let ready = subset.addresses.iter().map(|a| (a.ip.as_str(), true));
                let not_ready = subset.not_ready_addresses.iter().map(|a| (a.ip.as_str(), false));
                self.by_address(service, &subset.ports, ready.chain(not_ready));
            }
        } else if !spec.selector.is_empty() {
            for workload in self.selected(&service.namespace, &spec.selector) {
                service
                    .identities
                    .insert(self.settings.spiffe(&workload.namespace, &workload.service_account));
                self.add_workload(service, workload);
            }
            for (object, entry) in &self.workload_entries {
                let matches = object.key.namespace == service.namespace
                    && resources::scalar_subset(&spec.selector, &entry.labels);
                if matches {
                    self.add_entry(service, &object.key.namespace, entry);
                }
            }
        }
        for endpoints in service.endpoints.values_mut() {
            endpoints
                .sort_by(|a, b| (&a.locality, &a.address, a.port).cmp(&(&b.locality, &b.address, b.port)));
            endpoints.dedup_by(|a, b| (&a.address, a.port) == (&b.address, b.port));
        }
    }

    fn add_workload(&self, service: &mut Service, workload: &Arc<Workload>) {
        let Some(ip) = workload.ips.first().filter(|_| !workload.terminating) else { return };
        let labels = Arc::new(workload.labels.clone());
        for port in &service.ports {
            let target = match &port.target {
                IntOrString::Int(number) => Some(*number),
                IntOrString::String(name) => workload.named_ports.get(name).copied(),
            };
            let Some(target) = target else { continue };
            service.endpoints.entry(port.port).or_default().push(Endpoint {
                address: ip.to_string(),
                port: target,
                healthy: workload.ready || service.publish_not_ready,
                mtls: self.endpoint_mtls(workload, target),
                labels: Arc::clone(&labels),
                workload: Some(Arc::clone(workload)),
                locality: locality(&workload.labels),
                weight: 1,
            });
        }
    }

    fn endpoint_mtls(&self, workload: &Workload, port: u16) -> bool {
        workload.has_sidecar
            && self.mesh.peers.mode(&workload.namespace, &workload.labels, Some(port)) != MtlsMode::Disable
    }

    fn by_address<'a>(
        &self,
        service: &mut Service,
        ports: &[resources::EndpointPort],
        addresses: impl Iterator<Item = (&'a str, bool)>,
    ) {
        for (address, ready) in addresses {
            let workload = address.parse().ok().and_then(|ip: IpAddr| self.by_ip.get(&ip));
            if let Some(workload) = workload {
                service
                    .identities
                    .insert(self.settings.spiffe(&workload.namespace, &workload.service_account));
            }
            for port in &service.ports {
                let target = ports.iter().find(|p| p.name == port.name).map(|p| p.port);
                let Some(target) = target else { continue };
                service.endpoints.entry(port.port).or_default().push(Endpoint {
                    address: address.to_owned(),
                    port: target,
                    healthy: ready || service.publish_not_ready,
                    mtls: workload.is_some_and(|w| self.endpoint_mtls(w, target)),
                    labels: Arc::new(workload.map(|w| w.labels.clone()).unwrap_or_default()),
                    workload: workload.cloned(),
                    locality: workload.map(|w| locality(&w.labels)).unwrap_or_default(),
                    weight: 1,
                });
            }
        }
    }

    fn add_entry(&self, service: &mut Service, namespace: &str, entry: &WorkloadEntry) {
        let mtls = match entry.labels.get(TLS_MODE_LABEL) {
            Some(mode) => mode == "istio",
            None => !entry.service_account.is_empty(),
        };
        if !entry.service_account.is_empty() {
            service.identities.insert(self.settings.spiffe(namespace, &entry.service_account));
        }
        for port in &service.ports {
            let target = match &port.target {
                IntOrString::Int(number) => *number,
                IntOrString::String(_) => port.port,
            };
            let number = entry.ports.get(&port.name).copied().unwrap_or(target);
            let permitted = self.mesh.peers.mode(namespace, &entry.labels, Some(number)) != MtlsMode::Disable;
            service.endpoints.entry(port.port).or_default().push(Endpoint {
                address: entry.address.clone(),
                port: number,
                healthy: true,
                mtls: mtls && permitted,
                labels: Arc::new(entry.labels.clone()),
                workload: None,
                locality: entry.locality.clone(),
                weight: entry.weight.max(1),
            });
        }
    }

    fn service_entry(&self, object: &Object, entry: &ServiceEntry) -> Vec<Service> {
        let (namespace, name) = (&object.key.namespace, &object.key.name);
        let discovery = match entry.resolution {
            Resolution::None => Discovery::OriginalDst,
            Resolution::Static => Discovery::Eds,
            Resolution::Dns => Discovery::StrictDns,
            Resolution::DnsRoundRobin => Discovery::LogicalDns,
        };
        let nets: Vec<_> = entry.addresses.iter().filter_map(|a| resources::parse_cidr(a)).collect();
        let single = |net: &ipnet::IpNet| net.prefix_len() == net.max_prefix_len();
        entry
            .hosts
            .iter()
            .map(|host| {
                let ports = entry
                    .ports
                    .iter()
                    .map(|port| ServicePort {
                        name: port.name.clone(),
                        port: port.number,
                        protocol: Protocol::parse(&port.protocol)
                            .unwrap_or_else(|| Protocol::select(None, None, &port.name, port.number)),
                        target: IntOrString::Int(port.target_port.unwrap_or(port.number)),
                    })
                    .collect();
                let mut service = Service {
                    host: host.to_ascii_lowercase(),
                    name: name.clone(),
                    namespace: namespace.clone(),
                    age: Age::of(&object.meta, &object.origin, namespace, name),
                    vips: nets.iter().filter(|net| single(net)).map(ipnet::IpNet::addr).collect(),
                    cidrs: nets.iter().filter(|net| !single(net)).copied().collect(),
                    ports,
                    discovery,
                    external: entry.location == Location::MeshExternal,
                    kubernetes: false,
                    publish_not_ready: false,
                    export_to: entry.export_to.clone(),
                    identities: entry.subject_alt_names.iter().cloned().collect(),
                    selector: entry.workload_selector.as_ref().map(|s| s.labels.clone()).unwrap_or_default(),
                    endpoints: BTreeMap::new(),
                };
                for endpoint in &entry.endpoints {
                    self.add_entry(&mut service, namespace, endpoint);
                }
                if let Some(selector) = entry.workload_selector.as_ref().filter(|s| !s.labels.is_empty()) {
                    for workload in self.selected(namespace, &selector.labels) {
                        let id = self.settings.spiffe(&workload.namespace, &workload.service_account);
                        service.identities.insert(id);
                        self.add_workload(&mut service, workload);
                    }
                    for (object, entry) in &self.workload_entries {
                        let matches = object.key.namespace == *namespace
                            && resources::scalar_subset(&selector.labels, &entry.labels);
                        if matches {
                            self.add_entry(&mut service, namespace, entry);
                        }
                    }
                }
                let by_name = matches!(discovery, Discovery::StrictDns | Discovery::LogicalDns);
                if by_name && service.endpoints.is_empty() && !service.host.starts_with('*') {
                    let own = WorkloadEntry { address: service.host.clone(), ..WorkloadEntry::default() };
                    self.add_entry(&mut service, namespace, &own);
                }
                service
            })
            .collect()
    }
}

fn locality(labels: &BTreeMap<String, String>) -> String {
    labels.get("istio-locality").map(|l| l.replace('.', "/")).unwrap_or_default()
}

fn list_annotation(object: &Object, name: &str) -> Vec<String> {
    let value = object.meta.annotations.get(name).map(String::as_str).unwrap_or_default();
    value.split(',').map(str::trim).filter(|part| !part.is_empty()).map(str::to_owned).collect()
}
