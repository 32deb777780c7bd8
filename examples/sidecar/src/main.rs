//! The sidecar: agent and proxy in one process.

use std::process::ExitCode;

fn main() -> ExitCode {
    mesh_sidecar::run(std::env::args_os().skip(1))
}
