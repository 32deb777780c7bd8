//! What a client asks for.

use std::collections::BTreeSet;

/// Which kind of ADS stream a client opens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Protocol {
    /// Incremental: only what changed travels.
    #[default]
    Delta,
    /// State of the world: for servers that do not speak Delta.
    Sotw,
}

/// The names of one type that a client wants.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Names {
    /// Everything the server has for this client.
    pub all: bool,
    /// These names, whether or not they belong to "everything".
    pub names: BTreeSet<String>,
}

impl Names {
    /// Everything.
    #[must_use]
    pub const fn all() -> Self {
        Self { all: true, names: BTreeSet::new() }
    }

    /// Nothing yet; names are subscribed to later.
    #[must_use]
    pub const fn none() -> Self {
        Self { all: false, names: BTreeSet::new() }
    }

    /// These names.
    pub fn of<S: Into<String>>(names: impl IntoIterator<Item = S>) -> Self {
        Self { all: false, names: names.into_iter().map(Into::into).collect() }
    }

    /// Whether nothing is wanted.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        !self.all && self.names.is_empty()
    }

    /// Whether a resource of this name is wanted.
    #[must_use]
    pub fn contains(&self, name: &str) -> bool {
        self.all || self.names.contains(name)
    }
}
