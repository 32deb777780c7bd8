//! What the lab needs from the machine, checked before anything is done.

use caps::{CapSet, Capability};

use crate::error::{During as _, LabError, Result};

/// Capabilities and why they are needed.
const NEEDED: [(Capability, &str); 9] = [
    (Capability::CAP_SYS_ADMIN, "to make namespaces and mounts"),
    (Capability::CAP_NET_ADMIN, "to connect pods and to write their rules"),
    (Capability::CAP_NET_RAW, "because pods are given it"),
    (Capability::CAP_SETUID, "to run containers as their users"),
    (Capability::CAP_SETGID, "to run containers as their groups"),
    (Capability::CAP_SETPCAP, "to take capabilities away from containers"),
    (Capability::CAP_CHOWN, "to hand volumes to containers"),
    (Capability::CAP_DAC_OVERRIDE, "to read what containers wrote"),
    (Capability::CAP_KILL, "to stop containers"),
];

/// Says which privileges are missing and how to get them.
pub(crate) fn check() -> Result<()> {
    let effective = caps::read(None, CapSet::Effective).during("read this process's capabilities")?;
    let missing: Vec<String> = NEEDED
        .iter()
        .filter(|(capability, _)| !effective.contains(capability))
        .map(|(capability, why)| format!("  {capability} ({why})"))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    Err(LabError::Privilege(format!(
        "missing privileges, nothing was done:\n{}\nRun it as root, for example `sudo mesh-lab …`; in a container, \
         start that with `--privileged`, or with `--cap-add` for each of them and `--security-opt seccomp=unconfined`.",
        missing.join("\n")
    )))
}
