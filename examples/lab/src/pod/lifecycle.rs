//! A pod's life: init containers in order, sidecars among them, then the apps; at the end the apps first.

mod supervise;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use self::supervise::Supervised;
use super::container::Running;
use super::probe::{self, Subject};
use super::spec::{ContainerSpec, PodSpec, RestartPolicy};
use super::status::{ContainerStatus, Kind, Phase, PodStatus};
use crate::sandbox::Sandbox;

/// Time that sidecars get at least, even when the apps used up the pod's grace period.
const SIDECAR_GRACE: Duration = Duration::from_secs(2);

/// Everything a pod's tasks need; made once.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) spec: PodSpec,
    pub(crate) ip: Ipv4Addr,
    /// One ready-made container per name.
    pub(crate) sandboxes: BTreeMap<String, Sandbox>,
    /// Directory of the logs, one file per container.
    pub(crate) logs: PathBuf,
    pub(crate) status: watch::Sender<PodStatus>,
}

impl Context {
    /// The log of a container.
    pub(crate) fn log(&self, container: &str) -> PathBuf {
        self.logs.join(format!("{container}.log"))
    }

    /// Changes one container's status.
    fn update(&self, container: &str, change: impl FnOnce(&mut ContainerStatus)) {
        self.status.send_modify(|status| {
            if let Some(found) = status.containers.get_mut(container) {
                change(found);
            }
            status.settle();
        });
    }

    fn set_phase(&self, phase: Phase, message: Option<String>) {
        self.status.send_modify(|status| {
            status.phase = phase;
            status.message = message;
            status.settle();
        });
    }

    /// Waits until `holds` is true of a container.
    async fn until(&self, container: &str, holds: impl Fn(&ContainerStatus) -> bool) {
        let mut watch = self.status.subscribe();
        // The sender lives in `self`: waiting cannot fail.
        let _ = watch.wait_for(|status| status.containers.get(container).is_some_and(&holds)).await;
    }
}

/// The status of a pod whose containers all wait.
pub(crate) fn initial_status(spec: &PodSpec) -> PodStatus {
    let mut status = PodStatus::default();
    for container in &spec.init_containers {
        let kind = if container.is_sidecar() { Kind::Sidecar } else { Kind::Init };
        status.containers.insert(container.name.clone(), ContainerStatus { kind, ..Default::default() });
    }
    for container in &spec.containers {
        status.containers.insert(container.name.clone(), ContainerStatus::default());
    }
    status
}

/// Runs the pod until it is done or `stop` carries a grace period.
pub(crate) async fn run(context: Arc<Context>, mut stop: watch::Receiver<Option<Duration>>) {
    let mut sidecars = Vec::new();
    let mut apps = Vec::new();
    let grace = tokio::select! {
        grace = requested(&mut stop) => grace,
        () = start_and_watch(&context, &mut sidecars, &mut apps) => {
            Duration::from_secs(context.spec.grace_seconds())
        }
    };
    shut_down(&context, sidecars, apps, grace).await;
    context.status.send_modify(|status| {
        if matches!(status.phase, Phase::Pending | Phase::Running) {
            status.phase = Phase::Succeeded;
        }
        status.settle();
    });
}

/// Waits for a stop request; never returns when nobody can ask any more.
async fn requested(stop: &mut watch::Receiver<Option<Duration>>) -> Duration {
    let grace = stop.wait_for(Option::is_some).await.ok().and_then(|grace| *grace);
    match grace {
        Some(grace) => grace,
        None => std::future::pending().await,
    }
}

/// Returns when the pod is done by itself.
async fn start_and_watch(context: &Arc<Context>, sidecars: &mut Vec<Supervised>, apps: &mut Vec<Supervised>) {
    for container in &context.spec.init_containers {
        if container.is_sidecar() {
            sidecars.push(Supervised::spawn(context, container, RestartPolicy::Always));
            context.until(&container.name, |status| status.started).await;
        } else if !run_to_completion(context, container).await {
            context.set_phase(Phase::Failed, Some(format!("init container {} failed", container.name)));
            return;
        }
    }
    context.set_phase(Phase::Running, None);
    for container in &context.spec.containers {
        apps.push(Supervised::spawn(context, container, context.spec.restart_policy));
        context.until(&container.name, |status| status.hooked || status.exit_code.is_some()).await;
    }
    let mut codes = Vec::new();
    for app in apps.iter_mut() {
        codes.push(app.finished().await);
    }
    let phase = if codes.iter().all(|code| *code == 0) { Phase::Succeeded } else { Phase::Failed };
    context.set_phase(phase, None);
}

/// An init container: until it succeeds, or fails for good.
async fn run_to_completion(context: &Context, container: &ContainerSpec) -> bool {
    let mut backoff = supervise::Backoff::default();
    loop {
        let name = container.name.as_str();
        let code = match context.sandboxes.get(name) {
            Some(sandbox) => match Running::start(sandbox, &context.log(name)).await {
                Ok(mut running) => {
                    context.update(name, |status| status.pid = Some(running.pid()));
                    running.wait().await
                }
                Err(error) => {
                    context.update(name, |status| status.reason = Some(error.to_string()));
                    -1
                }
            },
            None => -1,
        };
        context.update(name, |status| {
            status.pid = None;
            status.exit_code = Some(code);
            status.ready = code == 0;
        });
        if code == 0 {
            return true;
        }
        if context.spec.restart_policy == RestartPolicy::Never {
            return false;
        }
        tokio::time::sleep(backoff.next(Duration::ZERO)).await;
        context.update(name, |status| status.restarts += 1);
    }
}

/// Pre-stop hooks at once; then the apps; then the sidecars, last started first.
async fn shut_down(
    context: &Arc<Context>,
    sidecars: Vec<Supervised>,
    apps: Vec<Supervised>,
    grace: Duration,
) {
    let deadline = Instant::now() + grace;
    let hook = |name: String| {
        let context = Arc::clone(context);
        tokio::spawn(async move { timeout_at(deadline, pre_stop(&context, &name)).await })
    };
    let sidecar_hooks: Vec<_> = sidecars.iter().map(|sidecar| hook(sidecar.name().to_owned())).collect();
    let stopping = apps.into_iter().map(|app| {
        let hooked = hook(app.name().to_owned());
        async move {
            let _ = hooked.await;
            app.stop(deadline).await;
        }
    });
    futures_util::future::join_all(stopping).await;
    let deadline = deadline.max(Instant::now() + SIDECAR_GRACE);
    for (sidecar, hooked) in sidecars.into_iter().zip(sidecar_hooks).rev() {
        let _ = hooked.await;
        sidecar.stop(deadline).await;
    }
}

async fn pre_stop(context: &Context, name: &str) {
    let all = || context.spec.init_containers.iter().chain(&context.spec.containers);
    let Some(container) = all().find(|container| container.name == name) else { return };
    let (Some(handler), Some(sandbox)) = (&container.lifecycle.pre_stop, context.sandboxes.get(name)) else {
        return;
    };
    let Some(pid) = context.status.borrow().containers.get(name).and_then(|status| status.pid) else {
        return;
    };
    let subject =
        Subject { ip: context.ip, container, process: &sandbox.process, pid, program: &sandbox.program };
    let limit = Duration::from_secs(context.spec.grace_seconds());
    if let Err(reason) = probe::run(&subject, handler, limit).await {
        tracing::warn!(container = name, reason, "preStop hook failed");
    }
}
