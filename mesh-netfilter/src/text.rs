//! Rules as text: reading what `iptables-save` writes and `iptables-restore` takes, reading the part of nft's language that
//! interception uses, and writing both.

mod nft_read;
mod nft_write;
mod options;
mod restore;

use crate::net::Family;
use crate::ruleset::Ruleset;
pub(crate) use options::quoted;

/// Why text is not rules.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {reason}: {text:?}")]
#[non_exhaustive]
pub struct InvalidText {
    /// The line, from 1.
    pub line: usize,
    /// What is wrong.
    pub reason: &'static str,
    /// The offending word or line.
    pub text: String,
}

/// How much of a ruleset becomes `iptables-restore` text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Restore {
    /// Everything, as `iptables-save` writes it.
    Whole,
    /// What `iptables-restore --noflush` takes to make our chains anew and leave others alone.
    NoFlush,
}

impl Ruleset {
    /// Reads what `iptables-save` writes, or text for `iptables-restore`, of one family.
    ///
    /// # Errors
    /// The first line that is neither.
    pub fn from_iptables(text: &str, family: Family) -> Result<Self, InvalidText> {
        restore::read(text, family)
    }

    /// Writes one family's rules as text for `iptables-restore`.
    pub fn to_iptables(&self, family: Family, restore: Restore) -> String {
        restore::write(self, family, restore)
    }

    /// Reads an nft script of `add` and `insert` commands, as Istio's nft backend writes it.
    ///
    /// # Errors
    /// The first line that is not understood.
    pub fn from_nft(text: &str) -> Result<Self, InvalidText> {
        nft_read::read(text)
    }

    /// Writes the rules as one atomic script for `nft -f`: table `inet mesh` is replaced as a whole, several ports or
    /// prefixes of one rule become a set.
    pub fn to_nft(&self) -> String {
        nft_write::write(self)
    }

    /// Both rulesets in one; chains of the same table and name are joined. For the two families' texts of one machine.
    #[must_use]
    pub fn merge(mut self, other: Self) -> Self {
        for chain in other.chains {
            let same = |own: &&mut crate::ruleset::Chain| own.table == chain.table && own.name == chain.name;
            match self.chains.iter_mut().find(same) {
                Some(own) => own.rules.extend(chain.rules),
                None => self.chains.push(chain),
            }
        }
        self
    }
}

#[cfg(test)]
mod tests;
