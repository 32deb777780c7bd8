//! Commands that only show: rules as text, a packet's way, counters.

use std::fmt::Display;

use mesh_netfilter::net::Family;
use mesh_netfilter::routing::{Routing, needs};
use mesh_netfilter::text::Restore;
use mesh_netfilter::trace::{Direction, Packet};
use mesh_netfilter::{Interception, Netlink, Ruleset};
use serde_json::json;

use super::{backend, intent};
use crate::{Failure, Flags, USAGE};

fn usage(error: impl Display) -> Failure {
    Failure { status: USAGE, message: error.to_string() }
}

pub(super) fn render(flags: &Flags, intent: &Interception) -> Result<(), Failure> {
    let ruleset = Ruleset::from(intent);
    if flags.as_nft {
        print!("{}", ruleset.to_nft());
        return Ok(());
    }
    if flags.family == Family::V6 && !intent.ipv6 {
        eprintln!("mesh-init: warning: there are no IPv6 rules without --enable-ipv6");
    }
    print!("{}", ruleset.to_iptables(flags.family, Restore::NoFlush));
    Ok(())
}

/// What `clean` would remove.
pub(super) fn leftovers(flags: &Flags, intent: &Interception) -> Result<(), Failure> {
    let plan = backend(flags)?.plan(&Ruleset::default()).map_err(Failure::rules)?;
    let wanted = needs(intent);
    let missing = Routing::open().and_then(|mut routing| routing.missing(&wanted)).map_err(Failure::rules)?;
    let mut changes: Vec<String> = plan.changes.iter().map(ToString::to_string).collect();
    changes.extend(wanted.iter().filter(|need| !missing.contains(need)).map(|need| format!("- {need}")));
    say(flags, &changes);
    Ok(())
}

/// Changes that were not made.
pub(super) fn say(flags: &Flags, changes: &[String]) {
    if flags.json {
        println!("{}", json!({ "changes": changes }));
    } else {
        changes.iter().for_each(|change| println!("{change}"));
        println!("{} changes", changes.len());
    }
}

pub(super) fn trace(flags: &Flags) -> Result<(), Failure> {
    let packet = packet(&flags.packet)?;
    let ruleset = if flags.live {
        let live = backend(flags)?.live().map_err(Failure::rules)?;
        live.ok_or_else(|| Failure::rules("the kernel holds no rules of ours"))?
    } else if flags.ruleset.is_empty() {
        Ruleset::from(&intent(flags)?)
    } else {
        read(&flags.ruleset, packet.family())?
    };
    let trace = ruleset.trace(&packet);
    if flags.json {
        println!("{}", trace.to_json());
    } else {
        println!("{trace}");
    }
    Ok(())
}

/// A description, or `hex:` and the packet's bytes from the IP header on, as if it arrived.
fn packet(text: &str) -> Result<Packet, Failure> {
    if text.is_empty() {
        return Err(usage(
            "trace: --packet says which, such as \"tcp 10.0.0.5:40000 > 10.1.2.3:8080 out uid 1000\"",
        ));
    }
    let Some(digits) = text.strip_prefix("hex:") else { return text.parse().map_err(usage) };
    let digits: Option<Vec<u32>> =
        digits.chars().filter(|char| !char.is_whitespace()).map(|char| char.to_digit(16)).collect();
    let digits = digits
        .filter(|digits| digits.len().is_multiple_of(2))
        .ok_or_else(|| usage("hex: not whole bytes"))?;
    let bytes: Vec<u8> =
        digits.chunks_exact(2).filter_map(|pair| u8::try_from(pair[0] * 16 + pair[1]).ok()).collect();
    Packet::from_bytes(&bytes, Direction::In).map_err(usage)
}

/// Rules from a file: nft's language or iptables'.
fn read(path: &str, family: Family) -> Result<Ruleset, Failure> {
    let text = std::fs::read_to_string(path).map_err(|error| usage(format!("{path}: {error}")))?;
    let first = text
        .lines()
        .map(str::trim)
        .find(|line| !line.is_empty() && !line.starts_with('#'))
        .unwrap_or_default();
    let nft = ["add ", "insert ", "table ", "flush ", "delete "].iter().any(|word| first.starts_with(word));
    let read = if nft { Ruleset::from_nft(&text) } else { Ruleset::from_iptables(&text, family) };
    read.map_err(|error| usage(format!("{path}: {error}")))
}

pub(super) fn counters(flags: &Flags) -> Result<(), Failure> {
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
