//! The same load through us and through our peers; the README says how and shows the figures.
#![forbid(unsafe_code)]

mod backend;
mod certs;
mod compare;
mod config;
mod load;
mod options;
mod plane;
mod process;
mod report;
mod startup;

use std::ffi::OsString;
use std::process::ExitCode;

const USAGE: &str = "\
mesh-bench compare [--json] [--require PEER]… [--envoy PATH] [--haproxy PATH] [--nginx PATH]
                   [--seconds 10] [--runs 5] [--connections 64] [--scenario http,http-mtls,tcp,tcp-mtls] [--only PEER,…]
                   [--out DIR]
mesh-bench startup [--json] [--runs 5] [--services 1000] [--endpoints 10] [--out DIR]
mesh-bench role mesh-sidecar ARGS…
";

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    match args.next().as_deref().and_then(|a| a.to_str()) {
        Some("role") => role(args),
        Some("compare") => end(options::Options::parse(args).and_then(|options| compare::run(&options))),
        Some("startup") => {
            end(options::StartupOptions::parse(args).and_then(|options| startup::run(&options)))
        }
        _ => {
            eprint!("{USAGE}");
            ExitCode::from(2)
        }
    }
}

fn end(result: anyhow::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("mesh-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn role(mut args: impl Iterator<Item = OsString>) -> ExitCode {
    match args.next().as_deref().and_then(|a| a.to_str()) {
        Some("mesh-sidecar") => mesh_sidecar::run(args),
        other => {
            eprintln!("mesh-bench: no role {other:?}\n{USAGE}");
            ExitCode::from(2)
        }
    }
}
