//! The control plane as a pod of its own: started, killed and started again at the same address.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep};

use crate::cluster::Cluster;
use crate::error::{During as _, LabError, Result};
use crate::http::{self, Call};
use crate::kubelet::{Kubelet, Place, Pod};
use crate::tokens::ISSUER;

const MONITORING_PORT: u16 = 15014;
const CONTAINER: &str = "discovery";
/// Where it sees people's directory.
const CONFIG_MOUNT: &str = "/var/lib/mesh/config";
/// Pause between two looks at a condition.
const LOOK: Duration = Duration::from_millis(20);

/// The one control plane of a lab.
#[derive(Debug)]
pub(crate) struct ControlPlane {
    cluster: Arc<Cluster>,
    kubelet: Arc<Kubelet>,
    place: Place,
    restart_policy: &'static str,
    pod: Mutex<Option<Arc<Pod>>>,
}

impl ControlPlane {
    /// Gives it an address that pods know by name. `restart_policy` says whether it comes back by itself.
    pub(crate) async fn create(
        cluster: Arc<Cluster>,
        kubelet: Arc<Kubelet>,
        restart_policy: &'static str,
    ) -> Result<Self> {
        let place = kubelet.place().await?;
        cluster.set_control_plane(place.ip);
        Ok(Self { cluster, kubelet, place, restart_policy, pod: Mutex::new(None) })
    }

    /// Its address.
    pub(crate) fn ip(&self) -> std::net::Ipv4Addr {
        self.place.ip
    }

    /// Starts it and waits until it serves and has published what pods need.
    pub(crate) async fn start(&self, limit: Duration) -> Result<()> {
        let pod = self.kubelet.start(self.object(), self.place.clone(), false).await?;
        *self.pod.lock().await = Some(Arc::clone(&pod));
        let deadline = Instant::now() + limit;
        loop {
            let problem = match self.get("/ready").await {
                Ok(answer) if answer.status == 200 && !self.cluster.webhooks()?.is_empty() => return Ok(()),
                Ok(answer) => format!("/ready says {}", answer.status),
                Err(error) => error.to_string(),
            };
            if Instant::now() >= deadline {
                let detail = format!(": {problem}{}", pod.last_lines());
                return Err(LabError::Timeout {
                    what: String::from("control plane ready"),
                    seconds: limit.as_secs(),
                    detail,
                });
            }
            sleep(LOOK).await;
        }
    }

    /// Kills it with SIGKILL and waits until it is gone.
    pub(crate) async fn kill(&self) -> Result<()> {
        let Some(pod) = self.pod.lock().await.take() else { return Ok(()) };
        kill(Pid::from_raw(pod.pid(CONTAINER)?), Signal::SIGKILL).during("kill the control plane")?;
        pod.stop(Duration::ZERO).await;
        Ok(())
    }

    /// GET on the monitoring port.
    pub(crate) async fn get(&self, path: &str) -> Result<http::Answer> {
        let address = SocketAddr::from((self.place.ip, MONITORING_PORT));
        let stream = TcpStream::connect(address).await.during(format!("connect to {address}"))?;
        http::send(stream, Call::get(path)).await
    }

    /// What people wrote that it does not apply: file, line, object, field and reason, and what serves instead.
    pub(crate) async fn rejections(&self) -> Result<Vec<String>> {
        // From inside its pod: its status is not for everybody on the network.
        let Some(pod) = self.pod.lock().await.clone() else { return Ok(Vec::new()) };
        let status = pod.local(MONITORING_PORT, Call::get("/debug/status")).await?.json("/debug/status")?;
        Ok(rejections(&status, &self.cluster.paths.config))
    }

    fn object(&self) -> Value {
        let paths = &self.cluster.paths;
        let mounts = [
            ("config", &paths.config, true),
            ("status", &paths.status, true),
            ("publish", &paths.publish, false),
            ("state", &paths.control_state, false),
            ("jwks", &paths.jwks, true),
        ];
        let volumes: Vec<Value> = mounts
            .iter()
            .map(|(name, path, _)| json!({ "name": name, "hostPath": { "path": path } }))
            .collect();
        let volume_mounts: Vec<Value> = mounts
            .iter()
            .map(|(name, _, read_only)| {
                json!({ "name": name, "mountPath": format!("/var/lib/mesh/{name}"), "readOnly": read_only })
            })
            .collect();
        let args = [
            &format!("--config-dir={CONFIG_MOUNT}"),
            "--status-dir=/var/lib/mesh/status",
            "--publish-dir=/var/lib/mesh/publish",
            "--state-dir=/var/lib/mesh/state",
            "--jwks=/var/lib/mesh/jwks",
            &format!("--issuer={ISSUER}"),
            "--audience=istio-ca",
        ];
        json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": { "name": "istiod", "namespace": "istio-system", "uid": "istiod" },
            "spec": {
                "restartPolicy": self.restart_policy,
                "serviceAccountName": "istiod",
                "volumes": volumes,
                "containers": [{
                    "name": CONTAINER,
                    "image": "mesh-control",
                    "args": args,
                    "volumeMounts": volume_mounts,
                    "securityContext": {
                        "readOnlyRootFilesystem": true,
                        "allowPrivilegeEscalation": false,
                        "capabilities": { "drop": ["ALL"] },
                    },
                }],
            },
        })
    }
}

/// The rejections of a status page, with the paths that people know.
fn rejections(status: &Value, config: &Path) -> Vec<String> {
    let text = |value: &Value, field: &str| value[field].as_str().unwrap_or_default().to_owned();
    let rejected = status["rejected"].as_array().into_iter().flatten();
    rejected
        .map(|rejection| {
            let file = text(rejection, "file");
            let file = match Path::new(&file).strip_prefix(CONFIG_MOUNT) {
                Ok(below) => config.join(below).display().to_string(),
                Err(_) => file,
            };
            format!(
                "{file}:{}: {} {}/{}: {}: {} ({})",
                rejection["line"],
                text(rejection, "kind"),
                text(rejection, "namespace"),
                text(rejection, "name"),
                text(rejection, "field"),
                text(rejection, "message"),
                text(rejection, "effect"),
            )
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rejections_name_the_file_as_people_know_it() {
        let status = json!({ "rejected": [{
            "file": "/var/lib/mesh/config/shop/routes.yaml", "line": 7, "kind": "VirtualService",
            "namespace": "shop", "name": "reviews", "field": "spec.http[0].rout", "message": "unknown field",
            "effect": "last good version serves",
        }] });
        assert_eq!(
            rejections(&status, Path::new("/home/me/mesh")),
            [
                "/home/me/mesh/shop/routes.yaml:7: VirtualService shop/reviews: spec.http[0].rout: unknown field \
              (last good version serves)"
            ]
        );
        assert!(rejections(&json!({}), Path::new("/")).is_empty());
    }
}
