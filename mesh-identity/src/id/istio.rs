use std::{collections::BTreeSet, fmt};

use super::{SCHEME, SpiffeIdRef};

/// Istio's reading of a SPIFFE ID: the path is `/ns/<namespace>/sa/<service account>`.
///
/// A view, not a restriction: IDs of another shape stay valid SPIFFE IDs and simply have no such view.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IstioName<'a> {
    /// The trust domain, without the scheme.
    pub trust_domain: &'a str,
    /// The Kubernetes namespace.
    pub namespace: &'a str,
    /// The Kubernetes service account.
    pub service_account: &'a str,
}

/// The principal as authorization policies write it: `<trust domain>/ns/<namespace>/sa/<service account>`.
impl fmt::Display for IstioName<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/ns/{}/sa/{}", self.trust_domain, self.namespace, self.service_account)
    }
}

/// Adds, for each workload ID of Istio's shape in `ids`, the same workload in each of `trust_domains`.
///
/// This is how trust domain aliases work: a certificate of any alias is accepted. Texts that are not IDs of Istio's
/// shape are kept as they are, without a copy in other domains.
pub fn expand_with_trust_domains<'a>(
    ids: impl IntoIterator<Item = &'a str>,
    trust_domains: &[&str],
) -> BTreeSet<String> {
    let mut expanded = BTreeSet::new();
    for id in ids {
        expanded.insert(id.to_owned());
        let Some(name) = SpiffeIdRef::parse(id).ok().and_then(|id| id.istio()) else { continue };
        for trust_domain in trust_domains {
            expanded.insert(format!("{SCHEME}{}", IstioName { trust_domain, ..name }));
        }
    }
    expanded
}
