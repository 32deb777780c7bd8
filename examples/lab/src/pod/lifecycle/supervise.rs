//! One container that is kept running: hooks, probes, restarts.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until};

use super::Context;
use crate::pod::container::Running;
use crate::pod::probe::{self, Pace, Subject};
use crate::pod::spec::{ContainerSpec, Probe, RestartPolicy};

/// The longest pause between restarts.
const MAX_BACKOFF: Duration = Duration::from_secs(300);
/// A container that ran this long starts afresh.
const HEALTHY_AFTER: Duration = Duration::from_secs(600);

/// Pauses between restarts: none the first time, then one second, doubling.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    pause: Duration,
}

impl Backoff {
    /// The pause before the next start, after a run of length `ran`.
    pub(super) fn next(&mut self, ran: Duration) -> Duration {
        if ran >= HEALTHY_AFTER {
            self.pause = Duration::ZERO;
        }
        let pause = self.pause;
        self.pause = (pause * 2).clamp(Duration::from_secs(1), MAX_BACKOFF);
        pause
    }
}

/// A container with the task that looks after it.
#[derive(Debug)]
pub(super) struct Supervised {
    name: String,
    stop: watch::Sender<Option<Instant>>,
    task: JoinHandle<i32>,
    code: Option<i32>,
}

impl Supervised {
    /// Starts the container and keeps it as `policy` says.
    pub(super) fn spawn(context: &Arc<Context>, container: &ContainerSpec, policy: RestartPolicy) -> Self {
        let (stop, stopped) = watch::channel(None);
        let keeper = Keeper { context: Arc::clone(context), container: container.clone(), policy, stopped };
        Self { name: container.name.clone(), stop, task: tokio::spawn(keeper.keep()), code: None }
    }

    /// The container's name.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Waits until the container ended for good; its exit code. Cancel safe.
    pub(super) async fn finished(&mut self) -> i32 {
        if let Some(code) = self.code {
            return code;
        }
        let code = (&mut self.task).await.unwrap_or(-1);
        self.code = Some(code);
        code
    }

    /// Asks it to end until `deadline`, then kills it.
    pub(super) async fn stop(mut self, deadline: Instant) {
        self.stop.send_replace(Some(deadline));
        self.finished().await;
    }
}

struct Keeper {
    context: Arc<Context>,
    container: ContainerSpec,
    policy: RestartPolicy,
    stopped: watch::Receiver<Option<Instant>>,
}

/// Why a running container is to end.
enum End {
    Exited(i32),
    Unhealthy(String),
    Stop(Instant),
}

impl Keeper {
    async fn keep(mut self) -> i32 {
        let mut backoff = Backoff::default();
        loop {
            let began = Instant::now();
            let (code, stop) = self.once().await;
            self.context.update(&self.container.name, |status| {
                status.pid = None;
                status.exit_code = Some(code);
                (status.started, status.ready, status.hooked) = (false, false, false);
            });
            let again = match self.policy {
                RestartPolicy::Always => true,
                RestartPolicy::OnFailure => code != 0,
                RestartPolicy::Never => false,
            };
            if stop || !again {
                return code;
            }
            tracing::info!(container = self.container.name, code, "container ended, starting it again");
            tokio::select! {
                () = sleep(backoff.next(began.elapsed())) => {}
                _ = self.stopped.wait_for(Option::is_some) => return code,
            }
            self.context.update(&self.container.name, |status| status.restarts += 1);
        }
    }

    /// One run; the exit code and whether the end was asked for.
    async fn once(&mut self) -> (i32, bool) {
        let name = self.container.name.clone();
        let context = Arc::clone(&self.context);
        let Some(sandbox) = context.sandboxes.get(&name) else { return (-1, true) };
        let mut running = match Running::start(sandbox, &context.log(&name)).await {
            Ok(running) => running,
            Err(error) => {
                context.update(&name, |status| status.reason = Some(error.to_string()));
                return (125, false);
            }
        };
        context.update(&name, |status| {
            status.pid = Some(running.pid());
            status.exit_code = None;
            status.reason = None;
        });
        let subject = Subject {
            ip: context.ip,
            container: &self.container,
            process: &sandbox.process,
            pid: running.pid(),
            program: &sandbox.program,
        };
        let end = tokio::select! {
            code = running.wait() => End::Exited(code),
            reason = health(&context, &subject) => End::Unhealthy(reason),
            deadline = stop_requested(&mut self.stopped) => End::Stop(deadline),
        };
        match end {
            End::Exited(code) => (code, false),
            End::Unhealthy(reason) => {
                tracing::warn!(container = name, reason, "killing an unhealthy container");
                context.update(&name, |status| status.reason = Some(reason));
                let grace = Duration::from_secs(context.spec.grace_seconds());
                (running.terminate(grace).await, false)
            }
            End::Stop(deadline) => {
                (running.terminate(deadline.saturating_duration_since(Instant::now())).await, true)
            }
        }
    }
}

async fn stop_requested(stopped: &mut watch::Receiver<Option<Instant>>) -> Instant {
    let deadline = stopped.wait_for(Option::is_some).await.ok().and_then(|deadline| *deadline);
    // Nobody can ask any more: the pod's task is gone, and so should be the container.
    deadline.unwrap_or_else(Instant::now)
}

/// The postStart hook and the probes; returns the reason when the container has to be killed.
async fn health(context: &Context, subject: &Subject<'_>) -> String {
    let name = &subject.container.name;
    if let Some(hook) = &subject.container.lifecycle.post_start {
        let limit = Duration::from_secs(600);
        if let Err(reason) = probe::run(subject, hook, limit).await {
            return format!("postStart hook failed: {reason}");
        }
    }
    context.update(name, |status| status.hooked = true);
    if let Some(startup) = &subject.container.startup_probe
        && let Some(reason) = until_started(context, subject, startup).await
    {
        return reason;
    }
    context.update(name, |status| {
        status.started = true;
        status.reason = None;
    });
    let readiness = readiness(context, subject);
    let liveness = liveness(subject);
    tokio::select! {
        () = readiness => String::new(),
        reason = liveness => reason,
    }
}

/// Probes until the first success; a reason after too many failures.
async fn until_started(context: &Context, subject: &Subject<'_>, startup: &Probe) -> Option<String> {
    let pace = Pace::of(startup);
    let mut next = Instant::now() + pace.delay;
    for attempt in 1.. {
        sleep_until(next).await;
        next = Instant::now() + pace.period;
        match probe::run(subject, &startup.handler, pace.timeout).await {
            Ok(()) => break,
            Err(reason) if attempt >= pace.failures => {
                return Some(format!("startup probe failed: {reason}"));
            }
            Err(reason) => context.update(&subject.container.name, |status| status.reason = Some(reason)),
        }
    }
    None
}

/// Keeps `ready` true to the probe; never returns.
async fn readiness(context: &Context, subject: &Subject<'_>) {
    let name = &subject.container.name;
    let Some(probe) = &subject.container.readiness_probe else {
        context.update(name, |status| status.ready = true);
        return std::future::pending().await;
    };
    let pace = Pace::of(probe);
    let (mut good, mut bad) = (0_u32, 0_u32);
    sleep(pace.delay).await;
    loop {
        let next = Instant::now() + pace.period;
        match probe::run(subject, &probe.handler, pace.timeout).await {
            Ok(()) => (good, bad) = (good.saturating_add(1), 0),
            Err(reason) => {
                (good, bad) = (0, bad.saturating_add(1));
                context
                    .update(name, |status| status.reason = Some(format!("readiness probe failed: {reason}")));
            }
        }
        if good >= pace.successes && !is_ready(context, name) {
            context.update(name, |status| {
                status.ready = true;
                status.reason = None;
            });
        } else if bad >= pace.failures && is_ready(context, name) {
            context.update(name, |status| status.ready = false);
        }
        sleep_until(next).await;
    }
}

fn is_ready(context: &Context, name: &str) -> bool {
    context.status.borrow().containers.get(name).is_some_and(|status| status.ready)
}

/// Returns the reason when the container has to be killed.
async fn liveness(subject: &Subject<'_>) -> String {
    let Some(probe) = &subject.container.liveness_probe else { return std::future::pending().await };
    let pace = Pace::of(probe);
    let mut bad = 0;
    sleep(pace.delay).await;
    loop {
        let next = Instant::now() + pace.period;
        match probe::run(subject, &probe.handler, pace.timeout).await {
            Ok(()) => bad = 0,
            Err(reason) => {
                bad += 1;
                if bad >= pace.failures {
                    return format!("liveness probe failed: {reason}");
                }
            }
        }
        sleep_until(next).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn restarts_slow_down_and_recover() {
        let mut backoff = Backoff::default();
        let pauses: Vec<u64> = (0..5).map(|_| backoff.next(Duration::ZERO).as_secs()).collect();
        assert_eq!(pauses, [0, 1, 2, 4, 8]);
        for _ in 0..10 {
            backoff.next(Duration::ZERO);
        }
        assert_eq!(backoff.next(Duration::ZERO), MAX_BACKOFF);
        assert_eq!(backoff.next(HEALTHY_AFTER), Duration::ZERO);
    }
}
