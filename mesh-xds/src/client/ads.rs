//! The client over tonic.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tonic::metadata::MetadataMap;

use crate::pb::envoy::config::core::v3::Node;
use crate::resource::{Resource, TypeUrl};

use super::configuration::Configuration;
use super::connector::{Connector, Target};
use super::core::ClientCore;
use super::run::{self, Command, Settings};
use super::state::ResourceState;
use super::subscription::{Names, Protocol};
use super::warming::Candidate;
use super::watch::Watch;

/// Why a client could not be made or a stream failed.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// A server address cannot be used.
    #[error("server {uri:?} {message}")]
    Target {
        /// What was given.
        uri: String,
        /// What is wrong with it.
        message: String,
    },
    /// No server was named.
    #[error("no server is configured")]
    NoServer,
    /// The server could not be reached.
    #[error("cannot connect to {target}: {message}")]
    Connect {
        /// The server.
        target: String,
        /// The error and its causes.
        message: String,
    },
    /// The credentials for the stream could not be had.
    #[error("cannot get credentials: {message}")]
    Credentials {
        /// What the source of the credentials said.
        message: String,
    },
    /// The stream ended.
    #[error("the stream from {target} ended: {code:?}: {message}")]
    Stream {
        /// The server.
        target: String,
        /// The gRPC code.
        code: tonic::Code,
        /// The server's or the transport's words.
        message: String,
    },
    /// The type is watched by somebody else already.
    #[error("{type_url} is watched already")]
    Watched {
        /// The type.
        type_url: String,
    },
    /// The client's task is gone.
    #[error("the client has stopped")]
    Stopped,
}

impl ClientError {
    /// A stable label of low cardinality, for metrics.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Target { .. } => "target",
            Self::NoServer => "no_server",
            Self::Connect { .. } => "connect",
            Self::Credentials { .. } => "credentials",
            Self::Stream { .. } => "stream",
            Self::Watched { .. } => "watched",
            Self::Stopped => "stopped",
        }
    }
}

/// How the client stands with its server.
#[derive(Debug, Clone, Default)]
pub struct ConnectionState {
    /// Whether a stream is open and has proved good: it brought a response, or it has lasted for five seconds, as one does
    /// whose server has nothing new to say.
    pub connected: bool,
    /// The server of the newest attempt.
    pub server: String,
    /// How many streams were opened: the server answered, or the stream proved good without.
    pub streams: u64,
    /// Why the last stream or attempt ended.
    pub last_error: Option<ClientError>,
    /// What the server calls itself.
    pub control_plane: String,
}

/// Adds headers to the request that opens a stream.
pub(super) type HeaderFn = Arc<dyn Fn(&mut MetadataMap) -> Result<(), String> + Send + Sync>;

/// Builds an [`AdsClient`].
#[derive(Clone)]
pub struct AdsClientBuilder {
    pub(super) node: Node,
    servers: Vec<String>,
    protocol: Protocol,
    connector: Connector,
    headers: HeaderFn,
    missing_after: Option<Duration>,
    max_response_bytes: usize,
    connect_timeout: Duration,
    seed: u64,
}

impl AdsClientBuilder {
    /// Adds a server: `http://host:port`, `https://host:port` or `unix:///path`. With several, an attempt that fails, or
    /// a stream that ends before it proved good, moves on to the next one; after a good stream its server is tried again
    /// first. After the last one comes the first. A server that works is not left for an earlier one.
    #[must_use]
    pub fn server(mut self, uri: impl Into<String>) -> Self {
        self.servers.push(uri.into());
        self
    }

    /// Chooses the protocol. Default: Delta.
    #[must_use]
    pub const fn protocol(mut self, protocol: Protocol) -> Self {
        self.protocol = protocol;
        self
    }

    /// How servers are reached. Default: [`Connector::plaintext`].
    #[must_use]
    pub fn connector(mut self, connector: Connector) -> Self {
        self.connector = connector;
        self
    }

    /// Adds headers to each new stream; asked every time, so that a token is fresh.
    #[must_use]
    pub fn headers(
        mut self,
        headers: impl Fn(&mut MetadataMap) -> Result<(), String> + Send + Sync + 'static,
    ) -> Self {
        self.headers = Arc::new(headers);
        self
    }

    /// After which time a resource counts as missing; `None` waits forever. Default: 15 s.
    #[must_use]
    pub const fn missing_after(mut self, after: Option<Duration>) -> Self {
        self.missing_after = after;
        self
    }

    /// The largest response that is read. Default: 200 MiB, since a server may send everything at once.
    #[must_use]
    pub const fn max_response_bytes(mut self, bytes: usize) -> Self {
        self.max_response_bytes = bytes;
        self
    }

    /// How long one attempt to connect may take. Default: 5 s.
    #[must_use]
    pub const fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// The seed of the backoff's jitter. Default: from the node's id.
    #[must_use]
    pub const fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Starts the client on the current tokio runtime. It connects when something is watched.
    ///
    /// # Errors
    /// [`ClientError::Target`] or [`ClientError::NoServer`].
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn start(self) -> Result<AdsClient, ClientError> {
        let targets = self.servers.iter().map(|uri| Target::parse(uri)).collect::<Result<Vec<_>, _>>()?;
        if targets.is_empty() {
            return Err(ClientError::NoServer);
        }
        let core = ClientCore::new(self.protocol, self.node).with_missing_after(self.missing_after);
        let (commands, inbox) = mpsc::unbounded_channel();
        let (state, connection) = watch::channel(ConnectionState::default());
        let settings = Settings {
            targets,
            connector: self.connector,
            headers: self.headers,
            max_response_bytes: self.max_response_bytes,
            connect_timeout: self.connect_timeout,
            seed: self.seed,
        };
        tokio::spawn(run::run(core, settings, inbox, state));
        Ok(AdsClient { commands, connection })
    }
}

impl fmt::Debug for AdsClientBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AdsClientBuilder")
            .field("node", &self.node.id)
            .field("servers", &self.servers)
            .field("protocol", &self.protocol)
            .finish_non_exhaustive()
    }
}

/// An ADS client: one stream to a control plane, kept open for as long as any clone or watch of it lives.
///
/// What was accepted stays in use while the server is away; after a reconnect only what changed travels (Delta).
#[derive(Clone)]
pub struct AdsClient {
    commands: mpsc::UnboundedSender<Command>,
    connection: watch::Receiver<ConnectionState>,
}

impl AdsClient {
    /// A client that speaks for `node`.
    #[must_use]
    pub fn builder(node: Node) -> AdsClientBuilder {
        let seed = twox_hash::XxHash64::oneshot(u64::from(std::process::id()), node.id.as_bytes());
        AdsClientBuilder {
            node,
            servers: Vec::new(),
            protocol: Protocol::Delta,
            connector: Connector::plaintext(),
            headers: Arc::new(|_| Ok(())),
            missing_after: Some(Duration::from_secs(15)),
            max_response_bytes: 200 << 20,
            connect_timeout: Duration::from_secs(5),
            seed,
        }
    }

    /// Watches one type. Dropping the watch ends the subscription. A type has one watch at a time: a second one
    /// receives nothing and its `next` returns `None`.
    #[must_use]
    pub fn watch<T: Resource>(&self, names: Names) -> Watch<T> {
        let (events, inbox) = mpsc::unbounded_channel();
        // A client that has stopped drops the command and with it `events`: the watch then ends at once.
        let _ = self.commands.send(Command::Watch { type_url: T::TYPE, names, events });
        Watch::new(inbox, self.commands.clone())
    }

    /// Follows listeners, routes, clusters and endpoints in dependency order: all of LDS and CDS, and by name whatever
    /// RDS and EDS they refer to.
    ///
    /// `accept` decides about each resource before it is acknowledged; a reason rejects it, and the server is told.
    /// What was accepted is handed over by [`Configuration::next`] when it is warm.
    pub fn configuration(
        &self,
        accept: impl FnMut(Candidate<'_>) -> Result<(), String> + Send + 'static,
    ) -> Configuration {
        Configuration::new(self, false, Box::new(accept))
    }

    /// As [`configuration`](Self::configuration), with the secrets that TLS contexts take from ADS: they are watched too,
    /// and clusters and listeners wait for theirs. Secrets from a socket, a file or another server are the consumer's
    /// own business in either case.
    pub fn configuration_with_secrets(
        &self,
        accept: impl FnMut(Candidate<'_>) -> Result<(), String> + Send + 'static,
    ) -> Configuration {
        Configuration::new(self, true, Box::new(accept))
    }

    /// How the client stands with its server; changes wake the receiver.
    #[must_use]
    pub fn connection(&self) -> watch::Receiver<ConnectionState> {
        self.connection.clone()
    }

    /// The state of every resource that was asked for, by type and name. Cancel safe.
    ///
    /// # Errors
    /// [`ClientError::Stopped`] when the client's task is gone.
    pub async fn resources(&self) -> Result<BTreeMap<TypeUrl, BTreeMap<String, ResourceState>>, ClientError> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(Command::Resources(reply)).map_err(|_| ClientError::Stopped)?;
        answer.await.map_err(|_| ClientError::Stopped)
    }
}

impl fmt::Debug for AdsClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AdsClient").field("connection", &*self.connection.borrow()).finish_non_exhaustive()
    }
}
