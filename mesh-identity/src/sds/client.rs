use std::{
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use futures_util::{StreamExt, stream::BoxStream};
use http::uri::PathAndQuery;
use mesh_xds::{
    TypeUrl,
    client::{
        Backoff, ClientCore, ClientRequest, ClientResponse, Delivery, Names, Protocol, Received, Rejection,
    },
    pb::envoy::{
        config::core::v3::Node,
        extensions::transport_sockets::tls::v3::Secret,
        service::discovery::v3::{
            DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
        },
    },
};
use prost::Message;
use tokio::{sync::mpsc, task::JoinHandle, time::Instant};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{
    Request, Status,
    client::Grpc,
    transport::{Channel, Endpoint},
};
use tonic_prost::ProstCodec;

use super::{
    ROOT, WORKLOAD,
    secrets::{RootSecret, SecretError, read_certificate, read_roots, wipe},
};
use crate::{
    clock::WallClock,
    identity::{Identity, IdentityPublisher},
    source::report_expiry,
    x509::{Credential, X509Error},
};

const STREAM_SECRETS: &str = "/envoy.service.secret.v3.SecretDiscoveryService/StreamSecrets";
const DELTA_SECRETS: &str = "/envoy.service.secret.v3.SecretDiscoveryService/DeltaSecrets";

/// A task that keeps an [`Identity`] up to date from an SDS server's `default` and `ROOTCA`, connecting again when the
/// stream ends. What came last is kept, also when the server takes it away. Dropping it stops the task.
#[derive(Debug)]
pub struct SdsSource {
    identity: Identity,
    task: JoinHandle<()>,
}

impl SdsSource {
    /// Starts the task. `node_id` is what the server sees as the caller's node. State-of-the-World is what every SDS
    /// server speaks; Delta moves only what changed. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// A path that does not fit a URI.
    pub fn spawn(
        socket: impl AsRef<Path>,
        node_id: &str,
        protocol: Protocol,
        clock: WallClock,
    ) -> Result<Self, Status> {
        let endpoint = Endpoint::from_shared(format!("unix://{}", socket.as_ref().display()))
            .map_err(|e| Status::invalid_argument(e.to_string()))?;
        let channel = endpoint.connect_timeout(Duration::from_secs(5)).connect_lazy();
        let (publisher, identity) = Identity::channel(clock);
        let node = Node { id: node_id.to_owned(), ..Node::default() };
        let mut core = ClientCore::new(protocol, node).with_missing_after(None);
        core.watch(&TypeUrl::SECRET, Names::of([WORKLOAD, ROOT]));
        let follower =
            Follower { channel, core, started: Instant::now(), publisher, secrets: Secrets::default() };
        let expiry = report_expiry(identity.clone());
        let task = tokio::spawn(async move {
            tokio::select! {
                () = follower.run() => {}
                () = expiry => {}
            }
        });
        Ok(Self { identity, task })
    }

    /// The identity.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }
}

impl Drop for SdsSource {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What has come so far; published when both are there.
#[derive(Debug, Default)]
pub(crate) struct Secrets {
    credential: Option<Arc<Credential>>,
    roots: Option<RootSecret>,
}

impl Secrets {
    /// Takes the secrets that are good, and says what is wrong with the others.
    fn take(&mut self, received: &[Received], now: SystemTime) -> Vec<Rejection> {
        let mut rejections = Vec::new();
        for one in received {
            if let Err(error) = self.take_one(&one.resource.value, now) {
                tracing::warn!(secret = one.name, reason = error.reason(), %error, "secret refused, the former stays");
                rejections.push(Rejection { name: one.name.clone(), reason: error.to_string() });
            }
        }
        rejections
    }

    /// Takes one secret if it is good; others than the two that were asked for are passed over.
    pub(crate) fn take_one(&mut self, message: &[u8], now: SystemTime) -> Result<(), SecretError> {
        let mut secret =
            Secret::decode(message).map_err(|e| SecretError::Malformed { detail: e.to_string() })?;
        match secret.name.as_str() {
            WORKLOAD => {
                let credential = read_certificate(&secret);
                wipe(&mut secret);
                let credential = credential?;
                credential.check_time(now)?;
                self.credential = Some(Arc::new(credential));
            }
            ROOT => self.roots = Some(read_roots(&secret)?),
            _ => {}
        }
        Ok(())
    }

    fn publish(&self, publisher: &IdentityPublisher) -> Result<(), X509Error> {
        let (Some(credential), Some(roots)) = (&self.credential, &self.roots) else { return Ok(()) };
        let trust_domain = credential.id().ok_or(X509Error::NoUriSan)?.trust_domain();
        publisher.publish(Some(credential.clone()), roots.bundle(trust_domain)?.into());
        Ok(())
    }
}

struct Follower {
    channel: Channel,
    core: ClientCore,
    started: Instant,
    publisher: IdentityPublisher,
    secrets: Secrets,
}

impl Follower {
    async fn run(mut self) {
        let (base, cap) = (Duration::from_millis(200), Duration::from_secs(30));
        let mut backoff = Backoff::with_range(base, cap, rand::random());
        loop {
            let revision = self.publisher.identity().current().revision;
            let Err(status) = self.stream().await;
            self.core.disconnected();
            if self.publisher.identity().current().revision > revision {
                backoff.reset();
            }
            tracing::debug!(code = ?status.code(), message = status.message(), "SDS stream ended, connecting again");
            tokio::time::sleep(backoff.next_delay()).await;
        }
    }

    async fn stream(&mut self) -> Result<std::convert::Infallible, Status> {
        let (requests, outgoing) = mpsc::unbounded_channel();
        self.core.connected();
        // Some servers answer, headers included, only after the first request.
        self.flush(&requests);
        let mut responses = self.open(outgoing).await?;
        loop {
            let response =
                responses.next().await.ok_or_else(|| Status::unavailable("the stream ended"))??;
            if let Some(Delivery { id, resources, .. }) = self.core.on_response(self.now(), response) {
                let rejections = self.secrets.take(&resources, self.publisher.identity().clock().now());
                if let Err(error) = self.secrets.publish(&self.publisher) {
                    tracing::error!(reason = error.reason(), %error, "secrets do not make an identity");
                }
                self.core.decide(self.now(), id, rejections);
            }
            self.flush(&requests);
        }
    }

    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    fn flush(&mut self, requests: &mpsc::UnboundedSender<ClientRequest>) {
        while let Some(request) = self.core.next_request(self.now()) {
            // A stream that ended shows at its responses.
            let _ = requests.send(request);
        }
    }

    async fn open(
        &self,
        outgoing: mpsc::UnboundedReceiver<ClientRequest>,
    ) -> Result<BoxStream<'static, Result<ClientResponse, Status>>, Status> {
        let mut grpc = Grpc::new(self.channel.clone());
        grpc.ready().await.map_err(|e| Status::unavailable(format!("not connected: {e}")))?;
        let outgoing = UnboundedReceiverStream::new(outgoing);
        match self.core.protocol() {
            Protocol::Sotw => {
                let requests = outgoing.filter_map(async |request| match request {
                    ClientRequest::Sotw(request) => Some(*request),
                    ClientRequest::Delta(_) => None,
                });
                let codec = ProstCodec::<DiscoveryRequest, DiscoveryResponse>::default();
                let path = PathAndQuery::from_static(STREAM_SECRETS);
                let response = grpc.streaming(Request::new(requests.boxed()), path, codec).await?;
                Ok(response.into_inner().map(|r| r.map(|r| ClientResponse::Sotw(Box::new(r)))).boxed())
            }
            Protocol::Delta => {
                let requests = outgoing.filter_map(async |request| match request {
                    ClientRequest::Delta(request) => Some(*request),
                    ClientRequest::Sotw(_) => None,
                });
                let codec = ProstCodec::<DeltaDiscoveryRequest, DeltaDiscoveryResponse>::default();
                let path = PathAndQuery::from_static(DELTA_SECRETS);
                let response = grpc.streaming(Request::new(requests.boxed()), path, codec).await?;
                Ok(response.into_inner().map(|r| r.map(|r| ClientResponse::Delta(Box::new(r)))).boxed())
            }
        }
    }
}
