use std::{
    convert::Infallible,
    fmt, io,
    os::unix::fs::PermissionsExt,
    path::Path,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures_util::{Stream, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use http::uri::PathAndQuery;
use prost::Message;
use tokio::{net::UnixListener, sync::mpsc};
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tonic::{
    Request, Response, Status,
    body::Body,
    server::{Grpc, NamedService, ServerStreamingService, UnaryService},
    transport::server::UdsConnectInfo,
};
use tonic_prost::ProstCodec;
use tower_service::Service;

use super::{SECURITY_HEADER, pb};
use crate::{
    bundle::BundleSet,
    identity::{Identity, IdentitySnapshot},
    jwt::{JwtSigner, JwtSvid},
};

/// What the kernel says about the process at the other end of a Unix socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerCredentials {
    /// The process.
    pub pid: Option<i32>,
    /// Its user.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
}

/// One identity that a workload has.
#[derive(Debug, Clone)]
pub struct Attested {
    /// The live identity; the workload gets its credential and bundles, and every change of them.
    pub identity: Identity,
    /// Tells the workload what the identity is for, when it has several.
    pub hint: String,
}

/// The caller has no identity, or it could not be found out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{detail}")]
pub struct AttestError {
    /// Why; logged, not told to the caller.
    pub detail: String,
}

/// Decides which identities a caller has.
pub trait Attestor: Send + Sync + fmt::Debug {
    /// The caller's identities, most preferred first.
    ///
    /// # Errors
    /// The caller has none.
    fn attest(&self, peer: PeerCredentials) -> BoxFuture<'_, Result<Vec<Attested>, AttestError>>;
}

/// The Workload API of the workloads that an attestor knows.
#[derive(Debug, Clone)]
pub struct WorkloadApiServer {
    attestor: Arc<dyn Attestor>,
    jwt: Option<(Arc<JwtSigner>, Duration)>,
}

impl WorkloadApiServer {
    /// Serves X.509-SVIDs and bundles.
    pub fn new(attestor: impl Attestor + 'static) -> Self {
        Self { attestor: Arc::new(attestor), jwt: None }
    }

    /// Also issues JWT-SVIDs, signed with `signer` and valid for `lifetime`. The bundles of the identities must hold
    /// the signer's key for others to accept them.
    #[must_use]
    pub fn with_jwt(mut self, signer: Arc<JwtSigner>, lifetime: Duration) -> Self {
        self.jwt = Some((signer, lifetime));
        self
    }

    /// The tonic service. Its connections must be Unix sockets.
    pub fn into_service(self) -> WorkloadApiService {
        WorkloadApiService(Arc::new(self))
    }

    /// The caller's identities; refuses calls that did not come as the standard says.
    async fn attest<T>(&self, request: &Request<T>) -> Result<Vec<Attested>, Status> {
        let header = request.metadata().get(SECURITY_HEADER).map(|value| value.as_bytes());
        if header != Some(b"true") {
            return Err(Status::invalid_argument("metadata `workload.spiffe.io: true` is missing"));
        }
        let info = request.extensions().get::<UdsConnectInfo>().and_then(|info| info.peer_cred);
        let peer = info.ok_or_else(|| Status::permission_denied("the caller cannot be identified"))?;
        let peer = PeerCredentials { pid: peer.pid(), uid: peer.uid(), gid: peer.gid() };
        match self.attestor.attest(peer).await {
            Ok(attested) if !attested.is_empty() => Ok(attested),
            outcome => {
                let why = outcome.err().map_or_else(|| "no identity".to_owned(), |error| error.detail);
                tracing::warn!(?peer, why, "workload has no identity");
                Err(Status::permission_denied("no identity issued"))
            }
        }
    }

    /// Sends `make`'s message of the identities now and after each change, for as long as the caller listens.
    fn follow<T: Message + Clone + PartialEq + 'static>(
        attested: Vec<Attested>,
        make: Make<T>,
    ) -> ResponseStream<T> {
        let (messages, stream) = mpsc::channel(1);
        tokio::spawn(async move {
            let mut changes: Vec<_> = attested.iter().map(|one| one.identity.subscribe()).collect();
            let mut last = None;
            loop {
                changes.iter_mut().for_each(|receiver| receiver.mark_unchanged());
                let usable = attested.iter().filter(|one| one.identity.is_ready());
                let snapshots: Vec<_> =
                    usable.map(|one| (one.identity.current(), one.hint.clone())).collect();
                let message = make(&snapshots);
                if let Some(message) = message.filter(|message| last.as_ref() != Some(message)) {
                    if messages.send(Ok(message.clone())).await.is_err() {
                        return;
                    }
                    last = Some(message);
                }
                let mut changed: FuturesUnordered<_> = changes.iter_mut().map(|c| c.changed()).collect();
                tokio::select! {
                    _ = changed.next() => {}
                    () = messages.closed() => return,
                }
            }
        });
        Box::pin(ReceiverStream::new(stream))
    }

    fn issue_jwt(
        &self,
        attested: &[Attested],
        request: &pb::JwtSvidRequest,
    ) -> Result<pb::JwtSvidResponse, Status> {
        if request.audience.is_empty() {
            return Err(Status::invalid_argument("audience is empty"));
        }
        let (signer, lifetime) =
            self.jwt.as_ref().ok_or_else(|| Status::unimplemented("JWT-SVIDs are not issued"))?;
        let mut svids = Vec::new();
        for one in attested {
            let Some(id) = one.identity.current().id().cloned() else { continue };
            if !request.spiffe_id.is_empty() && request.spiffe_id != id.as_str() {
                continue;
            }
            let now = one.identity.clock().now();
            let svid = JwtSvid::mint(signer, &id, &request.audience, now, *lifetime)
                .map_err(|_| Status::internal("the token cannot be signed"))?;
            svids.push(pb::JwtSvidMessage { spiffe_id: id.to_string(), svid, hint: one.hint.clone() });
        }
        if svids.is_empty() {
            return Err(Status::permission_denied("no identity issued"));
        }
        Ok(pb::JwtSvidResponse { svids })
    }

    fn validate_jwt(
        attested: &[Attested],
        request: &pb::ValidateJwtSvidRequest,
    ) -> Result<pb::ValidateJwtSvidResponse, Status> {
        if request.audience.is_empty() {
            return Err(Status::invalid_argument("audience is empty"));
        }
        let mut refusal = Status::permission_denied("no identity issued");
        for one in attested {
            let bundles = one.identity.current().bundles.clone();
            let now = one.identity.clock().now();
            match JwtSvid::validate(&request.svid, &bundles, &[&request.audience], now) {
                Ok(svid) => {
                    let claims = svid.claims().as_map().clone();
                    let claims = prost_types::Struct {
                        fields: claims.into_iter().map(|(name, value)| (name, to_proto(value))).collect(),
                    };
                    let spiffe_id = svid.id().to_string();
                    return Ok(pb::ValidateJwtSvidResponse { spiffe_id, claims: Some(claims) });
                }
                Err(error) => refusal = Status::invalid_argument(error.to_string()),
            }
        }
        Err(refusal)
    }
}

fn to_proto(value: serde_json::Value) -> prost_types::Value {
    use prost_types::value::Kind;
    use serde_json::Value as Json;
    let kind = match value {
        Json::Null => Kind::NullValue(0),
        Json::Bool(value) => Kind::BoolValue(value),
        Json::Number(number) => Kind::NumberValue(number.as_f64().unwrap_or_default()),
        Json::String(text) => Kind::StringValue(text),
        Json::Array(values) => {
            Kind::ListValue(prost_types::ListValue { values: values.into_iter().map(to_proto).collect() })
        }
        Json::Object(fields) => Kind::StructValue(prost_types::Struct {
            fields: fields.into_iter().map(|(name, value)| (name, to_proto(value))).collect(),
        }),
    };
    prost_types::Value { kind: Some(kind) }
}

/// One after the other, as the standard wants chains and bundles: DER has its own lengths.
fn concatenated<T: AsRef<[u8]>>(ders: impl IntoIterator<Item = T>) -> bytes::Bytes {
    ders.into_iter()
        .fold(Vec::new(), |mut all, der| {
            all.extend_from_slice(der.as_ref());
            all
        })
        .into()
}

/// Adds the revocation lists of all bundles, each once: identities often share their bundles.
fn add_crls(crls: &mut Vec<bytes::Bytes>, bundles: &BundleSet) {
    for der in bundles.iter().flat_map(|bundle| bundle.crl_ders()) {
        if !crls.iter().any(|known| known[..] == der[..]) {
            crls.push(bytes::Bytes::copy_from_slice(der));
        }
    }
}

fn x509_svids(snapshots: &[(Arc<IdentitySnapshot>, String)]) -> Option<pb::X509SvidResponse> {
    let mut response = pb::X509SvidResponse::default();
    for (snapshot, hint) in snapshots {
        let (Some(credential), Some(id)) = (&snapshot.credential, snapshot.id()) else { continue };
        for bundle in snapshot.bundles.iter() {
            if bundle.trust_domain().as_str() != id.trust_domain_str() {
                let roots = concatenated(bundle.roots());
                response.federated_bundles.insert(bundle.trust_domain().id().to_string(), roots);
            }
        }
        add_crls(&mut response.crl, &snapshot.bundles);
        response.svids.push(pb::X509Svid {
            spiffe_id: id.to_string(),
            x509_svid: concatenated(credential.chain()),
            x509_svid_key: credential.key().to_pkcs8().ok()?.to_vec(),
            bundle: concatenated(snapshot.bundles.get(id.trust_domain_str())?.roots()),
            hint: hint.clone(),
        });
    }
    (!response.svids.is_empty()).then_some(response)
}

fn x509_bundles(snapshots: &[(Arc<IdentitySnapshot>, String)]) -> Option<pb::X509BundlesResponse> {
    let mut response = pb::X509BundlesResponse::default();
    for (snapshot, _) in snapshots {
        for bundle in snapshot.bundles.iter() {
            response.bundles.insert(bundle.trust_domain().id().to_string(), concatenated(bundle.roots()));
        }
        add_crls(&mut response.crl, &snapshot.bundles);
    }
    (!response.bundles.is_empty()).then_some(response)
}

fn jwt_bundles(snapshots: &[(Arc<IdentitySnapshot>, String)]) -> Option<pb::JwtBundlesResponse> {
    let bundles = snapshots.iter().flat_map(|(snapshot, _)| snapshot.bundles.iter());
    let bundles: std::collections::BTreeMap<_, _> = bundles
        .map(|bundle| {
            let keys: Vec<_> = bundle.jwt_authorities().keys().iter().map(|k| k.to_jwk("jwt-svid")).collect();
            let document = serde_json::json!({"keys": keys}).to_string();
            (bundle.trust_domain().id().to_string(), document.into())
        })
        .collect();
    (!bundles.is_empty()).then_some(pb::JwtBundlesResponse { bundles })
}

/// Makes a message of the identities, with their hints; `None` when there is nothing to say yet.
type Make<T> = fn(&[(Arc<IdentitySnapshot>, String)]) -> Option<T>;

type ResponseStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The tonic service of a [`WorkloadApiServer`].
#[derive(Debug, Clone)]
pub struct WorkloadApiService(Arc<WorkloadApiServer>);

impl NamedService for WorkloadApiService {
    const NAME: &'static str = pb::SERVICE_NAME;
}

impl Service<http::Request<Body>> for WorkloadApiService {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let server = self.0.clone();
        let path =
            PathAndQuery::path(request.uri().path_and_query().unwrap_or(&PathAndQuery::from_static("/")))
                .to_owned();
        Box::pin(async move {
            Ok(match path.as_str() {
                pb::FETCH_X509_SVID => {
                    Grpc::new(ProstCodec::default())
                        .server_streaming(Follow(server, x509_svids), request)
                        .await
                }
                pb::FETCH_X509_BUNDLES => {
                    Grpc::new(ProstCodec::default())
                        .server_streaming(Follow(server, x509_bundles), request)
                        .await
                }
                pb::FETCH_JWT_BUNDLES => {
                    Grpc::new(ProstCodec::default())
                        .server_streaming(Follow(server, jwt_bundles), request)
                        .await
                }
                pb::FETCH_JWT_SVID => Grpc::new(ProstCodec::default()).unary(IssueJwt(server), request).await,
                pb::VALIDATE_JWT_SVID => {
                    Grpc::new(ProstCodec::default()).unary(ValidateJwt(server), request).await
                }
                _ => Status::unimplemented("no such method").into_http(),
            })
        })
    }
}

struct Follow<T>(Arc<WorkloadApiServer>, Make<T>);

impl<T: Message + Clone + PartialEq + 'static> ServerStreamingService<pb::Empty> for Follow<T> {
    type Response = T;
    type ResponseStream = ResponseStream<T>;
    type Future = BoxFuture<'static, Result<Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, request: Request<pb::Empty>) -> Self::Future {
        let (server, make) = (self.0.clone(), self.1);
        Box::pin(async move {
            let attested = server.attest(&request).await?;
            Ok(Response::new(WorkloadApiServer::follow(attested, make)))
        })
    }
}

struct IssueJwt(Arc<WorkloadApiServer>);

impl UnaryService<pb::JwtSvidRequest> for IssueJwt {
    type Response = pb::JwtSvidResponse;
    type Future = BoxFuture<'static, Result<Response<Self::Response>, Status>>;

    fn call(&mut self, request: Request<pb::JwtSvidRequest>) -> Self::Future {
        let server = self.0.clone();
        Box::pin(async move {
            let attested = server.attest(&request).await?;
            server.issue_jwt(&attested, request.get_ref()).map(Response::new)
        })
    }
}

struct ValidateJwt(Arc<WorkloadApiServer>);

impl UnaryService<pb::ValidateJwtSvidRequest> for ValidateJwt {
    type Response = pb::ValidateJwtSvidResponse;
    type Future = BoxFuture<'static, Result<Response<Self::Response>, Status>>;

    fn call(&mut self, request: Request<pb::ValidateJwtSvidRequest>) -> Self::Future {
        let server = self.0.clone();
        Box::pin(async move {
            let attested = server.attest(&request).await?;
            WorkloadApiServer::validate_jwt(&attested, request.get_ref()).map(Response::new)
        })
    }
}

/// Serves a tonic router's services on a Unix socket with these permission bits, until the future is dropped. A socket
/// that a former process left behind is replaced.
///
/// # Errors
/// The socket cannot be made, or the server failed.
pub async fn serve_unix(
    path: impl AsRef<Path>,
    mode: u32,
    router: tonic::transport::server::Router,
) -> io::Result<()> {
    let listener = bind_unix(path.as_ref(), mode)?;
    router.serve_with_incoming(UnixListenerStream::new(listener)).await.map_err(io::Error::other)
}

/// Binds a Unix socket under a temporary name, sets its mode, then moves it into place: nobody ever sees it with other
/// permissions.
fn bind_unix(path: &Path, mode: u32) -> io::Result<UnixListener> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{}", std::process::id()));
    match std::fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&temporary)?;
    std::fs::set_permissions(&temporary, std::fs::Permissions::from_mode(mode))?;
    std::fs::rename(&temporary, path)?;
    Ok(listener)
}
