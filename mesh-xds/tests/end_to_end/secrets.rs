//! Secrets over ADS, with everything else.

use mesh_xds::client::{AdsClient, Candidate, Change, Configuration, Names, Protocol};
use mesh_xds::pb::envoy::config::cluster::v3::Cluster;
use mesh_xds::pb::envoy::config::core::v3::config_source::ConfigSourceSpecifier;
use mesh_xds::pb::envoy::config::core::v3::{
    ConfigSource, DataSource, TransportSocket, data_source, transport_socket,
};
use mesh_xds::pb::envoy::extensions::transport_sockets::tls::v3::{
    CommonTlsContext, SdsSecretConfig, Secret, TlsCertificate, UpstreamTlsContext, secret,
};
use mesh_xds::server::{AllowAny, Snapshot, SnapshotCache, SyncState};
use mesh_xds::{Any, TypeUrl};
use prost::{Message as _, Name as _};
use tokio::time::timeout;

use crate::support::*;

fn tls_cluster() -> Cluster {
    let source = ConfigSource {
        config_source_specifier: Some(ConfigSourceSpecifier::Ads(Default::default())),
        ..Default::default()
    };
    let certificate = SdsSecretConfig { name: "certificate".to_owned(), sds_config: Some(source) };
    let tls =
        CommonTlsContext { tls_certificate_sds_secret_configs: vec![certificate], ..Default::default() };
    let context = UpstreamTlsContext { common_tls_context: Some(tls), ..Default::default() };
    let any = Any { type_url: UpstreamTlsContext::type_url(), value: context.encode_to_vec() };
    let config_type = Some(transport_socket::ConfigType::TypedConfig(any));
    let socket = TransportSocket { name: "tls".to_owned(), config_type };
    Cluster { transport_socket: Some(socket), ..cluster("a", "1") }
}

fn certificate(key: &str) -> Secret {
    let key = DataSource {
        specifier: Some(data_source::Specifier::InlineString(key.to_owned())),
        ..Default::default()
    };
    let certificate = TlsCertificate { private_key: Some(key), ..Default::default() };
    Secret { name: "certificate".to_owned(), r#type: Some(secret::Type::TlsCertificate(certificate)) }
}

fn is_empty(secret: &Secret) -> bool {
    match &secret.r#type {
        Some(secret::Type::TlsCertificate(certificate)) => certificate.private_key.is_none(),
        _ => true,
    }
}

async fn next(configuration: &mut Configuration) -> Vec<Change> {
    timeout(PATIENCE, configuration.next()).await.unwrap().unwrap()
}

async fn waits_for_its_secret(protocol: Protocol) {
    let (endpoints_type, secret_type) = (TypeUrl::ENDPOINTS, TypeUrl::SECRET);
    let cache = SnapshotCache::new();
    let running = serve(cache.clone(), AllowAny, 0).await;
    let client = AdsClient::builder(node("n")).server(&running.uri).protocol(protocol).start().unwrap();
    let mut configuration = client.configuration_with_secrets(|candidate| match candidate {
        Candidate::Secret(secret) if is_empty(secret) => Err("has no key".to_owned()),
        _ => Ok(()),
    });
    let without = Snapshot::builder().with_type(TypeUrl::LISTENER).with_type(TypeUrl::SECRET);
    cache.set("n", without.add(&tls_cluster()).unwrap().add(&endpoints("a", 1)).unwrap().build());
    // The cluster is there and so are its endpoints, but not its secret: nothing is handed over.
    let accepted = |s: &mesh_xds::server::TypeStatus| s.state() == SyncState::Synced;
    let server = running.server.clone();
    tokio::select! {
        changes = next(&mut configuration) => panic!("{changes:?}"),
        () = until(&server, &endpoints_type, accepted) => {}
    }
    assert_eq!(configuration.waiting().0, ["a"]);
    let with = cache.get("n").unwrap().edit().add(&certificate("1")).unwrap().build();
    cache.set("n", with);
    let changes = next(&mut configuration).await;
    assert!(
        matches!(&changes[..], [Change::Secret(_), Change::Cluster { endpoints: Some(_), .. }]),
        "what is needed goes first: {changes:?}"
    );
    until(&running.server, &secret_type, |s| s.state() == SyncState::Synced).await;

    // A rotation goes through at once, a bad one is refused and named.
    cache.set("n", cache.get("n").unwrap().edit().add(&certificate("2")).unwrap().build());
    let changes = next(&mut configuration).await;
    assert!(matches!(&changes[..], [Change::Secret(secret)] if **secret == certificate("2")), "{changes:?}");
    let empty = Secret { name: "certificate".to_owned(), ..Default::default() };
    cache.set("n", cache.get("n").unwrap().edit().add(&empty).unwrap().build());
    let server = running.server.clone();
    tokio::select! {
        changes = next(&mut configuration) => panic!("{changes:?}"),
        () = until(&server, &secret_type, |s| {
            s.error.as_ref().is_some_and(|e| e.message == "certificate: has no key")
        }) => {}
    }
}

#[tokio::test]
async fn a_cluster_waits_for_its_secret_by_delta() {
    waits_for_its_secret(Protocol::Delta).await;
}

#[tokio::test]
async fn a_cluster_waits_for_its_secret_by_state_of_the_world() {
    waits_for_its_secret(Protocol::Sotw).await;
}

#[tokio::test]
async fn a_watched_secret_is_not_in_debug_output() {
    let cache = SnapshotCache::new();
    cache.set("n", Snapshot::builder().add(&certificate("hunter2")).unwrap().build());
    let running = serve(cache, AllowAny, 0).await;
    let client = AdsClient::builder(node("n")).server(&running.uri).start().unwrap();
    let mut watch = client.watch::<Secret>(Names::of(["certificate"]));
    let update = timeout(PATIENCE, watch.next()).await.unwrap().unwrap();
    let text = format!("{update:?}");
    assert!(text.contains("certificate") && !text.contains("hunter2"), "{text}");
    update.accept();
}
