//! Connection pools: one per host and worker, HTTP/1.1 by lease, HTTP/2 by stream.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::Duration,
};

use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{sync::Notify, task::AbortHandle, time::Instant};

use super::{
    ClusterRuntime, ConnectError, ConnectOptions, Host, Permit, Resource, connect, connect::local_of,
};
use crate::{
    Body,
    lifecycle::Life,
    proxy::Shared,
    registry::{End, Session},
    worker::Worker,
};

/// Streams on one HTTP/2 connection before another one is opened, whatever the configuration says: most servers allow
/// 100 and hyper does not tell how many.
const MAX_STREAMS: u32 = 100;

/// HTTP version on an upstream connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protocol {
    Http1,
    Http2,
}

/// Why there is no connection for a request.
#[derive(Debug)]
pub(crate) enum PoolError {
    Connect(ConnectError),
    /// A circuit breaker is open.
    Overflow,
}

/// A host's connections on one worker.
#[derive(Debug, Default)]
pub(crate) struct WorkerPool {
    idle: Mutex<VecDeque<Idle>>,
    shared: Mutex<Vec<Arc<Multiplexed>>>,
    connecting: tokio::sync::Mutex<()>,
    /// Told when a connection becomes free or goes away.
    freed: Notify,
    open: AtomicU32,
}

#[derive(Debug)]
struct Idle {
    connection: Exclusive,
    since: Instant,
}

#[derive(Debug)]
struct Exclusive {
    sender: http1::SendRequest<Body>,
    session: Arc<Session>,
    requests: u32,
    opened: Instant,
}

#[derive(Debug)]
struct Multiplexed {
    sender: http2::SendRequest<Body>,
    session: Arc<Session>,
    streams: AtomicU32,
    requests: AtomicU32,
    opened: Instant,
}

impl WorkerPool {
    fn idle(&self) -> MutexGuard<'_, VecDeque<Idle>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn shared(&self) -> MutexGuard<'_, Vec<Arc<Multiplexed>>> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn close_idle(&self) {
        self.idle().clear();
        self.shared().clear();
    }

    pub(crate) fn close_idle_since(&self, limit: Duration) {
        self.idle().retain(|idle| idle.since.elapsed() < limit && !idle.connection.sender.is_closed());
        self.shared().retain(|connection| !connection.sender.is_closed());
    }
}

/// The right to send one request on a connection.
#[derive(Debug)]
pub(crate) struct Lease {
    connection: Connection,
    host: Arc<Host>,
    worker: usize,
    max_requests: u32,
    /// The connection has carried a request before.
    pub(crate) reused: bool,
}

#[derive(Debug)]
enum Connection {
    Exclusive(Exclusive),
    Shared(Arc<Multiplexed>),
    Gone,
}

impl Lease {
    pub(crate) fn session(&self) -> Option<&Arc<Session>> {
        match &self.connection {
            Connection::Exclusive(c) => Some(&c.session),
            Connection::Shared(c) => Some(&c.session),
            Connection::Gone => None,
        }
    }

    /// After an upgrade the connection is the tunnel's, and ends with it.
    pub(crate) fn tie_to(&self, life: &Life) {
        if let Connection::Exclusive(connection) = &self.connection {
            connection.session.ends_with(End::Connection(life.clone()));
        }
    }

    pub(crate) fn protocol(&self) -> Protocol {
        match &self.connection {
            Connection::Shared(_) => Protocol::Http2,
            _ => Protocol::Http1,
        }
    }

    /// The sender; HTTP/2 gives a clone.
    pub(crate) fn http1(&mut self) -> Option<&mut http1::SendRequest<Body>> {
        match &mut self.connection {
            Connection::Exclusive(c) => Some(&mut c.sender),
            _ => None,
        }
    }

    pub(crate) fn http2(&self) -> Option<http2::SendRequest<Body>> {
        match &self.connection {
            Connection::Shared(c) => Some(c.sender.clone()),
            _ => None,
        }
    }

    /// The exchange is complete: the connection may serve another. Dropping a lease instead closes HTTP/1.1.
    pub(crate) fn release(mut self) {
        if let Connection::Exclusive(connection) = std::mem::replace(&mut self.connection, Connection::Gone) {
            let spent = self.max_requests > 0 && connection.requests >= self.max_requests;
            if !spent && !connection.sender.is_closed() && !self.host.removed.load(Relaxed) {
                let pool = self.pool();
                pool.idle().push_back(Idle { connection, since: Instant::now() });
                pool.freed.notify_one();
            }
        }
    }

    fn pool(&self) -> &WorkerPool {
        // The pools exist: this lease came from one of them.
        self.host.pool(self.worker, self.worker + 1)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Connection::Shared(connection) = &self.connection {
            connection.streams.fetch_sub(1, Relaxed);
            self.pool().freed.notify_one();
        }
    }
}

/// A connection to `host` for one request.
pub(crate) async fn checkout(
    shared: &Arc<Shared>,
    worker: &Arc<Worker>,
    cluster: &Arc<ClusterRuntime>,
    host: &Arc<Host>,
    protocol: Protocol,
    options: &ConnectOptions,
) -> Result<Lease, PoolError> {
    let pool = host.pool(worker.id, shared.workers());
    let lease = |connection, reused| Lease {
        connection,
        host: Arc::clone(host),
        worker: worker.id,
        max_requests: cluster.config.max_requests_per_connection,
        reused,
    };
    match protocol {
        Protocol::Http1 => loop {
            let taken = pool.idle().pop_back();
            if let Some(Idle { mut connection, .. }) = taken {
                let young = !too_old(cluster, connection.opened);
                if young && !connection.sender.is_closed() && connection.sender.ready().await.is_ok() {
                    connection.requests += 1;
                    return Ok(lease(Connection::Exclusive(connection), true));
                }
                continue;
            }
            let permit = match Permit::acquire(cluster, Resource::Connection) {
                Some(permit) => permit,
                // Each pool may have one connection whatever the limit says, or nothing would ever be sent.
                None if pool.open.load(Relaxed) == 0 => Permit::force(cluster, Resource::Connection),
                None => {
                    cluster.stats.cx_overflow.inc();
                    wait(cluster, pool).await?;
                    continue;
                }
            };
            let _pending = pending(cluster)?;
            let connection = open_http1(shared, worker, cluster, host, options, permit).await?;
            return Ok(lease(Connection::Exclusive(connection), false));
        },
        Protocol::Http2 => loop {
            if let Some(connection) = stream_slot(pool, cluster) {
                return Ok(lease(Connection::Shared(connection), true));
            }
            let _pending = pending(cluster)?;
            let _one_at_a_time = pool.connecting.lock().await;
            if let Some(connection) = stream_slot(pool, cluster) {
                return Ok(lease(Connection::Shared(connection), true));
            }
            let permit = match Permit::acquire(cluster, Resource::Connection) {
                Some(permit) => permit,
                None if pool.open.load(Relaxed) == 0 => Permit::force(cluster, Resource::Connection),
                None => {
                    cluster.stats.cx_overflow.inc();
                    drop(_one_at_a_time);
                    drop(_pending);
                    wait(cluster, pool).await?;
                    continue;
                }
            };
            let connection = open_http2(shared, worker, cluster, host, options, permit).await?;
            connection.streams.fetch_add(1, Relaxed);
            connection.requests.fetch_add(1, Relaxed);
            if !host.removed.load(Relaxed) {
                pool.shared().push(Arc::clone(&connection));
            }
            return Ok(lease(Connection::Shared(connection), false));
        },
    }
}

fn pending(cluster: &Arc<ClusterRuntime>) -> Result<Permit, PoolError> {
    Permit::acquire(cluster, Resource::Pending).ok_or_else(|| {
        cluster.stats.rq_pending_overflow.inc();
        PoolError::Overflow
    })
}

async fn wait(cluster: &Arc<ClusterRuntime>, pool: &WorkerPool) -> Result<(), PoolError> {
    let _pending = pending(cluster)?;
    pool.freed.notified().await;
    Ok(())
}

fn too_old(cluster: &ClusterRuntime, opened: Instant) -> bool {
    cluster.config.max_connection_duration.is_some_and(|most| opened.elapsed() >= most)
}

fn stream_slot(pool: &WorkerPool, cluster: &ClusterRuntime) -> Option<Arc<Multiplexed>> {
    let mut connections = pool.shared();
    let most = cluster.config.max_requests_per_connection;
    connections.retain(|c| {
        let spent = most > 0 && c.requests.load(Relaxed) >= most;
        !c.sender.is_closed() && !spent && !too_old(cluster, c.opened)
    });
    // The peer's own limit is hyper's business: it queues streams above it.
    let limit = cluster.config.max_concurrent_streams.min(MAX_STREAMS);
    let found = connections.iter().find(|c| c.streams.load(Relaxed) < limit)?;
    found.streams.fetch_add(1, Relaxed);
    found.requests.fetch_add(1, Relaxed);
    Some(Arc::clone(found))
}

/// Keeps a connection counted until its task ends.
struct Open {
    _permit: Permit,
    cluster: Arc<ClusterRuntime>,
    host: Arc<Host>,
    worker: usize,
    _session: Arc<Session>,
}

impl Open {
    fn new(
        shared: &Shared,
        worker: &Worker,
        cluster: &Arc<ClusterRuntime>,
        host: &Arc<Host>,
        permit: Permit,
        session: Arc<Session>,
    ) -> Self {
        cluster.stats.cx_active.inc();
        host.cx_active.fetch_add(1, Relaxed);
        host.pool(worker.id, shared.workers()).open.fetch_add(1, Relaxed);
        if session.tls.is_some() {
            cluster.stats.ssl_handshake.inc();
        }
        Self {
            _permit: permit,
            cluster: Arc::clone(cluster),
            host: Arc::clone(host),
            worker: worker.id,
            _session: session,
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.cluster.stats.cx_active.dec();
        self.cluster.stats.cx_destroy.inc();
        self.host.cx_active.fetch_sub(1, Relaxed);
        let pool = self.host.pool(self.worker, self.worker + 1);
        pool.open.fetch_sub(1, Relaxed);
        pool.freed.notify_one();
    }
}

/// Lets the connection be ended when its server is revoked, and looks whether it is by now.
fn watch(shared: &Shared, session: &Session, task: AbortHandle) -> Result<(), PoolError> {
    session.ends_with(End::Task(task));
    if shared.is_revoked(session.tls.as_ref()) {
        session.cut();
        return Err(PoolError::Connect(ConnectError::Tls("the server's certificate is revoked".to_owned())));
    }
    Ok(())
}

async fn open_http1(
    shared: &Arc<Shared>,
    worker: &Arc<Worker>,
    cluster: &Arc<ClusterRuntime>,
    host: &Arc<Host>,
    options: &ConnectOptions,
    permit: Permit,
) -> Result<Exclusive, PoolError> {
    let (stream, tls) = connect(shared, cluster, host, options).await.map_err(PoolError::Connect)?;
    let local: SocketAddr = local_of(&stream);
    let session = shared.registry.upstream(cluster, host.address(), local, tls);
    let open = Open::new(shared, worker, cluster, host, permit, Arc::clone(&session));
    let (sender, connection) = http1::Builder::new()
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|e| PoolError::Connect(ConnectError::Tls(e.to_string())))?;
    let task = tokio::spawn(async move {
        let _end_is_seen_by_the_request = connection.with_upgrades().await;
        drop(open);
    });
    watch(shared, &session, task.abort_handle())?;
    Ok(Exclusive { sender, session, requests: 1, opened: Instant::now() })
}

async fn open_http2(
    shared: &Arc<Shared>,
    worker: &Arc<Worker>,
    cluster: &Arc<ClusterRuntime>,
    host: &Arc<Host>,
    options: &ConnectOptions,
    permit: Permit,
) -> Result<Arc<Multiplexed>, PoolError> {
    let (stream, tls) = connect(shared, cluster, host, options).await.map_err(PoolError::Connect)?;
    let local = local_of(&stream);
    let session = shared.registry.upstream(cluster, host.address(), local, tls);
    let open = Open::new(shared, worker, cluster, host, permit, Arc::clone(&session));
    let (sender, connection) = http2::Builder::new(TokioExecutor::new())
        .max_header_list_size(60 * 1024)
        .initial_stream_window_size(cluster.config.initial_stream_window)
        .initial_connection_window_size(cluster.config.initial_connection_window)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|e| PoolError::Connect(ConnectError::Tls(e.to_string())))?;
    let task = tokio::spawn(async move {
        let _end_is_seen_by_the_request = connection.await;
        drop(open);
    });
    watch(shared, &session, task.abort_handle())?;
    Ok(Arc::new(Multiplexed {
        sender,
        session,
        streams: AtomicU32::new(0),
        requests: AtomicU32::new(0),
        opened: Instant::now(),
    }))
}
