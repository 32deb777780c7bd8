#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod blocking;
pub mod cli;
mod files;
pub mod model;
pub mod resources;
pub mod serve;
pub mod snapshot;
pub mod store;
pub mod translate;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::Parser as _;
use tokio::signal::unix::{SignalKind, signal};

use serve::{Config, ControlPlane};

/// Runs the program with the arguments after its name, until SIGTERM or SIGINT.
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let name = OsString::from("mesh-control");
    let args = match cli::Args::try_parse_from(std::iter::once(name).chain(args)) {
        Ok(args) => args,
        Err(error) => {
            // Help goes to stdout, complaints to stderr; where neither can be written there is nobody to tell.
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(2) } else { ExitCode::SUCCESS };
        }
    };
    let filter = tracing_subscriber::EnvFilter::try_from_env("MESH_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    // A second subscriber (the program is linked into another one) is not an error.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .try_init();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(%error, "no runtime");
            return ExitCode::FAILURE;
        }
    };
    runtime.block_on(serve_until_signal(args.into()))
}

async fn serve_until_signal(config: Config) -> ExitCode {
    let (mut terminate, mut interrupt) =
        match (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) {
            (Ok(terminate), Ok(interrupt)) => (terminate, interrupt),
            (Err(error), _) | (_, Err(error)) => {
                tracing::error!(%error, "no signal handler");
                return ExitCode::FAILURE;
            }
        };
    let control_plane = match ControlPlane::start(config).await {
        Ok(control_plane) => control_plane,
        Err(error) => {
            tracing::error!(reason = error.reason(), "cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    tokio::select! {
        _ = terminate.recv() => tracing::info!("SIGTERM: stopping"),
        _ = interrupt.recv() => tracing::info!("SIGINT: stopping"),
    }
    control_plane.stop().await;
    ExitCode::SUCCESS
}
