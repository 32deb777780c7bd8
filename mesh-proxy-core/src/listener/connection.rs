//! One accepted connection, up to the filter that takes it over.

use std::{net::SocketAddr, sync::Arc, time::SystemTime};

use rustls::ServerConfig;
use tokio::{net::TcpStream, time::Instant};
use tokio_rustls::{TlsAcceptor, TlsStream};

use super::{
    ChainRuntime, ListenerRuntime, Terminal,
    inspect::{self, Inspected},
    matching::Facts,
};
use crate::{
    config::{Codec, DownstreamTls},
    filter::{ConnectionInfo, UpstreamInfo},
    http::{self, HttpConnection},
    lifecycle::{KILLED, Life},
    net::{self, Stream},
    proxy::Shared,
    rbac::{Input, Verdict, evaluate},
    registry::Accepted,
    tcp,
    telemetry::{Record, ResponseFlags},
    tls::{self, TlsSession},
    worker::Worker,
};

/// Longer than any connection lives.
const NEVER: std::time::Duration = std::time::Duration::from_secs(365 * 24 * 3600);

/// Counts a listener's live connection.
struct Active(Arc<ListenerRuntime>);

impl Drop for Active {
    fn drop(&mut self) {
        self.0.stats.cx_active.dec();
    }
}

/// Serves an accepted connection to its end.
pub(crate) async fn run(
    stream: TcpStream,
    peer: SocketAddr,
    bound: Arc<ListenerRuntime>,
    shared: Arc<Shared>,
    worker: Arc<Worker>,
    accepted: Accepted,
) {
    let start = Instant::now();
    let _no_delay_is_an_optimisation = stream.set_nodelay(true);
    let Ok(own) = stream.local_addr().map(net::canonical) else { return };
    let wants_original = bound.config.use_original_dst || bound.config.listener_filters.original_dst;
    let original = if wants_original {
        match shared.options.original_dst.original_destination(&stream) {
            Ok(original) => original.map(net::canonical),
            Err(error) => {
                tracing::debug!(%peer, %error, "cannot learn the original destination");
                return;
            }
        }
    } else {
        None
    };
    let destination = original.unwrap_or(own);
    let listener = hand_off(&shared, bound, original);
    listener.stats.cx_total.inc();
    listener.stats.cx_active.inc();
    let _active = Active(Arc::clone(&listener));
    let inspected =
        match inspect::inspect(&stream, &listener.config.listener_filters, destination.port()).await {
            Ok(Some(inspected)) => inspected,
            Ok(None) => {
                listener.stats.pre_cx_timeout.inc();
                return;
            }
            Err(error) => {
                tracing::debug!(%peer, %error, "connection ended while it was inspected");
                return;
            }
        };
    let Some(chain) = choose(&listener, &inspected, destination, peer) else {
        refuse(&listener, &worker, inspected, destination, peer, start, accepted.id);
        // Unread bytes make the kernel send RST, which is what a refused client should see.
        return;
    };
    let chain = Arc::clone(chain);
    let life = Life::of(&chain.lifecycle);
    let killed = life.reached(KILLED);
    tokio::pin!(killed);
    let transport = async {
        match &chain.config.tls {
            None => Some((Stream::Plain(stream), None, inspected)),
            Some(context) => accept_tls(stream, context, &chain, &listener, &shared, inspected).await,
        }
    };
    let transport = tokio::select! {
        transport = transport => transport,
        () = &mut killed => None,
    };
    let Some((stream, session, inspected)) = transport else { return };
    let info = Arc::new(ConnectionInfo {
        id: accepted.id,
        direction: listener.config.direction,
        listener: Arc::clone(&listener.config.name),
        chain: Arc::clone(&chain.config.name),
        local: destination,
        peer,
        server_name: inspected.server_name.clone(),
        peer_key: session
            .as_ref()
            .and_then(|tls: &TlsSession| tls.peer.as_ref()?.spiffe_id().map(|id| shared.intern(id))),
        tls: session,
        start,
    });
    shared.registry.list(&info, &life);
    // After the listing: a revocation that comes at this moment is seen here or there.
    if shared.is_revoked(info.tls.as_ref()) {
        return;
    }
    if !allowed(&chain, &info, &shared) {
        return;
    }
    match &chain.terminal {
        Terminal::Tcp(runtime) => {
            tcp::proxy(runtime, stream, info, shared, worker, &life).await;
        }
        Terminal::Http(manager) => {
            let http2 = match (manager.config.codec, &info.tls) {
                (Codec::Http1, _) => false,
                (Codec::Http2, _) => true,
                (Codec::Auto, Some(tls)) => tls.alpn.as_deref() == Some("h2"),
                (Codec::Auto, None) if !inspected.protocols.is_empty() => inspected.http2_preface,
                (Codec::Auto, None) => {
                    let Stream::Plain(tcp) = &stream else { return };
                    // A client that says nothing is idle; nothing else counts its time here.
                    let limit = manager.config.idle_timeout.unwrap_or(NEVER);
                    let first = tokio::time::timeout(limit, inspect::is_http2(tcp));
                    let first = tokio::select! {
                        first = first => first,
                        () = &mut killed => return,
                    };
                    let Ok(first) = first else { return };
                    first.unwrap_or(false)
                }
            };
            let connection =
                Arc::new(HttpConnection::new(info, Arc::clone(manager), shared, worker, life.clone()));
            http::serve(connection, stream, http2).await;
        }
    }
}

/// The listener for the original destination, when the accepting one hands off.
fn hand_off(
    shared: &Shared,
    bound: Arc<ListenerRuntime>,
    original: Option<SocketAddr>,
) -> Arc<ListenerRuntime> {
    if !bound.config.use_original_dst {
        return bound;
    }
    let Some(original) = original else { return bound };
    match shared.listener_table().for_destination(original) {
        Some(slot) => slot.current.load_full(),
        None => bound,
    }
}

fn choose<'a>(
    listener: &'a ListenerRuntime,
    inspected: &Inspected,
    destination: SocketAddr,
    peer: SocketAddr,
) -> Option<&'a Arc<ChainRuntime>> {
    let facts = Facts {
        destination_ip: destination.ip(),
        destination_port: destination.port(),
        server_name: inspected.server_name.as_deref().unwrap_or(""),
        transport: inspected.transport(),
        application_protocols: &inspected.protocols,
        source_ip: peer.ip(),
        source_port: peer.port(),
    };
    match listener.matcher.choose(&facts) {
        Some(at) => listener.chains.get(at),
        None => listener.default_chain.as_ref(),
    }
}

/// Counts and logs a connection that no chain takes.
fn refuse(
    listener: &ListenerRuntime,
    worker: &Worker,
    inspected: Inspected,
    local: SocketAddr,
    peer: SocketAddr,
    start: Instant,
    id: u64,
) {
    listener.stats.no_filter_chain_match.inc();
    if listener.logs.is_empty() {
        return;
    }
    let info = ConnectionInfo {
        id,
        direction: listener.config.direction,
        listener: Arc::clone(&listener.config.name),
        chain: "".into(),
        local,
        peer,
        server_name: inspected.server_name,
        tls: None,
        peer_key: None,
        start,
    };
    let record = Record {
        start_time: SystemTime::now(),
        client: peer.ip(),
        duration: start.elapsed(),
        response_duration: None,
        connection: &info,
        captured: None,
        status: 0,
        flags: ResponseFlags::NO_ROUTE,
        details: Some("filter_chain_not_found"),
        termination: None,
        received: 0,
        sent: 0,
        upstream: &UpstreamInfo::default(),
        route: None,
        metadata: &[],
    };
    listener.logs.write(worker.id, &record);
}

async fn accept_tls(
    stream: TcpStream,
    context: &Arc<DownstreamTls>,
    chain: &ChainRuntime,
    listener: &ListenerRuntime,
    shared: &Shared,
    mut inspected: Inspected,
) -> Option<(Stream, Option<TlsSession>, Inspected)> {
    let handshake = async {
        if !inspected.tls && !context.alpn.is_empty() {
            // The offer must be known before the handshake, see `with_alpn`.
            inspected = inspect::client_hello(&stream).await.map_err(|e| e.to_string())?;
        }
        let config = shared.options.tls.server_config(context).map_err(|e| e.to_string())?;
        let config = with_alpn(config, &context.alpn, &inspected.protocols);
        let stream = TlsAcceptor::from(config).accept(stream).await.map_err(|e| e.to_string())?;
        let session = tls::describe(stream.get_ref().1, shared.options.tls.local_identity());
        Ok::<_, String>((Stream::Tls(Box::new(TlsStream::Server(stream))), session))
    };
    let limit = chain.config.handshake_timeout.unwrap_or(std::time::Duration::from_secs(15));
    let outcome = tokio::time::timeout(limit, handshake).await.unwrap_or_else(|_| Err("timeout".to_owned()));
    match outcome {
        Ok((stream, session)) => {
            listener.stats.ssl_handshake.inc();
            Some((stream, Some(session), inspected))
        }
        Err(error) => {
            listener.stats.ssl_error.inc();
            tracing::debug!(listener = %listener.config.name, chain = %chain.config.name, %error, "TLS handshake failed");
            None
        }
    }
}

/// ALPN for one handshake: ours in our order, as far as the client offers them. rustls aborts when a non-empty list has
/// nothing in common with the offer; others go on without ALPN, and so must we. `istio-peer-exchange` is never
/// answered: we do not speak its preface.
fn with_alpn(config: Arc<ServerConfig>, ours: &[Arc<str>], offered: &[Arc<str>]) -> Arc<ServerConfig> {
    let both: Vec<Vec<u8>> = ours
        .iter()
        .filter(|p| &***p != "istio-peer-exchange" && offered.contains(p))
        .map(|p| p.as_bytes().to_vec())
        .collect();
    if config.alpn_protocols == both {
        return config;
    }
    let mut config = Arc::unwrap_or_clone(config);
    config.alpn_protocols = both;
    Arc::new(config)
}

/// Runs the chain's network filters.
fn allowed(chain: &ChainRuntime, info: &ConnectionInfo, shared: &Shared) -> bool {
    let input = Input { connection: info, client: info.peer.ip(), head: None, metadata: &[] };
    chain.rbac.iter().all(|filter| {
        let prefix = filter.stat_prefix.trim_end_matches('.');
        let count = |what: &str| shared.stats().counter(&format!("{prefix}.rbac.{what}")).inc();
        if let Some(rules) = &filter.rbac.shadow_rules {
            let denied = evaluate(rules, &input) != Verdict::Allowed;
            count(if denied { "shadow_denied" } else { "shadow_allowed" });
        }
        let Some(rules) = &filter.rbac.rules else { return true };
        let allowed = evaluate(rules, &input) == Verdict::Allowed;
        count(if allowed { "allowed" } else { "denied" });
        allowed
    })
}
