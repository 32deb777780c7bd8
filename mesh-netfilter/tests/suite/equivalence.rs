//! Ours and Istio's rules for any options: every packet has the same fate.
//!
//! Istio's two backends do not mean the same everywhere. Where they differ is declared here, shown in the README, and
//! nowhere else may they differ.

use libtest_mimic::Trial;
use mesh_netfilter::net::{Family, Protocol};
use mesh_netfilter::ruleset::CtState;
use mesh_netfilter::trace::{Direction, Packet, Verdict};
use mesh_netfilter::{InterceptionConfig, Ruleset};

use crate::boundaries::{packets_at, resolved};
use crate::strategies::{draw, runner};
use crate::words::words;
use crate::{istio, istio_nft, trial};

const OPTIONS: u64 = 1_000;
const PACKETS: u64 = 100;

pub(crate) fn trials() -> Vec<Trial> {
    let count = format!("{OPTIONS}x{PACKETS}");
    vec![
        trial(format!("equivalence::any_options::{count}"), || any_options(|_| {})),
        trial("equivalence::wrong_rules_are_noticed", || {
            let wrong = any_options(|ours| {
                for chain in &mut ours.chains {
                    chain.rules.retain(|rule| rule.note != "excluded destination");
                }
            });
            wrong.err().map(drop).ok_or_else(|| "without a rule nothing was noticed".to_owned())
        }),
        trial(format!("equivalence::istio_differs_only_as_declared::{count}"), declared_only),
        trial("equivalence::the_readme_s_differences", readme),
    ]
}

/// Ours, Istio's iptables rules and Istio's nft rules.
fn rulesets(words: &InterceptionConfig) -> Result<[Ruleset; 3], String> {
    let intent = words.parse().map_err(|error| format!("{error}: {words:?}"))?;
    let iptables = |family| {
        let text = istio::restore(words, family);
        Ruleset::from_iptables(&text, family).map_err(|error| format!("{error}:\n{text}"))
    };
    let script = istio_nft::script(words);
    let nft = Ruleset::from_nft(&script).map_err(|error| format!("{error}:\n{script}"))?;
    let iptables = iptables(Family::V4)?.merge(iptables(Family::V6)?);
    Ok([&Ruleset::from(&intent), &iptables, &nft].map(resolved))
}

fn any_options(change: impl Fn(&mut Ruleset)) -> Result<(), String> {
    let mut runner = runner(3);
    let options = words();
    for _ in 0..OPTIONS {
        let words = draw(&options, &mut runner);
        let [mut ours, iptables, nft] = rulesets(&words)?;
        change(&mut ours);
        if ours.len() > iptables.len().min(nft.len()) {
            let (iptables, nft) = (iptables.len(), nft.len());
            return Err(format!("{} rules where Istio has {iptables} and {nft}: {words:?}", ours.len()));
        }
        let packets = packets_at(&[&ours, &iptables, &nft]);
        for _ in 0..PACKETS {
            let packet = draw(&packets, &mut runner);
            same(&words, &packet, &ours, &iptables)?;
            if difference(&words, &packet).is_none() {
                same(&words, &packet, &ours, &nft)?;
            }
        }
    }
    Ok(())
}

fn same(words: &InterceptionConfig, packet: &Packet, ours: &Ruleset, istio: &Ruleset) -> Result<(), String> {
    let (one, other) = (ours.fate(packet), istio.fate(packet));
    if one == other && one.certain {
        Ok(())
    } else {
        Err(format!("{words:?}\nours:\n{}\n\nIstio's:\n{}", ours.trace(packet), istio.trace(packet)))
    }
}

/// Where Istio's backends may differ, in the order of the README's table.
const DIFFERENCES: [fn(&InterceptionConfig, &Packet) -> bool; 3] = [
    |words, packet| !words.enable_ipv6 && packet.family() == Family::V6,
    |words, packet| {
        words.drop_invalid && packet.state == CtState::Invalid && packet.protocol != Protocol::Tcp
    },
    |_, packet| packet.direction == Direction::Out && packet.uid.is_none(),
];

/// Which declared difference a packet falls under.
pub(crate) fn difference(words: &InterceptionConfig, packet: &Packet) -> Option<usize> {
    DIFFERENCES.iter().position(|applies| applies(words, packet))
}

/// Istio's backends agree wherever no difference is declared, and each declared difference is one.
fn declared_only() -> Result<(), String> {
    let mut runner = runner(4);
    let options = words();
    let mut seen = [0_u64; DIFFERENCES.len()];
    for _ in 0..OPTIONS {
        let words = draw(&options, &mut runner);
        let [_, iptables, nft] = rulesets(&words)?;
        let packets = packets_at(&[&iptables, &nft]);
        for _ in 0..PACKETS {
            let packet = draw(&packets, &mut runner);
            match difference(&words, &packet) {
                Some(which) => seen[which] += u64::from(iptables.fate(&packet) != nft.fate(&packet)),
                None => same(&words, &packet, &iptables, &nft)?,
            }
        }
    }
    if seen.contains(&0) { Err(format!("a declared difference is none: {seen:?}")) } else { Ok(()) }
}

/// Every row of the README's table about packets holds for a packet, and there are no further rows but that about dry runs.
fn readme() -> Result<(), String> {
    let everything = InterceptionConfig {
        inbound_ports_include: "*".into(),
        outbound_ip_ranges_include: "*".into(),
        drop_invalid: true,
        ..InterceptionConfig::default()
    };
    let (redirected, accepted) = (Verdict::Redirected { port: 15001 }, Verdict::Accepted);
    let examples = [
        ("tcp [fd00::5]:4000 > [fd00::6]:80 out uid 1000", [accepted, accepted, redirected]),
        ("udp 10.0.0.9:4000 > 10.0.0.5:80 in state INVALID", [Verdict::Dropped, Verdict::Dropped, accepted]),
        ("tcp 10.0.0.5:4000 > 10.0.0.5:80 out via lo", [accepted, accepted, redirected]),
    ];
    let rulesets = rulesets(&everything)?;
    for (index, (text, want)) in examples.iter().enumerate() {
        let packet: Packet = text.parse().map_err(|error| format!("{error}"))?;
        let found = rulesets.each_ref().map(|ruleset| ruleset.fate(&packet).verdict);
        if found != *want || difference(&everything, &packet) != Some(index) {
            return Err(format!("{text}: ours, iptables, nft: {found:?}"));
        }
    }
    let table = include_str!("../../README.md").split("## Where Istio's two backends differ").nth(1);
    let rows: Vec<&str> = table
        .unwrap_or_default()
        .lines()
        .skip_while(|line| !line.starts_with('|'))
        .take_while(|line| line.starts_with('|'))
        .collect();
    let want = [
        "| IPv6, while IPv6 is not enabled | untouched: no IPv6 rules exist | captured by rules without an address (tables are `inet`) | untouched |",
        "| invalid to conntrack, with drop-invalid | dropped, any protocol | dropped only if TCP | dropped, any protocol |",
        "| without a socket, over loopback | returned by `! --uid-owner` | owner matches never hold, so it goes on and may be redirected | returned: the rule has no owner match |",
        "| dry run | honoured | rules are written | honoured |",
    ];
    if rows.get(2..) == Some(&want) {
        Ok(())
    } else {
        Err(format!("the README's table has other rows: {rows:#?}"))
    }
}
