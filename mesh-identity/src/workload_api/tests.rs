use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{BoxFuture, FutureExt, ready};
use tonic::transport::Server;

use super::*;
use crate::{
    Ca, Identity, IdentityPublisher, SpiffeId, TrustDomain, WallClock,
    ca::{IssuancePolicy, RootOptions},
    jwt::{JwtSigner, JwtSvid},
};

/// Gives an identity to every process of one user.
#[derive(Debug)]
struct OneUser {
    uid: u32,
    identity: Identity,
}

impl Attestor for OneUser {
    fn attest(&self, peer: PeerCredentials) -> BoxFuture<'_, Result<Vec<Attested>, AttestError>> {
        let attested = Attested { identity: self.identity.clone(), hint: "main".to_owned() };
        let refused = AttestError { detail: format!("user {} is not known", peer.uid) };
        ready(if peer.uid == self.uid { Ok(vec![attested]) } else { Err(refused) }).boxed()
    }
}

/// Gives every caller the same identities.
#[derive(Debug)]
struct Several(Vec<Identity>);

impl Attestor for Several {
    fn attest(&self, _: PeerCredentials) -> BoxFuture<'_, Result<Vec<Attested>, AttestError>> {
        let attested = |identity: &Identity| Attested { identity: identity.clone(), hint: String::new() };
        ready(Ok(self.0.iter().map(attested).collect())).boxed()
    }
}

struct Setup {
    ca: Ca,
    publisher: IdentityPublisher,
    signer: Arc<JwtSigner>,
    client: WorkloadApiClient,
    directory: tempfile::TempDir,
}

impl Setup {
    async fn start(uid_offset: u32) -> Self {
        let domain = TrustDomain::parse("td.example").unwrap();
        let ca = Ca::create(domain, &RootOptions::default(), IssuancePolicy::default(), WallClock::system());
        let (publisher, identity) = Identity::channel(WallClock::system());
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("workload.sock");
        // The test's own user, as the file system knows it.
        let uid = std::os::unix::fs::MetadataExt::uid(&std::fs::metadata(directory.path()).unwrap());
        let signer = Arc::new(JwtSigner::generate().unwrap());
        let attestor = OneUser { uid: uid + uid_offset, identity };
        let server = WorkloadApiServer::new(attestor).with_jwt(signer.clone(), Duration::from_secs(300));
        let router = Server::builder().add_service(server.into_service());
        let serving = serve_unix(socket.clone(), 0o600, router);
        tokio::spawn(serving);
        while !socket.exists() {
            tokio::task::yield_now().await;
        }
        let client = WorkloadApiClient::new(&socket).unwrap();
        let setup = Self { ca: ca.unwrap(), publisher, signer, client, directory };
        setup.renew();
        setup
    }

    fn renew(&self) -> String {
        let credential = self.ca.issue_svid(&web(), None).unwrap();
        let serial = credential.serial().to_owned();
        let mut bundle = self.ca.bundle();
        bundle.set_jwt_authorities(self.signer.jwks());
        self.publisher.publish(Some(Arc::new(credential)), bundle.into());
        serial
    }
}

fn web() -> SpiffeId {
    SpiffeId::parse("spiffe://td.example/web").unwrap()
}

#[tokio::test]
async fn svids_stream_and_follow_rotation() {
    let setup = Setup::start(0).await;
    let source = WorkloadApiSource::spawn(setup.client.clone(), WallClock::system());
    source.identity().ready().await;
    assert_eq!(source.identity().current().id(), Some(&web()));
    let mut changes = source.identity().subscribe();
    let serial = setup.renew();
    let followed = async {
        while source.identity().current().credential.as_ref().unwrap().serial() != serial {
            changes.changed().await.unwrap();
        }
    };
    tokio::time::timeout(Duration::from_secs(5), followed).await.unwrap();
    let roots = setup.ca.bundle();
    assert_eq!(source.identity().current().bundles.get("td.example").unwrap().roots(), roots.roots());
}

#[tokio::test]
async fn a_source_takes_nothing_that_is_over_and_says_when_its_certificate_is() {
    let setup = Setup::start(0).await;
    // The workload's clock runs ahead of its agent's, step by step.
    let ahead = Arc::new(std::sync::atomic::AtomicU64::new(0));
    let seconds = ahead.clone();
    let clock = WallClock::from_fn(move || {
        let ahead = seconds.load(std::sync::atomic::Ordering::Relaxed);
        std::time::SystemTime::now() + Duration::from_secs(ahead)
    });
    let life = setup.ca.policy().default_lifetime;
    ahead.store(life.as_secs() - 2, std::sync::atomic::Ordering::Relaxed);
    let source = WorkloadApiSource::spawn(setup.client.clone(), clock);
    source.identity().ready().await;
    let mut changes = source.identity().subscribe();
    let expired = async {
        while !matches!(source.identity().state(), crate::IdentityState::Expired { .. }) {
            changes.changed().await.unwrap();
        }
    };
    tokio::time::timeout(Duration::from_secs(10), expired).await.expect("told when it is over");

    let good = source.identity().current().credential.as_ref().unwrap().serial().to_owned();
    ahead.store(life.as_secs() + 60, std::sync::atomic::Ordering::Relaxed);
    setup.renew();
    let refused = setup.client.x509_contexts().await.unwrap().next().await.unwrap();
    assert!(refused.credential.check_time(source.identity().clock().now()).is_err());
    let other = tokio::time::timeout(Duration::from_millis(300), changes.changed()).await;
    assert!(other.is_err(), "nothing is published");
    assert_eq!(source.identity().current().credential.as_ref().unwrap().serial(), good);
    ahead.store(0, std::sync::atomic::Ordering::Relaxed);
    tokio::time::timeout(Duration::from_secs(10), source.identity().ready())
        .await
        .expect("recovers by itself");
}

#[tokio::test]
async fn revocation_lists_travel_with_the_bundle() {
    let setup = Setup::start(0).await;
    setup.ca.revoke([setup.renew()]).unwrap();
    setup.renew();
    let context = setup.client.x509_contexts().await.unwrap().next().await.unwrap();
    assert_eq!(context.bundles.get("td.example").unwrap().crl_ders().len(), 1);
    assert_eq!(setup.client.x509_bundles().await.unwrap(), setup.ca.bundle_set());
}

#[tokio::test]
async fn revocation_lists_of_federated_domains_and_of_every_identity_travel_too() {
    let new_ca = |domain: &str| {
        let domain = TrustDomain::parse(domain).unwrap();
        Ca::create(domain, &RootOptions::default(), IssuancePolicy::default(), WallClock::system()).unwrap()
    };
    let (one, two, federated) = (new_ca("one.example"), new_ca("two.example"), new_ca("far.example"));
    let issue = |ca: &Ca| {
        let id = SpiffeId::parse(&format!("{}/a", ca.trust_domain().id())).unwrap();
        ca.issue_svid(&id, None).unwrap()
    };
    let mut revoked = Vec::new();
    for ca in [&one, &two, &federated] {
        let credential = issue(ca);
        ca.revoke([credential.serial()]).unwrap();
        revoked.push(crate::x509::PeerIdentity::of_verified_chain(credential.chain()).unwrap());
    }
    let live = |own: &Ca, others: &[&Ca]| {
        let bundles = others.iter().chain([&own]).map(|ca| ca.bundle()).collect();
        Identity::fixed(Some(issue(own)), bundles, WallClock::system())
    };
    let attestor = Several(vec![live(&one, &[&federated]), live(&two, &[])]);
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("workload.sock");
    let router = Server::builder().add_service(WorkloadApiServer::new(attestor).into_service());
    tokio::spawn(serve_unix(socket.clone(), 0o600, router));
    while !socket.exists() {
        tokio::task::yield_now().await;
    }
    let client = WorkloadApiClient::new(&socket).unwrap();
    let context = client.x509_contexts().await.unwrap().next().await.unwrap();
    let bundles = client.x509_bundles().await.unwrap();
    for peer in &revoked {
        assert!(context.bundles.is_revoked(peer), "{}", peer.id);
        assert!(bundles.is_revoked(peer), "{}", peer.id);
    }
}

#[tokio::test]
async fn tokens_are_issued_and_validated() {
    let setup = Setup::start(0).await;
    let audience = ["db".to_owned()];
    let svids = setup.client.jwt_svids(&audience, None).await.unwrap();
    let [(id, token)] = svids.as_slice() else { panic!("{}", svids.len()) };
    assert_eq!(*id, web());
    assert_eq!(setup.client.validate_jwt(token, "db").await.unwrap(), web());
    assert!(setup.client.validate_jwt(token, "other").await.is_err());
    let (domain, keys) = setup.client.jwt_bundles().await.unwrap().remove(0);
    let mut bundle = crate::TrustBundle::empty(domain);
    bundle.set_jwt_authorities(keys);
    let svid = JwtSvid::validate(token, &bundle.into(), &audience, std::time::SystemTime::now()).unwrap();
    assert_eq!(svid.id(), &web());
    let other = SpiffeId::parse("spiffe://td.example/other").unwrap();
    assert!(setup.client.jwt_svids(&audience, Some(&other)).await.is_err());
    assert!(setup.client.jwt_svids(&[], None).await.is_err());
}

#[tokio::test]
async fn callers_that_are_not_known_get_nothing() {
    let setup = Setup::start(1).await;
    let mut refused = setup.client.x509_contexts().await.map(|_| ()).unwrap_err();
    assert!(
        matches!(&refused, WorkloadApiError::Refused { status } if status.code() == tonic::Code::PermissionDenied)
    );
    refused = setup.client.jwt_svids(&["a".to_owned()], None).await.unwrap_err();
    assert_eq!(refused.reason(), "refused");
}

#[tokio::test]
async fn the_socket_has_the_mode_that_was_asked_for() {
    let setup = Setup::start(0).await;
    let socket = setup.directory.path().join("workload.sock");
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(socket).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
}

#[tokio::test]
async fn calls_without_the_security_header_are_refused() {
    let setup = Setup::start(0).await;
    let path = setup.directory.path().join("workload.sock").display().to_string();
    let channel = tonic::transport::Endpoint::from_shared(format!("unix://{path}")).unwrap().connect_lazy();
    let mut grpc = tonic::client::Grpc::new(channel);
    grpc.ready().await.unwrap();
    let codec = tonic_prost::ProstCodec::<pb::JwtSvidRequest, pb::JwtSvidResponse>::default();
    let path = http::uri::PathAndQuery::from_static(pb::FETCH_JWT_SVID);
    let message = pb::JwtSvidRequest { audience: vec!["a".into()], spiffe_id: String::new() };
    let refused = grpc.unary(tonic::Request::new(message), path, codec).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::InvalidArgument);
}

#[test]
fn concatenated_certificates_are_bounded() {
    let domain = TrustDomain::parse("td.example").unwrap();
    let ca =
        Ca::create(domain, &RootOptions::default(), IssuancePolicy::default(), WallClock::system()).unwrap();
    let root = ca.bundle().roots()[0].to_vec();
    assert_eq!(split(&root.repeat(3), 3).unwrap().len(), 3);
    assert_eq!(split(&root.repeat(4), 3).unwrap_err().reason(), "too_large");
    assert_eq!(split(&root[..100], 3).unwrap_err().reason(), "malformed");
    assert!(split(&[], 3).unwrap().is_empty());
}

#[test]
fn messages_are_the_official_ones() {
    use crate::definitions::holds;

    let fields = [
        holds::<pb::Empty>("X509SVIDRequest"),
        holds::<pb::X509SvidResponse>("X509SVIDResponse"),
        holds::<pb::X509Svid>("X509SVID"),
        holds::<pb::Empty>("X509BundlesRequest"),
        holds::<pb::X509BundlesResponse>("X509BundlesResponse"),
        holds::<pb::JwtSvidRequest>("JWTSVIDRequest"),
        holds::<pb::JwtSvidResponse>("JWTSVIDResponse"),
        holds::<pb::JwtSvidMessage>("JWTSVID"),
        holds::<pb::Empty>("JWTBundlesRequest"),
        holds::<pb::JwtBundlesResponse>("JWTBundlesResponse"),
        holds::<pb::ValidateJwtSvidRequest>("ValidateJWTSVIDRequest"),
        holds::<pb::ValidateJwtSvidResponse>("ValidateJWTSVIDResponse"),
    ];
    println!("{} messages, {} fields", fields.len(), fields.iter().sum::<usize>());
}
