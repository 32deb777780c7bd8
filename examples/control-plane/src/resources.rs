//! The Kubernetes and Istio objects that the control plane understands, as people write them in YAML.
//!
//! Text becomes [`Document`]s: every document of a file is an object, an ignored kind or a rejected resource with
//! the file, line and field at fault. Nothing is skipped silently. Istio's kinds refuse unknown fields; Kubernetes'
//! own kinds tolerate them inside `spec` (they belong to Kubernetes) but not at the top level.

mod core;
mod destination_rule;
mod meta;
mod proxy_config;
mod scalar;
mod security;
mod service_entry;
mod sidecar;
mod validate;
mod virtual_service;
mod yaml;

pub use self::core::{
    Condition, Container, ContainerPort, EndpointAddress, EndpointPort, EndpointSlice, EndpointSliceEndpoint,
    EndpointSubset, Endpoints, IntOrString, Node, NodeInfo, NodeStatus, Pod, PodIp, PodSpec, PodStatus,
    Service, ServicePort, ServiceSpec,
};
pub use destination_rule::{
    ConnectionPool, ConsistentHash, DestinationRule, HttpCookie, HttpPool, LoadBalancer, Maglev,
    OutlierDetection, PortTrafficPolicy, RetryBudget, RingHash, SimpleLb, Subset, TcpKeepalive, TcpPool,
    TlsMode, TlsSettings, TrafficPolicy, Warmup,
};
pub use meta::{Kind, Metadata, ObjectKey, Origin, ResourceError};
pub use proxy_config::{ProxyConfig, ProxyImage};
pub(crate) use scalar::subset_of as scalar_subset;
pub use scalar::{GoDuration, LabelSelector};
pub use security::{
    Action, AuthorizationPolicy, Condition as RuleCondition, From as RuleFrom, Mtls, MtlsMode, Operation,
    PeerAuthentication, Provider, Rule, Source, To as RuleTo,
};
pub use service_entry::{
    Location, Resolution, ServiceEntry, ServiceEntryPort, WorkloadEntry, WorkloadSelector,
};
pub use sidecar::{EgressListener, OutboundMode, OutboundTrafficPolicy, Sidecar};
pub(crate) use validate::cidr as parse_cidr;
pub use virtual_service::{
    Abort, CorsPolicy, Delay, Delegate, Destination, DirectBody, DirectResponse, Fault, HeaderOperations,
    Headers, HttpMatch, HttpMirror, HttpRewrite, HttpRoute, L4Match, Percent, PortSelector, Redirect,
    RegexRewrite, Retry, RouteDestination, StringMatch, TcpRoute, TlsMatch, TlsRoute, VirtualService,
    WeightedDestination,
};
pub use yaml::{Document, Outcome, Sniffed, parse_documents};

use std::sync::Arc;

/// One accepted object: who it is, where it stands and what it says.
#[derive(Debug, Clone, PartialEq)]
pub struct Object {
    /// Kind, namespace and name.
    pub key: ObjectKey,
    /// Labels, annotations and times.
    pub meta: Metadata,
    /// File and line of the document's start.
    pub origin: Origin,
    /// The kind's own content.
    pub spec: Spec,
    /// The document's text.
    pub text: Arc<str>,
    /// SHA-256 (first 16 bytes, hex) over the document's text: two objects of equal hash say the same.
    pub hash: String,
}

/// The content of an [`Object`] by kind.
#[derive(Debug, Clone, PartialEq)]
pub enum Spec {
    /// `v1/Namespace`: only labels matter.
    Namespace,
    /// `v1/ServiceAccount`: only its existence matters.
    ServiceAccount,
    /// `v1/Service`.
    Service(Arc<Service>),
    /// `v1/Pod`.
    Pod(Arc<Pod>),
    /// `v1/Endpoints`.
    Endpoints(Arc<Endpoints>),
    /// `v1/Node`.
    Node(Arc<Node>),
    /// `discovery.k8s.io/v1/EndpointSlice`.
    EndpointSlice(Arc<EndpointSlice>),
    /// `networking.istio.io/VirtualService`.
    VirtualService(Arc<VirtualService>),
    /// `networking.istio.io/DestinationRule`.
    DestinationRule(Arc<DestinationRule>),
    /// `networking.istio.io/ServiceEntry`.
    ServiceEntry(Arc<ServiceEntry>),
    /// `networking.istio.io/WorkloadEntry`.
    WorkloadEntry(Arc<WorkloadEntry>),
    /// `networking.istio.io/Sidecar`.
    Sidecar(Arc<Sidecar>),
    /// `networking.istio.io/ProxyConfig`.
    ProxyConfig(Arc<ProxyConfig>),
    /// `security.istio.io/PeerAuthentication`.
    PeerAuthentication(Arc<PeerAuthentication>),
    /// `security.istio.io/AuthorizationPolicy`.
    AuthorizationPolicy(Arc<AuthorizationPolicy>),
}

#[cfg(test)]
mod tests;
