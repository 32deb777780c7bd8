//! What a Pod's spec promises.

use std::fs;

use crate::lab::{Checked, Lab, contains, same, scenario, wait_for};

/// Everything at once, as one pod asks for it.
pub(crate) fn a_pod_gets_what_it_asks_for() -> Checked {
    let mut lab = Lab::up(&scenario("spec"))?;
    let exec = |script: &str| lab.exec("shop/reviews", script);
    lab.wait_for_line("shop/reviews", "Running    yes")?;
    same(&exec("cat /tmp/seen")?, "first\nsecond\n")?;
    same(
        &exec("cat /etc/istio/pod/labels; echo; cat /etc/settings/level; echo $LEVEL")?,
        "app=\"reviews\"\nversion=\"v1\"\nhighhigh\n",
    )?;
    same(&exec("id -u; id -g; hostname")?, "1000\n0\nreviews\n")?;
    contains(&lab.text(&["logs", "reviews", "first"])?, "CapEff:\t0000000000001000")?;
    let side = lab.text(&[
        "exec",
        "-c",
        "side",
        "reviews",
        "--",
        "sh",
        "-c",
        "id -u; grep -E 'NoNewPrivs|CapBnd' /proc/self/status; touch /x 2>/dev/null || echo read-only",
    ])?;
    same(&side, "1337\nCapBnd:\t0000000000000000\nNoNewPrivs:\t1\nread-only\n")?;
    // header.payload.signature, and the mount refuses writes.
    same(exec("tr -cd . < /var/run/secrets/tokens/istio-token | wc -c")?.trim(), "2")?;
    if exec("echo x > /var/run/secrets/tokens/other").is_ok() {
        return Err("a read-only mount was written to".into());
    }
    // Services have names; the pod's own address answers; the machine's network is not there.
    contains(&exec("getent hosts reviews.shop.svc.cluster.local")?, "10.96.0.1")?;
    contains(&exec("mesh-echo get http://$(hostname):9080/hello")?, "\"path\":\"/hello\"")?;
    same(&exec("cat /proc/net/dev | tail -n +3 | cut -d: -f1 | tr -d ' ' | sort | xargs")?, "eth0 lo\n")?;
    lab.wait_for_line("shop/job", "Succeeded")?;
    same(&lab.text(&["logs", "job", "app"])?, "job\n")?;
    lab.text(&["down"])?;
    lab.ended(0)
}

/// Always, OnFailure, Never; init containers as well.
pub(crate) fn restarts_follow_the_policy() -> Checked {
    let lab = Lab::up(&scenario("life"))?;
    lab.wait_for_line("shop/on-failure", "Succeeded")?;
    same(&lab.text(&["logs", "on-failure", "app"])?, "run 1\nrun 2\nrun 3\n")?;
    contains(&lab.line("shop/on-failure"), "2 restarts")?;
    lab.wait_for_line("shop/never", "Failed")?;
    same(&lab.text(&["logs", "never", "app"])?, "once\n")?;
    contains(&lab.line("shop/never"), "exit code 7")?;
    lab.wait_for_line("shop/init-fails", "Failed")?;
    contains(&lab.line("shop/init-fails"), "init container first failed")?;
    if lab.text(&["logs", "init-fails", "app"]).is_ok() {
        return Err("the app ran although its init container failed".into());
    }
    lab.wait_for_line("shop/init-retries", "Succeeded")?;
    same(&lab.text(&["logs", "init-retries", "first"])?, "try 1\ntry 2\n")?;
    lab.wait_for_line("shop/always", "restarts")?;
    contains(&lab.line("shop/always"), "Running")?;
    // A native sidecar comes back although its pod's own policy says never.
    lab.wait_for_line("shop/sidecar-returns", "Running    yes")?;
    lab.exec("sidecar-returns", "touch /shared/die")?;
    lab.wait_for_line("shop/sidecar-returns", "1 restart")?;
    lab.wait_for_line("shop/sidecar-returns", "Running    yes")
}

/// Startup holds the others back, readiness comes and goes, liveness restarts.
pub(crate) fn probes_decide() -> Checked {
    let lab = Lab::up(&scenario("life"))?;
    lab.wait_for_line("shop/probed", "app: readiness probe failed")?;
    contains(&lab.line("shop/probed"), "Running    no")?;
    lab.exec("probed", "touch /tmp/ready")?;
    lab.wait_for_line("shop/probed", "Running    yes")?;
    lab.exec("probed", "rm /tmp/ready")?;
    lab.wait_for_line("shop/probed", "Running    no")?;
    lab.exec("probed", "touch /tmp/dead")?;
    lab.wait_for_line("shop/probed", "1 restart")?;
    // Its startup probe never succeeds: it is killed, and the container behind it never begins.
    lab.wait_for_line("shop/never-up", "restart")?;
    contains(&lab.line("shop/never-up"), "Pending")?;
    if lab.text(&["logs", "never-up", "app"]).is_ok() {
        return Err("an app began before its sidecar was up".into());
    }
    Ok(())
}

/// postStart before the next container; preStop before SIGTERM; apps before sidecars.
pub(crate) fn hooks_and_the_order_of_the_end() -> Checked {
    let (config, out) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let text = fs::read_to_string(scenario("hooks.yaml"))?;
    fs::write(config.path().join("pod.yaml"), text.replace("OUT", &out.path().display().to_string()))?;
    let mut lab = Lab::up(config.path())?;
    lab.wait_for_line("default/hooked", "Running    yes")?;
    let order = || fs::read_to_string(out.path().join("order")).unwrap_or_default();
    wait_for("three lines", || order().lines().count() >= 3)?;
    same(&order(), "one started\none postStart\ntwo started\n")?;
    lab.text(&["down"])?;
    lab.ended(0)?;
    let end: Vec<String> = order().lines().skip(3).map(str::to_owned).collect();
    same(&end.join(", "), "one preStop, one SIGTERM, side SIGTERM")
}

/// What is counted, mounted and granted.
pub(crate) fn resources_volumes_and_capabilities() -> Checked {
    let lab = Lab::up(&scenario("life"))?;
    lab.wait_for_line("shop/granted", "Running    yes")?;
    let exec = |script: &str| lab.exec("granted", script);
    same(&exec("echo $MEMORY $CPU $REQUEST")?, "64 2 250\n")?;
    same(&exec("test \"$IP\" = \"$(hostname -i | cut -d' ' -f1)\" && echo mine")?, "mine\n")?;
    same(
        &exec("cd /etc/info; cat memory; echo; cat name; echo; cat annotations; echo")?,
        "64\ngranted\nnote=\"a \\\"b\\\"\"\n",
    )?;
    // The root refuses writes, an emptyDir on it takes them, and both containers see it.
    same(
        &exec("touch /tmp/x 2>/dev/null || echo refused; echo hello > /scratch/file; ls /scratch")?,
        "refused\nfile\n",
    )?;
    let other = lab.text(&["exec", "-c", "other", "granted", "--", "cat", "/mnt/file"])?;
    same(&other, "hello\n")?;
    same(&exec("id -u; id -g; id -G | tr ' ' '\\n' | sort -n | xargs")?, "1234\n4321\n77 99 4321\n")?;
    let caps = |container: &str| {
        lab.text(&[
            "exec",
            "-c",
            container,
            "granted",
            "--",
            "grep",
            "-E",
            "Cap(Bnd|Eff)",
            "/proc/self/status",
        ])
    };
    // A user other than root has none in effect; the set that could be gained is what was granted.
    same(&caps("app")?, "CapEff:\t0000000000000000\nCapBnd:\t0000000000000400\n")?;
    // What a container runtime grants by default, without NET_RAW; never more than this machine has.
    let own = fs::read_to_string("/proc/self/status")?;
    let own = own.lines().find_map(|line| line.strip_prefix("CapBnd:")).ok_or("no CapBnd")?;
    let granted = 0xa804_05fb & u64::from_str_radix(own.trim(), 16)?;
    same(&caps("other")?, &format!("CapEff:\t{granted:016x}\nCapBnd:\t{granted:016x}\n"))?;
    wait_for("the container's log", || {
        lab.text(&["logs", "granted", "other"]).is_ok_and(|log| log.contains('\u{fffd}'))
    })
}
