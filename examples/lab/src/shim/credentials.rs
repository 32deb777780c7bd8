//! User, groups and capabilities of a container's process.

use std::collections::HashSet;
use std::str::FromStr as _;

use caps::{CapSet, Capability};
use nix::sys::prctl;
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};

use crate::error::{During as _, LabError, Result};
use crate::sandbox::Process;

/// Becomes the process's user with its bounding set; what exec leaves of the capabilities follows from both.
pub(super) fn assume(process: &Process) -> Result<()> {
    let wanted = process
        .capabilities
        .iter()
        .map(|name| {
            Capability::from_str(name).map_err(|_| LabError::Usage(format!("unknown capability {name}")))
        })
        .collect::<Result<HashSet<_>>>()?;
    if process.no_new_privileges {
        prctl::set_no_new_privs().during("refuse new privileges")?;
    }
    for capability in caps::read(None, CapSet::Bounding).during("read the bounding set")? {
        if !wanted.contains(&capability) {
            caps::drop(None, CapSet::Bounding, capability).during(format!("drop {capability}"))?;
        }
    }
    caps::clear(None, CapSet::Inheritable).during("clear the inheritable set")?;
    let groups: Vec<Gid> = process.groups.iter().copied().map(Gid::from_raw).collect();
    setgroups(&groups).during("set supplementary groups")?;
    let gid = Gid::from_raw(process.gid);
    setresgid(gid, gid, gid).during(format!("become group {gid}"))?;
    // Leaving uid 0 clears the effective, permitted and ambient sets; staying root, exec computes them from the
    // bounding set (capabilities(7)).
    let uid = Uid::from_raw(process.uid);
    setresuid(uid, uid, uid).during(format!("become user {uid}"))?;
    Ok(())
}
