//! The multi-call program: one binary, every role.

use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::process::ExitCode;

/// Runs the role that the program was called by, if it is one; `mesh-lab` itself is none.
pub(crate) fn by_name(called_as: &OsStr, args: impl Iterator<Item = OsString>) -> Option<ExitCode> {
    let name = Path::new(called_as).file_name()?.to_str()?;
    run(name, args)
}

/// Runs a role; `None` when there is no such role.
pub(crate) fn run(name: &str, args: impl Iterator<Item = OsString>) -> Option<ExitCode> {
    Some(match name {
        "mesh-init" => mesh_init::run(args),
        // Istio's hooks call the agent by its old name.
        "mesh-sidecar" | "pilot-agent" => mesh_sidecar::run(args),
        "mesh-control" => mesh_control::run(args),
        "mesh-echo" => mesh_echo::run(args),
        _ => return None,
    })
}
