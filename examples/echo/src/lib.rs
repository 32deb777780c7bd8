#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod client;
mod control;
pub mod load;
mod server;

use std::ffi::OsString;
use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};

use crate::client::Target;
use crate::load::{Connections, LoadConfig};
use crate::server::ServerConfig;

/// The command line.
#[derive(Debug, Parser)]
#[command(name = "mesh-echo", version, about = "The test workload: says who called and how.")]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Answer requests (the default); reads PORT, ADMIN_PORT, TCP_PORT, POD_NAME and VERSION.
    Serve,
    /// Send one request; exit status 0 for 2xx, 1 for another status, 2 for no answer.
    Get(GetArgs),
    /// Send many requests and count.
    Load(LoadArgs),
}

#[derive(Debug, clap::Args)]
struct GetArgs {
    /// An http:// URL.
    url: String,
    /// Seconds to wait for the whole answer.
    #[arg(long, default_value_t = 5.0)]
    timeout: f64,
    /// An additional request header, `name: value`; repeatable.
    #[arg(long = "header", short = 'H')]
    headers: Vec<String>,
    /// Print one JSON object instead of text.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
struct LoadArgs {
    /// An http:// URL.
    #[arg(long)]
    url: String,
    /// How many requests to send (without --control).
    #[arg(long, default_value_t = 100)]
    requests: u64,
    /// Whether each request has a connection of its own.
    #[arg(long, value_enum, default_value_t = Connections::Keepalive)]
    connections: Connections,
    /// Requests in flight at once.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=1024))]
    concurrency: u16,
    /// Requests per second over all workers; unlimited when absent.
    #[arg(long)]
    rate: Option<f64>,
    /// Seconds after which one request counts as failed.
    #[arg(long, default_value_t = 10.0)]
    timeout: f64,
    /// Seconds after which the whole run ends, whatever was reached.
    #[arg(long, default_value_t = 600.0)]
    max_seconds: f64,
    /// Print JSON (one line).
    #[arg(long)]
    json: bool,
    /// Take commands from standard input: `start NAME`, `progress`, `stop`, `quit`.
    #[arg(long)]
    control: bool,
}

/// Runs the program with `args` (without the program's name) on a runtime of its own.
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let argv = std::iter::once(OsString::from("mesh-echo")).chain(args);
    let cli = match Cli::try_parse_from(argv) {
        Ok(cli) => cli,
        Err(error) => {
            let code = if error.use_stderr() { 64 } else { 0 };
            let _ = error.print();
            return ExitCode::from(code);
        }
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&format!("no runtime: {error}")),
    };
    let code = runtime.block_on(async {
        match cli.command.unwrap_or(Command::Serve) {
            Command::Serve => serve().await,
            Command::Get(args) => get(args).await,
            Command::Load(args) => load(args).await,
        }
    });
    // A reader thread blocked on standard input must not keep the process alive.
    runtime.shutdown_background();
    code
}

fn fail(message: &str) -> ExitCode {
    eprintln!("mesh-echo: {message}");
    ExitCode::from(2)
}

async fn serve() -> ExitCode {
    let config = match ServerConfig::from_vars(|name| std::env::var(name).ok()) {
        Ok(config) => config,
        Err(error) => return fail(&error.to_string()),
    };
    match server::serve(config).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error.to_string()),
    }
}

async fn get(args: GetArgs) -> ExitCode {
    let (Some(timeout), Ok(target)) = (seconds(args.timeout), Target::parse(&args.url, &args.headers)) else {
        return fail("a positive --timeout, an http:// URL and `name: value` headers are needed");
    };
    let answer = client::get_once(&target, timeout).await;
    if args.json {
        print_line(&answer.to_json().to_string());
    } else {
        match &answer {
            client::Answer::Response { status, body, .. } => print_line(&format!("{status}\n{body}")),
            client::Answer::Failure { reason } => eprintln!("mesh-echo: {reason}"),
        }
    }
    match answer {
        client::Answer::Response { status, .. } if (200..300).contains(&status) => ExitCode::SUCCESS,
        client::Answer::Response { .. } => ExitCode::from(1),
        client::Answer::Failure { .. } => ExitCode::from(2),
    }
}

async fn load(args: LoadArgs) -> ExitCode {
    let (Some(timeout), Some(limit), Ok(target)) =
        (seconds(args.timeout), seconds(args.max_seconds), Target::parse(&args.url, &[]))
    else {
        return fail("positive times and an http:// URL are needed");
    };
    if args.rate.is_some_and(|rate| !(rate.is_finite() && rate > 0.0)) {
        return fail("--rate must be positive");
    }
    let config = LoadConfig {
        target,
        requests: if args.control { None } else { Some(args.requests) },
        connections: args.connections,
        concurrency: args.concurrency,
        rate: args.rate,
        timeout,
        limit,
    };
    if args.control {
        return control::serve_commands(config).await;
    }
    let report = load::run(config).await;
    if args.json {
        print_line(&report.to_json("run").to_string());
    } else {
        print_line(&report.to_string());
    }
    if report.failed() == 0 { ExitCode::SUCCESS } else { ExitCode::from(1) }
}

fn seconds(value: f64) -> Option<Duration> {
    Duration::try_from_secs_f64(value).ok().filter(|duration| !duration.is_zero())
}

/// Writes a line to standard output and flushes; a closed pipe is the reader's choice, not an error.
fn print_line(line: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{line}");
    let _ = out.flush();
}
