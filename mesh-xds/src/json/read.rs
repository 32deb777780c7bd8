//! JSON and YAML into messages: text into a tree, the tree held against the descriptors, the tree into a message.

use prost::{Message, Name};
use prost_reflect::{DeserializeOptions, DynamicMessage};
use serde_path_to_error::{Deserializer as Tracked, Track};

use super::check::{Checker, Unknown};
use super::path::Path;
use super::tree::Node;
use super::{JsonError, Lossy, canonical, pool};

/// Reads a tree; what is unknown is refused.
pub(super) fn strict<T: Message + Name + Default>(node: Node) -> Result<T, JsonError> {
    read(node, Unknown::Refused).map(|lossy| lossy.message)
}

/// Reads a tree; what is unknown is left out and reported.
pub(super) fn lossy<T: Message + Name + Default>(node: Node) -> Result<Lossy<T>, JsonError> {
    read(node, Unknown::Skipped)
}

fn read<T: Message + Name + Default>(mut node: Node, unknown: Unknown) -> Result<Lossy<T>, JsonError> {
    let name = T::full_name();
    let descriptor = pool::descriptor(&name)?;
    let mut checker = Checker::new(unknown);
    checker.root(&mut node, &descriptor)?;

    let mut track = Track::new();
    let options = DeserializeOptions::new().deny_unknown_fields(true);
    let tracked = Tracked::new(&node, &mut track);
    let message = DynamicMessage::deserialize_with_options(descriptor, tracked, &options).map_err(|e| {
        let path = track.path();
        let at = node.find(&path);
        let path = Path::from(&path).to_string();
        JsonError::Invalid {
            path,
            line: at.line(),
            column: at.column(),
            message: without_value(&e.to_string()),
        }
    })?;
    let message = T::decode(canonical::encode(&message).as_slice())
        .map_err(|e| JsonError::Decode { name, message: e.to_string() })?;
    Ok(Lossy { message, skipped: checker.into_skipped() })
}

/// A text where something else is wanted may be anything: a private key that stands where a `DataSource` should. It is not
/// repeated.
fn without_value(message: &str) -> String {
    let text =
        message.strip_prefix("invalid type: string \"").and_then(|rest| rest.rsplit_once("\", expected "));
    text.map_or_else(
        || message.to_owned(),
        |(_, expected)| format!("invalid type: text, expected {expected}"),
    )
}
