//! However a lab ends, nothing of it stays.

use std::fs;
use std::path::Path;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::lab::{Checked, Lab, contains, folders, same, scenario, wait_for};

fn gone(pid: i32) -> Checked {
    wait_for("the inner process gone", || !Path::new("/proc").join(pid.to_string()).exists())
}

/// `kill -9` of the outer process ends everything; the next lab removes what was left, and only that.
pub(crate) fn nothing_outlives_a_killed_lab() -> Checked {
    let mut lab = Lab::up(&scenario("spec"))?;
    lab.wait_for_line("shop/reviews", "Running    yes")?;
    let folder = lab.folders().pop().ok_or("no folder")?;
    let inner = lab.inner()?;
    lab.kill()?;
    gone(inner)?;
    contains(&String::from_utf8_lossy(&lab.run(&["ps"])?.stderr), "no lab is running")?;
    fs::write(folder.join("left"), "behind")?;
    fs::create_dir(lab.runtime.path().join("somebody-elses"))?;
    let config = scenario("spec").display().to_string();
    let next = Lab::run_in(
        std::mem::replace(&mut lab.runtime, tempfile::tempdir()?),
        &["up", "--no-mesh", "-f", &config],
    )?;
    wait_for("the next lab in place of the dead one", || {
        let up = next.folders().iter().any(|folder| folder.join("listing.json").exists());
        up && !folder.join("left").exists()
    })?;
    if !next.runtime.path().join("somebody-elses").exists() {
        return Err("what no lab made was cleaned".into());
    }
    Ok(())
}

/// Two at once, with the same addresses and names in different namespaces; each is addressed by its name.
pub(crate) fn labs_stand_side_by_side() -> Checked {
    let runtime = tempfile::tempdir()?;
    let config = scenario("spec").display().to_string();
    let spawn = || {
        let mut command = crate::lab::command(runtime.path());
        let quiet = std::process::Stdio::null;
        command.args(["up", "--no-mesh", "-f", &config]).stdin(quiet()).stdout(quiet()).spawn()
    };
    let mut both = [spawn()?, spawn()?];
    let run = |args: &[&str]| crate::lab::command(runtime.path()).args(args).output();
    let checked = (|| -> Checked {
        let names = || -> Vec<String> {
            let ready = |folder: &std::path::PathBuf| folder.join("listing.json").exists();
            let found = folders(runtime.path()).into_iter().filter(ready);
            found.filter_map(|folder| Some(folder.file_name()?.to_str()?.to_owned())).collect()
        };
        wait_for("two labs", || names().len() == 2)?;
        contains(&String::from_utf8_lossy(&run(&["ps"])?.stderr), "several labs are running")?;
        for name in names() {
            let word = format!("of-{name}");
            wait_for("a pod of each", || {
                let argv = ["exec", "--lab", &name, "shop/reviews", "--", "sh", "-c"];
                let script =
                    format!("echo {word} > /tmp/word; mesh-echo get http://$(hostname):9080/ > /dev/null");
                run(&[&argv[..], &[&script]].concat()).is_ok_and(|output| output.status.success())
            })?;
        }
        for name in names() {
            let output = run(&["exec", "--lab", &name, "shop/reviews", "--", "cat", "/tmp/word"])?;
            same(&String::from_utf8_lossy(&output.stdout), &format!("of-{name}\n"))?;
        }
        // One ends, the other does not notice.
        let [first, second] = <[String; 2]>::try_from(names()).map_err(|names| format!("{names:?}"))?;
        let status = run(&["down", "--lab", &first])?.status;
        same(&format!("{:?} {:?}", status.code(), names()), &format!("Some(0) [{second:?}]"))?;
        let output = run(&["exec", "shop/reviews", "--", "cat", "/tmp/word"])?;
        same(&String::from_utf8_lossy(&output.stdout), &format!("of-{second}\n"))
    })();
    for lab in &mut both {
        lab.kill()?;
        lab.wait()?;
    }
    checked
}

/// Ctrl-C, also where a pod that waits for something keeps it busy, and as a hangup.
pub(crate) fn interrupts_end_it_in_order() -> Checked {
    let config = tempfile::tempdir()?;
    let waiting = "kind: Pod\nmetadata: {name: waiting}\nspec:\n  containers: [{name: app, image: none, command: [sleep, '9']}]\n  \
                   volumes: [{name: v, configMap: {name: never}}]\n";
    fs::write(config.path().join("waiting.yaml"), waiting)?;
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        let mut lab = Lab::up(config.path())?;
        wait_for("up", || lab.said().contains("mesh-lab: up;"))?;
        let inner = lab.inner()?;
        lab.signal(signal)?;
        lab.ended(0)?;
        gone(inner)?;
        contains(&lab.said(), "mesh-lab: ending")?;
    }
    // The demo says by its status that it did not finish. At a terminal everything that it runs is interrupted with it.
    let mut demo = Lab::run_in(tempfile::tempdir()?, &["demo", "--short"])?;
    wait_for("load", || demo.said().contains("load at"))?;
    let inner = demo.inner()?;
    demo.signal_group(Signal::SIGINT)?;
    demo.ended(130)?;
    gone(inner)?;
    contains(&demo.said(), "mesh-lab: interrupted")
}

/// PID 1 of the lab dies: the outer process removes the folder and says how it ended.
pub(crate) fn a_killed_inner_process_ends_it() -> Checked {
    let mut lab = Lab::up(&scenario("spec"))?;
    wait_for("a pod", || !lab.line("shop/reviews").is_empty())?;
    kill(Pid::from_raw(lab.inner()?), Signal::SIGKILL)?;
    lab.ended(137)
}
