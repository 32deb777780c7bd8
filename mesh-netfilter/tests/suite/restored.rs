//! After applying and cleaning everything is as if we had never been there: everybody's rules in every kind of table, their
//! order, policies and counters, addresses, routes and policy routes. Two namespaces are told the same; ours were in one.

use libtest_mimic::Trial;
use mesh_netfilter::backend::{Kind, Variant};
use mesh_netfilter::routing::{Routing, needs};
use mesh_netfilter::{Interception, Mode, Ruleset};
use proptest::prelude::*;
use proptest::sample::{select, subsequence};

use crate::backends::{Place, check, is_here};
use crate::netns::Space;
use crate::strategies::{draw, intents, runner};
use crate::{peers_required, trial};

const CASES: u64 = 20;

pub(crate) fn trials() -> Vec<Trial> {
    let possible = Space::new().is_ok();
    let kinds = [Kind::Netlink, Kind::Nft, Kind::Iptables(Variant::Nft), Kind::Iptables(Variant::Legacy)];
    let all_here = kinds.into_iter().all(is_here);
    kinds
        .map(|kind| {
            trial(format!("clean::{kind}::restores_what_was"), move || restored(kind))
                .with_ignored_flag(!(peers_required() || possible && all_here))
        })
        .into()
}

/// Rules that all iptables take, by table; `NET` is a prefix of the family.
const RULES: [(&str, &[&str]); 4] = [
    (
        "raw",
        &[
            "-A PREROUTING -p udp -m udp --dport 99 -j CT --notrack",
            "-A OUTPUT -p tcp -m tcp --dport 9 -j ACCEPT",
            "-A PREROUTING -i cni0 -j OTHERS",
            "-A OUTPUT -s NET -j DROP",
        ],
    ),
    (
        "mangle",
        &[
            "-A FORWARD -p tcp -m tcp --tcp-flags SYN,RST SYN -j TCPMSS --clamp-mss-to-pmtu",
            "-A PREROUTING -m mark --mark 0x4000/0x4000 -j ACCEPT",
            "-A OUTPUT -j MARK --set-xmark 0x10/0xff",
            "-A PREROUTING -j OTHERS",
        ],
    ),
    (
        "nat",
        &[
            "-A PREROUTING -m comment --comment \"kube \\\"things\\\"\" -j OTHERS",
            "-A OUTPUT -p tcp -m owner --uid-owner 12 -j REDIRECT --to-ports 7",
            "-A POSTROUTING -s NET ! -o cni0 -j MASQUERADE",
            "-A OUTPUT -g OTHERS",
            "-A OUTPUT -j ISTIO_OUTPUT",
        ],
    ),
    (
        "filter",
        &[
            "-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
            "-A INPUT -m limit --limit 5/sec -j LOG --log-prefix \"denied: \"",
            "-A FORWARD -s NET -j REJECT",
            "-A OUTPUT -d NET -j OTHERS",
        ],
    ),
];

/// Restore text of one family, with counters: what was there before.
fn saved(ipv6: bool) -> impl Strategy<Value = String> {
    let tables: Vec<_> = RULES
        .map(|(table, rules)| {
            let policies = select(vec!["ACCEPT", "DROP"]);
            (any::<bool>(), policies, subsequence(rules.to_vec(), 0..=rules.len()), 0_u32..900).prop_map(
                move |(present, policy, rules, count)| {
                    if !present {
                        return String::new();
                    }
                    let policy = if table == "filter" { format!(":FORWARD {policy} [0:0]\n") } else { String::new() };
                    let rules: String =
                        rules.iter().map(|rule| format!("[{count}:{}] {rule}\n", count * 60)).collect();
                    format!(
                        "*{table}\n{policy}:OTHERS - [0:0]\n:ISTIO_OUTPUT - [0:0]\n{rules}[1:2] -A OTHERS -p tcp -m tcp --dport 7 -j RETURN\nCOMMIT\n"
                    )
                },
            )
        })
        .into();
    let net = if ipv6 { "fd00::/8" } else { "10.0.0.0/8" };
    tables.prop_map(move |tables| tables.concat().replace("NET", net))
}

/// An nft script: tables of other programs, at all hooks and priorities.
fn script() -> impl Strategy<Value = String> {
    let chain = (
        select(vec!["inet", "ip", "ip6"]),
        select(vec!["prerouting", "input", "output", "postrouting"]),
        select(vec![-400, -300, -150, -101, -100, 0, 50]),
        select(vec![
            "tcp dport { 7, 9 } counter accept",
            "ct state established,related accept",
            "meta mark 0x99 counter drop",
            "udp dport 53 jump side",
            "tcp dport 22 limit rate 3/minute log prefix \"x \"",
        ]),
    );
    proptest::collection::vec(chain, 0..4).prop_map(|chains| {
        let text = |(number, (family, hook, priority, rule)): (usize, &(&str, &str, i32, &str))| {
            let table = format!("{family} other{number}");
            format!(
                "add table {table}\nadd counter {table} seen\nadd set {table} ports {{ type inet_service ; elements = {{ 80, 443 }} ; }}\nadd chain {table} side\nadd rule {table} side counter packets 5 bytes 300 return\nadd chain {table} base {{ type filter hook {hook} priority {priority} ; }}\nadd rule {table} base tcp dport @ports counter name seen\nadd rule {table} base {rule}\n"
            )
        };
        chains.iter().enumerate().map(text).collect()
    })
}

/// Addresses and routes that look like ours and are not.
fn routes() -> impl Strategy<Value = String> {
    let some = [
        "ip rule add fwmark 0x10 lookup 200",
        "ip rule add fwmark 0x539/0xfff lookup 50",
        "ip rule add from 10.0.0.0/8 fwmark 0x539 lookup 133",
        "ip rule add iif lo fwmark 0x539 lookup 133 pref 90",
        "ip rule add fwmark 0x99 lookup 133",
        "ip route add unreachable 9.9.9.0/24 table 133",
        "ip route add local 9.9.8.0/24 dev lo table 133",
        "ip address add 10.1.1.1/32 dev lo",
        "ip -6 rule add from fd00::/8 fwmark 0x539 lookup 133",
        "ip -6 route add unreachable fd09::/64 table 133",
        "ip -6 address add ::7/128 dev lo nodad",
    ];
    subsequence(some.to_vec(), 0..=some.len()).prop_map(|lines| lines.join("\n"))
}

/// What others do while ours stand.
fn later() -> impl Strategy<Value = String> {
    let some = [
        "iptables-nft -t nat -I OUTPUT 1 -p tcp --dport 70 -j ACCEPT",
        "iptables-nft -t nat -A OUTPUT -p tcp --dport 71 -j ACCEPT",
        "ip6tables-nft -t mangle -A PREROUTING -p tcp --dport 72 -j ACCEPT",
        "iptables-legacy -t nat -I OUTPUT 1 -p tcp --dport 70 -j ACCEPT",
        "iptables-legacy -t nat -A PREROUTING -p tcp --dport 71 -j ACCEPT",
        "ip6tables-legacy -t raw -A OUTPUT -p tcp --dport 72 -j ACCEPT",
        "nft add table inet later; nft add chain inet later c; nft add rule inet later c tcp dport 1 accept",
        "ip rule add fwmark 0x77 lookup 133 pref 70",
        "ip route add unreachable 9.9.7.0/24 table 133",
    ];
    subsequence(some.to_vec(), 0..=some.len()).prop_map(|lines| lines.join("\n"))
}

/// Gives a namespace its past.
fn prepare(place: &Place, restores: &[(&str, String)], script: &str, routes: &str) -> Result<(), String> {
    for (program, text) in restores {
        place.shell(&format!("{program}-restore -c <<'END'\n{text}END"))?;
    }
    place.shell(&format!("nft -f - <<'END'\n{script}END\n{routes}"))?;
    Ok(())
}

/// Everything that anybody could have put there. Tables and chains of the system that are empty and let packets pass are
/// nothing: programs make them by looking.
fn everything(place: &Place) -> Result<String, String> {
    let mut text = String::new();
    for program in ["iptables-nft", "ip6tables-nft", "iptables-legacy", "ip6tables-legacy"] {
        let saved = place.shell(&format!("{program}-save -c"))?;
        let mut table = Vec::new();
        for line in saved.lines().filter(|line| !line.starts_with('#')) {
            table.push(line);
            if line == "COMMIT" {
                let idle = |line: &&str| {
                    line.starts_with('*')
                        || *line == "COMMIT"
                        || line.starts_with(':') && line.ends_with("ACCEPT [0:0]")
                };
                if !table.iter().all(idle) {
                    text.push_str(&format!("{program} {}\n", table.join("\n")));
                }
                table.clear();
            }
        }
    }
    // What iptables-nft keeps there was already seen.
    for table in place.shell("nft list tables")?.lines() {
        let [_, family, name] = table.split_whitespace().collect::<Vec<_>>()[..] else { continue };
        if family == "inet" || !RULES.iter().any(|(kept, _)| *kept == name) {
            text.push_str(&place.shell(&format!("nft list {table}"))?);
        }
    }
    text.push_str(&place.shell(
        "ip rule; ip -6 rule; ip route show table all; ip -6 route show table all; ip -o address show dev lo | sed 's/^[0-9]*//'",
    )?);
    Ok(text)
}

fn restored(kind: Kind) -> Result<(), String> {
    let mut kept = 0;
    for seed in 0..CASES {
        let mut runner = runner(1000 + seed);
        let restores: Vec<_> = ["iptables-nft", "ip6tables-nft", "iptables-legacy", "ip6tables-legacy"]
            .map(|program| (program, draw(&saved(program.starts_with("ip6")), &mut runner)))
            .into();
        let (script, routes) = (draw(&script(), &mut runner), draw(&routes(), &mut runner));
        let later = draw(&later(), &mut runner);
        let mut both = Vec::new();
        for name in ["with", "without"] {
            let place = Place::new(&format!("restored-{kind}-{name}"))?;
            prepare(&place, &restores, &script, &routes)?;
            both.push(place);
        }
        let [with, without] = &both[..] else { return Err("two places".to_owned()) };
        for mode in [Mode::Redirect, Mode::TPROXY] {
            let intent = Interception { mode, ipv6: true, ..draw(&intents(), &mut runner) };
            let wanted = needs(&intent);
            with.run(kind, move |backend| backend.apply(&Ruleset::from(&intent)))?;
            let installed = with.space.run(move || {
                let mut routing = Routing::open()?;
                routing.apply(&wanted)?;
                routing.missing(&wanted)
            });
            check(installed == Ok(Vec::new()), (seed, installed))?;
        }
        with.shell(&later)?;
        without.shell(&later)?;
        let ours = everything(with)?;
        with.run(kind, |backend| backend.clean())?;
        let all = needs(&Interception { mode: Mode::TPROXY, ipv6: true, ..Interception::default() });
        let removed = with
            .space
            .run(move || Routing::open().and_then(|mut routing| routing.clean(&all)))
            .map_err(|error| error.to_string())?;
        check(removed == 5, ("routes", seed, removed))?;
        let (cleaned, untouched) = (everything(with)?, everything(without)?);
        kept += untouched.lines().count();
        if cleaned != untouched {
            let lost: Vec<_> = untouched.lines().filter(|line| !cleaned.contains(line)).collect();
            let left: Vec<_> = cleaned.lines().filter(|line| !untouched.contains(line)).collect();
            return Err(format!(
                "seed {seed}: lost {lost:#?}, left {left:#?}\n{cleaned}\n=== not\n{untouched}"
            ));
        }
        check(ours != untouched && ours.contains("0x539"), &ours)?;
    }
    println!("{kind}: {CASES} pasts of others came back, {kept} lines in all");
    Ok(())
}
