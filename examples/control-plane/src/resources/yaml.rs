//! From text to documents: splitting, identification, typed decoding, and what can be told of broken text.
//!
//! The failure to prevent: one broken document that silently takes its neighbours, its own previous version or a
//! security policy with it. Therefore a file is first split at document markers (which YAML recognises at column 0
//! whatever surrounds them), every document is decoded alone, and even unreadable text is searched for the identity
//! it claims ([`Sniffed`]).

use std::sync::Arc;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};

use super::meta::{Ignored, Kind, Metadata, ObjectKey, Origin, ResourceError};
use super::{Object, Spec, validate};

/// Most YAML nodes in one document: enough for a `List` of thousands of objects, low enough to stop alias bombs.
const MAX_NODES: usize = 250_000;

/// One document of a file.
#[derive(Debug, Clone)]
pub struct Document {
    /// Where it begins.
    pub origin: Origin,
    /// What became of it.
    pub outcome: Outcome,
}

/// What became of a document.
#[derive(Debug, Clone)]
pub enum Outcome {
    /// An object.
    Object(Arc<Object>),
    /// A kind that the control plane does not read, with its name for display.
    Ignored {
        /// `apiVersion/kind namespace/name`.
        what: String,
    },
    /// Not applicable.
    Rejected {
        /// Why.
        error: Box<ResourceError>,
        /// What it claims to be.
        sniffed: Sniffed,
    },
}

/// What a rejected document claims to be, as far as it can be told.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Sniffed {
    /// Kind, namespace and name, if all are readable.
    pub key: Option<ObjectKey>,
    /// The kind, if readable.
    pub kind: Option<Kind>,
    /// The namespace it would be in; `None` when unreadable.
    pub namespace: Option<String>,
    /// `spec.selector.matchLabels`, if the text is well-formed that far.
    pub selector: Option<std::collections::BTreeMap<String, String>>,
}

/// Splits `text` into documents and decodes each.
pub fn parse_documents(file: &Arc<str>, text: &str) -> Vec<Document> {
    let mut documents = Vec::new();
    for (line, chunk) in split(text) {
        let origin = Origin { file: Arc::clone(file), line };
        match list_items(chunk) {
            Some(items) => documents.extend(
                items
                    .iter()
                    .map(|item| parse_one(&origin, line, &serde_json::to_string(item).unwrap_or_default())),
            ),
            None => documents.push(parse_one(&origin, line, chunk)),
        }
    }
    documents
}

/// Documents with content, each with the line of its first text.
fn split(text: &str) -> Vec<(u64, &str)> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut chunks = Vec::new();
    let (mut start, mut start_line, mut offset) = (0, 1, 0);
    let marker = |line: &str, mark: &str| {
        line.strip_prefix(mark)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']))
    };
    for (index, line) in text.split_inclusive('\n').enumerate() {
        let number = index as u64 + 1;
        let end = offset + line.len();
        if marker(line, "---") || marker(line, "...") {
            chunks.push((start_line, text.get(start..offset).unwrap_or_default()));
            // Content may follow on the marker's own line (`--- {kind: ...}`); blank the marker by starting after it.
            (start, start_line) = (offset + 3, number);
        }
        offset = end;
    }
    chunks.push((start_line, text.get(start..).unwrap_or_default()));
    chunks
        .into_iter()
        .filter_map(|(line, chunk)| {
            let content =
                |l: &str| !(l.trim().is_empty() || l.trim_start().starts_with('#') || l.starts_with('%'));
            let skipped = chunk.split_inclusive('\n').take_while(|l| !content(l)).collect::<Vec<_>>();
            let bytes: usize = skipped.iter().map(|l| l.len()).sum();
            let rest = chunk.get(bytes..).unwrap_or_default();
            (!rest.trim().is_empty()).then_some((line + skipped.len() as u64, rest))
        })
        .collect()
}

/// The first pass: who the document is. Everything else is left to the second.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Envelope {
    #[serde(default)]
    api_version: String,
    #[serde(default)]
    kind: String,
    #[serde(default)]
    metadata: EnvelopeMeta,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct EnvelopeMeta {
    name: String,
    namespace: String,
}

/// The second pass for kinds with a `spec`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, bound = "S: DeserializeOwned")]
#[expect(dead_code, reason = "the ignored keys exist so that unknown ones can be refused")]
struct WithSpec<S> {
    api_version: Ignored,
    kind: Ignored,
    metadata: Metadata,
    spec: S,
    #[serde(default)]
    status: Ignored,
}

/// A Pod: `status` matters.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[expect(dead_code, reason = "the ignored keys exist so that unknown ones can be refused")]
struct PodDocument {
    api_version: Ignored,
    kind: Ignored,
    metadata: Metadata,
    #[serde(default)]
    spec: super::PodSpec,
    #[serde(default, deserialize_with = "super::scalar::null_as_default")]
    status: super::PodStatus,
}

/// A Node: only its `status` matters.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[expect(dead_code, reason = "the ignored keys exist so that unknown ones can be refused")]
struct NodeDocument {
    api_version: Ignored,
    kind: Ignored,
    metadata: Metadata,
    #[serde(default)]
    spec: Ignored,
    #[serde(default, deserialize_with = "super::scalar::null_as_default")]
    status: super::NodeStatus,
}

/// Kinds whose content stands at the top level.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[expect(dead_code, reason = "the ignored keys exist so that unknown ones can be refused")]
struct Flat {
    api_version: Ignored,
    kind: Ignored,
    metadata: Metadata,
    #[serde(default)]
    spec: Ignored,
    #[serde(default)]
    status: Ignored,
    #[serde(default)]
    secrets: Ignored,
    #[serde(default)]
    image_pull_secrets: Ignored,
    #[serde(default)]
    automount_service_account_token: Ignored,
    #[serde(default)]
    address_type: Ignored,
    #[serde(default, deserialize_with = "super::scalar::null_as_default")]
    subsets: Vec<super::EndpointSubset>,
    #[serde(default, deserialize_with = "super::scalar::null_as_default")]
    endpoints: Vec<super::EndpointSliceEndpoint>,
    #[serde(default, deserialize_with = "super::scalar::null_as_default")]
    ports: Vec<super::EndpointPort>,
}

fn parse_one(origin: &Origin, first_line: u64, text: &str) -> Document {
    let outcome = match decode::<Envelope>(text) {
        Ok(envelope) => identified(origin, first_line, text, &envelope),
        Err(fault) => {
            let sniffed = sniff(text);
            let error = fault.into_error(origin, first_line, "syntax", &sniffed_names(&sniffed, text));
            Outcome::Rejected { error, sniffed }
        }
    };
    Document { origin: origin.clone(), outcome }
}

fn identified(origin: &Origin, first_line: u64, text: &str, envelope: &Envelope) -> Outcome {
    let names = [envelope.kind.clone(), envelope.metadata.namespace.clone(), envelope.metadata.name.clone()];
    let reject = |reason, field: &str, message: String, sniffed| Outcome::Rejected {
        error: Fault { line: 1, field: field.to_owned(), message }
            .into_error(origin, first_line, reason, &names),
        sniffed,
    };
    for (field, value) in [("apiVersion", &envelope.api_version), ("kind", &envelope.kind)] {
        if value.is_empty() {
            return reject("schema", field, "missing".to_owned(), sniff(text));
        }
    }
    let Some(kind) = Kind::of(&envelope.api_version, &envelope.kind) else {
        let what = format!(
            "{}/{} {}/{}",
            envelope.api_version, envelope.kind, envelope.metadata.namespace, envelope.metadata.name
        );
        return if is_istio(&envelope.api_version) {
            reject(
                "unsupported",
                "kind",
                format!("{} {} is not supported by this control plane", envelope.api_version, envelope.kind),
                Sniffed::default(),
            )
        } else if group_is_ours(&envelope.api_version) && looks_like_ours(&envelope.kind) {
            reject("schema", "kind", format!("unknown kind {:?}", envelope.kind), Sniffed::default())
        } else {
            Outcome::Ignored { what }
        };
    };
    let namespace = if kind.cluster_scoped() {
        String::new()
    } else if envelope.metadata.namespace.is_empty() {
        "default".to_owned()
    } else {
        envelope.metadata.namespace.clone()
    };
    let mut sniffed =
        Sniffed { key: None, kind: Some(kind), namespace: Some(namespace.clone()), selector: None };
    // Only a policy that is rejected is asked what it would have selected.
    let claimed = |sniffed: Sniffed| Sniffed { selector: selector_of(text), ..sniffed };
    if envelope.metadata.name.is_empty() {
        return reject("schema", "metadata.name", "missing".to_owned(), claimed(sniffed));
    }
    let key = ObjectKey { kind, namespace, name: envelope.metadata.name.clone() };
    sniffed.key = Some(key.clone());
    let version = envelope.api_version.rsplit('/').next().unwrap_or_default();
    if !kind.versions().contains(&version) {
        let known = kind.versions().join(", ");
        return reject(
            "schema",
            "apiVersion",
            format!("unknown version {version:?}; known: {known}"),
            claimed(sniffed),
        );
    }
    match typed(kind, text) {
        Ok((meta, spec)) => match validate::check(&spec) {
            Ok(()) => Outcome::Object(Arc::new(Object {
                key,
                meta,
                origin: origin.clone(),
                spec,
                text: Arc::from(text),
                hash: hash(text),
            })),
            Err((field, message)) => Outcome::Rejected {
                error: Fault { line: line_of(text, &field), field, message }
                    .into_error(origin, first_line, "value", &names),
                sniffed: claimed(sniffed),
            },
        },
        Err(fault) => Outcome::Rejected {
            error: fault.into_error(origin, first_line, "schema", &names),
            sniffed: claimed(sniffed),
        },
    }
}

fn typed(kind: Kind, text: &str) -> Result<(Metadata, Spec), Fault> {
    fn with<S: DeserializeOwned>(text: &str, wrap: fn(Arc<S>) -> Spec) -> Result<(Metadata, Spec), Fault> {
        decode::<WithSpec<S>>(text).map(|d| (d.metadata, wrap(Arc::new(d.spec))))
    }
    match kind {
        Kind::Namespace => decode::<Flat>(text).map(|d| (d.metadata, Spec::Namespace)),
        Kind::ServiceAccount => decode::<Flat>(text).map(|d| (d.metadata, Spec::ServiceAccount)),
        Kind::Endpoints => decode::<Flat>(text)
            .map(|d| (d.metadata, Spec::Endpoints(Arc::new(super::Endpoints { subsets: d.subsets })))),
        Kind::EndpointSlice => decode::<Flat>(text).map(|d| {
            let slice = super::EndpointSlice { endpoints: d.endpoints, ports: d.ports };
            (d.metadata, Spec::EndpointSlice(Arc::new(slice)))
        }),
        Kind::Pod => decode::<PodDocument>(text)
            .map(|d| (d.metadata, Spec::Pod(Arc::new(super::Pod { spec: d.spec, status: d.status })))),
        Kind::Node => decode::<NodeDocument>(text)
            .map(|d| (d.metadata, Spec::Node(Arc::new(super::Node { status: d.status })))),
        Kind::Service => decode::<WithSpec<super::ServiceSpec>>(text)
            .map(|d| (d.metadata, Spec::Service(Arc::new(super::Service { spec: d.spec })))),
        Kind::VirtualService => with(text, Spec::VirtualService),
        Kind::DestinationRule => with(text, Spec::DestinationRule),
        Kind::ServiceEntry => with(text, Spec::ServiceEntry),
        Kind::WorkloadEntry => with(text, Spec::WorkloadEntry),
        Kind::Sidecar => with(text, Spec::Sidecar),
        Kind::ProxyConfig => with(text, Spec::ProxyConfig),
        Kind::PeerAuthentication => optional_spec(text, Spec::PeerAuthentication),
        Kind::AuthorizationPolicy => optional_spec(text, Spec::AuthorizationPolicy),
    }
}

/// Security kinds may have an empty or absent `spec`, which means something (deny all, inherit).
fn optional_spec<S: DeserializeOwned + Default>(
    text: &str,
    wrap: fn(Arc<S>) -> Spec,
) -> Result<(Metadata, Spec), Fault> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase", deny_unknown_fields, bound = "S: DeserializeOwned + Default")]
    #[expect(dead_code, reason = "the ignored keys exist so that unknown ones can be refused")]
    struct Optional<S> {
        api_version: Ignored,
        kind: Ignored,
        metadata: Metadata,
        #[serde(default, deserialize_with = "super::scalar::null_as_default")]
        spec: S,
        #[serde(default)]
        status: Ignored,
    }
    decode::<Optional<S>>(text).map(|d| (d.metadata, wrap(Arc::new(d.spec))))
}

/// A fault inside one document; the line counts from 1 within it.
struct Fault {
    line: u64,
    field: String,
    message: String,
}

impl Fault {
    fn into_error(
        self,
        origin: &Origin,
        first_line: u64,
        reason: &'static str,
        [kind, namespace, name]: &[String; 3],
    ) -> Box<ResourceError> {
        Box::new(ResourceError {
            reason,
            file: origin.file.to_string(),
            line: first_line + self.line.saturating_sub(1),
            kind: kind.clone(),
            namespace: namespace.clone(),
            name: name.clone(),
            field: self.field,
            message: self.message,
        })
    }
}

fn decode<T: DeserializeOwned>(text: &str) -> Result<T, Fault> {
    let mut options = serde_saphyr::options! {
        strict_booleans: true,
        legacy_octal_numbers: true,
        with_snippet: false,
    };
    if let Some(budget) = options.budget.as_mut() {
        budget.max_nodes = MAX_NODES;
    }
    let mut path = String::new();
    serde_saphyr::with_deserializer_from_str_with_options(text, options, |de| {
        serde_path_to_error::deserialize(de).map_err(|error| {
            path = error.path().to_string();
            error.into_inner()
        })
    })
    .map_err(|error| {
        let error = error.without_snippet();
        let line = error.location().map_or(1, |location| location.line().max(1));
        let message = error.to_string().lines().next().unwrap_or_default().to_owned();
        Fault { line, field: if path == "." { String::new() } else { path.clone() }, message }
    })
}

/// `items` of a `kind: List`.
fn list_items(text: &str) -> Option<Vec<serde_json::Value>> {
    #[derive(Deserialize)]
    struct List {
        kind: String,
        items: Vec<serde_json::Value>,
    }
    if !text.contains("items") {
        return None;
    }
    decode::<List>(text).ok().filter(|list| list.kind == "List").map(|list| list.items)
}

fn selector_of(text: &str) -> Option<std::collections::BTreeMap<String, String>> {
    #[derive(Deserialize)]
    struct Doc {
        spec: DocSpec,
    }
    #[derive(Deserialize)]
    struct DocSpec {
        selector: super::LabelSelector,
    }
    decode::<Doc>(text).ok().map(|doc| doc.spec.selector.match_labels)
}

/// Reads the identity out of text that does not parse: the first `kind:` at column 0, and `name:`/`namespace:`
/// directly under `metadata:`.
fn sniff(text: &str) -> Sniffed {
    let value = |line: &str, key: &str| {
        let rest = line.trim().strip_prefix(key)?.strip_prefix(':')?;
        let rest = rest.split(" #").next().unwrap_or_default().trim().trim_matches(['"', '\'']);
        (!rest.is_empty()).then(|| rest.to_owned())
    };
    let (mut kind, mut api, mut name, mut namespace, mut in_metadata) = (None, None, None, None, false);
    for line in text.lines() {
        let indented = line.starts_with([' ', '\t']);
        if !indented && !line.trim().is_empty() {
            in_metadata = line.trim_end().starts_with("metadata:");
            kind = kind.or_else(|| value(line, "kind"));
            api = api.or_else(|| value(line, "apiVersion"));
        } else if in_metadata && indented && line.trim_start().len() + 4 >= line.len() {
            name = name.or_else(|| value(line, "name"));
            namespace = namespace.or_else(|| value(line, "namespace"));
        }
    }
    if kind.as_deref().is_none_or(|kind| kind == "List") {
        return sniff_policy(text);
    }
    let kind = kind.and_then(|kind| Kind::of(api.as_deref().unwrap_or_default(), &kind));
    let scope = match kind {
        Some(kind) if kind.cluster_scoped() => Some(String::new()),
        _ => namespace.or_else(|| name.is_some().then(|| "default".to_owned())),
    };
    let key = match (kind, scope.clone(), name) {
        (Some(kind), Some(namespace), Some(name)) => Some(ObjectKey { kind, namespace, name }),
        _ => None,
    };
    Sniffed { key, kind, namespace: scope, selector: None }
}

/// A security policy anywhere in broken text that is not laid out in lines (JSON, flow style, a `List`): nothing of it can
/// be trusted but that it is there and should have denied something.
fn sniff_policy(text: &str) -> Sniffed {
    let policy = |kind: &str| match Kind::of("security.istio.io/v1", kind) {
        Some(kind @ (Kind::PeerAuthentication | Kind::AuthorizationPolicy)) => Some(kind),
        _ => None,
    };
    let kind = values(text, "kind").find_map(policy);
    let namespace = kind.and_then(|_| values(text, "namespace").next()).map(str::to_owned);
    Sniffed { kind, namespace, ..Sniffed::default() }
}

/// The words that follow `key` and a colon, quoted or not.
fn values<'t>(text: &'t str, key: &'t str) -> impl Iterator<Item = &'t str> {
    text.match_indices(key).filter_map(move |(at, _)| {
        let rest = text.get(at + key.len()..)?.trim_start_matches(['"', '\'']).trim_start();
        let word = rest.strip_prefix(':')?.trim_start().trim_start_matches(['"', '\'']);
        let end = word.find(|c: char| !(c.is_ascii_alphanumeric() || "-._".contains(c)));
        word.get(..end.unwrap_or(word.len())).filter(|word| !word.is_empty())
    })
}

fn sniffed_names(sniffed: &Sniffed, _text: &str) -> [String; 3] {
    let kind = sniffed.kind.map(|kind| kind.to_string()).unwrap_or_default();
    sniffed.key.as_ref().map_or_else(
        || [kind.clone(), sniffed.namespace.clone().unwrap_or_default(), String::new()],
        |key| [kind.clone(), key.namespace.clone(), key.name.clone()],
    )
}

/// Line of the last segment of `field` in `text`, best effort; 1 where it cannot be found.
fn line_of(text: &str, field: &str) -> u64 {
    let mut from = 0;
    let mut found = 1;
    let lines: Vec<&str> = text.lines().collect();
    for segment in field.split('.') {
        let (name, index) = match segment.split_once('[') {
            Some((name, index)) => (name, index.trim_end_matches(']').parse::<usize>().unwrap_or(0)),
            None => (segment, 0),
        };
        let position = lines.iter().enumerate().skip(from).find(|(_, line)| {
            line.trim_start()
                .trim_start_matches("- ")
                .strip_prefix(name)
                .is_some_and(|rest| rest.starts_with(':'))
        });
        let Some((position, line)) = position else { break };
        found = position as u64 + 1;
        from = position;
        if segment.contains('[') {
            let indent = line.len() - line.trim_start().len();
            let mut item_indent = None;
            let mut seen = 0;
            for (offset, line) in lines.iter().enumerate().skip(position + 1) {
                let depth = line.len() - line.trim_start().len();
                if line.trim().is_empty() {
                    continue;
                }
                if depth < indent || (depth == indent && !line.trim_start().starts_with('-')) {
                    break;
                }
                if line.trim_start().starts_with('-') && *item_indent.get_or_insert(depth) == depth {
                    if seen == index {
                        (found, from) = (offset as u64 + 1, offset);
                        break;
                    }
                    seen += 1;
                }
            }
        }
    }
    found
}

fn hash(text: &str) -> String {
    Sha256::digest(text.as_bytes()).iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

fn is_istio(api_version: &str) -> bool {
    let group = api_version.split('/').next().unwrap_or_default();
    group == "istio.io" || group.ends_with(".istio.io")
}

fn group_is_ours(api_version: &str) -> bool {
    matches!(api_version, "v1" | "discovery.k8s.io/v1")
}

/// A core kind that differs from one of ours by case or a letter is a slip, not a kind of its own.
fn looks_like_ours(kind: &str) -> bool {
    const OURS: [&str; 6] = ["namespace", "serviceaccount", "service", "pod", "endpoints", "endpointslice"];
    const OTHERS: [&str; 1] = ["podtemplate"];
    let lower = kind.to_ascii_lowercase();
    if OTHERS.contains(&lower.as_str()) {
        return false;
    }
    OURS.iter().any(|ours| {
        let plural = format!("{ours}s");
        *ours == lower || plural == lower || within_one_edit(ours, &lower)
    })
}

fn within_one_edit(a: &str, b: &str) -> bool {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    if a.len().abs_diff(b.len()) > 1 {
        return false;
    }
    let prefix = a.iter().zip(&b).take_while(|(x, y)| x == y).count();
    let suffix = a.iter().rev().zip(b.iter().rev()).take_while(|(x, y)| x == y).count();
    prefix + suffix + 1 >= a.len().max(b.len())
}
