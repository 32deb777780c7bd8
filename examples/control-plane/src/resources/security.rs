//! PeerAuthentication and AuthorizationPolicy (`security.istio.io`).

use std::collections::BTreeMap;

use serde::Deserialize;

use super::scalar::{LabelSelector, null_as_default};

/// Who may connect how: mutual TLS, plaintext or both.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PeerAuthentication {
    /// Workloads it applies to; absent means the namespace (or the mesh in the root namespace).
    #[serde(default)]
    pub selector: Option<LabelSelector>,
    /// The mode for all ports.
    #[serde(default)]
    pub mtls: Option<Mtls>,
    /// Modes by workload port.
    #[serde(default, deserialize_with = "null_as_default")]
    pub port_level_mtls: BTreeMap<String, Mtls>,
}

impl PeerAuthentication {
    /// Mutual TLS only, for everything.
    pub fn strict() -> Self {
        Self { mtls: Some(Mtls { mode: MtlsMode::Strict }), ..Self::default() }
    }

    /// The mode for all ports; [`MtlsMode::Unset`] where none is given.
    pub fn mode(&self) -> MtlsMode {
        self.mtls.as_ref().map_or(MtlsMode::Unset, |mtls| mtls.mode)
    }

    /// Modes by workload port (keys have been validated).
    pub fn port_modes(&self) -> impl Iterator<Item = (u16, MtlsMode)> + '_ {
        self.port_level_mtls.iter().filter_map(|(port, mtls)| Some((port.parse().ok()?, mtls.mode)))
    }
}

/// `mtls: {mode: ...}`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mtls {
    /// The mode.
    #[serde(default)]
    pub mode: MtlsMode,
}

/// A PeerAuthentication mode.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Deserialize, serde::Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum MtlsMode {
    /// Inherit from the wider level.
    #[default]
    Unset,
    /// Plaintext only.
    Disable,
    /// Both.
    Permissive,
    /// Mutual TLS only.
    Strict,
}

/// Who may do what.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AuthorizationPolicy {
    /// Workloads it applies to; absent means the whole namespace (or the mesh in the root namespace).
    #[serde(default)]
    pub selector: Option<LabelSelector>,
    /// Gateways and waypoints; a policy with targets does not concern sidecars.
    #[serde(default)]
    pub target_ref: Option<serde_json::Value>,
    /// As `targetRef`, several.
    #[serde(default, deserialize_with = "null_as_default")]
    pub target_refs: Vec<serde_json::Value>,
    /// The policy matches if any rule does; no rules match nothing.
    #[serde(default, deserialize_with = "null_as_default")]
    pub rules: Vec<Rule>,
    /// What a match means.
    #[serde(default)]
    pub action: Action,
    /// The external authorizer of a CUSTOM policy.
    #[serde(default)]
    pub provider: Option<Provider>,
}

/// The external authorizer of a CUSTOM policy.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Provider {
    /// Name in the mesh configuration.
    #[serde(default)]
    pub name: String,
}

/// What a matching policy does.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize, serde::Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Action {
    /// Permit; everything else is refused once any ALLOW policy exists.
    #[default]
    Allow,
    /// Refuse.
    Deny,
    /// Log only.
    Audit,
    /// Ask an external authorizer.
    Custom,
}

/// One rule: any `from`, any `to`, all of `when`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Sources; empty means anyone.
    #[serde(default, deserialize_with = "null_as_default")]
    pub from: Vec<From>,
    /// Operations; empty means anything.
    #[serde(default, deserialize_with = "null_as_default")]
    pub to: Vec<To>,
    /// Further conditions.
    #[serde(default, deserialize_with = "null_as_default")]
    pub when: Vec<Condition>,
}

/// `from: [{source: ...}]`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct From {
    /// The source.
    #[serde(default, deserialize_with = "null_as_default")]
    pub source: Source,
}

/// `to: [{operation: ...}]`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct To {
    /// The operation.
    #[serde(default, deserialize_with = "null_as_default")]
    pub operation: Operation,
}

/// Fields of a source; all given ones must match, values of one field are alternatives.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[allow(missing_docs, reason = "the fields are Istio's, documented there")]
pub struct Source {
    pub principals: Vec<String>,
    pub not_principals: Vec<String>,
    pub request_principals: Vec<String>,
    pub not_request_principals: Vec<String>,
    pub namespaces: Vec<String>,
    pub not_namespaces: Vec<String>,
    pub service_accounts: Vec<String>,
    pub not_service_accounts: Vec<String>,
    pub ip_blocks: Vec<String>,
    pub not_ip_blocks: Vec<String>,
    pub remote_ip_blocks: Vec<String>,
    pub not_remote_ip_blocks: Vec<String>,
}

/// Fields of an operation; all given ones must match, values of one field are alternatives.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[allow(missing_docs, reason = "the fields are Istio's, documented there")]
pub struct Operation {
    pub hosts: Vec<String>,
    pub not_hosts: Vec<String>,
    pub ports: Vec<String>,
    pub not_ports: Vec<String>,
    pub methods: Vec<String>,
    pub not_methods: Vec<String>,
    pub paths: Vec<String>,
    pub not_paths: Vec<String>,
}

/// One `when` condition.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Condition {
    /// The attribute.
    pub key: String,
    /// Alternatives that may match.
    #[serde(default, deserialize_with = "null_as_default")]
    pub values: Vec<String>,
    /// Values none of which may match.
    #[serde(default, deserialize_with = "null_as_default")]
    pub not_values: Vec<String>,
}
