//! A pod that was started: what may be asked of it, and the tasks that look after it while it exists.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use serde_json::Value;
use tokio::process::Command;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use super::{Place, with_sources};
use crate::cluster::Cluster;
use crate::error::{LabError, Result};
use crate::http::{self, Answer, Call};
use crate::network::NODE_IP;
use crate::objects::Key;
use crate::pod::container::{self, Output};
use crate::pod::environment::Capacity;
use crate::pod::lifecycle::Context;
use crate::pod::status::{Phase, PodStatus};
use crate::pod::volumes;
use crate::sandbox::Process;
use crate::state::write_atomically;
use crate::tokens::TokenIssuer;

/// Tokens live for an hour; renewed at 80 %.
const TOKEN_RENEWAL: Duration = Duration::from_secs(48 * 60);
/// How often volumes are compared with their ConfigMaps and Secrets; a real kubelet takes about a minute.
const OBJECTS: Duration = Duration::from_secs(1);

/// A pod that was started.
#[derive(Debug)]
pub(crate) struct Pod {
    pub(crate) key: Key,
    pub(crate) place: Place,
    /// The patched object with its status, as last published.
    pub(crate) object: Value,
    pub(super) context: Arc<Context>,
    pub(super) directory: PathBuf,
    pub(super) stop: watch::Sender<Option<Duration>>,
    pub(super) task: Mutex<Option<JoinHandle<()>>>,
    pub(super) follower: Mutex<Option<JoinHandle<()>>>,
}

impl Pod {
    /// What is known now.
    pub(crate) fn status(&self) -> PodStatus {
        self.context.status.borrow().clone()
    }

    /// The container that commands go to unless another is named: the first app container.
    pub(crate) fn default_container(&self) -> &str {
        self.context.spec.containers.first().map_or("", |container| container.name.as_str())
    }

    /// Waits until the pod takes traffic; a pod that failed for good is an error at once.
    pub(crate) async fn wait_ready(&self, limit: Duration) -> Result<()> {
        let mut changes = self.context.status.subscribe();
        let done = changes.wait_for(|status| status.ready || status.phase == Phase::Failed);
        let ready = matches!(timeout(limit, done).await, Ok(Ok(status)) if status.ready);
        if ready {
            return Ok(());
        }
        let detail = format!(": {}{}", self.status().summary(), self.last_lines());
        Err(LabError::Timeout { what: format!("{} ready", self.key), seconds: limit.as_secs(), detail })
    }

    /// The end of each container's log, for errors.
    pub(crate) fn last_lines(&self) -> String {
        let mut out = String::new();
        for name in self.context.sandboxes.keys() {
            let text = fs::read_to_string(self.context.log(name)).unwrap_or_default();
            let lines: Vec<&str> = text.lines().rev().take(8).collect();
            for line in lines.into_iter().rev() {
                out.push_str(&format!("\n    {name} | {line}"));
            }
        }
        out
    }

    /// The main process of a container.
    pub(crate) fn pid(&self, container: &str) -> Result<i32> {
        let status = self.status();
        let pid = status.containers.get(container).and_then(|status| status.pid);
        pid.ok_or_else(|| LabError::process(format!("{} {container}", self.key), "is not running"))
    }

    /// Runs a command in a container to its end.
    pub(crate) async fn exec(&self, container: &str, argv: &[&str], limit: Duration) -> Result<Output> {
        let (program, process) = self.command_process(container, argv)?;
        container::run_in(&program, self.pid(container)?, &process, limit).await
    }

    /// A command in a container whose standard streams the caller sets.
    pub(crate) fn command(&self, container: &str, argv: &[&str]) -> Result<Command> {
        let (program, process) = self.command_process(container, argv)?;
        container::enter(&program, self.pid(container)?, &process)
    }

    fn command_process(&self, container: &str, argv: &[&str]) -> Result<(PathBuf, Process)> {
        let sandbox = self
            .context
            .sandboxes
            .get(container)
            .ok_or_else(|| LabError::Usage(format!("{} has no container {container}", self.key)))?;
        let argv = argv.iter().map(|word| String::from(*word)).collect();
        Ok((sandbox.program.clone(), Process { argv, ..sandbox.process.clone() }))
    }

    /// An HTTP exchange with a loopback port inside the pod, as somebody who entered its network namespace.
    pub(crate) async fn local(&self, port: u16, call: Call) -> Result<Answer> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let stream = self.place.net.connect(address, Duration::from_secs(3)).await.map_err(|error| {
            LabError::Http { url: format!("{} {address}", self.key), message: error.to_string() }
        })?;
        http::send(stream, call).await
    }

    /// From here on nothing more is published about the pod.
    pub(super) async fn stop_following(&self) {
        let follower = self.follower.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(follower) = follower {
            follower.abort();
            let _ = follower.await;
        }
    }

    /// Ends the pod: apps first, sidecars last.
    pub(crate) async fn stop(&self, grace: Duration) {
        self.stop.send_replace(Some(grace));
        let task = self.task.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(task) = task {
            let _ = task.await;
        }
    }
}

/// Publishes every change of a pod's status while the pod exists.
pub(super) async fn follow(pod: Weak<Pod>, directory: PathBuf, publish: bool, start_time: String) {
    let Some(mut changes) = pod.upgrade().map(|pod| pod.context.status.subscribe()) else { return };
    let mut last = None;
    loop {
        let Some(pod) = pod.upgrade() else { return };
        let status = changes.borrow_and_update().clone();
        let json = status.to_json(pod.place.ip, NODE_IP, &start_time);
        if publish && last.as_ref() != Some(&json) {
            let mut object = pod.object.clone();
            object["status"] = json.clone();
            let path = directory.join(pod.key.file_name());
            if let Err(error) = write_atomically(&path, object.to_string().as_bytes()) {
                tracing::error!(pod = %pod.key, %error, "cannot publish a pod's status");
            }
            last = Some(json);
        }
        drop(pod);
        if changes.changed().await.is_err() {
            return;
        }
    }
}

/// Keeps a pod's volumes up to date while it exists: tokens that expire, ConfigMaps and Secrets that change.
pub(super) async fn renew(
    pod: Weak<Pod>,
    cluster: Arc<Cluster>,
    tokens: Arc<TokenIssuer>,
    capacity: Capacity,
) {
    let mut tokens_renewed = Instant::now();
    let mut said = None;
    loop {
        sleep(OBJECTS).await;
        let Some(pod) = pod.upgrade() else { return };
        let spec = &pod.context.spec;
        let parts = (&pod.key, &pod.object, spec);
        let renewed = with_sources(&cluster, &tokens, capacity, parts, |sources| {
            let directory = pod.directory.join("volumes");
            if tokens_renewed.elapsed() >= TOKEN_RENEWAL {
                volumes::refresh_tokens(sources, spec, &directory)?;
                tokens_renewed = Instant::now();
            }
            volumes::refresh_objects(sources, spec, &directory)
        });
        let error = renewed.err().map(|error| error.to_string());
        if said != error {
            if let Some(error) = &error {
                tracing::error!(pod = %pod.key, %error, "cannot renew a pod's volumes");
            }
            said = error;
        }
    }
}
