//! Batches of log lines: workers append to buffers of their own, one thread writes them.

use std::{
    collections::HashMap,
    io,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
        mpsc,
    },
    thread,
    time::Duration,
};

use super::{AccessLogOpener, AccessLogSink, Counter};

/// A batch is handed over when it has this many bytes (Envoy's flush size).
const BATCH: usize = 64 * 1024;
/// Batches that may wait for a slow sink; more lines are dropped and counted.
const MAX_WAITING: usize = 64;

/// Opens log files and writes to them from one thread of its own, started with the first file.
#[derive(Debug)]
pub(crate) struct LogWriter {
    opener: Arc<dyn AccessLogOpener>,
    workers: usize,
    interval: Duration,
    dropped: Arc<Counter>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    files: HashMap<Arc<str>, Arc<LogFile>>,
    queue: Option<mpsc::Sender<Message>>,
}

enum Message {
    /// A file has lines again.
    Dirty(Weak<LogFile>),
    /// A full batch.
    Batch(Arc<LogFile>, Vec<u8>),
    /// Write everything, then answer.
    Flush(mpsc::Sender<()>),
}

/// One open log.
#[derive(Debug)]
pub(crate) struct LogFile {
    sink: Arc<dyn AccessLogSink>,
    buffers: Box<[Mutex<Vec<u8>>]>,
    queue: mpsc::Sender<Message>,
    dirty: AtomicBool,
    waiting: AtomicUsize,
    dropped: Arc<Counter>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl LogWriter {
    pub(crate) fn new(
        opener: Arc<dyn AccessLogOpener>,
        workers: usize,
        interval: Duration,
        dropped: Arc<Counter>,
    ) -> Self {
        Self { opener, workers, interval, dropped, state: Mutex::default() }
    }

    /// Opens a log, once for each path.
    pub(crate) fn open(&self, path: &Arc<str>) -> io::Result<Arc<LogFile>> {
        let mut state = lock(&self.state);
        if let Some(file) = state.files.get(path) {
            return Ok(Arc::clone(file));
        }
        let sink = self.opener.open(path)?;
        let queue = match &state.queue {
            Some(queue) => queue.clone(),
            None => {
                let (queue, messages) = mpsc::channel();
                let interval = self.interval;
                thread::Builder::new()
                    .name("mesh-access-log".into())
                    .spawn(move || run(&messages, interval))?;
                state.queue.insert(queue).clone()
            }
        };
        let file = Arc::new(LogFile {
            sink,
            buffers: (0..self.workers).map(|_| Mutex::default()).collect(),
            queue,
            dirty: AtomicBool::new(false),
            waiting: AtomicUsize::new(0),
            dropped: Arc::clone(&self.dropped),
        });
        state.files.insert(Arc::clone(path), Arc::clone(&file));
        Ok(file)
    }

    /// Writes everything that is buffered and waits for it.
    pub(crate) fn flush(&self) {
        let queue = lock(&self.state).queue.clone();
        let Some(queue) = queue else { return };
        let (done, wait) = mpsc::channel();
        if queue.send(Message::Flush(done)).is_ok() {
            let _writer_is_gone = wait.recv_timeout(Duration::from_secs(5));
        }
    }
}

impl LogFile {
    /// Appends one line to a worker's buffer.
    pub(crate) fn append(self: &Arc<Self>, worker: usize, render: impl FnOnce(&mut Vec<u8>)) {
        let mut buffer = lock(&self.buffers[worker]);
        render(&mut buffer);
        if buffer.len() >= BATCH {
            if self.waiting.load(Relaxed) >= MAX_WAITING {
                self.dropped.add(buffer.iter().filter(|b| **b == b'\n').count() as u64);
                buffer.clear();
                return;
            }
            let batch = std::mem::replace(&mut *buffer, Vec::with_capacity(BATCH + BATCH / 8));
            drop(buffer);
            self.waiting.fetch_add(1, Relaxed);
            let _writer_is_gone = self.queue.send(Message::Batch(Arc::clone(self), batch));
        } else {
            drop(buffer);
            if !self.dirty.load(Relaxed) && !self.dirty.swap(true, Relaxed) {
                let _writer_is_gone = self.queue.send(Message::Dirty(Arc::downgrade(self)));
            }
        }
    }

    fn sweep(&self, scratch: &mut Vec<u8>) {
        self.dirty.store(false, Relaxed);
        for buffer in &self.buffers {
            scratch.clear();
            std::mem::swap(&mut *lock(buffer), scratch);
            if !scratch.is_empty() {
                self.sink.write(scratch);
            }
        }
    }
}

fn run(messages: &mpsc::Receiver<Message>, interval: Duration) {
    let mut scratch = Vec::new();
    let mut dirty: Vec<Weak<LogFile>> = Vec::new();
    loop {
        // Nothing buffered: sleep until there is. Otherwise write what has gathered after one interval.
        let message = if dirty.is_empty() {
            messages.recv().map_err(|_| mpsc::RecvTimeoutError::Disconnected)
        } else {
            messages.recv_timeout(interval)
        };
        let sweep = |dirty: &mut Vec<Weak<LogFile>>, scratch: &mut Vec<u8>| {
            for file in dirty.drain(..) {
                if let Some(file) = file.upgrade() {
                    file.sweep(scratch);
                }
            }
        };
        match message {
            Ok(Message::Dirty(file)) => dirty.push(file),
            Ok(Message::Batch(file, batch)) => {
                file.waiting.fetch_sub(1, Relaxed);
                file.sink.write(&batch);
            }
            Ok(Message::Flush(done)) => {
                sweep(&mut dirty, &mut scratch);
                let _asker_is_gone = done.send(());
            }
            Err(mpsc::RecvTimeoutError::Timeout) => sweep(&mut dirty, &mut scratch),
            Err(mpsc::RecvTimeoutError::Disconnected) => {
                sweep(&mut dirty, &mut scratch);
                return;
            }
        }
    }
}
