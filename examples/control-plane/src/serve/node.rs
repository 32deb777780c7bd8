//! What a client says about itself.

use std::collections::BTreeMap;

use mesh_xds::pb::envoy::config::core::v3::Node;
use prost_types::Struct;
use prost_types::value::Kind;

use crate::model::Mesh;
use crate::translate::Proxy;

/// A node, parsed: `sidecar~<ip>~<pod>.<namespace>~<dns domain>` and its metadata.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct NodeInfo {
    pub(super) id: String,
    pub(super) name: String,
    pub(super) namespace: String,
    pub(super) service_account: Option<String>,
    labels: BTreeMap<String, String>,
    ips: Vec<std::net::IpAddr>,
}

impl NodeInfo {
    /// Reads a node; the message says what is malformed.
    pub(super) fn parse(node: &Node) -> Result<Self, String> {
        let id = node.id.clone();
        let parts: Vec<&str> = id.split('~').collect();
        let [kind, ip, workload, _domain] = parts.as_slice() else {
            return Err(format!("node id {id:?} does not have four parts separated by '~'"));
        };
        if *kind != "sidecar" {
            return Err(format!("node id {id:?}: only sidecars are served, not {kind:?}"));
        }
        let Some((name, namespace)) = workload.rsplit_once('.') else {
            return Err(format!("node id {id:?}: {workload:?} is not <pod>.<namespace>"));
        };
        let metadata = node.metadata.as_ref();
        let claimed = metadata.and_then(|m| text(m, "NAMESPACE"));
        if claimed.as_deref().is_some_and(|claimed| claimed != namespace) {
            return Err(format!("node id {id:?}: metadata says namespace {claimed:?}"));
        }
        let mut ips: Vec<_> = metadata
            .and_then(|m| text(m, "INSTANCE_IPS"))
            .map(|all| all.split(',').filter_map(|ip| ip.trim().parse().ok()).collect())
            .unwrap_or_default();
        if ips.is_empty() {
            ips.extend(ip.parse::<std::net::IpAddr>().ok());
        }
        Ok(Self {
            name: (*name).to_owned(),
            namespace: namespace.to_owned(),
            service_account: metadata.and_then(|m| text(m, "SERVICE_ACCOUNT")),
            labels: metadata.map(|m| map(m, "LABELS")).unwrap_or_default(),
            ips,
            id,
        })
    }

    /// The proxy as translation sees it. What the registry knows of the pod beats what the node says of itself.
    pub(super) fn proxy(&self, mesh: &Mesh) -> Proxy {
        let known = mesh.workload(&self.namespace, &self.name);
        let labels = known.map_or_else(|| self.labels.clone(), |workload| workload.labels.clone());
        let ips = known.filter(|w| !w.ips.is_empty()).map_or_else(|| self.ips.clone(), |w| w.ips.clone());
        Proxy { namespace: self.namespace.clone(), name: self.name.clone(), labels, ips }
    }
}

fn text(metadata: &Struct, key: &str) -> Option<String> {
    match metadata.fields.get(key)?.kind.as_ref()? {
        Kind::StringValue(text) if !text.is_empty() => Some(text.clone()),
        _ => None,
    }
}

fn map(metadata: &Struct, key: &str) -> BTreeMap<String, String> {
    let Some(Kind::StructValue(inner)) = metadata.fields.get(key).and_then(|v| v.kind.as_ref()) else {
        return BTreeMap::new();
    };
    inner
        .fields
        .iter()
        .filter_map(|(key, value)| match value.kind.as_ref()? {
            Kind::StringValue(text) => Some((key.clone(), text.clone())),
            _ => None,
        })
        .collect()
}
