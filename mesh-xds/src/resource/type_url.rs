//! Type URLs and what the protocol says about each type.

use std::borrow::Cow;
use std::fmt;

/// A resource type as it is named on the wire, `type.googleapis.com/<full message name>`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TypeUrl(Cow<'static, str>);

impl TypeUrl {
    /// LDS.
    pub const LISTENER: Self = Self::from_static("type.googleapis.com/envoy.config.listener.v3.Listener");
    /// RDS.
    pub const ROUTE: Self = Self::from_static("type.googleapis.com/envoy.config.route.v3.RouteConfiguration");
    /// SRDS.
    pub const SCOPED_ROUTE: Self =
        Self::from_static("type.googleapis.com/envoy.config.route.v3.ScopedRouteConfiguration");
    /// VHDS.
    pub const VIRTUAL_HOST: Self = Self::from_static("type.googleapis.com/envoy.config.route.v3.VirtualHost");
    /// CDS.
    pub const CLUSTER: Self = Self::from_static("type.googleapis.com/envoy.config.cluster.v3.Cluster");
    /// EDS.
    pub const ENDPOINTS: Self =
        Self::from_static("type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment");
    /// SDS.
    pub const SECRET: Self =
        Self::from_static("type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret");
    /// ECDS.
    pub const EXTENSION_CONFIG: Self =
        Self::from_static("type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig");
    /// RTDS.
    pub const RUNTIME: Self = Self::from_static("type.googleapis.com/envoy.service.runtime.v3.Runtime");
    /// NDS, Istio's DNS table.
    pub const NAME_TABLE: Self = Self::from_static("type.googleapis.com/istio.networking.nds.v1.NameTable");
    /// WDS, Istio's ambient addresses.
    pub const WORKLOAD_ADDRESS: Self = Self::from_static("type.googleapis.com/istio.workload.Address");
    /// WDS, workloads alone.
    pub const WORKLOAD: Self = Self::from_static("type.googleapis.com/istio.workload.Workload");
    /// Istio's ambient authorization policies.
    pub const AUTHORIZATION: Self = Self::from_static("type.googleapis.com/istio.security.Authorization");

    /// A type URL known at compile time.
    #[must_use]
    pub const fn from_static(url: &'static str) -> Self {
        Self(Cow::Borrowed(url))
    }

    /// The URL as it is written on the wire.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The usual three- or four-letter name (`CDS`), or the message's name for a type that has none.
    #[must_use]
    pub fn short(&self) -> &str {
        match self {
            t if *t == Self::LISTENER => "LDS",
            t if *t == Self::ROUTE => "RDS",
            t if *t == Self::SCOPED_ROUTE => "SRDS",
            t if *t == Self::VIRTUAL_HOST => "VHDS",
            t if *t == Self::CLUSTER => "CDS",
            t if *t == Self::ENDPOINTS => "EDS",
            t if *t == Self::SECRET => "SDS",
            t if *t == Self::EXTENSION_CONFIG => "ECDS",
            t if *t == Self::RUNTIME => "RTDS",
            t if *t == Self::NAME_TABLE => "NDS",
            t if *t == Self::WORKLOAD_ADDRESS || *t == Self::WORKLOAD => "WDS",
            t => t.0.rsplit(['.', '/']).next().unwrap_or_default(),
        }
    }

    /// Whether a State-of-the-World response always holds the whole set, so that absence means deletion (LDS, CDS).
    #[must_use]
    pub fn is_full_state(&self) -> bool {
        *self == Self::LISTENER || *self == Self::CLUSTER
    }

    /// Whether the type is only ever asked for by name, so that a first request without names asks for nothing.
    ///
    /// For every other type such a request is the legacy wildcard.
    #[must_use]
    pub fn is_named(&self) -> bool {
        [
            Self::ROUTE,
            Self::VIRTUAL_HOST,
            Self::ENDPOINTS,
            Self::SECRET,
            Self::EXTENSION_CONFIG,
            Self::RUNTIME,
        ]
        .contains(self)
    }

    /// Where the type stands in a push that touches several: CDS, EDS, LDS, RDS, SRDS, VHDS, SDS, WDS,
    /// authorization, the rest. Lower goes first.
    #[must_use]
    pub fn push_rank(&self) -> u8 {
        const ORDER: [TypeUrl; 12] = [
            TypeUrl::CLUSTER,
            TypeUrl::ENDPOINTS,
            TypeUrl::LISTENER,
            TypeUrl::ROUTE,
            TypeUrl::SCOPED_ROUTE,
            TypeUrl::VIRTUAL_HOST,
            TypeUrl::SECRET,
            TypeUrl::WORKLOAD_ADDRESS,
            TypeUrl::WORKLOAD,
            TypeUrl::AUTHORIZATION,
            TypeUrl::RUNTIME,
            TypeUrl::EXTENSION_CONFIG,
        ];
        (0..).zip(&ORDER).find(|(_, t)| *t == self).map_or(u8::MAX, |(rank, _)| rank)
    }
}

impl From<String> for TypeUrl {
    fn from(url: String) -> Self {
        Self(Cow::Owned(url))
    }
}

impl From<&str> for TypeUrl {
    fn from(url: &str) -> Self {
        Self(Cow::Owned(url.to_owned()))
    }
}

impl fmt::Display for TypeUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for TypeUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TypeUrl({})", self.0)
    }
}
