//! The process that the user started: makes a PID namespace, starts the inner process as PID 1 there, and waits. When
//! it dies, however it dies, the kernel ends everything inside.

use std::ffi::OsString;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{ExitCode, Stdio};

use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::Command;
use tokio::signal::unix::{SignalKind, signal};

use crate::error::{During as _, Result};
use crate::privilege;
use crate::state::{StateDir, runtime_dir, write_atomically};

/// Runs `args` (a subcommand with its options) inside.
pub(crate) fn run(args: &[OsString]) -> Result<ExitCode> {
    privilege::check()?;
    let state = StateDir::create(&runtime_dir())?;
    let code = inside(&state, args);
    state.remove()?;
    code
}

fn inside(state: &StateDir, args: &[OsString]) -> Result<ExitCode> {
    unshare(CloneFlags::CLONE_NEWPID).during("make a PID namespace")?;
    // No further thread can be made from here on (the PID namespace of children differs), and none is.
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().during("start a runtime")?;
    runtime.block_on(supervise(state, args))
}

async fn supervise(state: &StateDir, args: &[OsString]) -> Result<ExitCode> {
    let mut interrupt = signal(SignalKind::interrupt()).during("handle signals")?;
    let mut terminate = signal(SignalKind::terminate()).during("handle signals")?;
    let mut hangup = signal(SignalKind::hangup()).during("handle signals")?;
    write_atomically(&state.path().join("outer.pid"), std::process::id().to_string().as_bytes())?;
    let program = std::env::current_exe().during("find this program")?;
    // Standard input is a pipe that only this process holds: its end tells the inner process that this one is gone.
    let mut child = Command::new(program)
        .arg("inner")
        .arg(state.path())
        .args(args)
        .stdin(Stdio::piped())
        .spawn()
        .during("start the inner process")?;
    let lifeline = child.stdin.take();
    let pid = child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw);
    if let Some(pid) = pid {
        write_atomically(&state.path().join("inner.pid"), pid.to_string().as_bytes())?;
    }
    let forward = |signal: Signal| {
        if let Some(pid) = pid {
            let _ = kill(pid, signal);
        }
    };
    let status = loop {
        tokio::select! {
            status = child.wait() => break status.during("wait for the inner process")?,
            _ = interrupt.recv() => forward(Signal::SIGTERM),
            _ = terminate.recv() => forward(Signal::SIGTERM),
            _ = hangup.recv() => forward(Signal::SIGTERM),
        }
    };
    drop(lifeline);
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)))
}
