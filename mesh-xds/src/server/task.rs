//! The life of one stream: reads requests, follows the cache, writes when there is room.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until, timeout};
use tonic::{Code, Status};

use crate::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};

use super::ads::Shared;
use super::auth::Caller;
use super::clients::ClientInfo;
use super::config::StreamError;
use super::rate::Bucket;
use super::requests::Requests;
use super::snapshot::Snapshot;
use super::stream::{Request, ServerStream};

/// What leaves: one message in pieces.
pub(super) type Frame = Vec<Bytes>;

/// The requests of one stream.
#[derive(Debug)]
pub(super) enum Inbound {
    Delta(Requests<DeltaDiscoveryRequest>),
    Sotw(Requests<DiscoveryRequest>),
}

impl Inbound {
    /// The next request; `None` when the client is done. Cancel safe.
    async fn next(&mut self) -> Result<Option<Request>, Status> {
        match self {
            Self::Delta(requests) => Ok(requests.next().await?.map(|m| Request::Delta(Box::new(m)))),
            Self::Sotw(requests) => Ok(requests.next().await?.map(|m| Request::Sotw(Box::new(m)))),
        }
    }
}

impl From<StreamError> for Status {
    fn from(error: StreamError) -> Self {
        let code = match error {
            StreamError::TooManyNames { .. }
            | StreamError::TooManyBytes { .. }
            | StreamError::TooManyTypes { .. } => Code::ResourceExhausted,
            _ => Code::InvalidArgument,
        };
        Self::new(code, error.to_string())
    }
}

/// Runs a stream to its end and says how it ended.
pub(super) async fn run(
    shared: Arc<Shared>,
    stream: ServerStream,
    inbound: Inbound,
    caller: Caller,
    out: mpsc::Sender<Frame>,
    ended: oneshot::Sender<Status>,
) {
    let mut stopping = shared.stopping.subscribe();
    let life = live(&shared, stream, inbound, caller, &out);
    let end = tokio::select! {
        biased;
        _ = stopping.wait_for(|stop| *stop) => Err(Status::unavailable("the server is shutting down")),
        () = out.closed() => return,
        end = life => end,
    };
    if let Err(status) = end {
        tracing::debug!(code = ?status.code(), message = status.message(), "xDS stream ended");
        // Beside the messages: a client that does not read finds out when it does, and nobody waits for it.
        let _ = ended.send(status);
    }
}

/// Removes the client from the registry whatever ends the stream.
struct Registration {
    shared: Arc<Shared>,
    client: Arc<ClientInfo>,
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.shared.registry.remove(self.client.id);
        self.shared.cache.release(&self.client.group);
        self.shared.observer.disconnected(&self.client);
    }
}

async fn live(
    shared: &Arc<Shared>,
    mut stream: ServerStream,
    mut inbound: Inbound,
    caller: Caller,
    out: &mpsc::Sender<Frame>,
) -> Result<(), Status> {
    let first = timeout(shared.config.first_request_timeout, inbound.next())
        .await
        .map_err(|_| Status::deadline_exceeded("no request came"))??;
    let Some(first) = first else { return Ok(()) };
    stream.on_request(Duration::ZERO, first)?;
    let node = stream.node().cloned().ok_or(StreamError::NoNode)?;
    let grant = timeout(shared.config.authorization_timeout, shared.authorizer.authorize(&caller, &node))
        .await
        .map_err(|_| {
            Status::unavailable("whether the caller may be the node could not be decided in time")
        })??;
    drop(caller);

    let group = grant.group.unwrap_or_else(|| (shared.config.group)(&node));
    let snapshots = shared.cache.subscribe(&group);
    let client = Arc::new(ClientInfo {
        id: shared.registry.next_id(),
        node,
        group: Arc::from(group),
        identity: grant.identity,
        delta: matches!(inbound, Inbound::Delta(_)),
        connected_at: SystemTime::now(),
        started: Instant::now(),
    });
    let stream = Arc::new(Mutex::new(stream));
    shared.registry.insert(client.clone(), stream.clone());
    let _registration = Registration { shared: shared.clone(), client: client.clone() };
    shared.observer.connected(&client);
    exchange(shared, &client, &stream, inbound, snapshots, out).await
}

async fn exchange(
    shared: &Shared,
    client: &ClientInfo,
    stream: &Mutex<ServerStream>,
    mut inbound: Inbound,
    mut snapshots: watch::Receiver<Option<Arc<Snapshot>>>,
    out: &mpsc::Sender<Frame>,
) -> Result<(), Status> {
    let rate = shared.config.requests_per_second;
    let mut bucket = Bucket::new(rate, rate.saturating_mul(10), Instant::now());
    let mut read_again = Instant::now();
    // Before further requests: names that a client asks for are then shared with the snapshot's.
    if let Some(snapshot) = snapshots.borrow_and_update().clone() {
        lock(stream).on_snapshot(snapshot);
    }
    let end =
        shared.config.max_stream_age.and_then(|age| client.started.checked_add(jittered(age, client.id)));
    loop {
        let timer = write(client, stream, out);
        let full = out.capacity() == 0;
        tokio::select! {
            biased;
            request = read(&mut inbound, read_again) => {
                let Some(request) = request? else { return Ok(()) };
                take(shared, client, stream, request)?;
                if let Some(wait) = bucket.owe(Instant::now()) {
                    read_again = Instant::now() + wait;
                }
            }
            changed = snapshots.changed() => {
                if changed.is_err() {
                    return Err(Status::unavailable("the cache is gone"));
                }
                if let Some(snapshot) = snapshots.borrow_and_update().clone() {
                    lock(stream).on_snapshot(snapshot);
                }
            }
            permit = out.reserve(), if full => {
                if permit.is_err() {
                    return Ok(());
                }
            }
            () = at(timer.and_then(|t| client.started.checked_add(t))), if !full => {}
            () = at(end) => return Err(Status::unavailable("the stream reached its age; connect again")),
        }
    }
}

/// Writes while there is room; returns when to look again although nothing happens.
fn write(client: &ClientInfo, stream: &Mutex<ServerStream>, out: &mpsc::Sender<Frame>) -> Option<Duration> {
    let mut stream = lock(stream);
    while let Ok(permit) = out.try_reserve() {
        let Some(response) = stream.next_response(client.started.elapsed()) else { break };
        permit.send(stream.encode(&response));
    }
    stream.next_timer()
}

/// Hands a request to the core and tells the observer about a rejection.
fn take(
    shared: &Shared,
    client: &ClientInfo,
    stream: &Mutex<ServerStream>,
    request: Request,
) -> Result<(), Status> {
    let rejected = request.rejected_nonce().map(str::to_owned);
    let mut stream = lock(stream);
    stream.on_request(client.started.elapsed(), request)?;
    let Some(nonce) = rejected else { return Ok(()) };
    // Nonces are unique on a stream, so this finds the type too, also where the request left it out. A stale rejection is
    // recorded nowhere.
    let nack =
        stream.status().into_iter().find_map(|(t, s)| Some((t, s.error.filter(|e| e.nonce == nonce)?)));
    drop(stream);
    if let Some((type_url, nack)) = nack {
        tracing::warn!(node = client.node.id, r#type = type_url.short(), message = nack.message, "rejected");
        shared.observer.rejected(client, &type_url, &nack);
    }
    Ok(())
}

async fn read(inbound: &mut Inbound, not_before: Instant) -> Result<Option<Request>, Status> {
    if not_before > Instant::now() {
        sleep_until(not_before).await;
    }
    inbound.next().await
}

async fn at(when: Option<Instant>) {
    match when {
        Some(when) => sleep_until(when).await,
        None => std::future::pending().await,
    }
}

/// `age` ± 10 %, spread by the stream's number so that streams opened together do not end together.
fn jittered(age: Duration, id: u64) -> Duration {
    let spread = twox_hash::XxHash64::oneshot(id, b"age") % 2001;
    let share = 0.9 + f64::from(u32::try_from(spread).unwrap_or(0)) / 10_000.0;
    Duration::try_from_secs_f64(age.as_secs_f64() * share).unwrap_or(age)
}

fn lock(stream: &Mutex<ServerStream>) -> std::sync::MutexGuard<'_, ServerStream> {
    stream.lock().unwrap_or_else(PoisonError::into_inner)
}
