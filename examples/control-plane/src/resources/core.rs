//! Kubernetes' own kinds: only what the mesh needs of them, unknown fields inside tolerated.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde::de::{Error, Visitor};

use super::scalar::null_as_default;

/// `v1/Service`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
pub struct Service {
    /// Its `spec`.
    #[serde(default)]
    pub spec: ServiceSpec,
}

/// `spec` of a Service.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceSpec {
    /// Ports in declaration order.
    #[serde(default, deserialize_with = "null_as_default")]
    pub ports: Vec<ServicePort>,
    /// Labels of the pods behind it; empty means that endpoints are managed by hand.
    #[serde(default, deserialize_with = "null_as_default")]
    pub selector: BTreeMap<String, String>,
    /// The virtual address, `None` for headless, absent while unassigned.
    #[serde(default, rename = "clusterIP")]
    pub cluster_ip: Option<String>,
    /// All virtual addresses (dual stack).
    #[serde(default, rename = "clusterIPs", deserialize_with = "null_as_default")]
    pub cluster_ips: Vec<String>,
    /// `ClusterIP`, `NodePort`, `LoadBalancer` or `ExternalName`.
    #[serde(default, rename = "type")]
    pub type_: Option<String>,
    /// The alias' target for `ExternalName`.
    #[serde(default)]
    pub external_name: Option<String>,
    /// Whether pods that are not ready count as healthy.
    #[serde(default)]
    pub publish_not_ready_addresses: bool,
    /// `Cluster` or `Local`.
    #[serde(default)]
    pub internal_traffic_policy: Option<String>,
}

/// One port of a Service.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServicePort {
    /// Name; its prefix selects the protocol.
    #[serde(default)]
    pub name: Option<String>,
    /// The service port.
    pub port: u16,
    /// The pod's port by number or name; the service port where absent.
    #[serde(default)]
    pub target_port: Option<IntOrString>,
    /// `TCP`, `UDP` or `SCTP`.
    #[serde(default)]
    pub protocol: Option<String>,
    /// Application protocol; beats the name.
    #[serde(default)]
    pub app_protocol: Option<String>,
}

/// A port by number or by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IntOrString {
    /// By number.
    Int(u16),
    /// By name.
    String(String),
}

impl<'de> Deserialize<'de> for IntOrString {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct V;
        impl Visitor<'_> for V {
            type Value = IntOrString;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a port number or name")
            }
            fn visit_u64<E: Error>(self, v: u64) -> Result<Self::Value, E> {
                u16::try_from(v)
                    .map(IntOrString::Int)
                    .map_err(|_| E::custom(format!("port {v} is out of range")))
            }
            fn visit_i64<E: Error>(self, v: i64) -> Result<Self::Value, E> {
                u16::try_from(v)
                    .map(IntOrString::Int)
                    .map_err(|_| E::custom(format!("port {v} is out of range")))
            }
            fn visit_str<E: Error>(self, v: &str) -> Result<Self::Value, E> {
                Ok(v.parse().map_or_else(|_| IntOrString::String(v.to_owned()), IntOrString::Int))
            }
        }
        deserializer.deserialize_any(V)
    }
}

/// `v1/Pod`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
pub struct Pod {
    /// Its `spec`.
    #[serde(default)]
    pub spec: PodSpec,
    /// What the kubelet reports.
    #[serde(default, deserialize_with = "null_as_default")]
    pub status: PodStatus,
}

/// `spec` of a Pod.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodSpec {
    /// The account whose identity the pod has; `default` where absent.
    #[serde(default)]
    pub service_account_name: Option<String>,
    /// Containers, for named target ports.
    #[serde(default, deserialize_with = "null_as_default")]
    pub containers: Vec<Container>,
    /// Init containers; a native sidecar may own a named port.
    #[serde(default, deserialize_with = "null_as_default")]
    pub init_containers: Vec<Container>,
    /// The node.
    #[serde(default)]
    pub node_name: Option<String>,
    /// Whether the pod lives in the node's network.
    #[serde(default)]
    pub host_network: bool,
    /// Host name under a headless service.
    #[serde(default)]
    pub hostname: Option<String>,
    /// The headless service's name.
    #[serde(default)]
    pub subdomain: Option<String>,
}

/// A container's ports.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
pub struct Container {
    /// Name.
    #[serde(default)]
    pub name: String,
    /// Declared ports.
    #[serde(default, deserialize_with = "null_as_default")]
    pub ports: Vec<ContainerPort>,
}

/// A declared container port.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ContainerPort {
    /// Name.
    #[serde(default)]
    pub name: Option<String>,
    /// Number.
    pub container_port: u16,
}

/// `status` of a Pod.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodStatus {
    /// First address.
    #[serde(default, rename = "podIP")]
    pub pod_ip: Option<String>,
    /// All addresses.
    #[serde(default, rename = "podIPs", deserialize_with = "null_as_default")]
    pub pod_ips: Vec<PodIp>,
    /// `Pending`, `Running`, `Succeeded`, `Failed`.
    #[serde(default)]
    pub phase: Option<String>,
    /// Conditions; `Ready` decides health.
    #[serde(default, deserialize_with = "null_as_default")]
    pub conditions: Vec<Condition>,
}

/// One of a pod's addresses.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
pub struct PodIp {
    /// The address.
    #[serde(default)]
    pub ip: String,
}

/// A condition of a status.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
pub struct Condition {
    /// Type, for example `Ready`.
    #[serde(rename = "type", default)]
    pub type_: String,
    /// `True`, `False` or `Unknown`.
    #[serde(default)]
    pub status: String,
}

/// `v1/Node`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
pub struct Node {
    /// What the kubelet reports.
    #[serde(default, deserialize_with = "null_as_default")]
    pub status: NodeStatus,
}

/// `status` of a Node.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeStatus {
    /// About its software.
    #[serde(default, deserialize_with = "null_as_default")]
    pub node_info: NodeInfo,
}

/// A Node's software.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeInfo {
    /// Version of the kubelet, such as `v1.33.0`.
    #[serde(default)]
    pub kubelet_version: String,
}

/// `v1/Endpoints`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
pub struct Endpoints {
    /// Groups of addresses that share ports.
    #[serde(default, deserialize_with = "null_as_default")]
    pub subsets: Vec<EndpointSubset>,
}

/// One group of [`Endpoints`].
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointSubset {
    /// Ready addresses.
    #[serde(default, deserialize_with = "null_as_default")]
    pub addresses: Vec<EndpointAddress>,
    /// Addresses that are not ready.
    #[serde(default, deserialize_with = "null_as_default")]
    pub not_ready_addresses: Vec<EndpointAddress>,
    /// Ports by name.
    #[serde(default, deserialize_with = "null_as_default")]
    pub ports: Vec<EndpointPort>,
}

/// An address of an [`EndpointSubset`].
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
pub struct EndpointAddress {
    /// The address.
    pub ip: String,
}

/// A port of endpoints, matched to the service port by name.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
pub struct EndpointPort {
    /// The service port's name.
    #[serde(default, deserialize_with = "null_as_default")]
    pub name: String,
    /// The number on the endpoint.
    #[serde(default)]
    pub port: u16,
}

/// `discovery.k8s.io/EndpointSlice`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
pub struct EndpointSlice {
    /// Endpoints of the slice.
    #[serde(default, deserialize_with = "null_as_default")]
    pub endpoints: Vec<EndpointSliceEndpoint>,
    /// Ports of the slice.
    #[serde(default, deserialize_with = "null_as_default")]
    pub ports: Vec<EndpointPort>,
}

/// One endpoint of a slice.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
pub struct EndpointSliceEndpoint {
    /// Its addresses.
    #[serde(default)]
    pub addresses: Vec<String>,
    /// `ready`, `serving`, `terminating`; absent means ready.
    #[serde(default, deserialize_with = "null_as_default")]
    pub conditions: BTreeMap<String, Option<bool>>,
}
