#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod commands;
mod documents;
mod kubernetes;
mod settings;

use std::io::Write as _;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// The operator's tool of the mesh.
#[derive(Debug, Parser)]
#[command(name = "meshctl", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Inject sidecars into workloads of YAML or JSON files.
    Inject(commands::inject::Arguments),
    /// Take injections back.
    Uninject(commands::uninject::Arguments),
    /// Say for each pod whether it would be injected, by which webhook, and why.
    CheckInject(commands::check_inject::Arguments),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let result = match &arguments.command {
        Command::Inject(arguments) => commands::inject::run(arguments),
        Command::Uninject(arguments) => commands::uninject::run(arguments),
        Command::CheckInject(arguments) => commands::check_inject::run(arguments),
    };
    match result.and_then(|text| Ok(std::io::stdout().lock().write_all(text.as_bytes())?)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("meshctl: {error:#}");
            ExitCode::FAILURE
        }
    }
}
