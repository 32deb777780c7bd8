//! What an API server would hold: the objects people wrote, what the control plane published, and what this lab adds
//! (service addresses, pod status).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use base64::Engine as _;
use serde_json::{Value, json};

use crate::error::{During as _, LabError, Result};
use crate::objects::{self, Directory, Key, Objects, When};
use crate::state::{private_dir, write_atomically};

/// Where everything of one lab lies.
#[derive(Debug, Clone)]
pub(crate) struct Paths {
    /// People's YAML.
    pub(crate) config: PathBuf,
    /// What the lab adds to it.
    pub(crate) status: PathBuf,
    /// What the control plane adds.
    pub(crate) publish: PathBuf,
    /// The control plane's CA; memory, as long as the lab lives.
    pub(crate) control_state: PathBuf,
    /// The public key of service-account tokens.
    pub(crate) jwks: PathBuf,
    /// Volumes and other files of pods; memory.
    pub(crate) pods: PathBuf,
    /// An empty directory on which containers mount their root.
    pub(crate) root: PathBuf,
    /// Logs, a directory per pod.
    pub(crate) logs: PathBuf,
    /// The multi-call program.
    pub(crate) program: PathBuf,
}

impl Paths {
    /// The usual places below a lab's folder, created.
    pub(crate) fn create(state: &Path, config: PathBuf) -> Result<Self> {
        let below = |name: &str| state.join(name);
        let paths = Self {
            config,
            status: below("status"),
            publish: below("publish"),
            // On memory: containers can read the machine's file system.
            control_state: below("pods").join(".control-plane"),
            jwks: below("jwks.json"),
            pods: below("pods"),
            root: below("root"),
            logs: below("logs"),
            program: below("mesh-lab"),
        };
        for directory in
            [&paths.status, &paths.publish, &paths.pods, &paths.control_state, &paths.root, &paths.logs]
        {
            private_dir(directory)?;
        }
        Ok(paths)
    }
}

/// The store.
#[derive(Debug)]
pub(crate) struct Cluster {
    pub(crate) paths: Paths,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    config: Directory,
    objects: Objects,
    /// Counts changes of `objects`.
    generation: u64,
    service_ips: BTreeMap<Key, Ipv4Addr>,
    used: BTreeSet<Ipv4Addr>,
    control_plane: Option<Ipv4Addr>,
}

impl Cluster {
    /// Reads the configuration directory and gives every service an address.
    pub(crate) fn open(paths: Paths) -> Result<(Self, Vec<LabError>)> {
        let inner = Inner { config: Directory::new(paths.config.clone()), ..Inner::default() };
        let cluster = Self { paths, inner: Mutex::new(inner) };
        let problems = cluster.reload()?;
        Ok((cluster, problems))
    }

    /// Reads the configuration directory again; what is wrong is returned, the last good version stays.
    pub(crate) fn reload(&self) -> Result<Vec<LabError>> {
        self.look(When::Now)
    }

    /// As [`reload`](Self::reload), where people edit meanwhile.
    pub(crate) fn look(&self, when: When) -> Result<Vec<LabError>> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let (objects, problems) = inner.config.read(when)?;
        if objects != inner.objects {
            inner.objects = objects;
            inner.generation += 1;
        }
        let gone: Vec<Key> =
            inner.service_ips.keys().filter(|key| !inner.objects.contains_key(*key)).cloned().collect();
        for key in gone {
            // Otherwise the control plane would go on seeing the service.
            let path = self.paths.status.join(key.file_name());
            fs::remove_file(&path).during(format!("remove {}", path.display()))?;
            if let Some(ip) = inner.service_ips.remove(&key) {
                inner.used.remove(&ip);
            }
        }
        let services: Vec<(Key, Value)> = inner
            .objects
            .iter()
            .filter(|(key, _)| key.kind == "Service" && !inner.service_ips.contains_key(key))
            .map(|(key, service)| (key.clone(), service.clone()))
            .collect();
        for (key, mut service) in services {
            let wanted = service.pointer("/spec/clusterIP").and_then(Value::as_str);
            if wanted == Some("None") {
                continue;
            }
            let ip = match wanted.and_then(|ip| ip.parse().ok()) {
                Some(ip) => ip,
                None => free_service_ip(&inner.used)?,
            };
            inner.used.insert(ip);
            inner.service_ips.insert(key.clone(), ip);
            service["spec"]["clusterIP"] = json!(ip.to_string());
            service["spec"]["clusterIPs"] = json!([ip.to_string()]);
            service["metadata"]["namespace"] = json!(key.namespace);
            write_atomically(&self.paths.status.join(key.file_name()), service.to_string().as_bytes())?;
        }
        Ok(problems)
    }

    /// Makes `istiod.istio-system` resolve to the control plane's pod.
    pub(crate) fn set_control_plane(&self, ip: Ipv4Addr) {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).control_plane = Some(ip);
    }

    /// Another number after each change of what people wrote.
    pub(crate) fn generation(&self) -> u64 {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).generation
    }

    /// The pods that people want.
    pub(crate) fn pods(&self) -> Vec<(Key, Value)> {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let pods = inner.objects.iter().filter(|(key, _)| key.kind == "Pod");
        pods.map(|(key, pod)| (key.clone(), pod.clone())).collect()
    }

    /// A Namespace; one without labels when nobody declared it.
    pub(crate) fn namespace(&self, name: &str) -> Value {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.objects.get(&Key::new("Namespace", "", name)).cloned().unwrap_or_else(
            || json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name } }),
        )
    }

    /// The webhook configurations that the control plane published.
    pub(crate) fn webhooks(&self) -> Result<Vec<Value>> {
        let (published, _) = objects::load(&self.paths.publish)?;
        let webhooks = published.into_iter().filter(|(key, _)| key.kind == "MutatingWebhookConfiguration");
        Ok(webhooks.map(|(_, webhook)| webhook).collect())
    }

    /// Data of a ConfigMap or Secret, people's own first, then the control plane's.
    pub(crate) fn data(&self, namespace: &str, kind: &str, name: &str) -> Option<BTreeMap<String, Vec<u8>>> {
        let key = Key::new(kind, namespace, name);
        let own = self.inner.lock().unwrap_or_else(PoisonError::into_inner).objects.get(&key).cloned();
        let object = own.or_else(|| objects::load(&self.paths.publish).ok()?.0.remove(&key))?;
        let mut data = BTreeMap::new();
        for (field, encoded) in [("data", kind == "Secret"), ("binaryData", true), ("stringData", false)] {
            for (key, value) in object.get(field).and_then(Value::as_object).into_iter().flatten() {
                let value = value.as_str().unwrap_or_default();
                let bytes = if encoded {
                    base64::engine::general_purpose::STANDARD.decode(value).ok()?
                } else {
                    value.as_bytes().to_vec()
                };
                data.insert(key.clone(), bytes);
            }
        }
        Some(data)
    }

    /// `/etc/hosts` of a pod: every service by the names that DNS would know from the pod's namespace.
    pub(crate) fn hosts(&self, namespace: &str, pod: &str, ip: Ipv4Addr) -> String {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let mut hosts =
            format!("127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n{ip} {pod}\n");
        let names = |name: &str, at: &str| {
            let short = if at == namespace { format!("{name} ") } else { String::new() };
            format!("{short}{name}.{at} {name}.{at}.svc {name}.{at}.svc.cluster.local")
        };
        if let Some(control_plane) = inner.control_plane {
            let _ = writeln!(hosts, "{control_plane} {}", names("istiod", "istio-system"));
        }
        for (key, ip) in &inner.service_ips {
            let _ = writeln!(hosts, "{ip} {}", names(&key.name, &key.namespace));
        }
        for (_, entry) in inner.objects.iter().filter(|(key, _)| key.kind == "ServiceEntry") {
            let strings = |field: &str| {
                let list = entry["spec"][field].as_array().into_iter().flatten();
                list.filter_map(Value::as_str).map(str::to_owned).collect::<Vec<_>>()
            };
            // A prefix stands for many addresses; the name resolves to its first one.
            if let Some(ip) = strings("addresses").first().and_then(|ip| ip.split('/').next()) {
                let _ = writeln!(hosts, "{ip} {}", strings("hosts").join(" "));
            }
        }
        hosts
    }
}

/// The first unused address of the service network 10.96.0.0/16.
fn free_service_ip(used: &BTreeSet<Ipv4Addr>) -> Result<Ipv4Addr> {
    (1..=u16::MAX - 1)
        .map(|host| {
            let [high, low] = host.to_be_bytes();
            Ipv4Addr::new(10, 96, high, low)
        })
        .find(|ip| !used.contains(ip))
        .ok_or_else(|| LabError::Usage(String::from("no service address is left")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_get_addresses_and_names() {
        let state = tempfile::tempdir().unwrap();
        let config = state.path().join("config");
        fs::create_dir(&config).unwrap();
        let services = "kind: Service\nmetadata: {name: reviews, namespace: shop}\nspec: {ports: []}\n---\n\
                        kind: Service\nmetadata: {name: headless, namespace: shop}\nspec: {clusterIP: None}\n";
        fs::write(config.join("services.yaml"), services).unwrap();
        let paths = Paths::create(state.path(), config).unwrap();
        let (cluster, problems) = Cluster::open(paths).unwrap();
        assert!(problems.is_empty());
        cluster.set_control_plane(Ipv4Addr::new(10, 244, 0, 2));
        let pod_ip = Ipv4Addr::new(10, 244, 1, 5);
        let inside = cluster.hosts("shop", "client", pod_ip);
        assert!(
            inside.contains("10.96.0.1 reviews reviews.shop reviews.shop.svc reviews.shop.svc.cluster.local")
        );
        assert!(inside.contains("10.244.0.2 istiod.istio-system istiod.istio-system.svc "));
        assert!(!inside.contains("headless"));
        assert!(cluster.hosts("other", "client", pod_ip).contains("10.96.0.1 reviews.shop "));
        let (status, _) = objects::load(&cluster.paths.status).unwrap();
        assert_eq!(status[&Key::new("Service", "shop", "reviews")]["spec"]["clusterIP"], "10.96.0.1");
        cluster.reload().unwrap();
        assert!(cluster.hosts("shop", "client", pod_ip).contains("10.96.0.1 reviews "), "addresses stay");
        let before = cluster.generation();
        fs::remove_file(cluster.paths.config.join("services.yaml")).unwrap();
        cluster.reload().unwrap();
        assert_eq!(cluster.generation(), before + 1);
        assert!(!cluster.hosts("shop", "client", pod_ip).contains("reviews"));
        assert!(objects::load(&cluster.paths.status).unwrap().0.is_empty(), "a deleted service is gone");
    }

    #[test]
    fn data_comes_from_people_or_from_the_control_plane() {
        let state = tempfile::tempdir().unwrap();
        let config = state.path().join("config");
        fs::create_dir(&config).unwrap();
        let secret = "kind: Secret\nmetadata: {name: s}\ndata: {a: aGk=}\nstringData: {b: plain}\n";
        fs::write(config.join("s.yaml"), secret).unwrap();
        let (cluster, _) = Cluster::open(Paths::create(state.path(), config).unwrap()).unwrap();
        let published = "kind: ConfigMap\nmetadata: {name: istio-ca-root-cert, namespace: shop}\n\
                         data: {root-cert.pem: PEM}\n";
        fs::write(cluster.paths.publish.join("ConfigMap.shop.istio-ca-root-cert.yaml"), published).unwrap();
        let secret = cluster.data("default", "Secret", "s").unwrap();
        assert_eq!((secret["a"].as_slice(), secret["b"].as_slice()), (&b"hi"[..], &b"plain"[..]));
        let root = cluster.data("shop", "ConfigMap", "istio-ca-root-cert").unwrap();
        assert_eq!(root["root-cert.pem"], b"PEM");
        assert!(cluster.data("shop", "ConfigMap", "other").is_none());
    }
}
