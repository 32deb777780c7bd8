//! A resource, encoded once for everybody.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut as _, Bytes, BytesMut};
use prost::Message as _;
use prost::encoding::{self, WireType, encode_key, encode_varint, encoded_len_varint};
use prost_types::Any;

use crate::pb::envoy::config::cluster::v3::{Cluster, cluster};
use crate::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use crate::pb::envoy::config::route::v3::RouteConfiguration;
use crate::pb::envoy::service::discovery::v3 as discovery;
use crate::resource::{self, Resource, ResourceError, TypeUrl, Version, WRAPPER};

/// The field number of `resources` in both kinds of response, and of `resource` in the Delta wrapper.
const RESOURCES: u32 = 2;

/// One resource in the form in which it leaves: encoded once, shared by every snapshot and every client.
///
/// One buffer serves both variants: the State-of-the-World form is the tail of the Delta form.
#[derive(Clone, PartialEq, Eq)]
pub struct EncodedResource {
    name: Arc<str>,
    type_url: TypeUrl,
    version: Version,
    ttl: Option<Duration>,
    endpoints: Option<Arc<str>>,
    delta: Bytes,
    content_at: usize,
    sotw_at: usize,
    any_at: usize,
}

impl EncodedResource {
    /// Encodes a typed resource; its version is a hash of the bytes.
    ///
    /// # Errors
    /// [`ResourceError::NoName`] when it has no name.
    pub fn new<T: Resource>(resource: &T) -> Result<Self, ResourceError> {
        Self::from_any(&resource.to_any())
    }

    /// Takes a resource that is packed already.
    ///
    /// # Errors
    /// [`ResourceError`] when no name can be read from it.
    pub fn from_any(any: &Any) -> Result<Self, ResourceError> {
        let type_url = TypeUrl::from(any.type_url.as_str());
        let name = resource::peek_name(&type_url, &any.value)?;
        Ok(Self::assemble(type_url, name, any, None, Version::of(&any.value)))
    }

    /// Gives the resource a time to live: a client that hears nothing for this long deletes it. Another time is another
    /// version, so that clients hear of it.
    ///
    /// The server refreshes it at half the time. Clients that do not announce `xds.config.supports-resource-ttl`, in
    /// State-of-the-World also `xds.config.supports-resource-in-sotw`, get the resource without it.
    ///
    /// # Errors
    /// Never for a resource that was built by this type.
    pub fn with_ttl(self, ttl: Duration) -> Result<Self, ResourceError> {
        let any = self.to_any()?;
        let version = Version::of_all([(format!("{ttl:?}").as_str(), Version::of(&any.value))]);
        Ok(Self::assemble(self.type_url, self.name.to_string(), &any, Some(ttl), version))
    }

    /// The same version for a client that knows no times to live.
    pub(super) fn without_ttl(&self) -> Self {
        let assemble =
            |any: Any| Self::assemble(self.type_url.clone(), self.name.to_string(), &any, None, self.version);
        self.to_any().map_or_else(|_| self.clone(), assemble)
    }

    fn assemble(type_url: TypeUrl, name: String, any: &Any, ttl: Option<Duration>, version: Version) -> Self {
        let version_text = version.to_string();
        let mut head = Vec::new();
        encoding::string::encode(1, &version_text, &mut head);
        encoding::string::encode(3, &name, &mut head);
        if let Some(ttl) = ttl.and_then(|ttl| prost_types::Duration::try_from(ttl).ok()) {
            encoding::message::encode(6, &ttl, &mut head);
        }
        let any_length = any.encoded_len();
        let tail = 1 + encoded_len_varint(any_length as u64) + any_length;
        let mut buffer = BytesMut::with_capacity(8 + head.len() + tail);
        encode_key(RESOURCES, WireType::LengthDelimited, &mut buffer);
        encode_varint((head.len() + tail) as u64, &mut buffer);
        let content_at = buffer.len();
        buffer.put_slice(&head);
        let sotw_at = buffer.len();
        encode_key(RESOURCES, WireType::LengthDelimited, &mut buffer);
        encode_varint(any_length as u64, &mut buffer);
        let any_at = buffer.len();
        any.encode_raw(&mut buffer);
        let endpoints = (type_url == TypeUrl::CLUSTER).then(|| endpoints_of(&any.value)).flatten();
        let (name, delta) = (Arc::from(name), buffer.freeze());
        Self { name, type_url, version, ttl, endpoints, delta, content_at, sotw_at, any_at }
    }

    /// The name by which clients subscribe.
    #[must_use]
    pub const fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// The resource type.
    #[must_use]
    pub const fn type_url(&self) -> &TypeUrl {
        &self.type_url
    }

    /// The hash of the content.
    #[must_use]
    pub const fn version(&self) -> Version {
        self.version
    }

    /// The time to live, if it has one.
    #[must_use]
    pub const fn ttl(&self) -> Option<Duration> {
        self.ttl
    }

    /// For a cluster that takes its endpoints from EDS: the name of its `ClusterLoadAssignment`.
    #[must_use]
    pub const fn endpoints(&self) -> Option<&Arc<str>> {
        self.endpoints.as_ref()
    }

    /// The resource as a packed message again.
    ///
    /// # Errors
    /// Never for a resource that was built by this type.
    pub fn to_any(&self) -> Result<Any, ResourceError> {
        Any::decode(self.delta.slice(self.any_at..)).map_err(|e| ResourceError::Decode {
            type_url: self.type_url.as_str().to_owned(),
            message: e.to_string(),
        })
    }

    /// How many bytes the resource adds to a response.
    #[must_use]
    pub const fn size(&self) -> usize {
        self.delta.len()
    }

    /// One `resources` field of a `DeltaDiscoveryResponse`, tag and length included.
    pub(super) fn delta_field(&self) -> Bytes {
        self.delta.clone()
    }

    /// One `resources` field of a `DiscoveryResponse`, tag and length included. With a time to live it is wrapped.
    pub(super) fn sotw_field(&self) -> Bytes {
        if self.ttl.is_none() {
            return self.delta.slice(self.sotw_at..);
        }
        let value = self.delta.slice(self.content_at..).to_vec();
        field(&Any { type_url: WRAPPER.to_owned(), value })
    }

    /// One `resources` field of a `DeltaDiscoveryResponse` that refreshes the time to live without saying the resource.
    pub(super) fn delta_heartbeat(&self) -> Bytes {
        field(&self.wrapper(None))
    }

    /// The same for a `DiscoveryResponse`.
    pub(super) fn sotw_heartbeat(&self) -> Bytes {
        field(&self.wrapped(None))
    }

    /// What stands around the resource in Delta, and in State-of-the-World where it has a time to live.
    pub(super) fn wrapper(&self, resource: Option<Any>) -> discovery::Resource {
        discovery::Resource {
            name: self.name.to_string(),
            version: self.version.to_string(),
            ttl: self.ttl.and_then(|ttl| prost_types::Duration::try_from(ttl).ok()),
            resource,
            ..Default::default()
        }
    }

    pub(super) fn wrapped(&self, resource: Option<Any>) -> Any {
        Any { type_url: WRAPPER.to_owned(), value: self.wrapper(resource).encode_to_vec() }
    }

    /// The resource that stands for a name that does not exist, under [`UnknownNames::Empty`](super::UnknownNames).
    pub(super) fn empty(type_url: &TypeUrl, name: &str) -> Option<Self> {
        let any = match type_url {
            t if *t == TypeUrl::ENDPOINTS => {
                ClusterLoadAssignment { cluster_name: name.to_owned(), ..Default::default() }.to_any()
            }
            t if *t == TypeUrl::ROUTE => {
                RouteConfiguration { name: name.to_owned(), ..Default::default() }.to_any()
            }
            _ => return None,
        };
        Self::from_any(&any).ok()
    }
}

/// Without the content: it may be a private key.
impl fmt::Debug for EncodedResource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EncodedResource")
            .field("type", &self.type_url)
            .field("name", &self.name)
            .field("version", &self.version)
            .field("ttl", &self.ttl)
            .field("bytes", &self.delta.len())
            .finish_non_exhaustive()
    }
}

fn field(message: &impl prost::Message) -> Bytes {
    let mut buffer = BytesMut::new();
    encoding::message::encode(RESOURCES, message, &mut buffer);
    buffer.freeze()
}

/// The EDS name of an encoded cluster, if its type is EDS.
fn endpoints_of(bytes: &[u8]) -> Option<Arc<str>> {
    let cluster = Cluster::decode(bytes).ok()?;
    let eds = cluster::DiscoveryType::Eds as i32;
    if !matches!(cluster.cluster_discovery_type, Some(cluster::ClusterDiscoveryType::Type(t)) if t == eds) {
        return None;
    }
    let service = cluster.eds_cluster_config.map(|c| c.service_name).filter(|name| !name.is_empty());
    Some(Arc::from(service.unwrap_or(cluster.name)))
}
