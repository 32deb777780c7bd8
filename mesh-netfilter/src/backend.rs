//! Ways of writing rules: netlink, and the programs `nft`, `iptables-nft` and `iptables-legacy` where a machine wants them.

mod detect;
mod iptables;
mod nft;
mod program;
mod shadows;

use crate::netlink::{Netlink, NetlinkError};
use crate::plan::{Applied, Plan};
use crate::ruleset::{Ruleset, UnknownOwner};
use crate::shadow::Shadow;
use crate::text::InvalidText;

pub use detect::{Kind, detect, legacy_tables_exist, open};
pub use iptables::{Iptables, Variant};
pub use nft::Nft;
pub use program::ProgramError;

/// Something that can hold our rules.
pub trait Backend {
    /// Which it is.
    fn kind(&self) -> Kind;

    /// The change from what it holds to `desired`; empty when nothing is to be done.
    ///
    /// # Errors
    /// When the rules cannot be read.
    fn plan(&mut self, desired: &Ruleset) -> Result<Plan, BackendError>;

    /// Makes it hold `desired`, atomically per table; nothing is touched when it does already.
    ///
    /// # Errors
    /// When the rules cannot be read or written. What was captured before is not let through meanwhile or afterwards.
    fn apply(&mut self, desired: &Ruleset) -> Result<Applied, BackendError>;

    /// Removes exactly our rules.
    ///
    /// # Errors
    /// When the rules cannot be read or written.
    fn clean(&mut self) -> Result<Applied, BackendError>;

    /// What it holds of ours, for tracing; `None` when that is nothing.
    ///
    /// # Errors
    /// When the rules cannot be read.
    fn live(&mut self) -> Result<Option<Ruleset>, BackendError>;

    /// Rules of others that take packets from `desired`, in whatever way they were written: nf_tables (iptables-nft
    /// included) and legacy iptables.
    ///
    /// # Errors
    /// When rules cannot be read.
    fn shadows(&mut self, desired: &Ruleset) -> Result<Vec<Shadow>, BackendError>;
}

/// Why a backend could not read or write rules.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BackendError {
    /// Netlink.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// A program.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// What a program printed.
    #[error("what {program} printed is not understood: {error}")]
    Text {
        /// Which program.
        program: String,
        /// Where.
        error: InvalidText,
    },
    /// An owner's name that this machine does not know.
    #[error(transparent)]
    UnknownOwner(#[from] UnknownOwner),
}

impl BackendError {
    /// A stable label.
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Netlink(error) => error.reason(),
            Self::Program(error) => error.reason(),
            Self::Text { .. } => "unreadable",
            Self::UnknownOwner(_) => "unknown_owner",
        }
    }
}

impl Backend for Netlink {
    fn kind(&self) -> Kind {
        Kind::Netlink
    }

    fn plan(&mut self, desired: &Ruleset) -> Result<Plan, BackendError> {
        Ok(Self::plan(self, desired)?)
    }

    fn apply(&mut self, desired: &Ruleset) -> Result<Applied, BackendError> {
        Ok(Self::apply(self, desired)?)
    }

    fn clean(&mut self) -> Result<Applied, BackendError> {
        Ok(Self::clean(self)?)
    }

    fn live(&mut self) -> Result<Option<Ruleset>, BackendError> {
        Ok(Self::live(self)?)
    }

    fn shadows(&mut self, desired: &Ruleset) -> Result<Vec<Shadow>, BackendError> {
        shadows::of_nf_tables(desired)
    }
}
