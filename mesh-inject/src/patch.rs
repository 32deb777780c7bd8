//! JSON Patch (RFC 6902) and JSON Pointer (RFC 6901).
//!
//! [`diff`] pairs list items by name, so that putting one container in front of others is one operation, not one per
//! container; [`Patch::apply`] is atomic: it gives the whole result or an error that names the operation.

mod apply;
mod diff;
mod pointer;

use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use apply::PatchError;
pub use diff::diff;
pub(crate) use diff::diff_text;
pub use pointer::Pointer;

/// A list of operations, applied in order.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Patch(pub Vec<Operation>);

/// One operation of a [`Patch`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "lowercase")]
pub enum Operation {
    /// Put a value at `path`; list items behind it move up.
    Add {
        /// Where.
        path: Pointer,
        /// What; `null` is a value like any other.
        #[serde(deserialize_with = "present")]
        value: Value,
    },
    /// Remove the value at `path`.
    Remove {
        /// Where.
        path: Pointer,
    },
    /// Put a value in the place of the one at `path`.
    Replace {
        /// Where.
        path: Pointer,
        /// What.
        #[serde(deserialize_with = "present")]
        value: Value,
    },
    /// Remove the value at `from` and add it at `path`.
    Move {
        /// Source.
        from: Pointer,
        /// Target.
        path: Pointer,
    },
    /// Add a copy of the value at `from` at `path`.
    Copy {
        /// Source.
        from: Pointer,
        /// Target.
        path: Pointer,
    },
    /// Fail unless the value at `path` equals this one (numbers compare by value).
    Test {
        /// Where.
        path: Pointer,
        /// What must be there.
        #[serde(deserialize_with = "present")]
        value: Value,
    },
}

impl Patch {
    /// Read a patch from its JSON form.
    ///
    /// # Errors
    /// [`PatchError::Malformed`] when it is not a list of operations.
    pub fn from_json(value: &Value) -> Result<Self, PatchError> {
        Self::deserialize(value).map_err(|error| PatchError::Malformed { message: error.to_string() })
    }

    /// Apply every operation in order to a copy of `document`.
    ///
    /// # Errors
    /// [`PatchError`] naming the operation that failed; `document` is untouched.
    pub fn apply(&self, document: &Value) -> Result<Value, PatchError> {
        apply::apply(self, document)
    }

    /// True when there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Number of operations.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Put a `test` in front of each operation that assumes what stands at its place (`remove` and `replace`), so that
    /// applying the patch to a document changed by somebody else fails instead of undoing their change.
    #[must_use]
    pub fn guarded(&self, base: &Value) -> Self {
        let mut document = base.clone();
        let mut operations = Vec::with_capacity(self.0.len());
        for operation in &self.0 {
            if let Operation::Remove { path } | Operation::Replace { path, .. } = operation
                && let Some(value) = path.resolve(&document)
            {
                operations.push(Operation::Test { path: path.clone(), value: value.clone() });
            }
            if let Ok(next) = Self(vec![operation.clone()]).apply(&document) {
                document = next;
            }
            operations.push(operation.clone());
        }
        Self(operations)
    }
}

fn present<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Value, D::Error> {
    Value::deserialize(deserializer)
}

#[cfg(test)]
mod tests;
