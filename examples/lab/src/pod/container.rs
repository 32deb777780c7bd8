//! Processes of containers: started through the shim, signalled as a group, reaped here.

use std::fs::OpenOptions;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use tokio::io::AsyncReadExt as _;
use tokio::net::UnixStream;
use tokio::process::{Child, Command};
use tokio::time::timeout;

use crate::error::{During as _, LabError, Result};
use crate::sandbox::{Entry, Process, Sandbox};

/// Time for the shim to build a container.
const START_LIMIT: Duration = Duration::from_secs(20);

/// A container's main process.
#[derive(Debug)]
pub(crate) struct Running {
    child: Child,
    pid: Pid,
}

impl Running {
    /// Starts a container, its output appended to `log`; returns once its program runs.
    pub(crate) async fn start(sandbox: &Sandbox, log: &Path) -> Result<Self> {
        let name = sandbox.process.argv.join(" ");
        let description =
            serde_json::to_string(sandbox).map_err(|error| LabError::process(&*name, error.to_string()))?;
        let output = OpenOptions::new()
            .create(true)
            .append(true)
            .open(log)
            .during(format!("open {}", log.display()))?;
        let errors = output.try_clone().during("duplicate the log's descriptor")?;
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().during("make a channel")?;
        ours.set_nonblocking(true).during("make a channel non-blocking")?;
        let mut ours = UnixStream::from_std(ours).during("register a channel")?;
        let mut command = Command::new(&sandbox.program);
        command
            .args(["shim", "start", &description])
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(output)
            .stderr(errors)
            .kill_on_drop(true);
        let child = command.spawn().during(format!("start {name}"))?;
        // The child alone holds the other end now.
        drop(command);
        let pid = child_pid(&child, &name)?;
        let mut problem = String::new();
        match timeout(START_LIMIT, ours.read_to_string(&mut problem)).await {
            Ok(Ok(_)) if problem.is_empty() => Ok(Self { child, pid }),
            Ok(Ok(_)) => Err(LabError::process(name, problem)),
            Ok(Err(error)) => Err(LabError::process(name, error.to_string())),
            Err(_) => Err(LabError::process(name, "the container was not built in time")),
        }
    }

    /// The process in the lab's PID namespace.
    pub(crate) fn pid(&self) -> i32 {
        self.pid.as_raw()
    }

    /// Sends a signal to the main process; an already dead one is fine.
    pub(crate) fn signal(&self, signal: Signal) {
        if self.child.id().is_some() {
            let _ = kill(self.pid, signal);
        }
    }

    /// Waits for the main process and ends what it left behind; the exit code, 128 + n for signal n.
    ///
    /// Cancel safe.
    pub(crate) async fn wait(&mut self) -> i32 {
        use std::os::unix::process::ExitStatusExt as _;
        let status = self.child.wait().await;
        let _ = killpg(self.pid, Signal::SIGKILL);
        match status {
            Ok(status) => status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0)),
            Err(_) => -1,
        }
    }

    /// Asks the process to end, and kills it after `grace`; the exit code.
    pub(crate) async fn terminate(&mut self, grace: Duration) -> i32 {
        self.signal(Signal::SIGTERM);
        if let Ok(code) = timeout(grace, self.wait()).await {
            return code;
        }
        let _ = killpg(self.pid, Signal::SIGKILL);
        self.signal(Signal::SIGKILL);
        self.wait().await
    }
}

/// What a command in a container said.
#[derive(Debug, Clone)]
pub(crate) struct Output {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// A command that joins a running container, its standard streams still to be set.
pub(crate) fn enter(program: &Path, pid: i32, process: &Process) -> Result<Command> {
    let entry = Entry { pid, process: process.clone() };
    let description =
        serde_json::to_string(&entry).map_err(|error| LabError::process("shim", error.to_string()))?;
    let mut command = Command::new(program);
    // A group of its own: Ctrl-C is for the lab, which then ends its commands in order.
    command.args(["shim", "enter", &description]).process_group(0).kill_on_drop(true);
    Ok(command)
}

/// Runs a command in a container to its end.
pub(crate) async fn run_in(program: &Path, pid: i32, process: &Process, limit: Duration) -> Result<Output> {
    let name = process.argv.first().cloned().unwrap_or_default();
    let mut command = enter(program, pid, process)?;
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    match timeout(limit, command.output()).await {
        Ok(output) => {
            let output = output.during(format!("run {name}"))?;
            Ok(Output {
                code: output.status.code().unwrap_or(-1),
                stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
                stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
            })
        }
        Err(_) => Err(LabError::Timeout { what: name, seconds: limit.as_secs(), detail: String::new() }),
    }
}

fn child_pid(child: &Child, name: &str) -> Result<Pid> {
    let id = child.id().and_then(|id| i32::try_from(id).ok());
    id.map(Pid::from_raw).ok_or_else(|| LabError::process(name, "ended at once"))
}
