#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

pub mod annotation;
mod cluster;
mod decision;
mod error;
mod injector;
pub mod json;
pub mod offline;
mod overrides;
pub mod patch;
mod pod;
mod post;
mod proxy_config;
mod review;
mod selector;
mod settings;
pub mod strategic;
mod template;
mod validate;
mod values;
mod warning;
pub mod webhook;
mod workload;
mod yaml;

#[doc(hidden)]
pub mod fuzzing;

pub use cluster::Cluster;
pub use decision::{Decision, IGNORED_NAMESPACES, InjectReason, SkipReason};
pub use error::{AnnotationViolation, InjectError};
pub use injector::{Injected, Injector, Request};
pub use review::{HttpReply, HttpRequest, Outcome, path_environment};
pub use selector::{LabelSelector, Labels, Requirement};
pub use settings::{NativeSidecars, Settings};
pub use template::{BUILT_IN, Template, TemplateContext};
pub use warning::Warning;
pub use webhook::{WebhookOptions, patch_ca_bundle, selected_by};
pub use workload::Workload;
