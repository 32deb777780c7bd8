//! Conversion of xDS messages into configuration (feature `xds`).
//!
//! Strict where skipping would be dangerous: an unknown filter, transport socket, matcher or rule is an error that names
//! its field, unless the message itself marks it as optional. A route whose match is valid but whose action is not
//! becomes [`RouteAction::Invalid`](crate::config::RouteAction::Invalid), which answers 500.

use std::{
    collections::BTreeMap,
    fmt::Display,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use mesh_xds::pb::envoy::config::{cluster::v3 as cluster_pb, core::v3 as core, endpoint::v3 as endpoint_pb};
use mesh_xds::pb::envoy::config::{listener::v3 as listener_pb, route::v3 as route_pb};
use prost::{Message, Name};
use prost_types::Any;

use crate::{
    config::{Cluster, Listener, LoadAssignment, RouteConfiguration},
    error::ConfigError,
};

mod access_log;
mod audit;
mod cluster;
mod endpoint;
mod filters;
mod http;
mod listener;
mod matcher;
mod rbac;
mod route;
mod route_action;
mod tls;

type Result<T> = std::result::Result<T, ConfigError>;

impl TryFrom<&listener_pb::Listener> for Listener {
    type Error = ConfigError;

    fn try_from(message: &listener_pb::Listener) -> Result<Self> {
        listener::listener(message)
    }
}

impl TryFrom<&route_pb::RouteConfiguration> for RouteConfiguration {
    type Error = ConfigError;

    fn try_from(message: &route_pb::RouteConfiguration) -> Result<Self> {
        route::route_configuration(message)
    }
}

impl TryFrom<&cluster_pb::Cluster> for Cluster {
    type Error = ConfigError;

    fn try_from(message: &cluster_pb::Cluster) -> Result<Self> {
        cluster::cluster(message)
    }
}

impl TryFrom<&endpoint_pb::ClusterLoadAssignment> for LoadAssignment {
    type Error = ConfigError;

    fn try_from(message: &endpoint_pb::ClusterLoadAssignment) -> Result<Self> {
        endpoint::load_assignment(message)
    }
}

/// Adds the place to an error.
trait At<T> {
    fn at(self, place: impl Display) -> Result<T>;
}

impl<T> At<T> for Result<T> {
    fn at(self, place: impl Display) -> Self {
        self.map_err(|error| error.within(&place.to_string()))
    }
}

fn missing(field: &str) -> ConfigError {
    ConfigError::Missing { field: field.to_owned() }
}

fn unsupported(field: &str, kind: impl Display) -> ConfigError {
    ConfigError::Unsupported { field: field.to_owned(), kind: kind.to_string() }
}

/// The message name of an `Any`: what follows the last slash of its type URL.
fn type_name(any: &Any) -> &str {
    any.type_url.rsplit('/').next().unwrap_or("")
}

/// Decodes an `Any` known to hold `M`.
fn decode<M: Message + Default>(any: &Any) -> Result<M> {
    M::decode(any.value.as_slice()).map_err(|error| ConfigError::Decode {
        field: "typed_config".to_owned(),
        reason: format!("{}: {error}", any.type_url),
    })
}

/// Decodes an `Any` if it holds `M`.
fn decode_if<M: Message + Name + Default>(any: &Any) -> Result<Option<M>> {
    if type_name(any) == M::full_name() { decode(any).map(Some) } else { Ok(None) }
}

/// A duration; negative ones are refused.
fn duration(field: &str, value: &prost_types::Duration) -> Result<Duration> {
    Duration::try_from(*value)
        .map_err(|_| ConfigError::invalid(field, format!("{value:?}"), "a duration must not be negative"))
}

/// A duration where zero means none.
fn limit(field: &str, value: Option<&prost_types::Duration>) -> Result<Option<Duration>> {
    Ok(value.map(|v| duration(field, v)).transpose()?.filter(|d| !d.is_zero()))
}

/// A duration where absence means `default` and zero means none.
fn limit_or(
    field: &str,
    value: Option<&prost_types::Duration>,
    default: Option<Duration>,
) -> Result<Option<Duration>> {
    match value {
        None => Ok(default),
        some => limit(field, some),
    }
}

fn port(field: &str, value: u32) -> Result<u16> {
    u16::try_from(value).map_err(|_| ConfigError::invalid(field, value, "a port is at most 65535"))
}

fn plain_socket(socket: &core::SocketAddress) -> Result<()> {
    audit::fields!(socket => core::SocketAddress {
        obeyed: [address, port_specifier],
        // An IPv6 listener serves IPv6; `0.0.0.0` is another address.
        refused: [protocol, resolver_name, ipv4_compat, network_namespace_filepath],
    });
    Ok(())
}

/// An IP address and port.
fn socket_address(address: Option<&core::Address>) -> Result<SocketAddr> {
    use core::{address::Address, socket_address::PortSpecifier};
    let address = address.and_then(|a| a.address.as_ref()).ok_or_else(|| missing("address"))?;
    let Address::SocketAddress(socket) = address else {
        return Err(unsupported("address", "an address that is not a socket address"));
    };
    plain_socket(socket)?;
    let port = match &socket.port_specifier {
        Some(PortSpecifier::PortValue(value)) => port("port_value", *value)?,
        Some(PortSpecifier::NamedPort(name)) => return Err(unsupported("named_port", name)),
        None => 0,
    };
    let ip = socket
        .address
        .parse()
        .map_err(|_| ConfigError::invalid("address", &socket.address, "not an IP address"))?;
    Ok(SocketAddr::new(ip, port))
}

fn cidr(range: &core::CidrRange) -> Result<ipnet::IpNet> {
    let ip: std::net::IpAddr = range
        .address_prefix
        .parse()
        .map_err(|_| ConfigError::invalid("address_prefix", &range.address_prefix, "not an IP address"))?;
    let bits = range.prefix_len.unwrap_or(0);
    u8::try_from(bits)
        .ok()
        .and_then(|bits| ipnet::IpNet::new(ip, bits).ok())
        .map(|net| net.trunc())
        .ok_or_else(|| ConfigError::invalid("prefix_len", bits, "too long for the address"))
}

/// A text that is often empty: nothing is allocated for it then.
fn text(text: &str) -> Arc<str> {
    if text.is_empty() { Arc::default() } else { text.into() }
}

/// Different sets of labels that are remembered for sharing.
const SHARED_LABELS: usize = 16;

/// The same set of labels for everybody who has these: a mesh has thousands of clusters and endpoints, and they say
/// `tlsMode: istio` or nothing. Held weakly; what comes when all places are taken is not shared.
fn shared_labels(labels: BTreeMap<String, String>) -> Arc<BTreeMap<String, String>> {
    static KNOWN: Mutex<Vec<Weak<BTreeMap<String, String>>>> = Mutex::new(Vec::new());
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(same) = known.iter().filter_map(Weak::upgrade).find(|same| **same == labels) {
        return same;
    }
    known.retain(|one| one.strong_count() > 0);
    let labels = Arc::new(labels);
    if known.len() < SHARED_LABELS {
        known.push(Arc::downgrade(&labels));
    }
    labels
}

/// The strings of a metadata struct.
fn strings(fields: &prost_types::Struct) -> BTreeMap<String, String> {
    use prost_types::value::Kind;
    fields
        .fields
        .iter()
        .filter_map(|(name, value)| match &value.kind {
            Some(Kind::StringValue(text)) => Some((name.clone(), text.clone())),
            _ => None,
        })
        .collect()
}
