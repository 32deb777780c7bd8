//! What each command does.

mod show;

use std::fmt::Display;

use mesh_netfilter::backend::{Backend, Iptables, Kind, Variant, detect, legacy_tables_exist, open};
use mesh_netfilter::routing::{Routing, needs};
use mesh_netfilter::{Interception, Netlink, Ruleset};
use serde_json::json;

use crate::flags::{Command, Flags};
use crate::{Failure, machine, probe};

/// Does what was asked for.
pub(crate) fn run(flags: &Flags) -> Result<(), Failure> {
    // Wrong words are refused before anything is asked of the machine.
    flags.intent().map_err(Failure::rules)?;
    for warning in flags.warnings() {
        eprintln!("mesh-init: warning: {warning}");
    }
    match flags.command {
        // These never look at the machine.
        Command::Render => return show::render(flags, &intent(flags)?),
        Command::Trace if !flags.live => return show::trace(flags),
        _ => enter(&flags.network_namespace)?,
    }
    match flags.command {
        Command::Counters => return show::counters(flags),
        Command::Trace => return show::trace(flags),
        _ => {}
    }
    let flags = &machine::look(flags)?;
    let intent = intent(flags)?;
    match flags.command {
        Command::Plan => plan(flags, &intent),
        Command::Verify => verify(flags, &intent),
        Command::Clean if flags.dry_run => show::leftovers(flags, &intent),
        Command::Clean if flags.skip_rule_apply => {
            println!("mesh-init: 0 changes; --skip-rule-apply leaves everything as it is");
            Ok(())
        }
        Command::Clean => clean(flags, &intent),
        _ => apply(flags, &intent),
    }
}

/// The backend that was asked for, or the one that fits this machine.
pub(crate) fn backend(flags: &Flags) -> Result<Box<dyn Backend>, Failure> {
    flags.backend.map_or_else(detect, open).map_err(Failure::rules)
}

/// The intent, warnings said; refused when it makes no sense.
pub(crate) fn intent(flags: &Flags) -> Result<Interception, Failure> {
    let intent = flags.strict_intent().map_err(Failure::rules)?;
    for warning in flags.contradictions(&intent) {
        eprintln!("mesh-init: warning: {warning}");
    }
    Ok(intent)
}

fn enter(path: &str) -> Result<(), Failure> {
    if path.is_empty() {
        return Ok(());
    }
    let fail = |error: &dyn Display| Failure::rules(format!("network namespace {path}: {error}"));
    let file = std::fs::File::open(path).map_err(|error| fail(&error))?;
    nix::sched::setns(file, nix::sched::CloneFlags::CLONE_NEWNET).map_err(|error| fail(&error))
}

fn apply(flags: &Flags, intent: &Interception) -> Result<(), Failure> {
    if !flags.skip_rule_apply {
        let desired = Ruleset::from(intent);
        let mut backend = backend(flags)?;
        let foreign = foreign(flags)?;
        let mut routing = Routing::open().map_err(Failure::rules)?;
        if routing.loopback_up().map_err(Failure::rules)? {
            eprintln!("mesh-init: warning: the loopback interface was down; it is up now");
        }
        let mut changes = routing.apply(&needs(intent)).map_err(Failure::rules)?;
        changes += if flags.force_apply && backend.kind() == Kind::Netlink {
            Netlink::open().and_then(|mut kernel| kernel.replace(&desired)).map_err(Failure::rules)?.changes
        } else {
            backend.apply(&desired).map_err(Failure::rules)?.changes
        };
        if foreign {
            // Ours come first and stand already: nothing passes between.
            let removed = Netlink::open().and_then(|mut kernel| kernel.remove_foreign_interception());
            changes += removed.map_err(Failure::rules)?.changes;
        }
        println!("mesh-init: {changes} changes; {} rules by {}", desired.len(), backend.kind());
    }
    if flags.run_validation {
        println!("mesh-init: {}", probe::run(intent, flags.probe_port, flags.probe_timeout)?);
    }
    Ok(())
}

/// What Istio's own rules here are called; empty where the kernel has no nf_tables to ask.
fn foreign_chains() -> Vec<String> {
    let mut found = Netlink::open().and_then(|mut kernel| kernel.foreign_interception()).unwrap_or_default();
    found.extend(legacy_foreign_chains());
    found
}

fn legacy_foreign_chains() -> Vec<String> {
    if legacy_tables_exist() { Iptables::new(Variant::Legacy).foreign_interception() } else { Vec::new() }
}

/// Whether Istio's own rules are here and are to be removed. Two interceptions would both take every connection.
fn foreign(flags: &Flags) -> Result<bool, Failure> {
    let foreign = foreign_chains();
    let legacy = legacy_foreign_chains();
    if foreign.is_empty() || flags.replace_istio && legacy.is_empty() {
        return Ok(!foreign.is_empty());
    }
    if flags.replace_istio && !legacy.is_empty() {
        let which = legacy.join(", ");
        return Err(Failure::rules(format!(
            "Istio's own rules are in legacy iptables ({which}); they have to be removed there"
        )));
    }
    let which = foreign.join(", ");
    Err(Failure::rules(format!("Istio's own rules are here ({which}); --replace-istio removes them")))
}

fn plan(flags: &Flags, intent: &Interception) -> Result<(), Failure> {
    let plan =
        Netlink::open().and_then(|mut kernel| kernel.plan(&Ruleset::from(intent))).map_err(Failure::rules)?;
    let mut changes: Vec<String> = plan.changes.iter().map(ToString::to_string).collect();
    let missing =
        Routing::open().and_then(|mut routing| routing.missing(&needs(intent))).map_err(Failure::rules)?;
    changes.extend(missing.iter().map(|need| format!("+ {need}")));
    show::say(flags, &changes);
    Ok(())
}

fn verify(flags: &Flags, intent: &Interception) -> Result<(), Failure> {
    let mut backend = backend(flags)?;
    let desired = Ruleset::from(intent);
    let mut wrong: Vec<String> = Vec::new();
    for change in backend.plan(&desired).map_err(Failure::rules)?.changes {
        wrong.push(change.finding());
    }
    for need in
        Routing::open().and_then(|mut routing| routing.missing(&needs(intent))).map_err(Failure::rules)?
    {
        wrong.push(format!("missing: {need}"));
    }
    for chain in foreign_chains() {
        wrong.push(format!("foreign: {chain}"));
    }
    for shadow in backend.shadows(&desired).map_err(Failure::rules)? {
        wrong.push(format!("shadowed by: {shadow}"));
    }
    let probed =
        if wrong.is_empty() { Some(probe::run(intent, flags.probe_port, flags.probe_timeout)) } else { None };
    let (probed, failure) = match probed {
        Some(Ok(said)) => (Some(said), None),
        Some(Err(failure)) => (Some(failure.message.clone()), Some(failure)),
        None => (None, Some(Failure::rules(format!("{} differences from what should be", wrong.len())))),
    };
    if flags.json {
        println!("{}", json!({ "wrong": wrong, "probe": probed, "ok": failure.is_none() }));
    } else {
        wrong.iter().for_each(|each| println!("{each}"));
        if let (Some(said), None) = (&probed, &failure) {
            println!("as it should be; {said}");
        }
    }
    failure.map_or(Ok(()), Err)
}

fn clean(flags: &Flags, intent: &Interception) -> Result<(), Failure> {
    let rules = backend(flags)?.clean().map_err(Failure::rules)?.changes;
    let routes =
        Routing::open().and_then(|mut routing| routing.clean(&needs(intent))).map_err(Failure::rules)?;
    println!("mesh-init: {} changes; nothing of ours is left", rules + routes);
    Ok(())
}
