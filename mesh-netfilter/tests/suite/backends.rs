//! Every way of writing rules: what is written once is found again, becomes something else, and goes away.

use std::path::PathBuf;

use libtest_mimic::Trial;
use mesh_netfilter::backend::{Backend, Iptables, Kind, Nft, Variant, detect};
use mesh_netfilter::{Interception, Netlink, Ruleset};

use crate::netns::Space;
use crate::strategies::{draw, intents, runner};
use crate::{peers_required, trial};

const INTENTS: u64 = 6;

pub(crate) fn trials() -> Vec<Trial> {
    let possible = Space::new().is_ok();
    let mut trials = Vec::new();
    type Run = fn(Kind) -> Result<(), String>;
    let each: [(&str, Run); 2] = [("any_intent_becomes_any_other", becomes), ("others_stay", others_stay)];
    for (name, run) in each {
        for kind in [Kind::Netlink, Kind::Nft, Kind::Iptables(Variant::Nft), Kind::Iptables(Variant::Legacy)]
        {
            let ignored = !(peers_required() || possible && is_here(kind));
            trials.push(
                trial(format!("backend::{kind}::{name}"), move || run(kind)).with_ignored_flag(ignored),
            );
        }
    }
    type Once = fn() -> Result<(), String>;
    let legacy: [(&str, Once); 3] = [
        ("guardrail_left_behind_goes", guardrail),
        ("lock_that_cannot_be_made_is_named", lock_impossible),
        ("live_rules_decide", live_rules_decide),
    ];
    let ignored = !(peers_required() || possible && is_here(Kind::Iptables(Variant::Legacy)));
    trials
        .extend(legacy.map(|(name, run)| trial(format!("backend::{name}"), run).with_ignored_flag(ignored)));
    trials
}

pub(crate) fn is_here(kind: Kind) -> bool {
    let program = match kind {
        Kind::Netlink => return true,
        Kind::Nft => "nft",
        Kind::Iptables(Variant::Legacy) => "iptables-legacy-restore",
        Kind::Iptables(_) => "iptables-nft-restore",
    };
    std::process::Command::new(program).arg("--version").output().is_ok()
}

/// A namespace with its lock file.
pub(crate) struct Place {
    pub(crate) space: Space,
    pub(crate) lock: PathBuf,
}

impl Place {
    pub(crate) fn new(name: &str) -> Result<Self, String> {
        let lock = std::env::temp_dir().join(format!("mesh-netfilter-{}-{name}.lock", std::process::id()));
        Ok(Self { space: Space::new()?, lock })
    }

    pub(crate) fn run<T: Send + 'static>(
        &self,
        kind: Kind,
        run: impl FnOnce(&mut dyn Backend) -> Result<T, mesh_netfilter::backend::BackendError> + Send + 'static,
    ) -> Result<T, String> {
        let lock = self.lock.clone();
        self.space.run(move || {
            let mut backend: Box<dyn Backend> = match kind {
                Kind::Netlink => Box::new(Netlink::open().map_err(|error| error.to_string())?),
                Kind::Nft => Box::new(Nft),
                Kind::Iptables(variant) => Box::new(Iptables::new(variant).lock_file(lock)),
            };
            run(backend.as_mut()).map_err(|error| error.to_string())
        })
    }

    pub(crate) fn shell(&self, script: &str) -> Result<String, String> {
        self.space.shell(&format!("export XTABLES_LOCKFILE={}\n{script}", self.lock.display()))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.lock);
    }
}

pub(crate) fn check(holds: bool, what: impl std::fmt::Debug) -> Result<(), String> {
    if holds { Ok(()) } else { Err(format!("{what:#?}")) }
}

fn becomes(kind: Kind) -> Result<(), String> {
    let place = Place::new(&format!("becomes-{kind}"))?;
    for seed in 0..INTENTS {
        let ruleset = Ruleset::from(&draw(&intents(), &mut runner(seed)));
        let (first, second, plan) = place.run(kind, move |backend| {
            Ok((backend.apply(&ruleset)?.changes, backend.apply(&ruleset)?.changes, backend.plan(&ruleset)?))
        })?;
        check(first > 0 && second == 0 && plan.is_empty(), (seed, first, second, plan))?;
    }
    let (cleaned, again, live) = place.run(kind, |backend| {
        Ok((backend.clean()?.changes, backend.clean()?.changes, backend.live()?.is_some()))
    })?;
    check(cleaned > 0 && again == 0 && !live, (cleaned, again, live))
}

/// What other people's rules look like, for the programs that see them.
fn listing(kind: Kind) -> &'static str {
    match kind {
        Kind::Iptables(Variant::Legacy) => "iptables-legacy-save; ip6tables-legacy-save",
        Kind::Iptables(_) => "iptables-nft-save; ip6tables-nft-save",
        _ => "nft list ruleset",
    }
}

/// Comments with the time, and counters, are no rules.
fn without_noise(listing: &str) -> String {
    let kept =
        listing.lines().filter(|line| !line.starts_with('#')).map(|line| match line.split_once(" [") {
            Some((chain, _)) if line.starts_with(':') => chain,
            _ => line,
        });
    kept.collect::<Vec<_>>().join("\n")
}

fn others_stay(kind: Kind) -> Result<(), String> {
    let place = Place::new(&format!("others-{kind}"))?;
    let others = match kind {
        Kind::Iptables(variant) => {
            let variant = if variant == Variant::Legacy { "legacy" } else { "nft" };
            format!(
                "for t in iptables ip6tables; do
                 for table in raw mangle nat filter; do $t-{variant} -t $table -A OUTPUT -p tcp --dport 9 -j ACCEPT; done
                 $t-{variant} -t nat -N KUBE-SERVICES
                 $t-{variant} -t nat -A OUTPUT -m comment --comment 'kube \"things\"' -j KUBE-SERVICES
                 $t-{variant} -t nat -A PREROUTING -i cni0 -j KUBE-SERVICES
                 done"
            )
        }
        _ => "nft add table inet others; nft add chain inet others c; nft add rule inet others c tcp dport 9 accept".to_owned(),
    };
    place.shell(&others)?;
    let before = without_noise(&place.shell(listing(kind))?);
    let intent = Interception { ipv6: true, drop_invalid: true, ..Interception::default() };
    let ruleset = Ruleset::from(&intent);
    place.run(kind, move |backend| backend.apply(&ruleset))?;
    let with_ours = without_noise(&place.shell(listing(kind))?);
    check(
        with_ours.contains("MESH_OUTPUT") && before.lines().all(|line| with_ours.contains(line)),
        &with_ours,
    )?;
    place.run(kind, |backend| backend.clean())?;
    let after = without_noise(&place.shell(listing(kind))?);
    check(after == before, (&before, &after))
}

/// Somebody removed a rule, added one, and left an old chain behind: the next apply makes it right.
pub(crate) fn repaired(kind: Kind) -> Result<(), String> {
    let place = Place::new(&format!("repaired-{kind}"))?;
    let ruleset = Ruleset::from(&Interception { drop_invalid: true, ..Interception::default() });
    let apply = ruleset.clone();
    place.run(kind, move |backend| backend.apply(&apply))?;
    let whole = without_noise(&place.shell(listing(kind))?);
    place.shell(&match kind {
        Kind::Iptables(variant) => {
            let variant = if variant == Variant::Legacy { "legacy" } else { "nft" };
            format!(
                "iptables-{variant} -t nat -D MESH_OUTPUT 1
                 iptables-{variant} -t nat -A MESH_INBOUND -p tcp --dport 1 -j RETURN
                 iptables-{variant} -t nat -N MESH_OLD
                 iptables-{variant} -t nat -A OUTPUT -j MESH_OLD
                 iptables-{variant} -t mangle -D PREROUTING -j MESH_MANGLE_IN"
            )
        }
        _ => "nft add rule inet mesh MESH_INBOUND tcp dport 1 return
              nft add chain inet mesh MESH_OLD
              nft add rule inet mesh nat-output jump MESH_OLD
              nft flush chain inet mesh MESH_OUTPUT"
            .to_owned(),
    })?;
    let found = place.run(kind, move |backend| {
        let found = backend.plan(&ruleset)?;
        backend.apply(&ruleset)?;
        Ok((found, backend.plan(&ruleset)?))
    })?;
    check(!found.0.is_empty() && found.1.is_empty(), &found)?;
    let repaired = without_noise(&place.shell(listing(kind))?);
    let sorted = |text: &str| {
        // Empty built-in chains of a table that only the guardrail used are nothing.
        let built_in = |line: &&str| !(line.starts_with('*') || line.starts_with(':') || *line == "COMMIT");
        let mut lines: Vec<String> = text.lines().filter(built_in).map(str::to_owned).collect();
        lines.sort();
        lines
    };
    check(sorted(&repaired) == sorted(&whole), (&whole, &repaired))
}

fn legacy(place: &Place, seconds: u32, lock: PathBuf) -> Result<usize, String> {
    place.space.run(move || {
        let mut backend = Iptables::new(Variant::Legacy).lock_file(lock).lock_seconds(seconds);
        let applied = backend.apply(&Ruleset::from(&Interception::default()));
        applied.map(|applied| applied.changes).map_err(|error| error.to_string())
    })
}

/// An apply that was killed between two tables leaves its guardrail; the next one ends what it began.
fn guardrail() -> Result<(), String> {
    let place = Place::new("guardrail")?;
    place.shell(
        "iptables-legacy -N MESH_GUARD
         iptables-legacy -A MESH_GUARD -p tcp -j DROP
         iptables-legacy -I OUTPUT 1 -j MESH_GUARD
         iptables-legacy -I INPUT 1 -j MESH_GUARD",
    )?;
    legacy(&place, 5, place.lock.clone())?;
    let saved = place.shell("iptables-legacy-save")?;
    check(!saved.contains("MESH_GUARD") && saved.contains("MESH_OUTPUT"), &saved)?;
    check(legacy(&place, 5, place.lock.clone())? == 0, "a second apply")
}

pub(crate) fn lock_held() -> Result<(), String> {
    let place = Place::new("held")?;
    std::fs::write(&place.lock, "").map_err(|error| error.to_string())?;
    let held = std::fs::File::open(&place.lock).map_err(|error| error.to_string())?;
    held.lock().map_err(|error| error.to_string())?;
    match legacy(&place, 1, place.lock.clone()) {
        Err(error) if error.contains("holds the lock") => {}
        other => return Err(format!("{other:?}")),
    }
    drop(held);
    check(legacy(&place, 5, place.lock.clone())? > 0, "with the lock free")
}

fn lock_impossible() -> Result<(), String> {
    let place = Place::new("impossible")?;
    match legacy(&place, 1, "/proc/no-such-place/lock".into()) {
        Err(error) if error.contains("lock file cannot be made") => Ok(()),
        other => Err(format!("{other:?}")),
    }
}

/// Where rules of ours stand already, there they stay, whatever else the kernel could do.
fn live_rules_decide() -> Result<(), String> {
    let place = Place::new("decide")?;
    let found =
        || place.space.run(|| detect().map(|backend| backend.kind()).map_err(|error| error.to_string()));
    check(found()? == Kind::Netlink, found())?;
    place.run(Kind::Iptables(Variant::Legacy), |backend| {
        backend.apply(&Ruleset::from(&Interception::default()))
    })?;
    check(found()? == Kind::Iptables(Variant::Legacy), found())
}
