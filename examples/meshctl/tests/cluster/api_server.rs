//! An API server with fixed answers.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::PrivateKeyDer;
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio_rustls::TlsAcceptor;

/// The token that the server knows.
pub(crate) const TOKEN: &str = "token-of-the-test";
/// Names of the client's certificate and key, beside the kubeconfig.
pub(crate) const CLIENT: (&str, &str) = ("client.pem", "client.key");

type Answers = BTreeMap<&'static str, (u16, Value)>;

/// Serves until dropped.
pub(crate) struct ApiServer {
    folder: TempDir,
    address: SocketAddr,
    root: String,
    asked: Arc<Mutex<Vec<String>>>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl ApiServer {
    /// Starts on a free port of loopback. Paths that `answers` does not name are answered 404.
    pub(crate) fn start(answers: impl IntoIterator<Item = (&'static str, u16, Value)>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut authority = CertificateParams::new([]).unwrap();
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate().unwrap()).unwrap();
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(["127.0.0.1".to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &authority).unwrap();
        let client_key = KeyPair::generate().unwrap();
        let client = CertificateParams::new([]).unwrap().signed_by(&client_key, &authority).unwrap();
        std::fs::write(folder.path().join(CLIENT.0), client.pem()).unwrap();
        std::fs::write(folder.path().join(CLIENT.1), client_key.serialize_pem()).unwrap();

        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut roots = RootCertStore::empty();
        roots.add(authority.der().clone()).unwrap();
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .allow_unauthenticated()
            .build()
            .unwrap();
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(verifier)
            .with_single_cert(
                vec![certificate.der().clone()],
                PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
            )
            .unwrap();

        let answers: Answers = answers.into_iter().map(|(path, code, value)| (path, (code, value))).collect();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (stop, stopped) = oneshot::channel();
        let (bound, address) = std::sync::mpsc::channel();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let log = Arc::clone(&asked);
        let thread = std::thread::spawn(move || {
            runtime.block_on(async {
                let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
                bound.send(listener.local_addr().unwrap()).unwrap();
                let acceptor = TlsAcceptor::from(Arc::new(config));
                tokio::select! {
                    () = serve(listener, acceptor, Arc::new(answers), log) => {}
                    _ = stopped => {}
                }
            });
        });
        let address = address.recv().unwrap();
        let root = authority.pem();
        Self { folder, address, root, asked, stop: Some(stop), thread: Some(thread) }
    }

    pub(crate) fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    /// Paths that were asked for by somebody the server knows, in order.
    pub(crate) fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A kubeconfig for this server, whose context has the namespace `shop`.
    pub(crate) fn kubeconfig(&self, user: Value) -> PathBuf {
        self.kubeconfig_trusting(self, user)
    }

    /// The same with the authority of another server.
    pub(crate) fn kubeconfig_trusting(&self, other: &Self, user: Value) -> PathBuf {
        let document = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "here",
            "contexts": [{"name": "here", "context": {"cluster": "test", "user": "me", "namespace": "shop"}}],
            "clusters": [{"name": "test", "cluster": {"server": self.url(), "certificate-authority": "ca.pem"}}],
            "users": [{"name": "me", "user": user}],
        });
        let path = self.folder.path().join("config");
        std::fs::write(self.folder.path().join("ca.pem"), &other.root).unwrap();
        std::fs::write(&path, document.to_string()).unwrap();
        path
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn serve(
    listener: TcpListener,
    acceptor: TlsAcceptor,
    answers: Arc<Answers>,
    log: Arc<Mutex<Vec<String>>>,
) {
    loop {
        let (tcp, _) = listener.accept().await.unwrap();
        let (acceptor, answers, log) = (acceptor.clone(), Arc::clone(&answers), Arc::clone(&log));
        tokio::spawn(async move {
            let Ok(stream) = acceptor.accept(tcp).await else { return };
            let certified = stream.get_ref().1.peer_certificates().is_some();
            let service = service_fn(move |request: Request<Incoming>| {
                let answer = answer(&request, certified, &answers, &log);
                async move { Ok::<_, std::convert::Infallible>(answer) }
            });
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

fn answer(
    request: &Request<Incoming>,
    certified: bool,
    answers: &Answers,
    log: &Mutex<Vec<String>>,
) -> Response<Full<Bytes>> {
    let token = request.headers().get("authorization").and_then(|value| value.to_str().ok());
    let known = certified || token == Some(&format!("Bearer {TOKEN}"));
    let path = request.uri().path_and_query().map_or("", |path| path.as_str());
    let status = |message: &str| json!({"kind": "Status", "message": message});
    let (code, body) = if !known {
        (401, status("Unauthorized"))
    } else {
        log.lock().unwrap_or_else(PoisonError::into_inner).push(path.to_owned());
        answers.get(path).cloned().unwrap_or_else(|| (404, status("not found")))
    };
    let mut response = Response::new(Full::new(Bytes::from(body.to_string())));
    *response.status_mut() = StatusCode::from_u16(code).unwrap();
    response
}
