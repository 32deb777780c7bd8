//! What changed.

use std::collections::BTreeSet;

use super::Merge;

/// What changed, by the keys of what the configuration is made of: services, policies, whatever clients depend on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope<K> {
    /// Only the endpoints of these: clusters, listeners and routes are what they were, so nothing but EDS has to be
    /// computed. By far the most frequent change.
    Endpoints(BTreeSet<K>),
    /// These, in any way.
    Some(BTreeSet<K>),
    /// Everything, for every client.
    All,
}

impl<K: Ord> Scope<K> {
    /// Whether only endpoints moved.
    #[must_use]
    pub const fn is_endpoints_only(&self) -> bool {
        matches!(self, Self::Endpoints(_))
    }

    /// Whether it concerns a client that depends on `keys`.
    ///
    /// Ask for the keys that the client depends on now and for those it depended on before: what it lost has to be taken
    /// from it.
    pub fn concerns<'a>(&self, keys: impl IntoIterator<Item = &'a K>) -> bool
    where
        K: 'a,
    {
        match self {
            Self::Endpoints(changed) | Self::Some(changed) => {
                keys.into_iter().any(|key| changed.contains(key))
            }
            Self::All => true,
        }
    }
}

impl<K: Ord> Merge for Scope<K> {
    fn merge(&mut self, newer: Self) {
        *self = match (std::mem::replace(self, Self::All), newer) {
            (Self::Endpoints(mut old), Self::Endpoints(new)) => {
                old.merge(new);
                Self::Endpoints(old)
            }
            (Self::Endpoints(mut old) | Self::Some(mut old), Self::Endpoints(new) | Self::Some(new)) => {
                old.merge(new);
                Self::Some(old)
            }
            (Self::All, _) | (_, Self::All) => Self::All,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_stay_endpoints_until_something_else_changes() {
        let endpoints = |key| Scope::Endpoints(BTreeSet::from([key]));
        let mut scope = endpoints("a");
        scope.merge(endpoints("b"));
        assert_eq!(scope, Scope::Endpoints(BTreeSet::from(["a", "b"])));
        assert!(scope.is_endpoints_only());
        scope.merge(Scope::Some(BTreeSet::from(["c"])));
        assert_eq!(scope, Scope::Some(BTreeSet::from(["a", "b", "c"])));
        scope.merge(endpoints("d"));
        assert!(!scope.is_endpoints_only() && scope.concerns([&"d"]) && !scope.concerns([&"e"]));
        scope.merge(Scope::All);
        scope.merge(endpoints("a"));
        assert_eq!(scope, Scope::All);
        assert!(scope.concerns([]), "everybody");
    }
}
