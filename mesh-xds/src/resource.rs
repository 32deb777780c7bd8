//! What a resource is: a type URL, a name and bytes, decoded in two phases.
//!
//! Phase one ([`peek_name`]) reads the name alone, so that a resource that cannot be decoded can still be named in a
//! NACK while its good neighbours apply. Phase two ([`decode`]) yields the typed message.

mod name;
mod type_url;
mod types;
mod version;

pub use name::peek_name;
pub use type_url::TypeUrl;
pub use version::Version;

use std::borrow::Cow;

use prost::Message;
use prost_types::Any;

/// The wrapper that may stand around a State-of-the-World resource, as `Any` names it.
pub(crate) const WRAPPER: &str = "type.googleapis.com/envoy.service.discovery.v3.Resource";

/// What a client announces that understands times to live, in `node.client_features`.
pub(crate) const TTL_FEATURE: &str = "xds.config.supports-resource-ttl";
/// What a client announces that understands [`WRAPPER`].
pub(crate) const WRAPPER_FEATURE: &str = "xds.config.supports-resource-in-sotw";

/// A message that travels as an xDS resource of its own.
///
/// Implemented for LDS, RDS, VHDS, SRDS, CDS, EDS, SDS, ECDS and RTDS, and for Istio's name table, addresses, workloads and
/// authorization policies. Any other message can be one: what [`peek_name`] finds, for a type that it does not know the
/// text in field 1, has to be its [`resource_name`](Self::resource_name).
///
/// # Examples
/// ```
/// use mesh_xds::{Resource, TypeUrl, prost, resource::{decode, peek_name}, server::Snapshot};
/// use std::borrow::Cow;
///
/// #[derive(Clone, PartialEq, prost::Message)]
/// struct Flags {
///     #[prost(string, tag = "1")]
///     name: String,
///     #[prost(bool, tag = "2")]
///     bright: bool,
/// }
///
/// impl prost::Name for Flags {
///     const NAME: &'static str = "Flags";
///     const PACKAGE: &'static str = "acme.v1";
/// }
///
/// impl Resource for Flags {
///     const TYPE: TypeUrl = TypeUrl::from_static("type.googleapis.com/acme.v1.Flags");
///     fn resource_name(&self) -> Cow<'_, str> {
///         Cow::Borrowed(&self.name)
///     }
/// }
///
/// let flags = Flags { name: "lamp".to_owned(), bright: true };
/// assert_eq!(peek_name(&Flags::TYPE, &flags.to_any().value)?, "lamp");
/// assert_eq!(decode::<Flags>(&flags.to_any())?, flags);
/// let snapshot = Snapshot::builder().add(&flags)?.build();
/// assert!(snapshot.get(&Flags::TYPE).is_some_and(|set| set.get("lamp").is_some()));
/// # Ok::<(), mesh_xds::resource::ResourceError>(())
/// ```
pub trait Resource: Message + prost::Name + Default + Clone + PartialEq + Send + Sync + 'static {
    /// The type URL, `type.googleapis.com/` and the message's full name.
    const TYPE: TypeUrl;

    /// The name by which clients subscribe to this resource.
    fn resource_name(&self) -> Cow<'_, str>;

    /// Packs the message as it travels. Encoding is deterministic: equal messages give equal bytes.
    fn to_any(&self) -> Any {
        Any { type_url: Self::TYPE.as_str().to_owned(), value: self.encode_to_vec() }
    }
}

/// Why an `Any` could not be read as a resource.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ResourceError {
    /// The `Any` holds another type than the response or the caller asked for.
    #[error("type URL is {actual:?}, expected {expected:?}")]
    WrongType {
        /// The type that was asked for.
        expected: String,
        /// The type that came.
        actual: String,
    },
    /// The bytes are not a message of this type.
    #[error("{type_url}: {message}")]
    Decode {
        /// The type that the bytes claim to be.
        type_url: String,
        /// What the decoder said.
        message: String,
    },
    /// A resource without a name cannot be subscribed to.
    #[error("{type_url}: the resource has no name")]
    NoName {
        /// The type of the nameless resource.
        type_url: String,
    },
}

impl ResourceError {
    /// A stable label of low cardinality, for metrics.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::WrongType { .. } => "wrong_type",
            Self::Decode { .. } => "decode",
            Self::NoName { .. } => "no_name",
        }
    }
}

/// Decodes an `Any` into `T` (phase two).
///
/// Extensions inside stay as they are, known or not; fields that `T` does not have are dropped, so pass on the `Any` where
/// somebody else may know more of it.
///
/// # Errors
/// [`ResourceError::WrongType`] when the type URL is not `T`'s, [`ResourceError::Decode`] when the bytes are not a `T`.
pub fn decode<T: Resource>(any: &Any) -> Result<T, ResourceError> {
    if any.type_url != T::TYPE.as_str() {
        return Err(ResourceError::WrongType {
            expected: T::TYPE.as_str().to_owned(),
            actual: any.type_url.clone(),
        });
    }
    T::decode(any.value.as_slice())
        .map_err(|e| ResourceError::Decode { type_url: any.type_url.clone(), message: e.to_string() })
}
