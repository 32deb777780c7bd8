//! Peers as processes: pinned to one CPU, accounted by the kernel, stopped when dropped.

use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::Context;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Clock ticks per second in /proc; a constant of the kernel's ABI.
const TICKS: u64 = 100;

/// Which CPUs the proxies and the load use.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cpus {
    /// Of the proxies.
    pub(crate) proxy: usize,
    /// Of load and backend.
    pub(crate) load: usize,
}

impl Cpus {
    /// The first two CPUs that this process may use; the same one twice if there is only one.
    pub(crate) fn choose() -> anyhow::Result<Self> {
        let allowed = sched_getaffinity(Pid::from_raw(0))?;
        let mut usable = (0..CpuSet::count()).filter(|cpu| allowed.is_set(*cpu).unwrap_or(false));
        let proxy = usable.next().context("no CPU may be used")?;
        Ok(Self { proxy, load: usable.next().unwrap_or(proxy) })
    }
}

/// Pins the calling thread; threads and processes started from it inherit that.
pub(crate) fn pin(cpu: usize) -> anyhow::Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu)?;
    sched_setaffinity(Pid::from_raw(0), &set).with_context(|| format!("cannot pin to CPU {cpu}"))
}

/// A running peer.
#[derive(Debug)]
pub(crate) struct Running {
    child: Child,
}

impl Running {
    /// Starts a program on the proxies' CPU, its output in `log`.
    pub(crate) fn start(mut command: Command, cpus: Cpus, log: &Path) -> anyhow::Result<Self> {
        let out = File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
        command.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out);
        pin(cpus.proxy)?;
        let child = command.spawn().with_context(|| format!("cannot start {command:?}"));
        pin(cpus.load)?;
        Ok(Self { child: child? })
    }

    /// An error if the process has ended.
    pub(crate) fn check(&mut self) -> anyhow::Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => anyhow::bail!("the proxy ended: {status}"),
        }
    }

    /// User and system time of all its threads, also ended ones.
    pub(crate) fn cpu_time(&self) -> anyhow::Result<Duration> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        cpu_time(&stat).context("unexpected /proc/PID/stat")
    }

    /// VmRSS in KiB.
    pub(crate) fn rss_kib(&self) -> anyhow::Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        Ok(line.trim().trim_end_matches(" kB").trim().parse()?)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Ok(pid) = i32::try_from(self.child.id()) {
            let _already_gone = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        let _status = self.child.wait();
    }
}

fn cpu_time(stat: &str) -> Option<Duration> {
    // The second field is the name in parentheses and may contain blanks.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(Duration::from_millis((user + system) * 1000 / TICKS))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_is_read_behind_any_name() {
        let stat = "7 (a ) b) S 1 7 7 0 -1 4194560 101 0 0 0 25 17 0 0 20 0 1 0 88 1 2";
        assert_eq!(cpu_time(stat), Some(Duration::from_millis(420)));
        assert_eq!(cpu_time("7 nonsense"), None);
    }
}
