//! A lab as its user has it: processes, commands, folders.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use libtest_mimic::Failed;
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

pub(crate) type Checked<T = ()> = Result<T, Failed>;

/// A lab in a runtime directory of its own.
pub(crate) struct Lab {
    pub(crate) runtime: tempfile::TempDir,
    outer: Child,
    said: Arc<Mutex<String>>,
}

impl Lab {
    /// `up --no-mesh` with the objects of a directory.
    pub(crate) fn up(config: &Path) -> Checked<Self> {
        let config = config.display().to_string();
        Self::run_in(tempfile::tempdir()?, &["up", "--no-mesh", "-f", &config])
    }

    /// Any subcommand that stays.
    pub(crate) fn run_in(runtime: tempfile::TempDir, args: &[&str]) -> Checked<Self> {
        let mut outer = command(runtime.path())
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()?;
        let said = Arc::new(Mutex::new(String::new()));
        let (sink, lines) = (Arc::clone(&said), BufReader::new(outer.stderr.take().ok_or("no stderr")?));
        std::thread::spawn(move || {
            for line in lines.lines().map_while(Result::ok) {
                eprintln!("{line}");
                if let Ok(mut text) = sink.lock() {
                    text.push_str(&line);
                    text.push('\n');
                }
            }
        });
        Ok(Self { runtime, outer, said })
    }

    /// What it has said to its user.
    pub(crate) fn said(&self) -> String {
        self.said.lock().map(|text| text.clone()).unwrap_or_default()
    }

    /// Another subcommand about it.
    pub(crate) fn run(&self, args: &[&str]) -> Checked<Output> {
        Ok(command(self.runtime.path()).args(args).output()?)
    }

    /// Its output; a failure with what it said.
    pub(crate) fn text(&self, args: &[&str]) -> Checked<String> {
        let output = self.run(args)?;
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        if output.status.success() {
            Ok(out.into_owned())
        } else {
            Err(format!("{args:?}: {out}{err}").into())
        }
    }

    /// A script in a pod's first container.
    pub(crate) fn exec(&self, pod: &str, script: &str) -> Checked<String> {
        self.text(&["exec", pod, "--", "sh", "-c", script])
    }

    /// What `ps` says about a pod.
    pub(crate) fn line(&self, pod: &str) -> String {
        let list = self.text(&["ps"]).unwrap_or_default();
        let mut lines = list.lines().skip_while(|line| line.split(' ').next() != Some(pod));
        let mut about: Vec<&str> = lines.next().into_iter().collect();
        about.extend(lines.take_while(|line| line.starts_with(' ')));
        about.join("\n")
    }

    /// Waits until `ps` says this about a pod.
    pub(crate) fn wait_for_line(&self, pod: &str, part: &str) -> Checked {
        wait_for(&format!("{part:?} of {pod}"), || self.line(pod).contains(part))
            .map_err(|error| format!("{:?}: {}", error.message(), self.line(pod)).into())
    }

    pub(crate) fn folders(&self) -> Vec<PathBuf> {
        folders(self.runtime.path())
    }

    /// The process that is PID 1 inside.
    pub(crate) fn inner(&self) -> Checked<i32> {
        let folder = self.folders().pop().ok_or("no folder")?;
        Ok(fs::read_to_string(folder.join("inner.pid"))?.trim().parse()?)
    }

    pub(crate) fn signal(&self, signal: Signal) -> Checked {
        Ok(kill(Pid::from_raw(i32::try_from(self.outer.id())?), signal)?)
    }

    /// As a terminal does on Ctrl-C: to the process and whatever of its children is in its group.
    pub(crate) fn signal_group(&self, signal: Signal) -> Checked {
        Ok(killpg(Pid::from_raw(i32::try_from(self.outer.id())?), signal)?)
    }

    pub(crate) fn wait(&mut self) -> Checked<ExitStatus> {
        wait_for("the lab's end", || self.outer.try_wait().is_ok_and(|status| status.is_some()))?;
        Ok(self.outer.wait()?)
    }

    /// That it ended so, and left nothing.
    pub(crate) fn ended(&mut self, code: i32) -> Checked {
        let status = self.wait()?;
        if status.code() != Some(code) || !self.folders().is_empty() {
            return Err(format!("{status} instead of {code}, left: {:?}", self.folders()).into());
        }
        Ok(())
    }

    /// SIGKILL for the process that the user started.
    pub(crate) fn kill(&mut self) -> Checked {
        self.outer.kill()?;
        self.outer.wait()?;
        Ok(())
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let _ = self.outer.kill();
        let _ = self.outer.wait();
    }
}

/// The program, with labs in `runtime`.
pub(crate) fn command(runtime: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mesh-lab"));
    command.env("MESH_LAB_DIR", runtime);
    command
}

/// Folders below a runtime directory.
pub(crate) fn folders(runtime: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(runtime).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect()
}

/// A directory of this crate with a scenario's YAML.
pub(crate) fn scenario(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/pods/scenarios").join(name)
}

/// Waits for a condition, with a deadline.
pub(crate) fn wait_for(what: &str, mut holds: impl FnMut() -> bool) -> Checked {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    runtime.block_on(async {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
        while !holds() {
            if tokio::time::Instant::now() >= deadline {
                return Err(format!("{what} did not happen in time").into());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    })
}

pub(crate) fn same(seen: &str, wanted: &str) -> Checked {
    if seen == wanted { Ok(()) } else { Err(format!("{seen:?} instead of {wanted:?}").into()) }
}

pub(crate) fn contains(text: &str, part: &str) -> Checked {
    if text.contains(part) { Ok(()) } else { Err(format!("{part:?} is not in {text:?}").into()) }
}
