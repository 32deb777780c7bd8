//! What other programs have in the kernel, whoever writes our rules: nf_tables and legacy iptables, which packets meet both.

use super::{BackendError, Iptables, Variant, legacy_tables_exist};
use crate::net::Family;
use crate::netlink::{NAT_PRIORITY, Netlink, OtherTable};
use crate::ruleset::{Chain, Hook, Ruleset, TableKind};
use crate::shadow::{Foreign, Shadow, concerns, find, place_of, renamed};

/// The priority of iptables' nat.
const IPTABLES_NAT: i32 = -100;

/// Shadows of rules in table `inet mesh`.
pub(super) fn of_nf_tables(desired: &Ruleset) -> Result<Vec<Shadow>, BackendError> {
    let mut foreign = nf_tables(NAT_PRIORITY, |_| true)?;
    foreign.extend(legacy(NAT_PRIORITY)?);
    Ok(find(&desired.resolve_here()?, &foreign))
}

/// Shadows of rules that `iptables` holds.
pub(super) fn of_iptables(iptables: &Iptables, desired: &Ruleset) -> Result<Vec<Shadow>, BackendError> {
    let over_nf_tables = iptables.is_over_nf_tables()?;
    let mut foreign = saved(iptables, true, IPTABLES_NAT)?;
    // What iptables-nft shows itself is not looked at twice.
    let shown = |table: &OtherTable| {
        table.family.is_some() && TableKind::ALL.iter().any(|kind| kind.as_str() == table.name)
    };
    foreign.extend(nf_tables(IPTABLES_NAT, |table| !(over_nf_tables && shown(table)))?);
    if over_nf_tables {
        foreign.extend(legacy(IPTABLES_NAT)?);
    }
    Ok(find(&desired.resolve_here()?, &foreign))
}

fn legacy(nat: i32) -> Result<Vec<Foreign>, BackendError> {
    if legacy_tables_exist() { saved(&Iptables::new(Variant::Legacy), false, nat) } else { Ok(Vec::new()) }
}

/// Both families' rules, as the programs save them.
fn saved(iptables: &Iptables, around: bool, nat: i32) -> Result<Vec<Foreign>, BackendError> {
    let v4 = iptables.read(Family::V4)?;
    // Where the kernel has no IPv6 nobody has rules for it.
    let all = v4.merge(iptables.read(Family::V6).unwrap_or_default());
    Ok(Foreign::of_iptables(&all, iptables.name(), around, nat))
}

fn nf_tables(nat: i32, wanted: impl Fn(&OtherTable) -> bool) -> Result<Vec<Foreign>, BackendError> {
    let tables = match Netlink::open().and_then(|mut kernel| kernel.others()) {
        Ok(tables) => tables,
        Err(error) if error.is_missing() => Vec::new(),
        Err(error) => return Err(error.into()),
    };
    let mut foreign = Vec::new();
    for table in tables.iter().filter(|table| wanted(table)) {
        for base in &table.chains {
            let Some((hook, found)) = base
                .base
                .as_ref()
                .and_then(|found| Some((*Hook::ALL.get(usize::try_from(found.hook).ok()?)?, found)))
            else {
                continue;
            };
            if !concerns(hook) {
                continue;
            }
            let (kind, place) = place_of(found.priority, found.kind == "nat", nat);
            // The same chains may be led to from several hooks.
            let prefix = format!("{} {}", table.describe(), base.name);
            let chains = table.chains.iter().filter(|chain| chain.base.is_none() || chain.name == base.name);
            let chains = chains
                .map(|chain| {
                    let is_base = chain.name == base.name;
                    let plain = Chain {
                        hook: is_base.then_some(hook),
                        drops: is_base && found.drops,
                        rules: chain.rules.clone(),
                        ..Chain::regular(kind, chain.name.clone())
                    };
                    let mut chain = renamed(&plain, kind, &prefix);
                    if is_base {
                        chain.name = prefix.clone().into();
                    }
                    chain
                })
                .collect();
            foreign.push(Foreign { table: kind, place, chains });
        }
    }
    Ok(foreign)
}
