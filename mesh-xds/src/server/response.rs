//! Responses as data, and as the frames that leave.

use std::sync::Arc;

use bytes::Bytes;
use prost::Message as _;

use crate::pb::envoy::config::core::v3::ControlPlane;
use crate::pb::envoy::service::discovery::v3::{DeltaDiscoveryResponse, DiscoveryResponse};
use crate::resource::TypeUrl;

use super::encoded::EncodedResource;

/// Resources below this size are copied into one frame; larger ones are sent from the shared buffer.
const COPY_BELOW: usize = 2048;

/// One response, before it is encoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// The resource type.
    pub type_url: TypeUrl,
    /// Unique on its stream.
    pub nonce: String,
    /// `version_info` (State-of-the-World) or `system_version_info` (Delta).
    pub version: String,
    /// The resources to say.
    pub resources: Vec<Arc<EncodedResource>>,
    /// Delta: names that are gone or do not exist.
    pub removed: Vec<Arc<str>>,
    /// Resources whose time to live is refreshed without saying them again.
    pub heartbeats: Vec<Arc<EncodedResource>>,
}

impl Response {
    /// The message for a Delta stream.
    #[must_use]
    pub fn to_delta(&self, identifier: &str) -> DeltaDiscoveryResponse {
        let full = self.resources.iter().map(|r| r.wrapper(r.to_any().ok()));
        let resources = full.chain(self.heartbeats.iter().map(|r| r.wrapper(None))).collect();
        DeltaDiscoveryResponse { resources, ..self.delta_rest(identifier) }
    }

    /// The message for a State-of-the-World stream.
    #[must_use]
    pub fn to_sotw(&self, identifier: &str) -> DiscoveryResponse {
        let full = |r: &Arc<EncodedResource>| {
            let any = r.to_any().ok()?;
            Some(if r.ttl().is_some() { r.wrapped(Some(any)) } else { any })
        };
        let full = self.resources.iter().filter_map(full);
        let resources = full.chain(self.heartbeats.iter().map(|r| r.wrapped(None))).collect();
        DiscoveryResponse { resources, ..self.sotw_rest(identifier) }
    }

    fn delta_rest(&self, identifier: &str) -> DeltaDiscoveryResponse {
        DeltaDiscoveryResponse {
            system_version_info: self.version.clone(),
            type_url: self.type_url.as_str().to_owned(),
            nonce: self.nonce.clone(),
            removed_resources: self.removed.iter().map(ToString::to_string).collect(),
            control_plane: control_plane(identifier),
            ..Default::default()
        }
    }

    fn sotw_rest(&self, identifier: &str) -> DiscoveryResponse {
        DiscoveryResponse {
            version_info: self.version.clone(),
            type_url: self.type_url.as_str().to_owned(),
            nonce: self.nonce.clone(),
            control_plane: control_plane(identifier),
            ..Default::default()
        }
    }

    /// The encoded Delta message in pieces: large resources are shared, not copied.
    pub(super) fn encode_delta(&self, identifier: &str) -> Vec<Bytes> {
        let fields = self.resources.iter().map(|r| r.delta_field());
        let heartbeats = self.heartbeats.iter().map(|r| r.delta_heartbeat());
        pieces(self.delta_rest(identifier).encode_to_vec(), fields.chain(heartbeats))
    }

    /// The encoded State-of-the-World message in pieces.
    pub(super) fn encode_sotw(&self, identifier: &str) -> Vec<Bytes> {
        let fields = self.resources.iter().map(|r| r.sotw_field());
        let heartbeats = self.heartbeats.iter().map(|r| r.sotw_heartbeat());
        pieces(self.sotw_rest(identifier).encode_to_vec(), fields.chain(heartbeats))
    }
}

fn control_plane(identifier: &str) -> Option<ControlPlane> {
    (!identifier.is_empty()).then(|| ControlPlane { identifier: identifier.to_owned() })
}

/// Fields may follow in any order and repeated fields concatenate, so encoded parts need no parsing.
fn pieces(head: Vec<u8>, fields: impl Iterator<Item = Bytes>) -> Vec<Bytes> {
    let mut out = Vec::new();
    let mut copy = head;
    for field in fields {
        if field.len() < COPY_BELOW {
            copy.extend_from_slice(&field);
            continue;
        }
        if !copy.is_empty() {
            out.push(Bytes::from(std::mem::take(&mut copy)));
        }
        out.push(field);
    }
    if !copy.is_empty() || out.is_empty() {
        out.push(Bytes::from(copy));
    }
    out
}

/// The length of a message in pieces.
#[cfg(feature = "server")]
pub(super) fn length(pieces: &[Bytes]) -> usize {
    pieces.iter().map(Bytes::len).sum()
}
