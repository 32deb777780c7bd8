//! What a server stream may do and how it answers.

use std::collections::BTreeMap;

use crate::resource::TypeUrl;

/// What a client hears about a name that does not exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum UnknownNames {
    /// Delta: the name is listed as removed. State-of-the-World: nothing is said. The resource follows when it appears.
    #[default]
    Removed,
    /// An empty resource of that name, for EDS and RDS; as [`Removed`](Self::Removed) for other types.
    ///
    /// A control plane wants this for its sidecars: with `initial_fetch_timeout: 0s` a cluster or listener would
    /// otherwise never leave warming.
    Empty,
}

/// The rules of every stream of a server.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct StreamRules {
    /// What is said about unknown names, by type; types not listed are [`UnknownNames::Removed`].
    pub unknown_names: BTreeMap<TypeUrl, UnknownNames>,
    /// A response is closed when its resources reach this many bytes; the rest follows in further responses, in
    /// State-of-the-World each when the one before is answered. Listeners and clusters are the exception there: the
    /// protocol wants them whole, however large. Default 1 MiB: below the 4 MiB that many gRPC clients accept. One larger
    /// resource is sent alone.
    pub max_response_bytes: usize,
    /// How many names one stream may subscribe to per type. Default 65,536; more is `RESOURCE_EXHAUSTED`.
    pub max_names: usize,
    /// How many bytes one stream's names and type URLs may take together. Default 16 MiB: 65,536 names of usual length in
    /// more than one type; more is `RESOURCE_EXHAUSTED`.
    pub max_name_bytes: usize,
    /// How many types one stream may use. Default 64; more is `RESOURCE_EXHAUSTED`.
    pub max_types: usize,
    /// What the server calls itself in `control_plane.identifier`; empty says nothing.
    pub identifier: String,
}

impl Default for StreamRules {
    fn default() -> Self {
        Self {
            unknown_names: BTreeMap::new(),
            max_response_bytes: 1 << 20,
            max_names: 65_536,
            max_name_bytes: 16 << 20,
            max_types: 64,
            identifier: String::new(),
        }
    }
}

impl StreamRules {
    /// Answers unknown EDS and RDS names with empty resources, as a control plane for sidecars should.
    #[must_use]
    pub fn with_empty_unknowns(mut self) -> Self {
        self.unknown_names.insert(TypeUrl::ENDPOINTS, UnknownNames::Empty);
        self.unknown_names.insert(TypeUrl::ROUTE, UnknownNames::Empty);
        self
    }

    pub(super) fn unknown(&self, type_url: &TypeUrl) -> UnknownNames {
        self.unknown_names.get(type_url).copied().unwrap_or_default()
    }
}

/// Why a stream ends.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StreamError {
    /// The first request of a stream has to say who asks. gRPC: `INVALID_ARGUMENT`.
    #[error("the first request of the stream has no node.id")]
    NoNode,
    /// The node of a stream cannot change. gRPC: `INVALID_ARGUMENT`.
    #[error("the stream belongs to node {first:?}, a later request says {later:?}")]
    NodeChanged {
        /// The node of the first request.
        first: String,
        /// What a later request said.
        later: String,
    },
    /// A request on an aggregated stream has to name its type. gRPC: `INVALID_ARGUMENT`.
    #[error("the request has no type_url")]
    NoType,
    /// A stream for one type cannot carry another. gRPC: `INVALID_ARGUMENT`.
    #[error("the stream serves {expected}, the request asks for {actual}")]
    WrongType {
        /// What the stream serves.
        expected: String,
        /// What the request asked for.
        actual: String,
    },
    /// Too many names of one type. gRPC: `RESOURCE_EXHAUSTED`.
    #[error("{type_url}: more than {limit} names")]
    TooManyNames {
        /// The type.
        type_url: String,
        /// [`StreamRules::max_names`].
        limit: usize,
    },
    /// Names and type URLs that are too long together. gRPC: `RESOURCE_EXHAUSTED`.
    #[error("{type_url}: the names on the stream take {bytes} bytes; at most {limit} are kept")]
    TooManyBytes {
        /// The type of the request that went too far; its beginning, if it is itself too long.
        type_url: String,
        /// What the names of all types take.
        bytes: usize,
        /// [`StreamRules::max_name_bytes`].
        limit: usize,
    },
    /// Too many types on one stream. gRPC: `RESOURCE_EXHAUSTED`.
    #[error("more than {limit} types on one stream")]
    TooManyTypes {
        /// [`StreamRules::max_types`].
        limit: usize,
    },
}

impl StreamError {
    /// A stable label of low cardinality, for metrics.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::NoNode => "no_node",
            Self::NodeChanged { .. } => "node_changed",
            Self::NoType => "no_type",
            Self::WrongType { .. } => "wrong_type",
            Self::TooManyNames { .. } => "too_many_names",
            Self::TooManyBytes { .. } => "too_many_bytes",
            Self::TooManyTypes { .. } => "too_many_types",
        }
    }
}
