//! From a pod to the injected pod.

mod sanity;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Map, Value};

use crate::annotation as a;
use crate::cluster::Cluster;
use crate::decision::{self, Decision, Rules};
use crate::error::InjectError;
use crate::json::{at, object};
use crate::overrides::{self, Overrides};
use crate::patch::{self, Patch};
use crate::pod;
use crate::post;
use crate::proxy_config::ProxyConfig;
use crate::settings::{Settings, default_values, overlay};
use crate::strategic::{self, Directives};
use crate::template::{self, TemplateContext};
use crate::validate;
use crate::values::Values;
use crate::warning::{self, Used, Warning};
use crate::workload::Workload;

/// The injector: settings, checked and read once. Cheap to clone, `Send` and `Sync`; every method is a pure function.
#[derive(Debug, Clone)]
pub struct Injector {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    settings: Settings,
    values: Values,
    mesh: Value,
    built_in: ProxyConfig,
    defaults: ProxyConfig,
    defaults_text: String,
    default_templates: Vec<String>,
}

/// One pod to inject.
#[derive(Debug, Clone)]
pub struct Request<'a> {
    /// The pod, or `{metadata, spec}` of a pod template.
    pub pod: &'a Value,
    /// Namespace that the pod goes to; empty means the one in its metadata.
    pub namespace: &'a str,
    /// The cluster around it.
    pub cluster: &'a Cluster,
    /// Environment from the webhook's path (`ISTIO_META_CLUSTER_ID`, …). Default: none.
    pub environment: BTreeMap<String, String>,
    /// The workload, where the caller knows it (offline); otherwise it is derived from the pod. Default: derived.
    pub workload: Option<Workload>,
    /// `proxy.istio.io/config` changes the mesh's own configuration, as in offline injection. Default: false.
    pub offline: bool,
}

impl<'a> Request<'a> {
    /// A request with nothing but a pod, its namespace and a cluster.
    #[must_use]
    pub fn new(pod: &'a Value, namespace: &'a str, cluster: &'a Cluster) -> Self {
        Self { pod, namespace, cluster, environment: BTreeMap::new(), workload: None, offline: false }
    }
}

/// An injected pod.
#[derive(Debug, Clone)]
pub struct Injected {
    /// The whole pod.
    pub pod: Value,
    /// What a person should know.
    pub warnings: Vec<Warning>,
    /// The templates that were used, in order.
    pub templates: Vec<String>,
}

impl Injected {
    /// The smallest patch from `original` to the injected pod.
    #[must_use]
    pub fn patch(&self, original: &Value) -> Patch {
        patch::diff(original, &self.pod)
    }
}

impl Injector {
    /// Check the settings.
    ///
    /// # Errors
    /// [`InjectError::Settings`] with the field that is wrong.
    pub fn new(settings: Settings) -> Result<Self, InjectError> {
        let mut values = default_values();
        // A seccomp profile is one thing: what the settings say replaces ours, also when it is empty.
        let seccomp = "/global/proxy/seccompProfile";
        if let (Some(ours), Some(theirs)) = (values.pointer_mut(seccomp), settings.values.pointer(seccomp)) {
            ours.clone_from(theirs);
        }
        overlay(&mut values, &settings.values);
        let values = Values::read(&values)?;
        let wrong = |field: &str, message: String| InjectError::Settings { field: field.to_owned(), message };
        if !settings.mesh.is_object() {
            return Err(wrong("mesh", "expected a map".to_owned()));
        }
        let mut mesh = serde_json::json!({"trustDomain": "cluster.local", "rootNamespace": "istio-system"});
        overlay(&mut mesh, &settings.mesh);
        let built_in = ProxyConfig::built_in();
        let mut defaults = built_in.clone();
        if let Some(config) = mesh.get("defaultConfig").filter(|config| !config.is_null()) {
            let fields =
                config.as_object().ok_or_else(|| wrong("mesh.defaultConfig", "expected a map".to_owned()))?;
            defaults.apply(fields);
            if let Some(problem) = defaults.problem() {
                return Err(wrong("mesh.defaultConfig", problem));
            }
        }
        let default_templates = if settings.default_templates.is_empty() {
            vec!["sidecar".to_owned()]
        } else {
            settings.default_templates.clone()
        };
        let defaults_text = defaults.render(&built_in);
        Ok(Self {
            inner: Arc::new(Inner {
                settings,
                values,
                mesh,
                built_in,
                defaults,
                defaults_text,
                default_templates,
            }),
        })
    }

    /// The settings that it was made from.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.inner.settings
    }

    /// The handler's decision about a pod. What the API server decides before is
    /// [`selected_by`](crate::webhook::selected_by).
    #[must_use]
    pub fn decide(&self, pod: &Value, namespace: &str) -> Decision {
        self.decide_with_notes(pod, namespace).0
    }

    /// The decision, and what was ignored on the way to it.
    #[must_use]
    pub fn decide_with_notes(&self, pod: &Value, namespace: &str) -> (Decision, Vec<Warning>) {
        let settings = &self.inner.settings;
        let rules = Rules {
            policy: &settings.policy,
            never: &settings.never_inject,
            always: &settings.always_inject,
        };
        let mut notes = Vec::new();
        let decision = decision::decide(rules, pod, namespace_of(pod, namespace), &mut notes);
        (decision, notes.into_iter().map(|message| Warning::Decision { message }).collect())
    }

    /// Inject the pod, whatever [`Injector::decide`] says.
    ///
    /// # Errors
    /// [`InjectError`] when the pod, its annotations or a template is wrong; nothing is half done.
    pub fn inject(&self, request: &Request<'_>) -> Result<Injected, InjectError> {
        pod::check(request.pod)?;
        self.inject_checked(request)
    }

    /// [`Injector::inject`] for a pod that passed [`pod::check`] already.
    pub(crate) fn inject_checked(&self, request: &Request<'_>) -> Result<Injected, InjectError> {
        let inner = &*self.inner;
        let original = request.pod;
        validate::annotations(original)?;
        let namespace = namespace_of(original, request.namespace);
        let mut warnings = Vec::new();
        self.refuse_clashes(original)?;

        let previous = Overrides::of(original)?;
        let with_annotation = self.with_annotation(original, &mut warnings)?;
        // What the mesh itself says: offline, the pod's annotation is merged into it.
        let mesh_config: &ProxyConfig = if request.offline { &with_annotation } else { &inner.defaults };
        let tpod = overrides::template_input(original, &previous, mesh_config.status_port());
        let proxy = self.effective(&with_annotation, original, namespace, request);
        let proxy_text = match &proxy {
            Cow::Borrowed(config) if std::ptr::eq(*config, &raw const inner.defaults) => {
                Cow::Borrowed(&inner.defaults_text)
            }
            config => Cow::Owned(config.render(&inner.built_in)),
        };
        let workload = match &request.workload {
            Some(workload) => workload.clone(),
            None => Workload::of_pod(original, namespace),
        };
        let mut environment = request.environment.clone();
        let cluster_name =
            replace(&mut environment, "ISTIO_META_CLUSTER_ID", &inner.values.cluster_name, None);
        let network = replace(
            &mut environment,
            "ISTIO_META_NETWORK",
            &inner.values.network,
            pod::label(original, a::NETWORK),
        );
        let (uid, gid) = self.ids(request.cluster, namespace);
        let mut base = Cow::Borrowed(original);
        if inner.settings.openshift {
            clear_openshift_user(base.to_mut());
        }
        let injected_before = pod::annotation(original, a::STATUS).is_some();
        let native_default = request.cluster.native_sidecars(inner.settings.native_sidecars, original);
        let context = TemplateContext {
            pod: &tpod,
            values: &inner.values,
            mesh: &inner.mesh,
            settings: &inner.settings,
            workload: &workload,
            proxy: &proxy,
            proxy_text: &proxy_text,
            cluster: &cluster_name,
            network: &network,
            previous_ports: pod::sidecar(original)
                .filter(|_| injected_before)
                .and_then(|proxy| pod::env_value(proxy, "ISTIO_META_POD_PORTS")),
            native_default,
            uid,
            gid,
        };
        let templates = self.templates(original)?;
        let mut template = Value::Object(Map::new());
        let mut merged = base.clone().into_owned();
        for name in &templates {
            let overlay = self.render(name, &context, &template)?;
            strategic::merge(&mut template, names_only(&overlay), Directives::Honour)?;
            if template::native(original, native_default) {
                follow_native(&mut merged, &template);
            }
            strategic::merge(&mut merged, overlay, Directives::Honour)?;
        }
        overrides::reapply(&mut merged, &template, &base, &previous)?;
        overrides::adjust_init_user(&mut merged, &base, &previous, proxy.interception_mode());

        post::update_cluster_env(&mut merged, &environment, injected_before);
        post::prometheus::merge(&mut merged, &inner.mesh, mesh_config.status_port(), &mut warnings)?;
        post::prometheus::secure_port(&mut merged);
        post::probes::rewrite(
            &mut merged,
            original,
            inner.values.rewrite_probes,
            mesh_config.status_port(),
            &mut warnings,
        );
        post::write_metadata(&mut merged, &template, &network, &inner.settings);
        post::reorder(&mut merged, with_annotation.hold() == Some(true) || inner.values.hold);
        let foreign = templates.iter().any(|name| inner.settings.templates.contains_key(name));
        sanity::check(original, &merged, foreign)?;
        warning::inspect(original, &merged, &template, namespace, &workload, request.cluster, &mut warnings);
        let used = Used { values: &inner.values, mesh: &inner.mesh, templates: &templates, foreign };
        warning::ignored_annotations(original, &merged, &used, &mut warnings);
        Ok(Injected { pod: merged, warnings, templates })
    }

    /// Whether the pod's templates are ours and have no business with the environment of the application's containers.
    pub(crate) fn leaves_environment_alone(&self, original: &Value) -> bool {
        let ours = |name: &String| {
            matches!(name.as_str(), "sidecar" | "gateway")
                && !self.inner.settings.templates.contains_key(name)
        };
        self.templates(original).is_ok_and(|names| names.iter().all(ours))
    }

    /// Names of the templates of a pod, aliases expanded.
    fn templates(&self, original: &Value) -> Result<Vec<String>, InjectError> {
        let settings = &self.inner.settings;
        let asked: Vec<String> = match pod::annotation(original, a::TEMPLATES) {
            Some(list) => list.split(',').map(|name| name.trim().to_owned()).collect(),
            None => self.inner.default_templates.clone(),
        };
        let mut names = Vec::new();
        for name in asked {
            match settings.aliases.get(&name) {
                Some(aliased) => names.extend(aliased.iter().cloned()),
                None => names.push(name),
            }
        }
        let known = |name: &String| {
            settings.templates.contains_key(name) || template::BUILT_IN.contains(&name.as_str())
        };
        match names.iter().find(|name| !known(name)) {
            None => Ok(names),
            Some(name) => {
                let mut all: Vec<&str> = settings.templates.keys().map(String::as_str).collect();
                all.extend(template::BUILT_IN);
                all.extend(settings.aliases.keys().map(String::as_str));
                all.sort_unstable();
                all.dedup();
                Err(InjectError::UnknownTemplate { name: name.clone(), known: all.join(", ") })
            }
        }
    }

    fn render(
        &self,
        name: &str,
        context: &TemplateContext<'_>,
        so_far: &Value,
    ) -> Result<Value, InjectError> {
        let rendered = match self.inner.settings.templates.get(name) {
            Some(custom) => custom.render(name, context),
            None => template::render_built_in(name, context).unwrap_or_else(|| {
                Err(InjectError::UnknownTemplate {
                    name: name.to_owned(),
                    known: template::BUILT_IN.join(", "),
                })
            }),
        };
        let mut overlay = rendered?;
        if !overlay.is_object() {
            return Err(InjectError::Template {
                name: name.to_owned(),
                message: format!("expected a partial pod, found {}", crate::json::type_name(&overlay)),
            });
        }
        sanity::check_overlay(name, &overlay)?;
        route_sidecar(&mut overlay, so_far);
        Ok(overlay)
    }

    fn with_annotation(
        &self,
        original: &Value,
        warnings: &mut Vec<Warning>,
    ) -> Result<Cow<'_, ProxyConfig>, InjectError> {
        let mut config = Cow::Borrowed(&self.inner.defaults);
        if let Some(text) = pod::annotation(original, a::PROXY_CONFIG) {
            let config = config.to_mut();
            let unknown = config.apply_yaml(text).map_err(|message| InjectError::InvalidAnnotations {
                violations: vec![crate::error::AnnotationViolation {
                    annotation: a::PROXY_CONFIG.to_owned(),
                    value: text.to_owned(),
                    message,
                }],
            })?;
            for field in unknown {
                warnings.push(Warning::IgnoredAnnotation {
                    annotation: a::PROXY_CONFIG.to_owned(),
                    value: field,
                    message: "not a field of ProxyConfig, so it has no effect".to_owned(),
                });
            }
        }
        Ok(config)
    }

    /// Mesh, root namespace's resource, namespace's resource, annotation, selected resource: later wins.
    fn effective<'s>(
        &'s self,
        with_annotation: &Cow<'s, ProxyConfig>,
        original: &Value,
        namespace: &str,
        request: &Request<'_>,
    ) -> Cow<'s, ProxyConfig> {
        let inner = &*self.inner;
        if request.cluster.proxy_configs.is_empty() {
            return with_annotation.clone();
        }
        let root = inner.mesh.get("rootNamespace").and_then(Value::as_str).unwrap_or("istio-system");
        let (of_root, _) = request.cluster.proxy_configs_of(root, original);
        let (of_namespace, selected) = request.cluster.proxy_configs_of(namespace, original);
        let mut config = inner.defaults.clone();
        if let Some(resource) = of_root {
            config.apply_resource(resource);
        }
        if let Some(resource) = of_namespace.filter(|_| namespace != root) {
            config.apply_resource(resource);
        }
        if let Some(text) = pod::annotation(original, a::PROXY_CONFIG)
            && config.apply_yaml(text).is_err()
        {
            config = with_annotation.clone().into_owned();
        }
        if let Some(resource) = selected {
            config.apply_resource(resource);
        }
        Cow::Owned(config)
    }

    fn ids(&self, cluster: &Cluster, namespace: &str) -> (i64, i64) {
        if !self.inner.settings.openshift {
            return (a::PROXY_ID, a::PROXY_ID);
        }
        let (uid, gid) = cluster.openshift_ids(namespace);
        (uid.unwrap_or(a::PROXY_ID), gid.unwrap_or(a::PROXY_ID))
    }

    fn refuse_clashes(&self, original: &Value) -> Result<(), InjectError> {
        if !self.inner.settings.refuse_clashes {
            return Ok(());
        }
        match warning::user_clashes(original).into_iter().next() {
            Some(Warning::ProxyUser { field, user }) => Err(InjectError::Refused {
                field,
                message: format!(
                    "{user} is the user of the sidecar, so this container would bypass the mesh"
                ),
            }),
            _ => Ok(()),
        }
    }
}

/// What later steps need of a template: the names of what it brings.
fn names_only(overlay: &Value) -> Value {
    let mut spec = Map::new();
    for field in ["initContainers", "containers", "volumes", "imagePullSecrets"] {
        let items = pod::list(overlay, field);
        if !items.is_empty() {
            let names = items.iter().map(|item| {
                let kept = ["name", "$patch"].iter().filter_map(|key| Some((*key, item.get(*key)?.clone())));
                Value::Object(kept.map(|(key, value)| (key.to_owned(), value)).collect())
            });
            spec.insert(field.to_owned(), names.collect());
        }
    }
    object([("spec", Value::Object(spec))])
}

fn namespace_of<'a>(pod_in: &'a Value, namespace: &'a str) -> &'a str {
    let own = at(pod_in, ["metadata", "namespace"]).and_then(Value::as_str).filter(|own| !own.is_empty());
    if namespace.is_empty() { own.unwrap_or_default() } else { namespace }
}

/// The environment entry's value: the pod's label, else the path's entry, else the chart's value; put back unless empty.
fn replace(
    environment: &mut BTreeMap<String, String>,
    key: &str,
    value: &str,
    label: Option<&str>,
) -> String {
    let from_path = environment.get(key).map(String::as_str).filter(|text| !text.is_empty());
    let chosen = label.filter(|text| !text.is_empty()).or(from_path).unwrap_or(value).to_owned();
    if !chosen.is_empty() {
        environment.insert(key.to_owned(), chosen.clone());
    }
    chosen
}

/// The user's own `istio-proxy` follows the template's into the init containers.
fn follow_native(merged: &mut Value, template: &Value) {
    let ours = pod::find(pod::init_containers(template), a::PROXY_CONTAINER).is_some();
    let at =
        pod::containers(merged).iter().position(|container| pod::name_of(container) == a::PROXY_CONTAINER);
    if let Some(at) = at.filter(|_| ours) {
        let container = pod::list_mut(merged, "containers").remove(at);
        pod::list_mut(merged, "initContainers").push(container);
    }
}

/// What a later template says about `istio-proxy` goes to where an earlier one put it. (Upstream would make a second,
/// image-less container out of it, which no API server accepts.)
fn route_sidecar(overlay: &mut Value, so_far: &Value) {
    for (from, to) in [("containers", "initContainers"), ("initContainers", "containers")] {
        let stands = |list: &str| pod::find(pod::list(so_far, list), a::PROXY_CONTAINER).is_some();
        let at = pod::list(overlay, from)
            .iter()
            .position(|container| pod::name_of(container) == a::PROXY_CONTAINER);
        if let Some(at) = at
            && stands(to)
            && !stands(from)
        {
            let container = pod::list_mut(overlay, from).remove(at);
            pod::list_mut(overlay, to).push(container);
            return;
        }
    }
}

/// On OpenShift every container gets the namespace's user; a proxy that was given the application's must not keep it.
fn clear_openshift_user(base: &mut Value) {
    let user = |container: &Value| at(container, ["securityContext", "runAsUser"]).and_then(Value::as_i64);
    let app = pod::containers(base)
        .iter()
        .filter(|container| pod::name_of(container) != a::PROXY_CONTAINER)
        .filter_map(user)
        .next_back()
        .unwrap_or_default();
    let own = pod::sidecar(base).and_then(user);
    if own == Some(app)
        && let Some(proxy) = pod::sidecar_mut(base)
        && let Some(security) = proxy.get_mut("securityContext").and_then(Value::as_object_mut)
    {
        security.remove("runAsUser");
        security.remove("runAsGroup");
    }
}

#[cfg(test)]
mod tests;
