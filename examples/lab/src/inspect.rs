//! `ps`, `exec`, `logs` and `down`: other processes of the user, which read a lab's folder.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::error::{During as _, LabError, Result};
use crate::kubelet::{Listing, PodEntry};
use crate::lab::LISTING;
use crate::pod::status::{Kind, Phase};
use crate::privilege;
use crate::sandbox::{Entry, Process};
use crate::state::{find_lab, runtime_dir};

/// Lists pods and their containers.
pub(crate) fn ps(lab: Option<&str>) -> Result<ExitCode> {
    let (_, listing) = open(lab)?;
    let mut out =
        String::from("POD                             IP             PHASE      READY  CONTAINERS\n");
    for (name, pod) in &listing.pods {
        let containers: Vec<String> = pod
            .status
            .containers
            .iter()
            .map(|(name, container)| {
                let state = match (container.kind, container.pid) {
                    (Kind::Init, _) => String::from("init"),
                    (_, Some(pid)) => pid.to_string(),
                    (_, None) => String::from("-"),
                };
                match container.restarts {
                    0 => format!("{name}({state})"),
                    1 => format!("{name}({state}, 1 restart)"),
                    restarts => format!("{name}({state}, {restarts} restarts)"),
                }
            })
            .collect();
        let phase = format!("{:?}", pod.status.phase);
        let ready = if pod.status.ready { "yes" } else { "no" };
        out.push_str(&format!(
            "{name:<31} {:<14} {phase:<10} {ready:<6} {}\n",
            pod.ip.to_string(),
            containers.join(" ")
        ));
        let reason = pod.status.summary();
        if !pod.status.ready && !reason.is_empty() && pod.status.phase != Phase::Succeeded {
            out.push_str(&format!("    {}\n", reason.replace('\n', " ")));
        }
    }
    print(&out);
    Ok(ExitCode::SUCCESS)
}

/// Prints logs.
pub(crate) fn logs(lab: Option<&str>, pod: &str, container: Option<&str>) -> Result<ExitCode> {
    let (state, listing) = open(lab)?;
    let (name, _) = find(&listing, pod)?;
    let directory = state.join("logs").join(name.replace('/', "_"));
    let mut paths: Vec<PathBuf> = fs::read_dir(&directory)
        .during(format!("list {}", directory.display()))?
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| {
            container.is_none_or(|container| path.file_stem().is_some_and(|stem| stem == container))
        })
        .collect();
    paths.sort();
    if paths.is_empty() {
        return Err(LabError::Usage(format!(
            "{name} has no log of {}",
            container.unwrap_or("any container")
        )));
    }
    for path in paths {
        // Programs may write anything.
        let bytes = fs::read(&path).during(format!("read {}", path.display()))?;
        let text = String::from_utf8_lossy(&bytes);
        if container.is_none() {
            let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            print(&text.lines().map(|line| format!("{stem} | {line}\n")).collect::<String>());
        } else {
            print(&text);
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Runs a command in a pod with this process's standard streams.
pub(crate) fn exec(
    lab: Option<&str>,
    pod: &str,
    container: Option<&str>,
    argv: &[String],
) -> Result<ExitCode> {
    privilege::check()?;
    let (state, listing) = open(lab)?;
    let (name, entry) = find(&listing, pod)?;
    let container = container.unwrap_or(&entry.default_container);
    let process = entry
        .processes
        .get(container)
        .ok_or_else(|| LabError::Usage(format!("{name} has no container {container}")))?;
    let pid = entry.status.containers.get(container).and_then(|status| status.pid);
    let pid = pid.ok_or_else(|| LabError::process(format!("{name} {container}"), "is not running"))?;
    let inner = read_pid(&state.join("inner.pid"))?;
    let description =
        serde_json::to_string(&Entry { pid, process: Process { argv: argv.to_vec(), ..process.clone() } })
            .map_err(|error| LabError::process("exec", error.to_string()))?;
    join_lab(inner)?;
    let status = Command::new(state.join("mesh-lab"))
        .args(["shim", "enter", &description])
        .status()
        .during("start a process in the lab")?;
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)))
}

/// Asks a lab to end, and waits until it has.
pub(crate) fn down(lab: Option<&str>) -> Result<ExitCode> {
    let state = find_lab(&runtime_dir(), lab)?;
    let pid = read_pid(&state.join("outer.pid"))?;
    let lock = File::open(state.join("lock")).during("open the lab's lock")?;
    kill(Pid::from_raw(pid), Signal::SIGTERM).during("ask the lab to end")?;
    // Both of its processes hold the lock for as long as they live.
    lock.lock().during("wait for the lab's end")?;
    Ok(ExitCode::SUCCESS)
}

/// Children of this process live in the lab's PID namespace from here on, and see its mounts.
fn join_lab(inner: i32) -> Result<()> {
    let open = |kind: &str| {
        let path = format!("/proc/{inner}/ns/{kind}");
        File::open(&path).during(format!("open {path}"))
    };
    let (pid, mnt) = (open("pid")?, open("mnt")?);
    setns(&pid, CloneFlags::CLONE_NEWPID).during("join the lab's processes")?;
    setns(&mnt, CloneFlags::CLONE_NEWNS).during("join the lab's mounts")
}

fn open(lab: Option<&str>) -> Result<(PathBuf, Listing)> {
    let state = find_lab(&runtime_dir(), lab)?;
    let path = state.join(LISTING);
    let text = fs::read(&path).during("the lab is not up yet")?;
    let listing =
        serde_json::from_slice(&text).map_err(|error| LabError::File { path, message: error.to_string() })?;
    Ok((state, listing))
}

/// A pod by `namespace/name`, or by its name alone when that is clear.
fn find<'a>(listing: &'a Listing, wanted: &str) -> Result<(&'a str, &'a PodEntry)> {
    let matches = |name: &str| name == wanted || name.split_once('/').is_some_and(|(_, pod)| pod == wanted);
    let found: Vec<_> = listing.pods.iter().filter(|(name, _)| matches(name)).collect();
    match found.as_slice() {
        [(name, pod)] => Ok((name, pod)),
        [] => Err(LabError::Usage(format!("there is no pod {wanted}"))),
        _ => {
            Err(LabError::Usage(format!("several namespaces have a pod {wanted}; write namespace/{wanted}")))
        }
    }
}

fn read_pid(path: &Path) -> Result<i32> {
    let text = fs::read_to_string(path).during(format!("read {}", path.display()))?;
    text.trim()
        .parse()
        .map_err(|_| LabError::File { path: path.to_owned(), message: String::from("not a PID") })
}

/// A closed pipe is the reader's choice.
fn print(text: &str) {
    let _ = std::io::stdout().lock().write_all(text.as_bytes());
}
