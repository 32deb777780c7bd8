//! A control plane in this process, a sidecar as a real one beside it.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, TcpListener as StdListener};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use mesh_identity::auth::{
    Authenticators, ClientCertificateAuthenticator, JwksTokenVerifier, ServiceAccountAuthenticator,
    TokenRequest,
};
use mesh_identity::ca::{IssuancePolicy, RootOptions};
use mesh_identity::grpc::{IncomingOptions, tls_incoming};
use mesh_identity::istio_ca::IstioCaServer;
use mesh_identity::jwt::JwtSigner;
use mesh_identity::{Ca, Identity, ServerTls, TrustDomain, WallClock};
use mesh_sidecar::http::Outgoing;
use mesh_xds::resource::Resource;
use mesh_xds::server::{AdsServer, AllowAny, ServerConfig, Snapshot, SnapshotCache};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};
use tonic::transport::Server;

const ISSUER: &str = "https://kubernetes.example";
/// Node id of the sidecar under test.
pub(crate) const NODE: &str = "sidecar~127.0.0.1~web-0.shop~shop.svc.cluster.local";
/// How long anything may take on a busy machine.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

/// CA and ADS on one TLS port.
pub(crate) struct ControlPlane {
    pub(crate) ads: AdsServer,
    pub(crate) address: SocketAddr,
    pub(crate) ca: Arc<Ca>,
    tokens: JwtSigner,
    pub(crate) dir: TempDir,
    task: Option<JoinHandle<()>>,
}

impl ControlPlane {
    pub(crate) async fn start() -> Self {
        let domain = TrustDomain::parse("cluster.local").unwrap();
        let clock = WallClock::system();
        let ca = Ca::create(domain, &RootOptions::default(), IssuancePolicy::default(), clock).unwrap();
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("root-cert.pem"), ca.bundle().to_pem()).unwrap();
        let mut plane = Self {
            ads: AdsServer::new(SnapshotCache::new(), AllowAny, ServerConfig::default()),
            address: free_port(),
            ca: Arc::new(ca),
            tokens: JwtSigner::generate().unwrap(),
            dir,
            task: None,
        };
        plane.write_token("web");
        plane.serve().await;
        plane
    }

    /// Starts (again) on the same port, with nothing remembered but the CA.
    pub(crate) async fn serve(&mut self) {
        let (domain, clock) = (TrustDomain::parse("cluster.local").unwrap(), WallClock::system());
        let audience = ["istio-ca".to_owned()];
        let verifier = JwksTokenVerifier::new(self.tokens.jwks(), ISSUER, audience, clock.clone());
        let authenticators = Authenticators::new()
            .with(ClientCertificateAuthenticator::new(domain.clone()))
            .with(ServiceAccountAuthenticator::new(domain.clone(), verifier));
        let certificate = self.ca.issue_server_certificate(&["localhost".to_owned()], None).unwrap();
        let identity = Identity::fixed(Some(certificate), self.ca.bundle_set(), clock);
        let tls = ServerTls::for_trust_domain(identity, domain).optional_client_certificate().alpn(["h2"]);
        let listener =
            eventually("the port is free again", async || TcpListener::bind(self.address).await.ok()).await;
        let incoming = tls_incoming(listener, tls.build().unwrap(), IncomingOptions::default());
        let ca = IstioCaServer::new(Arc::clone(&self.ca), authenticators).into_service();
        let router = Server::builder().add_service(ca).add_service(self.ads.ads());
        self.task = Some(tokio::spawn(async move {
            let _ended = router.serve_with_incoming(incoming).await;
        }));
    }

    /// Goes away as a killed process would: every stream breaks.
    pub(crate) fn stop(&mut self) {
        self.ads.shut_down();
        if let Some(task) = self.task.take() {
            task.abort();
        }
        let cache = self.ads.cache().clone();
        self.ads = AdsServer::new(cache, AllowAny, ServerConfig::default());
    }

    /// Writes a token for a service account of namespace `shop`.
    pub(crate) fn write_token(&self, service_account: &str) {
        let request = TokenRequest {
            issuer: ISSUER,
            audience: "istio-ca",
            namespace: "shop",
            service_account,
            service_account_uid: "sa-uid",
            pod: Some(("web-0", "pod-uid")),
            lifetime: Duration::from_secs(600),
        };
        let token = request.sign(&self.tokens, &WallClock::system()).unwrap();
        std::fs::write(self.dir.path().join("token"), token).unwrap();
    }

    pub(crate) fn publish(&self, snapshot: Snapshot) {
        self.ads.cache().set(NODE, snapshot);
    }
}

/// Reads a resource from YAML and adds it to a snapshot.
pub(crate) fn yaml<T: Resource>(text: &str) -> T {
    mesh_xds::json::from_yaml(text).unwrap_or_else(|error| panic!("{error}\n{text}"))
}

/// A running sidecar.
pub(crate) struct Sidecar {
    child: Child,
    pub(crate) admin: SocketAddr,
    pub(crate) status: SocketAddr,
    pub(crate) health: SocketAddr,
    pub(crate) metrics: SocketAddr,
    log: PathBuf,
    _dir: TempDir,
}

impl Sidecar {
    pub(crate) fn start(plane: &ControlPlane, more: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (admin, status, health, metrics) = (free_port(), free_port(), free_port(), free_port());
        let discovery = format!("localhost:{}", plane.address.port());
        let config = format!(
            r#"{{"discoveryAddress":"{discovery}","statusPort":{},"proxyAdminPort":{},"terminationDrainDuration":"0s"}}"#,
            status.port(),
            admin.port()
        );
        let mut env: BTreeMap<&str, String> = BTreeMap::from([
            ("POD_NAME", "web-0".into()),
            ("POD_NAMESPACE", "shop".into()),
            ("SERVICE_ACCOUNT", "web".into()),
            ("INSTANCE_IP", "127.0.0.1".into()),
            ("CA_ADDR", discovery),
            ("PROXY_CONFIG", config),
            ("ISTIO_META_ENVOY_STATUS_PORT", health.port().to_string()),
            ("ISTIO_META_ENVOY_PROMETHEUS_PORT", metrics.port().to_string()),
            ("CA_ROOT_CA", plane.dir.path().join("root-cert.pem").display().to_string()),
            ("MESH_TOKEN_FILE", plane.dir.path().join("token").display().to_string()),
            ("MESH_POD_INFO_DIR", dir.path().display().to_string()),
        ]);
        env.extend(more.iter().map(|(name, value)| (*name, (*value).to_owned())));
        let log = dir.path().join("log");
        let out = std::fs::File::create(&log).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_mesh-sidecar"))
            .args(["proxy", "sidecar", "--domain", "shop.svc.cluster.local", "--proxyLogLevel=warning"])
            .env_clear()
            .envs(env)
            .stdin(Stdio::null())
            .stdout(out.try_clone().unwrap())
            .stderr(out)
            .spawn()
            .unwrap();
        Self { child, admin, status, health, metrics, log, _dir: dir }
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    pub(crate) async fn until_ready(&self) {
        eventually_or(
            "the sidecar is ready",
            || self.log(),
            async || {
                let (status, _) = get(self.health, "/healthz/ready").await?;
                (status == 200).then_some(())
            },
        )
        .await;
    }

    pub(crate) fn rss_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    pub(crate) fn terminate(&self) {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.child.id()).unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    }

    pub(crate) async fn ended(&mut self) -> ExitStatus {
        eventually("the sidecar ends", async || self.child.try_wait().unwrap()).await
    }
}

impl Drop for Sidecar {
    fn drop(&mut self) {
        let _already_dead = self.child.kill();
        let _status = self.child.wait();
    }
}

/// A port that was free a moment ago.
pub(crate) fn free_port() -> SocketAddr {
    StdListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap()
}

/// One request; `None` when nobody answers.
pub(crate) async fn call(method: &str, address: SocketAddr, path: &str) -> Option<(u16, String)> {
    let out = Outgoing { address, source: None, limit: 64 << 20 };
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", "app.example")
        .body(Full::<Bytes>::default())
        .unwrap();
    let answer = tokio::time::timeout(Duration::from_secs(10), out.send(request)).await.ok()?.ok()?;
    Some((answer.status().as_u16(), String::from_utf8_lossy(answer.body()).into_owned()))
}

pub(crate) async fn get(address: SocketAddr, path: &str) -> Option<(u16, String)> {
    call("GET", address, path).await
}

/// Waits for a condition, never for a time.
pub(crate) async fn eventually<T>(what: &str, condition: impl AsyncFnMut() -> Option<T>) -> T {
    eventually_or(what, String::new, condition).await
}

pub(crate) async fn eventually_or<T>(
    what: &str,
    explain: impl Fn() -> String,
    mut condition: impl AsyncFnMut() -> Option<T>,
) -> T {
    let deadline = Instant::now() + DEADLINE;
    loop {
        if let Some(value) = condition().await {
            return value;
        }
        assert!(Instant::now() < deadline, "not within {DEADLINE:?}: {what}\n{}", explain());
        sleep(Duration::from_millis(10)).await;
    }
}
