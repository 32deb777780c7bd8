//! Rules that change under traffic, and changes that are cut off: what was captured is never let through.

use std::process::{Command, ExitCode, Stdio};

use libtest_mimic::Trial;
use mesh_netfilter::backend::{Backend, Iptables, Kind, Nft, Variant};
use mesh_netfilter::{Interception, Netlink, Ruleset};

use crate::backends::is_here;
use crate::netns::Space;
use crate::pod::{Outcome, Pod, captured_connection};
use crate::strategies::{draw, runner};
use crate::{peers_required, trial};

/// The environment variable that makes this program a child that applies rules: `backend number lock`.
pub(crate) const JOB: &str = "MESH_NETFILTER_SUITE_JOB";

pub(crate) fn trials() -> Vec<Trial> {
    let possible = Space::new().is_ok();
    let kinds = [
        (Kind::Netlink, 200, 300),
        (Kind::Nft, 30, 40),
        (Kind::Iptables(Variant::Nft), 15, 15),
        (Kind::Iptables(Variant::Legacy), 15, 15),
    ];
    let mut trials = Vec::new();
    for (kind, kills, swaps) in kinds {
        let ignored = !(peers_required() || possible && is_here(kind));
        let killed = trial(format!("change::{kind}::killed_at_any_moment"), move || killed(kind, kills));
        let stormed = trial(format!("change::{kind}::nothing_slips_through"), move || stormed(kind, swaps));
        trials.extend([killed.with_ignored_flag(ignored), stormed.with_ignored_flag(ignored)]);
    }
    trials
}

/// Two intents that both capture, in different tables.
fn ruleset(number: u32) -> Ruleset {
    let intent = if number.is_multiple_of(2) {
        Interception::default()
    } else {
        Interception {
            drop_invalid: true,
            dns: mesh_netfilter::Dns::All { port: 15053 },
            outbound_exclude_ports: vec![3306.into()],
            ..Interception::default()
        }
    };
    Ruleset::from(&intent)
}

fn open(kind: Kind, lock: &str) -> Result<Box<dyn Backend>, String> {
    Ok(match kind {
        Kind::Netlink => Box::new(Netlink::open().map_err(|error| error.to_string())?),
        Kind::Nft => Box::new(Nft),
        Kind::Iptables(variant) => Box::new(Iptables::new(variant).lock_file(lock.into())),
    })
}

/// What the child does.
pub(crate) fn child(job: &str) -> ExitCode {
    let words: Vec<&str> = job.split(' ').collect();
    let [kind, number, lock] = words[..] else { return ExitCode::from(2) };
    let (Ok(kind), Ok(number)) = (kind.parse::<Kind>(), number.parse()) else { return ExitCode::from(2) };
    match open(kind, lock)
        .and_then(|mut backend| backend.apply(&ruleset(number)).map_err(|error| error.to_string()))
    {
        Ok(_) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn prepared(kind: Kind, name: &str) -> Result<(Pod, String), String> {
    let pod = Pod::new()?;
    pod.serve(&Interception::default())?;
    let lock = std::env::temp_dir().join(format!("mesh-netfilter-{}-{kind}-{name}.lock", std::process::id()));
    let lock = lock.to_string_lossy().into_owned();
    apply(&pod, kind, 0, &lock)?;
    Ok((pod, lock))
}

fn apply(pod: &Pod, kind: Kind, number: u32, lock: &str) -> Result<(), String> {
    let lock = lock.to_owned();
    pod.inside.run(move || {
        let mut backend = open(kind, &lock)?;
        backend.apply(&ruleset(number)).map(drop).map_err(|error| error.to_string())
    })
}

fn is_captured(outcome: Outcome) -> Result<(), String> {
    match outcome {
        // Dropping is allowed while tables change.
        Outcome::Port(15001) | Outcome::Silence => Ok(()),
        other => Err(format!("a connection ended as {other:?}")),
    }
}

fn killed(kind: Kind, kills: u32) -> Result<(), String> {
    let (pod, lock) = prepared(kind, "killed")?;
    let mut runner = runner(7);
    let program = std::env::current_exe().map_err(|error| error.to_string())?;
    let mut cut_off = 0;
    for number in 1..=kills {
        let delay = draw(&(0_u32..4000), &mut runner);
        let (program, job) = (program.clone(), format!("{kind} {number} {lock}"));
        let outcome = pod.inside.run(move || {
            let mut command = Command::new(program);
            command.env(JOB, job).stdout(Stdio::null()).stderr(Stdio::null());
            let mut child = command.spawn().map_err(|error| error.to_string())?;
            for _ in 0..delay {
                std::thread::yield_now();
            }
            let _ = child.kill();
            let status = child.wait().map_err(|error| error.to_string())?;
            Ok::<_, String>((status.code().is_none(), captured_connection()))
        })?;
        cut_off += u32::from(outcome.0);
        is_captured(outcome.1)?;
    }
    // A program that the child had started may still write; then it is done again.
    for _ in 0..50 {
        apply(&pod, kind, 0, &lock)?;
        let again = lock.clone();
        let plan = pod.inside.run(move || {
            open(kind, &again)
                .and_then(|mut backend| backend.plan(&ruleset(0)).map_err(|error| error.to_string()))
        })?;
        if plan.is_empty() {
            let _ = std::fs::remove_file(&lock);
            return match pod.inside.run(captured_connection) {
                Outcome::Port(15001) if cut_off > 0 => Ok(()),
                other => Err(format!("{cut_off} were cut off; afterwards a connection ended as {other:?}")),
            };
        }
    }
    Err("it does not converge".to_owned())
}

fn stormed(kind: Kind, swaps: u32) -> Result<(), String> {
    let (pod, lock) = prepared(kind, "stormed")?;
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let storm = pod.inside.run(move || {
        std::thread::spawn(move || {
            let mut connections = 0_u32;
            while stopped.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) {
                is_captured(captured_connection())?;
                connections += 1;
            }
            Ok::<_, String>(connections)
        })
    });
    for number in 1..=swaps {
        apply(&pod, kind, number, &lock)?;
    }
    drop(stop);
    let _ = std::fs::remove_file(&lock);
    let connections = storm.join().map_err(|_| "the storm's thread panicked".to_owned())??;
    if connections > 0 { Ok(()) } else { Err("no connection was made".to_owned()) }
}
