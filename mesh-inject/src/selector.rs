//! Kubernetes label selectors.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::error::InjectError;
use crate::json::at;

/// A Kubernetes `LabelSelector`: every requirement must hold.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LabelSelector {
    /// Each label must have exactly this value.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub match_labels: BTreeMap<String, String>,
    /// Each expression must hold.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub match_expressions: Vec<Requirement>,
}

/// One expression of a [`LabelSelector`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Requirement {
    /// Label key.
    pub key: String,
    /// How the values are compared; kept as text so that an unknown operator is a finding, not a parse failure.
    pub operator: String,
    /// Values of `In` and `NotIn`; empty for `Exists` and `DoesNotExist`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub values: Vec<String>,
}

impl LabelSelector {
    /// Read a selector from JSON; `null` is the empty selector.
    ///
    /// # Errors
    /// [`InjectError::Settings`] when it is not shaped like a selector.
    pub fn from_json(field: &str, value: &Value) -> Result<Self, InjectError> {
        if value.is_null() {
            return Ok(Self::default());
        }
        Self::deserialize(value)
            .map_err(|error| InjectError::Settings { field: field.to_owned(), message: error.to_string() })
    }

    /// True when it has no requirement; such a selector matches everything for the API server and nothing for
    /// the injector's never/always lists.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.match_labels.is_empty() && self.match_expressions.is_empty()
    }

    /// What makes the selector unusable, if anything.
    #[must_use]
    pub fn problem(&self) -> Option<String> {
        let bad_key = |key: &str| (!valid_key(key)).then(|| format!("invalid label key {key:?}"));
        if let Some(problem) = self.match_labels.keys().find_map(|key| bad_key(key)) {
            return Some(problem);
        }
        if let Some(value) = self.match_labels.values().find(|value| !valid_value(value)) {
            return Some(format!("invalid label value {value:?}"));
        }
        self.match_expressions.iter().find_map(|requirement| {
            let empty = requirement.values.is_empty();
            bad_key(&requirement.key).or_else(|| match requirement.operator.as_str() {
                "In" | "NotIn" if empty => Some(format!("{requirement}: needs at least one value")),
                "Exists" | "DoesNotExist" if !empty => Some(format!("{requirement}: takes no values")),
                "In" | "NotIn" | "Exists" | "DoesNotExist" => None,
                other => Some(format!("unknown operator {other:?}")),
            })
        })
    }

    /// The first requirement that the labels do not meet, as text; `None` when all are met.
    /// An unusable requirement is never met.
    #[must_use]
    pub fn unmet(&self, labels: &Labels<'_>) -> Option<String> {
        for (key, wanted) in &self.match_labels {
            if labels.get(key) != Some(wanted) {
                return Some(format!("{key} = {wanted} ({})", labels.describe(key)));
            }
        }
        self.match_expressions
            .iter()
            .find(|requirement| !requirement.met(labels))
            .map(|requirement| format!("{requirement} ({})", labels.describe(&requirement.key)))
    }

    /// Do the labels meet every requirement?
    #[must_use]
    pub fn matches(&self, labels: &Labels<'_>) -> bool {
        self.unmet(labels).is_none()
    }
}

impl Requirement {
    /// Does a label set meet this requirement?
    #[must_use]
    pub fn met(&self, labels: &Labels<'_>) -> bool {
        let value = labels.get(&self.key);
        let listed = || value.is_some_and(|value| self.values.iter().any(|v| v == value));
        match self.operator.as_str() {
            "In" => listed(),
            "NotIn" => !listed(),
            "Exists" => value.is_some(),
            "DoesNotExist" => value.is_none(),
            _ => false,
        }
    }
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.key, self.operator)?;
        if !self.values.is_empty() {
            write!(f, " [{}]", self.values.join(", "))?;
        }
        Ok(())
    }
}

impl fmt::Display for LabelSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts: Vec<String> = self.match_labels.iter().map(|(k, v)| format!("{k} = {v}")).collect();
        parts.extend(self.match_expressions.iter().map(ToString::to_string));
        f.write_str(&parts.join(" and "))
    }
}

/// Labels of an object, read in place.
#[derive(Debug, Clone, Default)]
pub struct Labels<'a> {
    map: Option<&'a Map<String, Value>>,
    extra: Option<(&'a str, &'a str)>,
}

impl<'a> Labels<'a> {
    /// Labels of a Kubernetes object (`metadata.labels`).
    #[must_use]
    pub fn of(object: &'a Value) -> Self {
        Self { map: at(object, ["metadata", "labels"]).and_then(Value::as_object), extra: None }
    }

    /// Labels of a Namespace object, with `kubernetes.io/metadata.name`, which the API server adds to every one.
    #[must_use]
    pub fn of_namespace(namespace: &'a Value) -> Self {
        let name = at(namespace, ["metadata", "name"]).and_then(Value::as_str);
        Self { extra: name.map(|name| ("kubernetes.io/metadata.name", name)), ..Self::of(namespace) }
    }

    /// Value of a label.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&'a str> {
        self.map
            .and_then(|map| map.get(key))
            .and_then(Value::as_str)
            .or_else(|| self.extra.filter(|(name, _)| *name == key).map(|(_, value)| value))
    }

    fn describe(&self, key: &str) -> String {
        match self.get(key) {
            Some(value) => format!("it is {value:?}"),
            None => "it is not set".to_owned(),
        }
    }
}

fn valid_key(key: &str) -> bool {
    let (prefix, name) = match key.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, key),
    };
    let prefix_ok = prefix.is_none_or(|prefix| {
        !prefix.is_empty()
            && prefix.len() <= 253
            && prefix.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.')
    });
    prefix_ok && !name.is_empty() && name.len() <= 63 && qualified(name)
}

fn valid_value(value: &str) -> bool {
    value.is_empty() || (value.len() <= 63 && qualified(value))
}

fn qualified(text: &str) -> bool {
    let alphanumeric = |b: Option<u8>| b.is_some_and(|b| b.is_ascii_alphanumeric());
    alphanumeric(text.bytes().next())
        && alphanumeric(text.bytes().next_back())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn operators() {
        let pod = json!({"metadata":{"labels":{"app":"web","tier":"front"}}});
        let labels = Labels::of(&pod);
        let selector = |value: Value| LabelSelector::from_json("s", &value).unwrap();
        let expression = |key: &str, operator: &str, values: &[&str]| {
            selector(json!({"matchExpressions":[{"key":key,"operator":operator,"values":values}]}))
        };
        assert!(selector(json!({"matchLabels":{"app":"web"}})).matches(&labels));
        assert!(!selector(json!({"matchLabels":{"app":"web","tier":"back"}})).matches(&labels));
        assert!(expression("app", "In", &["db", "web"]).matches(&labels));
        assert!(!expression("app", "NotIn", &["web"]).matches(&labels));
        assert!(expression("none", "NotIn", &["web"]).matches(&labels));
        assert!(expression("app", "Exists", &[]).matches(&labels));
        assert!(expression("none", "DoesNotExist", &[]).matches(&labels));
        assert!(!expression("app", "Like", &["web"]).matches(&labels));
        assert!(expression("app", "Like", &["web"]).problem().is_some());
        assert!(expression("app", "In", &[]).problem().is_some());
        assert!(expression("a b", "Exists", &[]).problem().is_some());
        assert!(expression("example.com/app", "Exists", &[]).problem().is_none());
        assert_eq!(
            expression("tier", "In", &["back"]).unmet(&labels).unwrap(),
            "tier In [back] (it is \"front\")"
        );
    }
}
