//! Pods without a mesh, in real namespaces: what this kubelet promises of a Pod, and that nothing is left behind.
//!
//! Needs privileges; without them the trials show as ignored, with `MESH_REQUIRE_PEERS=1` they fail.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use libtest_mimic::{Arguments, Failed, Trial};

type Checked = Result<(), Failed>;

/// A lab in a runtime directory of its own.
struct Lab {
    runtime: tempfile::TempDir,
    outer: Child,
}

impl Lab {
    fn start(config: &Path) -> Result<Self, Failed> {
        let runtime = tempfile::tempdir()?;
        let outer = Self::spawn(runtime.path(), config)?;
        Ok(Self { runtime, outer })
    }

    fn spawn(runtime: &Path, config: &Path) -> Result<Child, Failed> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mesh-lab"));
        command.env("MESH_LAB_DIR", runtime).args(["up", "--no-mesh", "-f"]).arg(config);
        Ok(command.stdin(Stdio::null()).stdout(Stdio::null()).spawn()?)
    }

    fn run(&self, args: &[&str]) -> Result<Output, Failed> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mesh-lab"));
        Ok(command.env("MESH_LAB_DIR", self.runtime.path()).args(args).output()?)
    }

    fn text(&self, args: &[&str]) -> Result<String, Failed> {
        let output = self.run(args)?;
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        if output.status.success() {
            Ok(out.into_owned())
        } else {
            Err(format!("{args:?}: {out}{err}").into())
        }
    }

    fn exec(&self, script: &str) -> Result<String, Failed> {
        self.text(&["exec", "shop/reviews", "--", "sh", "-c", script])
    }

    /// The line of a pod in `ps`.
    fn line(&self, pod: &str) -> String {
        let list = self.text(&["ps"]).unwrap_or_default();
        list.lines().find(|line| line.starts_with(pod)).unwrap_or_default().to_owned()
    }

    fn folders(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.runtime.path()).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let _ = self.outer.kill();
        let _ = self.outer.wait();
    }
}

/// Waits for a condition, with a deadline.
fn wait_for(what: &str, mut holds: impl FnMut() -> bool) -> Checked {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    runtime.block_on(async {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
        while !holds() {
            if tokio::time::Instant::now() >= deadline {
                return Err(format!("{what} did not happen in time").into());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    })
}

fn same(seen: &str, wanted: &str) -> Checked {
    if seen == wanted { Ok(()) } else { Err(format!("{seen:?} instead of {wanted:?}").into()) }
}

fn contains(text: &str, part: &str) -> Checked {
    if text.contains(part) { Ok(()) } else { Err(format!("{part:?} is not in {text:?}").into()) }
}

fn config() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/pods")
}

/// Everything a Pod may ask for.
fn a_pod_gets_what_it_asks_for() -> Checked {
    let mut lab = Lab::start(&config())?;
    wait_for("reviews ready", || lab.line("shop/reviews").contains("Running    yes"))?;
    same(&lab.exec("cat /tmp/seen")?, "first\nsecond\n")?;
    same(
        &lab.exec("cat /etc/istio/pod/labels; echo; cat /etc/settings/level; echo $LEVEL")?,
        "app=\"reviews\"\nversion=\"v1\"\nhighhigh\n",
    )?;
    same(&lab.exec("id -u; id -g; hostname")?, "1000\n0\nreviews\n")?;
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
    same(lab.exec("tr -cd . < /var/run/secrets/tokens/istio-token | wc -c")?.trim(), "2")?;
    if lab.exec("echo x > /var/run/secrets/tokens/other").is_ok() {
        return Err("a read-only mount was written to".into());
    }
    // Services have names; the pod's own address answers; the machine's network is not there.
    contains(&lab.exec("getent hosts reviews.shop.svc.cluster.local")?, "10.96.0.1")?;
    contains(&lab.exec("mesh-echo get http://$(hostname):9080/hello")?, "\"path\":\"/hello\"")?;
    same(&lab.exec("cat /proc/net/dev | tail -n +3 | cut -d: -f1 | tr -d ' ' | sort | xargs")?, "eth0 lo\n")?;
    wait_for("crashing restarted", || {
        lab.text(&["logs", "crashing", "app"]).is_ok_and(|log| log.lines().count() >= 3)
    })?;
    wait_for("the job's end", || lab.line("shop/job").contains("Succeeded"))?;
    same(&lab.text(&["logs", "job", "app"])?, "job\n")?;
    lab.text(&["down"])?;
    let status = lab.outer.wait()?;
    if !status.success() || !lab.folders().is_empty() {
        return Err(format!("{status}, left: {:?}", lab.folders()).into());
    }
    Ok(())
}

/// `kill -9` of the outer process ends everything; the next lab removes what was left, and only that.
fn nothing_outlives_a_killed_lab() -> Checked {
    let mut lab = Lab::start(&config())?;
    wait_for("reviews ready", || lab.line("shop/reviews").contains("Running    yes"))?;
    let folder = lab.folders().pop().ok_or("no folder")?;
    let inner = fs::read_to_string(folder.join("inner.pid"))?;
    lab.outer.kill()?;
    lab.outer.wait()?;
    wait_for("the inner process gone", || !Path::new("/proc").join(inner.trim()).exists())?;
    contains(&String::from_utf8_lossy(&lab.run(&["ps"])?.stderr), "no lab is running")?;
    fs::write(folder.join("left"), "behind")?;
    lab.outer = Lab::spawn(lab.runtime.path(), &config())?;
    let mut other = Lab::spawn(lab.runtime.path(), &config())?;
    let outcome = wait_for("two labs beside each other", || {
        lab.folders().iter().filter(|folder| folder.join("listing.json").exists()).count() == 2
            && !folder.join("left").exists()
    });
    other.kill()?;
    other.wait()?;
    outcome
}

fn main() {
    let args = Arguments::from_args();
    let missing = Command::new(env!("CARGO_BIN_EXE_mesh-lab"))
        .args(["up", "--no-mesh", "-f", "/proc/self/fdinfo"])
        .env("MESH_LAB_DIR", "/dev/null/nowhere")
        .output()
        .is_ok_and(|output| String::from_utf8_lossy(&output.stderr).contains("missing privileges"));
    let ignored = missing && std::env::var_os("MESH_REQUIRE_PEERS").is_none();
    let trials = vec![
        Trial::test("a_pod_gets_what_it_asks_for", a_pod_gets_what_it_asks_for).with_ignored_flag(ignored),
        Trial::test("nothing_outlives_a_killed_lab", nothing_outlives_a_killed_lab)
            .with_ignored_flag(ignored),
    ];
    libtest_mimic::run(&args, trials).exit();
}
