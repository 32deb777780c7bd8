//! What ends a stream, what slows it, and what is left of it.

use std::sync::Arc;
use std::time::Duration;

use mesh_xds::TypeUrl;
use mesh_xds::client::{AdsClient, ClientError, Names, Protocol, ResourceStatus};
use mesh_xds::pb::envoy::config::cluster::v3::Cluster;
use mesh_xds::pb::envoy::config::cluster::v3::cluster::EdsClusterConfig;
use mesh_xds::pb::envoy::config::core::v3::{ConfigSource, Node};
use mesh_xds::server::{
    AdsServer, AllowAny, Authorization, Authorizer, Caller, EncodedResource, ServerConfig, Snapshot,
    SnapshotCache,
};
use tokio::time::{Instant, timeout};
use tonic::Code;

use crate::support::*;

async fn limited(limit: impl FnOnce(&mut ServerConfig)) -> Running {
    let mut config = ServerConfig::default();
    config.group = Arc::new(|_| "all".to_owned());
    limit(&mut config);
    let cache = SnapshotCache::new();
    cache.set("all", Snapshot::builder().add(&cluster("a", "1")).unwrap().build());
    run(AdsServer::new(cache, AllowAny, config), 0).await
}

#[tokio::test]
async fn a_stream_that_says_nothing_is_ended() {
    let running = limited(|c| c.first_request_timeout = Duration::from_millis(50)).await;
    let mut silent = RawStream::open(channel(&running.uri).await).await.unwrap();
    assert_eq!(silent.end().await.code(), Code::DeadlineExceeded);
}

/// Never makes up its mind.
struct Undecided;

impl Authorizer for Undecided {
    fn authorize<'a>(&'a self, _: &'a Caller, _: &'a Node) -> Authorization<'a> {
        Box::pin(std::future::pending())
    }
}

#[tokio::test]
async fn an_authorizer_that_takes_too_long_ends_the_stream() {
    let mut config = ServerConfig::default();
    config.authorization_timeout = Duration::from_millis(50);
    let running = run(AdsServer::new(SnapshotCache::new(), Undecided, config), 0).await;
    let mut stream = RawStream::clusters(channel(&running.uri).await, "n").await.unwrap();
    assert_eq!(stream.end().await.code(), Code::Unavailable);
    assert_eq!((running.server.client_count(), running.server.cache().groups().len()), (0, 0));
}

#[tokio::test]
async fn a_request_that_is_too_large_is_refused() {
    let running = limited(|c| c.max_request_bytes = 1_000).await;
    let mut greedy = RawStream::clusters(channel(&running.uri).await, "n").await.unwrap();
    assert_eq!(greedy.responses.message().await.unwrap().unwrap().resources.len(), 1);
    let mut request = clusters_of("n");
    request.resource_names_subscribe = vec!["x".repeat(1_000)];
    greedy.ask(request);
    assert_eq!(greedy.end().await.code(), Code::ResourceExhausted);
}

#[tokio::test]
async fn a_response_that_is_too_large_ends_the_stream_and_not_the_client() {
    let running = limited(|_| {}).await;
    let client =
        AdsClient::builder(node("n")).server(&running.uri).max_response_bytes(1_000).start().unwrap();
    let mut clusters = client.watch::<Cluster>(Names::all());
    timeout(PATIENCE, clusters.next()).await.unwrap().unwrap().accept();
    let cache = running.server.cache();
    let large = cache.get("all").unwrap().edit().add(&cluster("large", &"x".repeat(1_000))).unwrap();
    cache.set("all", large.build());
    let mut connection = client.connection();
    let ended = timeout(PATIENCE, connection.wait_for(|c| c.last_error.is_some())).await.unwrap().unwrap();
    assert!(
        matches!(ended.last_error, Some(ClientError::Stream { code: Code::OutOfRange, .. })),
        "{ended:?}"
    );
    drop(ended);
    let known = client.resources().await.unwrap();
    assert_eq!(known[&TypeUrl::CLUSTER].keys().collect::<Vec<_>>(), ["a"], "what it had it has");
    // A smaller one is heard of again.
    cache.set("all", Snapshot::builder().add(&cluster("b", "1")).unwrap().build());
    let update = timeout(PATIENCE, clusters.next()).await.unwrap().unwrap();
    assert_eq!((update.upserts[0].name.as_str(), &*update.removed), ("b", &["a".to_owned()][..]));
}

#[tokio::test]
async fn a_response_of_many_mebibytes_is_read() {
    for protocol in [Protocol::Delta, Protocol::Sotw] {
        let running = limited(|_| {}).await;
        let large = Snapshot::builder().add(&cluster("large", &"x".repeat(6 << 20))).unwrap();
        running.server.cache().set("all", large.build());
        let client = AdsClient::builder(node("n")).server(&running.uri).protocol(protocol).start().unwrap();
        let mut clusters = client.watch::<Cluster>(Names::all());
        let update = timeout(PATIENCE, clusters.next()).await.unwrap().unwrap();
        assert_eq!(update.upserts[0].resource.alt_stat_name.len(), 6 << 20);
        update.accept();
    }
}

#[tokio::test]
async fn a_request_that_breaks_the_protocol_is_invalid() {
    let running = limited(|c| {
        c.rules.max_names = 2;
        c.rules.max_name_bytes = 100;
    })
    .await;
    let nameless = clusters_of("");
    let mut typeless = clusters_of("n");
    typeless.type_url.clear();
    let mut many = clusters_of("n");
    many.resource_names_subscribe = ["a", "b", "c"].map(str::to_owned).into();
    let mut long = clusters_of("n");
    long.resource_names_subscribe = vec!["x".repeat(100)];
    for (request, code) in [
        (nameless, Code::InvalidArgument),
        (typeless, Code::InvalidArgument),
        (many, Code::ResourceExhausted),
        (long, Code::ResourceExhausted),
    ] {
        let mut stream = RawStream::open(channel(&running.uri).await).await.unwrap();
        stream.ask(request);
        assert_eq!(stream.end().await.code(), code);
    }
    // A stream cannot become another node.
    let mut stream = RawStream::clusters(channel(&running.uri).await, "n").await.unwrap();
    stream.ask(clusters_of("victim"));
    assert_eq!(stream.end().await.code(), Code::InvalidArgument);
    eventually("nobody is left", || running.server.client_count() == 0).await;
}

#[tokio::test]
async fn too_many_new_streams_are_told_to_come_later() {
    let running = limited(|c| c.streams_per_second = Some(3)).await;
    let channel = channel(&running.uri).await;
    let (mut open, mut refused) = (Vec::new(), 0);
    let started = Instant::now();
    for n in 0..20 {
        match RawStream::clusters(channel.clone(), &n.to_string()).await {
            Ok(stream) => open.push(stream),
            Err(status) => {
                assert_eq!(status.code(), Code::ResourceExhausted);
                refused += 1;
            }
        }
    }
    let allowed = 3 + 3 * started.elapsed().as_secs() as usize + 3;
    assert!(open.len() >= 3 && open.len() <= allowed, "{} of 20 in {:?}", open.len(), started.elapsed());
    assert_eq!(open.len() + refused, 20);
    // Those that were let in are served.
    assert_eq!(open[0].responses.message().await.unwrap().unwrap().resources.len(), 1);
}

#[tokio::test]
async fn a_flood_of_requests_is_read_slowly() {
    let running = limited(|c| c.requests_per_second = 10).await;
    let mut flood = RawStream::clusters(channel(&running.uri).await, "n").await.unwrap();
    let started = Instant::now();
    for _ in 0..120 {
        let mut again = clusters_of("n");
        again.resource_names_subscribe = vec!["a".to_owned()];
        flood.ask(again);
    }
    let mut last = clusters_of("n");
    last.resource_names_subscribe = vec!["last".to_owned()];
    flood.ask(last);
    let answered = async {
        while !flood
            .responses
            .message()
            .await
            .unwrap()
            .unwrap()
            .removed_resources
            .contains(&"last".to_owned())
        {}
    };
    timeout(PATIENCE, answered).await.unwrap();
    // A burst of a hundred passes; the 22 that follow take a tenth of a second each.
    assert!(started.elapsed() >= Duration::from_millis(1_900), "{:?}", started.elapsed());
}

#[tokio::test]
async fn an_old_stream_is_ended_and_its_client_comes_back() {
    let running = limited(|c| c.max_stream_age = Some(Duration::from_millis(200))).await;
    let mut raw = RawStream::clusters(channel(&running.uri).await, "raw").await.unwrap();
    let status = raw.end().await;
    assert_eq!(
        (status.code(), status.message()),
        (Code::Unavailable, "the stream reached its age; connect again")
    );

    let client = AdsClient::builder(node("n")).server(&running.uri).start().unwrap();
    let mut clusters = client.watch::<Cluster>(Names::all());
    timeout(PATIENCE, clusters.next()).await.unwrap().unwrap().accept();
    let mut connection = client.connection();
    let state = timeout(PATIENCE, connection.wait_for(|c| c.streams == 3)).await.unwrap().unwrap().clone();
    // Each stream but the first had nothing to say that is new.
    assert!(matches!(state.last_error, Some(ClientError::Stream { code: Code::Unavailable, .. })));
}

#[tokio::test]
async fn times_that_no_clock_reaches_are_forever() {
    let running = limited(|c| c.max_stream_age = Some(Duration::MAX)).await;
    let source = ConfigSource {
        initial_fetch_timeout: Some(prost_types::Duration { seconds: i64::MAX, nanos: 0 }),
        ..Default::default()
    };
    let eds_cluster_config = Some(EdsClusterConfig { eds_config: Some(source), ..Default::default() });
    let patient = Cluster { eds_cluster_config, ..cluster("patient", "1") };
    let lasting = EncodedResource::new(&patient).unwrap().with_ttl(Duration::from_secs(i64::MAX as u64));
    let mut builder = Snapshot::builder().with_type(TypeUrl::LISTENER);
    builder.insert(Arc::new(lasting.unwrap()));
    running.server.cache().set("all", builder.build());
    let client = AdsClient::builder(node("n")).server(&running.uri).missing_after(Some(Duration::MAX));
    let client = client.start().unwrap();
    let mut configuration = client.configuration(|_| Ok(()));
    while !configuration.is_complete() {
        timeout(PATIENCE, configuration.next()).await.unwrap().expect("the client is alive");
    }
    let state = client.resources().await.unwrap();
    assert_eq!(state[&TypeUrl::CLUSTER]["patient"].status, ResourceStatus::Acked);
    assert_eq!(client.connection().borrow().streams, 1);
}

#[tokio::test]
async fn a_server_that_shuts_down_says_so_and_takes_nobody_in() {
    let running = limited(|_| {}).await;
    let mut stream = RawStream::clusters(channel(&running.uri).await, "n").await.unwrap();
    stream.responses.message().await.unwrap().unwrap();
    running.server.shut_down();
    assert_eq!(stream.end().await.code(), Code::Unavailable);
    eventually("everybody is gone", || running.server.client_count() == 0).await;
    let refused = RawStream::clusters(channel(&running.uri).await, "n").await.err().unwrap();
    assert_eq!(refused.code(), Code::Unavailable);
}

#[tokio::test]
async fn whatever_a_node_calls_itself_leaves_nothing_behind() {
    let cache = SnapshotCache::new();
    let running = serve(cache.clone(), AllowAny, 0).await;
    let channel = channel(&running.uri).await;
    let mut streams = Vec::new();
    for n in 0..50 {
        streams.push(RawStream::clusters(channel.clone(), &format!("nobody-{n}")).await.unwrap());
    }
    eventually("all are connected", || running.server.client_count() == 50).await;
    assert_eq!(cache.groups().len(), 50);
    // One of them gets a snapshot: that one stays.
    cache.set("nobody-7", Snapshot::builder().add(&cluster("a", "1")).unwrap().build());
    streams.clear();
    eventually("all are gone", || running.server.client_count() == 0).await;
    assert_eq!(cache.groups().iter().map(|g| &**g).collect::<Vec<_>>(), ["nobody-7"]);
    assert!(cache.get("nobody-7").unwrap().get(&TypeUrl::CLUSTER).is_some());
    cache.clear("nobody-7");
    assert!(cache.groups().is_empty());
}
