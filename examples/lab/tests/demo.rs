//! The whole mesh: the demo, shortened, must hold every promise, also after another one was killed in the middle.
//!
//! Needs privileges; without them the trials show as ignored, with `MESH_REQUIRE_PEERS=1` they fail.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use libtest_mimic::{Arguments, Failed, Trial};
use serde_json::Value;

fn demo(runtime: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mesh-lab"));
    command.env("MESH_LAB_DIR", runtime).args(["demo", "--short", "--json"]).stdin(Stdio::null());
    command
}

/// Exit status 0, one line of JSON with every figure, nothing left behind; `kill -9` of an earlier one does not matter.
fn every_promise_holds() -> Result<(), Failed> {
    let runtime = tempfile::tempdir()?;
    let mut killed = demo(runtime.path()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
    let progress = BufReader::new(killed.stderr.take().ok_or("no progress")?).lines();
    // Dies while its pods are running.
    for line in progress.map_while(Result::ok) {
        if line.contains("pods are ready") {
            break;
        }
    }
    killed.kill()?;
    killed.wait()?;

    let output = demo(runtime.path()).output()?;
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if !output.status.success() {
        return Err(format!("{}\n{stdout}\n{stderr}", output.status).into());
    }
    let line = stdout.lines().last().ok_or("no JSON")?;
    let report: Value = serde_json::from_str(line)?;
    let count = |field: &str| report[field].as_array().map_or(0, Vec::len);
    let facts = [
        ("failed_requests", report["failed_requests"] == 0),
        ("plaintext_refused", report["plaintext_refused"] == true),
        ("permissive_accepted", report["permissive_accepted"] == true),
        ("wrong_identity_refused", report["wrong_identity_refused"] == true),
        ("control_plane_restarts", report["control_plane_restarts"] == 1),
        ("rotations", count("rotations") == count("sidecars") && count("sidecars") == 4),
        ("rules_packets", report["rules_packets"].as_u64() > Some(0)),
        ("latency_us", report["latency_us"]["mesh_p50"].as_u64() > Some(0)),
    ];
    if let Some((field, _)) = facts.iter().find(|(_, holds)| !holds) {
        return Err(format!("{field}: {line}").into());
    }
    let left = std::fs::read_dir(runtime.path())?.flatten().filter(|entry| entry.path().is_dir()).count();
    if left == 0 { Ok(()) } else { Err(format!("{left} folders left behind").into()) }
}

fn main() {
    let args = Arguments::from_args();
    let missing = Command::new(env!("CARGO_BIN_EXE_mesh-lab"))
        .args(["demo"])
        .env("MESH_LAB_DIR", "/dev/null/nowhere")
        .output()
        .is_ok_and(|output| String::from_utf8_lossy(&output.stderr).contains("missing privileges"));
    let ignored = missing && std::env::var_os("MESH_REQUIRE_PEERS").is_none();
    let trials = vec![Trial::test("every_promise_holds", every_promise_holds).with_ignored_flag(ignored)];
    libtest_mimic::run(&args, trials).exit();
}
