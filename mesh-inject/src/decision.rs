//! Should this pod get a sidecar, and because of what?
//!
//! The API server asks first ([`crate::webhook::selected_by`]: labels of namespace and pod). What is here is the second
//! half, the handler's own procedure, which looks at the pod and never again at the namespace's labels.

use std::fmt;

use serde::Serialize;
use serde_json::Value;

use crate::annotation::INJECT;
use crate::json::at;
use crate::selector::{LabelSelector, Labels};

/// Namespaces that are never injected.
pub const IGNORED_NAMESPACES: [&str; 4] =
    ["kube-system", "kube-public", "kube-node-lease", "local-path-storage"];

/// What the injector will do with a pod, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase", tag = "decision", content = "reason")]
pub enum Decision {
    /// The pod is injected.
    Inject(InjectReason),
    /// The pod is left as it is.
    Skip(SkipReason),
}

/// Why a pod is injected.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase", tag = "because")]
#[non_exhaustive]
pub enum InjectReason {
    /// The pod's label says `true`.
    Label,
    /// The pod's annotation says `true` (and there is no label).
    Annotation,
    /// An always-inject selector matches the pod's labels.
    AlwaysSelector {
        /// Position in the list.
        index: usize,
        /// The selector as text.
        selector: String,
    },
    /// Nothing says otherwise and the policy is `enabled`.
    Policy,
}

/// Why a pod is left alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase", tag = "because")]
#[non_exhaustive]
pub enum SkipReason {
    /// The pod uses the node's network: redirecting it would redirect the node.
    HostNetwork,
    /// The namespace belongs to the system.
    IgnoredNamespace {
        /// Its name.
        namespace: String,
    },
    /// The pod's label says `false`.
    Label,
    /// The pod's annotation says `false` (and there is no label).
    Annotation,
    /// A never-inject selector matches the pod's labels.
    NeverSelector {
        /// Position in the list.
        index: usize,
        /// The selector as text.
        selector: String,
    },
    /// Nothing asks for injection and the policy is `disabled`.
    PolicyDisabled,
    /// The policy is neither `enabled` nor `disabled`.
    UnknownPolicy {
        /// The policy.
        policy: String,
    },
    /// The review is not about the creation of a pod.
    NotPodCreation {
        /// Operation, kind and sub-resource as the review names them.
        what: String,
    },
}

impl Decision {
    /// Will the pod be injected?
    #[must_use]
    pub fn is_inject(&self) -> bool {
        matches!(self, Self::Inject(_))
    }

    /// A stable label of low cardinality, for metrics.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Inject(reason) => match reason {
                InjectReason::Label => "label",
                InjectReason::Annotation => "annotation",
                InjectReason::AlwaysSelector { .. } => "always_selector",
                InjectReason::Policy => "policy",
            },
            Self::Skip(reason) => match reason {
                SkipReason::HostNetwork => "host_network",
                SkipReason::IgnoredNamespace { .. } => "ignored_namespace",
                SkipReason::Label => "label",
                SkipReason::Annotation => "annotation",
                SkipReason::NeverSelector { .. } => "never_selector",
                SkipReason::PolicyDisabled => "policy_disabled",
                SkipReason::UnknownPolicy { .. } => "unknown_policy",
                SkipReason::NotPodCreation { .. } => "not_pod_creation",
            },
        }
    }

    /// The field that decided, as a path in the pod, its namespace or the injector's settings.
    #[must_use]
    pub fn field(&self) -> &'static str {
        match self {
            Self::Inject(InjectReason::Label) | Self::Skip(SkipReason::Label) => {
                "metadata.labels[sidecar.istio.io/inject]"
            }
            Self::Inject(InjectReason::Annotation) | Self::Skip(SkipReason::Annotation) => {
                "metadata.annotations[sidecar.istio.io/inject]"
            }
            Self::Inject(InjectReason::AlwaysSelector { .. }) => "settings.alwaysInjectSelector",
            Self::Skip(SkipReason::NeverSelector { .. }) => "settings.neverInjectSelector",
            Self::Skip(SkipReason::HostNetwork) => "spec.hostNetwork",
            Self::Skip(SkipReason::IgnoredNamespace { .. }) => "metadata.namespace",
            Self::Skip(SkipReason::NotPodCreation { .. }) => "request.operation",
            Self::Inject(InjectReason::Policy)
            | Self::Skip(SkipReason::PolicyDisabled | SkipReason::UnknownPolicy { .. }) => "settings.policy",
        }
    }

    /// One sentence for people.
    #[must_use]
    pub fn explain(&self) -> String {
        self.to_string()
    }
}

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Inject(reason) => {
                f.write_str("injected: ")?;
                match reason {
                    InjectReason::Label => write!(f, "the pod's label {INJECT} is \"true\""),
                    InjectReason::Annotation => write!(f, "the pod's annotation {INJECT} is \"true\""),
                    InjectReason::AlwaysSelector { index, selector } => {
                        write!(f, "alwaysInjectSelector[{index}] matches ({selector})")
                    }
                    InjectReason::Policy => {
                        f.write_str("the policy is \"enabled\" and nothing says otherwise")
                    }
                }
            }
            Self::Skip(reason) => {
                f.write_str("skipped: ")?;
                match reason {
                    SkipReason::HostNetwork => f.write_str(
                        "spec.hostNetwork is true; redirecting its traffic would redirect the node's",
                    ),
                    SkipReason::IgnoredNamespace { namespace } => {
                        write!(f, "namespace {namespace} is never injected")
                    }
                    SkipReason::Label => write!(f, "the pod's label {INJECT} is \"false\""),
                    SkipReason::Annotation => write!(f, "the pod's annotation {INJECT} is \"false\""),
                    SkipReason::NeverSelector { index, selector } => {
                        write!(f, "neverInjectSelector[{index}] matches ({selector})")
                    }
                    SkipReason::PolicyDisabled => {
                        f.write_str("the policy is \"disabled\" and the pod does not ask for injection")
                    }
                    SkipReason::UnknownPolicy { policy } => {
                        write!(f, "the policy {policy:?} is neither \"enabled\" nor \"disabled\"")
                    }
                    SkipReason::NotPodCreation { what } => write!(f, "not the creation of a pod ({what})"),
                }
            }
        }
    }
}

/// What the procedure needs from the settings.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rules<'a> {
    pub(crate) policy: &'a str,
    pub(crate) never: &'a [LabelSelector],
    pub(crate) always: &'a [LabelSelector],
}

/// Run the handler's procedure. Notes say what was ignored on the way (an unknown value, an unusable selector).
pub(crate) fn decide(rules: Rules<'_>, pod: &Value, namespace: &str, notes: &mut Vec<String>) -> Decision {
    if at(pod, ["spec", "hostNetwork"]).and_then(Value::as_bool) == Some(true) {
        return Decision::Skip(SkipReason::HostNetwork);
    }
    if IGNORED_NAMESPACES.contains(&namespace) {
        return Decision::Skip(SkipReason::IgnoredNamespace { namespace: namespace.to_owned() });
    }
    let labels = Labels::of(pod);
    let annotation = pod
        .pointer("/metadata/annotations")
        .and_then(|annotations| annotations.get(INJECT))
        .and_then(Value::as_str);
    let (value, from_label) = match labels.get(INJECT) {
        Some(value) => (value, true),
        None => (annotation.unwrap_or_default(), false),
    };
    let mut wish: Option<Decision> = match value {
        "true" if from_label => Some(Decision::Inject(InjectReason::Label)),
        "true" => Some(Decision::Inject(InjectReason::Annotation)),
        "false" if from_label => Some(Decision::Skip(SkipReason::Label)),
        "false" => Some(Decision::Skip(SkipReason::Annotation)),
        "" => None,
        other => {
            notes.push(format!(
                "{} {INJECT} has the value {other:?}, which is neither \"true\" nor \"false\": ignored",
                if from_label { "label" } else { "annotation" }
            ));
            None
        }
    };
    if wish.is_none() {
        wish = first_match("neverInjectSelector", rules.never, &labels, notes)
            .map(|(index, selector)| Decision::Skip(SkipReason::NeverSelector { index, selector }));
    }
    if wish.is_none() {
        wish = first_match("alwaysInjectSelector", rules.always, &labels, notes)
            .map(|(index, selector)| Decision::Inject(InjectReason::AlwaysSelector { index, selector }));
    }
    match rules.policy {
        "enabled" => wish.unwrap_or(Decision::Inject(InjectReason::Policy)),
        "disabled" => wish.unwrap_or(Decision::Skip(SkipReason::PolicyDisabled)),
        other => Decision::Skip(SkipReason::UnknownPolicy { policy: other.to_owned() }),
    }
}

fn first_match(
    list: &str,
    selectors: &[LabelSelector],
    labels: &Labels<'_>,
    notes: &mut Vec<String>,
) -> Option<(usize, String)> {
    for (index, selector) in selectors.iter().enumerate() {
        if let Some(problem) = selector.problem() {
            notes.push(format!("{list}[{index}] is ignored: {problem}"));
        } else if !selector.is_empty() && selector.matches(labels) {
            return Some((index, selector.to_string()));
        }
    }
    None
}
