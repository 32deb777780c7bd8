//! A control plane on ports of its own with a small scenario, and clients for it.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use mesh_control::model::MeshSettings;
use mesh_control::serve::{Config, ControlPlane, TokenConfig};
use mesh_identity::auth::TokenRequest;
use mesh_identity::ca::{CertificateRequest, KeyKind};
use mesh_identity::grpc::TlsConnector;
use mesh_identity::istio_ca::{IstioCaClient, IstioCaError};
use mesh_identity::jwt::JwtSigner;
use mesh_identity::{ClientTls, Credential, Identity, SpiffeId, TrustBundle, TrustDomain, WallClock};
use mesh_xds::client::{AdsClient, AdsClientBuilder, Candidate, Change, Configuration, Connector};
use mesh_xds::pb::envoy::config::cluster::v3::Cluster;
use mesh_xds::pb::envoy::config::core::v3::Node;
use mesh_xds::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use mesh_xds::pb::envoy::config::listener::v3::Listener;
use mesh_xds::pb::envoy::config::route::v3::RouteConfiguration;
use prost_types::value::Kind;

/// Every wait ends here at the latest.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);
const ISSUER: &str = "https://kubernetes.test";

pub(crate) const SERVICES: &str = r"
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio-injection: enabled}}
---
apiVersion: v1
kind: Service
metadata: {name: reviews, namespace: shop}
spec:
  clusterIP: 10.96.0.10
  selector: {app: reviews}
  ports: [{name: http, port: 9080}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: reviews, namespace: shop}
spec:
  host: reviews
  trafficPolicy: {tls: {mode: ISTIO_MUTUAL}}
  subsets:
  - {name: v1, labels: {version: v1}}
  - {name: v2, labels: {version: v2}}
";

pub(crate) fn pod(name: &str, app: &str, version: &str, ip: &str, ready: bool) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\n  namespace: shop\n  labels: {{app: {app}, version: {version}, security.istio.io/tlsMode: istio}}\nspec:\n  serviceAccountName: {app}\n  containers: [{{name: app, image: mesh-echo}}]\nstatus:\n  podIP: {ip}\n  phase: Running\n  conditions: [{{type: Ready, status: '{}'}}]\n",
        if ready { "True" } else { "False" }
    )
}

pub(crate) fn split(v1: u32, v2: u32) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: reviews, namespace: shop}}\nspec:\n  hosts: [reviews]\n  http:\n  - route:\n    - destination: {{host: reviews, subset: v1}}\n      weight: {v1}\n    - destination: {{host: reviews, subset: v2}}\n      weight: {v2}\n"
    )
}

/// The fixture: directories, token keys, and a running control plane.
pub(crate) struct Fixture {
    pub(crate) dir: tempfile::TempDir,
    signer: JwtSigner,
    pub(crate) config: Config,
    control: Option<ControlPlane>,
    runtime: Option<tokio::runtime::Runtime>,
}

impl Drop for Fixture {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Fixture {
    pub(crate) async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    pub(crate) async fn start_with(change: impl FnOnce(&mut Config)) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        for sub in ["config", "status", "publish"] {
            fs::create_dir(dir.path().join(sub)).expect("mkdir");
        }
        let signer = JwtSigner::generate().expect("a key");
        fs::write(dir.path().join("jwks.json"), signer.jwks().to_json()).expect("write the keys");
        let files = [
            ("config/services.yaml", SERVICES.to_owned()),
            ("config/split.yaml", split(90, 10)),
            ("status/v1.yaml", pod("reviews-v1", "reviews", "v1", "10.0.0.1", true)),
            ("status/v2.yaml", pod("reviews-v2", "reviews", "v2", "10.0.0.2", true)),
            ("status/client.yaml", pod("client", "client", "v1", "10.0.0.9", true)),
        ];
        for (name, text) in files {
            fs::write(dir.path().join(name), text).expect("write");
        }
        let mesh = MeshSettings::default();
        let path = |sub: &str| dir.path().join(sub);
        let mut config = Config {
            config_dirs: vec![path("config")],
            status_dirs: vec![path("status")],
            publish_dir: Some(path("publish")),
            state_dir: path("state"),
            tokens: Some(TokenConfig {
                jwks: path("jwks.json"),
                issuer: ISSUER.to_owned(),
                audience: "istio-ca".to_owned(),
            }),
            listen: [127, 0, 0, 1].into(),
            xds_port: 0,
            webhook_port: 0,
            monitoring_port: 0,
            plaintext_port: None,
            dns_names: Config::default_dns_names(&mesh),
            injector: mesh_control::serve::InjectorConfig::default(),
            mesh,
            workload_ttl: Duration::from_secs(3600),
            root_grace: None,
            server_ttl: Duration::from_secs(3600),
            open_debug: false,
        };
        change(&mut config);
        let mut this = Self { dir, signer, config, control: None, runtime: None };
        this.run().await;
        this
    }

    /// Starts the control plane on a runtime of its own, so that it can die like a process.
    pub(crate) async fn run(&mut self) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let runtime = runtime.expect("a runtime");
        let started = loop {
            let start = runtime.spawn(ControlPlane::start(self.config.clone()));
            match start.await.expect("no panic") {
                Ok(control) => break control,
                // The port of one that was just killed may be free only a moment later.
                Err(error) if error.reason() == "bind" => tokio::task::yield_now().await,
                Err(error) => panic!("{error}"),
            }
        };
        self.control = Some(started);
        self.runtime = Some(runtime);
    }

    /// As SIGKILL: every task and connection is gone, nothing is ended in order.
    pub(crate) fn kill(&mut self) {
        self.control = None;
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }

    pub(crate) fn control(&self) -> &ControlPlane {
        self.control.as_ref().expect("running")
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Replaces a file by rename.
    pub(crate) fn write(&self, name: &str, text: &str) {
        let temporary = self.path(".new");
        fs::write(&temporary, text).expect("write");
        fs::rename(temporary, self.path(name)).expect("rename");
    }

    pub(crate) fn roots(&self) -> Vec<u8> {
        fs::read(self.path("state/root-cert.pem")).expect("the CA's root")
    }

    pub(crate) fn token(&self, account: &str, audience: &str) -> String {
        let request = TokenRequest {
            issuer: ISSUER,
            audience,
            namespace: "shop",
            service_account: account,
            service_account_uid: "uid",
            pod: None,
            lifetime: Duration::from_secs(600),
        };
        request.sign(&self.signer, &WallClock::system()).expect("a token")
    }

    /// Asks for a certificate with a token.
    pub(crate) async fn certificate(&self, account: &str, token: String) -> Result<Identity, IstioCaError> {
        self.certificate_from(&self.roots(), account, token).await
    }

    /// As `certificate`, from a server that `roots` vouch for.
    pub(crate) async fn certificate_from(
        &self,
        roots: &[u8],
        account: &str,
        token: String,
    ) -> Result<Identity, IstioCaError> {
        let tls = ClientTls::dns(roots, WallClock::system()).expect("roots").alpn(["h2"]);
        let address = self.control().addresses().xds;
        let connector = TlsConnector::new(tls.build().expect("a TLS configuration"))
            .server_name("istiod.istio-system.svc")
            .address(address.to_string());
        let channel = tonic::transport::Endpoint::from_static("https://istiod.istio-system.svc:15012")
            .connect_with_connector_lazy(connector);
        let token = move || Ok(Some(token.clone().into()));
        let client = IstioCaClient::new(channel, token).attempts(1);
        let trust_domain = TrustDomain::parse("cluster.local").expect("a trust domain");
        let id = SpiffeId::workload(&trust_domain, "shop", account).expect("an id");
        let request = CertificateRequest::generate(KeyKind::EcP256, &id).expect("a request");
        let (csr, key) = request.into_parts();
        let mut chain = client.create_certificate(&csr, None).await?;
        let root = chain.pop().expect("the root is last");
        let bundle = TrustBundle::new(trust_domain, vec![root]).expect("a bundle");
        let credential = Credential::svid(chain, key).expect("an SVID");
        Ok(Identity::fixed(Some(credential), bundle.into(), WallClock::system()))
    }

    /// A client for pod `name` of account `account`, over TLS with `identity` (or none).
    pub(crate) fn client(&self, name: &str, account: &str, identity: Option<Identity>) -> AdsClientBuilder {
        self.client_as(node(name, account), identity)
    }

    /// A client that says it is `node`.
    pub(crate) fn client_as(&self, node: Node, identity: Option<Identity>) -> AdsClientBuilder {
        let mut tls = ClientTls::dns(&self.roots(), WallClock::system()).expect("roots").alpn(["h2"]);
        if let Some(identity) = identity {
            tls = tls.presenting(identity);
        }
        let server_name = "istiod.istio-system.svc".try_into().expect("a name");
        let port = self.control().addresses().xds.port();
        AdsClient::builder(node)
            .server(format!("https://127.0.0.1:{port}"))
            .connector(Connector::tls(tls.build().expect("a TLS configuration"), Some(server_name)))
    }
}

pub(crate) fn node(name: &str, account: &str) -> Node {
    let text = |value: &str| prost_types::Value { kind: Some(Kind::StringValue(value.to_owned())) };
    let fields: BTreeMap<String, prost_types::Value> =
        [("NAMESPACE".to_owned(), text("shop")), ("SERVICE_ACCOUNT".to_owned(), text(account))].into();
    Node {
        id: format!("sidecar~10.0.0.9~{name}.shop~shop.svc.cluster.local"),
        metadata: Some(prost_types::Struct { fields }),
        ..Node::default()
    }
}

/// What a sidecar has, as changes leave it.
#[derive(Default)]
pub(crate) struct World {
    pub(crate) listeners: BTreeMap<String, Arc<Listener>>,
    pub(crate) routes: BTreeMap<String, Arc<RouteConfiguration>>,
    pub(crate) clusters: BTreeMap<String, Arc<Cluster>>,
    pub(crate) endpoints: BTreeMap<String, Arc<ClusterLoadAssignment>>,
    /// Resources received since the world was made, by kind.
    pub(crate) received: BTreeMap<&'static str, usize>,
}

impl World {
    fn apply(&mut self, change: Change) {
        let mut count = |kind| *self.received.entry(kind).or_default() += 1;
        match change {
            Change::Cluster { cluster, endpoints } => {
                count("cluster");
                if let Some(endpoints) = endpoints {
                    self.endpoints.insert(cluster.name.clone(), endpoints);
                }
                self.clusters.insert(cluster.name.clone(), cluster);
            }
            Change::Endpoints { clusters, endpoints } => {
                count("endpoints");
                for cluster in clusters {
                    self.endpoints.insert(cluster, Arc::clone(&endpoints));
                }
            }
            Change::Listener { listener, routes } => {
                count("listener");
                for route in routes {
                    self.routes.insert(route.name.clone(), route);
                }
                self.listeners.insert(listener.name.clone(), listener);
            }
            Change::Routes(route) => {
                count("route");
                self.routes.insert(route.name.clone(), route);
            }
            Change::Secret(_) => count("secret"),
            Change::ListenerRemoved(name) => {
                self.listeners.remove(&name);
            }
            Change::ClusterRemoved(name) => {
                self.clusters.remove(&name);
            }
        }
    }

    /// Follows `configuration` until `done`.
    pub(crate) async fn until(
        &mut self,
        configuration: &mut Configuration,
        what: &str,
        done: impl Fn(&Self) -> bool,
    ) {
        let wait = async {
            while !(configuration.is_complete() && done(self)) {
                let changes = configuration.next().await.expect("the client runs");
                changes.into_iter().for_each(|change| self.apply(change));
            }
        };
        tokio::time::timeout(DEADLINE, wait).await.unwrap_or_else(|_| panic!("not in time: {what}"));
    }

    /// Weights of the only route of `reviews`.
    pub(crate) fn weights(&self) -> Vec<(String, u32)> {
        use mesh_xds::pb::envoy::config::route::v3::{route::Action, route_action::ClusterSpecifier};
        let routes = self.routes.get("9080").into_iter().flat_map(|c| &c.virtual_hosts);
        let mut hosts = routes.filter(|h| h.name.starts_with("reviews.shop"));
        let route = hosts.next().and_then(|host| host.routes.first());
        match route.and_then(|route| route.action.as_ref()) {
            Some(Action::Route(action)) => match &action.cluster_specifier {
                Some(ClusterSpecifier::WeightedClusters(all)) => {
                    all.clusters.iter().map(|c| (c.name.clone(), c.weight.unwrap_or_default())).collect()
                }
                _ => Vec::new(),
            },
            _ => Vec::new(),
        }
    }

    /// Addresses of a cluster's healthy endpoints.
    pub(crate) fn healthy(&self, cluster: &str) -> Vec<String> {
        use mesh_xds::pb::envoy::config::core::v3::{HealthStatus, address::Address};
        use mesh_xds::pb::envoy::config::endpoint::v3::lb_endpoint::HostIdentifier;
        let groups = self.endpoints.get(cluster).into_iter().flat_map(|a| &a.endpoints);
        groups
            .flat_map(|group| &group.lb_endpoints)
            .filter(|e| e.health_status() == HealthStatus::Healthy)
            .filter_map(|e| match &e.host_identifier {
                Some(HostIdentifier::Endpoint(endpoint)) => endpoint.address.clone(),
                _ => None,
            })
            .filter_map(|address| match address.address {
                Some(Address::SocketAddress(address)) => Some(address.address),
                _ => None,
            })
            .collect()
    }
}

/// Accepts everything.
pub(crate) fn accept(_: Candidate<'_>) -> Result<(), String> {
    Ok(())
}
