//! Two sidecars: redirected plain HTTP in, mutual TLS between, plain HTTP out; and what strict mode refuses.

mod support;
#[path = "support/tls.rs"]
mod tls_support;

use std::{net::SocketAddr, sync::Arc};

use mesh_proxy_core::{Proxy, config::*, original_dst::Always};
use support::*;
use tls_support::*;

const CLIENT: &str = "spiffe://cluster.local/ns/default/sa/client";
const REVIEWS: &str = "spiffe://cluster.local/ns/default/sa/reviews";

fn names(all: &[&str]) -> Vec<Arc<str>> {
    all.iter().map(|p| Arc::from(*p)).collect()
}

/// Istio's inbound chains for an auto-detected port.
fn inbound_chains(port: u16, http_filters: Vec<HttpFilterConfig>, permissive: bool) -> Vec<FilterChain> {
    let cluster = "inbound|9080||";
    let table = routes(cluster, vec![Route::forward("/", cluster)]);
    let serve = || {
        let mut manager = manager(table.clone());
        manager.forward_client_cert = ForwardClientCert::AppendForward;
        manager.set_client_cert = SetClientCertDetails { subject: true, uri: true, dns: true };
        manager.server_name = http::HeaderValue::from_static("istio-envoy");
        let mut filters = http_filters.clone();
        filters.append(&mut manager.filters);
        manager.filters = filters;
        http(manager)
    };
    let tcp = || vec![NetworkFilter::TcpProxy(TcpProxy::new("in", cluster))];
    let chain = |transport, protocols: &[&str], filters, tls: Option<&[&str]>| {
        let mut chain = FilterChain::new("", filters);
        chain.matches = FilterChainMatch {
            destination_port: Some(port),
            transport_protocol: Some(transport),
            application_protocols: names(protocols),
            ..FilterChainMatch::default()
        };
        chain.tls = tls.map(inbound_tls);
        chain
    };
    let (tls, raw) = (TransportProtocol::Tls, TransportProtocol::RawBuffer);
    let mesh_http: &[&str] = &["istio-http/1.0", "istio-http/1.1", "istio-h2"];
    let mut chains = vec![chain(tls, mesh_http, serve(), Some(&["h2", "http/1.1"]))];
    let tcp_alpn: &[&str] = &["istio-peer-exchange", "h2", "http/1.1"];
    if permissive {
        chains.push(chain(raw, &["http/1.1", "h2c"], serve(), None));
        chains.push(chain(tls, &["istio-peer-exchange", "istio"], tcp(), Some(tcp_alpn)));
        chains.push(chain(raw, &[], tcp(), None));
        chains.push(chain(tls, &[], tcp(), None));
    } else {
        chains.push(chain(tls, &[], tcp(), Some(tcp_alpn)));
    }
    chains
}

fn inbound_listener(chains: Vec<FilterChain>) -> Listener {
    let mut listener = Listener::new("virtualInbound", "127.0.0.1:0".parse().unwrap());
    listener.direction = Direction::Inbound;
    listener.listener_filters = ListenerFilters {
        original_dst: true,
        tls_inspector: Some(Inspector::default()),
        http_inspector: Some(Inspector::default()),
        timeout: None,
        continue_on_timeout: true,
    };
    listener.filter_chains = chains;
    listener
}

/// A server's sidecar in front of `app`.
fn server(ca: &Ca, id: &str, app: SocketAddr, chains: Vec<FilterChain>) -> (Proxy, SocketAddr) {
    let proxy = Proxy::builder()
        .on_current_runtime()
        .tls(ca.provider(id))
        .original_destination(Arc::new(Always(app)))
        .build()
        .unwrap();
    let mut cluster = Cluster::new("inbound|9080||", Discovery::OriginalDst { port_override: None });
    cluster.bind = vec!["127.0.0.6".parse().unwrap()];
    proxy.handle().apply_cluster(cluster).unwrap();
    proxy.handle().apply_listener(inbound_listener(chains)).unwrap();
    let address = proxy.handle().bound_addresses("virtualInbound")[0];
    (proxy, address)
}

/// A client's sidecar that sends 10.0.0.1:9080 to `to`.
fn client(ca: &Ca, to: SocketAddr, accepts: &[&str], protocol: UpstreamProtocol) -> (Proxy, SocketAddr) {
    client_that(ca, to, accepts, protocol, ForwardClientCert::Sanitize)
}

/// One that treats what its application says about certificates in this way.
fn client_that(
    ca: &Ca,
    to: SocketAddr,
    accepts: &[&str],
    protocol: UpstreamProtocol,
    forward_client_cert: ForwardClientCert,
) -> (Proxy, SocketAddr) {
    let vip: SocketAddr = "10.0.0.1:9080".parse().unwrap();
    let proxy = Proxy::builder()
        .on_current_runtime()
        .tls(ca.provider(CLIENT))
        .original_destination(Arc::new(Always(vip)))
        .build()
        .unwrap();
    let handle = proxy.handle();
    let name = "outbound|9080||reviews.default.svc.cluster.local";
    let mut cluster = Cluster::new(name, Discovery::Eds { service_name: name.into() });
    cluster.protocol = protocol;
    cluster.transport_matches = vec![
        TransportSocketMatch {
            name: "tlsMode-istio".into(),
            matches: Arc::new([("tlsMode".to_owned(), "istio".to_owned())].into()),
            socket: TransportSocket::Tls(outbound_tls(accepts)),
        },
        TransportSocketMatch {
            name: "tlsMode-disabled".into(),
            matches: Default::default(),
            socket: TransportSocket::Raw,
        },
    ];
    handle.apply_cluster(cluster).unwrap();
    let mut endpoints = LoadAssignment::new(name, [to]);
    let mutual = [("tlsMode".to_owned(), "istio".to_owned())];
    endpoints.localities[0].endpoints[0].transport_match = Arc::new(mutual.into());
    handle.apply_endpoints(endpoints).unwrap();
    handle.apply_routes(routes("9080", vec![Route::forward("/", name)])).unwrap();
    let mut outbound = Listener::new("0.0.0.0_9080", "0.0.0.0:9080".parse().unwrap());
    outbound.bind_to_port = false;
    outbound.direction = Direction::Outbound;
    outbound.listener_filters.http_inspector = Some(Inspector::default());
    let mut manager = HttpConnectionManager::new("outbound", RouteSource::Rds("9080".into()));
    manager.forward_client_cert = forward_client_cert;
    manager
        .filters
        .insert(0, HttpFilterConfig::new("istio.alpn", HttpFilterKind::AlpnOverride(AlpnOverride::istio())));
    let mut chain = FilterChain::new("http", http(manager));
    chain.matches.transport_protocol = Some(TransportProtocol::RawBuffer);
    chain.matches.application_protocols = names(&["http/1.1", "h2c"]);
    outbound.filter_chains = vec![chain];
    handle.apply_listener(outbound).unwrap();
    let mut catch_all =
        listener("virtualOutbound", vec![NetworkFilter::TcpProxy(TcpProxy::new("out", "none"))]);
    catch_all.use_original_dst = true;
    catch_all.direction = Direction::Outbound;
    handle.apply_listener(catch_all).unwrap();
    let address = handle.bound_addresses("virtualOutbound")[0];
    (proxy, address)
}

#[tokio::test]
async fn plain_http_becomes_mutual_tls_and_back() {
    let ca = Ca::new();
    let app = App::echo().await;
    let (inbound, server) =
        server(&ca, REVIEWS, app.address, inbound_chains(app.address.port(), vec![], false));
    let (outbound, front) = client(&ca, server, &[REVIEWS], UpstreamProtocol::Http1);
    let mut client = Client::connect(front).await;
    let forged = "GET /x HTTP/1.1\r\nhost: reviews:9080\r\nx-forwarded-client-cert: By=evil\r\n\r\n";
    for _ in 0..5 {
        let response = client.send(forged).await;
        assert_eq!(code(&response), 200, "{response:?}");
        let seen = response.1;
        let expected = format!("x-forwarded-client-cert: By={REVIEWS};Hash=");
        assert!(
            seen.contains(&expected) && seen.contains(&format!(";Subject=\"\";URI={CLIENT}\r\n")),
            "{seen}"
        );
        assert!(!seen.contains("evil") && seen.contains("host: reviews:9080\r\n"), "{seen}");
    }
    let peer = app.peers.lock().unwrap()[0];
    assert_eq!(peer.ip().to_string(), "127.0.0.6", "the application sees the proxy's own address");
    let session = inbound.handle().connections().into_iter().find(|c| c.peer_identity.is_some()).unwrap();
    assert_eq!(session.peer_identity.as_deref(), Some(CLIENT));
    assert_eq!(session.local_identity.as_deref(), Some(REVIEWS));
    assert_eq!(session.tls_version, Some("TLSv1.3"));
    let session = outbound.handle().connections().into_iter().find(|c| c.cluster.is_some()).unwrap();
    assert_eq!(session.peer_identity.as_deref(), Some(REVIEWS));
    let metrics = inbound.handle().prometheus();
    assert!(metrics.contains("connection_security_policy=\"mutual_tls\""), "{metrics}");
}

#[tokio::test]
async fn a_peer_is_not_believed_about_others() {
    let ca = Ca::new();
    let app = App::echo().await;
    for (inbound, believed) in
        [(ForwardClientCert::SanitizeSet, false), (ForwardClientCert::AppendForward, true)]
    {
        let mut chains = inbound_chains(app.address.port(), vec![], false);
        for filter in chains.iter_mut().flat_map(|chain| &mut chain.filters) {
            if let NetworkFilter::Http(manager) = filter {
                Arc::make_mut(manager).forward_client_cert = inbound;
            }
        }
        let (_inbound, server) = server(&ca, REVIEWS, app.address, chains);
        // A valid member of the mesh whose proxy hands on what it is told to.
        let forger = ForwardClientCert::AlwaysForwardOnly;
        let (_outbound, front) = client_that(&ca, server, &[REVIEWS], UpstreamProtocol::Http1, forger);
        let response = Client::connect(front)
            .await
            .send(
                "GET / HTTP/1.1\r\nhost: reviews\r\nx-forwarded-client-cert: By=a;URI=spiffe://forged\r\n\
                 x-envoy-original-dst-host: 10.9.8.7:1\r\nconnection: keep-alive, x-secret\r\nx-secret: 1\r\n\
                 keep-alive: timeout=5\r\nproxy-connection: keep-alive\r\nte: gzip\r\n\r\n",
            )
            .await;
        assert_eq!(code(&response), 200, "{response:?}");
        let seen = response.1.to_ascii_lowercase();
        assert_eq!(seen.contains("forged"), believed, "{inbound:?}: {seen}");
        assert_eq!(seen.matches("x-forwarded-client-cert:").count(), 1, "{seen}");
        assert!(seen.contains(&format!("uri={CLIENT}")), "{seen}");
        for gone in ["x-envoy-", "x-secret", "keep-alive", "proxy-connection", "\r\nte:", "\r\nconnection:"] {
            assert!(!seen.contains(gone), "{gone:?} in {seen}");
        }
    }
}

#[tokio::test]
async fn http2_between_sidecars() {
    let ca = Ca::new();
    let app = App::echo().await;
    let (_inbound, server) =
        server(&ca, REVIEWS, app.address, inbound_chains(app.address.port(), vec![], false));
    let (_outbound, front) = client(&ca, server, &[REVIEWS], UpstreamProtocol::Http2);
    let mut client = Client::connect(front).await;
    for _ in 0..5 {
        let response =
            client.send("POST /x HTTP/1.1\r\nhost: reviews\r\ncontent-length: 5\r\n\r\nhello").await;
        assert_eq!(code(&response), 200, "{response:?}");
        assert!(response.1.contains("host: reviews\r\n") && response.1.ends_with("hello"), "{response:?}");
    }
}

#[tokio::test]
async fn another_identity_is_refused() {
    let ca = Ca::new();
    let app = App::echo().await;
    let other = "spiffe://cluster.local/ns/default/sa/other";
    let (_inbound, server) =
        server(&ca, other, app.address, inbound_chains(app.address.port(), vec![], false));
    let (_outbound, front) = client(&ca, server, &[REVIEWS], UpstreamProtocol::Http1);
    let response = Client::connect(front).await.send("GET / HTTP/1.1\r\nhost: reviews\r\n\r\n").await;
    assert_eq!(code(&response), 503);
    assert!(response.1.contains("transport failure reason: TLS_error"), "{response:?}");
    assert_eq!(app.requests(), 0);
}

#[tokio::test]
async fn strict_refuses_plain_text_and_permissive_accepts_it() {
    let ca = Ca::new();
    let app = App::echo().await;
    let port = app.address.port();
    let (inbound, server) = server(&ca, REVIEWS, app.address, inbound_chains(port, vec![], false));
    for permissive in [false, true, false] {
        inbound.handle().apply_listener(inbound_listener(inbound_chains(port, vec![], permissive))).unwrap();
        let mut plain = Client::connect(server).await;
        use tokio::io::AsyncWriteExt;
        plain.stream.write_all(b"GET / HTTP/1.1\r\nhost: reviews\r\n\r\n").await.unwrap();
        let response = plain.response().await;
        assert_eq!(response.is_some(), permissive, "{response:?}");
        if let Some((_, seen)) = response {
            assert!(!seen.contains("x-forwarded-client-cert"), "{seen}");
        }
    }
}

#[tokio::test]
async fn policy_sees_the_proven_identity() {
    let ca = Ca::new();
    let app = App::echo().await;
    let allow = |principal: &str| {
        let policy = RbacPolicy {
            permissions: vec![RbacRule::And(vec![
                RbacRule::DestinationPort(app.address.port()),
                RbacRule::UrlPath(StringMatcher::prefix("/open")),
            ])],
            principals: vec![RbacRule::Authenticated(Some(StringMatcher::exact(principal)))],
        };
        let rules = RbacRules { action: RbacAction::Allow, policies: [("p".into(), policy)].into() };
        let rbac = Rbac { rules: Some(rules), ..Rbac::default() };
        vec![HttpFilterConfig::new("envoy.filters.http.rbac", HttpFilterKind::Rbac(Arc::new(rbac)))]
    };
    let port = app.address.port();
    let (inbound, server) = server(&ca, REVIEWS, app.address, inbound_chains(port, allow(CLIENT), false));
    let (_outbound, front) = client(&ca, server, &[REVIEWS], UpstreamProtocol::Http1);
    let mut client = Client::connect(front).await;
    let mut get =
        async |path: &str| client.send(&format!("GET {path} HTTP/1.1\r\nhost: reviews\r\n\r\n")).await;
    assert_eq!(code(&get("/open/door").await), 200);
    let denied = get("/closed").await;
    assert_eq!((code(&denied), denied.1.as_str()), (403, "RBAC: access denied"));
    let chains = inbound_chains(port, allow("spiffe://cluster.local/ns/default/sa/other"), false);
    inbound.handle().apply_listener(inbound_listener(chains)).unwrap();
    // The old connection is on a retired chain and is asked to go; the next one meets the new policy.
    let mut codes = Vec::new();
    for _ in 0..2 {
        codes.push(code(&get("/open").await));
    }
    assert_eq!(codes.last(), Some(&403), "{codes:?}");
}

#[tokio::test]
async fn opaque_tcp_passes_through_mutual_tls() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let ca = Ca::new();
    let server_app = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let app = server_app.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut stream, _) = server_app.accept().await.unwrap();
        let mut all = Vec::new();
        stream.read_to_end(&mut all).await.unwrap();
        all.reverse();
        stream.write_all(&all).await.unwrap();
    });
    let (_inbound, server) = server(&ca, REVIEWS, app, inbound_chains(app.port(), vec![], false));
    let proxy = Proxy::builder().on_current_runtime().tls(ca.provider(CLIENT)).build().unwrap();
    let mut to = cluster("tcp", [server]);
    to.transport = TransportSocket::Tls(outbound_tls(&[REVIEWS]));
    proxy.handle().apply_cluster(to).unwrap();
    let tcp = vec![NetworkFilter::TcpProxy(TcpProxy::new("out", "tcp"))];
    proxy.handle().apply_listener(listener("front", tcp)).unwrap();
    let mut stream =
        tokio::net::TcpStream::connect(proxy.handle().bound_addresses("front")[0]).await.unwrap();
    let sent: Vec<u8> = (0..200_000_u32).map(|n| n as u8).collect();
    stream.write_all(&sent).await.unwrap();
    // Half-close travels: the server answers only at the end of what we send.
    stream.shutdown().await.unwrap();
    let mut back = Vec::new();
    stream.read_to_end(&mut back).await.unwrap();
    back.reverse();
    assert_eq!(back, sent);
}

/// Whether the other side ended the connection, within a second.
async fn ends(stream: &mut tokio::net::TcpStream) -> bool {
    use tokio::io::AsyncReadExt;
    let read = async { stream.read(&mut [0; 64]).await };
    matches!(tokio::time::timeout(std::time::Duration::from_secs(1), read).await, Ok(Ok(0) | Err(_)))
}

const GET: &str = "GET / HTTP/1.1\r\nhost: reviews\r\n\r\n";

/// Two sidecars with mutual TLS between them, and a client whose first request has gone through both.
struct Pair {
    ca: Ca,
    app: App,
    inbound: Proxy,
    outbound: Proxy,
    client: Client,
}

impl Pair {
    async fn in_use(protocol: UpstreamProtocol) -> Self {
        let ca = Ca::new();
        let app = App::echo().await;
        let chains = inbound_chains(app.address.port(), vec![], false);
        let (inbound, server) = server(&ca, REVIEWS, app.address, chains);
        let (outbound, front) = client(&ca, server, &[REVIEWS], protocol);
        let mut client = Client::connect(front).await;
        assert_eq!(code(&client.send(GET).await), 200);
        Self { ca, app, inbound, outbound, client }
    }
}

#[tokio::test]
async fn live_connections_of_a_revoked_client_end_and_others_go_on() {
    for protocol in [UpstreamProtocol::Http1, UpstreamProtocol::Http2] {
        let Pair { ca, app, inbound, outbound, mut client } = Pair::in_use(protocol).await;
        let secured =
            |proxy: &Proxy| proxy.handle().connections().iter().filter(|c| c.peer_identity.is_some()).count();
        assert_eq!((secured(&inbound), secured(&outbound)), (1, 1));
        ca.revoke("spiffe://cluster.local/ns/default/sa/somebody");
        assert_eq!(inbound.handle().close_revoked() + outbound.handle().close_revoked(), 0);
        assert_eq!(code(&client.send(GET).await), 200);

        ca.revoke(CLIENT);
        assert_eq!(inbound.handle().close_revoked(), 1);
        until("the server's side is gone", || secured(&inbound) == 0).await;
        // New connections pass the handshake, which looks at no list here, and end at once all the same.
        assert_eq!(code(&client.send(GET).await), 503);
        assert_eq!(app.requests(), 2);
    }
}

#[tokio::test]
async fn live_connections_to_a_revoked_server_end() {
    for protocol in [UpstreamProtocol::Http1, UpstreamProtocol::Http2] {
        let Pair { ca, app, inbound, outbound, mut client } = Pair::in_use(protocol).await;
        let open = || inbound.handle().connections().iter().any(|c| c.peer_identity.is_some());
        assert!(open());
        ca.revoke(REVIEWS);
        assert_eq!(outbound.handle().close_revoked(), 1);
        until("the server sees the end", || !open()).await;
        let refused = client.send(GET).await;
        assert_eq!(code(&refused), 503);
        assert!(refused.1.contains("revoked"), "{refused:?}");
        assert_eq!(app.requests(), 1);
    }
}

#[tokio::test]
async fn a_quiet_tcp_connection_ends_when_either_peer_is_revoked() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    for (revoked, at_the_server) in [(CLIENT, true), (REVIEWS, false)] {
        let ca = Ca::new();
        let app = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = app.local_addr().unwrap();
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = app.accept().await.unwrap();
                tokio::spawn(async move {
                    let (mut reader, mut writer) = stream.split();
                    let _until_it_ends = tokio::io::copy(&mut reader, &mut writer).await;
                });
            }
        });
        let mut chain =
            FilterChain::new("", vec![NetworkFilter::TcpProxy(TcpProxy::new("in", "inbound|9080||"))]);
        chain.tls = Some(inbound_tls(&[]));
        let (inbound, server) = server(&ca, REVIEWS, address, vec![chain]);
        let outbound = Proxy::builder().on_current_runtime().tls(ca.provider(CLIENT)).build().unwrap();
        let mut to = cluster("reviews", [server]);
        to.transport = TransportSocket::Tls(outbound_tls(&[REVIEWS]));
        outbound.handle().apply_cluster(to).unwrap();
        let front = listener("front", vec![NetworkFilter::TcpProxy(TcpProxy::new("out", "reviews"))]);
        outbound.handle().apply_listener(front).unwrap();
        let mut stream =
            tokio::net::TcpStream::connect(outbound.handle().bound_addresses("front")[0]).await.unwrap();
        stream.write_all(b"x").await.unwrap();
        assert_eq!(stream.read_u8().await.unwrap(), b'x');
        ca.revoke(revoked);
        let side = if at_the_server { &inbound } else { &outbound };
        assert_eq!(side.handle().close_revoked(), 1);
        assert!(ends(&mut stream).await, "{revoked}");
    }
}
