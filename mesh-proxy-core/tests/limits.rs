//! Time limits, hosts, identities and cookies of requests: what the connection manager and routes promise.

mod support;

use std::{sync::Arc, time::Duration};

use mesh_proxy_core::{Proxy, config::*};
use support::*;
use tokio::io::AsyncWriteExt;

/// A proxy whose manager is changed by `change`, before one app.
async fn front(
    app: &App,
    route: Route,
    change: impl FnOnce(&mut HttpConnectionManager),
) -> (Proxy, std::net::SocketAddr, Memory) {
    let logs = Memory::default();
    let proxy =
        Proxy::builder().on_current_runtime().seed(5).access_logs(Arc::new(logs.clone())).build().unwrap();
    proxy.handle().apply_cluster(cluster("app", [app.address])).unwrap();
    let mut manager = manager(routes("r", vec![route]));
    manager.access_logs =
        vec![AccessLog { path: "log".into(), format: AccessLogFormat::Default, filters: Vec::new() }];
    change(&mut manager);
    proxy.handle().apply_listener(listener("front", http(manager))).unwrap();
    let address = proxy.handle().bound_addresses("front")[0];
    (proxy, address, logs)
}

fn forward(change: impl FnOnce(&mut Forward)) -> Route {
    let mut route = Route::forward("/", "app");
    let mut forward = Forward::new(ClusterSpecifier::Name("app".into()));
    change(&mut forward);
    route.action = RouteAction::Forward(Box::new(forward));
    route
}

fn logged(proxy: &Proxy, logs: &Memory) -> String {
    proxy.handle().flush_access_logs();
    logs.text()
}

/// An app that reads and never answers.
async fn silent() -> App {
    App::start_slow(Duration::from_secs(3600), Arc::new(|_, _| None)).await
}

#[tokio::test(start_paused = true)]
async fn a_stream_without_a_byte_ends_with_504_or_408() {
    let app = silent().await;
    let idle = |m: &mut HttpConnectionManager| m.stream_idle_timeout = Some(Duration::from_secs(7));
    let (proxy, address, logs) = front(&app, forward(|_| {}), idle).await;
    let begin = tokio::time::Instant::now();
    let late = get(address, "/").await;
    assert_eq!((code(&late), late.1.as_str()), (504, "stream timeout"));
    assert_eq!(begin.elapsed().as_secs(), 7);
    // The request itself is not complete: the client is to blame.
    let late = Client::connect(address)
        .await
        .send("POST / HTTP/1.1\r\nhost: app\r\ncontent-length: 5\r\n\r\nhel")
        .await;
    assert_eq!((code(&late), late.1.as_str()), (408, "stream timeout"));
    until("the log", || logged(&proxy, &logs).lines().count() == 2).await;
    assert!(logs.text().contains(" 504 SI stream_idle_timeout "), "{}", logs.text());
    assert!(logs.text().contains(" 408 SI stream_idle_timeout "), "{}", logs.text());
}

#[tokio::test(start_paused = true)]
async fn a_routes_idle_timeout_counts_instead_of_the_managers() {
    let app = silent().await;
    let idle = |m: &mut HttpConnectionManager| m.stream_idle_timeout = Some(Duration::from_secs(7));
    let shorter = forward(|f| f.idle_timeout = Some(Duration::from_secs(2)));
    let (_proxy, address, _) = front(&app, shorter, idle).await;
    let begin = tokio::time::Instant::now();
    assert_eq!(code(&get(address, "/").await), 504);
    assert_eq!(begin.elapsed().as_secs(), 2);
    // Zero is no limit: the route's own timeout ends it.
    let none = forward(|f| {
        f.idle_timeout = Some(Duration::ZERO);
        f.timeout = Some(Duration::from_secs(15));
    });
    let (_proxy, address, _) = front(&app, none, idle).await;
    let begin = tokio::time::Instant::now();
    assert_eq!(get(address, "/").await.1, "upstream request timeout");
    assert_eq!(begin.elapsed().as_secs(), 15);
}

#[tokio::test(start_paused = true)]
async fn bytes_keep_a_stream_alive() {
    let app = App::start_slow(Duration::from_secs(5), Arc::new(|_, request| Some(ok(request)))).await;
    let idle = |m: &mut HttpConnectionManager| m.stream_idle_timeout = Some(Duration::from_secs(7));
    let (_proxy, address, _) = front(&app, forward(|_| {}), idle).await;
    let mut client = Client::connect(address).await;
    client.stream.write_all(b"POST / HTTP/1.1\r\nhost: app\r\ncontent-length: 4\r\n\r\n").await.unwrap();
    for byte in [b"a", b"b", b"c", b"d"] {
        tokio::time::sleep(Duration::from_secs(6)).await;
        client.stream.write_all(byte).await.unwrap();
    }
    assert_eq!(code(&client.response().await.unwrap()), 200);
}

#[tokio::test(start_paused = true)]
async fn a_request_must_arrive_in_time() {
    let app = App::echo().await;
    let limit = |m: &mut HttpConnectionManager| m.request_timeout = Some(Duration::from_secs(9));
    let (_proxy, address, _) = front(&app, forward(|_| {}), limit).await;
    let mut client = Client::connect(address).await;
    client.stream.write_all(b"POST / HTTP/1.1\r\nhost: app\r\ncontent-length: 9\r\n\r\n").await.unwrap();
    let begin = tokio::time::Instant::now();
    for _ in 0..4 {
        tokio::time::sleep(Duration::from_secs(2)).await;
        client.stream.write_all(b"x").await.unwrap();
    }
    let late = client.response().await.unwrap();
    assert_eq!((code(&late), late.1.as_str()), (408, "request timeout"));
    assert_eq!(begin.elapsed().as_secs(), 9);
    // A request that is complete may take as long as it likes.
    let slow = App::start_slow(Duration::from_secs(60), Arc::new(|_, _| Some(ok("x")))).await;
    let (_proxy, address, _) = front(&slow, forward(|_| {}), |m| {
        m.request_timeout = Some(Duration::from_secs(9));
        m.stream_idle_timeout = None;
    })
    .await;
    let post = Client::connect(address)
        .await
        .send("POST / HTTP/1.1\r\nhost: app\r\ncontent-length: 1\r\n\r\nx")
        .await;
    assert_eq!(code(&post), 200);
}

#[tokio::test(start_paused = true)]
async fn a_stream_has_a_longest_duration() {
    let app = silent().await;
    let (_proxy, address, _) =
        front(&app, forward(|_| {}), |m| m.max_stream_duration = Some(Duration::from_secs(4))).await;
    let begin = tokio::time::Instant::now();
    assert_eq!(code(&get(address, "/").await), 504);
    assert_eq!(begin.elapsed().as_secs(), 4);
}

#[tokio::test(start_paused = true)]
async fn a_connection_has_a_longest_duration_and_an_idle_timeout() {
    let app = App::echo().await;
    let (_proxy, address, _) = front(&app, forward(|_| {}), |m| {
        m.max_connection_duration = Some(Duration::from_secs(30));
        m.idle_timeout = Some(Duration::from_secs(20));
    })
    .await;
    let mut client = Client::connect(address).await;
    let begin = tokio::time::Instant::now();
    for _ in 0..3 {
        assert_eq!(code(&client.get("/").await), 200);
        tokio::time::sleep(Duration::from_secs(9)).await;
    }
    assert!(client.response().await.is_none());
    assert_eq!(begin.elapsed().as_secs(), 30);
    // A client that says nothing at all, and one that never ends its head.
    for said in ["", "GET / HTTP/1.1\r\nhost: a"] {
        let mut client = Client::connect(address).await;
        let begin = tokio::time::Instant::now();
        client.stream.write_all(said.as_bytes()).await.unwrap();
        let end = tokio::time::timeout(Duration::from_secs(61), client.closed()).await;
        assert!(end.is_ok(), "{said:?} after {:?}", begin.elapsed());
    }
}

#[tokio::test]
async fn hosts_are_stripped_before_routing() {
    let app = App::echo().await;
    let (_proxy, address, _) = front(&app, forward(|_| {}), |m| {
        m.strip_host_port = StripHostPort::Any;
        m.strip_trailing_host_dot = true;
    })
    .await;
    for target in ["/", "http://App.example.:8080/"] {
        let request = format!("GET {target} HTTP/1.1\r\nhost: App.example.:8080\r\n\r\n");
        let (_, seen) = Client::connect(address).await.send(&request).await;
        assert!(seen.contains("host: App.example\r\n"), "{seen}");
    }
}

#[tokio::test]
async fn names_with_underscores_are_refused_or_dropped() {
    let app = App::echo().await;
    let request = "GET / HTTP/1.1\r\nhost: app\r\nx_user: root\r\n\r\n";
    for (action, status, seen) in [
        (HeadersWithUnderscores::Allow, 200, true),
        (HeadersWithUnderscores::Drop, 200, false),
        (HeadersWithUnderscores::Reject, 400, false),
    ] {
        let (_proxy, address, _) = front(&app, forward(|_| {}), |m| m.underscores = action).await;
        let answer = Client::connect(address).await.send(request).await;
        assert_eq!((code(&answer), answer.1.contains("x_user")), (status, seen), "{action:?}");
    }
}

#[tokio::test]
async fn forwarded_headers_follow_the_trusted_hops() {
    let app = App::echo().await;
    let request = "GET / HTTP/1.1\r\nhost: app\r\nx-forwarded-for: 9.9.9.9, 8.8.8.8\r\n\
                   x-forwarded-proto: https\r\nx-request-id: mine\r\n\r\n";
    // (own address, hops, keep identities) -> (x-forwarded-for, scheme, identity kept, logged)
    for ((own, hops, keep), (list, scheme, kept, remote)) in [
        ((false, 0, false), ("9.9.9.9, 8.8.8.8", "https", true, "8.8.8.8:0")),
        ((true, 0, false), ("9.9.9.9, 8.8.8.8,127.0.0.1", "http", true, "127.0.0.1:")),
        ((true, 1, false), ("9.9.9.9, 8.8.8.8,127.0.0.1", "https", false, "8.8.8.8:0")),
        ((true, 1, true), ("9.9.9.9, 8.8.8.8,127.0.0.1", "https", true, "8.8.8.8:0")),
    ] {
        let (proxy, address, logs) = front(&app, forward(|_| {}), |m| {
            m.use_remote_address = own;
            m.xff_trusted_hops = hops;
            m.preserve_external_request_id = keep;
            m.access_logs[0].format = AccessLogFormat::Text("%DOWNSTREAM_REMOTE_ADDRESS%\n".into());
        })
        .await;
        let (_, seen) = Client::connect(address).await.send(request).await;
        assert!(seen.contains(&format!("x-forwarded-for: {list}\r\n")), "{seen}");
        assert!(seen.contains(&format!("x-forwarded-proto: {scheme}\r\n")), "{seen}");
        assert_eq!(seen.contains("x-request-id: mine\r\n"), kept, "{seen}");
        until("the log", || logged(&proxy, &logs).starts_with(remote)).await;
    }
}

#[tokio::test]
async fn a_generated_cookie_sticks_to_its_host() {
    let (one, two) = (App::echo().await, App::echo().await);
    let proxy = Proxy::builder().on_current_runtime().seed(11).build().unwrap();
    let mut ring = cluster("app", [one.address, two.address]);
    ring.lb = LbPolicy::RingHash { min: 1024, max: 4096, function: HashFunction::XxHash };
    proxy.handle().apply_cluster(ring).unwrap();
    let source = HashSource::Cookie {
        name: "user".into(),
        ttl: Some(Duration::from_secs(60)),
        path: "/p".into(),
        attributes: vec![("SameSite".into(), "Strict".into()), ("Secure".into(), "".into())],
    };
    let route = forward(|f| f.hash_policies = vec![HashPolicy { source, terminal: true }]);
    proxy.handle().apply_listener(listener("front", http(manager(routes("r", vec![route]))))).unwrap();
    let mut client = Client::connect(proxy.handle().bound_addresses("front")[0]).await;
    let mut used = [0, 0];
    for _ in 0..20 {
        let before = (one.requests(), two.requests());
        let (head, _) = client.get("/").await;
        let cookie = head.lines().find_map(|l| l.strip_prefix("set-cookie: ")).unwrap();
        let (pair, attributes) = cookie.split_once("; ").unwrap();
        assert_eq!(attributes, "Max-Age=60; Path=/p; SameSite=Strict; Secure; HttpOnly");
        let first = usize::from(two.requests() > before.1);
        used[first] += 1;
        for _ in 0..3 {
            let before = (one.requests(), two.requests());
            let request = format!("GET / HTTP/1.1\r\nhost: app\r\ncookie: a=b; {pair}\r\n\r\n");
            let (head, _) = client.send(&request).await;
            assert!(!head.contains("set-cookie"), "{head}");
            assert_eq!(usize::from(two.requests() > before.1), first, "{pair}");
        }
    }
    assert!(used[0] > 0 && used[1] > 0, "{used:?}");
}

#[tokio::test]
async fn a_terminal_policy_ends_the_hash() {
    let apps = [App::echo().await, App::echo().await, App::echo().await];
    let proxy = Proxy::builder().on_current_runtime().seed(11).build().unwrap();
    let mut ring = cluster("app", apps.iter().map(|a| a.address));
    ring.lb = LbPolicy::RingHash { min: 1024, max: 4096, function: HashFunction::XxHash };
    proxy.handle().apply_cluster(ring).unwrap();
    let policy = |name, terminal| HashPolicy { source: HashSource::Header(name), terminal };
    let (a, b) = (http::HeaderName::from_static("a"), http::HeaderName::from_static("b"));
    let route = forward(|f| f.hash_policies = vec![policy(a, true), policy(b, false)]);
    proxy.handle().apply_listener(listener("front", http(manager(routes("r", vec![route]))))).unwrap();
    let mut client = Client::connect(proxy.handle().bound_addresses("front")[0]).await;
    for n in 0..20 {
        client.send(&format!("GET / HTTP/1.1\r\nhost: app\r\na: x\r\nb: {n}\r\n\r\n")).await;
    }
    assert_eq!(apps.iter().filter(|a| a.requests() > 0).count(), 1, "b does not count");
    for n in 0..20 {
        client.send(&format!("GET / HTTP/1.1\r\nhost: app\r\nb: {n}\r\n\r\n")).await;
    }
    assert!(apps.iter().filter(|a| a.requests() > 0).count() > 1, "without a, b does");
}
