use std::{path::Path, sync::Arc, time::Duration};

use http::uri::PathAndQuery;
use mesh_xds::{
    TypeUrl,
    pb::{
        envoy::{
            config::core::v3::Node,
            extensions::transport_sockets::tls::v3::Secret,
            service::discovery::v3::{DiscoveryRequest, DiscoveryResponse},
        },
        google::rpc,
    },
};
use prost::Message;
use tokio::{sync::mpsc, task::JoinHandle};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Request, Status,
    client::Grpc,
    transport::{Channel, Endpoint},
};
use tonic_prost::ProstCodec;

use super::{
    ROOT, WORKLOAD,
    secrets::{SecretError, read_certificate, read_roots},
};
use crate::{
    bundle::TrustBundle,
    clock::WallClock,
    identity::{Identity, IdentityPublisher},
    x509::{Credential, X509Error},
};

const STREAM_SECRETS: &str = "/envoy.service.secret.v3.SecretDiscoveryService/StreamSecrets";

/// A task that keeps an [`Identity`] up to date from an SDS server's `default` and `ROOTCA` (State-of-the-World, which
/// every SDS server speaks), connecting again when the stream ends. What came last is kept. Dropping it stops the task.
#[derive(Debug)]
pub struct SdsSource {
    identity: Identity,
    task: JoinHandle<()>,
}

impl SdsSource {
    /// Starts the task. `node_id` is what the server sees as the caller's node. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// A path that does not fit a URI.
    pub fn spawn(socket: impl AsRef<Path>, node_id: &str, clock: WallClock) -> Result<Self, Status> {
        let endpoint = Endpoint::from_shared(format!("unix://{}", socket.as_ref().display()))
            .map_err(|e| Status::invalid_argument(e.to_string()))?;
        let channel = endpoint.connect_timeout(Duration::from_secs(5)).connect_lazy();
        let (publisher, identity) = Identity::channel(clock);
        let node = Node { id: node_id.to_owned(), ..Node::default() };
        let task = tokio::spawn(Follower { channel, node, publisher, parts: Parts::default() }.run());
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
struct Parts {
    credential: Option<Arc<Credential>>,
    roots_pem: Option<Vec<u8>>,
}

impl Parts {
    /// Takes the secrets of a response that are good, and says what is wrong with the others.
    fn take(&mut self, response: &DiscoveryResponse) -> Result<(), SecretError> {
        let mut outcome = Ok(());
        for any in &response.resources {
            let read = Secret::decode(any.value.as_slice())
                .map_err(|e| SecretError::Malformed { detail: e.to_string() })
                .and_then(|secret| match secret.name.as_str() {
                    WORKLOAD => {
                        self.credential = Some(Arc::new(read_certificate(&secret)?));
                        Ok(())
                    }
                    ROOT => {
                        self.roots_pem = Some(read_roots(&secret)?);
                        Ok(())
                    }
                    _ => Ok(()),
                });
            outcome = outcome.and(read);
        }
        outcome
    }

    fn publish(&self, publisher: &IdentityPublisher) -> Result<(), SecretError> {
        let (Some(credential), Some(roots)) = (&self.credential, &self.roots_pem) else { return Ok(()) };
        let trust_domain = credential.id().ok_or(X509Error::NoUriSan)?.trust_domain();
        let bundle = TrustBundle::from_pem(trust_domain, roots)?;
        publisher.publish(Some(credential.clone()), bundle.into());
        Ok(())
    }
}

struct Follower {
    channel: Channel,
    node: Node,
    publisher: IdentityPublisher,
    parts: Parts,
}

impl Follower {
    async fn run(mut self) {
        const LONGEST: Duration = Duration::from_secs(30);
        let mut pause = Duration::from_millis(100);
        loop {
            let revision = self.publisher.identity().current().revision;
            let Err(status) = self.stream().await;
            if self.publisher.identity().current().revision > revision {
                pause = Duration::from_millis(100);
            }
            tracing::debug!(code = ?status.code(), message = status.message(), "SDS stream ended, connecting again");
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST);
        }
    }

    async fn stream(&mut self) -> Result<std::convert::Infallible, Status> {
        let (requests, outgoing) = mpsc::channel(4);
        let ended = || Status::unavailable("the stream ended");
        let first = DiscoveryRequest {
            node: Some(self.node.clone()),
            resource_names: vec![WORKLOAD.to_owned(), ROOT.to_owned()],
            type_url: TypeUrl::SECRET.as_str().to_owned(),
            ..DiscoveryRequest::default()
        };
        requests.send(first.clone()).await.map_err(|_| ended())?;
        let mut grpc = Grpc::new(self.channel.clone());
        grpc.ready().await.map_err(|e| Status::unavailable(format!("not connected: {e}")))?;
        let codec = ProstCodec::<DiscoveryRequest, DiscoveryResponse>::default();
        let path = PathAndQuery::from_static(STREAM_SECRETS);
        let response = grpc.streaming(Request::new(ReceiverStream::new(outgoing)), path, codec).await?;
        let mut responses = response.into_inner();
        let mut accepted_version = String::new();
        loop {
            let response = responses.message().await?.ok_or_else(ended)?;
            let outcome = self.parts.take(&response).and_then(|()| self.parts.publish(&self.publisher));
            let error_detail = match outcome {
                Ok(()) => {
                    accepted_version.clone_from(&response.version_info);
                    None
                }
                Err(error) => {
                    tracing::warn!(reason = error.reason(), %error, "secrets refused, keeping the former");
                    let invalid = tonic::Code::InvalidArgument as i32;
                    Some(rpc::Status { code: invalid, message: error.to_string(), details: Vec::new() })
                }
            };
            let answer = DiscoveryRequest {
                node: None,
                version_info: accepted_version.clone(),
                response_nonce: response.nonce,
                error_detail,
                ..first.clone()
            };
            requests.send(answer).await.map_err(|_| ended())?;
        }
    }
}
