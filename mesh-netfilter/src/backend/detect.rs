//! Which backend a machine wants: the one that holds rules of ours already, else the best that works.

use std::fmt;
use std::str::FromStr;

use super::{Backend, BackendError, Iptables, Nft, Variant};
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

/// The names of the tables that legacy iptables has made in this network namespace.
const LEGACY_TABLES: &str = "/proc/thread-self/net/ip_tables_names";

/// The backend that holds rules of ours; without any the first that can read rules. Programs are only started where
/// netlink cannot answer.
///
/// # Errors
/// When none can read rules: the error of the best, which names the missing capability or module.
pub fn detect() -> Result<Box<dyn Backend>, BackendError> {
    let error = match by_netlink() {
        Ok(backend) => return Ok(backend),
        // Who may not ask netlink may not change rules by a program either.
        Err(BackendError::Netlink(error)) if !error.is_missing() => return Err(error.into()),
        Err(error) => error,
    };
    let mut first_that_works = None;
    for kind in Kind::ALL.into_iter().filter(|kind| *kind != Kind::Netlink) {
        let looked = open(kind).and_then(|mut backend| Ok((backend.live()?.is_some(), backend)));
        match looked {
            Ok((true, backend)) => return Ok(backend),
            Ok((false, backend)) => {
                first_that_works.get_or_insert(backend);
            }
            Err(_) => {}
        }
    }
    first_that_works.ok_or(error)
}

fn by_netlink() -> Result<Box<dyn Backend>, BackendError> {
    let mut netlink = Netlink::open()?;
    if netlink.live()?.is_some() {
        return Ok(Box::new(netlink));
    }
    if netlink.ours_by_iptables()? {
        return open(Kind::Iptables(Variant::Nft));
    }
    if legacy_tables_exist() {
        let mut legacy = Iptables::new(Variant::Legacy);
        if matches!(legacy.live(), Ok(Some(_))) {
            return Ok(Box::new(legacy));
        }
    }
    Ok(Box::new(netlink))
}

/// Whether legacy iptables has been used in this network namespace.
pub fn legacy_tables_exist() -> bool {
    std::fs::read_to_string(LEGACY_TABLES).is_ok_and(|names| !names.trim().is_empty())
}
