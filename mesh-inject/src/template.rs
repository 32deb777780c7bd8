//! Templates: functions from a pod to the partial pod that is merged into it.
//!
//! Four are built in (`sidecar`, `gateway`, `grpc-agent`, `grpc-simple`). Others are written in Rust
//! ([`Template::custom`]) or as YAML overlays ([`Template::overlay`]); there is no text templating, so a template
//! cannot produce something that is not YAML, and a value cannot break out of its place.

mod gateway;
mod grpc;
mod overlay;
mod parts;
mod sidecar;

use std::fmt;
use std::sync::Arc;

use serde_json::Value;

use crate::annotation as a;
use crate::error::InjectError;
use crate::pod;
use crate::proxy_config::ProxyConfig;
use crate::settings::Settings;
use crate::values::Values;
use crate::workload::Workload;

pub(crate) use sidecar::cni;
pub(crate) use sidecar::otel::asked as resource_attributes_asked;

/// A template that the settings add to the built-in ones.
#[derive(Clone)]
pub struct Template(Kind);

type Render = dyn Fn(&TemplateContext<'_>) -> Result<Value, InjectError> + Send + Sync;

#[derive(Clone)]
enum Kind {
    Custom(Arc<Render>),
    Overlay(Arc<Value>),
    Unusable(String),
}

impl Template {
    /// A template written in Rust: the function returns a partial Pod, in which `null` deletes and `$patch` works as in
    /// a strategic merge patch.
    pub fn custom(
        render: impl Fn(&TemplateContext<'_>) -> Result<Value, InjectError> + Send + Sync + 'static,
    ) -> Self {
        Self(Kind::Custom(Arc::new(render)))
    }

    /// A YAML overlay: a partial Pod. A container named `"*"` stands for every application container of the pod.
    ///
    /// # Errors
    /// [`InjectError::Template`] when it is not YAML or not a map.
    pub fn overlay(name: &str, yaml: &str) -> Result<Self, InjectError> {
        let failed = |message: String| InjectError::Template { name: name.to_owned(), message };
        match crate::yaml::parse(yaml).map_err(failed)? {
            Value::Object(map) => Ok(Self(Kind::Overlay(Arc::new(Value::Object(map))))),
            other => Err(failed(format!("expected a map, found {}", crate::json::type_name(&other)))),
        }
    }

    /// A template found in existing values: YAML becomes an overlay; Go text is remembered and refused by name when a
    /// pod asks for it.
    pub(crate) fn from_text(name: &str, text: &str) -> Self {
        if text.contains("{{") {
            return Self(Kind::Unusable(
                "is a Go text template; restate it as a YAML overlay or in Rust".to_owned(),
            ));
        }
        Self::overlay(name, text).unwrap_or_else(|error| Self(Kind::Unusable(error.to_string())))
    }

    pub(crate) fn render(&self, name: &str, context: &TemplateContext<'_>) -> Result<Value, InjectError> {
        match &self.0 {
            Kind::Custom(render) => render(context),
            Kind::Overlay(overlay) => Ok(overlay::expand(overlay, context.pod)),
            Kind::Unusable(message) => {
                Err(InjectError::Template { name: name.to_owned(), message: message.clone() })
            }
        }
    }
}

impl fmt::Debug for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match &self.0 {
            Kind::Custom(_) => "Template::Custom",
            Kind::Overlay(_) => "Template::Overlay",
            Kind::Unusable(_) => "Template::Unusable",
        })
    }
}

/// Names of the built-in templates.
pub const BUILT_IN: [&str; 4] = ["sidecar", "gateway", "grpc-agent", "grpc-simple"];

pub(crate) fn render_built_in(
    name: &str,
    context: &TemplateContext<'_>,
) -> Option<Result<Value, InjectError>> {
    Some(match name {
        "sidecar" => sidecar::render(context),
        "gateway" => Ok(gateway::render(context)),
        "grpc-agent" => Ok(grpc::agent(context)),
        "grpc-simple" => Ok(grpc::simple(context)),
        _ => return None,
    })
}

/// What a template may look at.
#[derive(Debug)]
pub struct TemplateContext<'a> {
    pub(crate) pod: &'a Value,
    pub(crate) values: &'a Values,
    pub(crate) mesh: &'a Value,
    pub(crate) settings: &'a Settings,
    pub(crate) workload: &'a Workload,
    pub(crate) proxy: &'a ProxyConfig,
    pub(crate) proxy_text: &'a str,
    pub(crate) cluster: &'a str,
    pub(crate) network: &'a str,
    pub(crate) previous_ports: Option<&'a str>,
    pub(crate) native_default: bool,
    pub(crate) uid: i64,
    pub(crate) gid: i64,
}

impl<'a> TemplateContext<'a> {
    /// The pod as the user wrote it: without what an earlier injection added.
    #[must_use]
    pub fn pod(&self) -> &'a Value {
        self.pod
    }

    /// The application's containers: all of `spec.containers` but the sidecar.
    pub fn app_containers(&self) -> impl Iterator<Item = &'a Value> {
        pod::containers(self.pod).iter().filter(|container| pod::name_of(container) != a::PROXY_CONTAINER)
    }

    /// An annotation of the pod.
    #[must_use]
    pub fn annotation(&self, key: &str) -> Option<&'a str> {
        pod::annotation(self.pod, key)
    }

    /// A label of the pod.
    #[must_use]
    pub fn label(&self, key: &str) -> Option<&'a str> {
        pod::label(self.pod, key)
    }

    /// The workload that the pod belongs to.
    #[must_use]
    pub fn workload(&self) -> &'a Workload {
        self.workload
    }

    /// The revision of this control plane; `default` when it has none.
    #[must_use]
    pub fn revision(&self) -> &'a str {
        if self.settings.revision.is_empty() { "default" } else { &self.settings.revision }
    }

    /// Will the sidecar be a native one in this pod?
    #[must_use]
    pub fn native(&self) -> bool {
        native(self.pod, self.native_default)
    }

    /// The network that the pod belongs to; empty when none is known.
    #[must_use]
    pub fn network(&self) -> &'a str {
        self.network
    }

    /// The annotation if the key exists (even when empty), else the default.
    pub(crate) fn annotation_or(&self, key: &str, default: &'a str) -> &'a str {
        self.annotation(key).unwrap_or(default)
    }

    pub(crate) fn interception_mode(&self) -> &'a str {
        self.annotation_or(a::INTERCEPTION_MODE, self.proxy.interception_mode())
    }

    pub(crate) fn status_port(&self) -> &'a str {
        self.annotation_or(a::STATUS_PORT, &self.values.status_port)
    }

    pub(crate) fn trust_domain(&self) -> &'a str {
        let mesh = self.mesh.get("trustDomain").and_then(Value::as_str).filter(|domain| !domain.is_empty());
        mesh.unwrap_or(&self.values.trust_domain)
    }
}

/// The sidecar's layout in one pod: its annotation, if it has a value, else the default.
pub(crate) fn native(pod: &Value, default: bool) -> bool {
    match pod::annotation(pod, a::NATIVE_SIDECAR).filter(|value| !value.is_empty()) {
        Some(value) => value != "false",
        None => default,
    }
}
