//! Merging documents into one state: last good versions, duplicates, references, fail-closed policies, overlay.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use serde::Serialize;

use super::references::Hosts;
use super::scan::Scanner;
use crate::resources::{
    Action, AuthorizationPolicy, Document, Kind, LabelSelector, Object, ObjectKey, Origin, Outcome,
    PeerAuthentication, ResourceError, Rule, Service, Sniffed, Spec,
};

/// Everything that applies, and everything that does not with its reason.
#[derive(Debug, Clone, Default)]
pub struct State {
    /// What applies, including policies that fail closed.
    pub objects: BTreeMap<ObjectKey, Arc<Object>>,
    /// What does not apply.
    pub rejected: Vec<Rejection>,
    /// Kinds that are not read, for display.
    pub ignored: Vec<String>,
    /// Policies that fail closed.
    pub fail_closed: Vec<FailClosed>,
    /// Good versions that serve in place of a newer bad one.
    pub kept: Vec<Arc<Object>>,
    /// Counts the changes of this process, from 1.
    pub generation: u64,
}

/// A resource version that is not applied.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Rejection {
    /// Why.
    #[serde(flatten)]
    pub error: Box<ResourceError>,
    /// What serves instead.
    pub effect: &'static str,
}

/// A policy that was never valid and therefore denies.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FailClosed {
    /// Its kind.
    pub kind: Kind,
    /// Its namespace.
    pub namespace: String,
    /// Its name; made up where unreadable.
    pub name: String,
    /// What it selects; empty means the whole namespace (or the mesh in the root namespace).
    pub selector: BTreeMap<String, String>,
    /// `STRICT` or `DENY`.
    pub treated_as: &'static str,
    /// The file.
    pub file: String,
}

impl fmt::Display for FailClosed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, namespace, name, selector, treated_as, .. } = self;
        write!(f, "{kind} {namespace}/{name} was never valid: {treated_as} for {selector:?} of its namespace")
    }
}

const LAST_GOOD: &str = "last good version serves";
const ABSENT: &str = "not applied";
const FIRST_SERVES: &str = "the other definition serves";
const CLOSED: &str = "fails closed";

/// What was good, over time.
#[derive(Debug)]
pub(super) struct Ledger {
    domain: String,
    config: BTreeMap<ObjectKey, Arc<Object>>,
    status: BTreeMap<ObjectKey, Arc<Object>>,
    routes: BTreeMap<ObjectKey, Arc<Object>>,
    generation: u64,
}

impl Ledger {
    /// With what an earlier process knew as good.
    pub(super) fn new(domain: String, kept: Vec<Arc<Object>>) -> Self {
        let known: BTreeMap<_, _> = kept.into_iter().map(|object| (object.key.clone(), object)).collect();
        Self { domain, config: known.clone(), status: known.clone(), routes: known, generation: 0 }
    }

    pub(super) fn update(&mut self, scanner: &Scanner) -> State {
        self.generation += 1;
        let mut state = State { generation: self.generation, ..State::default() };
        for (path, message) in scanner.errors() {
            let origin = Origin { file: Arc::from(path.display().to_string()), line: 0 };
            let error = Box::new(ResourceError {
                reason: "unreadable",
                file: origin.file.to_string(),
                line: 0,
                kind: String::new(),
                namespace: String::new(),
                name: String::new(),
                field: String::new(),
                message: message.to_owned(),
            });
            state.rejected.push(Rejection { error, effect: LAST_GOOD });
        }
        let (status, config): (Vec<_>, Vec<_>) = scanner.documents().partition(|(status, _)| *status);
        self.config = merge(&self.config, config.iter().map(|(_, d)| *d), &mut state);
        let closed = std::mem::take(&mut state.objects);
        self.status = merge(&self.status, status.iter().map(|(_, d)| *d), &mut state);
        let mut objects = self.config.clone();
        for (key, object) in &self.status {
            let merged = overlay(self.config.get(key), object);
            objects.insert(key.clone(), merged);
        }
        objects.extend(closed);
        self.check_references(&mut objects, &mut state);
        state.objects = objects;
        state
    }

    /// Replaces VirtualServices that name unknown hosts by their last good version, or removes them.
    fn check_references(&mut self, objects: &mut BTreeMap<ObjectKey, Arc<Object>>, state: &mut State) {
        let hosts = Hosts::of(objects, &self.domain);
        let mut good = BTreeMap::new();
        let mut bad = Vec::new();
        for (key, object) in objects.iter() {
            let Spec::VirtualService(vs) = &object.spec else { continue };
            match hosts.check(object, vs, &self.domain) {
                Ok(()) => {
                    good.insert(key.clone(), Arc::clone(object));
                }
                Err(error) => bad.push((key.clone(), error)),
            }
        }
        for (key, error) in bad {
            let last = self.routes.get(&key).cloned();
            let effect = if last.is_some() { LAST_GOOD } else { ABSENT };
            state.rejected.push(Rejection { error, effect });
            match last {
                Some(last) => {
                    state.kept.push(Arc::clone(&last));
                    good.insert(key.clone(), Arc::clone(&last));
                    objects.insert(key, last);
                }
                None => {
                    objects.remove(&key);
                }
            }
        }
        self.routes = good;
    }
}

/// The good objects of `documents`, with the previous version where the newest is bad. Fail-closed stand-ins go to
/// `state.objects`.
fn merge<'a>(
    before: &BTreeMap<ObjectKey, Arc<Object>>,
    documents: impl Iterator<Item = &'a Document>,
    state: &mut State,
) -> BTreeMap<ObjectKey, Arc<Object>> {
    let mut claims: BTreeMap<ObjectKey, Vec<&Document>> = BTreeMap::new();
    let mut nameless = Vec::new();
    for document in documents {
        match &document.outcome {
            Outcome::Object(object) => claims.entry(object.key.clone()).or_default().push(document),
            Outcome::Ignored { what } => state.ignored.push(format!("{}: {what}", document.origin)),
            Outcome::Rejected { sniffed, error } => match &sniffed.key {
                Some(key) => claims.entry(key.clone()).or_default().push(document),
                None => nameless.push((document, error, sniffed)),
            },
        }
    }
    let mut good = BTreeMap::new();
    for (key, documents) in &claims {
        let last = before.get(key);
        let preferred =
            documents.iter().position(|d| last.is_some_and(|last| last.origin.file == d.origin.file));
        let chosen = preferred.unwrap_or(0);
        for (i, document) in documents.iter().enumerate() {
            if i == chosen {
                choose(key, document, last, &mut good, state);
            } else if let Some(first) = documents.get(chosen) {
                let message = format!("duplicate of {}", first.origin);
                let error =
                    ResourceError::about("duplicate", &document.origin, key, "metadata.name", message);
                state.rejected.push(Rejection { error, effect: FIRST_SERVES });
            }
        }
    }
    // A document that does not even say who it is may be any object of its file: those keep their last version.
    let broken: BTreeSet<&Arc<str>> = nameless.iter().map(|(d, ..)| &d.origin.file).collect();
    for (key, object) in before {
        if broken.contains(&object.origin.file) && !claims.contains_key(key) {
            state.kept.push(Arc::clone(object));
            good.insert(key.clone(), Arc::clone(object));
        }
    }
    for (number, (document, error, sniffed)) in nameless.into_iter().enumerate() {
        let mut same_file = before.iter().filter(|(_, o)| o.origin.file == document.origin.file);
        // One of its kind that is missed now is what it was: that serves on.
        let was_good =
            same_file.clone().any(|(key, _)| Some(key.kind) == sniffed.kind && !claims.contains_key(key));
        let effect = if !was_good && stand_in(sniffed, &document.origin, number, state) {
            CLOSED
        } else if same_file.next().is_some() {
            LAST_GOOD
        } else {
            ABSENT
        };
        state.rejected.push(Rejection { error: error.clone(), effect });
    }
    good
}

fn choose(
    key: &ObjectKey,
    document: &Document,
    last: Option<&Arc<Object>>,
    good: &mut BTreeMap<ObjectKey, Arc<Object>>,
    state: &mut State,
) {
    match &document.outcome {
        Outcome::Object(object) => {
            good.insert(key.clone(), Arc::clone(object));
        }
        Outcome::Rejected { error, sniffed } => {
            let effect = match last {
                Some(last) => {
                    state.kept.push(Arc::clone(last));
                    good.insert(key.clone(), Arc::clone(last));
                    LAST_GOOD
                }
                None if stand_in(sniffed, &document.origin, 0, state) => CLOSED,
                None => ABSENT,
            };
            state.rejected.push(Rejection { error: error.clone(), effect });
        }
        Outcome::Ignored { .. } => {}
    }
}

/// Puts a denying object in the place of a security policy that was never valid.
fn stand_in(sniffed: &Sniffed, origin: &Origin, number: usize, state: &mut State) -> bool {
    let selector = sniffed.selector.clone().unwrap_or_default();
    let select = (!selector.is_empty()).then(|| LabelSelector { match_labels: selector.clone() });
    let (kind, spec, treated_as) = match sniffed.kind {
        Some(kind @ Kind::PeerAuthentication) => {
            let strict = PeerAuthentication { selector: select, ..PeerAuthentication::strict() };
            (kind, Spec::PeerAuthentication(Arc::new(strict)), "STRICT")
        }
        Some(kind @ Kind::AuthorizationPolicy) => {
            let deny = AuthorizationPolicy {
                selector: select,
                action: Action::Deny,
                rules: vec![Rule::default()],
                ..AuthorizationPolicy::default()
            };
            (kind, Spec::AuthorizationPolicy(Arc::new(deny)), "DENY")
        }
        _ => return false,
    };
    let key = sniffed.key.clone().unwrap_or_else(|| ObjectKey {
        kind,
        namespace: sniffed.namespace.clone().unwrap_or_else(|| "default".to_owned()),
        name: format!("unreadable-{number}"),
    });
    state.fail_closed.push(FailClosed {
        kind,
        namespace: key.namespace.clone(),
        name: key.name.clone(),
        selector,
        treated_as,
        file: origin.to_string(),
    });
    let object = Object {
        key: key.clone(),
        meta: crate::resources::Metadata::default(),
        origin: origin.clone(),
        spec,
        text: Arc::from(""),
        hash: String::new(),
    };
    state.objects.insert(key, Arc::new(object));
    true
}

/// What an API server would hold: the status directory's object, except that a Service keeps its author's `spec` and
/// only gains addresses.
fn overlay(config: Option<&Arc<Object>>, status: &Arc<Object>) -> Arc<Object> {
    let (Some(config), Spec::Service(added)) = (config, &status.spec) else { return Arc::clone(status) };
    let Spec::Service(service) = &config.spec else { return Arc::clone(status) };
    let mut spec = service.spec.clone();
    if spec.cluster_ip.as_deref().is_none_or(str::is_empty) {
        spec.cluster_ip = added.spec.cluster_ip.clone();
        spec.cluster_ips = added.spec.cluster_ips.clone();
    }
    Arc::new(Object { spec: Spec::Service(Arc::new(Service { spec })), ..Object::clone(config) })
}
