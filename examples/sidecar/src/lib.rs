//! The sidecar: agent and proxy in one process.
//!
//! It takes the place of Istio's agent and of Envoy in an injected pod: it gets its certificate and its configuration
//! from the control plane, proxies what the kernel redirects to it, answers the kubelet's probes and Envoy's admin
//! paths, and drains before it ends. With `-c FILE` it runs an Envoy bootstrap with static resources instead.
//!
//! One thread runs the agent; the data path has workers of its own.
#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::Context;

use crate::agent::Started;
use crate::args::Command;
use crate::dump::Reexec;

pub mod admin;
pub mod agent;
pub mod app_probe;
pub mod apply;
pub mod args;
pub mod client;
pub mod control_plane;
pub mod dump;
pub mod environment;
pub mod http;
pub mod logging;
pub mod node;
pub mod resources;
mod revocation;
pub mod serve;
pub mod static_bootstrap;
pub mod status;
pub mod tls;
pub mod xds;

/// Runs the program with arguments that do not contain its name; returns when it is told to stop.
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let started = Started::of_process();
    let args: Vec<OsString> = args.into_iter().collect();
    let reexec = Reexec::new(&args);
    let command = match args::parse(args) {
        Ok(command) => command,
        Err(error) => {
            eprintln!("mesh-sidecar: {error}\n\n{}", args::USAGE);
            return ExitCode::from(2);
        }
    };
    match execute(command, started, reexec) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("mesh-sidecar: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn execute(command: Command, started: Started, reexec: Reexec) -> anyhow::Result<ExitCode> {
    match command {
        Command::Help => println!("{}", args::USAGE),
        Command::Version => println!("mesh-sidecar {}", env!("CARGO_PKG_VERSION")),
        Command::RenderDump { query } => dump::render_stdin(&query)?,
        Command::EncodeBootstrap { file } => dump::encode_bootstrap(&file)?,
        Command::Request(request) => {
            let answer = runtime()?.block_on(client::request(&request))?;
            print!("{}", String::from_utf8_lossy(answer.body()));
            return Ok(if answer.status().is_success() { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
        Command::Wait(wait) => runtime()?.block_on(client::wait(&wait)).map_err(anyhow::Error::msg)?,
        Command::Proxy(proxy) => runtime()?.block_on(Box::pin(serve::pod(&proxy, started, reexec)))?,
        Command::Static(file) => runtime()?.block_on(Box::pin(serve::standalone(&file, started, reexec)))?,
    }
    Ok(ExitCode::SUCCESS)
}

/// The agent's runtime: one thread, which sleeps most of the time.
fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(4)
        .thread_stack_size(256 << 10)
        .build()
        .context("no runtime")
}
