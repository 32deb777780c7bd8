//! What filters know about a request and its connection.

use std::{
    borrow::Cow,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::SystemTime,
};

use http::Extensions;
use tokio::time::Instant;

use crate::{
    config::{AlpnOverride, Direction, PerFilterConfig, Route},
    http::{RouteTable, per_filter},
    telemetry::ResponseFlags,
    tls::TlsSession,
    worker::Worker,
};

/// A downstream connection, known before its first byte is handled.
#[derive(Debug)]
pub struct ConnectionInfo {
    /// Unique in this process.
    pub id: u64,
    /// The listener's direction.
    pub direction: Direction,
    /// The listener that chose the chain.
    pub listener: Arc<str>,
    /// The chain.
    pub chain: Arc<str>,
    /// Where the client wanted to go: the original destination, else the local address.
    pub local: SocketAddr,
    /// The directly connected peer.
    pub peer: SocketAddr,
    /// Server name of the ClientHello.
    pub server_name: Option<Arc<str>>,
    /// TLS facts, when TLS was terminated here.
    pub tls: Option<TlsSession>,
    /// When it was accepted.
    pub start: Instant,
    /// The interned identity of the peer: its address keys metrics.
    pub(crate) peer_key: Option<Arc<str>>,
}

impl ConnectionInfo {
    /// The peer's SPIFFE ID, when it proved one.
    #[must_use]
    pub fn peer_identity(&self) -> Option<&Arc<str>> {
        self.tls.as_ref()?.peer.as_ref()?.spiffe_id()
    }
}

/// The upstream side of a request.
#[derive(Debug, Clone, Default)]
pub struct UpstreamInfo {
    /// The cluster.
    pub cluster: Option<Arc<str>>,
    /// The endpoint.
    pub host: Option<SocketAddr>,
    /// Our address on the upstream connection.
    pub local: Option<SocketAddr>,
    /// Why the transport failed.
    pub transport_failure: Option<Arc<str>>,
    /// The endpoint's identity.
    pub identity: Option<Arc<str>>,
    /// The endpoint's `istio.workload` metadata.
    pub workload: Option<Arc<str>>,
    /// Attempts so far.
    pub attempts: u32,
}

/// One request.
#[derive(Debug)]
pub struct RequestContext {
    pub(crate) connection: Arc<ConnectionInfo>,
    pub(crate) client: IpAddr,
    pub(crate) start: Instant,
    pub(crate) start_time: SystemTime,
    pub(crate) worker: Arc<Worker>,
    pub(crate) routes: Option<Arc<RouteTable>>,
    /// Index of the virtual host.
    pub(crate) host: usize,
    pub(crate) route: Option<Arc<Route>>,
    /// Index of the weighted cluster.
    pub(crate) weighted: Option<usize>,
    /// `istio.alpn` is in the chain.
    pub(crate) alpn: Option<AlpnOverride>,
    pub(crate) upstream: UpstreamInfo,
    pub(crate) flags: ResponseFlags,
    pub(crate) details: Option<Cow<'static, str>>,
    pub(crate) metadata: Vec<(Arc<str>, Arc<str>, Arc<str>)>,
    pub(crate) extensions: Extensions,
}

impl RequestContext {
    /// The connection.
    #[must_use]
    pub fn connection(&self) -> &Arc<ConnectionInfo> {
        &self.connection
    }

    /// The client's address as far as it can be trusted: the peer's, or one that `x-forwarded-for` names.
    ///
    /// With `use_remote_address` it is the peer's, or with N `xff_trusted_hops` the N-th address from the end of the
    /// header as it arrived. Without, it is the N+1-th from its end (the last one when no hop is configured, as
    /// Envoy). The peer's when there are not so many, or what is there is not an address.
    #[must_use]
    pub fn client_address(&self) -> IpAddr {
        self.client
    }

    /// When the request's head had arrived.
    #[must_use]
    pub fn start(&self) -> Instant {
        self.start
    }

    /// The same as wall-clock time.
    #[must_use]
    pub fn start_time(&self) -> SystemTime {
        self.start_time
    }

    /// The route, if one matched.
    #[must_use]
    pub fn route(&self) -> Option<&Arc<Route>> {
        self.route.as_ref()
    }

    /// The upstream side; filled in from the first attempt on.
    #[must_use]
    pub fn upstream(&self) -> &UpstreamInfo {
        &self.upstream
    }

    /// Response flags so far.
    #[must_use]
    pub fn flags(&self) -> ResponseFlags {
        self.flags
    }

    /// Adds response flags.
    pub fn add_flags(&mut self, flags: ResponseFlags) {
        self.flags = self.flags.union(flags);
    }

    /// Sets `%RESPONSE_CODE_DETAILS%`.
    pub fn set_details(&mut self, details: impl Into<Cow<'static, str>>) {
        self.details = Some(details.into());
    }

    /// Dynamic metadata: a string under a filter's name and a dotted key.
    pub fn set_metadata(&mut self, filter: &str, key: &str, value: &str) {
        self.metadata.push((filter.into(), key.into(), value.into()));
    }

    /// Dynamic metadata set by any filter, the latest value.
    #[must_use]
    pub fn metadata(&self, filter: &str, key: &str) -> Option<&str> {
        self.metadata.iter().rev().find(|(f, k, _)| &**f == filter && &**k == key).map(|(_, _, v)| &**v)
    }

    /// What the route, its virtual host or cluster says to the filter of this name, the most specific first.
    #[must_use]
    pub fn per_filter(&self, filter: &str) -> Option<&PerFilterConfig> {
        let table = self.routes.as_ref().filter(|t| t.per_filter)?;
        per_filter(table, self.host, self.route.as_ref()?, self.weighted, filter)
    }

    /// A uniform random number from the proxy's (seedable) source.
    #[must_use]
    pub fn random(&self) -> u64 {
        self.worker.random()
    }

    /// The cluster that the route sends this request to, where the route says so.
    #[must_use]
    pub fn cluster(&self) -> Option<&Arc<str>> {
        crate::http::cluster_name(self.route.as_ref()?, self.weighted)
    }

    /// A filter's own state for this request.
    pub fn extensions_mut(&mut self) -> &mut Extensions {
        &mut self.extensions
    }

    /// A filter's own state for this request.
    #[must_use]
    pub fn extensions(&self) -> &Extensions {
        &self.extensions
    }
}
