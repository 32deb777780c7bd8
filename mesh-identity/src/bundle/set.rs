use std::collections::BTreeMap;

use rustls::pki_types::CertificateDer;

use super::TrustBundle;
use crate::{
    id::TrustDomain,
    x509::{PeerIdentity, X509Error},
};

/// The bundles of all trust domains that are trusted: our own and federated ones.
///
/// A peer is verified only against the bundle of the trust domain that its own ID names (SPIFFE Federation 5), so a
/// federated root can never vouch for our own domain.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BundleSet {
    bundles: BTreeMap<TrustDomain, TrustBundle>,
}

/// What changed between two bundle sets, root by root.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BundleDiff {
    /// Roots that are new.
    pub added: Vec<(TrustDomain, CertificateDer<'static>)>,
    /// Roots that are gone.
    pub removed: Vec<(TrustDomain, CertificateDer<'static>)>,
}

impl BundleDiff {
    /// Whether no root changed.
    pub fn is_empty(&self) -> bool {
        self.added.is_empty() && self.removed.is_empty()
    }
}

impl BundleSet {
    /// A set that trusts nobody.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds or replaces the bundle of its trust domain; returns the one it replaced.
    pub fn insert(&mut self, bundle: TrustBundle) -> Option<TrustBundle> {
        self.bundles.insert(bundle.trust_domain().clone(), bundle)
    }

    /// Removes a trust domain.
    pub fn remove(&mut self, trust_domain: &str) -> Option<TrustBundle> {
        self.bundles.remove(trust_domain)
    }

    /// The bundle of a trust domain.
    pub fn get(&self, trust_domain: &str) -> Option<&TrustBundle> {
        self.bundles.get(trust_domain)
    }

    /// All bundles, by trust domain.
    pub fn iter(&self) -> impl Iterator<Item = &TrustBundle> {
        self.bundles.values()
    }

    /// Whether nobody is trusted.
    pub fn is_empty(&self) -> bool {
        self.bundles.values().all(|bundle| bundle.roots().is_empty())
    }

    /// Adds every root of `other` that is not there yet; other facts of a domain that both have stay ours.
    ///
    /// # Errors
    /// More roots than one trust domain may have; the set is then unchanged.
    pub fn merge(&mut self, other: &Self) -> Result<(), X509Error> {
        let mut merged = self.clone();
        for bundle in other.iter() {
            match merged.bundles.get_mut(bundle.trust_domain()) {
                None => {
                    merged.insert(bundle.clone());
                }
                Some(ours) => {
                    for root in bundle.roots() {
                        ours.add_root(root.clone())?;
                    }
                }
            }
        }
        *self = merged;
        Ok(())
    }

    /// The roots that `newer` adds to and removes from `self`.
    pub fn diff(&self, newer: &Self) -> BundleDiff {
        BundleDiff { added: newer.roots_missing_in(self), removed: self.roots_missing_in(newer) }
    }

    fn roots_missing_in(&self, other: &Self) -> Vec<(TrustDomain, CertificateDer<'static>)> {
        self.iter()
            .flat_map(|bundle| bundle.roots().iter().map(|root| (bundle.trust_domain(), root)))
            .filter(|(domain, root)| !other.get(domain.as_str()).is_some_and(|b| b.roots().contains(root)))
            .map(|(domain, root)| (domain.clone(), root.clone()))
            .collect()
    }

    /// Whether a revocation list of the peer's trust domain names its certificate.
    pub fn is_revoked(&self, peer: &PeerIdentity) -> bool {
        self.get(peer.id.trust_domain_str())
            .is_some_and(|bundle| bundle.is_revoked(&peer.issuer, &peer.serial))
    }
}

impl From<TrustBundle> for BundleSet {
    fn from(bundle: TrustBundle) -> Self {
        let mut set = Self::new();
        set.insert(bundle);
        set
    }
}

impl FromIterator<TrustBundle> for BundleSet {
    fn from_iter<I: IntoIterator<Item = TrustBundle>>(bundles: I) -> Self {
        let mut set = Self::new();
        for bundle in bundles {
            set.insert(bundle);
        }
        set
    }
}
