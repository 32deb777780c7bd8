//! Identity, metadata, origin and errors common to every kind.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// The kinds that take part in translation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub enum Kind {
    /// `v1`.
    Namespace,
    /// `v1`.
    ServiceAccount,
    /// `v1`.
    Service,
    /// `v1`.
    Pod,
    /// `v1`.
    Endpoints,
    /// `v1`; only the kubelet's version matters.
    Node,
    /// `discovery.k8s.io`.
    EndpointSlice,
    /// `networking.istio.io`.
    VirtualService,
    /// `networking.istio.io`.
    DestinationRule,
    /// `networking.istio.io`.
    ServiceEntry,
    /// `networking.istio.io`.
    WorkloadEntry,
    /// `networking.istio.io`.
    Sidecar,
    /// `networking.istio.io`; read by the injector.
    ProxyConfig,
    /// `security.istio.io`.
    PeerAuthentication,
    /// `security.istio.io`.
    AuthorizationPolicy,
}

impl Kind {
    /// The kind of an `apiVersion` and `kind`, where it is one of ours.
    pub fn of(api_version: &str, kind: &str) -> Option<Self> {
        let group = api_version.split_once('/').map_or("", |(group, _)| group);
        Some(match (group, kind) {
            ("", "Namespace") => Self::Namespace,
            ("", "ServiceAccount") => Self::ServiceAccount,
            ("", "Service") => Self::Service,
            ("", "Pod") => Self::Pod,
            ("", "Endpoints") => Self::Endpoints,
            ("", "Node") => Self::Node,
            ("discovery.k8s.io", "EndpointSlice") => Self::EndpointSlice,
            ("networking.istio.io", "VirtualService") => Self::VirtualService,
            ("networking.istio.io", "DestinationRule") => Self::DestinationRule,
            ("networking.istio.io", "ServiceEntry") => Self::ServiceEntry,
            ("networking.istio.io", "WorkloadEntry") => Self::WorkloadEntry,
            ("networking.istio.io", "Sidecar") => Self::Sidecar,
            ("networking.istio.io", "ProxyConfig") => Self::ProxyConfig,
            ("security.istio.io", "PeerAuthentication") => Self::PeerAuthentication,
            ("security.istio.io", "AuthorizationPolicy") => Self::AuthorizationPolicy,
            _ => return None,
        })
    }

    /// The API versions in use for this kind.
    pub fn versions(self) -> &'static [&'static str] {
        match self {
            Self::Namespace
            | Self::ServiceAccount
            | Self::Service
            | Self::Pod
            | Self::Endpoints
            | Self::Node => &["v1"],
            Self::ProxyConfig => &["v1beta1"],
            Self::EndpointSlice => &["v1", "v1beta1"],
            Self::PeerAuthentication | Self::AuthorizationPolicy => &["v1", "v1beta1"],
            _ => &["v1", "v1beta1", "v1alpha3"],
        }
    }

    /// Whether objects of this kind live outside any namespace.
    pub fn cluster_scoped(self) -> bool {
        matches!(self, Self::Namespace | Self::Node)
    }

    /// The kind's name as written in YAML.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Namespace => "Namespace",
            Self::ServiceAccount => "ServiceAccount",
            Self::Service => "Service",
            Self::Pod => "Pod",
            Self::Endpoints => "Endpoints",
            Self::Node => "Node",
            Self::EndpointSlice => "EndpointSlice",
            Self::VirtualService => "VirtualService",
            Self::DestinationRule => "DestinationRule",
            Self::ServiceEntry => "ServiceEntry",
            Self::WorkloadEntry => "WorkloadEntry",
            Self::Sidecar => "Sidecar",
            Self::ProxyConfig => "ProxyConfig",
            Self::PeerAuthentication => "PeerAuthentication",
            Self::AuthorizationPolicy => "AuthorizationPolicy",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What makes an object the same object over time.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct ObjectKey {
    /// Its kind.
    pub kind: Kind,
    /// Its namespace; empty for cluster-scoped kinds.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            write!(f, "{} {}", self.kind, self.name)
        } else {
            write!(f, "{} {}/{}", self.kind, self.namespace, self.name)
        }
    }
}

/// `metadata` as far as it matters here. Unknown keys are refused: a misspelt `label` selects nothing.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Metadata {
    /// The object's name.
    #[serde(default)]
    pub name: String,
    /// The object's namespace; `default` where a namespaced object names none.
    #[serde(default)]
    pub namespace: String,
    /// Labels.
    #[serde(default, deserialize_with = "super::scalar::null_as_default")]
    pub labels: BTreeMap<String, String>,
    /// Annotations.
    #[serde(default, deserialize_with = "super::scalar::null_as_default")]
    pub annotations: BTreeMap<String, String>,
    /// RFC 3339 time of creation; decides who is oldest where present.
    #[serde(default)]
    pub creation_timestamp: Option<String>,
    /// Set while the object is being deleted.
    #[serde(default)]
    pub deletion_timestamp: Option<String>,
    /// The API server's identifier.
    #[serde(default)]
    pub uid: Option<String>,
    #[serde(default)]
    generate_name: Ignored,
    #[serde(default)]
    resource_version: Ignored,
    #[serde(default)]
    generation: Ignored,
    #[serde(default)]
    deletion_grace_period_seconds: Ignored,
    #[serde(default)]
    owner_references: Ignored,
    #[serde(default)]
    finalizers: Ignored,
    #[serde(default)]
    managed_fields: Ignored,
    #[serde(default)]
    self_link: Ignored,
}

/// A field that is known, allowed and without meaning here.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Ignored;

impl<'de> Deserialize<'de> for Ignored {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        serde::de::IgnoredAny::deserialize(deserializer).map(|_| Self)
    }
}

/// Where a document begins.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Origin {
    /// The file as it was found.
    pub file: Arc<str>,
    /// Line of the document's first content, from 1.
    pub line: u64,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file, self.line)
    }
}

/// Why one resource was not applied.
#[derive(Debug, Clone, PartialEq, Serialize, thiserror::Error)]
#[error("{file}:{line}: {kind} {namespace}/{name}: {field}: {message}")]
#[non_exhaustive]
pub struct ResourceError {
    /// A stable label: `syntax`, `schema`, `value`, `reference`, `duplicate`, `unsupported`, `unreadable`.
    pub reason: &'static str,
    /// The file.
    pub file: String,
    /// Line in the file, from 1.
    pub line: u64,
    /// The kind as written; empty when unreadable.
    pub kind: String,
    /// The namespace; empty when unknown.
    pub namespace: String,
    /// The name; empty when unknown.
    pub name: String,
    /// Path of the field, such as `spec.http[0].route`; empty when it concerns the document.
    pub field: String,
    /// What is wrong.
    pub message: String,
}

impl ResourceError {
    /// An error about `object` as a whole or one of its fields.
    pub fn about(
        reason: &'static str,
        origin: &Origin,
        key: &ObjectKey,
        field: impl Into<String>,
        message: impl Into<String>,
    ) -> Box<Self> {
        Box::new(Self {
            reason,
            file: origin.file.to_string(),
            line: origin.line,
            kind: key.kind.to_string(),
            namespace: key.namespace.clone(),
            name: key.name.clone(),
            field: field.into(),
            message: message.into(),
        })
    }

    /// A stable label of low cardinality.
    pub fn reason(&self) -> &'static str {
        self.reason
    }
}
