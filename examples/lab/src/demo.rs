//! The demo: a mesh under load while everything about it changes, and every promise checked.

mod facts;
mod load;
mod report;
mod scenario;
mod steps;

use std::path::PathBuf;
use std::process::ExitCode;

use tokio::time::{Duration, Instant};

use self::report::Report;
use self::scenario::Scenario;
use self::steps::Demo;
use crate::cli::DemoArgs;
use crate::cluster::Paths;
use crate::error::Result;
use crate::inner::Stop;
use crate::lab::Lab;

/// The whole demo must be done by then.
const LIMIT: Duration = Duration::from_secs(45);
/// Time for the orderly end; the kernel ends the rest.
const GRACE: Duration = Duration::from_secs(1);
/// Exit status when a promise was broken.
const BROKEN: u8 = 1;
/// Exit status after Ctrl-C, as shells expect.
const INTERRUPTED: u8 = 130;

/// How much is done.
#[derive(Debug, Clone, Copy)]
struct Volume {
    /// Requests before and after the change of weights, each.
    requests: u64,
    /// Requests while the control plane is down, and after each rotation.
    around: u64,
    /// Requests per second.
    rate: u32,
    /// Requests for each latency figure, and the seconds after which fewer are enough.
    latency: u64,
    latency_seconds: u64,
}

const FULL: Volume = Volume { requests: 800, around: 60, rate: 400, latency: 1000, latency_seconds: 4 };
const SHORT: Volume = Volume { requests: 500, around: 50, rate: 400, latency: 300, latency_seconds: 2 };

/// Runs the demo in the lab's namespaces.
pub(crate) async fn run(state: PathBuf, mut stop: Stop, args: DemoArgs) -> Result<ExitCode> {
    let began = Instant::now();
    let volume = if args.short { SHORT } else { FULL };
    let scenario = Scenario::write(&state)?;
    let paths = Paths::create(&state, scenario.directory().to_owned())?;
    let (lab, problems) = Lab::create(paths, "Never").await?;
    if let Some(problem) = problems.into_iter().next() {
        return Err(problem);
    }
    let mut report = Report::default();
    let outcome = {
        let mut demo = Demo::new(&lab, &scenario, volume, &state, &mut report);
        tokio::select! {
            outcome = demo.run() => Some(outcome),
            () = stop.requested() => None,
        }
    };
    let seconds = began.elapsed().as_secs_f64();
    report.seconds = seconds;
    report.promise("done in time", began.elapsed() <= LIMIT, format_args!("{seconds:.1} s"));
    if matches!(outcome, Some(Err(_))) {
        // The folder with the logs goes with the lab.
        for pod in lab.kubelet.pods() {
            eprintln!("{}:{}", pod.key, pod.last_lines());
        }
    }
    lab.kubelet.stop_all(GRACE).await;
    match outcome {
        None => {
            eprintln!("mesh-lab: interrupted");
            Ok(ExitCode::from(INTERRUPTED))
        }
        Some(Err(error)) => Err(error),
        Some(Ok(())) => {
            if args.json {
                eprintln!("{report}");
                println!("{}", serde_json::to_string(&report).unwrap_or_default());
            } else {
                println!("{report}");
            }
            Ok(if report.all_held() { ExitCode::SUCCESS } else { ExitCode::from(BROKEN) })
        }
    }
}
