//! `ps`, `exec`, `logs`, `down`, and what is said when something is missing.

use std::fs;

use crate::lab::{Checked, Lab, contains, same, scenario, wait_for};

/// Names that are clear, names that are not, exit statuses.
pub(crate) fn commands_find_their_pod() -> Checked {
    let config = tempfile::tempdir()?;
    let pod = |namespace: &str, name: &str| {
        format!(
            "kind: Pod\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec:\n  terminationGracePeriodSeconds: 1\n  \
             containers:\n  - {{name: one, image: none, command: [sh, -c, 'echo of one; exec sleep 1000']}}\n  \
             - {{name: two, image: none, command: [sh, -c, 'echo of two; exec sleep 1000']}}\n---\n"
        )
    };
    let all = [pod("red", "twin"), pod("blue", "twin"), pod("blue", "alone")].concat();
    fs::write(config.path().join("pods.yaml"), all)?;
    let mut lab = Lab::up(config.path())?;
    for name in ["red/twin", "blue/twin", "blue/alone"] {
        lab.wait_for_line(name, "Running    yes")?;
    }
    let refused = |args: &[&str], part: &str| -> Checked {
        let output = lab.run(args)?;
        same(&format!("{:?}", output.status.code()), "Some(2)")?;
        contains(&String::from_utf8_lossy(&output.stderr), part)
    };
    refused(&["logs", "twin"], "several namespaces have a pod twin; write namespace/twin")?;
    refused(&["logs", "nobody"], "there is no pod nobody")?;
    refused(&["exec", "alone", "-c", "three", "--", "true"], "blue/alone has no container three")?;
    refused(&["logs", "alone", "three"], "blue/alone has no log of three")?;
    refused(&["ps", "--lab", "lab-0-0"], "no lab lab-0-0 is running; there is lab-")?;
    wait_for("logs", || lab.text(&["logs", "alone"]).is_ok_and(|log| log == "one | of one\ntwo | of two\n"))?;
    same(&lab.text(&["logs", "blue/twin", "two"])?, "of two\n")?;
    same(&lab.text(&["exec", "alone", "--", "hostname"])?, "alone\n")?;
    for (script, code) in [("exit 42", 42), ("kill -9 $$", 137)] {
        let status = lab.run(&["exec", "-c", "two", "alone", "--", "sh", "-c", script])?.status;
        same(&format!("{script}: {:?}", status.code()), &format!("{script}: Some({code})"))?;
    }
    // The lab is gone when `down` returns.
    lab.text(&["down"])?;
    same(&format!("{:?}", lab.folders()), "[]")?;
    lab.ended(0)?;
    contains(&String::from_utf8_lossy(&lab.run(&["ps"])?.stderr), "no lab is running")
}

/// Root without the capabilities of root: inside a container, where a lab could otherwise write.
pub(crate) fn without_privileges_nothing_is_done() -> Checked {
    let lab = Lab::up(&scenario("life"))?;
    lab.wait_for_line("shop/granted", "Running    yes")?;
    let script = "mesh-lab demo; echo status $?; mesh-lab up -f /; echo status $?; ls /run";
    let output = lab.run(&["exec", "-c", "other", "granted", "--", "sh", "-c", script])?;
    // Nothing but the two statuses: `/run` is as empty as before.
    same(&String::from_utf8_lossy(&output.stdout), "status 2\nstatus 2\n")?;
    let said = String::from_utf8_lossy(&output.stderr);
    for part in [
        "missing privileges, nothing was done",
        "CAP_SYS_ADMIN (to make namespaces and mounts)",
        "CAP_NET_ADMIN",
        "CAP_NET_RAW",
        "sudo mesh-lab",
        "--cap-add",
    ] {
        contains(&said, part)?;
    }
    if said.contains("CAP_SETUID") { Err("what is there is not missing".into()) } else { Ok(()) }
}
