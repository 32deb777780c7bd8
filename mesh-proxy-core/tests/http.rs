//! HTTP through a proxy over loopback.

mod support;

use std::sync::Arc;

use mesh_proxy_core::{Proxy, config::*};
use support::*;

async fn proxy_with(
    routes: RouteConfiguration,
    clusters: Vec<Cluster>,
) -> (Proxy, std::net::SocketAddr, Memory) {
    let logs = Memory::default();
    let proxy =
        Proxy::builder().on_current_runtime().seed(7).access_logs(Arc::new(logs.clone())).build().unwrap();
    for cluster in clusters {
        proxy.handle().apply_cluster(cluster).unwrap();
    }
    let mut manager = manager(routes);
    manager.access_logs =
        vec![AccessLog { path: "log".into(), format: AccessLogFormat::Default, filters: Vec::new() }];
    proxy.handle().apply_listener(listener("front", http(manager))).unwrap();
    let address = proxy.handle().bound_addresses("front")[0];
    (proxy, address, logs)
}

#[tokio::test]
async fn a_request_travels_and_is_logged() {
    let app = App::echo().await;
    let (proxy, front, logs) =
        proxy_with(routes("r", vec![Route::forward("/", "app")]), vec![cluster("app", [app.address])]).await;
    let mut client = Client::connect(front).await;
    for _ in 0..3 {
        let (head, body) = client
            .send(
                "GET /a?b=c HTTP/1.1\r\nhost: app\r\nuser-agent: test\r\nconnection: keep-alive\r\n\
                 x-envoy-retry-on: 5xx\r\nx-forwarded-client-cert: forged\r\n\r\n",
            )
            .await;
        assert!(head.starts_with("HTTP/1.1 200 OK"), "{head}");
        assert!(head.contains("server: envoy") && head.contains("x-envoy-upstream-service-time: "), "{head}");
        let seen = body.to_ascii_lowercase();
        assert!(seen.starts_with("get /a?b=c http/1.1\r\n") && seen.contains("host: app\r\n"), "{seen}");
        assert!(seen.contains("x-request-id: ") && seen.contains("x-forwarded-proto: http\r\n"), "{seen}");
        for gone in ["x-envoy-retry-on", "x-forwarded-client-cert", "connection:"] {
            assert!(!seen.contains(gone), "{gone} in {seen}");
        }
    }
    assert_eq!((app.requests(), app.connections()), (3, 1), "the upstream connection is reused");
    until("three log lines", || {
        proxy.handle().flush_access_logs();
        logs.text().lines().count() == 3
    })
    .await;
    let line = logs.text().lines().next().unwrap().to_owned();
    assert!(line.contains("\"GET /a?b=c HTTP/1.1\" 200 - via_upstream - \"-\" 0 "), "{line}");
    assert!(line.contains(" \"test\" ") && line.contains(&format!("\"{}\" app ", app.address)), "{line}");
    let prometheus = proxy.handle().prometheus();
    assert!(prometheus.contains("istio_requests_total{"), "{prometheus}");
    assert!(proxy.handle().stats().text().contains("cluster.app.upstream_rq_total: 3\n"));
}

#[tokio::test]
async fn bodies_travel_both_ways() {
    let app = App::echo().await;
    let (_proxy, front, _) =
        proxy_with(routes("r", vec![Route::forward("/", "app")]), vec![cluster("app", [app.address])]).await;
    let mut client = Client::connect(front).await;
    let (_, body) = client.send("POST / HTTP/1.1\r\nhost: app\r\ncontent-length: 5\r\n\r\nhello").await;
    assert!(body.ends_with("\r\n\r\nhello"), "{body}");
    let chunked = "POST / HTTP/1.1\r\nhost: app\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n";
    let (_, body) = client.send(chunked).await;
    assert!(body.contains("hello"), "{body}");
    // A GET with a body must not lose it.
    let (_, body) = client.send(&chunked.replace("POST", "GET")).await;
    assert!(body.contains("hello"), "{body}");
}

#[tokio::test]
async fn answers_made_here_are_worded_like_envoys() {
    let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut direct = Route::forward("/direct", "x");
    direct.action =
        RouteAction::Direct(DirectResponse { status: http::StatusCode::IM_A_TEAPOT, body: "tea".into() });
    let mut invalid = Route::forward("/invalid", "x");
    invalid.action = RouteAction::Invalid { reason: "test".into() };
    let table = vec![
        Route::forward("/empty", "empty"),
        Route::forward("/missing", "missing"),
        Route::forward("/refused", "refused"),
        direct,
        invalid,
    ];
    let (proxy, front, logs) =
        proxy_with(routes("r", table), vec![cluster("empty", []), cluster("refused", [gone])]).await;
    let mut client = Client::connect(front).await;
    let empty = client.get("/empty").await;
    assert_eq!((code(&empty), empty.1.as_str()), (503, "no healthy upstream"));
    assert_eq!(code(&client.get("/missing").await), 503);
    let refused = client.get("/refused").await;
    assert_eq!(code(&refused), 503);
    assert!(
        refused.1.starts_with("upstream connect error or disconnect/reset before headers. "),
        "{refused:?}"
    );
    assert_eq!(client.get("/direct").await.1, "tea");
    assert_eq!(code(&client.get("/invalid").await), 500);
    assert_eq!(code(&client.get("/other").await), 404);
    let no_host = client.send("GET / HTTP/1.1\r\n\r\n").await;
    assert_eq!(code(&no_host), 400);
    until("seven log lines", || {
        proxy.handle().flush_access_logs();
        logs.text().lines().count() == 7
    })
    .await;
    let text = logs.text();
    for expected in [
        " 503 UH no_healthy_upstream ",
        " 503 NC cluster_not_found ",
        " 503 UF upstream_reset_before_response_started{remote_connection_failure|delayed_connect_error:_Connection_refused} ",
        " 418 - direct_response ",
        " 404 NR route_not_found ",
        " 400 DPE missing_host_header ",
    ] {
        assert!(text.contains(expected), "{expected} in {text}");
    }
}

#[tokio::test]
async fn weights_divide_requests_and_follow_an_update() {
    let (one, two) = (App::echo().await, App::echo().await);
    let weighted = |a, b| {
        let mut route = Route::forward("/", "x");
        let all = vec![WeightedCluster::new("one", a), WeightedCluster::new("two", b)];
        route.action = RouteAction::Forward(Box::new(Forward::new(ClusterSpecifier::Weighted(all))));
        routes("split", vec![route])
    };
    let proxy = Proxy::builder().on_current_runtime().seed(1).build().unwrap();
    let handle = proxy.handle();
    handle.apply_cluster(cluster("one", [one.address])).unwrap();
    handle.apply_cluster(cluster("two", [two.address])).unwrap();
    let manager = HttpConnectionManager::new("test", RouteSource::Rds("split".into()));
    handle.apply_listener(listener("front", http(manager))).unwrap();
    assert_eq!(handle.missing().routes, vec![Arc::<str>::from("split")]);
    let mut client = Client::connect(handle.bound_addresses("front")[0]).await;
    assert_eq!(code(&client.get("/").await), 404, "no routes yet");
    handle.apply_routes(weighted(90, 10)).unwrap();
    assert!(handle.missing().is_empty());
    for _ in 0..400 {
        assert_eq!(code(&client.get("/").await), 200);
    }
    let before = (one.requests(), two.requests());
    assert!((340..=380).contains(&before.0), "{before:?}");
    // The same connection follows the new weights.
    handle.apply_routes(weighted(0, 1)).unwrap();
    for _ in 0..10 {
        assert_eq!(code(&client.get("/").await), 200);
    }
    assert_eq!((one.requests(), two.requests()), (before.0, before.1 + 10));
}

#[tokio::test]
async fn endpoints_follow_updates_without_a_failed_request() {
    let (one, two) = (App::echo().await, App::echo().await);
    let proxy = Proxy::builder().on_current_runtime().seed(1).build().unwrap();
    let handle = proxy.handle();
    let discovery = Discovery::Eds { service_name: "svc".into() };
    handle.apply_cluster(Cluster::new("svc", discovery)).unwrap();
    assert_eq!(handle.missing().endpoints, vec![Arc::<str>::from("svc")]);
    handle.apply_endpoints(LoadAssignment::new("svc", [one.address])).unwrap();
    handle
        .apply_listener(listener("front", http(manager(routes("r", vec![Route::forward("/", "svc")])))))
        .unwrap();
    let front = handle.bound_addresses("front")[0];
    let mut client = Client::connect(front).await;
    for round in 0..20 {
        let to = if round % 2 == 0 { one.address } else { two.address };
        handle.apply_endpoints(LoadAssignment::new("svc", [to])).unwrap();
        for _ in 0..5 {
            assert_eq!(code(&client.get("/").await), 200);
            assert_eq!(code(&get(front, "/").await), 200);
        }
    }
    assert_eq!((one.requests(), two.requests()), (100, 100));
}

#[tokio::test]
async fn a_connect_failure_is_retried_on_another_host() {
    let app = App::echo().await;
    let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut route = Route::forward("/", "app");
    let mut forward = Forward::new(ClusterSpecifier::Name("app".into()));
    forward.retry = Some(Arc::new(RetryPolicy {
        on: RetryOn::parse("connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes"),
        num_retries: 2,
        avoid_previous_hosts: true,
        host_selection_attempts: 5,
        ..RetryPolicy::default()
    }));
    route.action = RouteAction::Forward(Box::new(forward));
    let (proxy, front, _) =
        proxy_with(routes("r", vec![route]), vec![cluster("app", [app.address, gone])]).await;
    let mut client = Client::connect(front).await;
    for _ in 0..40 {
        let post = client.send("POST / HTTP/1.1\r\nhost: app\r\ncontent-length: 5\r\n\r\nhello").await;
        assert_eq!(code(&post), 200);
        assert!(post.1.ends_with("hello"));
    }
    assert_eq!(app.requests(), 40);
    let stats = proxy.handle().stats().text();
    let retries: u64 = stats
        .lines()
        .find_map(|l| l.strip_prefix("cluster.app.upstream_rq_retry: "))
        .and_then(|n| n.parse().ok())
        .unwrap();
    assert!(retries > 5, "{retries}");
}

#[tokio::test]
async fn a_connection_closed_between_requests_costs_nobody_a_request() {
    // Every connection serves one request and is then closed without notice.
    let app = App::start(Arc::new(|n, _| if n % 2 == 0 { Some(ok("x")) } else { None })).await;
    let mut route = Route::forward("/", "app");
    let mut forward = Forward::new(ClusterSpecifier::Name("app".into()));
    forward.retry = Some(Arc::new(RetryPolicy {
        on: RetryOn::parse("connect-failure"),
        num_retries: 2,
        ..RetryPolicy::default()
    }));
    route.action = RouteAction::Forward(Box::new(forward));
    let (_proxy, front, _) = proxy_with(routes("r", vec![route]), vec![cluster("app", [app.address])]).await;
    let mut client = Client::connect(front).await;
    for _ in 0..10 {
        assert_eq!(code(&client.get("/").await), 200);
    }
}

#[tokio::test]
async fn responses_are_retried_and_bodies_replayed() {
    let app = App::start(Arc::new(|n, request| {
        assert!(request.ends_with("hello"), "{request}");
        Some(if n == 0 { status(503) } else { ok(request) })
    }))
    .await;
    let mut route = Route::forward("/", "app");
    let mut forward = Forward::new(ClusterSpecifier::Name("app".into()));
    forward.retry =
        Some(Arc::new(RetryPolicy { on: RetryOn::parse("5xx"), num_retries: 2, ..RetryPolicy::default() }));
    route.action = RouteAction::Forward(Box::new(forward));
    let (_proxy, front, _) = proxy_with(routes("r", vec![route]), vec![cluster("app", [app.address])]).await;
    let post = Client::connect(front)
        .await
        .send("POST / HTTP/1.1\r\nhost: app\r\ncontent-length: 5\r\n\r\nhello")
        .await;
    assert_eq!((code(&post), app.requests()), (200, 2));
}

#[tokio::test]
async fn a_replaced_listener_asks_its_clients_to_go() {
    let app = App::echo().await;
    let (proxy, front, _) =
        proxy_with(routes("r", vec![Route::forward("/", "app")]), vec![cluster("app", [app.address])]).await;
    let mut client = Client::connect(front).await;
    assert!(!client.get("/").await.0.contains("connection: close"));
    proxy.handle().drain(true);
    assert!(!client.get("/").await.0.contains("connection: close"), "only inbound listeners drain");
    proxy.handle().drain(false);
    assert!(client.get("/").await.0.contains("connection: close"));
    assert_eq!(code(&get(front, "/").await), 200, "new connections are still served");
    assert_eq!(proxy.handle().shutdown(std::time::Duration::from_secs(5)).await, 0);
}

#[tokio::test]
async fn a_websocket_is_joined_byte_by_byte() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let app = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let to = app.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut stream, _) = app.accept().await.unwrap();
        let (head, _) = read_message(&mut stream, &mut Vec::new()).await.unwrap();
        assert!(
            head.contains("upgrade: websocket\r\n") && head.contains("connection: upgrade\r\n"),
            "{head}"
        );
        let accepted =
            "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
        stream.write_all(accepted.as_bytes()).await.unwrap();
        let mut bytes = [0; 5];
        stream.read_exact(&mut bytes).await.unwrap();
        bytes.reverse();
        stream.write_all(&bytes).await.unwrap();
    });
    let proxy = Proxy::builder().on_current_runtime().build().unwrap();
    proxy.handle().apply_cluster(cluster("app", [to])).unwrap();
    let mut manager = manager(routes("r", vec![Route::forward("/", "app")]));
    manager.upgrades = vec!["websocket".into()];
    proxy.handle().apply_listener(listener("front", http(manager))).unwrap();
    let mut client = Client::connect(proxy.handle().bound_addresses("front")[0]).await;
    let asked = "GET /ws HTTP/1.1\r\nhost: app\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    let switched = client.send(asked).await;
    assert_eq!(code(&switched), 101);
    client.stream.write_all(b"hello").await.unwrap();
    let mut back = [0; 5];
    client.stream.read_exact(&mut back).await.unwrap();
    assert_eq!(&back, b"olleh");
}
