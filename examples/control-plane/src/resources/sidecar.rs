//! Sidecar (`networking.istio.io`): which services a workload's proxy gets to see.

use serde::Deserialize;

use super::scalar::null_as_default;
use super::service_entry::WorkloadSelector;

/// Scope of the proxies that it selects. Only what is read here is accepted: `ingress` listeners and egress
/// listeners with a port of their own are refused rather than half-applied.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Sidecar {
    /// Workloads; absent means the namespace's default.
    #[serde(default)]
    pub workload_selector: Option<WorkloadSelector>,
    /// What may be reached.
    #[serde(default, deserialize_with = "null_as_default")]
    pub egress: Vec<EgressListener>,
    /// What happens to unknown destinations.
    #[serde(default)]
    pub outbound_traffic_policy: Option<OutboundTrafficPolicy>,
}

/// One entry of `egress`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EgressListener {
    /// `namespace/dnsName` patterns.
    #[serde(default)]
    pub hosts: Vec<String>,
}

/// Policy for unknown destinations.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OutboundTrafficPolicy {
    /// The mode.
    #[serde(default)]
    pub mode: OutboundMode,
}

/// Mode of [`OutboundTrafficPolicy`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum OutboundMode {
    /// Pass them through.
    #[default]
    AllowAny,
    /// Refuse them.
    RegistryOnly,
}
