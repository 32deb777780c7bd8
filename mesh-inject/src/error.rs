//! What can go wrong, as values that name the field and carry the value.

use std::fmt;

/// Why a pod, its settings or a request could not be processed.
///
/// Nothing is ever half done: an error means that the pod is untouched.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InjectError {
    /// The pod is not shaped like a Pod: a field has the wrong JSON type or a required name is missing.
    #[error("invalid pod: field `{field}`: expected {expected}, found {found}")]
    InvalidPod {
        /// Path of the field, for example `spec.containers[0].name`.
        field: String,
        /// What should stand there.
        expected: &'static str,
        /// What stands there.
        found: String,
    },
    /// One or more annotations have values that the injector cannot honour.
    #[error("failed to run injection template: {}", AnnotationList(.violations))]
    InvalidAnnotations {
        /// Every violation found; never empty.
        violations: Vec<AnnotationViolation>,
    },
    /// `inject.istio.io/templates` asks for a template that does not exist.
    #[error("requested template {name:?} not found; have {known}")]
    UnknownTemplate {
        /// The name asked for.
        name: String,
        /// Comma-separated names that exist.
        known: String,
    },
    /// A template could not be turned into a partial pod.
    #[error("template {name:?}: {message}")]
    Template {
        /// Name of the template.
        name: String,
        /// What is wrong with it.
        message: String,
    },
    /// A strategic merge was impossible (an item without its merge key, an unknown directive).
    #[error("strategic merge: field `{field}`: {message}")]
    Merge {
        /// Path of the field inside the pod.
        field: String,
        /// What is wrong with it.
        message: String,
    },
    /// The Prometheus scrape annotations name a port that cannot be scraped.
    #[error(
        "failed to process pod: invalid prometheus scrape configuration: annotation `{annotation}`: {message} (value {value:?})"
    )]
    Prometheus {
        /// The annotation.
        annotation: String,
        /// Its value.
        value: String,
        /// What is wrong with it.
        message: String,
    },
    /// The pod would not work after injection, and the settings say to refuse such pods.
    #[error("refused: field `{field}`: {message}")]
    Refused {
        /// Path of the field inside the pod.
        field: String,
        /// Why.
        message: String,
    },
    /// The settings themselves are wrong.
    #[error("invalid settings: `{field}`: {message}")]
    Settings {
        /// Path of the field inside the settings.
        field: String,
        /// What is wrong with it.
        message: String,
    },
    /// The document is not JSON or YAML, or breaks a limit (size, depth, duplicate keys).
    #[error("invalid document: {message}")]
    Document {
        /// What is wrong with it.
        message: String,
    },
}

impl InjectError {
    /// A stable label of low cardinality, for metrics.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::InvalidPod { .. } => "invalid_pod",
            Self::InvalidAnnotations { .. } => "invalid_annotation",
            Self::UnknownTemplate { .. } => "unknown_template",
            Self::Template { .. } => "template",
            Self::Merge { .. } => "merge",
            Self::Prometheus { .. } => "prometheus",
            Self::Refused { .. } => "refused",
            Self::Settings { .. } => "settings",
            Self::Document { .. } => "document",
        }
    }
}

/// One annotation whose value is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AnnotationViolation {
    /// The annotation key.
    pub annotation: String,
    /// Its value.
    pub value: String,
    /// What is wrong with it.
    pub message: String,
}

impl fmt::Display for AnnotationViolation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "invalid value {:?} for annotation '{}': {}", self.value, self.annotation, self.message)
    }
}

struct AnnotationList<'a>(&'a [AnnotationViolation]);

impl fmt::Display for AnnotationList<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, violation) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str("; ")?;
            }
            violation.fmt(f)?;
        }
        Ok(())
    }
}
