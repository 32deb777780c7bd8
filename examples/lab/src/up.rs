//! `up`: runs whatever a directory says, and follows its changes.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use serde_json::Value;
use tokio::time::{MissedTickBehavior, interval};

use crate::cli::UpArgs;
use crate::cluster::Paths;
use crate::error::{During as _, Result};
use crate::inner::Stop;
use crate::lab::{CONTROL_PLANE_LIMIT, Lab};
use crate::objects::Key;

/// How often the directory is looked at.
const LOOK: Duration = Duration::from_millis(500);
/// Time that pods get to end, whatever their specs say: a person waits for it.
const GRACE: Duration = Duration::from_secs(10);

/// Runs until asked to end.
pub(crate) async fn run(state: PathBuf, mut stop: Stop, args: UpArgs) -> Result<ExitCode> {
    let config = std::path::absolute(&args.file).during("resolve the directory")?;
    let paths = Paths::create(&state, config)?;
    let (lab, problems) = Lab::create(paths, "Always").await?;
    for problem in problems {
        eprintln!("mesh-lab: {problem}");
    }
    if !args.no_mesh {
        lab.control_plane.start(CONTROL_PLANE_LIMIT).await?;
    }
    eprintln!(
        "mesh-lab: up; `mesh-lab ps`, `mesh-lab exec POD -- CMD`, `mesh-lab logs POD`, `mesh-lab down`"
    );
    let mut running = BTreeMap::new();
    let mut ticks = interval(LOOK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => reconcile(&lab, &state, &mut running).await?,
            () = stop.requested() => break,
        }
    }
    eprintln!("mesh-lab: ending");
    lab.kubelet.stop_all(GRACE).await;
    Ok(ExitCode::SUCCESS)
}

/// Starts new pods, ends removed ones, replaces changed ones.
async fn reconcile(lab: &Lab, state: &std::path::Path, running: &mut BTreeMap<Key, Value>) -> Result<()> {
    lab.cluster.reload()?;
    let wanted: BTreeMap<Key, Value> = lab.cluster.pods().into_iter().collect();
    let gone: Vec<Key> = running
        .iter()
        .filter(|(key, pod)| wanted.get(key) != Some(pod))
        .map(|(key, _)| key.clone())
        .collect();
    for key in gone {
        running.remove(&key);
        lab.kubelet.remove(&key, GRACE).await?;
        eprintln!("mesh-lab: {key} removed");
    }
    for (key, pod) in wanted {
        if running.contains_key(&key) {
            continue;
        }
        match lab.create_pod(&key, &pod).await {
            Ok((started, operations)) => {
                let injected = operations.map_or("not injected", |_| "injected");
                eprintln!("mesh-lab: {key} started at {} ({injected})", started.place.ip);
            }
            Err(error) => eprintln!("mesh-lab: {key}: {error}"),
        }
        // A pod that could not be started is tried again when somebody changes it.
        running.insert(key, pod);
    }
    lab.kubelet.refresh_hosts()?;
    lab.write_listing(state)
}
