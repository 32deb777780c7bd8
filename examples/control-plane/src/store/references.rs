//! Whether the hosts that a VirtualService names exist.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::resources::{Destination, Object, ObjectKey, ResourceError, Spec, VirtualService};

/// The full name of `host` as written in a rule of `namespace`: a name without a dot is a service of that namespace.
pub fn resolve_host(host: &str, namespace: &str, domain: &str) -> String {
    let host = host.to_ascii_lowercase();
    if host.contains('.') || host.contains('*') || host.contains(':') {
        host
    } else {
        format!("{host}.{namespace}.svc.{domain}")
    }
}

/// All hosts that exist: services and service entries.
#[derive(Debug, Default)]
pub(super) struct Hosts {
    exact: BTreeSet<String>,
    wildcards: Vec<String>,
}

impl Hosts {
    pub(super) fn of(objects: &BTreeMap<ObjectKey, Arc<Object>>, domain: &str) -> Self {
        let mut hosts = Self::default();
        for object in objects.values() {
            match &object.spec {
                Spec::Service(_) => {
                    hosts.exact.insert(format!("{}.{}.svc.{domain}", object.key.name, object.key.namespace));
                }
                Spec::ServiceEntry(entry) => {
                    for host in &entry.hosts {
                        match host.strip_prefix('*') {
                            Some(suffix) => hosts.wildcards.push(suffix.to_ascii_lowercase()),
                            None => {
                                hosts.exact.insert(host.to_ascii_lowercase());
                            }
                        }
                    }
                }
                _ => {}
            }
        }
        hosts
    }

    fn contains(&self, host: &str) -> bool {
        self.exact.contains(host) || self.wildcards.iter().any(|suffix| host.ends_with(suffix.as_str()))
    }

    /// The first host of `vs` that does not exist.
    ///
    /// Destinations must exist. A name in `hosts` may be one that no registry knows (clients may invent names), unless
    /// it is in the services' own domain, where an unknown name can only be a slip.
    pub(super) fn check(
        &self,
        object: &Object,
        vs: &VirtualService,
        domain: &str,
    ) -> Result<(), Box<ResourceError>> {
        let namespace = &object.key.namespace;
        let unknown = |field: String, host: &str, full: &str| {
            let message = format!("host {host:?} ({full}) does not exist");
            Err(ResourceError::about("reference", &object.origin, &object.key, field, message))
        };
        for (i, host) in vs.hosts.iter().enumerate() {
            let full = resolve_host(host, namespace, domain);
            let ours = full.ends_with(&format!(".svc.{domain}")) && !full.contains('*');
            if ours && !self.contains(&full) {
                return unknown(format!("spec.hosts[{i}]"), host, &full);
            }
        }
        for (field, destination) in destinations(vs) {
            let full = self.existing(&destination.host, namespace, domain);
            if let Err(full) = full {
                return unknown(format!("{field}.host"), &destination.host, &full);
            }
        }
        Ok(())
    }

    fn existing(&self, host: &str, namespace: &str, domain: &str) -> Result<(), String> {
        let full = resolve_host(host, namespace, domain);
        if self.contains(&full) { Ok(()) } else { Err(full) }
    }
}

/// Every destination of `vs` with the path of its field.
fn destinations(vs: &VirtualService) -> Vec<(String, &Destination)> {
    let mut all = Vec::new();
    for (i, route) in vs.http.iter().enumerate() {
        for (j, to) in route.route.iter().enumerate() {
            all.push((format!("spec.http[{i}].route[{j}].destination"), &to.destination));
        }
        all.extend(route.mirror.iter().map(|to| (format!("spec.http[{i}].mirror"), to)));
        for (j, to) in route.mirrors.iter().enumerate() {
            all.push((format!("spec.http[{i}].mirrors[{j}].destination"), &to.destination));
        }
    }
    let l4 = vs.tls.iter().map(|r| ("tls", &r.route)).enumerate();
    for (i, (kind, routes)) in l4.chain(vs.tcp.iter().map(|r| ("tcp", &r.route)).enumerate()) {
        for (j, to) in routes.iter().enumerate() {
            all.push((format!("spec.{kind}[{i}].route[{j}].destination"), &to.destination));
        }
    }
    all
}
