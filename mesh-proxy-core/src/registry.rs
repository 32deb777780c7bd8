//! Live connections, for inspection and for shutdown.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
};

use tokio::{sync::Notify, task::AbortHandle};

use crate::{
    config::Direction,
    filter::ConnectionInfo,
    lifecycle::Life,
    proxy::ConnectionSnapshot,
    tls::{PeerCertificate, TlsSession},
    upstream::ClusterRuntime,
};

/// An upstream connection.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) id: u64,
    pub(crate) cluster: Arc<str>,
    pub(crate) local: SocketAddr,
    pub(crate) peer: SocketAddr,
    pub(crate) tls: Option<TlsSession>,
    end: Mutex<Option<End>>,
}

/// How an upstream connection is ended before its time.
#[derive(Debug)]
pub(crate) enum End {
    /// Its codec has a task.
    Task(AbortHandle),
    /// It lives within a downstream connection.
    Connection(Life),
}

impl Session {
    /// Says how the connection is ended; the last word counts.
    pub(crate) fn ends_with(&self, end: End) {
        *lock(&self.end) = Some(end);
    }

    pub(crate) fn cut(&self) {
        match &*lock(&self.end) {
            Some(End::Task(task)) => task.abort(),
            Some(End::Connection(life)) => life.cut(),
            // Not in use yet: whoever opened it looks for itself once it is.
            None => {}
        }
    }
}

/// A downstream connection.
#[derive(Debug)]
struct Listed {
    info: Arc<ConnectionInfo>,
    life: Life,
}

/// All live connections.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    next: AtomicU64,
    downstream: Mutex<HashMap<u64, Listed>>,
    upstream: Mutex<HashMap<u64, Weak<Session>>>,
    open: AtomicUsize,
    closed: Notify,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Counts an accepted connection until dropped.
#[derive(Debug)]
pub(crate) struct Accepted {
    registry: Arc<Registry>,
    pub(crate) id: u64,
}

impl Drop for Accepted {
    fn drop(&mut self) {
        lock(&self.registry.downstream).remove(&self.id);
        self.registry.open.fetch_sub(1, Relaxed);
        self.registry.closed.notify_waiters();
    }
}

impl Registry {
    /// Counts a connection that was just accepted.
    pub(crate) fn accept(self: &Arc<Self>) -> Accepted {
        self.open.fetch_add(1, Relaxed);
        Accepted { registry: Arc::clone(self), id: self.next.fetch_add(1, Relaxed) }
    }

    /// Lists a connection once its chain is known.
    pub(crate) fn list(&self, info: &Arc<ConnectionInfo>, life: &Life) {
        let listed = Listed { info: Arc::clone(info), life: life.clone() };
        lock(&self.downstream).insert(info.id, listed);
    }

    /// Ends every connection, in either direction, whose peer is one of these; says how many.
    pub(crate) fn cut(&self, is_one: impl Fn(&PeerCertificate) -> bool) -> usize {
        let is_one = |tls: Option<&TlsSession>| tls.and_then(|tls| tls.peer.as_deref()).is_some_and(&is_one);
        let downstream = lock(&self.downstream);
        let peers = downstream.values().filter(|one| is_one(one.info.tls.as_ref()));
        let downstream = peers.inspect(|one| one.life.cut()).count();
        let sessions: Vec<_> = lock(&self.upstream).values().filter_map(Weak::upgrade).collect();
        let servers = sessions.iter().filter(|session| is_one(session.tls.as_ref()));
        downstream + servers.inspect(|session| session.cut()).count()
    }

    /// Lists an upstream connection until the last reference is gone.
    pub(crate) fn upstream(
        &self,
        cluster: &ClusterRuntime,
        peer: SocketAddr,
        local: SocketAddr,
        tls: Option<TlsSession>,
    ) -> Arc<Session> {
        let id = self.next.fetch_add(1, Relaxed);
        let session = Arc::new(Session {
            id,
            cluster: Arc::clone(&cluster.config.name),
            local,
            peer,
            tls,
            end: Mutex::default(),
        });
        let mut upstream = lock(&self.upstream);
        // Entries of closed connections go when there are as many of them as live ones, so that this stays cheap.
        if upstream.len() >= 64 && upstream.len() == upstream.capacity() {
            upstream.retain(|_, session| session.strong_count() > 0);
        }
        upstream.insert(id, Arc::downgrade(&session));
        session
    }

    pub(crate) fn open(&self) -> usize {
        self.open.load(Relaxed)
    }

    /// Waits until no downstream connection is open.
    pub(crate) async fn empty(&self) {
        loop {
            let closed = self.closed.notified();
            tokio::pin!(closed);
            closed.as_mut().enable();
            if self.open() == 0 {
                return;
            }
            closed.await;
        }
    }

    pub(crate) fn snapshot(&self) -> Vec<ConnectionSnapshot> {
        let mut all: Vec<ConnectionSnapshot> =
            lock(&self.downstream).values().map(|c| downstream(&c.info)).collect();
        all.extend(lock(&self.upstream).values().filter_map(Weak::upgrade).map(|s| upstream(&s)));
        all.sort_by_key(|c| c.id);
        all
    }
}

fn downstream(info: &ConnectionInfo) -> ConnectionSnapshot {
    let tls = info.tls.as_ref();
    ConnectionSnapshot {
        id: info.id,
        direction: info.direction,
        local: info.local,
        peer: info.peer,
        local_identity: tls.and_then(|t| t.local_identity.clone()),
        peer_identity: info.peer_identity().cloned(),
        tls_version: tls.and_then(|t| t.version),
        key_exchange: tls.and_then(|t| t.key_exchange),
        cipher: tls.and_then(|t| t.cipher),
        cluster: None,
        listener: Some(Arc::clone(&info.listener)),
        chain: Some(Arc::clone(&info.chain)),
    }
}

fn upstream(session: &Session) -> ConnectionSnapshot {
    let tls = session.tls.as_ref();
    let inbound = session.cluster.starts_with("inbound|") || &*session.cluster == "InboundPassthroughCluster";
    ConnectionSnapshot {
        id: session.id,
        direction: if inbound { Direction::Inbound } else { Direction::Outbound },
        local: session.local,
        peer: session.peer,
        local_identity: tls.and_then(|t| t.local_identity.clone()),
        peer_identity: tls.and_then(|t| t.peer.as_ref()?.spiffe_id().cloned()),
        tls_version: tls.and_then(|t| t.version),
        key_exchange: tls.and_then(|t| t.key_exchange),
        cipher: tls.and_then(|t| t.cipher),
        cluster: Some(Arc::clone(&session.cluster)),
        listener: None,
        chain: None,
    }
}
