//! Runs pods: network, volumes, processes; keeps their status where the control plane and people can read it.

mod pod;

use std::collections::BTreeMap;
use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use crate::cluster::Cluster;
use crate::error::{During as _, LabError, Result};
use crate::netns::NetNs;
use crate::network::{NODE_IP, NodeNetwork};
use crate::objects::Key;
use crate::pod::environment::{self, Capacity, Facts};
use crate::pod::lifecycle::{self, Context};
use crate::pod::process;
use crate::pod::spec::PodSpec;
use crate::pod::status::PodStatus;
use crate::pod::volumes::{self, Sources};
use crate::sandbox::{Bind, Process, Sandbox};
use crate::state::{private_dir, write_atomically};
use crate::tokens::{Holder, TokenIssuer};

pub(crate) use self::pod::Pod;

/// The node's name.
pub(crate) const NODE_NAME: &str = "lab-node";
/// How long a pod waits for what its volumes are made of.
const VOLUME_LIMIT: Duration = Duration::from_secs(30);
/// The kubelet of one lab.
#[derive(Debug)]
pub(crate) struct Kubelet {
    cluster: Arc<Cluster>,
    network: NodeNetwork,
    tokens: Arc<TokenIssuer>,
    pods: Mutex<BTreeMap<Key, Arc<Pod>>>,
    next: Mutex<u32>,
    capacity: Capacity,
}

/// An address and namespace that outlive a run, so that a restarted control plane keeps its address.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    pub(crate) net: NetNs,
    pub(crate) ip: Ipv4Addr,
    number: u32,
}

/// What `ps`, `exec` and `logs` read.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Listing {
    pub(crate) pods: BTreeMap<String, PodEntry>,
}

/// A pod in a [`Listing`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct PodEntry {
    pub(crate) ip: Ipv4Addr,
    pub(crate) status: PodStatus,
    /// Identity and environment by container, for `exec`.
    pub(crate) processes: BTreeMap<String, Process>,
    /// The container that commands go to unless another is named.
    pub(crate) default_container: String,
}

impl Kubelet {
    /// Prepares the node: network, token key.
    pub(crate) async fn create(cluster: Arc<Cluster>) -> Result<Self> {
        let network = NodeNetwork::create().await?;
        let tokens = Arc::new(TokenIssuer::create(&cluster.paths.jwks)?);
        fs::write(cluster.paths.pods.join("resolv.conf"), "options timeout:1 attempts:1\n")
            .during("write resolv.conf")?;
        fs::write(cluster.paths.pods.join("nsswitch.conf"), "passwd: files\ngroup: files\nhosts: files\n")
            .during("write nsswitch.conf")?;
        Ok(Self {
            cluster,
            network,
            tokens,
            pods: Mutex::new(BTreeMap::new()),
            next: Mutex::new(2),
            capacity: Capacity::of_machine(),
        })
    }

    /// A network namespace on the bridge.
    pub(crate) async fn place(&self) -> Result<Place> {
        let number = {
            let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
            *next += 1;
            *next - 1
        };
        let [_, _, high, low] = number.to_be_bytes();
        let ip = Ipv4Addr::new(10, 244, high, low);
        let net = NetNs::create().await?;
        self.network.attach(&net, number, ip).await?;
        Ok(Place { net, ip, number })
    }

    /// Starts the (patched) pod in `place`. With `publish`, the control plane sees its object and status.
    pub(crate) async fn start(&self, mut object: Value, place: Place, publish: bool) -> Result<Arc<Pod>> {
        let key = Key::of(&object).ok_or_else(|| LabError::Usage(String::from("a pod without a name")))?;
        let start_time = now();
        object["metadata"]["namespace"] = json!(key.namespace);
        object["spec"]["nodeName"] = json!(NODE_NAME);
        let spec = PodSpec::parse(&key.to_string(), &object)?;
        let initial = lifecycle::initial_status(&spec);
        object["status"] = initial.to_json(place.ip, NODE_IP, &start_time);
        if publish {
            self.publish(&key, &object)?;
        }
        let uid = object.pointer("/metadata/uid").and_then(Value::as_str).unwrap_or(&key.name);
        let directory = self.cluster.paths.pods.join(uid);
        private_dir(&directory)?;
        let logs = self.cluster.paths.logs.join(format!("{}_{}", key.namespace, key.name));
        private_dir(&logs)?;
        let volumes = self.volumes(&key, &object, &spec, &directory).await?;
        let sandboxes = self.sandboxes(&key, &object, &spec, &place, &directory, &volumes)?;
        let (status, _) = watch::channel(initial);
        let context = Arc::new(Context { spec, ip: place.ip, sandboxes, logs, status });
        let (stop, stopped) = watch::channel(None);
        let task = tokio::spawn(lifecycle::run(Arc::clone(&context), stopped));
        let pod = Arc::new(Pod {
            key: key.clone(),
            place,
            object,
            context,
            directory,
            stop,
            task: Mutex::new(Some(task)),
            follower: Mutex::new(None),
        });
        self.pods.lock().unwrap_or_else(PoisonError::into_inner).insert(key, Arc::clone(&pod));
        let status = self.cluster.paths.status.clone();
        let follower = tokio::spawn(pod::follow(Arc::downgrade(&pod), status, publish, start_time));
        *pod.follower.lock().unwrap_or_else(PoisonError::into_inner) = Some(follower);
        let (cluster, tokens) = (Arc::clone(&self.cluster), Arc::clone(&self.tokens));
        tokio::spawn(pod::renew(Arc::downgrade(&pod), cluster, tokens, self.capacity));
        Ok(pod)
    }

    /// Stops a pod and forgets it.
    pub(crate) async fn remove(&self, key: &Key, grace: Duration) -> Result<()> {
        let pod = self.pods.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
        if let Some(pod) = &pod {
            pod.stop(grace).await;
            pod.stop_following().await;
        }
        // Also of a pod that was only about to start.
        let published = self.cluster.paths.status.join(key.file_name());
        if published.exists() {
            fs::remove_file(&published).during(format!("remove {}", published.display()))?;
        }
        match pod {
            Some(pod) => self.network.detach(pod.place.number).await,
            None => Ok(()),
        }
    }

    /// Stops everything, all pods at once.
    pub(crate) async fn stop_all(&self, grace: Duration) {
        let pods = std::mem::take(&mut *self.pods.lock().unwrap_or_else(PoisonError::into_inner));
        futures_util::future::join_all(pods.values().map(|pod| pod.stop(grace))).await;
    }

    /// All pods.
    pub(crate) fn pods(&self) -> Vec<Arc<Pod>> {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// Rewrites `/etc/hosts` of every pod in place, after services changed.
    pub(crate) fn refresh_hosts(&self) -> Result<()> {
        for pod in self.pods() {
            let hosts = self.cluster.hosts(&pod.key.namespace, &pod.key.name, pod.place.ip);
            let path = pod.directory.join("hosts");
            fs::write(&path, hosts).during(format!("write {}", path.display()))?;
        }
        Ok(())
    }

    /// The state for other processes of the user.
    pub(crate) fn listing(&self) -> Listing {
        let mut listing = Listing::default();
        for pod in self.pods() {
            let processes = pod.context.sandboxes.iter();
            listing.pods.insert(
                format!("{}/{}", pod.key.namespace, pod.key.name),
                PodEntry {
                    ip: pod.place.ip,
                    status: pod.status(),
                    processes: processes
                        .map(|(name, sandbox)| (name.clone(), sandbox.process.clone()))
                        .collect(),
                    default_container: pod.default_container().to_owned(),
                },
            );
        }
        listing
    }

    fn publish(&self, key: &Key, object: &Value) -> Result<()> {
        write_atomically(&self.cluster.paths.status.join(key.file_name()), object.to_string().as_bytes())
    }

    /// Makes the volumes; what the control plane has not published yet is waited for.
    async fn volumes(
        &self,
        key: &Key,
        object: &Value,
        spec: &PodSpec,
        directory: &Path,
    ) -> Result<BTreeMap<String, PathBuf>> {
        let deadline = Instant::now() + VOLUME_LIMIT;
        loop {
            let pod = (key, object, spec);
            let made = with_sources(&self.cluster, &self.tokens, self.capacity, pod, |sources| {
                volumes::make(sources, spec, &directory.join("volumes"))
            });
            match made {
                Err(LabError::Object { .. }) if Instant::now() < deadline => {
                    sleep(Duration::from_millis(50)).await;
                }
                made => return made,
            }
        }
    }

    fn sandboxes(
        &self,
        key: &Key,
        object: &Value,
        spec: &PodSpec,
        place: &Place,
        directory: &Path,
        volumes: &BTreeMap<String, PathBuf>,
    ) -> Result<BTreeMap<String, Sandbox>> {
        let name = key.to_string();
        let paths = &self.cluster.paths;
        let hosts = directory.join("hosts");
        fs::write(&hosts, self.cluster.hosts(&key.namespace, &key.name, place.ip)).during("write hosts")?;
        let etc =
            |source: PathBuf, target: &str| Bind { source, target: PathBuf::from(target), read_only: false };
        let data = |kind: &str, name: &str| self.cluster.data(&key.namespace, kind, name);
        let facts = Facts { object: &name, pod: object, spec, data: &data, capacity: self.capacity };
        let mut sandboxes = BTreeMap::new();
        for container in spec.init_containers.iter().chain(&spec.containers) {
            let env = environment::resolve(&facts, container)?;
            let mut binds = vec![
                etc(hosts.clone(), "/etc/hosts"),
                etc(paths.pods.join("resolv.conf"), "/etc/resolv.conf"),
                etc(paths.pods.join("nsswitch.conf"), "/etc/nsswitch.conf"),
            ];
            binds.extend(volumes::binds(&name, &container.volume_mounts, volumes)?);
            let sandbox = Sandbox {
                net_ns: place.net.path(),
                hostname: key.name.clone(),
                root: paths.root.clone(),
                program: paths.program.clone(),
                binds,
                read_only_root: container.security_context.read_only_root_filesystem,
                process: process::of(&name, spec, container, env)?,
            };
            sandboxes.insert(container.name.clone(), sandbox);
        }
        Ok(sandboxes)
    }
}

/// Runs `work` with what volumes of the pod are filled from.
fn with_sources<T>(
    cluster: &Cluster,
    tokens: &TokenIssuer,
    capacity: Capacity,
    (key, object, spec): (&Key, &Value, &PodSpec),
    work: impl FnOnce(&Sources<'_>) -> Result<T>,
) -> Result<T> {
    let holder = Holder {
        namespace: key.namespace.clone(),
        service_account: spec.service_account().to_owned(),
        pod: key.name.clone(),
        uid: object.pointer("/metadata/uid").and_then(Value::as_str).unwrap_or_default().to_owned(),
    };
    work(&Sources {
        object: &key.to_string(),
        pod: object,
        spec,
        capacity,
        data: &|kind, name| cluster.data(&key.namespace, kind, name),
        token: &|audience, seconds| tokens.issue(&holder, audience, seconds),
    })
}

fn now() -> String {
    let now =
        time::OffsetDateTime::now_utc().replace_nanosecond(0).unwrap_or(time::OffsetDateTime::UNIX_EPOCH);
    now.format(&time::format_description::well_known::Rfc3339).unwrap_or_default()
}
