//! PID 1 of a lab: mounts and a network of its own, then one runtime with everything in it.

use std::fs;
use std::future::Future;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use tokio::signal::unix::{SignalKind, signal};

use crate::error::{During as _, Result};
use crate::state::StateDir;

/// Prepares the process, then runs `work` until it ends or the lab is asked to; `work` gets the lab's folder.
pub(crate) fn run<F>(state: PathBuf, work: impl FnOnce(PathBuf, Stop) -> F) -> Result<ExitCode>
where
    F: Future<Output = Result<ExitCode>>,
{
    set_pdeathsig(Signal::SIGKILL).during("tie this process to its parent")?;
    let state = StateDir::join(state)?;
    unshare(
        CloneFlags::CLONE_NEWNS
            | CloneFlags::CLONE_NEWNET
            | CloneFlags::CLONE_NEWUTS
            | CloneFlags::CLONE_NEWIPC,
    )
    .during("make namespaces")?;
    prepare_mounts(state.path())?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .during("start a runtime")?;
    let code = runtime.block_on(async {
        let stop = Stop::listen()?;
        work(state.path().to_owned(), stop).await
    });
    runtime.shutdown_background();
    code
}

/// Tells when the lab is asked to end.
#[derive(Debug, Clone)]
pub(crate) struct Stop {
    asked: tokio::sync::watch::Receiver<bool>,
}

impl Stop {
    fn listen() -> Result<Self> {
        let (send, asked) = tokio::sync::watch::channel(false);
        let mut terminate = signal(SignalKind::terminate()).during("handle signals")?;
        let mut interrupt = signal(SignalKind::interrupt()).during("handle signals")?;
        let lifeline = send.clone();
        std::thread::spawn(move || {
            // Ends only when the outer process is gone.
            let _ = std::io::stdin().lock().read(&mut [0]);
            lifeline.send_replace(true);
        });
        tokio::spawn(async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            send.send_replace(true);
        });
        Ok(Self { asked })
    }

    /// Waits for the request.
    pub(crate) async fn requested(&mut self) {
        // Both senders gone would mean that nobody can ask any more: as good as being asked.
        let _ = self.asked.wait_for(|asked| *asked).await;
    }
}

/// Nothing mounted here is seen outside; pods' volumes live on memory of their own.
fn prepare_mounts(state: &Path) -> Result<()> {
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).during("make mounts private")?;
    mount(Some("proc"), "/proc", Some("proc"), MsFlags::empty(), none).during("mount /proc")?;
    for (name, options) in [("pods", "mode=700"), ("root", "mode=700,size=4k")] {
        let path = state.join(name);
        fs::create_dir_all(&path).during(format!("create {}", path.display()))?;
        mount(Some("tmpfs"), &path, Some("tmpfs"), MsFlags::MS_NOSUID | MsFlags::MS_NODEV, Some(options))
            .during(format!("mount {}", path.display()))?;
    }
    // The program stays available under one name even when a build replaces the file meanwhile.
    let program = state.join("mesh-lab");
    fs::write(&program, "").during("make a place for the program")?;
    let itself = std::env::current_exe().during("find this program")?;
    mount(Some(&itself), &program, none, MsFlags::MS_BIND, none).during("hold on to this program")
}
