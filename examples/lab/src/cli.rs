//! The command line.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::error::{LabError, Result};
use crate::{demo, inner, inspect, outer, role, shim, up};

/// Exit status when the lab itself could not do what was asked.
const FAILED: u8 = 2;

#[derive(Debug, Parser)]
#[command(name = "mesh-lab", version, about = "A whole mesh on one Linux machine, in network namespaces.")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a mesh, keep it under load, change everything, and check every promise.
    Demo(DemoArgs),
    /// Run the objects of a directory until `down` or Ctrl-C.
    Up(UpArgs),
    /// Run a command in a pod.
    Exec(ExecArgs),
    /// Print what a container wrote.
    Logs(LogsArgs),
    /// List pods.
    Ps(LabArgs),
    /// End a lab.
    Down(LabArgs),
    #[command(hide = true)]
    Inner(InnerArgs),
    #[command(hide = true, disable_help_flag = true)]
    Role(RoleArgs),
    #[command(hide = true)]
    Shim(ShimArgs),
}

/// Options of `demo`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct DemoArgs {
    /// Print one JSON line, last on standard output.
    #[arg(long)]
    pub(crate) json: bool,
    /// The fewest requests that still show every promise.
    #[arg(long)]
    pub(crate) short: bool,
}

/// Options of `up`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct UpArgs {
    /// Directory of the YAML that one would `kubectl apply`.
    #[arg(short, long)]
    pub(crate) file: PathBuf,
    /// Only a kubelet: no control plane, no injection.
    #[arg(long)]
    pub(crate) no_mesh: bool,
}

#[derive(Debug, clap::Args)]
struct LabArgs {
    /// Which lab, when several run.
    #[arg(long)]
    lab: Option<String>,
}

#[derive(Debug, clap::Args)]
struct ExecArgs {
    #[command(flatten)]
    lab: LabArgs,
    /// The container; the first app container unless given.
    #[arg(short, long)]
    container: Option<String>,
    /// `name` or `namespace/name`.
    pod: String,
    /// The command.
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

#[derive(Debug, clap::Args)]
struct LogsArgs {
    #[command(flatten)]
    lab: LabArgs,
    /// `name` or `namespace/name`.
    pod: String,
    /// The container; all of them unless given.
    container: Option<String>,
}

#[derive(Debug, clap::Args)]
struct InnerArgs {
    state: PathBuf,
    #[command(subcommand)]
    command: InnerCommand,
}

#[derive(Debug, Subcommand)]
enum InnerCommand {
    Demo(DemoArgs),
    Up(UpArgs),
}

#[derive(Debug, clap::Args)]
struct RoleArgs {
    name: String,
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<OsString>,
}

#[derive(Debug, clap::Args)]
struct ShimArgs {
    what: ShimCommand,
    description: String,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum ShimCommand {
    Start,
    Enter,
}

/// Parses the arguments of this process and obeys.
pub(crate) fn run() -> ExitCode {
    let cli = Cli::parse();
    match obey(cli.command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("mesh-lab: {error}");
            ExitCode::from(FAILED)
        }
    }
}

fn obey(command: Command) -> Result<ExitCode> {
    match command {
        Command::Demo(_) => outer::run(&same_args()),
        Command::Up(args) => {
            if !args.file.is_dir() {
                return Err(LabError::Usage(format!("{} is not a directory", args.file.display())));
            }
            outer::run(&same_args())
        }
        Command::Exec(args) => {
            inspect::exec(args.lab.lab.as_deref(), &args.pod, args.container.as_deref(), &args.command)
        }
        Command::Logs(args) => inspect::logs(args.lab.lab.as_deref(), &args.pod, args.container.as_deref()),
        Command::Ps(args) => inspect::ps(args.lab.as_deref()),
        Command::Down(args) => inspect::down(args.lab.as_deref()),
        Command::Inner(args) => {
            tracing_subscriber::fmt()
                .with_writer(std::io::stderr)
                .with_env_filter(
                    tracing_subscriber::EnvFilter::try_from_env("MESH_LAB_LOG")
                        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn")),
                )
                .init();
            match args.command {
                InnerCommand::Demo(demo) => {
                    inner::run(args.state, |state, stop| demo::run(state, stop, demo))
                }
                InnerCommand::Up(up) => inner::run(args.state, |state, stop| up::run(state, stop, up)),
            }
        }
        Command::Role(args) => role::run(&args.name, args.args.into_iter())
            .ok_or_else(|| LabError::Usage(format!("there is no role {}", args.name))),
        Command::Shim(args) => Ok(match args.what {
            ShimCommand::Start => shim::start(&args.description),
            ShimCommand::Enter => shim::enter(&args.description),
        }),
    }
}

/// The subcommand with its options, as given.
fn same_args() -> Vec<OsString> {
    std::env::args_os().skip(1).collect()
}
