//! What people edit while `up` runs.

use std::fs;

use crate::lab::{Checked, Lab, contains, same, wait_for};

fn pod(name: &str, word: &str) -> String {
    format!(
        "kind: Pod\nmetadata: {{name: {name}}}\nspec:\n  terminationGracePeriodSeconds: 1\n  containers:\n  \
         - {{name: app, image: none, command: [sh, -c, 'echo {word}; exec sleep 1000']}}\n---\n"
    )
}

/// Pods come, change and go with their files; a mistake is named and takes nothing away.
pub(crate) fn edits_are_followed_and_mistakes_survived() -> Checked {
    let config = tempfile::tempdir()?;
    let path = |name: &str| config.path().join(name);
    fs::create_dir(path("below"))?;
    fs::write(path("below/one.yaml"), pod("one", "first"))?;
    let mut lab = Lab::up(config.path())?;
    let log = |name: &str, wanted: &str| {
        wait_for(wanted, || lab.text(&["logs", name]).is_ok_and(|log| log.contains(wanted)))
    };
    log("one", "first")?;
    lab.wait_for_line("default/one", "Running    yes")?;

    // Broken text: said, with the file, and the pod lives on; other files are followed meanwhile.
    let running = lab.line("default/one");
    fs::write(path("below/one.yaml"), "kind: Pod\nmetadata: {name: [\n")?;
    wait_for("the mistake is named", || lab.said().contains("below/one.yaml: "))?;
    fs::write(path("two.yaml"), pod("two", "second"))?;
    log("two", "second")?;
    same(&lab.line("default/one"), &running)?;

    // A second definition: said, and the first goes on.
    fs::write(path("also.yaml"), pod("two", "usurper"))?;
    wait_for("the duplicate is named", || {
        lab.said().contains("also.yaml: Pod default/two: duplicate of the one in")
    })?;
    fs::remove_file(path("also.yaml"))?;

    // Something impossible: said, with object and field; mended, it runs.
    fs::write(path("three.yaml"), pod("three", "third").replace(", command:", ", was:"))?;
    wait_for("the impossible is named", || {
        lab.said().contains("Pod default/three: containers[app].image: \"none\" has no program here")
    })?;
    fs::write(path("three.yaml"), pod("three", "third"))?;
    log("three", "third")?;

    // Mended: the new version replaces the old one.
    fs::write(path("below/one.yaml"), pod("one", "mended"))?;
    log("one", "mended")?;
    contains(&lab.said(), "no longer: ")?;
    fs::remove_file(path("two.yaml"))?;
    wait_for("two is gone", || lab.line("default/two").is_empty())?;
    // Nor is anything left of it where a control plane would look.
    let status = lab.folders().pop().ok_or("no folder")?.join("status");
    if status.join("Pod.default.two.yaml").exists() || !status.join("Pod.default.three.yaml").exists() {
        return Err(format!("{:?}", fs::read_dir(status)?.flatten().collect::<Vec<_>>()).into());
    }

    // A pod waits for its ConfigMap, and nobody waits for the pod.
    let waiting = pod("four", "fourth $LEVEL").replace(
        "image: none,",
        "image: none, env: [{name: LEVEL, valueFrom: {configMapKeyRef: {name: settings, key: level}}}],",
    );
    fs::write(path("four.yaml"), waiting)?;
    wait_for("what is missing is named", || {
        lab.said().contains("ConfigMap settings key level is not there")
    })?;
    fs::write(path("five.yaml"), pod("five", "fifth"))?;
    log("five", "fifth")?;
    fs::write(path("settings.yaml"), "kind: ConfigMap\nmetadata: {name: settings}\ndata: {level: high}\n")?;
    log("four", "fourth high")?;

    // The whole directory away for a moment: nothing ends.
    let aside = config.path().with_extension("aside");
    fs::rename(config.path(), &aside)?;
    wait_for("the loss is named", || lab.said().contains("list "))?;
    fs::rename(&aside, config.path())?;
    contains(&lab.line("default/one"), "Running")?;
    lab.text(&["down"])?;
    lab.ended(0)
}
