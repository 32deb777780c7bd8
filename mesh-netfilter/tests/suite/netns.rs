//! Network namespaces for tests: each is a thread that lives in one.

use std::process::Command;
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;

use mesh_netfilter::routing::Routing;
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{Gid, Uid, gettid, setfsgid, setfsuid};

type Job = Box<dyn FnOnce() + Send>;

/// Whose sockets can be made here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Owners {
    /// Anybody's.
    All,
    /// Only one user's and one group's: in a user namespace that knows no other.
    One,
}

impl Owners {
    /// What this process may do.
    pub(crate) fn here() -> Self {
        // A map has lines of: the first id inside, the first outside, how many.
        let knows = |map: &str| {
            let text = std::fs::read_to_string(map).unwrap_or_default();
            text.lines().any(|line| {
                let mut numbers = line.split_whitespace().map(|word| word.parse::<u32>().unwrap_or(0));
                let (first, _, count) = (numbers.next(), numbers.next(), numbers.next());
                first.zip(count).is_some_and(|(first, count)| first <= 1 && count > 2000)
            })
        };
        if knows("/proc/self/uid_map") && knows("/proc/self/gid_map") { Self::All } else { Self::One }
    }
}

impl std::fmt::Display for Owners {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::All => "several users",
            Self::One => "one user only",
        })
    }
}

/// A network namespace of its own, loopback up.
pub(crate) struct Space {
    jobs: Option<Sender<Job>>,
    thread: Option<JoinHandle<()>>,
    /// Where the namespace can be opened.
    pub(crate) path: String,
}

impl Space {
    /// Makes one; an error says which privilege is missing.
    pub(crate) fn new() -> Result<Self, String> {
        let (jobs, inbox) = channel::<Job>();
        let (ready, started) = channel();
        let thread = std::thread::spawn(move || {
            let made = unshare(CloneFlags::CLONE_NEWNET)
                .map_err(|errno| format!("unshare(CLONE_NEWNET): {errno}"))
                .and_then(|()| {
                    Routing::open().and_then(|mut routing| routing.loopback_up()).map_err(|e| e.to_string())
                })
                .map(|_| format!("/proc/{}/task/{}/ns/net", std::process::id(), gettid()));
            let failed = made.is_err();
            let _ = ready.send(made);
            if !failed {
                inbox.into_iter().for_each(|job| job());
            }
        });
        let path = started.recv().map_err(|_| "the namespace's thread ended".to_owned())??;
        Ok(Self { jobs: Some(jobs), thread: Some(thread), path })
    }

    /// Runs something inside and waits for it.
    pub(crate) fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let (send, result) = channel();
        let job: Job = Box::new(move || {
            let _ = send.send(job());
        });
        self.jobs.as_ref().expect("the namespace lives").send(job).expect("its thread lives");
        result.recv().expect("the job did not panic")
    }

    /// Runs a shell script inside.
    pub(crate) fn shell(&self, script: &str) -> Result<String, String> {
        let script = script.to_owned();
        self.run(move || {
            let output =
                Command::new("sh").args(["-ec", &script]).output().map_err(|error| format!("sh: {error}"))?;
            if output.status.success() {
                Ok(String::from_utf8_lossy(&output.stdout).into_owned())
            } else {
                Err(format!("{script}: {}", String::from_utf8_lossy(&output.stderr)))
            }
        })
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        drop(self.jobs.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Sockets made inside belong to this user and group: the kernel's owner match reads the ids for file access, which are a
/// thread's own.
pub(crate) fn as_owner<T>(uid: u32, gid: u32, make: impl FnOnce() -> T) -> T {
    let old = (setfsuid(Uid::from_raw(uid)), setfsgid(Gid::from_raw(gid)));
    let made = make();
    setfsuid(old.0);
    setfsgid(old.1);
    made
}
