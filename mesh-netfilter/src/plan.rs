//! What a change consists of, in words, whatever the backend.

use std::fmt;

/// The change from what is to what should be. Empty when nothing is to be done.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    /// The steps, in order.
    pub changes: Vec<Change>,
}

impl Plan {
    /// Whether what is, is what should be.
    pub const fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }
}

impl FromIterator<Change> for Plan {
    fn from_iter<I: IntoIterator<Item = Change>>(changes: I) -> Self {
        Self { changes: changes.into_iter().collect() }
    }
}

/// One step of a [`Plan`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Change {
    /// Makes a table.
    AddTable {
        /// Its name, with its family.
        table: String,
    },
    /// Removes a table with everything in it.
    RemoveTable {
        /// Its name, with its family.
        table: String,
    },
    /// Makes a chain.
    AddChain {
        /// Its name.
        chain: String,
    },
    /// Removes a chain.
    RemoveChain {
        /// Its name.
        chain: String,
    },
    /// Adds a rule.
    AddRule {
        /// To this chain.
        chain: String,
        /// As `iptables-save` would write it.
        rule: String,
    },
    /// Removes a rule.
    RemoveRule {
        /// From this chain.
        chain: String,
        /// As `iptables-save` would write it.
        rule: String,
    },
}

impl Change {
    /// The same as a finding: what is missing, and what should not be there.
    pub fn finding(&self) -> String {
        match self {
            Self::AddTable { table } => format!("missing: table {table}"),
            Self::RemoveTable { table } => format!("residual: table {table}"),
            Self::AddChain { chain } => format!("missing: chain {chain}"),
            Self::RemoveChain { chain } => format!("residual: chain {chain}"),
            Self::AddRule { chain, rule } => format!("missing: {chain}: {rule}"),
            Self::RemoveRule { chain, rule } => format!("residual: {chain}: {rule}"),
        }
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AddTable { table } => write!(f, "+ table {table}"),
            Self::RemoveTable { table } => write!(f, "- table {table}"),
            Self::AddChain { chain } => write!(f, "+ chain {chain}"),
            Self::RemoveChain { chain } => write!(f, "- chain {chain}"),
            Self::AddRule { chain, rule } => write!(f, "+ {chain}: {rule}"),
            Self::RemoveRule { chain, rule } => write!(f, "- {chain}: {rule}"),
        }
    }
}

/// What an apply or a clean did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Applied {
    /// How many steps; 0 when everything was as it should be.
    pub changes: usize,
}

/// How often a rule has matched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleCounter {
    /// The chain it stands in.
    pub chain: String,
    /// The rule, as `iptables-save` would write it.
    pub rule: String,
    /// Which part of the intent it stands for.
    pub note: String,
    /// Packets; for address translation that is connections, as only their first packet is asked.
    pub packets: u64,
    /// Bytes of those packets.
    pub bytes: u64,
}
