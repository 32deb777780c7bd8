//! `up`: runs whatever a directory says, and follows its changes.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::task::{JoinError, JoinHandle};
use tokio::time::{MissedTickBehavior, interval};

use crate::cli::UpArgs;
use crate::cluster::Paths;
use crate::error::{During as _, LabError, Result};
use crate::inner::Stop;
use crate::kubelet::Pod;
use crate::lab::{CONTROL_PLANE_LIMIT, Lab};
use crate::objects::{Key, When};

/// How often the directory is looked at.
const LOOK: Duration = Duration::from_millis(500);
/// Time that pods get to end, whatever their specs say: a person waits for it.
const GRACE: Duration = Duration::from_secs(10);

/// Runs until asked to end.
pub(crate) async fn run(state: PathBuf, mut stop: Stop, args: UpArgs) -> Result<ExitCode> {
    let config = std::path::absolute(&args.file).during("resolve the directory")?;
    let paths = Paths::create(&state, config)?;
    let (lab, problems) = Lab::create(paths, "Always").await?;
    let lab = Arc::new(lab);
    let mut follower = Follower::new(Arc::clone(&lab), state, !args.no_mesh);
    follower.tell(problems.iter().map(ToString::to_string).collect());
    tokio::select! {
        outcome = follower.run() => return outcome,
        () = stop.requested() => {}
    }
    eprintln!("mesh-lab: ending");
    follower.abandon().await;
    lab.kubelet.stop_all(GRACE).await;
    Ok(ExitCode::SUCCESS)
}

/// Makes what runs follow what the directory says.
struct Follower {
    lab: Arc<Lab>,
    state: PathBuf,
    mesh: bool,
    pods: BTreeMap<Key, Wanted>,
    /// Problems that people know of already.
    told: BTreeSet<String>,
}

/// What became of a start: the pod, and what admission did.
type Started = Result<(Arc<Pod>, Option<usize>)>;
type Outcome = std::result::Result<Started, JoinError>;

/// A pod that people want.
struct Wanted {
    object: Value,
    starting: Option<JoinHandle<Started>>,
    /// What the directory said when it was begun to be started.
    generation: u64,
    failed: bool,
}

impl Wanted {
    fn started(&mut self, key: &Key, outcome: Outcome) {
        match outcome {
            Ok(Ok((started, operations))) => {
                let injected = operations.map_or("not injected", |_| "injected");
                eprintln!("mesh-lab: {key} started at {} ({injected})", started.place.ip);
                return;
            }
            Ok(Err(error)) => eprintln!("mesh-lab: {key}: {error}"),
            Err(error) => eprintln!("mesh-lab: {key}: {error}"),
        }
        self.failed = true;
    }

    /// Gives up starting it; nothing of it appears afterwards.
    async fn abandon(&mut self) {
        if let Some(task) = self.starting.take() {
            task.abort();
            let _ = task.await;
        }
    }
}

impl Follower {
    fn new(lab: Arc<Lab>, state: PathBuf, mesh: bool) -> Self {
        Self { lab, state, mesh, pods: BTreeMap::new(), told: BTreeSet::new() }
    }

    /// Returns only when the control plane does not start.
    async fn run(&mut self) -> Result<ExitCode> {
        if self.mesh {
            self.lab.control_plane.start(CONTROL_PLANE_LIMIT).await?;
        }
        eprintln!(
            "mesh-lab: up; `mesh-lab ps`, `mesh-lab exec POD -- CMD`, `mesh-lab logs POD`, `mesh-lab down`"
        );
        let mut ticks = interval(LOOK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            self.reconcile().await;
        }
    }

    /// Starts new pods, ends removed ones, replaces changed ones. Nothing that goes wrong here ends the lab.
    async fn reconcile(&mut self) {
        let mut problems: Vec<LabError> = match self.lab.cluster.look(When::Settled) {
            Ok(problems) => problems,
            Err(error) => vec![error],
        };
        let generation = self.lab.cluster.generation();
        for (key, pod) in &mut self.pods {
            if let Some(task) = pod.starting.take_if(|task| task.is_finished()) {
                pod.started(key, task.await);
            }
        }
        let wanted: BTreeMap<Key, Value> = self.lab.cluster.pods().into_iter().collect();
        // One that could not be started is tried again when anything has changed.
        let outdated = |key: &Key, pod: &Wanted| {
            wanted.get(key) != Some(&pod.object) || (pod.failed && pod.generation != generation)
        };
        let gone: Vec<Key> =
            self.pods.iter().filter(|(key, pod)| outdated(key, pod)).map(|(key, _)| key.clone()).collect();
        for key in gone {
            if let Some(mut pod) = self.pods.remove(&key) {
                pod.abandon().await;
                problems.extend(self.lab.kubelet.remove(&key, GRACE).await.err());
                if !pod.failed {
                    eprintln!("mesh-lab: {key} removed");
                }
            }
        }
        for (key, object) in wanted {
            if !self.pods.contains_key(&key) {
                // Beside the others: it may wait for what its volumes are made of.
                let (lab, name, pod) = (Arc::clone(&self.lab), key.clone(), object.clone());
                let starting = tokio::spawn(async move { lab.create_pod(&name, &pod).await });
                let pod = Wanted { object, starting: Some(starting), generation, failed: false };
                self.pods.insert(key, pod);
            }
        }
        problems.extend(self.lab.kubelet.refresh_hosts().err());
        problems.extend(self.lab.write_listing(&self.state).err());
        let mut problems: Vec<String> = problems.iter().map(ToString::to_string).collect();
        if self.mesh {
            // A control plane that cannot be asked at the moment has nothing new to say.
            problems.extend(self.lab.control_plane.rejections().await.unwrap_or_default());
        }
        self.tell(problems);
    }

    /// Gives up pods that are only about to start.
    async fn abandon(&mut self) {
        for pod in self.pods.values_mut() {
            pod.abandon().await;
        }
    }

    /// Says what is newly wrong, and what is right again.
    fn tell(&mut self, problems: Vec<String>) {
        let now: BTreeSet<String> = problems.into_iter().collect();
        for problem in now.difference(&self.told) {
            eprintln!("mesh-lab: {problem}");
        }
        for problem in self.told.difference(&now) {
            eprintln!("mesh-lab: no longer: {problem}");
        }
        self.told = now;
    }
}
