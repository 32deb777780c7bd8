//! A sidecar as a process, with a real certificate service and a real xDS server.

mod support;

use std::net::SocketAddr;
use std::time::Duration;

use mesh_identity::x509::crl_to_pem;
use mesh_identity::{Authorizer, Identity, SpiffeId, WallClock, server_config};
use mesh_xds::pb::envoy::config::cluster::v3::Cluster;
use mesh_xds::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use mesh_xds::pb::envoy::config::listener::v3::Listener;
use mesh_xds::pb::envoy::config::route::v3::RouteConfiguration;
use mesh_xds::server::{Snapshot, SnapshotBuilder};
use serde_json::Value;
use support::{ControlPlane, Sidecar, call, eventually, eventually_or, free_port, get, yaml};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

const CLUSTER: &str = "outbound|80||app.shop.svc.cluster.local";

/// An application that says its name.
async fn app(name: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut buffer = [0; 4096];
                while stream.read(&mut buffer).await.is_ok_and(|n| n > 0) {
                    let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{name}", name.len());
                    if stream.write_all(answer.as_bytes()).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    address
}

fn cluster() -> Cluster {
    yaml(&format!(
        "name: {CLUSTER}\ntype: EDS\nconnect_timeout: 5s\n\
         eds_cluster_config: {{ eds_config: {{ ads: {{}}, resource_api_version: V3 }}, service_name: {CLUSTER} }}\n"
    ))
}

fn endpoints(app: SocketAddr) -> ClusterLoadAssignment {
    yaml(&format!(
        "cluster_name: {CLUSTER}\nendpoints:\n- lb_endpoints:\n  - endpoint: {{ address: {{ socket_address: \
         {{ address: {}, port_value: {} }} }} }}\n",
        app.ip(),
        app.port()
    ))
}

fn routes() -> RouteConfiguration {
    yaml(&format!(
        "name: '80'\nvirtual_hosts:\n- name: app\n  domains: ['*']\n  routes:\n  - match: {{ prefix: / }}\n    \
         route: {{ cluster: '{CLUSTER}', timeout: 0s }}\n"
    ))
}

fn listener(name: &str, address: SocketAddr, filter: &str) -> Listener {
    yaml(&format!(
        "name: {name}\naddress: {{ socket_address: {{ address: {}, port_value: {} }} }}\ntraffic_direction: OUTBOUND\n\
         filter_chains:\n- filters:\n  - name: envoy.filters.network.http_connection_manager\n    typed_config:\n      \
         '@type': type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager\n      \
         stat_prefix: test\n      rds: {{ route_config_name: '80', config_source: {{ ads: {{}}, resource_api_version: V3 }} }}\n      \
         http_filters:\n{filter}      - name: envoy.filters.http.router\n        typed_config:\n          \
         '@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router\n",
        address.ip(),
        address.port()
    ))
}

fn mesh(entry: SocketAddr, app: SocketAddr) -> SnapshotBuilder {
    Snapshot::builder()
        .add(&cluster())
        .and_then(|s| s.add(&endpoints(app)))
        .and_then(|s| s.add(&listener("outbound", entry, "")))
        .and_then(|s| s.add(&routes()))
        .unwrap()
}

/// One request through the sidecar, answered by the application of this name.
async fn expect(sidecar: &Sidecar, entry: SocketAddr, name: &str) {
    let answer = get(entry, "/").await;
    assert_eq!(answer, Some((200, name.into())), "{}", sidecar.log());
}

async fn admin_json(sidecar: &Sidecar, path: &str) -> Value {
    let (status, body) = get(sidecar.admin, path).await.unwrap();
    assert_eq!(status, 200, "{path}: {body}");
    serde_json::from_str(&body).unwrap()
}

fn serial(certs: &Value) -> String {
    certs["certificates"][0]["cert_chain"][0]["serial_number"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_lives_through_its_control_planes_life() {
    let mut plane = ControlPlane::start().await;
    let mut sidecar = Sidecar::start(&plane, &[]);
    let entry = free_port();

    // Without a configuration it is not ready, and says what it waits for.
    let waiting = eventually("it listens", async || get(sidecar.status, "/healthz/ready").await).await;
    assert_eq!(waiting.0, 503);
    assert!(waiting.1.contains("LDS"), "{}", waiting.1);

    plane.publish(mesh(entry, app("one").await).build());
    sidecar.until_ready().await;
    expect(&sidecar, entry, "one").await;
    let info = admin_json(&sidecar, "/server_info").await;
    assert!(info["ready_ms"].is_u64(), "{info}");
    assert!(sidecar.log().contains("ready_ms"));

    // Its identity is the one of its service account, and can be replaced at once.
    let before = admin_json(&sidecar, "/certs").await;
    let names = &before["certificates"][0]["cert_chain"][0]["subject_alt_names"];
    assert_eq!(names[0]["uri"], "spiffe://cluster.local/ns/shop/sa/web");
    assert_eq!(get(sidecar.admin, "/certs/rotate").await.unwrap().0, 400, "a mutation needs POST");
    let (status, rotated) = call("POST", sidecar.admin, "/certs/rotate").await.unwrap();
    assert_eq!(status, 200, "{rotated}");
    let rotated: Value = serde_json::from_str(&rotated).unwrap();
    assert_eq!(rotated["old_serial"], serial(&before));
    assert_eq!(rotated["new_serial"], serial(&admin_json(&sidecar, "/certs").await));
    assert_ne!(rotated["old_serial"], rotated["new_serial"]);

    // The dump is Envoy's, holds no key, and leaves no memory behind.
    let rss = sidecar.rss_kib();
    let dump = admin_json(&sidecar, "/config_dump?include_eds").await.to_string();
    for part in
        ["ClustersConfigDump", "RoutesConfigDump", "EndpointsConfigDump", "SecretsConfigDump", CLUSTER]
    {
        assert!(dump.contains(part), "{part} is missing in {dump}");
    }
    assert!(!dump.contains("PRIVATE KEY"));
    assert!(sidecar.rss_kib() < rss + 4096, "{} KiB before, {} after", rss, sidecar.rss_kib());

    // An endpoint moves; then the control plane goes away and the last good configuration serves on.
    plane.publish(mesh(entry, app("two").await).build());
    let moved = async || (get(entry, "/").await? == (200, "two".into())).then_some(());
    eventually("the new endpoint is used", moved).await;
    plane.stop();
    expect(&sidecar, entry, "two").await;
    plane.serve().await;
    plane.publish(mesh(entry, app("three").await).build());
    let moved = async || (get(entry, "/").await? == (200, "three".into())).then_some(());
    eventually_or("the restarted control plane is followed", || sidecar.log(), moved).await;

    // Draining makes it unready; SIGTERM ends it.
    assert_eq!(call("POST", sidecar.status, "/drain").await.unwrap().0, 200);
    assert_eq!(get(sidecar.health, "/healthz/ready").await.unwrap().0, 503);
    // Outbound goes on.
    expect(&sidecar, entry, "three").await;
    sidecar.terminate();
    assert!(sidecar.ended().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_listener_is_named_and_the_good_one_serves() {
    let plane = ControlPlane::start().await;
    let sidecar = Sidecar::start(&plane, &[]);
    let entry = free_port();
    let unknown = "      - name: who.knows\n        typed_config: { '@type': \
                   type.googleapis.com/xds.type.v3.TypedStruct, type_url: who.knows }\n";
    let snapshot = mesh(entry, app("one").await).add(&listener("odd", free_port(), unknown)).unwrap();
    plane.publish(snapshot.build());
    sidecar.until_ready().await;
    expect(&sidecar, entry, "one").await;
    let nack = eventually_or(
        "the control plane hears of it",
        || sidecar.log(),
        async || {
            let clients = plane.ads.clients();
            let status = clients.first()?.types.get(&mesh_xds::TypeUrl::LISTENER)?;
            status.error.clone()
        },
    )
    .await;
    assert!(nack.message.contains("odd"), "{nack:?}");
    assert!(!nack.message.contains("\"outbound\""), "{nack:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_good_token_it_does_not_become_ready() {
    let plane = ControlPlane::start().await;
    plane.write_token("somebody-else");
    let sidecar = Sidecar::start(&plane, &[]);
    plane.publish(mesh(free_port(), app("one").await).build());
    eventually_or(
        "the refusal is in the log",
        || sidecar.log(),
        async || sidecar.log().contains("SVID not renewed").then_some(()),
    )
    .await;
    let (status, why) = get(sidecar.status, "/healthz/ready").await.unwrap();
    assert_eq!(status, 503);
    assert!(why.contains("identity"), "{why}");
    assert_eq!(get(sidecar.metrics, "/stats/prometheus").await.unwrap().0, 200);
    plane.write_token("web");
    sidecar.until_ready().await;
}

/// A mesh service that says `name` over mutual TLS; tells the moment each connection ends.
async fn secured_app(plane: &ControlPlane, name: &'static str) -> (SocketAddr, String, mpsc::Receiver<()>) {
    let id = SpiffeId::parse("spiffe://cluster.local/ns/shop/sa/app").unwrap();
    let credential = plane.ca.issue_svid(&id, None).unwrap();
    let serial = credential.serial().to_owned();
    let identity = Identity::fixed(Some(credential), plane.ca.bundle_set(), WallClock::system());
    let tls = server_config(&identity, Authorizer::trust_domain(plane.ca.trust_domain().clone())).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (ended, ends) = mpsc::channel(16);
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let (acceptor, ended) = (tokio_rustls::TlsAcceptor::from(tls.clone()), ended.clone());
            tokio::spawn(async move {
                // Refused by the sidecar: nothing began.
                let Ok(mut stream) = acceptor.accept(tcp).await else { return };
                let mut buffer = [0; 4096];
                while stream.read(&mut buffer).await.is_ok_and(|n| n > 0) {
                    let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{name}", name.len());
                    if stream.write_all(answer.as_bytes()).await.is_err() || stream.flush().await.is_err() {
                        break;
                    }
                }
                let _nobody_waits = ended.send(()).await;
            });
        }
    });
    (address, serial, ends)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revocation_list_in_the_mount_ends_a_live_connection_within_a_second() {
    let plane = ControlPlane::start().await;
    let crl = plane.dir.path().join("ca-crl.pem");
    let sidecar = Sidecar::start(&plane, &[("MESH_CRL_FILE", &crl.display().to_string())]);
    let (app, serial, mut ends) = secured_app(&plane, "secured").await;
    let entry = free_port();
    let secret =
        |name: &str| format!("{{ name: {name}, sds_config: {{ ads: {{}}, resource_api_version: V3 }} }}");
    let secured: Cluster = yaml(&format!(
        "name: {CLUSTER}\ntype: EDS\nconnect_timeout: 5s\n\
         eds_cluster_config: {{ eds_config: {{ ads: {{}}, resource_api_version: V3 }}, service_name: {CLUSTER} }}\n\
         transport_socket:\n  name: envoy.transport_sockets.tls\n  typed_config:\n    \
         '@type': type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext\n    \
         common_tls_context:\n      tls_certificate_sds_secret_configs: [{}]\n      combined_validation_context:\n        \
         default_validation_context: {{ match_subject_alt_names: [{{ exact: spiffe://cluster.local/ns/shop/sa/app }}] }}\n        \
         validation_context_sds_secret_config: {}\n",
        secret("default"),
        secret("ROOTCA")
    ));
    let snapshot = Snapshot::builder()
        .add(&secured)
        .and_then(|s| s.add(&endpoints(app)))
        .and_then(|s| s.add(&listener("outbound", entry, "")))
        .and_then(|s| s.add(&routes()));
    plane.publish(snapshot.unwrap().build());
    sidecar.until_ready().await;
    expect(&sidecar, entry, "secured").await;

    plane.ca.revoke([&serial]).unwrap();
    let pem: String = plane.ca.bundle().crl_ders().iter().map(|der| crl_to_pem(der)).collect();
    std::fs::write(plane.dir.path().join("new"), pem).unwrap();
    std::fs::rename(plane.dir.path().join("new"), &crl).unwrap();
    let ended = tokio::time::timeout(Duration::from_secs(1), ends.recv()).await;
    assert_eq!(ended.ok(), Some(Some(())), "within a second\n{}", sidecar.log());
    let refused = get(entry, "/").await.unwrap();
    assert_eq!(refused.0, 503, "{}", refused.1);
}
