//! AdmissionReview: bytes in, bytes out.

mod envelope;

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

use crate::annotation as a;
use crate::cluster::Cluster;
use crate::decision::{Decision, SkipReason};
use crate::error::InjectError;
use crate::injector::{Injector, Request};
use crate::json::{self, MAX_BODY, at};
use crate::patch;
use crate::pod;
use crate::warning::Warning;

/// What the webhook's HTTP server received.
#[derive(Debug, Clone, Copy)]
pub struct HttpRequest<'a> {
    /// The `content-type` header, if there was one.
    pub content_type: Option<&'a str>,
    /// Path of the request: `/inject`, or with parameters (see [`path_environment`]).
    pub path: &'a str,
    /// The body.
    pub body: &'a [u8],
}

/// What the webhook's HTTP server should answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpReply {
    /// HTTP status.
    pub status: u16,
    /// Value of the `content-type` header.
    pub content_type: &'static str,
    /// The body.
    pub body: Vec<u8>,
    /// What happened, for logs and metrics.
    pub outcome: Outcome,
}

/// What became of a review.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Outcome {
    /// The pod was injected.
    Injected {
        /// Number of operations of the patch.
        operations: usize,
        /// What the user was told.
        warnings: Vec<Warning>,
    },
    /// The pod was left alone.
    Skipped(Decision),
    /// The pod was refused.
    Refused(InjectError),
    /// The request was not a review.
    BadRequest {
        /// Why.
        message: String,
    },
}

impl Outcome {
    /// A stable label of low cardinality, for metrics.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Injected { .. } => "injected",
            Self::Skipped(decision) => decision.reason(),
            Self::Refused(error) => error.reason(),
            Self::BadRequest { .. } => "bad_request",
        }
    }
}

/// Room in a reply for all but the patch, in bytes.
const ROOM: usize = 512;

/// Longest line of one warning; the API server cuts longer ones.
const MAX_WARNING: usize = 240;
/// Most bytes of all warnings of one answer; the API server passes on 4 KiB of all webhooks together.
const MAX_WARNINGS: usize = 4096;

impl Injector {
    /// Answer one admission review.
    ///
    /// Never panics and never gives half a patch: whatever the bytes are, the answer is a review, or an HTTP error where
    /// the request is not a review at all.
    #[must_use]
    pub fn review(&self, request: &HttpRequest<'_>, cluster: &Cluster) -> HttpReply {
        if request.body.len() > MAX_BODY {
            return plain(400, format!("body exceeds {MAX_BODY} bytes"));
        }
        if request.body.is_empty() {
            return plain(400, "no body found".to_owned());
        }
        if request.content_type != Some("application/json") {
            return plain(415, "invalid Content-Type, want `application/json`".to_owned());
        }
        let mut review = match json::parse(request.body) {
            Ok(review) => review,
            Err(error) => {
                let (review, uid) = envelope::read(request.body);
                let (response, outcome) = refused(&uid, error);
                return reply(&review, response, outcome);
            }
        };
        let uid = at(&review, ["request", "uid"]).and_then(Value::as_str).unwrap_or_default().to_owned();
        let Some(asked) = review.get("request").filter(|asked| asked.is_object()) else {
            return unreadable(
                &uid,
                InjectError::Document { message: "not an AdmissionReview: no `request`".to_owned() },
            );
        };
        for field in ["apiVersion", "kind"] {
            if review.get(field).is_some_and(|value| !value.is_string()) {
                let message = format!("not an AdmissionReview: `{field}` is not a string");
                return unreadable(&uid, InjectError::Document { message });
            }
        }
        let what = not_pod_creation(asked);
        let namespace = asked.get("namespace").and_then(Value::as_str).unwrap_or_default().to_owned();
        let object = review.pointer_mut("/request/object").map(Value::take).unwrap_or_default();
        let (response, outcome) = match what {
            Some(what) => {
                let decision = Decision::Skip(SkipReason::NotPodCreation { what });
                (Response::new(json!({"uid": uid, "allowed": true})), Outcome::Skipped(decision))
            }
            None => self.respond(object, &namespace, &uid, path_environment(request.path), cluster),
        };
        reply(&review, response, outcome)
    }

    fn respond(
        &self,
        object: Value,
        namespace: &str,
        uid: &str,
        environment: BTreeMap<String, String>,
        cluster: &Cluster,
    ) -> (Response, Outcome) {
        if !object.is_object() {
            return refused(
                uid,
                InjectError::Document { message: "`request.object` is not a pod".to_owned() },
            );
        }
        let mut base = object;
        if let Err(error) = pod::check(&base) {
            return refused(uid, error);
        }
        prepare(&mut base, namespace);
        let (decision, mut warnings) = self.decide_with_notes(&base, namespace);
        if !decision.is_inject() {
            let mut response = json!({"uid": uid, "allowed": true});
            add_warnings(&mut response, &warnings);
            return (Response::new(response), Outcome::Skipped(decision));
        }
        if self.leaves_environment_alone(&base) {
            set_aside_environment(&mut base);
        }
        let request = Request { environment, ..Request::new(&base, namespace, cluster) };
        match self.inject_checked(&request) {
            Err(error) => refused(uid, error),
            Ok(injected) => {
                let (patch, operations) = patch::diff_text(&base, &injected.pod);
                warnings.extend(injected.warnings);
                let mut response = json!({"uid": uid, "allowed": true, "patchType": "JSONPatch"});
                add_warnings(&mut response, &warnings);
                (Response { fields: response, patch }, Outcome::Injected { operations, warnings })
            }
        }
    }
}

/// Environment that the webhook's path carries: `/inject/cluster/C/net/N`, or the older
/// `/inject/:ENV:cluster=C:ENV:net=N`.
///
/// `cluster` and `net` stand for `ISTIO_META_CLUSTER_ID` and `ISTIO_META_NETWORK`, other keys are upper-cased;
/// `--slash--` in a value stands for `/`. A key without a value is ignored.
#[must_use]
pub fn path_environment(path: &str) -> BTreeMap<String, String> {
    let path = path.strip_suffix('/').unwrap_or(path);
    let Some(rest) = path.strip_prefix("/inject/") else { return BTreeMap::new() };
    let mut environment = BTreeMap::new();
    if let Some(older) = rest.strip_prefix(":ENV:") {
        for entry in older.split(":ENV:") {
            if let Some((key, value)) = entry.split_once('=').filter(|(key, _)| !key.is_empty()) {
                environment.insert(environment_key(key), value.to_owned());
            }
        }
        return environment;
    }
    let mut parts = rest.split('/');
    while let (Some(key), Some(value)) = (parts.next(), parts.next()) {
        if !key.is_empty() {
            environment.insert(environment_key(key), value.replace("--slash--", "/"));
        }
    }
    environment
}

fn environment_key(key: &str) -> String {
    match key {
        "cluster" => "ISTIO_META_CLUSTER_ID".to_owned(),
        "net" => "ISTIO_META_NETWORK".to_owned(),
        other => other.to_uppercase(),
    }
}

/// What the API server does not want to be told about, and the namespace it knows better than the pod.
fn prepare(base: &mut Value, namespace: &str) {
    let metadata =
        pod::as_map(pod::as_map(base).entry("metadata").or_insert_with(|| Value::Object(Map::new())));
    metadata.remove("managedFields");
    let unset = metadata.get("namespace").and_then(Value::as_str).is_none_or(str::is_empty);
    if unset && !namespace.is_empty() {
        metadata.insert("namespace".to_owned(), Value::String(namespace.to_owned()));
    }
}

/// Longest environment that is carried along although nobody looks at it.
const SMALL_ENVIRONMENT: usize = 64;

/// Takes long environments out of the application's containers before the pod is copied and compared: what is the same
/// before and after does not show in the patch. Only for templates that neither read nor change them.
fn set_aside_environment(base: &mut Value) {
    let Some(containers) = base.get_mut("spec").and_then(|spec| spec.get_mut("containers")) else { return };
    for container in containers.as_array_mut().into_iter().flatten() {
        let long =
            container.get("env").and_then(Value::as_array).is_some_and(|env| env.len() > SMALL_ENVIRONMENT);
        if long
            && pod::name_of(container) != a::PROXY_CONTAINER
            && let Some(container) = container.as_object_mut()
        {
            container.remove("env");
        }
    }
}

fn not_pod_creation(asked: &Value) -> Option<String> {
    fn text(value: Option<&Value>) -> &str {
        value.and_then(Value::as_str).unwrap_or_default()
    }
    let (operation, kind) = (text(asked.get("operation")), text(at(asked, ["kind", "kind"])));
    let subresource = text(asked.get("subResource"));
    let fine = matches!(operation, "" | "CREATE") && matches!(kind, "" | "Pod") && subresource.is_empty();
    (!fine)
        .then(|| format!("{operation} {kind}{}{subresource}", if subresource.is_empty() { "" } else { "/" }))
}

fn refused(uid: &str, error: InjectError) -> (Response, Outcome) {
    let response =
        json!({"uid": uid, "allowed": false, "status": {"metadata": {}, "message": error.to_string()}});
    (Response::new(response), Outcome::Refused(error))
}

fn unreadable(uid: &str, error: InjectError) -> HttpReply {
    let (response, outcome) = refused(uid, error);
    reply(&Value::Null, response, outcome)
}

fn add_warnings(response: &mut Value, warnings: &[Warning]) {
    let (mut room, mut shown) = (MAX_WARNINGS, Vec::new());
    for (at, warning) in warnings.iter().enumerate() {
        let text = shorten(&warning.to_string());
        let Some(left) = room.checked_sub(text.len()) else {
            shown.push(Value::String(format!("{} more warnings", warnings.len() - at)));
            break;
        };
        room = left;
        shown.push(Value::String(text));
    }
    if !shown.is_empty() {
        response["warnings"] = Value::Array(shown);
    }
}

fn shorten(text: &str) -> String {
    let clean: String =
        text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MAX_WARNING).collect();
    clean
}

/// The `response` of a review.
struct Response {
    /// All but the patch.
    fields: Value,
    /// The patch as JSON text; empty when there is none.
    patch: Vec<u8>,
}

impl Response {
    fn new(fields: Value) -> Self {
        Self { fields, patch: Vec::new() }
    }

    /// The body of the reply. The patch, by far its largest part, is encoded into its place: Base64 needs no escaping.
    fn body(self, review: &Value) -> Vec<u8> {
        let mut body = Map::new();
        for field in ["apiVersion", "kind"] {
            if let Some(Value::String(text)) = review.get(field)
                && !text.is_empty()
            {
                body.insert(field.to_owned(), Value::String(text.clone()));
            }
        }
        body.insert("response".to_owned(), self.fields);
        // Four letters for three bytes.
        let encoded = self.patch.len().div_ceil(3) * 4;
        let mut text = json::to_vec(&body, encoded + ROOM);
        if self.patch.is_empty() {
            return text;
        }
        // `response` is the last field and has fields of its own, so both its end and the body's are the last two bytes.
        text.truncate(text.len().saturating_sub(2));
        text.extend_from_slice(b",\"patch\":\"");
        let start = text.len();
        text.resize(start + encoded, 0);
        let written = STANDARD.encode_slice(&self.patch, &mut text[start..]).unwrap_or_default();
        text.truncate(start + written);
        text.extend_from_slice(b"\"}}");
        text
    }
}

fn reply(review: &Value, response: Response, outcome: Outcome) -> HttpReply {
    HttpReply { status: 200, content_type: "application/json", body: response.body(review), outcome }
}

fn plain(status: u16, message: String) -> HttpReply {
    HttpReply {
        status,
        content_type: "text/plain; charset=utf-8",
        body: message.clone().into_bytes(),
        outcome: Outcome::BadRequest { message },
    }
}

#[cfg(test)]
mod tests;
