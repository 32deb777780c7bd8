//! Whom we talk to: the decision after a peer proved who it is.

use std::{collections::BTreeSet, fmt, sync::Arc};

use crate::{
    id::{SpiffeId, TrustDomain},
    x509::{PeerIdentity, X509Error},
};

/// Decides whether a verified peer may be talked to. Cheap to clone.
///
/// There is no authorizer that accepts everybody. A server's usual choice is its own trust domain
/// ([`Authorizer::trust_domain`]); a client names whom it expects ([`Authorizer::exact`], [`Authorizer::one_of`]).
#[derive(Clone)]
pub struct Authorizer(Arc<Rule>);

enum Rule {
    Exact(BTreeSet<SpiffeId>),
    Prefix(String),
    TrustDomains(BTreeSet<TrustDomain>),
    AnyOf(Vec<Authorizer>),
    Matching { name: String, accepts: Box<dyn Fn(&PeerIdentity) -> bool + Send + Sync> },
}

impl Authorizer {
    /// Exactly this ID.
    pub fn exact(id: SpiffeId) -> Self {
        Self::one_of([id])
    }

    /// Exactly one of these IDs. An empty list accepts nobody.
    pub fn one_of(ids: impl IntoIterator<Item = SpiffeId>) -> Self {
        Self(Arc::new(Rule::Exact(ids.into_iter().collect())))
    }

    /// Every ID whose text begins with `prefix`, for example `spiffe://cluster.local/ns/shop/`.
    ///
    /// The prefix must end in `/`, so that `…/ns/shop/` cannot match `…/ns/shopping/`, and must hold a whole trust
    /// domain, so that `spiffe://cluster.local` cannot match `spiffe://cluster.local.example`.
    ///
    /// # Errors
    /// A prefix that is not `spiffe://`, a trust domain, and whole path segments followed by a slash.
    pub fn prefix(prefix: &str) -> Result<Self, AuthorizerError> {
        let bad = |reason| AuthorizerError::Prefix { prefix: prefix.to_owned(), reason };
        let id = prefix.strip_suffix('/').ok_or_else(|| bad("it does not end in a slash".to_owned()))?;
        SpiffeId::parse(id).map_err(|e| bad(e.to_string()))?;
        Ok(Self(Arc::new(Rule::Prefix(prefix.to_owned()))))
    }

    /// Every ID of this trust domain: a server's usual choice, with its own.
    pub fn trust_domain(trust_domain: TrustDomain) -> Self {
        Self::trust_domains([trust_domain])
    }

    /// Every ID of these trust domains.
    pub fn trust_domains(trust_domains: impl IntoIterator<Item = TrustDomain>) -> Self {
        Self(Arc::new(Rule::TrustDomains(trust_domains.into_iter().collect())))
    }

    /// Whoever at least one of these accepts. An empty list accepts nobody.
    pub fn any_of(authorizers: impl IntoIterator<Item = Self>) -> Self {
        Self(Arc::new(Rule::AnyOf(authorizers.into_iter().collect())))
    }

    /// Whoever `accepts` accepts; `name` describes them in errors and logs.
    pub fn matching(
        name: impl Into<String>,
        accepts: impl Fn(&PeerIdentity) -> bool + Send + Sync + 'static,
    ) -> Self {
        Self(Arc::new(Rule::Matching { name: name.into(), accepts: Box::new(accepts) }))
    }

    /// Whether this peer is accepted.
    pub fn accepts(&self, peer: &PeerIdentity) -> bool {
        match &*self.0 {
            Rule::Exact(ids) => ids.contains(&peer.id),
            Rule::Prefix(prefix) => peer.id.as_str().starts_with(prefix),
            Rule::TrustDomains(domains) => domains.contains(peer.id.trust_domain_str()),
            Rule::AnyOf(authorizers) => authorizers.iter().any(|one| one.accepts(peer)),
            Rule::Matching { accepts, .. } => accepts(peer),
        }
    }

    /// As [`Authorizer::accepts`], as a result that says whom was expected.
    ///
    /// # Errors
    /// [`X509Error::Denied`].
    pub fn check(&self, peer: &PeerIdentity) -> Result<(), X509Error> {
        if self.accepts(peer) {
            return Ok(());
        }
        Err(X509Error::Denied { id: peer.id.clone(), expected: self.to_string() })
    }
}

/// Says whom the authorizer accepts; at most four names are listed.
impl fmt::Display for Authorizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fn list<T: fmt::Display>(
            f: &mut fmt::Formatter<'_>,
            items: impl ExactSizeIterator<Item = T>,
        ) -> fmt::Result {
            let count = items.len();
            if count == 0 {
                return f.write_str("nobody");
            }
            for (index, item) in items.take(4).enumerate() {
                let separator = if index == 0 { "" } else { " or " };
                write!(f, "{separator}{item}")?;
            }
            if count > 4 { write!(f, " or {} more", count - 4) } else { Ok(()) }
        }
        match &*self.0 {
            Rule::Exact(ids) => list(f, ids.iter()),
            Rule::Prefix(prefix) => write!(f, "{prefix}*"),
            Rule::TrustDomains(domains) => list(f, domains.iter().map(|d| format!("spiffe://{d}/*"))),
            Rule::AnyOf(authorizers) => list(f, authorizers.iter()),
            Rule::Matching { name, .. } => f.write_str(name),
        }
    }
}

impl fmt::Debug for Authorizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Authorizer({self})")
    }
}

/// Why an authorizer cannot be built.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AuthorizerError {
    /// A prefix that could match more than it seems to.
    #[error("{prefix:?} is no prefix of SPIFFE IDs: {reason}")]
    Prefix {
        /// The prefix given.
        prefix: String,
        /// What is wrong.
        reason: String,
    },
}

impl AuthorizerError {
    /// A stable label of low cardinality, for metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Prefix { .. } => "prefix",
        }
    }
}
