//! The client app: a load that the demo starts and stops, in the client's pod.

use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout};
use tokio::time::{Instant, sleep, timeout};

use crate::error::{During as _, LabError, Result};
use crate::kubelet::Pod;

/// Time for one answer of the load generator.
const ANSWER: Duration = Duration::from_secs(15);
/// Time for any number of requests that the demo waits for.
const PROGRESS: Duration = Duration::from_secs(20);

/// `mesh-echo load --control` in a pod.
#[derive(Debug)]
pub(super) struct Load {
    // Killed when this value goes.
    _child: Child,
    commands: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
}

impl Load {
    /// Starts the generator; it sends nothing yet.
    pub(super) fn open(pod: &Pod, url: &str, rate: u32) -> Result<Self> {
        let rate = rate.to_string();
        let argv = [
            "mesh-echo",
            "load",
            "--control",
            "--url",
            url,
            "--connections",
            "mixed",
            "--concurrency",
            "4",
            "--rate",
            &rate,
        ];
        let mut command = pod.command(pod.default_container(), &argv)?;
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        let mut child = command.spawn().during("start the load")?;
        let (Some(commands), Some(answers)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(LabError::process("load", "has no pipes"));
        };
        Ok(Self { _child: child, commands, answers: BufReader::new(answers).lines() })
    }

    /// Begins a phase.
    pub(super) async fn start(&mut self, name: &str) -> Result<()> {
        self.ask(&format!("start {name}")).await.map(drop)
    }

    /// Ends the phase; what happened in it.
    pub(super) async fn stop(&mut self) -> Result<Value> {
        self.ask("stop").await
    }

    /// Requests of the phase that have ended.
    pub(super) async fn requests(&mut self) -> Result<u64> {
        Ok(self.ask("progress").await?["requests"].as_u64().unwrap_or(0))
    }

    /// Waits until `count` more requests have ended.
    pub(super) async fn wait_for(&mut self, count: u64) -> Result<()> {
        let target = self.requests().await? + count;
        let deadline = Instant::now() + PROGRESS;
        loop {
            let now = self.requests().await?;
            if now >= target {
                return Ok(());
            }
            if Instant::now() >= deadline {
                let detail = format!(": {now} of {target}");
                let what = format!("{count} more requests");
                return Err(LabError::Timeout { what, seconds: PROGRESS.as_secs(), detail });
            }
            sleep(Duration::from_millis(20)).await;
        }
    }

    async fn ask(&mut self, command: &str) -> Result<Value> {
        self.commands.write_all(format!("{command}\n").as_bytes()).await.during("command the load")?;
        let line = timeout(ANSWER, self.answers.next_line()).await.map_err(|_| LabError::Timeout {
            what: format!("an answer of the load to {command:?}"),
            seconds: ANSWER.as_secs(),
            detail: String::new(),
        })?;
        let line =
            line.during("read from the load")?.ok_or_else(|| LabError::process("load", "ended early"))?;
        let answer: Value =
            serde_json::from_str(&line).map_err(|error| LabError::process("load", error.to_string()))?;
        match answer.get("error") {
            Some(error) => Err(LabError::process("load", format!("{command}: {error}"))),
            None => Ok(answer),
        }
    }
}
