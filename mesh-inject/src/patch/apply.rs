//! Applying a patch.

use serde_json::Value;

use super::pointer::{Pointer, index};
use super::{Operation, Patch};

/// Most operations that one patch may have.
pub(super) const MAX_OPERATIONS: usize = 100_000;
/// Most JSON values that all `copy` operations of one patch may create: a short patch must not grow without bound.
pub(super) const MAX_COPIED: usize = 1_000_000;

/// Why a patch could not be applied.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PatchError {
    /// The document is not a JSON patch.
    #[error("malformed patch: {message}")]
    Malformed {
        /// What is wrong with it.
        message: String,
    },
    /// An operation's place does not exist.
    #[error("operation {operation}: nothing at {path:?}")]
    Missing {
        /// Index of the operation.
        operation: usize,
        /// The place.
        path: String,
    },
    /// A list index is not a number or lies outside the list.
    #[error("operation {operation}: index {token:?} of {path:?} is not a place in a list of {length}")]
    Index {
        /// Index of the operation.
        operation: usize,
        /// The place.
        path: String,
        /// The token that is not an index.
        token: String,
        /// Length of the list.
        length: usize,
    },
    /// A `test` failed.
    #[error("operation {operation}: the value at {path:?} is another one")]
    TestFailed {
        /// Index of the operation.
        operation: usize,
        /// The place.
        path: String,
    },
    /// A value would be moved into itself.
    #[error("operation {operation}: cannot move {from:?} into itself ({path:?})")]
    IntoItself {
        /// Index of the operation.
        operation: usize,
        /// Source.
        from: String,
        /// Target.
        path: String,
    },
    /// The patch is larger than the documented bounds.
    #[error("operation {operation}: the patch exceeds {limit}")]
    TooLarge {
        /// Index of the operation.
        operation: usize,
        /// Which bound.
        limit: &'static str,
    },
}

impl PatchError {
    /// A stable label of low cardinality, for metrics.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Malformed { .. } => "malformed",
            Self::Missing { .. } => "missing",
            Self::Index { .. } => "index",
            Self::TestFailed { .. } => "test_failed",
            Self::IntoItself { .. } => "into_itself",
            Self::TooLarge { .. } => "too_large",
        }
    }
}

pub(super) fn apply(patch: &Patch, document: &Value) -> Result<Value, PatchError> {
    if patch.0.len() > MAX_OPERATIONS {
        return Err(PatchError::TooLarge { operation: MAX_OPERATIONS, limit: "100,000 operations" });
    }
    let mut result = document.clone();
    let mut copied = 0;
    for (operation, step) in patch.0.iter().enumerate() {
        match step {
            Operation::Add { path, value } => add(&mut result, path, value.clone(), operation)?,
            Operation::Remove { path } => drop(remove(&mut result, path, operation)?),
            Operation::Replace { path, value } => *place(&mut result, path, operation)? = value.clone(),
            Operation::Test { path, value } => {
                let actual = path.resolve(&result).ok_or_else(|| missing(operation, path))?;
                if !same(actual, value) {
                    return Err(PatchError::TestFailed { operation, path: path.to_string() });
                }
            }
            Operation::Copy { from, path } => {
                let value = from.resolve(&result).ok_or_else(|| missing(operation, from))?;
                copied += size(value);
                if copied > MAX_COPIED {
                    return Err(PatchError::TooLarge { operation, limit: "1,000,000 copied values" });
                }
                let value = value.clone();
                add(&mut result, path, value, operation)?;
            }
            Operation::Move { from, path } => {
                if from == path {
                    from.resolve(&result).ok_or_else(|| missing(operation, from))?;
                    continue;
                }
                if from.contains(path) {
                    return Err(PatchError::IntoItself {
                        operation,
                        from: from.to_string(),
                        path: path.to_string(),
                    });
                }
                let value = remove(&mut result, from, operation)?;
                add(&mut result, path, value, operation)?;
            }
        }
    }
    Ok(result)
}

fn add(document: &mut Value, path: &Pointer, value: Value, operation: usize) -> Result<(), PatchError> {
    let Some((last, parents)) = path.tokens().split_last() else {
        *document = value;
        return Ok(());
    };
    match walk(document, parents, path, operation)? {
        Value::Object(map) => {
            map.insert(last.clone(), value);
            Ok(())
        }
        Value::Array(items) => {
            let length = items.len();
            let at = if last == "-" { Some(length) } else { index(last).filter(|at| *at <= length) };
            items.insert(at.ok_or_else(|| bad_index(operation, path, last, length))?, value);
            Ok(())
        }
        _ => Err(missing(operation, path)),
    }
}

fn remove(document: &mut Value, path: &Pointer, operation: usize) -> Result<Value, PatchError> {
    let Some((last, parents)) = path.tokens().split_last() else {
        return Ok(document.take());
    };
    match walk(document, parents, path, operation)? {
        Value::Object(map) => map.remove(last).ok_or_else(|| missing(operation, path)),
        Value::Array(items) => {
            let at = index(last).filter(|at| *at < items.len());
            Ok(items.remove(at.ok_or_else(|| bad_index(operation, path, last, items.len()))?))
        }
        _ => Err(missing(operation, path)),
    }
}

fn place<'a>(document: &'a mut Value, path: &Pointer, operation: usize) -> Result<&'a mut Value, PatchError> {
    walk(document, path.tokens(), path, operation)
}

fn walk<'a>(
    document: &'a mut Value,
    tokens: &[String],
    path: &Pointer,
    operation: usize,
) -> Result<&'a mut Value, PatchError> {
    tokens.iter().try_fold(document, |value, token| match value {
        Value::Object(map) => map.get_mut(token).ok_or_else(|| missing(operation, path)),
        Value::Array(items) => {
            let length = items.len();
            index(token)
                .and_then(|i| items.get_mut(i))
                .ok_or_else(|| bad_index(operation, path, token, length))
        }
        _ => Err(missing(operation, path)),
    })
}

/// Equality as RFC 6902 section 4.6 wants it: numbers by value, everything else structurally.
fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        // Two integers compare exactly; as soon as one is a fraction, both are compared as such (1 = 1.0).
        (Value::Number(a), Value::Number(b)) => {
            a == b || ((a.is_f64() || b.is_f64()) && a.as_f64() == b.as_f64())
        }
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b)),
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(key, a)| b.get(key).is_some_and(|b| same(a, b)))
        }
        (a, b) => a == b,
    }
}

fn missing(operation: usize, path: &Pointer) -> PatchError {
    PatchError::Missing { operation, path: path.to_string() }
}

fn bad_index(operation: usize, path: &Pointer, token: &str, length: usize) -> PatchError {
    PatchError::Index { operation, path: path.to_string(), token: token.to_owned(), length }
}

fn size(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(size).sum::<usize>(),
        Value::Object(map) => 1 + map.values().map(size).sum::<usize>(),
        _ => 1,
    }
}
