//! What is asked about, from files or from a cluster.

use std::path::PathBuf;

use mesh_inject::webhook::ENTRY_SUFFIX;
use mesh_inject::{Cluster, WebhookOptions, Workload, offline};
use serde_json::{Value, json};

use crate::documents;
use crate::kubernetes::{Client, ClusterArguments, KubernetesError, path_segment};
use crate::settings::SettingsArguments;

/// Pods, and everything that decides about them.
pub(super) struct Question {
    /// Webhook configurations, with the entries of injectors alone.
    pub(super) configurations: Vec<Value>,
    /// Were the configurations given, or made up from the settings because nobody gave any?
    pub(super) configurations_given: bool,
    /// Namespaces, ProxyConfigs and nodes.
    pub(super) cluster: Cluster,
    /// Workloads, with their namespace and pod.
    pub(super) workloads: Vec<(Workload, String, Value)>,
    /// Do the pods exist already, so that their containers can be compared with the answer?
    pub(super) live: bool,
}

/// Which pods are meant.
pub(super) struct Wanted<'a> {
    /// Name of the pod or workload; all by default.
    pub(super) name: Option<&'a str>,
    /// Namespace.
    pub(super) namespace: Option<&'a str>,
    /// Every namespace of the cluster.
    pub(super) everywhere: bool,
}

impl Question {
    /// Read files; what they do not say about the webhooks is made up from `revision`.
    pub(super) fn from_files(
        files: &[PathBuf],
        wanted: &Wanted<'_>,
        settings: &SettingsArguments,
        revision: &str,
    ) -> anyhow::Result<Self> {
        let objects = documents::objects(documents::read_all(files)?);
        let cluster = settings.cluster(&objects)?;
        let given = objects.iter().filter(|object| object["kind"] == "MutatingWebhookConfiguration");
        let mut configurations = injectors(given.cloned().collect());
        let configurations_given = !configurations.is_empty();
        if !configurations_given {
            configurations
                .push(WebhookOptions { revision: revision.to_owned(), ..WebhookOptions::default() }.build());
        }
        let mut workloads = Vec::new();
        for (workload, pod) in objects.iter().flat_map(offline::pods) {
            let namespace = match (workload.namespace.as_str(), wanted.namespace) {
                ("", asked) => asked.unwrap_or("default").to_owned(),
                (own, _) => own.to_owned(),
            };
            if wanted.namespace.is_none_or(|asked| asked == namespace)
                && wanted.name.is_none_or(|asked| asked == workload.name)
            {
                workloads.push((workload, namespace, pod));
            }
        }
        Ok(Self { configurations, configurations_given, cluster, workloads, live: false })
    }

    /// Ask an API server. ProxyConfigs, namespaces and nodes of `settings` are added to what it says. `by_kubelet`: whether
    /// the layout of the sidecar depends on the versions of the nodes.
    pub(super) fn from_cluster(
        arguments: &ClusterArguments,
        wanted: &Wanted<'_>,
        settings: &SettingsArguments,
        by_kubelet: bool,
    ) -> anyhow::Result<Self> {
        let connection = arguments.connection()?;
        let namespace = wanted.namespace.unwrap_or(&connection.namespace).to_owned();
        let client = Client::new(connection);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let read = runtime.block_on(Objects::read(&client, wanted, &namespace))?;
        let mut cluster = settings.cluster(&[])?;
        if by_kubelet {
            match runtime.block_on(client.list("/api/v1/nodes", "Node")) {
                Ok(nodes) => nodes.iter().for_each(|node| cluster.add_node(node)),
                // Often only administrators may; most of the answer does not depend on it.
                Err(error) => eprintln!("warning: every node is taken to run native sidecars: {error}"),
            }
        }
        for object in read.namespaces {
            cluster.add_namespace(object);
        }
        let configurations = injectors(read.configurations);
        let workloads = read.pods.iter().flat_map(offline::pods);
        let workloads = workloads
            .map(|(workload, mut pod)| {
                let namespace = workload.namespace.clone();
                // A pod that is created now is not bound to a node yet.
                if let Some(spec) = pod.get_mut("spec").and_then(Value::as_object_mut) {
                    spec.remove("nodeName");
                }
                (workload, namespace, pod)
            })
            .collect();
        Ok(Self { configurations, configurations_given: true, cluster, workloads, live: true })
    }
}

/// What an API server said.
struct Objects {
    namespaces: Vec<Value>,
    configurations: Vec<Value>,
    pods: Vec<Value>,
}

impl Objects {
    async fn read(client: &Client, wanted: &Wanted<'_>, namespace: &str) -> Result<Self, KubernetesError> {
        let configurations = client
            .list(
                "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations",
                "MutatingWebhookConfiguration",
            )
            .await?;
        if wanted.everywhere {
            let namespaces = client.list("/api/v1/namespaces", "Namespace").await?;
            let mut pods = client.list("/api/v1/pods", "Pod").await?;
            if let Some(name) = wanted.name {
                pods.retain(|pod| pod.pointer("/metadata/name").and_then(Value::as_str) == Some(name));
            }
            return Ok(Self { namespaces, configurations, pods });
        }
        let path = format!("/api/v1/namespaces/{}", path_segment("namespace", namespace)?);
        let object = client.get(&path).await?;
        let pods = match wanted.name {
            Some(name) => vec![client.get(&format!("{path}/pods/{}", path_segment("pod", name)?)).await?],
            None => client.list(&format!("{path}/pods"), "Pod").await?,
        };
        Ok(Self { namespaces: vec![object], configurations, pods })
    }
}

/// Configurations with the entries of injectors alone: other people's webhooks say nothing about injection.
fn injectors(configurations: Vec<Value>) -> Vec<Value> {
    let ours = |entry: &Value| entry["name"].as_str().is_some_and(|name| name.ends_with(ENTRY_SUFFIX));
    let mut kept = Vec::new();
    for mut configuration in configurations {
        let Some(entries) = configuration.get_mut("webhooks").and_then(Value::as_array_mut) else { continue };
        entries.retain(ours);
        if !entries.is_empty() {
            kept.push(configuration);
        }
    }
    kept
}

/// A namespace of which only the name is known.
pub(super) fn unknown_namespace(name: &str) -> Value {
    json!({"metadata": {"name": name}})
}
