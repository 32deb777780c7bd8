//! SDS in the dependency order: clusters and listeners wait for their secrets, the old versions serve meanwhile.

use std::sync::Arc;
use std::time::Duration;

use mesh_xds::client::{Candidate, Change, ClientCore, ClientResponse, Names, Protocol, Warming};
use mesh_xds::pb::envoy::config::cluster::v3::Cluster;
use mesh_xds::pb::envoy::config::core::v3::config_source::ConfigSourceSpecifier;
use mesh_xds::pb::envoy::config::core::v3::{
    ConfigSource, DataSource, TransportSocket, data_source, transport_socket,
};
use mesh_xds::pb::envoy::config::listener::v3::{FilterChain, Listener};
use mesh_xds::pb::envoy::extensions::transport_sockets::tls::v3::common_tls_context::ValidationContextType;
use mesh_xds::pb::envoy::extensions::transport_sockets::tls::v3::{
    CommonTlsContext, DownstreamTlsContext, SdsSecretConfig, Secret, TlsCertificate, UpstreamTlsContext,
    secret,
};
use mesh_xds::server::{EncodedResource, Snapshot};
use mesh_xds::{Any, TypeUrl};

use crate::support::*;

/// A TLS context with one secret as certificate and one to validate with, both over ADS.
fn tls(certificate: &str, roots: &str) -> CommonTlsContext {
    CommonTlsContext {
        tls_certificate_sds_secret_configs: vec![over(
            certificate,
            ConfigSourceSpecifier::Ads(Default::default()),
        )],
        validation_context_type: Some(ValidationContextType::ValidationContextSdsSecretConfig(over(
            roots,
            ConfigSourceSpecifier::Self_(Default::default()),
        ))),
        ..Default::default()
    }
}

fn over(name: &str, specifier: ConfigSourceSpecifier) -> SdsSecretConfig {
    let source = ConfigSource { config_source_specifier: Some(specifier), ..Default::default() };
    SdsSecretConfig { name: name.to_owned(), sds_config: Some(source) }
}

fn socket<M: prost::Name>(context: &M) -> Option<TransportSocket> {
    let any = Any { type_url: M::type_url(), value: context.encode_to_vec() };
    Some(TransportSocket {
        name: "tls".to_owned(),
        config_type: Some(transport_socket::ConfigType::TypedConfig(any)),
    })
}

fn tls_cluster(cluster: Cluster, context: CommonTlsContext) -> Arc<Cluster> {
    let context = UpstreamTlsContext { common_tls_context: Some(context), ..Default::default() };
    Arc::new(Cluster { transport_socket: socket(&context), ..cluster })
}

fn tls_listener(mark: &str, context: CommonTlsContext) -> Arc<Listener> {
    let context = DownstreamTlsContext { common_tls_context: Some(context), ..Default::default() };
    let chain = FilterChain { transport_socket: socket(&context), ..Default::default() };
    Arc::new(Listener { filter_chains: vec![chain], ..listener("l", mark) })
}

fn secret(name: &str) -> Arc<Secret> {
    Arc::new(Secret { name: name.to_owned(), ..Default::default() })
}

/// The changes in few words.
fn words(changes: &[Change]) -> Vec<String> {
    let word = |change: &Change| match change {
        Change::Cluster { cluster, endpoints } => {
            format!(
                "cluster {}{}",
                cluster.alt_stat_name,
                if endpoints.is_some() { " with endpoints" } else { "" }
            )
        }
        Change::Endpoints { .. } => "endpoints".to_owned(),
        Change::Listener { listener, .. } => format!("listener {}", listener.stat_prefix),
        Change::Secret(secret) => format!("secret {}", secret.name),
        other => format!("{other:?}"),
    };
    changes.iter().map(word).collect()
}

#[test]
fn s27_a_cluster_waits_for_its_secrets_and_its_endpoints() {
    let mut warming = Warming::with_secrets();
    assert!(
        warming
            .on_clusters(NOW, vec![tls_cluster(eds_cluster("c", "1"), tls("cert", "roots"))], &[])
            .is_empty()
    );
    let follow = warming.follow();
    assert_eq!(follow.secrets.into_iter().collect::<Vec<_>>(), ["cert", "roots"]);
    assert_eq!(follow.endpoints.into_iter().collect::<Vec<_>>(), ["c"]);
    assert_eq!(words(&warming.on_secrets(NOW, vec![secret("cert")])), ["secret cert"]);
    assert!(warming.on_endpoints(NOW, vec![Arc::new(endpoints("c", 1))], &[]).is_empty());
    assert_eq!(warming.waiting().0, ["c"]);
    let changes = warming.on_secrets(NOW, vec![secret("roots")]);
    assert_eq!(words(&changes), ["secret roots", "cluster 1 with endpoints"], "what is needed goes first");

    // A new version that needs another secret: the old one serves, and its endpoints are still followed.
    assert!(
        warming
            .on_clusters(NOW, vec![tls_cluster(eds_cluster("c", "2"), tls("other", "roots"))], &[])
            .is_empty()
    );
    assert_eq!(warming.follow().secrets.into_iter().collect::<Vec<_>>(), ["cert", "other", "roots"]);
    assert_eq!(words(&warming.on_endpoints(NOW, vec![Arc::new(endpoints("c", 2))], &[])), ["endpoints"]);
    let changes = warming.on_secrets(NOW, vec![secret("other")]);
    assert_eq!(words(&changes), ["secret other", "cluster 2 with endpoints"]);
    assert_eq!(warming.follow().secrets.into_iter().collect::<Vec<_>>(), ["other", "roots"]);
    // A rotation waits for nobody.
    assert_eq!(words(&warming.on_secrets(NOW, vec![secret("other")])), ["secret other"]);
}

#[test]
fn s27_a_listener_waits_for_its_secrets() {
    let mut warming = Warming::with_secrets();
    warming.on_clusters(NOW, Vec::new(), &[]);
    assert!(warming.on_listeners(NOW, vec![tls_listener("1", tls("cert", "roots"))], &[]).is_empty());
    let changes = warming.on_secrets(NOW, vec![secret("cert"), secret("roots")]);
    assert_eq!(words(&changes), ["secret cert", "secret roots", "listener 1"]);
    // Known secrets are used at once.
    let changes = warming.on_listeners(NOW, vec![tls_listener("2", tls("cert", "roots"))], &[]);
    assert_eq!(words(&changes), ["listener 2"]);
}

#[test]
fn s29_a_missing_secret_is_waited_for_as_long_as_was_said() {
    let mut warming = Warming::with_secrets();
    assert!(
        warming.on_clusters(NOW, vec![tls_cluster(cluster("c", "1"), tls("cert", "roots"))], &[]).is_empty()
    );
    warming.on_secrets(NOW, vec![secret("roots")]);
    let late = NOW + Duration::from_secs(15);
    assert_eq!(warming.next_timer(), Some(late));
    assert_eq!(words(&warming.on_timer(late)), ["cluster 1"]);
}

#[test]
fn secrets_from_elsewhere_and_unfollowed_ones_are_not_waited_for() {
    let path = ConfigSourceSpecifier::PathConfigSource(Default::default());
    let local = CommonTlsContext {
        tls_certificate_sds_secret_configs: vec![over("cert", path)],
        ..Default::default()
    };
    let mut warming = Warming::with_secrets();
    assert_eq!(
        words(&warming.on_clusters(NOW, vec![tls_cluster(cluster("c", "1"), local)], &[])),
        ["cluster 1"]
    );
    assert!(warming.follow().secrets.is_empty());
    let mut warming = Warming::new();
    let over_ads = tls_cluster(cluster("c", "1"), tls("cert", "roots"));
    assert_eq!(words(&warming.on_clusters(NOW, vec![over_ads], &[])), ["cluster 1"]);
}

#[test]
fn a_private_key_is_in_no_debug_output() {
    let key = DataSource {
        specifier: Some(data_source::Specifier::InlineString("hunter2".to_owned())),
        ..Default::default()
    };
    let certificate = TlsCertificate { private_key: Some(key), ..Default::default() };
    let secret = Secret { name: "mine".to_owned(), r#type: Some(secret::Type::TlsCertificate(certificate)) };
    let encoded = Arc::new(EncodedResource::new(&secret).unwrap());
    let mut builder = Snapshot::builder();
    builder.insert(encoded.clone());
    let snapshot = builder.build();
    let mut shown = vec![
        format!("{:?}", Candidate::Secret(&secret)),
        format!("{:?}", Change::Secret(Arc::new(secret))),
        format!("{encoded:?} {snapshot:?}"),
    ];
    // On its way from a server to a client, in both variants.
    for protocol in [Protocol::Delta, Protocol::Sotw] {
        let mut client = ClientCore::new(protocol, node());
        client.watch(&TypeUrl::SECRET, Names::of(["mine"]));
        client.connected();
        client.next_request(NOW).unwrap();
        let response = match protocol {
            Protocol::Delta => {
                let mut server = Delta::new(snapshot.clone());
                server.subscribe(&TypeUrl::SECRET, &["mine"]);
                let response = server.next().unwrap();
                shown.push(format!("{response:?} {server:?}", server = server.0));
                ClientResponse::Delta(Box::new(response.to_delta("")))
            }
            Protocol::Sotw => {
                let mut server = Sotw::new(snapshot.clone());
                server.ask(&TypeUrl::SECRET, &["mine"], "");
                let response = server.next().unwrap();
                shown.push(format!("{response:?} {server:?}", server = server.0));
                ClientResponse::Sotw(Box::new(response.to_sotw("")))
            }
        };
        shown.push(format!("{response:?} mine"));
        shown.push(format!("{:?}", client.on_response(NOW, response).unwrap()));
    }
    // As text, and as the numbers in which bytes are shown.
    for text in shown {
        assert!(text.contains("mine"), "{text}");
        assert!(!text.contains("hunter2") && !text.contains("104, 117, 110, 116, 101, 114, 50"), "{text}");
    }
}
