//! What can go wrong, and which module or capability is missing.

use nix::errno::Errno;

use super::lower::Unsupported;
use crate::ruleset::UnknownOwner;

/// Why the kernel's rules could not be read or changed. A change that failed has changed nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NetlinkError {
    /// The socket itself failed.
    #[error("netlink {call}: {errno}{}", socket_hint(*errno))]
    Socket {
        /// Which step.
        call: &'static str,
        /// Why.
        errno: Errno,
    },
    /// The caller may not change rules here.
    #[error(
        "changing nf_tables rules is not permitted ({errno}): CAP_NET_ADMIN is missing in this network namespace's user namespace"
    )]
    NotPermitted {
        /// As the kernel put it.
        errno: Errno,
    },
    /// The kernel has no nf_tables.
    #[error("the kernel has no nf_tables ({errno}): is module nf_tables missing?")]
    NoNfTables {
        /// As the kernel put it.
        errno: Errno,
    },
    /// One step of the change was refused.
    #[error("{change}: {errno}{hint}")]
    Refused {
        /// The step.
        change: String,
        /// Why.
        errno: Errno,
        /// What is probably missing.
        hint: &'static str,
    },
    /// Somebody else changed rules while the change was being written.
    #[error("the rules changed meanwhile ({errno})")]
    Stale {
        /// As the kernel put it.
        errno: Errno,
    },
    /// That happened every time.
    #[error("the rules changed during each of {attempts} attempts to write")]
    Busy {
        /// How many.
        attempts: usize,
    },
    /// The change is larger than the socket takes.
    #[error("a change of {bytes} bytes is more than the socket's buffer takes (net.core.wmem_max)")]
    TooLarge {
        /// How large.
        bytes: usize,
    },
    /// A rule that nf_tables cannot express.
    #[error(transparent)]
    Unsupported(#[from] Unsupported),
    /// An owner's name that this machine does not know.
    #[error(transparent)]
    UnknownOwner(#[from] UnknownOwner),
}

impl NetlinkError {
    /// A stable label.
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Socket { .. } => "socket",
            Self::NotPermitted { .. } => "not_permitted",
            Self::NoNfTables { .. } => "no_nf_tables",
            Self::Refused { .. } => "refused",
            Self::Stale { .. } | Self::Busy { .. } => "busy",
            Self::TooLarge { .. } => "too_large",
            Self::Unsupported(_) => "unsupported_rule",
            Self::UnknownOwner(_) => "unknown_owner",
        }
    }

    /// Whether the kernel has no nf_tables at all, so that another backend may do.
    pub fn is_missing(&self) -> bool {
        matches!(
            self,
            Self::NoNfTables { .. }
                | Self::Socket { call: "socket" | "get", errno: Errno::EPROTONOSUPPORT | Errno::EINVAL }
        )
    }

    /// Whether planning anew may help: others changed rules in between.
    pub(super) const fn is_stale(&self) -> bool {
        matches!(
            self,
            Self::Stale { .. }
                | Self::Refused { errno: Errno::ENOENT | Errno::EBUSY | Errno::EEXIST | Errno::ERESTART, .. }
        )
    }
}

const fn socket_hint(errno: Errno) -> &'static str {
    match errno {
        Errno::EPERM | Errno::EACCES => ": CAP_NET_ADMIN is missing",
        Errno::EPROTONOSUPPORT => ": module nfnetlink is missing",
        Errno::EINVAL => ": module nf_tables is missing",
        _ => "",
    }
}

/// What a refusal usually means.
pub(super) const fn hint(errno: Errno) -> &'static str {
    match errno {
        Errno::ENOENT => {
            ": a module is missing; this needs nf_tables, nft_chain_nat, nft_redir, nft_ct and nft_tproxy for TPROXY"
        }
        Errno::EOPNOTSUPP => ": this kernel is too old for address translation in an inet table (5.2 has it)",
        Errno::EPERM => ": CAP_NET_ADMIN is missing",
        _ => "",
    }
}
