//! Which backend a machine wants: the one that holds rules of ours already, else the best that works.

use std::fmt;
use std::str::FromStr;

use super::{Backend, BackendError, Iptables, Nft, ProgramError, Variant};
use crate::net::BadWord;
use crate::netlink::Netlink;

/// A way of writing rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// nf_tables over netlink, without any program.
    Netlink,
    /// The program `nft`.
    Nft,
    /// One of the `iptables` programs.
    Iptables(Variant),
}

impl Kind {
    /// All, the best first.
    pub const ALL: [Self; 5] = [
        Self::Netlink,
        Self::Nft,
        Self::Iptables(Variant::Nft),
        Self::Iptables(Variant::Legacy),
        Self::Iptables(Variant::Plain),
    ];

    /// Its name, as `--backend` takes it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Netlink => "netlink",
            Self::Nft => "nft",
            Self::Iptables(Variant::Nft) => "iptables-nft",
            Self::Iptables(Variant::Legacy) => "iptables-legacy",
            Self::Iptables(Variant::Plain) => "iptables",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Kind {
    type Err = BadWord;

    fn from_str(word: &str) -> Result<Self, BadWord> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == word).ok_or(BadWord { reason: "is no backend" })
    }
}

/// Opens a backend.
///
/// # Errors
/// When the kernel refuses netlink; programs are only started later.
pub fn open(kind: Kind) -> Result<Box<dyn Backend>, BackendError> {
    Ok(match kind {
        Kind::Netlink => Box::new(Netlink::open()?),
        Kind::Nft => Box::new(Nft),
        Kind::Iptables(variant) => Box::new(Iptables::new(variant)),
    })
}

/// The backend that holds rules of ours; without any the first that can read rules.
///
/// # Errors
/// When none can read rules: the error of the best, which names the missing capability or module.
pub fn detect() -> Result<Box<dyn Backend>, BackendError> {
    let mut first_that_works = None;
    let mut first_error = None;
    for kind in Kind::ALL {
        let looked = open(kind).and_then(|mut backend| Ok((backend.live()?.is_some(), backend)));
        match looked {
            // The two names of one program must not count twice; nf_tables rules are netlink's, whoever wrote them.
            Ok((true, backend)) => return Ok(backend),
            Ok((false, backend)) => {
                first_that_works.get_or_insert(backend);
            }
            Err(error) => {
                first_error.get_or_insert(error);
            }
        }
    }
    first_that_works.ok_or_else(|| {
        first_error.unwrap_or_else(|| {
            ProgramError::Start { program: "iptables".to_owned(), error: "not found".to_owned() }.into()
        })
    })
}
