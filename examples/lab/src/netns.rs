//! Network namespaces: made by a throw-away thread, kept alive by a descriptor, entered by further throw-away threads.

use std::fs::File;
use std::net::SocketAddr;
use std::os::fd::AsRawFd as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use nix::sched::{CloneFlags, setns, unshare};
use tokio::net::TcpStream;
use tokio::sync::oneshot;

use crate::error::{During as _, LabError, Result};

/// A network namespace; it disappears with the last clone and the last process inside.
#[derive(Debug, Clone)]
pub(crate) struct NetNs {
    file: Arc<File>,
}

impl NetNs {
    /// Makes an empty one.
    pub(crate) async fn create() -> Result<Self> {
        on_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET).during("make a network namespace")?;
            let file = File::open("/proc/thread-self/ns/net").during("open the new network namespace")?;
            Ok(Self { file: Arc::new(file) })
        })
        .await
    }

    /// The namespace's descriptor number in this process, as rtnetlink wants it.
    pub(crate) fn raw(&self) -> i32 {
        self.file.as_raw_fd()
    }

    /// A path by which children of this process can open it as long as this value lives.
    pub(crate) fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), self.raw()))
    }

    /// Runs `work` on a thread inside the namespace.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let file = Arc::clone(&self.file);
        on_thread(move || {
            setns(&*file, CloneFlags::CLONE_NEWNET).during("join a network namespace")?;
            work()
        })
        .await
    }

    /// Connects from inside the namespace; a socket stays in the namespace that it was made in.
    pub(crate) async fn connect(&self, address: SocketAddr, timeout: Duration) -> Result<TcpStream> {
        let stream = self
            .run(move || {
                let stream = std::net::TcpStream::connect_timeout(&address, timeout)
                    .during(format!("connect to {address}"))?;
                stream.set_nonblocking(true).during("make a socket non-blocking")?;
                Ok(stream)
            })
            .await?;
        TcpStream::from_std(stream).during("register a socket")
    }
}

/// Runs `work` on a thread that ends with it: a changed namespace must not leak into a thread pool.
async fn on_thread<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let (send, receive) = oneshot::channel();
    std::thread::Builder::new()
        .name(String::from("netns"))
        .spawn(move || {
            let _ = send.send(work());
        })
        .during("start a thread")?;
    receive.await.map_err(|_| LabError::Usage(String::from("a namespace thread ended early")))?
}
