//! The injection webhook: bytes in, bytes out; the decision is `mesh-inject`'s.

use std::sync::{Arc, Mutex, PoisonError};

use http::{Method, StatusCode};
use mesh_identity::Identity;
use mesh_inject::{Cluster, HttpRequest, Injector, Settings};
use serde_json::{Value, json};
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;

use super::http::{Answer, Call, Handler, answer, text};
use super::monitor::{Metrics, ready};
use super::{ServeError, Shared};
use crate::model::Age;
use crate::resources::{Object, ProxyConfig, Spec};
use crate::store::State;

/// Largest review that is read: an object of at most 1.5 MiB, its old version and its envelope.
const MAX_REVIEW: usize = 6 << 20;

/// Answers `/inject`.
pub(super) struct Webhook {
    injector: Injector,
    state: watch::Receiver<Arc<State>>,
    /// What the injector may know of the state that was asked for last.
    cluster: Mutex<Option<(Arc<State>, Arc<Cluster>)>>,
    identity: Identity,
    metrics: Metrics,
    /// Reviews at once. A large one takes milliseconds of computing, which must not hold up the tasks that read and write.
    slots: Arc<Semaphore>,
}

impl Webhook {
    pub(super) fn new(shared: &Shared, settings: Settings) -> Result<Self, ServeError> {
        Ok(Self {
            injector: Injector::new(settings)?,
            state: shared.state.clone(),
            cluster: Mutex::default(),
            identity: shared.identity.clone(),
            metrics: shared.metrics.clone(),
            slots: Arc::new(Semaphore::new(std::thread::available_parallelism().map_or(1, usize::from))),
        })
    }

    /// The cluster as it is now; made once for each state, not for each review.
    fn cluster(&self) -> Arc<Cluster> {
        let state = Arc::clone(&self.state.borrow());
        let mut known = self.cluster.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((of, cluster)) = known.as_ref()
            && Arc::ptr_eq(of, &state)
        {
            return Arc::clone(cluster);
        }
        let cluster = Arc::new(cluster(&state));
        *known = Some((state, Arc::clone(&cluster)));
        cluster
    }
}

impl Handler for Webhook {
    fn max_body(&self) -> usize {
        MAX_REVIEW
    }

    async fn handle(&self, call: Call) -> Answer {
        if call.path == "/ready" {
            return ready(&self.identity);
        }
        if !(call.path == "/inject" || call.path.starts_with("/inject/")) {
            return text(StatusCode::NOT_FOUND, "not found\n");
        }
        if call.method != Method::POST {
            return text(StatusCode::METHOD_NOT_ALLOWED, "POST an AdmissionReview\n");
        }
        self.metrics.injection.asked();
        let started = Instant::now();
        let answer = self.review(call).await;
        self.metrics.injection.took(started.elapsed());
        answer
    }

    fn unread(&self) {
        self.metrics.injection.asked();
        self.metrics.injection.failed();
    }
}

impl Webhook {
    async fn review(&self, call: Call) -> Answer {
        let Ok(slot) = Arc::clone(&self.slots).acquire_owned().await else {
            return text(StatusCode::SERVICE_UNAVAILABLE, "the server stops\n");
        };
        let (injector, cluster) = (self.injector.clone(), self.cluster());
        let review = tokio::task::spawn_blocking(move || {
            let content_type = call.headers.get(http::header::CONTENT_TYPE).and_then(|v| v.to_str().ok());
            let request = HttpRequest { content_type, path: &call.path, body: &call.body };
            let reply = injector.review(&request, &cluster);
            drop(slot);
            reply
        });
        let reply = match review.await {
            Ok(reply) => reply,
            Err(error) => {
                tracing::error!(%error, "a review ended in the middle");
                self.metrics.injection.failed();
                return text(StatusCode::INTERNAL_SERVER_ERROR, "the review failed\n");
            }
        };
        self.metrics.injection.answered(&reply.outcome);
        tracing::info!(outcome = reply.outcome.reason(), "admission review");
        let status = StatusCode::from_u16(reply.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        answer(status, reply.content_type, reply.body)
    }
}

/// What the injector may know of the cluster: namespaces, kubelets' versions, ProxyConfigs from the oldest on.
fn cluster(state: &State) -> Cluster {
    let mut cluster = Cluster::default();
    let mut configs = Vec::new();
    for object in state.objects.values() {
        let (name, namespace, meta) = (&object.key.name, &object.key.namespace, &object.meta);
        match &object.spec {
            Spec::Namespace => cluster.add_namespace(json!({
                "apiVersion": "v1",
                "kind": "Namespace",
                "metadata": {"name": name, "labels": meta.labels, "annotations": meta.annotations},
            })),
            Spec::Node(node) => {
                cluster.kubelets.insert(name.clone(), node.status.node_info.kubelet_version.clone());
            }
            Spec::ProxyConfig(config) => {
                let age = Age::of(meta, &object.origin, namespace, name);
                configs.push((age, proxy_config(object, config)));
            }
            _ => {}
        }
    }
    configs.sort_by(|(a, _), (b, _)| a.cmp(b));
    cluster.proxy_configs = configs.into_iter().map(|(_, config)| config).collect();
    cluster
}

fn proxy_config(object: &Object, config: &ProxyConfig) -> Value {
    let mut spec = json!({"environmentVariables": config.environment_variables});
    if let Some(selector) = &config.selector {
        spec["selector"] = json!({"matchLabels": selector.match_labels});
    }
    if let Some(concurrency) = config.concurrency {
        spec["concurrency"] = json!(concurrency);
    }
    if let Some(image) = &config.image {
        spec["image"] = json!(image);
    }
    let mut metadata = json!({"name": object.key.name, "namespace": object.key.namespace});
    if let Some(created) = &object.meta.creation_timestamp {
        metadata["creationTimestamp"] = json!(created);
    }
    json!({"metadata": metadata, "spec": spec})
}
