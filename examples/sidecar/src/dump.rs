//! `/config_dump`: Envoy's `ConfigDump`, so that Envoy's and Istio's tools can read it.
//!
//! Protobuf-JSON needs message descriptors, and those cost more memory than the whole idle proxy. The dump is
//! therefore collected as protobuf and printed by a short-lived child: this same program, started again as
//! `render-config-dump`, reading stdin and writing stdout. A bootstrap file is read in the same way. If no child can be
//! had the work is done here, which is as correct and only costs the memory.

mod collect;
mod render;

pub use collect::collect;
pub use render::{RenderError, render_here, render_stdin};

use std::ffi::{OsStr, OsString};
use std::io::{self, Write};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use bytes::Bytes;
use mesh_xds::pb::envoy::config::bootstrap::v3::Bootstrap;
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, ChildStdout, Command};
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::static_bootstrap::{self, BootstrapError};

/// How long the child may take for the whole text.
const CHILD_DEADLINE: Duration = Duration::from_secs(60);
/// Bytes read from the child at a time.
const CHUNK: usize = 32 << 10;

/// Starts this program again. The words before our own arguments (a multi-call program's role) are kept.
#[derive(Debug, Clone)]
pub struct Reexec {
    leading: Vec<OsString>,
}

impl Reexec {
    /// Learns from the process's own command line how we were started; `ours` are the arguments that [`crate::run`] got.
    pub fn new(ours: &[OsString]) -> Self {
        let all: Vec<OsString> = std::env::args_os().collect();
        let leading = match all.len().checked_sub(ours.len()) {
            Some(at) if at >= 1 && all.get(at..) == Some(ours) => all.get(1..at).unwrap_or_default().to_vec(),
            _ => Vec::new(),
        };
        Self { leading }
    }

    fn command(&self, word: &str, argument: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("/proc/self/exe");
        command
            .args(&self.leading)
            .arg(word)
            .arg(argument)
            .env_clear()
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true);
        command
    }

    /// Renders `dump` in a child. The first chunk has been read when this returns, so that a child that fails is an
    /// error here and not half an answer.
    ///
    /// # Errors
    /// The child cannot be started or says nothing.
    pub async fn render(&self, dump: Vec<u8>, query: &str) -> io::Result<mpsc::Receiver<io::Result<Bytes>>> {
        let mut child = self.command("render-config-dump", query).spawn()?;
        let (Some(mut stdin), Some(mut stdout)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(io::Error::other("the child has no pipes"));
        };
        let feeder = tokio::spawn(async move {
            let _child_gone = stdin.write_all(&dump).await;
        });
        let first = timeout(CHILD_DEADLINE, chunk(&mut stdout)).await??;
        if first.is_empty() {
            feeder.abort();
            return Err(io::Error::other("the child wrote nothing"));
        }
        let (sender, receiver) = mpsc::channel(2);
        tokio::spawn(async move {
            if timeout(CHILD_DEADLINE, forward(child, stdout, first, &sender)).await.is_err() {
                let _reader_gone = sender.send(Err(io::ErrorKind::TimedOut.into())).await;
            }
        });
        Ok(receiver)
    }
}

impl Reexec {
    /// Reads a bootstrap file in a child; here if the child fails, which also gives the better error.
    ///
    /// # Errors
    /// The file cannot be read or is no bootstrap.
    pub async fn read_bootstrap(&self, file: &Path) -> Result<Bootstrap, BootstrapError> {
        let output =
            timeout(CHILD_DEADLINE, self.command("encode-bootstrap", file).stdin(Stdio::null()).output())
                .await;
        if let Ok(Ok(output)) = output
            && output.status.success()
            && let Ok(bootstrap) = Bootstrap::decode(output.stdout.as_slice())
            && bootstrap != Bootstrap::default()
        {
            return Ok(bootstrap);
        }
        static_bootstrap::read(file)
    }
}

/// The child's work for a bootstrap: a file's name in, the binary message on stdout.
///
/// # Errors
/// The file cannot be read or is no bootstrap, or stdout is closed.
pub fn encode_bootstrap(file: &Path) -> anyhow::Result<()> {
    let bytes = static_bootstrap::read(file)?.encode_to_vec();
    io::stdout().lock().write_all(&bytes)?;
    Ok(())
}

async fn chunk(stdout: &mut ChildStdout) -> io::Result<Bytes> {
    let mut buffer = Vec::with_capacity(CHUNK);
    stdout.read_buf(&mut buffer).await?;
    Ok(buffer.into())
}

async fn forward(
    mut child: Child,
    mut stdout: ChildStdout,
    first: Bytes,
    sender: &mpsc::Sender<io::Result<Bytes>>,
) {
    let mut next = Ok(first);
    loop {
        match next {
            Ok(bytes) if bytes.is_empty() => break,
            more => {
                if sender.send(more).await.is_err() {
                    return;
                }
            }
        }
        next = chunk(&mut stdout).await;
    }
    let ended = child.wait().await;
    if !ended.is_ok_and(|status| status.success()) {
        let _reader_gone = sender.send(Err(io::Error::other("the child failed"))).await;
    }
}
