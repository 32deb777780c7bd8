//! ServiceEntry and WorkloadEntry (`networking.istio.io`).

use std::collections::BTreeMap;

use serde::Deserialize;

use super::scalar::null_as_default;

/// Hosts outside Kubernetes' registry.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServiceEntry {
    /// Host names; a leading `*.` is a wildcard.
    pub hosts: Vec<String>,
    /// Virtual addresses or CIDRs.
    #[serde(default, deserialize_with = "null_as_default")]
    pub addresses: Vec<String>,
    /// Ports.
    #[serde(default, deserialize_with = "null_as_default")]
    pub ports: Vec<ServiceEntryPort>,
    /// Inside or outside the mesh.
    #[serde(default)]
    pub location: Location,
    /// How endpoints are found.
    #[serde(default)]
    pub resolution: Resolution,
    /// Endpoints by hand.
    #[serde(default, deserialize_with = "null_as_default")]
    pub endpoints: Vec<WorkloadEntry>,
    /// Selects WorkloadEntries and Pods of the namespace.
    #[serde(default)]
    pub workload_selector: Option<WorkloadSelector>,
    /// Namespaces that see it.
    #[serde(default, deserialize_with = "null_as_default")]
    pub export_to: Vec<String>,
    /// Identities that its endpoints must present.
    #[serde(default, deserialize_with = "null_as_default")]
    pub subject_alt_names: Vec<String>,
}

/// A port of a [`ServiceEntry`].
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServiceEntryPort {
    /// The number.
    pub number: u16,
    /// The protocol, such as `HTTP`, `TLS`, `TCP`.
    #[serde(default)]
    pub protocol: String,
    /// The name.
    #[serde(default)]
    pub name: String,
    /// The endpoint's port; the number where absent.
    #[serde(default)]
    pub target_port: Option<u16>,
}

/// Whether a service is part of the mesh.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Location {
    /// Outside: no automatic mutual TLS.
    #[default]
    MeshExternal,
    /// Inside.
    MeshInternal,
}

/// How a service's endpoints are found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Resolution {
    /// The connection's own destination.
    #[default]
    None,
    /// Listed addresses.
    Static,
    /// Names resolved by the proxy; all answers are endpoints.
    Dns,
    /// Names resolved by the proxy; one answer at a time.
    DnsRoundRobin,
}

/// `workloadSelector: {labels: {...}}`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorkloadSelector {
    /// Labels that must all be present.
    #[serde(default, deserialize_with = "null_as_default")]
    pub labels: BTreeMap<String, String>,
}

/// One endpoint, inline or as an object of its own.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct WorkloadEntry {
    /// Address or host name.
    #[serde(default)]
    pub address: String,
    /// Port by the service port's name.
    #[serde(default, deserialize_with = "null_as_default")]
    pub ports: BTreeMap<String, u16>,
    /// Labels.
    #[serde(default, deserialize_with = "null_as_default")]
    pub labels: BTreeMap<String, String>,
    /// Network of the endpoint (single network supported; kept for display).
    #[serde(default)]
    pub network: String,
    /// `region/zone/subzone`.
    #[serde(default)]
    pub locality: String,
    /// Load-balancing weight; 0 means 1.
    #[serde(default)]
    pub weight: u32,
    /// Its service account, if it has an identity.
    #[serde(default)]
    pub service_account: String,
}
