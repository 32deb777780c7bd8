//! The process that becomes a container: single-threaded from start to `exec`, so namespaces, mounts and credentials
//! can be changed without any unsafe code.

mod credentials;
mod rootfs;

use std::ffi::CString;
use std::fs::File;
use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitCode};

use nix::sched::{CloneFlags, setns, unshare};
use nix::unistd::{chdir, dup2_stdin, sethostname, setsid};

use crate::error::{During as _, LabError, Result};
use crate::sandbox::{Entry, Process, Sandbox};

/// Exit status when the process could not be made.
const SETUP_FAILED: u8 = 125;

/// Makes a container and becomes its process; standard input is the channel on which a failure is reported, and whose
/// closing tells that the process runs.
pub(crate) fn start(description: &str) -> ExitCode {
    let error = match serde_json::from_str::<Sandbox>(description) {
        Ok(sandbox) => match enter_new(&sandbox) {
            Ok(()) => exec(&sandbox.process, true),
            Err(error) => error,
        },
        Err(error) => LabError::Usage(format!("unreadable description: {error}")),
    };
    // The container's log and whoever started it both get to know.
    eprintln!("mesh-lab: {error}");
    let _ = nix::unistd::write(std::io::stdin(), error.to_string().as_bytes());
    ExitCode::from(SETUP_FAILED)
}

/// Joins a running container and becomes a further process there, with the standard streams it was given.
pub(crate) fn enter(description: &str) -> ExitCode {
    let error = match serde_json::from_str::<Entry>(description) {
        Ok(entry) => match enter_existing(&entry) {
            Ok(()) => exec(&entry.process, false),
            Err(error) => error,
        },
        Err(error) => LabError::Usage(format!("unreadable description: {error}")),
    };
    eprintln!("mesh-lab: {error}");
    ExitCode::from(SETUP_FAILED)
}

fn enter_new(sandbox: &Sandbox) -> Result<()> {
    let net = File::open(&sandbox.net_ns).during("open the pod's network namespace")?;
    setns(&net, CloneFlags::CLONE_NEWNET).during("join the pod's network namespace")?;
    drop(net);
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWUTS).during("make a mount namespace")?;
    sethostname(&sandbox.hostname).during("set the host name")?;
    rootfs::build(sandbox)?;
    setsid().during("start a session")?;
    Ok(())
}

fn enter_existing(entry: &Entry) -> Result<()> {
    let open = |kind: &str| {
        let path = format!("/proc/{}/ns/{kind}", entry.pid);
        File::open(&path).during(format!("open {path} (is the container running?)"))
    };
    let (net, uts, mnt) = (open("net")?, open("uts")?, open("mnt")?);
    setns(&net, CloneFlags::CLONE_NEWNET).during("join the network namespace")?;
    setns(&uts, CloneFlags::CLONE_NEWUTS).during("join the host name namespace")?;
    setns(&mnt, CloneFlags::CLONE_NEWNS).during("join the mount namespace")?;
    Ok(())
}

/// Drops privileges and becomes the process; returns only when that fails.
fn exec(process: &Process, detach_stdin: bool) -> LabError {
    match prepare(process, detach_stdin) {
        Ok(mut command) => {
            let source = command.exec();
            LabError::Os { what: format!("exec {}", process.argv.first().map_or("", String::as_str)), source }
        }
        Err(error) => error,
    }
}

fn prepare(process: &Process, detach_stdin: bool) -> Result<Command> {
    let (program, args) =
        process.argv.split_first().ok_or_else(|| LabError::Usage(String::from("nothing to run")))?;
    chdir(process.cwd.as_str()).during(format!("enter {}", process.cwd))?;
    credentials::assume(process)?;
    let mut command = Command::new(program);
    command.args(args).env_clear().envs(&process.env);
    if detach_stdin {
        // From here on the channel is closed: a failing exec shows as an exit status and in the log.
        let null = File::open("/dev/null").during("open /dev/null")?;
        std::io::stderr().flush().during("flush")?;
        dup2_stdin(&null).during("replace standard input")?;
    }
    Ok(command)
}

/// A path as the C library wants it.
fn c_path(path: &std::path::Path) -> Result<CString> {
    use std::os::unix::ffi::OsStrExt as _;
    CString::new(path.as_os_str().as_bytes())
        .map_err(|_| LabError::Usage(format!("{} contains a NUL byte", path.display())))
}
