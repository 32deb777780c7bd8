//! The sidecar: agent and proxy in one process.
#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::process::ExitCode;

pub mod app_probe;
pub mod args;
pub mod client;
pub mod environment;
pub mod http;
pub mod logging;
pub mod node;

/// Runs the program with arguments that do not contain its name; returns when it is told to stop.
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    match args::parse(args) {
        Ok(_) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("mesh-sidecar: {error}\n\n{}", args::USAGE);
            ExitCode::from(2)
        }
    }
}
