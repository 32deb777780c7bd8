//! Limits, ejection, mirroring, local policies.

mod support;

use std::{sync::Arc, time::Duration};

use mesh_proxy_core::{Proxy, config::*};
use support::*;

async fn front(
    routes: RouteConfiguration,
    filters: Vec<HttpFilterConfig>,
    clusters: Vec<Cluster>,
) -> (Proxy, std::net::SocketAddr) {
    let proxy = Proxy::builder().on_current_runtime().seed(3).build().unwrap();
    for cluster in clusters {
        proxy.handle().apply_cluster(cluster).unwrap();
    }
    let mut manager = manager(routes);
    manager.filters.splice(0..0, filters);
    proxy.handle().apply_listener(listener("front", http(manager))).unwrap();
    let address = proxy.handle().bound_addresses("front")[0];
    (proxy, address)
}

#[tokio::test]
async fn a_failing_host_is_ejected() {
    let good = App::echo().await;
    let bad = App::start(Arc::new(|_, _| Some(status(503)))).await;
    let mut to = cluster("app", [good.address, bad.address]);
    to.outlier_detection = Some(OutlierDetection {
        consecutive_5xx: 3,
        max_ejection_percent: 50,
        ..OutlierDetection::default()
    });
    let (proxy, address) = front(routes("r", vec![Route::forward("/", "app")]), vec![], vec![to]).await;
    let mut client = Client::connect(address).await;
    let mut failed = 0;
    for _ in 0..100 {
        failed += usize::from(code(&client.get("/").await) == 503);
    }
    assert_eq!((failed, bad.requests()), (3, 3));
    let snapshot = proxy.handle().clusters();
    assert_eq!(snapshot[0].endpoints.iter().filter(|e| e.ejected).count(), 1);
}

#[tokio::test]
async fn a_full_cluster_overflows() {
    let app = App::start(Arc::new(|_, _| None)).await;
    let mut to = cluster("app", [app.address]);
    to.circuit_breakers.max_requests = 0;
    let (_proxy, address) = front(routes("r", vec![Route::forward("/", "app")]), vec![], vec![to]).await;
    let refused = get(address, "/").await;
    assert_eq!(code(&refused), 503);
    assert!(refused.0.contains("x-envoy-overloaded: true") && refused.1.ends_with("overflow"), "{refused:?}");
    assert_eq!(app.requests(), 0);
}

#[tokio::test]
async fn mirrors_get_a_copy() {
    let (app, mirror) = (App::echo().await, App::echo().await);
    let mut route = Route::forward("/", "app");
    let mut forward = Forward::new(ClusterSpecifier::Name("app".into()));
    forward.mirrors =
        vec![MirrorPolicy { cluster: "mirror".into(), fraction: Fraction::ALL, shadow_host_suffix: true }];
    route.action = RouteAction::Forward(Box::new(forward));
    let clusters = vec![cluster("app", [app.address]), cluster("mirror", [mirror.address])];
    let (_proxy, address) = front(routes("r", vec![route]), vec![], clusters).await;
    let mut client = Client::connect(address).await;
    for _ in 0..3 {
        let post = client.send("POST / HTTP/1.1\r\nhost: app\r\ncontent-length: 5\r\n\r\nhello").await;
        assert_eq!(code(&post), 200);
    }
    until("three mirrored requests", || mirror.requests() == 3).await;
    assert_eq!(app.requests(), 3);
}

#[tokio::test]
async fn a_timeout_answers_504() {
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut route = Route::forward("/", "app");
    let mut forward = Forward::new(ClusterSpecifier::Name("app".into()));
    forward.timeout = Some(Duration::from_millis(50));
    route.action = RouteAction::Forward(Box::new(forward));
    let to = cluster("app", [silent.local_addr().unwrap()]);
    let (_proxy, address) = front(routes("r", vec![route]), vec![], vec![to]).await;
    let late = get(address, "/").await;
    assert_eq!((code(&late), late.1.as_str()), (504, "upstream request timeout"));
}

#[tokio::test]
async fn faults_limits_and_cors() {
    let app = App::echo().await;
    let abort =
        FaultAbort { status: http::StatusCode::IM_A_TEAPOT, grpc_status: None, fraction: Fraction::ALL };
    let mut faulty = Route::forward("/fault", "app");
    faulty.per_filter = vec![PerFilterConfig {
        filter: "fault".into(),
        disabled: false,
        config: Some(PerRoute::Fault(Arc::new(Fault { abort: Some(abort), ..Fault::default() }))),
    }];
    let mut limited = Route::forward("/limit", "app");
    let limit = LocalRateLimit {
        stat_prefix: "l".into(),
        max_tokens: 2,
        tokens_per_fill: 1,
        fill_interval: Duration::from_secs(3600),
        status: http::StatusCode::TOO_MANY_REQUESTS,
        enabled: Fraction::ALL,
        enforced: Fraction::ALL,
        response_headers: HeaderOperations::default(),
    };
    limited.per_filter = vec![PerFilterConfig {
        filter: "limit".into(),
        disabled: false,
        config: Some(PerRoute::LocalRateLimit(Arc::new(limit.clone()))),
    }];
    let mut shared = Route::forward("/cors", "app");
    let cors = Cors { allow_origins: vec![StringMatcher::exact("https://a")], ..Cors::default() };
    shared.per_filter = vec![PerFilterConfig {
        filter: "cors".into(),
        disabled: false,
        config: Some(PerRoute::Cors(Arc::new(cors))),
    }];
    let off = LocalRateLimit { max_tokens: 0, tokens_per_fill: 0, ..limit };
    let filters = vec![
        HttpFilterConfig::new("fault", HttpFilterKind::Fault(Arc::default())),
        HttpFilterConfig::new("cors", HttpFilterKind::Cors),
        HttpFilterConfig::new("limit", HttpFilterKind::LocalRateLimit(Arc::new(off))),
    ];
    let table = routes("r", vec![faulty, limited, shared, Route::forward("/", "app")]);
    let (_proxy, address) = front(table, filters, vec![cluster("app", [app.address])]).await;
    let mut client = Client::connect(address).await;
    assert_eq!(client.get("/fault").await.1, "fault filter abort");
    assert_eq!(code(&client.get("/").await), 200);
    let mut codes = Vec::new();
    for _ in 0..3 {
        codes.push(code(&client.get("/limit").await));
    }
    assert_eq!(codes, [200, 200, 429]);
    let preflight = "OPTIONS /cors HTTP/1.1\r\nhost: app\r\norigin: https://a\r\naccess-control-request-method: GET\r\n\r\n";
    let allowed = client.send(preflight).await;
    assert!(allowed.0.contains("access-control-allow-origin: https://a"), "{allowed:?}");
}
