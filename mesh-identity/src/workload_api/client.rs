use std::{path::Path, sync::Arc, time::Duration};

use http::uri::PathAndQuery;
use rustls::pki_types::CertificateDer;
use tokio::task::JoinHandle;
use tonic::{
    Request, Status, Streaming,
    client::Grpc,
    metadata::MetadataValue,
    transport::{Channel, Endpoint},
};
use tonic_prost::ProstCodec;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{SECURITY_HEADER, pb};
use crate::{
    bundle::{BundleSet, MAX_ROOTS, TrustBundle},
    clock::WallClock,
    id::{SpiffeId, SpiffeIdError, TrustDomain},
    identity::{Identity, IdentityPublisher},
    jwt::{JwkSet, JwtError},
    source::report_expiry,
    x509::{Credential, PrivateKey, X509Error},
};

/// A client of the Workload API. Cheap to clone.
#[derive(Debug, Clone)]
pub struct WorkloadApiClient {
    channel: Channel,
}

/// One message of the X.509 stream: the workload's default SVID, and whom to trust.
#[derive(Debug, Clone)]
pub struct X509Context {
    /// The first SVID of the message.
    pub credential: Arc<Credential>,
    /// Further SVIDs with their hints.
    pub others: Vec<(Arc<Credential>, String)>,
    /// The own bundle and those of federated domains.
    pub bundles: BundleSet,
}

impl WorkloadApiClient {
    /// Connects, when first used, to the API's Unix socket.
    ///
    /// # Errors
    /// A path that does not fit a URI.
    pub fn new(socket: impl AsRef<Path>) -> Result<Self, WorkloadApiError> {
        let path = socket.as_ref().display();
        let endpoint = Endpoint::from_shared(format!("unix://{path}"))
            .map_err(|e| WorkloadApiError::Address { detail: e.to_string() })?;
        Ok(Self { channel: endpoint.connect_timeout(Duration::from_secs(5)).connect_lazy() })
    }

    /// Opens the stream of X.509-SVIDs.
    ///
    /// # Errors
    /// The API cannot be reached or refused.
    pub async fn x509_contexts(&self) -> Result<X509Contexts, WorkloadApiError> {
        let mut grpc = self.ready().await?;
        let path = PathAndQuery::from_static(pb::FETCH_X509_SVID);
        let codec = ProstCodec::<pb::Empty, pb::X509SvidResponse>::default();
        let stream = grpc.server_streaming(request(pb::Empty {}), path, codec).await?;
        Ok(X509Contexts(stream.into_inner()))
    }

    /// Gets JWT-SVIDs for these audiences, for `id` or for all of the workload's identities.
    ///
    /// # Errors
    /// The API cannot be reached or refused.
    pub async fn jwt_svids(
        &self,
        audience: &[String],
        id: Option<&SpiffeId>,
    ) -> Result<Vec<(SpiffeId, String)>, WorkloadApiError> {
        let mut grpc = self.ready().await?;
        let message = pb::JwtSvidRequest {
            audience: audience.to_vec(),
            spiffe_id: id.map(SpiffeId::to_string).unwrap_or_default(),
        };
        let path = PathAndQuery::from_static(pb::FETCH_JWT_SVID);
        let codec = ProstCodec::<_, pb::JwtSvidResponse>::default();
        let response = grpc.unary(request(message), path, codec).await?;
        let svids = response.into_inner().svids.into_iter();
        svids.map(|svid| Ok((SpiffeId::parse(&svid.spiffe_id)?, svid.svid))).collect()
    }

    /// Gets the keys that JWT-SVIDs are checked with, by trust domain, as they are now.
    ///
    /// # Errors
    /// The API cannot be reached, refused, or sent something malformed.
    pub async fn jwt_bundles(&self) -> Result<Vec<(TrustDomain, JwkSet)>, WorkloadApiError> {
        let mut grpc = self.ready().await?;
        let path = PathAndQuery::from_static(pb::FETCH_JWT_BUNDLES);
        let codec = ProstCodec::<pb::Empty, pb::JwtBundlesResponse>::default();
        let mut stream = grpc.server_streaming(request(pb::Empty {}), path, codec).await?.into_inner();
        let response = stream.message().await?.ok_or(WorkloadApiError::Ended)?;
        let bundles = response.bundles.into_iter();
        bundles.map(|(id, document)| Ok((trust_domain(&id)?, JwkSet::from_json(&document)?))).collect()
    }

    /// Gets the X.509 roots by trust domain, as they are now, for a caller that only verifies others. The message does
    /// not say whose the revocation lists are, so every bundle gets all of them; each counts for its issuer only.
    ///
    /// # Errors
    /// The API cannot be reached, refused, or sent something malformed.
    pub async fn x509_bundles(&self) -> Result<BundleSet, WorkloadApiError> {
        let mut grpc = self.ready().await?;
        let path = PathAndQuery::from_static(pb::FETCH_X509_BUNDLES);
        let codec = ProstCodec::<pb::Empty, pb::X509BundlesResponse>::default();
        let mut stream = grpc.server_streaming(request(pb::Empty {}), path, codec).await?.into_inner();
        let response = stream.message().await?.ok_or(WorkloadApiError::Ended)?;
        let mut bundles = BundleSet::new();
        for (id, ders) in &response.bundles {
            bundles.insert(TrustBundle::new(trust_domain(id)?, split(ders, MAX_ROOTS)?)?);
        }
        Ok(with_crls(&bundles, &response.crl)?)
    }

    /// Has the API validate a JWT-SVID for an audience.
    ///
    /// # Errors
    /// The API cannot be reached, or the token is not good.
    pub async fn validate_jwt(&self, token: &str, audience: &str) -> Result<SpiffeId, WorkloadApiError> {
        let mut grpc = self.ready().await?;
        let message = pb::ValidateJwtSvidRequest { audience: audience.to_owned(), svid: token.to_owned() };
        let path = PathAndQuery::from_static(pb::VALIDATE_JWT_SVID);
        let codec = ProstCodec::<_, pb::ValidateJwtSvidResponse>::default();
        let response = grpc.unary(request(message), path, codec).await?;
        Ok(SpiffeId::parse(&response.into_inner().spiffe_id)?)
    }

    async fn ready(&self) -> Result<Grpc<Channel>, WorkloadApiError> {
        let mut grpc = Grpc::new(self.channel.clone());
        grpc.ready().await.map_err(|e| Status::unavailable(format!("not connected: {e}")))?;
        Ok(grpc)
    }
}

fn request<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert(SECURITY_HEADER, MetadataValue::from_static("true"));
    request
}

/// The stream of [`WorkloadApiClient::x509_contexts`].
#[derive(Debug)]
pub struct X509Contexts(Streaming<pb::X509SvidResponse>);

impl X509Contexts {
    /// Waits for the next message. Cancel safe.
    ///
    /// # Errors
    /// The stream failed or ended, or a message is malformed.
    pub async fn next(&mut self) -> Result<X509Context, WorkloadApiError> {
        let response = self.0.message().await?.ok_or(WorkloadApiError::Ended)?;
        read_response(response)
    }
}

fn read_response(response: pb::X509SvidResponse) -> Result<X509Context, WorkloadApiError> {
    let mut bundles = BundleSet::new();
    for (id, ders) in &response.federated_bundles {
        bundles.insert(TrustBundle::new(trust_domain(id)?, split(ders, MAX_ROOTS)?)?);
    }
    let mut credentials = Vec::new();
    for mut svid in response.svids {
        let id = SpiffeId::parse(&svid.spiffe_id)?;
        let key = PrivateKey::from_pkcs8(std::mem::take(&mut svid.x509_svid_key));
        let credential = Credential::svid(split(&svid.x509_svid, crate::x509::MAX_CHAIN)?, key)?;
        if credential.id() != Some(&id) {
            return Err(
                X509Error::Denied { id, expected: "the ID of the message's certificate".into() }.into()
            );
        }
        let bundle = TrustBundle::new(id.trust_domain(), split(&svid.bundle, MAX_ROOTS)?)?;
        bundles.merge(&bundle.into())?;
        credentials.push((Arc::new(credential), std::mem::take(&mut svid.hint)));
    }
    let bundles = with_crls(&bundles, &response.crl)?;
    let mut credentials = credentials.into_iter();
    let (credential, _) = credentials.next().ok_or(X509Error::NoCertificate)?;
    Ok(X509Context { credential, others: credentials.collect(), bundles })
}

/// Gives every bundle all revocation lists: the message does not say whose they are, and each counts for its issuer only.
fn with_crls(bundles: &BundleSet, crls: &[bytes::Bytes]) -> Result<BundleSet, X509Error> {
    let with_crls = |bundle: &TrustBundle| {
        let mut bundle = bundle.clone();
        bundle.set_crls(crls.iter().map(|der| der.to_vec()))?;
        Ok(bundle)
    };
    bundles.iter().map(with_crls).collect()
}

/// The message that [`read_message`] reads, for one SVID.
#[cfg(test)]
pub(crate) fn message_of(svid: &Credential, bundle: &TrustBundle) -> Vec<u8> {
    let joined =
        |ders: &[CertificateDer<'static>]| ders.iter().flat_map(|der| der.to_vec()).collect::<Vec<u8>>();
    let svid = pb::X509Svid {
        spiffe_id: svid.id().map(ToString::to_string).unwrap_or_default(),
        x509_svid: joined(svid.chain()).into(),
        x509_svid_key: svid.key().secret_der().to_vec(),
        bundle: joined(bundle.roots()).into(),
        hint: String::new(),
    };
    prost::Message::encode_to_vec(&pb::X509SvidResponse { svids: vec![svid], ..Default::default() })
}

/// As [`X509Contexts::next`], from a message's bytes, for fuzzing.
pub(crate) fn read_message(bytes: &[u8]) -> Result<X509Context, WorkloadApiError> {
    let response = prost::Message::decode(bytes).map_err(|e| Status::internal(e.to_string()))?;
    read_response(response)
}

/// Splits certificates that stand one after the other.
pub(crate) fn split(mut ders: &[u8], most: usize) -> Result<Vec<CertificateDer<'static>>, X509Error> {
    let mut certificates = Vec::new();
    while !ders.is_empty() {
        if certificates.len() == most {
            return Err(X509Error::ChainTooLong { count: most + 1 });
        }
        let (rest, _) =
            X509Certificate::from_der(ders).map_err(|e| X509Error::Der { detail: e.to_string() })?;
        certificates.push(CertificateDer::from(ders[..ders.len() - rest.len()].to_vec()));
        ders = rest;
    }
    Ok(certificates)
}

fn trust_domain(id: &str) -> Result<TrustDomain, SpiffeIdError> {
    TrustDomain::parse(id.strip_prefix("spiffe://").unwrap_or(id))
}

/// A task that keeps an [`Identity`] up to date from a Workload API, connecting again when the stream ends. Dropping
/// it stops the task.
#[derive(Debug)]
pub struct WorkloadApiSource {
    identity: Identity,
    task: JoinHandle<()>,
}

impl WorkloadApiSource {
    /// Starts the task. Must be called within a tokio runtime.
    pub fn spawn(client: WorkloadApiClient, clock: WallClock) -> Self {
        let (publisher, identity) = Identity::channel(clock);
        let expiry = report_expiry(identity.clone());
        let task = tokio::spawn(async move {
            tokio::select! {
                () = follow(client, publisher) => {}
                () = expiry => {}
            }
        });
        Self { identity, task }
    }

    /// The identity.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }
}

impl Drop for WorkloadApiSource {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn follow(client: WorkloadApiClient, publisher: IdentityPublisher) {
    const LONGEST: Duration = Duration::from_secs(30);
    let mut pause = Duration::from_millis(100);
    loop {
        let outcome = async {
            let mut contexts = client.x509_contexts().await?;
            loop {
                let context = contexts.next().await?;
                // What cannot be presented does not replace what can; the next stream begins with it again.
                context.credential.check_time(publisher.identity().clock().now())?;
                publisher.publish(Some(context.credential), context.bundles);
                pause = Duration::from_millis(100);
            }
        };
        let Err::<(), WorkloadApiError>(error) = outcome.await else { continue };
        if error.is_withdrawal() {
            tracing::warn!(%error, "the identity was withdrawn");
            publisher.publish(None, BundleSet::new());
        }
        tracing::debug!(reason = error.reason(), %error, "Workload API stream ended, connecting again");
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST);
    }
}

/// Why the Workload API gave nothing usable.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WorkloadApiError {
    /// The socket's path is not usable.
    #[error("address: {detail}")]
    Address {
        /// What is wrong.
        detail: String,
    },
    /// The API refused or could not be reached.
    #[error("the Workload API answered {code:?}: {message}", code = status.code(), message = status.message())]
    Refused {
        /// What it answered.
        status: Box<Status>,
    },
    /// The stream ended.
    #[error("the stream ended")]
    Ended,
    /// A name that is not valid.
    #[error(transparent)]
    Name {
        /// The rule it breaks.
        #[from]
        source: SpiffeIdError,
    },
    /// Certificates or keys that are not good.
    #[error(transparent)]
    Certificate {
        /// What is wrong.
        #[from]
        source: X509Error,
    },
    /// JWT keys that are not good.
    #[error(transparent)]
    Keys {
        /// What is wrong.
        #[from]
        source: JwtError,
    },
}

impl From<Status> for WorkloadApiError {
    fn from(status: Status) -> Self {
        Self::Refused { status: Box::new(status) }
    }
}

impl WorkloadApiError {
    /// A stable label of low cardinality, for metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Address { .. } => "address",
            Self::Refused { .. } => "refused",
            Self::Ended => "ended",
            Self::Name { source } => source.reason(),
            Self::Certificate { source } => source.reason(),
            Self::Keys { source } => source.reason(),
        }
    }

    /// Whether the API says that the workload has no identity (any more): the standard wants it to be given up at once.
    fn is_withdrawal(&self) -> bool {
        matches!(self, Self::Refused { status } if status.code() == tonic::Code::PermissionDenied)
    }
}
