//! What the kernel's own rules are after applying, again and again, and after cleaning.

use libtest_mimic::Trial;
use mesh_netfilter::trace::Packet;
use mesh_netfilter::{Interception, Netlink, NetlinkError, Ruleset};

use crate::agreement::{Writer, feed};
use crate::netns::Space;
use crate::pod::{Outcome, Pod, apart};
use crate::strategies::{POD_V4, draw, intents, runner};
use crate::{peers_required, trial};

/// Intents per property.
const INTENTS: u64 = 25;

pub(crate) fn trials() -> Vec<Trial> {
    let possible = Space::new();
    let ignored = possible.is_err() && !peers_required();
    let mut trials = Vec::new();
    type Run = fn() -> Result<(), String>;
    let others: [(&str, Run); 5] = [
        ("second_apply_changes_nothing", idempotent),
        ("any_intent_becomes_any_other", becomes),
        ("clean_leaves_others_alone", clean),
        ("counters_count", counters),
        ("a_missing_capability_is_named", no_permission),
    ];
    trials.extend(others.map(|(name, run)| trial(format!("kernel::{name}"), run).with_ignored_flag(ignored)));
    trials
}

fn inside<T: Send + 'static>(
    run: impl FnOnce(&mut Netlink) -> Result<T, NetlinkError> + Send + 'static,
) -> Result<T, String> {
    let space = Space::new()?;
    space.run(move || {
        Netlink::open().and_then(|mut kernel| run(&mut kernel)).map_err(|error| error.to_string())
    })
}

fn check(holds: bool, what: impl std::fmt::Debug) -> Result<(), String> {
    if holds { Ok(()) } else { Err(format!("{what:?}")) }
}

fn idempotent() -> Result<(), String> {
    for seed in 0..INTENTS {
        let ruleset = Ruleset::from(&draw(&intents(), &mut runner(seed)));
        let (first, second, plan) = inside(move |kernel| {
            Ok((kernel.apply(&ruleset)?.changes, kernel.apply(&ruleset)?.changes, kernel.plan(&ruleset)?))
        })?;
        check(first > 0 && second == 0 && plan.is_empty(), (seed, first, second, plan))?;
    }
    Ok(())
}

fn becomes() -> Result<(), String> {
    for seed in 0..INTENTS {
        let mut runner = runner(seed);
        let rulesets: Vec<Ruleset> = (0..4).map(|_| Ruleset::from(&draw(&intents(), &mut runner))).collect();
        let same = inside(move |kernel| {
            for ruleset in &rulesets {
                kernel.apply(ruleset)?;
                let live = kernel.live()?;
                kernel.clean()?;
                kernel.apply(ruleset)?;
                let fresh = kernel.live()?;
                let sorted = |live: Option<Ruleset>| {
                    let mut chains = live.map(|live| live.chains).unwrap_or_default();
                    // What a rule says about itself is no part of it.
                    chains
                        .iter_mut()
                        .flat_map(|chain| &mut chain.rules)
                        .for_each(|rule| rule.note = "".into());
                    chains.sort_by(|a, b| (a.table, &a.name).cmp(&(b.table, &b.name)));
                    chains
                };
                let (live, fresh) = (sorted(live), sorted(fresh));
                let differs = live.iter().zip(&fresh).find(|(live, fresh)| live != fresh);
                if live.len() != fresh.len() || differs.is_some() {
                    return Ok(Err(format!("seed {seed}: {differs:#?}")));
                }
            }
            Ok(Ok(()))
        })?;
        same?;
    }
    Ok(())
}

const OTHERS: &str = "add table inet others
add chain inet others c { type filter hook input priority 0 ; policy accept ; }
add rule inet others c tcp dport 1 counter drop
add table ip nat
add chain ip nat OUTPUT { type nat hook output priority -100 ; }
add chain ip nat ISTIO_OUTPUT
add rule ip nat OUTPUT tcp dport 2 counter accept
add rule ip nat OUTPUT counter jump ISTIO_OUTPUT
add rule ip nat ISTIO_OUTPUT counter return
add table inet istio-proxy-nat
add chain inet istio-proxy-nat output { type nat hook output priority -100 ; }
";

fn clean() -> Result<(), String> {
    if !Writer::Nft.is_here() && !peers_required() {
        return Ok(());
    }
    let space = Space::new()?;
    let list = || space.shell("nft list ruleset");
    space.run(|| feed("nft", &["-f", "-"], OTHERS))?;
    let before = list()?;
    let foreign = space.run(|| -> Result<_, NetlinkError> {
        let mut kernel = Netlink::open()?;
        kernel.apply(&Ruleset::from(&Interception::default()))?;
        kernel.foreign_interception()
    });
    let foreign = foreign.map_err(|error| error.to_string())?;
    check(foreign == ["ip nat ISTIO_OUTPUT", "inet istio-proxy-nat output"], &foreign)?;
    let with_ours = list()?;
    check(with_ours.contains("table inet mesh") && with_ours != before, &with_ours)?;
    let cleaned = space.run(|| Netlink::open().and_then(|mut kernel| kernel.clean()));
    check(cleaned == Ok(mesh_netfilter::Applied { changes: 1 }), &cleaned)?;
    check(list()? == before, list())?;
    let removed = space.run(|| Netlink::open().and_then(|mut kernel| kernel.remove_foreign_interception()));
    check(removed.is_ok_and(|removed| removed.changes > 0), "removed")?;
    let after = list()?;
    check(
        !after.to_lowercase().contains("istio")
            && after.contains("tcp dport 2")
            && after.contains("table inet others"),
        &after,
    )
}

fn counters() -> Result<(), String> {
    let pod = Pod::new()?;
    let intent = Interception::default();
    pod.serve(&intent)?;
    let ruleset = Ruleset::from(&intent);
    let packet: Packet = format!("tcp {POD_V4}:1 > 1.1.1.1:80 out uid 1000 gid 1000")
        .parse()
        .map_err(|error| format!("{error}"))?;
    let apply = ruleset.clone();
    pod.inside
        .run(move || Netlink::open().and_then(|mut kernel| kernel.apply(&apply)))
        .map_err(|error| error.to_string())?;
    for _ in 0..3 {
        check(pod.send(&packet, Outcome::Port(15001)) == Outcome::Port(15001), &packet)?;
    }
    let counted = pod.inside.run(move || -> Result<_, NetlinkError> {
        let mut kernel = Netlink::open()?;
        // A second apply must not reset what was counted.
        kernel.apply(&ruleset)?;
        kernel.counters()
    });
    let counted = counted.map_err(|error| error.to_string())?;
    let captured = counted.iter().find(|row| row.rule == "-p tcp -j REDIRECT --to-ports 15001");
    check(captured.is_some_and(|row| row.packets == 3 && row.bytes > 0), &counted)
}

fn no_permission() -> Result<(), String> {
    let space = Space::new()?;
    let refused = space.run(|| {
        // The thread of a namespace passes its own rights on to threads it starts.
        apart(|| {
            caps::drop(None, caps::CapSet::Effective, caps::Capability::CAP_NET_ADMIN)
                .expect("rights can be dropped");
            Netlink::open().and_then(|mut kernel| kernel.apply(&Ruleset::from(&Interception::default())))
        })
    });
    match refused {
        Err(error) if error.to_string().contains("CAP_NET_ADMIN") => Ok(()),
        other => Err(format!("{other:?}")),
    }
}
