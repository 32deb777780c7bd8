//! What a container's process gets: the description that travels from the kubelet to the shim that becomes the process.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Where the lab keeps its own things inside a container.
pub(crate) const LAB_DIR: &str = "/.lab";
/// Directory of the multi-call program and its names, first in every container's PATH.
pub(crate) const BIN_DIR: &str = "/.lab/bin";
/// PATH of every container.
pub(crate) const PATH: &str = "/.lab/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Programs by which the multi-call program can be called inside a container.
pub(crate) const PROGRAMS: [&str; 5] =
    ["mesh-init", "mesh-sidecar", "mesh-control", "mesh-echo", "pilot-agent"];

/// What a container runtime grants when nobody asks for anything.
pub(crate) const DEFAULT_CAPABILITIES: [&str; 14] = [
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];

/// A container that is to be started.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Sandbox {
    /// The pod's network namespace, openable by the shim.
    pub(crate) net_ns: PathBuf,
    /// Host name inside.
    pub(crate) hostname: String,
    /// An empty directory to build the root on; the mount is private to the container.
    pub(crate) root: PathBuf,
    /// The multi-call program.
    pub(crate) program: PathBuf,
    /// What is mounted where, in order.
    pub(crate) binds: Vec<Bind>,
    /// Whether the root refuses writes at the end.
    pub(crate) read_only_root: bool,
    /// What runs.
    pub(crate) process: Process,
}

/// A directory or file of the node that appears in the container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Bind {
    /// Path on the node.
    pub(crate) source: PathBuf,
    /// Absolute path in the container.
    pub(crate) target: PathBuf,
    /// Whether writes are refused.
    pub(crate) read_only: bool,
}

/// A process with its identity.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Process {
    /// Program and arguments; the program is looked up in PATH.
    pub(crate) argv: Vec<String>,
    /// The whole environment.
    pub(crate) env: BTreeMap<String, String>,
    /// Working directory.
    pub(crate) cwd: String,
    /// User.
    pub(crate) uid: u32,
    /// Group.
    pub(crate) gid: u32,
    /// Supplementary groups.
    pub(crate) groups: Vec<u32>,
    /// The bounding set: `CAP_…` names.
    pub(crate) capabilities: Vec<String>,
    /// Whether exec may never grant more than the process has.
    pub(crate) no_new_privileges: bool,
}

/// A process that joins a running container.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Entry {
    /// A process of the container, in the lab's PID namespace.
    pub(crate) pid: i32,
    /// What runs.
    pub(crate) process: Process,
}
