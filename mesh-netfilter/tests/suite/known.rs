//! What breaks Istio's init container, each by its name and for every way of writing rules: a second run, half-written
//! tables, legacy and nft both present, missing IPv6, a lock that another process holds, a read-only root, no NET_RAW.

use libtest_mimic::Trial;
use mesh_netfilter::backend::{Kind, Variant};
use mesh_netfilter::routing::{Routing, needs};
use mesh_netfilter::{Interception, Mode, Ruleset};

use crate::backends::{Place, check, is_here, lock_held, repaired};
use crate::changes::{DUAL, JOB};
use crate::netns::Space;
use crate::{peers_required, trial};

const LEGACY: Kind = Kind::Iptables(Variant::Legacy);

pub(crate) fn trials() -> Vec<Trial> {
    let possible = Space::new().is_ok();
    let kinds = [Kind::Netlink, Kind::Nft, Kind::Iptables(Variant::Nft), LEGACY];
    type Run = fn(Kind) -> Result<(), String>;
    let each: [(&str, Run); 6] = [
        ("second_run", second_run),
        ("half_written_tables", repaired),
        ("legacy_and_nft_both_present", both_present),
        ("missing_ipv6", missing_ipv6),
        ("read_only_root", read_only_root),
        ("no_net_raw", no_net_raw),
    ];
    let mut trials = Vec::new();
    for (name, run) in each {
        for kind in kinds {
            let ignored = !(peers_required() || possible && kinds.into_iter().all(is_here));
            let name = format!("known_failure::{name}::{kind}");
            trials.push(trial(name, move || run(kind)).with_ignored_flag(ignored));
        }
    }
    let ignored = !(peers_required() || possible && is_here(LEGACY));
    trials.push(
        trial(format!("known_failure::xtables_lock_held::{LEGACY}"), lock_held).with_ignored_flag(ignored),
    );
    trials
}

/// The init container runs again, in another process, as a kubelet does after a restart of the node.
fn second_run(kind: Kind) -> Result<(), String> {
    let place = Place::new(&format!("second-{kind}"))?;
    for changes in ["first", "second"] {
        let said = child(&place, kind, "", "")?;
        check(
            said.ends_with(" changes") && said.starts_with("0 ") == (changes == "second"),
            (changes, said),
        )?;
    }
    Ok(())
}

/// Somebody uses both kinds of iptables; ours go where they are told, once, and others' stay where they are.
fn both_present(kind: Kind) -> Result<(), String> {
    let place = Place::new(&format!("both-{kind}"))?;
    for variant in ["legacy", "nft"] {
        place.shell(&format!(
            "iptables-{variant} -t nat -N KUBE-SERVICES; iptables-{variant} -t nat -A OUTPUT -p tcp --dport 1 -j KUBE-SERVICES"
        ))?;
    }
    let ruleset = Ruleset::from(&Interception::default());
    let (first, second) = place
        .run(kind, move |backend| Ok((backend.apply(&ruleset)?.changes, backend.apply(&ruleset)?.changes)))?;
    check(first > 0 && second == 0, (first, second))?;
    let holds = |listing: &str| place.shell(listing).map(|text| text.contains("MESH_OUTPUT"));
    let found = (
        holds("nft list table inet mesh 2>/dev/null || true")?,
        holds("iptables-nft-save")?,
        holds("iptables-legacy-save")?,
    );
    let want = match kind {
        Kind::Netlink | Kind::Nft => (true, false, false),
        Kind::Iptables(Variant::Nft) => (false, true, false),
        Kind::Iptables(_) => (false, false, true),
    };
    check(found == want, (found, want))?;
    for variant in ["legacy", "nft"] {
        let others = place.shell(&format!("iptables-{variant}-save -t nat"))?;
        check(others.contains("-A OUTPUT -p tcp -m tcp --dport 1 -j KUBE-SERVICES"), others)?;
    }
    Ok(())
}

/// A machine without IPv6 takes rules for IPv4; rules for IPv6 are refused with what is missing, and nothing is applied.
fn missing_ipv6(kind: Kind) -> Result<(), String> {
    let place = Place::new(&format!("ipv6-{kind}"))?;
    place
        .shell("for each in all default lo; do echo 1 > /proc/sys/net/ipv6/conf/$each/disable_ipv6; done")?;
    // No program of the other family.
    let programs = format!("{}.bin", place.lock.display());
    place.shell(&format!(
        "mkdir -p {programs}; for each in nft iptables-nft iptables-nft-save iptables-nft-restore iptables-legacy iptables-legacy-save iptables-legacy-restore; do ln -sf $(command -v $each) {programs}/$each; done"
    ))?;
    let only = format!("env PATH={programs}");
    let dual = child(&place, kind, &only, "dual");
    let single = child(&place, kind, &only, "");
    let _ = std::fs::remove_dir_all(&programs);
    match kind {
        // Tables of both families are one there.
        Kind::Netlink | Kind::Nft => check(dual.is_ok(), &dual)?,
        Kind::Iptables(_) => {
            let named = dual.as_ref().is_err_and(|said| {
                said.contains(&format!(
                    "{} cannot be started",
                    kind.as_str().replace("iptables", "ip6tables") + "-save"
                ))
            });
            check(named, &dual)?;
            let first = single.as_ref().is_ok_and(|said| !said.starts_with("0 "));
            check(first, ("nothing had been applied", &single))?;
        }
    }
    check(single.is_ok(), &single)?;
    let intent = Interception { ipv6: true, mode: Mode::TPROXY, ..Interception::default() };
    let routes =
        place.space.run(move || Routing::open().and_then(|mut routing| routing.apply(&needs(&intent))));
    let said = routes.map_err(|error| error.to_string());
    check(said.as_ref().is_err_and(|said| said.contains("IPv6 is switched off")), said)
}

/// Nothing can be written anywhere: only legacy iptables needs a file, and says so.
fn read_only_root(kind: Kind) -> Result<(), String> {
    let place = Place::new(&format!("root-{kind}"))?;
    let read_only = "unshare -m sh -ec 'mount -o remount,bind,ro /; mount -t tmpfs -o ro none /run; if touch /x 2>/dev/null; then exit 9; fi; exec \"$@\"' -";
    let said = child_with_lock(&place, kind, read_only, "", "-");
    if kind != LEGACY {
        return check(said.is_ok(), said);
    }
    check(said.as_ref().is_err_and(|said| said.contains("lock file cannot be made")), &said)?;
    let saved = place.shell("iptables-legacy-save")?;
    check(!saved.contains("MESH_"), saved)?;
    // With a writable place for the lock, it works.
    let said = child(&place, kind, "", "");
    check(said.is_ok(), said)
}

/// nf_tables is changed with NET_ADMIN alone; legacy iptables opens a raw socket, and says what it lacks.
fn no_net_raw(kind: Kind) -> Result<(), String> {
    let place = Place::new(&format!("raw-{kind}"))?;
    let without = "setpriv --bounding-set=-all,+net_admin,+dac_override --inh-caps=-all";
    let said = child(&place, kind, without, "");
    if kind != LEGACY {
        return check(said.is_ok(), said);
    }
    check(said.as_ref().is_err_and(|said| said.contains("NET_RAW")), &said)?;
    let saved = place.shell("iptables-legacy-save")?;
    check(!saved.contains("MESH_"), saved)
}

/// Runs this program as a child that applies rules, `around` being what starts it; says how many changes it made.
fn child(place: &Place, kind: Kind, around: &str, intent: &str) -> Result<String, String> {
    child_with_lock(place, kind, around, intent, &place.lock.to_string_lossy())
}

fn child_with_lock(
    place: &Place,
    kind: Kind,
    around: &str,
    intent: &str,
    lock: &str,
) -> Result<String, String> {
    let program = std::env::current_exe().map_err(|error| error.to_string())?;
    let number = if intent == "dual" { DUAL } else { 0 };
    let script = format!("export {JOB}='{kind} {number} {lock}'\n{around} {}", program.display());
    place.shell(&script).map(|said| said.trim().to_owned())
}
