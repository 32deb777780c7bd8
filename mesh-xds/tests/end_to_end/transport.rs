//! Ways to a server: `unix`, and `https` where the certificate decides who may be which node.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use mesh_xds::client::{AdsClient, ClientError, Connector, Names};
use mesh_xds::pb::envoy::config::cluster::v3::Cluster;
use mesh_xds::pb::envoy::config::core::v3::Node;
use mesh_xds::server::{
    AdsServer, AllowAny, Authorization, Authorizer, Caller, Grant, ServerConfig, Snapshot, SnapshotCache,
};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::{CryptoProvider, aws_lc_rs};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{ClientConfig, RootCertStore, ServerConfig as TlsConfig};
use tokio_rustls::server::TlsStream;
use tokio_stream::StreamExt as _;
use tonic::transport::server::Connected;
use tonic::{Code, Status};

use crate::support::*;

fn one_cluster() -> SnapshotCache {
    let cache = SnapshotCache::new();
    cache.set("n", Snapshot::builder().add(&cluster("a", "1")).unwrap().build());
    cache
}

async fn receives_a(client: &AdsClient) {
    let mut clusters = client.watch::<Cluster>(Names::all());
    let update = timeout(PATIENCE, clusters.next()).await.unwrap().unwrap();
    assert_eq!(update.upserts[0].name, "a");
    update.accept();
}

#[tokio::test]
async fn over_a_unix_socket() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("xds.sock");
    let server = AdsServer::new(one_cluster(), AllowAny, ServerConfig::default());
    let listener = UnixListener::bind(&path).unwrap();
    let incoming = tokio_stream::wrappers::UnixListenerStream::new(listener);
    let router = tonic::transport::Server::builder().add_routes(server.routes());
    tokio::spawn(router.serve_with_incoming(incoming));
    let client = AdsClient::builder(node("n")).server(format!("unix://{}", path.display())).start().unwrap();
    receives_a(&client).await;
}

/// An authority that vouches for nodes.
struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    fn issue(&self, name: &str) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        (vec![certificate.der().clone()], PrivateKeyDer::Pkcs8(key.serialize_der().into()))
    }

    fn roots(&self) -> Arc<RootCertStore> {
        let mut roots = RootCertStore::empty();
        roots.add(self.0.der().clone()).unwrap();
        Arc::new(roots)
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

/// A connection that knows its peer's certificate.
struct Secure(TlsStream<TcpStream>);

/// The certificate that a peer showed.
#[derive(Clone)]
struct Shown(Option<CertificateDer<'static>>);

impl Connected for Secure {
    type ConnectInfo = Shown;

    fn connect_info(&self) -> Shown {
        let chain = self.0.get_ref().1.peer_certificates();
        Shown(chain.and_then(|chain| chain.first()).map(|leaf| leaf.clone().into_owned()))
    }
}

impl AsyncRead for Secure {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Secure {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

/// A caller is the node whose certificate it shows.
struct Certificates(Vec<(CertificateDer<'static>, &'static str)>);

impl Authorizer for Certificates {
    fn authorize<'a>(&'a self, caller: &'a Caller, node: &'a Node) -> Authorization<'a> {
        let shown = caller.extensions.get::<Shown>().and_then(|shown| shown.0.as_ref());
        let known = shown.and_then(|shown| self.0.iter().find(|(leaf, _)| leaf == shown));
        let grant = match known {
            None => Err(Status::unauthenticated("nobody knows this certificate")),
            Some((_, name)) if *name == node.id => Ok(Grant { identity: (*name).to_owned(), group: None }),
            Some((_, name)) => Err(Status::permission_denied(format!("the certificate is that of {name}"))),
        };
        Box::pin(std::future::ready(grant))
    }
}

async fn accept(acceptor: TlsAcceptor, stream: io::Result<TcpStream>) -> io::Result<Secure> {
    Ok(Secure(acceptor.accept(stream?).await?))
}

#[tokio::test]
async fn over_tls_the_certificate_says_who_may_be_which_node() {
    let authority = Authority::new();
    let (chain, key) = authority.issue("localhost");
    let verifier =
        WebPkiClientVerifier::builder_with_provider(authority.roots(), provider()).build().unwrap();
    let mut tls = TlsConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)
        .unwrap();
    tls.alpn_protocols = vec![b"h2".to_vec()];
    let (n, other) = (authority.issue("n"), authority.issue("other"));
    let known = vec![(n.0[0].clone(), "n"), (other.0[0].clone(), "other")];

    let server = AdsServer::new(one_cluster(), Certificates(known), ServerConfig::default());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let uri = format!("https://localhost:{}", listener.local_addr().unwrap().port());
    let acceptor = TlsAcceptor::from(Arc::new(tls));
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener)
        .then(move |stream| accept(acceptor.clone(), stream));
    let router = tonic::transport::Server::builder().add_routes(server.routes());
    tokio::spawn(router.serve_with_incoming(incoming));

    let connect = |(chain, key): (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)| {
        let config = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(authority.roots())
            .with_client_auth_cert(chain, key)
            .unwrap();
        AdsClient::builder(node("n"))
            .server(&uri)
            .connector(Connector::tls(Arc::new(config), None))
            .start()
            .unwrap()
    };
    let client = connect(n);
    receives_a(&client).await;
    assert_eq!(server.clients()[0].client.identity, "n");

    let impostor = connect(other);
    let _watch = impostor.watch::<Cluster>(Names::all());
    let mut connection = impostor.connection();
    let refused = timeout(PATIENCE, connection.wait_for(|c| c.last_error.is_some())).await.unwrap();
    let error = refused.unwrap().last_error.clone().unwrap();
    assert!(matches!(error, ClientError::Stream { code: Code::PermissionDenied, .. }), "{error}");

    // Without a configuration for TLS nothing is sent in the clear.
    let plain = AdsClient::builder(node("n")).server(&uri).start().unwrap();
    let _watch = plain.watch::<Cluster>(Names::all());
    let mut connection = plain.connection();
    let refused = timeout(PATIENCE, connection.wait_for(|c| c.last_error.is_some())).await.unwrap();
    let error = refused.unwrap().last_error.clone().unwrap();
    assert_eq!(error.reason(), "connect");
    assert!(error.to_string().contains("no TLS configuration was given"), "{error}");
}
