//! A control plane in this process for `startup`: CA and ADS on one TLS port, a mesh of a given size.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use mesh_identity::auth::{Authenticators, JwksTokenVerifier, ServiceAccountAuthenticator, TokenRequest};
use mesh_identity::ca::{IssuancePolicy, RootOptions};
use mesh_identity::grpc::{IncomingOptions, tls_incoming};
use mesh_identity::istio_ca::IstioCaServer;
use mesh_identity::jwt::JwtSigner;
use mesh_identity::{Ca, Identity, ServerTls, TrustDomain, WallClock};
use mesh_xds::pb::envoy::config::cluster::v3::Cluster;
use mesh_xds::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use mesh_xds::pb::envoy::config::listener::v3::Listener;
use mesh_xds::pb::envoy::config::route::v3::RouteConfiguration;
use mesh_xds::server::{AdsServer, AllowAny, ServerConfig, Snapshot, SnapshotCache};
use tokio::net::TcpListener;
use tonic::transport::Server;

/// Node id of the sidecar that is measured.
const NODE: &str = "sidecar~127.0.0.1~bench-0.bench~bench.svc.cluster.local";
const ISSUER: &str = "https://kubernetes.bench.example";

/// The running control plane and the files a pod would have mounted.
pub(crate) struct Plane {
    pub(crate) address: SocketAddr,
    pub(crate) root: PathBuf,
    pub(crate) token: PathBuf,
    cache: SnapshotCache,
}

impl Plane {
    /// Starts on the current runtime, with files in `dir`.
    pub(crate) async fn start(dir: &Path) -> anyhow::Result<Self> {
        let (domain, clock) = (TrustDomain::parse("cluster.local")?, WallClock::system());
        let ca =
            Ca::create(domain.clone(), &RootOptions::default(), IssuancePolicy::default(), clock.clone())?;
        let (root, token) = (dir.join("startup-root.pem"), dir.join("startup-token"));
        std::fs::write(&root, ca.bundle().to_pem())?;
        let signer = JwtSigner::generate()?;
        let request = TokenRequest {
            issuer: ISSUER,
            audience: "istio-ca",
            namespace: "bench",
            service_account: "default",
            service_account_uid: "uid",
            pod: Some(("bench-0", "uid")),
            lifetime: Duration::from_secs(3600),
        };
        std::fs::write(&token, request.sign(&signer, &clock)?)?;
        let verifier = JwksTokenVerifier::new(signer.jwks(), ISSUER, ["istio-ca".to_owned()], clock.clone());
        let authenticators =
            Authenticators::new().with(ServiceAccountAuthenticator::new(domain.clone(), verifier));
        let certificate = ca.issue_server_certificate(&["localhost".to_owned()], None)?;
        let identity = Identity::fixed(Some(certificate), ca.bundle_set(), clock);
        let tls = ServerTls::for_trust_domain(identity, domain).optional_client_certificate().alpn(["h2"]);
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let cache = SnapshotCache::new();
        let ads = AdsServer::new(cache.clone(), AllowAny, ServerConfig::default());
        let incoming = tls_incoming(listener, tls.build()?, IncomingOptions::default());
        let router = Server::builder()
            .add_service(IstioCaServer::new(Arc::new(ca), authenticators).into_service())
            .add_service(ads.ads());
        tokio::spawn(async move {
            if let Err(error) = router.serve_with_incoming(incoming).await {
                eprintln!("the control plane ended: {error}");
            }
        });
        Ok(Self { address, root, token, cache })
    }

    /// Publishes a mesh of `services` with `endpoints` each; `outbound` and `inbound` are the captured ports.
    pub(crate) fn publish(
        &self,
        services: usize,
        endpoints: usize,
        outbound: SocketAddr,
        inbound: SocketAddr,
    ) -> anyhow::Result<()> {
        let mut snapshot = Snapshot::builder();
        for service in 0..services {
            snapshot = snapshot.add(&cluster(service)?)?.add(&assignment(service, endpoints)?)?;
        }
        snapshot = snapshot
            .add(&read::<Cluster>("name: BlackHoleCluster\ntype: STATIC\nconnect_timeout: 10s\n")?)?
            .add(&read::<Cluster>(
                "name: PassthroughCluster\ntype: ORIGINAL_DST\nconnect_timeout: 10s\nlb_policy: CLUSTER_PROVIDED\n",
            )?)?
            .add(&read::<Cluster>(
                "name: inbound|8080||\ntype: ORIGINAL_DST\nconnect_timeout: 10s\nlb_policy: CLUSTER_PROVIDED\n\
                 upstream_bind_config: { source_address: { address: 127.0.0.6, port_value: 0 } }\n",
            )?)?
            .add(&read::<Listener>(&virtual_outbound(outbound))?)?
            .add(&read::<Listener>(&virtual_inbound(inbound))?)?
            .add(&read::<Listener>(&service_listener())?)?
            .add(&routes(services)?)?;
        self.cache.set(NODE, snapshot.build());
        Ok(())
    }
}

fn read<T: mesh_xds::Resource>(yaml: &str) -> anyhow::Result<T> {
    mesh_xds::json::from_yaml(yaml).with_context(|| yaml.to_owned())
}

fn host(service: usize) -> String {
    format!("svc-{service}.bench.svc.cluster.local")
}

fn cluster(service: usize) -> anyhow::Result<Cluster> {
    let host = host(service);
    read(&format!(
        "name: outbound|80||{host}
type: EDS
eds_cluster_config: {{ eds_config: {{ ads: {{}}, initial_fetch_timeout: 0s, resource_api_version: V3 }}, service_name: 'outbound|80||{host}' }}
connect_timeout: 10s
lb_policy: LEAST_REQUEST
circuit_breakers: {{ thresholds: [ {{ max_connections: 4294967295, max_pending_requests: 4294967295, max_requests: 4294967295, max_retries: 4294967295 }} ] }}
transport_socket_matches:
- name: tlsMode-istio
  match: {{ tlsMode: istio }}
  transport_socket:
    name: envoy.transport_sockets.tls
    typed_config:
      '@type': type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext
      sni: 'outbound_.80_._.{host}'
      common_tls_context:
        alpn_protocols: [istio-peer-exchange, istio]
        tls_certificate_sds_secret_configs: [ {{ name: default, sds_config: {{ ads: {{}}, resource_api_version: V3 }} }} ]
        combined_validation_context:
          default_validation_context: {{ match_typed_subject_alt_names: [ {{ san_type: URI, matcher: {{ exact: 'spiffe://cluster.local/ns/bench/sa/default' }} }} ] }}
          validation_context_sds_secret_config: {{ name: ROOTCA, sds_config: {{ ads: {{}}, resource_api_version: V3 }} }}
- name: tlsMode-disabled
  match: {{}}
  transport_socket: {{ name: envoy.transport_sockets.raw_buffer, typed_config: {{ '@type': type.googleapis.com/envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer }} }}
"
    ))
}

fn assignment(service: usize, endpoints: usize) -> anyhow::Result<ClusterLoadAssignment> {
    let mut yaml = format!("cluster_name: outbound|80||{}\nendpoints:\n- lb_endpoints:\n", host(service));
    for endpoint in 0..endpoints {
        yaml.push_str(&format!(
            "  - endpoint: {{ address: {{ socket_address: {{ address: 10.{}.{}.{endpoint}, port_value: 8080 }} }} }}\n    \
             load_balancing_weight: 1\n    metadata: {{ filter_metadata: {{ envoy.transport_socket_match: {{ tlsMode: istio }} }} }}\n",
            service / 250,
            service % 250,
        ));
    }
    read(&yaml)
}

fn routes(services: usize) -> anyhow::Result<RouteConfiguration> {
    let mut yaml = String::from(
        "name: '80'\nvalidate_clusters: false\nignore_port_in_host_matching: true\nvirtual_hosts:\n",
    );
    for service in 0..services {
        let host = host(service);
        yaml.push_str(&format!(
            "- name: {host}:80\n  domains: [{host}, svc-{service}, svc-{service}.bench, svc-{service}.bench.svc]\n  routes:\n  \
             - {{ name: default, match: {{ prefix: / }}, route: {{ cluster: 'outbound|80||{host}', timeout: 0s, retry_policy: {{ \
             retry_on: 'connect-failure,refused-stream,unavailable,cancelled', num_retries: 2 }} }} }}\n"
        ));
    }
    yaml.push_str(
        "- name: allow_any\n  domains: ['*']\n  routes:\n  - { match: { prefix: / }, route: { cluster: PassthroughCluster, timeout: 0s } }\n",
    );
    read(&yaml)
}

const HCM: &str =
    "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
const TCP: &str = "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy";
const ROUTER: &str = "{ name: envoy.filters.http.router, typed_config: { '@type': \
                      type.googleapis.com/envoy.extensions.filters.http.router.v3.Router } }";

fn virtual_outbound(address: SocketAddr) -> String {
    format!(
        "name: virtualOutbound
address: {{ socket_address: {{ address: 127.0.0.1, port_value: {} }} }}
use_original_dst: true
traffic_direction: OUTBOUND
filter_chains:
- filters:
  - name: envoy.filters.network.tcp_proxy
    typed_config: {{ '@type': {TCP}, stat_prefix: PassthroughCluster, cluster: PassthroughCluster }}
",
        address.port()
    )
}

fn virtual_inbound(address: SocketAddr) -> String {
    format!(
        "name: virtualInbound
address: {{ socket_address: {{ address: 127.0.0.1, port_value: {} }} }}
traffic_direction: INBOUND
listener_filters:
- {{ name: envoy.filters.listener.original_dst, typed_config: {{ '@type': type.googleapis.com/envoy.extensions.filters.listener.original_dst.v3.OriginalDst }} }}
- {{ name: envoy.filters.listener.tls_inspector, typed_config: {{ '@type': type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector }} }}
filter_chains:
- filter_chain_match: {{ destination_port: 8080, transport_protocol: tls }}
  filters:
  - name: envoy.filters.network.http_connection_manager
    typed_config:
      '@type': {HCM}
      stat_prefix: inbound_0.0.0.0_8080
      forward_client_cert_details: APPEND_FORWARD
      set_current_client_cert_details: {{ subject: true, dns: true, uri: true }}
      route_config:
        name: 'inbound|8080||'
        virtual_hosts: [ {{ name: 'inbound|http|80', domains: ['*'], routes: [ {{ name: default, match: {{ prefix: / }}, route: {{ cluster: 'inbound|8080||', timeout: 0s }} }} ] }} ]
      http_filters: [ {ROUTER} ]
  transport_socket:
    name: envoy.transport_sockets.tls
    typed_config:
      '@type': type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext
      require_client_certificate: true
      common_tls_context:
        alpn_protocols: [h2, http/1.1]
        tls_certificate_sds_secret_configs: [ {{ name: default, sds_config: {{ ads: {{}}, resource_api_version: V3 }} }} ]
        combined_validation_context:
          default_validation_context: {{ match_typed_subject_alt_names: [ {{ san_type: URI, matcher: {{ prefix: 'spiffe://cluster.local/' }} }} ] }}
          validation_context_sds_secret_config: {{ name: ROOTCA, sds_config: {{ ads: {{}}, resource_api_version: V3 }} }}
",
        address.port()
    )
}

fn service_listener() -> String {
    format!(
        "name: 0.0.0.0_80
address: {{ socket_address: {{ address: 0.0.0.0, port_value: 80 }} }}
bind_to_port: false
traffic_direction: OUTBOUND
filter_chains:
- filters:
  - name: envoy.filters.network.http_connection_manager
    typed_config:
      '@type': {HCM}
      stat_prefix: outbound_0.0.0.0_80;
      rds: {{ route_config_name: '80', config_source: {{ ads: {{}}, initial_fetch_timeout: 0s, resource_api_version: V3 }} }}
      http_filters: [ {ROUTER} ]
"
    )
}
