//! What each command does.

use std::fmt::Display;

use mesh_netfilter::routing::{Routing, needs};
use mesh_netfilter::{Interception, Netlink, Ruleset};
use serde_json::json;

use crate::flags::{Command, Flags};
use crate::{Failure, machine, probe};

/// Does what was asked for.
pub(crate) fn run(flags: &Flags) -> Result<(), Failure> {
    enter(&flags.network_namespace)?;
    if flags.command == Command::Counters {
        return counters(flags);
    }
    let flags = &machine::look(flags)?;
    let intent = intent(flags)?;
    match flags.command {
        Command::Apply => apply(flags, &intent),
        Command::Plan => plan(flags, &intent),
        Command::Verify => verify(flags, &intent),
        Command::Clean => clean(&intent),
        Command::Counters => Ok(()),
    }
}

/// The intent, warnings said; refused when it makes no sense.
fn intent(flags: &Flags) -> Result<Interception, Failure> {
    let usage = |error: &dyn Display| Failure { status: crate::USAGE, message: error.to_string() };
    let mut intent = flags.config.parse().map_err(|error| usage(&error))?;
    if flags.strict {
        intent = intent.strict().map_err(|error| usage(&error))?;
    }
    for warning in intent.contradictions() {
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
        let mut kernel = Netlink::open().map_err(Failure::rules)?;
        let foreign = foreign(flags, &mut kernel)?;
        let mut routing = Routing::open().map_err(Failure::rules)?;
        if routing.loopback_up().map_err(Failure::rules)? {
            eprintln!("mesh-init: warning: the loopback interface was down; it is up now");
        }
        let routes = routing.apply(&needs(intent)).map_err(Failure::rules)?;
        let applied = if flags.force_apply { kernel.replace(&desired) } else { kernel.apply(&desired) };
        let mut rules = applied.map_err(Failure::rules)?.changes;
        if foreign {
            // Ours come first and stand already: nothing passes between.
            rules += kernel.remove_foreign_interception().map_err(Failure::rules)?.changes;
        }
        let total = rules + routes;
        println!("mesh-init: {total} changes; {} rules in table inet mesh", desired.len());
    }
    if flags.run_validation {
        println!("mesh-init: {}", probe::run(intent, flags.probe_port, flags.probe_timeout)?);
    }
    Ok(())
}

/// Whether Istio's own rules are here and are to be removed. Two interceptions would both take every connection.
fn foreign(flags: &Flags, kernel: &mut Netlink) -> Result<bool, Failure> {
    let foreign = kernel.foreign_interception().map_err(Failure::rules)?;
    if foreign.is_empty() || flags.replace_istio {
        return Ok(!foreign.is_empty());
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
    if flags.json {
        println!("{}", json!({ "changes": changes }));
    } else {
        changes.iter().for_each(|change| println!("{change}"));
        println!("{} changes", changes.len());
    }
    Ok(())
}

fn verify(flags: &Flags, intent: &Interception) -> Result<(), Failure> {
    let mut kernel = Netlink::open().map_err(Failure::rules)?;
    let mut wrong: Vec<String> = Vec::new();
    for change in kernel.plan(&Ruleset::from(intent)).map_err(Failure::rules)?.changes {
        wrong.push(change.finding());
    }
    for need in
        Routing::open().and_then(|mut routing| routing.missing(&needs(intent))).map_err(Failure::rules)?
    {
        wrong.push(format!("missing: {need}"));
    }
    for chain in kernel.foreign_interception().map_err(Failure::rules)? {
        wrong.push(format!("foreign: {chain}"));
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

fn clean(intent: &Interception) -> Result<(), Failure> {
    let rules = Netlink::open().and_then(|mut kernel| kernel.clean()).map_err(Failure::rules)?.changes;
    let routes =
        Routing::open().and_then(|mut routing| routing.clean(&needs(intent))).map_err(Failure::rules)?;
    println!("mesh-init: {} changes; nothing of ours is left", rules + routes);
    Ok(())
}

fn counters(flags: &Flags) -> Result<(), Failure> {
    let counters = Netlink::open().and_then(|mut kernel| kernel.counters()).map_err(Failure::rules)?;
    if flags.json {
        let rows: Vec<_> = counters
            .iter()
            .map(|row| {
                json!({ "chain": row.chain, "rule": row.rule, "note": row.note, "packets": row.packets, "bytes": row.bytes })
            })
            .collect();
        println!("{}", json!(rows));
        return Ok(());
    }
    println!("{:>10} {:>12}  {:<18} rule", "packets", "bytes", "chain");
    for row in counters {
        println!("{:>10} {:>12}  {:<18} {}", row.packets, row.bytes, row.chain, row.rule);
    }
    Ok(())
}
