//! PeerAuthentication at its four levels; the most specific set value wins, policies of one level never merge.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::Age;
use crate::resources::{MtlsMode, PeerAuthentication};

/// All PeerAuthentications, ready for questions.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PeerPolicies {
    mesh: MtlsMode,
    namespaces: HashMap<String, MtlsMode>,
    workloads: HashMap<String, Vec<Arc<PeerAuthentication>>>,
}

impl PeerPolicies {
    /// From all policies as (age, namespace, object); only the oldest of a level counts.
    pub fn new(mut all: Vec<(Age, String, Arc<PeerAuthentication>)>, root_namespace: &str) -> Self {
        all.sort_by(|a, b| a.0.cmp(&b.0));
        let mut this = Self::default();
        let mut mesh_set = false;
        for (_, namespace, policy) in all {
            let selects = policy.selector.as_ref().is_some_and(|s| !s.match_labels.is_empty());
            match (selects, namespace == root_namespace) {
                // A selector in the root namespace has no workload level to act on.
                (true, true) => {}
                (true, false) => this.workloads.entry(namespace).or_default().push(policy),
                (false, true) => {
                    if !std::mem::replace(&mut mesh_set, true) {
                        this.mesh = policy.mode();
                    }
                }
                (false, false) => {
                    this.namespaces.entry(namespace).or_insert_with(|| policy.mode());
                }
            }
        }
        this
    }

    /// Mode of a namespace without regard to workloads: what a client may assume of a service.
    pub fn namespace_mode(&self, namespace: &str) -> MtlsMode {
        let or = |mode: MtlsMode, wider: MtlsMode| if mode == MtlsMode::Unset { wider } else { mode };
        let namespace = self.namespaces.get(namespace).copied().unwrap_or_default();
        or(or(namespace, self.mesh), MtlsMode::Permissive)
    }

    /// Mode of a workload, on one of its ports if given.
    pub fn mode(&self, namespace: &str, labels: &BTreeMap<String, String>, port: Option<u16>) -> MtlsMode {
        let wider = self.namespace_mode(namespace);
        let Some(policy) = self.of_workload(namespace, labels) else { return wider };
        let on_port =
            port.and_then(|port| policy.port_modes().find(|(p, _)| *p == port)).map(|(_, mode)| mode);
        [on_port.unwrap_or_default(), policy.mode(), wider]
            .into_iter()
            .find(|mode| *mode != MtlsMode::Unset)
            .unwrap_or(MtlsMode::Permissive)
    }

    /// Ports of a workload that have a mode of their own.
    pub fn overridden_ports(&self, namespace: &str, labels: &BTreeMap<String, String>) -> BTreeSet<u16> {
        self.of_workload(namespace, labels)
            .map(|policy| policy.port_modes().map(|(port, _)| port).collect())
            .unwrap_or_default()
    }

    /// Whether both say the same where no namespace says anything.
    pub fn same_default(&self, other: &Self) -> bool {
        self.mesh == other.mesh
    }

    /// The namespaces for which the two say different things, the default of the mesh aside.
    pub fn differing(&self, other: &Self) -> BTreeSet<String> {
        let all = [self, other].into_iter().flat_map(|p| p.namespaces.keys().chain(p.workloads.keys()));
        let differs = |namespace: &&String| {
            self.namespaces.get(*namespace) != other.namespaces.get(*namespace)
                || self.workloads.get(*namespace) != other.workloads.get(*namespace)
        };
        all.filter(differs).cloned().collect()
    }

    fn of_workload(&self, namespace: &str, labels: &BTreeMap<String, String>) -> Option<&PeerAuthentication> {
        let policies = self.workloads.get(namespace)?;
        let matches = |p: &&Arc<PeerAuthentication>| p.selector.as_ref().is_some_and(|s| s.matches(labels));
        policies.iter().find(matches).map(|policy| &**policy)
    }
}
