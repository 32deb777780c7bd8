//! The client's task: connects, moves messages between the stream and the core, and connects again.

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status, Streaming};

use crate::pb::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use crate::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use crate::resource::TypeUrl;

use super::ads::{ClientError, ConnectionState, HeaderFn};
use super::backoff::Backoff;
use super::connector::{Connector, Target};
use super::core::{ClientCore, ClientRequest, ClientResponse};
use super::state::{Rejection, ResourceState};
use super::subscription::{Names, Protocol};
use super::watch::Event;

/// How many deliveries may be undecided before the stream is no longer read.
const MAX_UNDECIDED: usize = 32;
/// The peer is pinged when nothing moved for this long, and given up when it does not answer.
const KEEPALIVE: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(10));

/// A stream that lives this long is a good one although nothing came on it: to a client that has everything, a server
/// has nothing to say.
const PROVEN_AFTER: Duration = Duration::from_secs(5);

#[derive(Clone)]
pub(super) struct Settings {
    pub(super) targets: Vec<Target>,
    pub(super) connector: Connector,
    pub(super) headers: HeaderFn,
    pub(super) max_response_bytes: usize,
    pub(super) connect_timeout: Duration,
    pub(super) seed: u64,
}

/// What handles ask of the task.
pub(super) enum Command {
    Watch { type_url: TypeUrl, names: Names, events: mpsc::UnboundedSender<Event> },
    Set { type_url: TypeUrl, names: Names },
    Again { type_url: TypeUrl, names: Vec<String> },
    Unwatch { type_url: TypeUrl },
    Decide { id: u64, rejections: Vec<Rejection> },
    Resources(oneshot::Sender<BTreeMap<TypeUrl, BTreeMap<String, ResourceState>>>),
}

struct Runner {
    core: ClientCore,
    settings: Settings,
    started: Instant,
    inbox: mpsc::UnboundedReceiver<Command>,
    watches: BTreeMap<TypeUrl, mpsc::UnboundedSender<Event>>,
    state: watch::Sender<ConnectionState>,
}

/// What speaks for a stream.
#[derive(Debug, Default)]
struct Proof {
    /// When it is a good one although nothing came on it.
    due: Option<Instant>,
    /// Whether it is.
    proven: bool,
    /// Whether it is counted as opened.
    opened: bool,
    /// Whether a response came.
    answered: bool,
}

/// Why a stream is no longer used.
enum End {
    /// Nobody holds the client any more.
    Released,
    Failed {
        error: ClientError,
        /// Whether the server was a good one until then.
        proven: bool,
    },
}

pub(super) async fn run(
    core: ClientCore,
    settings: Settings,
    inbox: mpsc::UnboundedReceiver<Command>,
    state: watch::Sender<ConnectionState>,
) {
    let mut backoff = Backoff::new(settings.seed);
    let mut runner =
        Runner { core, settings, started: Instant::now(), inbox, watches: BTreeMap::new(), state };
    // Nothing to ask for: nothing to connect for.
    match runner.inbox.recv().await {
        Some(command) => runner.command(command),
        None => return,
    }
    let mut server = 0;
    loop {
        let target = runner.settings.targets[server % runner.settings.targets.len()].clone();
        let end = runner.stream(&target).await;
        runner.core.disconnected();
        let End::Failed { error, proven } = end else { return };
        tracing::debug!(server = %target, reason = error.reason(), %error, "ADS stream ended");
        runner.state.send_modify(|state| {
            state.connected = false;
            state.last_error = Some(error);
        });
        if proven {
            backoff.reset();
        } else {
            server += 1;
        }
        if runner.pause(backoff.next_delay()).await.is_none() {
            return;
        }
    }
}

impl Runner {
    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    /// Waits before the next attempt, serving commands; `None` when nobody holds the client any more.
    async fn pause(&mut self, delay: Duration) -> Option<()> {
        let wait = sleep(delay);
        tokio::pin!(wait);
        loop {
            let timer = self.timer();
            tokio::select! {
                () = &mut wait => return Some(()),
                command = self.inbox.recv() => self.command(command?),
                () = at(timer) => self.lapse(),
            }
        }
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::Watch { type_url, names, events } => {
                // A second watch of a type ends at once: its channel is dropped here.
                let taken = self.watches.get(&type_url).is_some_and(|watch| !watch.is_closed());
                if !taken {
                    self.core.watch(&type_url, names);
                    self.watches.insert(type_url, events);
                }
            }
            Command::Set { type_url, names } => self.core.watch(&type_url, names),
            Command::Again { type_url, names } => {
                self.core.subscribe(&type_url, names.iter().map(String::as_str));
            }
            Command::Unwatch { type_url } => {
                if self.watches.get(&type_url).is_some_and(mpsc::UnboundedSender::is_closed) {
                    self.watches.remove(&type_url);
                    self.core.unwatch(&type_url);
                }
            }
            Command::Decide { id, rejections } => self.core.decide(self.now(), id, rejections),
            Command::Resources(reply) => {
                let all = self.core.resources().map(|(t, r)| (t.clone(), r.clone())).collect();
                let _ = reply.send(all);
            }
        }
    }

    fn timer(&self) -> Option<Instant> {
        // What no clock reaches is never: a time to live may be as long as the other side likes.
        self.core.next_timer().and_then(|at| self.started.checked_add(at))
    }

    fn lapse(&mut self) {
        for lapse in self.core.on_timer(self.now()) {
            if let Some(watch) = self.watches.get(&lapse.type_url) {
                let _ = watch.send(Event::Lapse(lapse));
            }
        }
    }

    /// Opens one stream and uses it to its end.
    async fn stream(&mut self, target: &Target) -> End {
        self.state.send_modify(|state| state.server = target.to_string());
        let (out, requests) = mpsc::unbounded_channel();
        self.core.connected();
        self.flush(&out);
        let mut proof = Proof::default();
        let connecting = connect(self.settings.clone(), target.clone());
        let channel = match self.meanwhile(connecting, &out, &mut proof).await {
            Some(Ok(channel)) => channel,
            Some(Err(error)) => return End::Failed { error, proven: false },
            None => return End::Released,
        };
        // Some servers answer with headers only when they have something to say. To a client that has everything that may
        // be never, and yet the stream is a good one.
        proof.due = Some(Instant::now() + PROVEN_AFTER);
        let opening = open(self.settings.clone(), channel, target.clone(), self.core.protocol(), requests);
        let mut inbound = match self.meanwhile(opening, &out, &mut proof).await {
            Some(Ok(inbound)) => inbound,
            Some(Err(error)) => return End::Failed { error, proven: proof.proven },
            None => return End::Released,
        };
        if !std::mem::replace(&mut proof.opened, true) {
            self.state.send_modify(|state| state.streams += 1);
        }
        self.exchange(&mut inbound, &out, target, proof).await
    }

    /// Awaits a step towards an open stream, serving commands; `None` when nobody holds the client any more.
    async fn meanwhile<T>(
        &mut self,
        step: impl Future<Output = T>,
        out: &mpsc::UnboundedSender<ClientRequest>,
        proof: &mut Proof,
    ) -> Option<T> {
        tokio::pin!(step);
        loop {
            let timer = self.timer();
            tokio::select! {
                biased;
                command = self.inbox.recv() => self.command(command?),
                done = &mut step => return Some(done),
                () = at(timer) => self.lapse(),
                () = at(proof.due), if !proof.proven => self.prove(proof, None),
            }
            self.flush(out);
        }
    }

    fn flush(&mut self, out: &mpsc::UnboundedSender<ClientRequest>) {
        while let Some(request) = self.core.next_request(self.started.elapsed()) {
            if out.send(request).is_err() {
                return;
            }
        }
    }

    async fn exchange(
        &mut self,
        inbound: &mut Inbound,
        out: &mpsc::UnboundedSender<ClientRequest>,
        target: &Target,
        mut proof: Proof,
    ) -> End {
        loop {
            self.flush(out);
            let room = self.core.undecided() < MAX_UNDECIDED;
            let timer = self.timer();
            tokio::select! {
                biased;
                command = self.inbox.recv() => match command {
                    Some(command) => self.command(command),
                    None => return End::Released,
                },
                message = inbound.next(), if room => match message {
                    Ok(Some(response)) => {
                        if !proof.answered {
                            proof.answered = true;
                            self.prove(&mut proof, Some(response.control_plane()));
                        }
                        self.deliver(response);
                    }
                    Ok(None) => {
                        let error = stream_error(target, &Status::ok("the server closed the stream"));
                        return End::Failed { error, proven: proof.proven };
                    }
                    Err(status) => {
                        return End::Failed { error: stream_error(target, &status), proven: proof.proven };
                    }
                },
                () = at(timer) => self.lapse(),
                () = at(proof.due), if !proof.proven => self.prove(&mut proof, None),
            }
        }
    }

    fn prove(&self, proof: &mut Proof, control_plane: Option<String>) {
        proof.proven = true;
        let unseen = !std::mem::replace(&mut proof.opened, true);
        self.state.send_modify(|state| {
            state.connected = true;
            state.streams += u64::from(unseen);
            if let Some(control_plane) = control_plane {
                state.control_plane = control_plane;
            }
        });
    }

    fn deliver(&mut self, response: ClientResponse) {
        let now = self.now();
        let Some(delivery) = self.core.on_response(now, response) else { return };
        let id = delivery.id;
        let watch = self.watches.get(&delivery.type_url);
        let taken = watch.is_some_and(|watch| watch.send(Event::Delivery(delivery)).is_ok());
        if !taken {
            // The watch was dropped a moment ago; what it would have accepted is of no use to anybody.
            self.core.decide(now, id, Vec::new());
        }
    }
}

/// The responses of one stream.
enum Inbound {
    Delta(Box<Streaming<DeltaDiscoveryResponse>>),
    Sotw(Box<Streaming<DiscoveryResponse>>),
}

impl Inbound {
    /// Cancel safe.
    async fn next(&mut self) -> Result<Option<ClientResponse>, Status> {
        match self {
            Self::Delta(s) => Ok(s.message().await?.map(|m| ClientResponse::Delta(Box::new(m)))),
            Self::Sotw(s) => Ok(s.message().await?.map(|m| ClientResponse::Sotw(Box::new(m)))),
        }
    }
}

impl ClientResponse {
    fn control_plane(&self) -> String {
        let control_plane = match self {
            Self::Delta(response) => &response.control_plane,
            Self::Sotw(response) => &response.control_plane,
        };
        control_plane.as_ref().map(|c| c.identifier.clone()).unwrap_or_default()
    }
}

use requests::{DeltaRequests, Requests, SotwRequests};

mod requests {
    //! The core's requests as streams of one kind.

    use std::pin::Pin;
    use std::task::{Context, Poll, ready};

    use tokio_stream::Stream;
    use tokio_stream::wrappers::UnboundedReceiverStream;

    use super::{ClientRequest, DeltaDiscoveryRequest, DiscoveryRequest};

    pub(super) struct Requests(pub(super) UnboundedReceiverStream<ClientRequest>);
    pub(super) struct DeltaRequests(pub(super) Requests);
    pub(super) struct SotwRequests(pub(super) Requests);

    impl Stream for DeltaRequests {
        type Item = DeltaDiscoveryRequest;

        fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
            loop {
                match ready!(Pin::new(&mut self.0.0).poll_next(cx)) {
                    Some(ClientRequest::Delta(request)) => return Poll::Ready(Some(*request)),
                    Some(ClientRequest::Sotw(_)) => {}
                    None => return Poll::Ready(None),
                }
            }
        }
    }

    impl Stream for SotwRequests {
        type Item = DiscoveryRequest;

        fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
            loop {
                match ready!(Pin::new(&mut self.0.0).poll_next(cx)) {
                    Some(ClientRequest::Sotw(request)) => return Poll::Ready(Some(*request)),
                    Some(ClientRequest::Delta(_)) => {}
                    None => return Poll::Ready(None),
                }
            }
        }
    }
}

/// Opens a stream of the given kind.
async fn open(
    settings: Settings,
    channel: Channel,
    target: Target,
    protocol: Protocol,
    requests: mpsc::UnboundedReceiver<ClientRequest>,
) -> Result<Inbound, ClientError> {
    let mut client =
        AggregatedDiscoveryServiceClient::new(channel).max_decoding_message_size(settings.max_response_bytes);
    let requests = Requests(UnboundedReceiverStream::new(requests));
    let credentials = |message| ClientError::Credentials { message };
    let ended = |status: Status| stream_error(&target, &status);
    match protocol {
        Protocol::Delta => {
            let mut request = Request::new(DeltaRequests(requests));
            (settings.headers)(request.metadata_mut()).map_err(credentials)?;
            let response = client.delta_aggregated_resources(request).await.map_err(ended)?;
            Ok(Inbound::Delta(Box::new(response.into_inner())))
        }
        Protocol::Sotw => {
            let mut request = Request::new(SotwRequests(requests));
            (settings.headers)(request.metadata_mut()).map_err(credentials)?;
            let response = client.stream_aggregated_resources(request).await.map_err(ended)?;
            Ok(Inbound::Sotw(Box::new(response.into_inner())))
        }
    }
}

async fn connect(settings: Settings, target: Target) -> Result<Channel, ClientError> {
    let error = |message: String| ClientError::Connect { target: target.to_string(), message };
    let endpoint = Endpoint::from_shared(format!("http://{}", target.authority()))
        .map_err(|e| error(e.to_string()))?
        .http2_keep_alive_interval(KEEPALIVE.0)
        .keep_alive_timeout(KEEPALIVE.1)
        .keep_alive_while_idle(true);
    let (connector, target) = (settings.connector, target.clone());
    let service = tower::service_fn(move |_| {
        let connecting = connector.connect(target.clone());
        async move { Ok::<_, io::Error>(TokioIo::new(connecting.await?)) }
    });
    match timeout(settings.connect_timeout, endpoint.connect_with_connector(service)).await {
        Ok(Ok(channel)) => Ok(channel),
        Ok(Err(e)) => Err(error(causes(&e))),
        Err(_) => Err(error("timed out".to_owned())),
    }
}

fn stream_error(target: &Target, status: &Status) -> ClientError {
    let message = if status.message().is_empty() { causes(status) } else { status.message().to_owned() };
    ClientError::Stream { target: target.to_string(), code: status.code(), message }
}

/// An error and what caused it, on one line.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
}

async fn at(when: Option<Instant>) {
    match when {
        Some(when) => sleep_until(when).await,
        None => std::future::pending().await,
    }
}
