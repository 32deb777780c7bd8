//! Rules of others that take packets from ours are noticed, and the kernel really gives them those packets.

use libtest_mimic::Trial;
use mesh_netfilter::backend::{Kind, Variant};
use mesh_netfilter::{Interception, Ruleset, Shadow};

use crate::backends::{check, is_here};
use crate::changes::open;
use crate::netns::Space;
use crate::pod::{Outcome, Pod, captured_connection, captured_neighbour};
use crate::{peers_required, trial};

pub(crate) fn trials() -> Vec<Trial> {
    let possible = Space::new().is_ok();
    let kinds = [Kind::Netlink, Kind::Nft, Kind::Iptables(Variant::Nft), Kind::Iptables(Variant::Legacy)];
    let others = [Kind::Nft, Kind::Iptables(Variant::Nft), Kind::Iptables(Variant::Legacy)];
    let all_here = others.into_iter().all(is_here);
    kinds
        .map(|kind| {
            trial(format!("shadow::{kind}"), move || noticed(kind))
                .with_ignored_flag(!(peers_required() || possible && all_here))
        })
        .into()
}

/// What somebody else does, and what is to be said of it.
struct Case {
    add: &'static str,
    remove: &'static str,
    /// The place that is named; `None` when nothing is taken.
    place: Option<&'static str>,
}

const fn case(add: &'static str, remove: &'static str, place: Option<&'static str>) -> Case {
    Case { add, remove, place }
}

const NO_TABLE: &str = "nft delete table inet early";

/// Whatever writes our rules.
const FOR_ALL: [Case; 12] = [
    case(
        "nft add table inet early; nft add chain inet early out '{ type nat hook output priority -150 ; }'; nft add rule inet early out tcp dport 80 redirect to :9",
        NO_TABLE,
        Some("inet early out#1"),
    ),
    case(
        "nft add table inet early; nft add chain inet early out '{ type filter hook output priority -200 ; }'; nft add rule inet early out ip daddr 1.0.0.0/8 tcp dport 80 drop",
        NO_TABLE,
        Some("inet early out#1"),
    ),
    case(
        "nft add table inet early; nft add chain inet early in '{ type filter hook prerouting priority -400 ; }'; nft add chain inet early deep; nft add rule inet early in counter jump deep; nft add rule inet early deep tcp dport 8080 drop",
        NO_TABLE,
        Some("inet early in deep#1"),
    ),
    case(
        "nft add table inet early; nft add chain inet early out '{ type filter hook output priority -310 ; }'; nft add rule inet early out tcp dport { 79, 80 } notrack",
        NO_TABLE,
        Some("inet early out#1"),
    ),
    case(
        "nft add table inet early; nft add chain inet early in '{ type filter hook input priority 0 ; policy drop ; }'",
        NO_TABLE,
        Some("inet early in"),
    ),
    // These let everything pass, or take what ours leave alone.
    case(
        "nft add table inet early; nft add chain inet early out '{ type filter hook output priority -310 ; }'; nft add rule inet early out tcp dport 80 accept; nft add rule inet early out ip daddr 127.0.0.1 drop",
        NO_TABLE,
        None,
    ),
    case(
        "nft add table inet early; nft add chain inet early late '{ type filter hook forward priority 0 ; policy drop ; }'; nft add chain inet early unused; nft add rule inet early unused drop",
        NO_TABLE,
        None,
    ),
    case(
        "iptables-legacy -t raw -I OUTPUT -p tcp --dport 80 -j DROP",
        "iptables-legacy -t raw -D OUTPUT -p tcp --dport 80 -j DROP",
        Some("iptables-legacy raw OUTPUT#1"),
    ),
    case(
        "iptables-legacy -t mangle -A PREROUTING -p tcp --dport 8080 -j DROP",
        "iptables-legacy -t mangle -D PREROUTING -p tcp --dport 8080 -j DROP",
        Some("iptables-legacy mangle PREROUTING#1"),
    ),
    case(
        "iptables-legacy -A INPUT -p tcp --dport 15006 -j DROP",
        "iptables-legacy -D INPUT -p tcp --dport 15006 -j DROP",
        Some("iptables-legacy filter INPUT#1"),
    ),
    case(
        "iptables-nft -t raw -I OUTPUT -p tcp --dport 80 -j DROP",
        "iptables-nft -t raw -D OUTPUT -p tcp --dport 80 -j DROP",
        Some("raw OUTPUT#1"),
    ),
    case(
        "iptables-legacy -t raw -I OUTPUT -p tcp -j ACCEPT; iptables-legacy -I INPUT -p udp -j DROP",
        "iptables-legacy -t raw -D OUTPUT -p tcp -j ACCEPT; iptables-legacy -D INPUT -p udp -j DROP",
        None,
    ),
];

/// In the chains on which ours hang, where iptables writes ours; `iptables` stands for its name.
const AROUND: [Case; 6] = [
    case(
        "iptables -t nat -I OUTPUT -p tcp --dport 80 -j ACCEPT",
        "iptables -t nat -D OUTPUT -p tcp --dport 80 -j ACCEPT",
        Some("iptables nat OUTPUT#1"),
    ),
    case(
        "iptables -t nat -I PREROUTING -p tcp -s 10.0.0.0/8 -j RETURN",
        "iptables -t nat -D PREROUTING -p tcp -s 10.0.0.0/8 -j RETURN",
        Some("iptables nat PREROUTING#1"),
    ),
    case(
        "iptables -t nat -I OUTPUT -p tcp -m owner --uid-owner 1000 -j REDIRECT --to-ports 9",
        "iptables -t nat -D OUTPUT -p tcp -m owner --uid-owner 1000 -j REDIRECT --to-ports 9",
        Some("iptables nat OUTPUT#1"),
    ),
    case(
        "iptables -t nat -N KUBE-SERVICES; iptables -t nat -A KUBE-SERVICES -d 1.1.1.1 -p tcp -j DNAT --to-destination 10.77.0.1:9; iptables -t nat -I OUTPUT -m comment --comment 'kube \"things\"' -j KUBE-SERVICES",
        "iptables -t nat -D OUTPUT 1; iptables -t nat -F KUBE-SERVICES; iptables -t nat -X KUBE-SERVICES",
        Some("iptables nat KUBE-SERVICES#1"),
    ),
    case(
        "iptables -t raw -A OUTPUT -p tcp --dport 80 -j CT --notrack",
        "iptables -t raw -D OUTPUT -p tcp --dport 80 -j CT --notrack",
        Some("iptables raw OUTPUT#1"),
    ),
    // Behind our jump.
    case("iptables -t nat -A OUTPUT -p tcp -j ACCEPT", "iptables -t nat -D OUTPUT -p tcp -j ACCEPT", None),
];

fn noticed(kind: Kind) -> Result<(), String> {
    let pod = Pod::new()?;
    pod.serve(&Interception::default())?;
    let lock = std::env::temp_dir().join(format!("mesh-netfilter-{}-{kind}-shadow.lock", std::process::id()));
    let lock = lock.to_string_lossy().into_owned();
    let path = lock.clone();
    pod.inside.run(move || {
        let mut backend = open(kind, &path)?;
        backend.apply(&Ruleset::from(&Interception::default())).map_err(|error| error.to_string())
    })?;
    look(&pod, kind, &lock, None, "at first")?;
    let (mut taken, mut harmless) = (0, 0);
    let own = match kind {
        Kind::Iptables(_) => &AROUND[..],
        _ => &[],
    };
    // Its own name stands for both: the program is called as the backend is.
    let named = |text: &str, is_own: bool| {
        if is_own { text.replace("iptables ", &format!("{kind} ")) } else { text.to_owned() }
    };
    let cases = FOR_ALL.iter().map(|case| (case, false)).chain(own.iter().map(|case| (case, true)));
    for (case, is_own) in cases {
        let shell = |script: &str| pod.inside.shell(&format!("export XTABLES_LOCKFILE={lock}\n{script}"));
        shell(&named(case.add, is_own))?;
        let place = case.place.map(|place| named(place, is_own));
        look(&pod, kind, &lock, place.as_deref(), case.add)?;
        shell(&named(case.remove, is_own))?;
        look(&pod, kind, &lock, None, &format!("after {}", case.remove))?;
        taken += u32::from(case.place.is_some());
        harmless += u32::from(case.place.is_none());
    }
    let _ = std::fs::remove_file(&lock);
    println!(
        "{kind}: {taken} rules of others that take packets were named, {harmless} harmless ones were not"
    );
    Ok(())
}

/// Whether what is found, and what the kernel does, are as expected.
fn look(pod: &Pod, kind: Kind, lock: &str, place: Option<&str>, when: &str) -> Result<(), String> {
    let path = lock.to_owned();
    let found: Vec<Shadow> = pod.inside.run(move || {
        let mut backend = open(kind, &path)?;
        backend.shadows(&Ruleset::from(&Interception::default())).map_err(|error| error.to_string())
    })?;
    let named = match place {
        None => found.is_empty(),
        Some(place) => found.iter().any(|shadow| shadow.place.ends_with(place)),
    };
    check(named, (when, place, found.iter().map(ToString::to_string).collect::<Vec<_>>()))?;
    // A busy machine may lose one connection, but not all.
    let captured = (0..5).any(|_| {
        let out = pod.inside.run(captured_connection);
        (out, pod.outside.run(captured_neighbour)) == (Outcome::Port(15001), Outcome::Port(15006))
    });
    check(captured == place.is_none(), (when, place, captured))
}
