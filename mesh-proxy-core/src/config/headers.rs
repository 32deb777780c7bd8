//! Header operations.

use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue};

/// Changes to a message's headers: removals first, then additions in order.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct HeaderOperations {
    /// Names to remove.
    pub remove: Vec<HeaderName>,
    /// Values to add.
    pub add: Vec<HeaderOperation>,
}

/// One addition.
#[derive(Debug, Clone, PartialEq)]
pub struct HeaderOperation {
    /// The name.
    pub name: HeaderName,
    /// The value. `%OPERATORS%` are expanded when `template` is given.
    pub value: HeaderValue,
    /// The value as a format with operators, or `None` for a literal.
    pub template: Option<Arc<str>>,
    /// What happens with a value already there.
    pub action: AppendAction,
}

impl HeaderOperation {
    /// Sets a header, replacing what is there.
    #[must_use]
    pub fn set(name: HeaderName, value: HeaderValue) -> Self {
        Self { name, value, template: None, action: AppendAction::OverwriteOrAdd }
    }

    /// Adds a value to those already there.
    #[must_use]
    pub fn append(name: HeaderName, value: HeaderValue) -> Self {
        Self { name, value, template: None, action: AppendAction::AppendOrAdd }
    }
}

/// What happens with a value already there (Envoy's `HeaderAppendAction`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AppendAction {
    /// Add another value.
    #[default]
    AppendOrAdd,
    /// Do nothing.
    AddIfAbsent,
    /// Replace.
    OverwriteOrAdd,
    /// Replace; do nothing when absent.
    OverwriteIfExists,
}

impl HeaderOperations {
    /// Whether nothing would change.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.remove.is_empty() && self.add.is_empty()
    }

    /// Applies the operations; `expand` renders a template to its value (`None` skips the addition).
    pub fn apply(&self, headers: &mut HeaderMap, mut expand: impl FnMut(&str) -> Option<HeaderValue>) {
        for name in &self.remove {
            headers.remove(name);
        }
        for op in &self.add {
            let value = match &op.template {
                None => op.value.clone(),
                Some(template) => match expand(template) {
                    Some(value) => value,
                    None => continue,
                },
            };
            match op.action {
                AppendAction::AppendOrAdd => {
                    headers.append(op.name.clone(), value);
                }
                AppendAction::AddIfAbsent => {
                    headers.entry(op.name.clone()).or_insert(value);
                }
                AppendAction::OverwriteOrAdd => {
                    headers.insert(op.name.clone(), value);
                }
                AppendAction::OverwriteIfExists => {
                    if headers.contains_key(&op.name) {
                        headers.insert(op.name.clone(), value);
                    }
                }
            }
        }
    }
}
