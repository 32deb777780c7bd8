#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

pub mod client;
#[doc(hidden)]
pub mod fuzzing;
#[cfg(feature = "json")]
pub mod json;
#[cfg(feature = "server")]
pub mod push;
pub mod resource;
pub mod server;

/// The messages, enums and gRPC stubs, under the names of their protobuf packages.
///
/// Generated from `proto/*.proto` by the `mesh-xds-codegen` program; never edited. Maps are `BTreeMap`, so that
/// encoding is deterministic and a version can be a hash of the content. The well-known types (`Any`, `Duration`,
/// `Struct`, ...) are those of [`prost_types`].
#[rustfmt::skip]
#[allow(missing_docs, unreachable_pub, unused_qualifications, missing_debug_implementations, deprecated)]
#[allow(clippy::all, clippy::use_self, clippy::or_fun_call, clippy::large_futures)]
#[allow(rustdoc::all)]
pub mod pb;

pub use prost_types::Any;
pub use resource::{Resource, TypeUrl, Version};
