//! Following a server: updates, rejections, restarts, slow neighbours.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use mesh_xds::TypeUrl;
use mesh_xds::client::{AdsClient, Candidate, Change, Names, Protocol};
use mesh_xds::pb::envoy::config::cluster::v3::Cluster;
use mesh_xds::pb::envoy::config::core::v3::Node;
use mesh_xds::pb::envoy::config::listener::v3::Listener;
use mesh_xds::pb::envoy::service::status::v3::{ClientStatusRequest, ConfigStatus};
use mesh_xds::server::{
    AdsServer, AllowAny, Authorization, Authorizer, Caller, Grant, Snapshot, SnapshotCache, SyncState,
};
use tokio::time::timeout;

use crate::support::*;

async fn follows_a_server(protocol: Protocol) {
    let cache = SnapshotCache::new();
    let running = serve(cache.clone(), AllowAny, 0).await;
    let client = AdsClient::builder(node("n")).server(&running.uri).protocol(protocol).start().unwrap();
    let mut configuration = client.configuration(|candidate| match candidate {
        Candidate::Cluster(c) if c.alt_stat_name == "bad" => Err("stat name is bad".to_owned()),
        _ => Ok(()),
    });
    cache.set(
        "n",
        Snapshot::builder()
            .add(&cluster("a", "1"))
            .unwrap()
            .add(&endpoints("a", 0))
            .unwrap()
            .add(&Listener { name: "l".into(), ..Default::default() })
            .unwrap()
            .build(),
    );
    let mut seen = Vec::new();
    while !configuration.is_complete() {
        seen.extend(timeout(PATIENCE, configuration.next()).await.unwrap().unwrap());
    }
    assert!(
        matches!(&seen[0], Change::Cluster { cluster, endpoints: Some(_) } if cluster.name == "a"),
        "{seen:?}"
    );
    assert!(matches!(&seen[1], Change::Listener { listener, .. } if listener.name == "l"), "{seen:?}");
    until(&running.server, &TypeUrl::CLUSTER, |s| s.state() == SyncState::Synced).await;

    // Endpoints alone change.
    let next = cache.get("n").unwrap().edit().add(&endpoints("a", 7)).unwrap().build();
    cache.set("n", next);
    let changes = timeout(PATIENCE, configuration.next()).await.unwrap().unwrap();
    assert!(
        matches!(&changes[..], [Change::Endpoints { clusters, .. }] if clusters == &["a"]),
        "{changes:?}"
    );

    // One cluster is bad: it is named, the other one applies, the old version stays.
    let next = cache.get("n").unwrap().edit().add(&cluster("a", "bad")).unwrap();
    cache.set("n", next.add(&cluster("b", "1")).unwrap().add(&endpoints("b", 0)).unwrap().build());
    let changes = timeout(PATIENCE, configuration.next()).await.unwrap().unwrap();
    assert!(matches!(&changes[..], [Change::Cluster { cluster, .. }] if cluster.name == "b"), "{changes:?}");
    until(&running.server, &TypeUrl::CLUSTER, |s| {
        s.state() == SyncState::Error && s.error.as_ref().is_some_and(|e| e.message == "a: stat name is bad")
    })
    .await;
    running.server.shut_down();
}

#[tokio::test]
async fn follows_a_server_by_delta() {
    follows_a_server(Protocol::Delta).await;
}

#[tokio::test]
async fn follows_a_server_by_state_of_the_world() {
    follows_a_server(Protocol::Sotw).await;
}

#[tokio::test]
async fn endpoints_of_a_first_push_come_in_portions() {
    let cache = SnapshotCache::new();
    let running = serve(cache.clone(), AllowAny, 0).await;
    let client = AdsClient::builder(node("n")).server(&running.uri).start().unwrap();
    let mut configuration = client.configuration(|candidate| match candidate {
        Candidate::Endpoints(e) if e.cluster_name == "c50" => Err("no".to_owned()),
        _ => Ok(()),
    });
    let mut snapshot = Snapshot::builder().add(&Listener { name: "l".into(), ..Default::default() }).unwrap();
    for name in (0..100).map(|n| format!("c{n}")) {
        snapshot = snapshot.add(&cluster(&name, "1")).unwrap().add(&endpoints(&name, 0)).unwrap();
    }
    cache.set("n", snapshot.build());
    let (mut seen, mut portions) = (Vec::new(), 0);
    while seen.len() < 99 {
        let changes = timeout(PATIENCE, configuration.next()).await.unwrap().unwrap();
        assert!(changes.len() <= 16, "{} changes at once", changes.len());
        assert!(!configuration.is_complete(), "one cluster waits, and so does the listener");
        portions += 1;
        seen.extend(changes.into_iter().map(|change| match change {
            Change::Cluster { cluster, endpoints: Some(endpoints) } => {
                assert_eq!(cluster.name, endpoints.cluster_name);
                cluster.name.clone()
            }
            other => panic!("{other:?}"),
        }));
    }
    assert_eq!(portions, 7);
    assert!(!seen.contains(&"c50".to_owned()), "{seen:?}");
    // The answer is about all of them.
    until(&running.server, &TypeUrl::ENDPOINTS, |s| {
        s.state() == SyncState::Error && s.error.as_ref().is_some_and(|e| e.message == "c50: no")
    })
    .await;
    let mut without = cache.get("n").unwrap().edit();
    without.remove(&TypeUrl::CLUSTER, "c50");
    cache.set("n", without.build());
    let last = timeout(PATIENCE, configuration.next()).await.unwrap().unwrap();
    assert!(matches!(&last[..], [Change::Listener { .. }]), "{last:?}");
    assert!(configuration.is_complete());
    running.server.shut_down();
}

#[tokio::test]
async fn a_restarted_server_sends_nothing_that_is_known() {
    let cache = SnapshotCache::new();
    let snapshot =
        Snapshot::builder().add(&cluster("a", "1")).unwrap().add(&endpoints("a", 0)).unwrap().build();
    cache.set("n", snapshot);
    let running = serve(cache.clone(), AllowAny, 0).await;
    let client = AdsClient::builder(node("n")).server(&running.uri).start().unwrap();
    let mut clusters = client.watch(Names::all());
    let update: mesh_xds::client::Update<Cluster> =
        timeout(PATIENCE, clusters.next()).await.unwrap().unwrap();
    assert_eq!(update.upserts[0].name, "a");
    update.accept();
    until(&running.server, &TypeUrl::CLUSTER, |s| s.state() == SyncState::Synced).await;

    let port: u16 = running.uri.rsplit(':').next().unwrap().parse().unwrap();
    running.server.shut_down();
    running.task.abort();
    let _ = running.task.await;
    // Another server with the same content, built anew: versions are hashes.
    let cache = SnapshotCache::new();
    let snapshot = Snapshot::builder().add(&cluster("a", "1")).unwrap().build();
    cache.set("n", snapshot);
    let running = serve(cache.clone(), AllowAny, port).await;
    // Nothing was sent, and yet an operator sees that it is in sync.
    until(&running.server, &TypeUrl::CLUSTER, |s| s.responses == 0 && s.state() == SyncState::Synced).await;
    let mut operator = operator(&running.server).await;
    let shown = operator.fetch_client_status(ClientStatusRequest::default()).await.unwrap().into_inner();
    let shown = &shown.config[0].generic_xds_configs[0];
    assert_eq!(shown.config_status, i32::from(ConfigStatus::Synced));
    let current = cache.get("n").unwrap().get(&TypeUrl::CLUSTER).unwrap().version();
    assert_eq!(shown.version_info, current.to_string());
    cache.set("n", cache.get("n").unwrap().edit().add(&cluster("b", "1")).unwrap().build());
    let update = timeout(PATIENCE, clusters.next()).await.unwrap().unwrap();
    let names: Vec<_> = update.upserts.iter().map(|u| u.name.as_str()).collect();
    assert_eq!(names, ["b"], "only what is new travels");
    update.accept();
    until(&running.server, &TypeUrl::CLUSTER, |s| s.responses == 1 && s.state() == SyncState::Synced).await;
}

/// Lets a caller with the right token be the node of that name.
struct Tokens(Mutex<u32>);

impl Authorizer for Tokens {
    fn authorize<'a>(&'a self, caller: &'a Caller, node: &'a Node) -> Authorization<'a> {
        Box::pin(async move {
            *self.0.lock().unwrap() += 1;
            let token = caller.metadata.get("authorization").and_then(|v| v.to_str().ok());
            match token {
                None => Err(tonic::Status::unauthenticated("no token")),
                Some(token) if token == format!("Bearer {}", node.id) => {
                    Ok(Grant { identity: node.id.clone(), group: None })
                }
                Some(_) => Err(tonic::Status::permission_denied("the token is of another node")),
            }
        })
    }
}

#[tokio::test]
async fn nobody_is_another_node() {
    let cache = SnapshotCache::new();
    cache.set("victim", Snapshot::builder().add(&cluster("secret", "1")).unwrap().build());
    let running = serve(cache, Tokens(Mutex::default()), 0).await;
    for (token, code) in
        [(None, tonic::Code::Unauthenticated), (Some("Bearer attacker"), tonic::Code::PermissionDenied)]
    {
        let client = AdsClient::builder(node("victim"))
            .server(&running.uri)
            .headers(move |headers| {
                if let Some(token) = token {
                    headers.insert("authorization", token.parse().map_err(|_| "not a header")?);
                }
                Ok(())
            })
            .start()
            .unwrap();
        let _watch = client.watch::<Cluster>(Names::all());
        let mut connection = client.connection();
        let refused = timeout(PATIENCE, connection.wait_for(|c| c.last_error.is_some()))
            .await
            .unwrap()
            .unwrap()
            .clone();
        let error = refused.last_error.unwrap();
        assert!(
            matches!(error, mesh_xds::client::ClientError::Stream { code: c, .. } if c == code),
            "{error}"
        );
        assert!(!refused.connected);
    }
    assert_eq!(running.server.client_count(), 0);
}

#[tokio::test]
async fn a_second_watch_of_a_type_ends() {
    let running = serve(SnapshotCache::new(), AllowAny, 0).await;
    let client = AdsClient::builder(node("n")).server(&running.uri).start().unwrap();
    let _first = client.watch::<Cluster>(Names::all());
    let mut second = client.watch::<Cluster>(Names::all());
    assert!(timeout(PATIENCE, second.next()).await.unwrap().is_none());
}

#[tokio::test]
async fn an_unreachable_server_is_followed_by_the_next() {
    let cache = SnapshotCache::new();
    cache.set("n", Snapshot::builder().add(&cluster("a", "1")).unwrap().build());
    let running = serve(cache, AllowAny, 0).await;
    let client =
        AdsClient::builder(node("n")).server("http://127.0.0.1:1").server(&running.uri).start().unwrap();
    let mut clusters = client.watch::<Cluster>(Names::all());
    let update = timeout(PATIENCE, clusters.next()).await.unwrap().unwrap();
    assert_eq!(update.upserts.len(), 1);
    update.accept();
    let connection = client.connection();
    assert_eq!(connection.borrow().server.trim_end_matches('/'), running.uri);
    assert_eq!(Arc::new(client).resources().await.unwrap()[&TypeUrl::CLUSTER]["a"].version.len(), 16);
}

#[tokio::test]
async fn a_client_that_stops_reading_delays_nobody_and_is_owed_one_response() {
    let cache = SnapshotCache::new();
    // More than a connection's windows and buffers hold, so that the server cannot write on.
    let bulk = |round: usize| {
        (0..2_000).fold(Snapshot::builder(), |builder, n| {
            builder.add(&cluster(&format!("{n}"), &format!("{round}{}", "x".repeat(2_000)))).unwrap()
        })
    };
    for id in ["deaf", "n"] {
        cache.set(id, bulk(0).build());
    }
    let running = serve(cache.clone(), AllowAny, 0).await;
    // It asks and never reads an answer.
    let deaf = RawStream::clusters(channel(&running.uri).await, "deaf").await.unwrap();
    let client = AdsClient::builder(node("n")).server(&running.uri).start().unwrap();
    let mut clusters = client.watch::<Cluster>(Names::all());
    for round in 1..=20 {
        cache.set("deaf", bulk(round).build());
        let next = cache.get("n").unwrap().edit().add(&cluster("marker", &round.to_string())).unwrap();
        cache.set("n", next.build());
        timeout(PATIENCE, async {
            loop {
                let update = clusters.next().await.unwrap();
                let marker = update.upserts.iter().find(|u| u.name == "marker");
                let seen = marker.is_some_and(|u| u.resource.alt_stat_name == round.to_string());
                update.accept();
                if seen {
                    return;
                }
            }
        })
        .await
        .expect("the other client is served at once");
    }
    // It is still heard: what it says does not wait for what it does not read.
    for n in 0..500 {
        let mut request = clusters_of("deaf");
        request.resource_names_subscribe = vec![format!("more-{n}")];
        deaf.ask(request);
    }
    eventually("all of its requests are read", || {
        let clients = running.server.clients();
        let deaf = clients.iter().find(|c| c.client.node.id == "deaf");
        deaf.is_some_and(|c| c.types[&TypeUrl::CLUSTER].names == 500)
    })
    .await;
    let status = running.server.clients();
    let deaf = status.iter().find(|c| c.client.node.id == "deaf").expect("still connected");
    let clusters = &deaf.types[&TypeUrl::CLUSTER];
    // Nothing is queued for it: of 21 sets, each larger than one response, it was sent what fits into the buffers on the
    // way, and it will get the sum of the others.
    assert!(clusters.responses <= 6, "{clusters:?}");
    assert_eq!(clusters.state(), SyncState::Stale);
}

#[tokio::test]
async fn a_storm_of_reconnects_is_sent_nothing_again() {
    const CLIENTS: usize = 200;
    let content = || {
        let clusters =
            (0..50).fold(Snapshot::builder(), |b, n| b.add(&cluster(&n.to_string(), "1")).unwrap());
        clusters.build()
    };
    let all = |cache: &SnapshotCache| (0..CLIENTS).for_each(|n| drop(cache.set(&n.to_string(), content())));
    let cache = SnapshotCache::new();
    all(&cache);
    let running = serve(cache, AllowAny, 0).await;
    let mut following = tokio::task::JoinSet::new();
    let mut clients = Vec::new();
    for n in 0..CLIENTS {
        let client = AdsClient::builder(node(&n.to_string())).server(&running.uri).start().unwrap();
        let mut watch = client.watch::<Cluster>(Names::all());
        following.spawn(async move {
            while let Some(update) = watch.next().await {
                update.accept();
            }
        });
        clients.push(client);
    }
    let settled = |server: &AdsServer| {
        let synced = |c: &mesh_xds::server::ClientStatus| {
            c.types.get(&TypeUrl::CLUSTER).is_some_and(|s| s.state() == SyncState::Synced)
        };
        server.clients().iter().filter(|c| synced(c)).count() == CLIENTS
    };
    let wait = async |server: &AdsServer, what: &dyn Fn(&AdsServer) -> bool| {
        let look = async {
            while !what(server) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(PATIENCE, look).await.expect("in time");
    };
    wait(&running.server, &settled).await;

    let port: u16 = running.uri.rsplit(':').next().unwrap().parse().unwrap();
    running.server.shut_down();
    running.task.abort();
    let _ = running.task.await;
    let cache = SnapshotCache::new();
    all(&cache);
    let running = serve(cache.clone(), AllowAny, port).await;
    let back = |server: &AdsServer| {
        let asked = server.clients().iter().filter(|c| c.types.contains_key(&TypeUrl::CLUSTER)).count();
        asked == CLIENTS
    };
    wait(&running.server, &back).await;
    // What comes next is one change for each, and the only response that each got from this server.
    for n in 0..CLIENTS {
        let next = cache.get(&n.to_string()).unwrap().edit().add(&cluster("new", "1")).unwrap().build();
        cache.set(&n.to_string(), next);
    }
    let told = |server: &AdsServer| {
        let answered = |s: &mesh_xds::server::TypeStatus| s.responses > 0 && s.state() == SyncState::Synced;
        let clients = server.clients();
        clients.iter().filter(|c| c.types.get(&TypeUrl::CLUSTER).is_some_and(answered)).count() == CLIENTS
    };
    wait(&running.server, &told).await;
    let responses: u64 = running.server.clients().iter().map(|c| c.types[&TypeUrl::CLUSTER].responses).sum();
    assert_eq!(responses, CLIENTS as u64);
}
