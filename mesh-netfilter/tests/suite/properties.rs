//! What holds for every intent and every packet; and that each of these would notice rules that are wrong.

use std::borrow::Cow;
use std::cell::OnceCell;
use std::sync::atomic::{AtomicUsize, Ordering};

use libtest_mimic::Trial;
use mesh_netfilter::net::{Family, Protocol};
use mesh_netfilter::ruleset::{CtState, Match, Rule, Target};
use mesh_netfilter::text::Restore;
use mesh_netfilter::trace::{Direction, Packet, Verdict};
use mesh_netfilter::{InboundPorts, Interception, Mode, OutboundRanges, OwnerGroups, Ruleset};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use crate::strategies::{draw, intents, packets, runner, seeded};
use crate::trial;

/// Intents per property, and packets per intent.
const CASES: u32 = 400;
const PACKETS: usize = 24;

type Check = fn(&Case, &Packet) -> Result<(), TestCaseError>;
type Change = fn(&mut Ruleset);

/// An intent with its rules, and with what only some properties need.
#[derive(Debug)]
struct Case {
    intent: Interception,
    ours: Ruleset,
    change: Change,
    texts: OnceCell<Result<(Ruleset, Ruleset), String>>,
}

impl Case {
    fn new(intent: Interception, change: Change) -> Self {
        let ours = rules(&intent, change);
        Self { intent, ours, change, texts: OnceCell::new() }
    }
}

fn rules(intent: &Interception, change: Change) -> Ruleset {
    let mut rules = Ruleset::from(intent);
    change(&mut rules);
    rules
}

pub(crate) fn trials() -> Vec<Trial> {
    // Beside each property, a change of the rules that it has to notice.
    let checks: [(&str, Check, Change); 11] = [
        ("the_proxy_never_loops", no_loop, |rules| without(rules, "the proxy's own traffic")),
        ("excluded_is_never_captured", excluded, |rules| without(rules, "excluded")),
        ("included_outbound_is_captured", included, |rules| without(rules, "included destination")),
        ("included_inbound_is_captured", arriving, |rules| {
            without(rules, "inbound connections go to the proxy");
        }),
        ("exempt_sources_are_spared", exempt, |rules| without(rules, "exempt source")),
        ("nothing_is_captured_twice", once, |rules| {
            without(rules, "an application to itself");
            each(rules, |rule| {
                let takes = matches!(rule.target, Target::Tproxy { .. });
                rule.matches.retain(|each| !takes || each.family().is_none());
            });
        }),
        ("both_families_agree", families, |rules| retain(rules, |rule| rule.family != Some(Family::V6))),
        ("rendering_is_deterministic", deterministic, moody),
        ("text_means_the_same", text, |rules| {
            each(rules, |rule| {
                rule.matches.push(Match::Foreign { words: "-m unheard-of".to_owned() });
            });
        }),
        ("udp_is_only_captured_for_lookups", udp, |rules| {
            each(rules, |rule| {
                rule.matches
                    .retain(|each| !matches!(each, Match::Protocol { .. } | Match::DestinationPorts { .. }));
            });
        }),
        ("reset_of_what_fits_no_connection_is_prevented", invalid, |rules| {
            without(rules, "fit no connection");
        }),
    ];
    let name = format!("property::packets_are_read_as_written::{CASES}x{PACKETS}");
    let mut trials = vec![trial(name, || run(written, |_| {}))];
    for (name, check, change) in checks {
        let count = format!("property::{name}::{CASES}x{PACKETS}");
        trials.push(trial(count, move || run(check, |_| {})));
        trials.push(trial(format!("property::{name}::notices_wrong_rules"), move || {
            let mut runner = runner(5);
            let noticed = (0..CASES).any(|_| {
                let case = Case::new(draw(&intents(), &mut runner), change);
                (0..PACKETS).any(|_| check(&case, &draw(&packets(), &mut runner)).is_err())
            });
            if noticed { Ok(()) } else { Err("it did not".to_owned()) }
        }));
    }
    trials
}

fn run(check: Check, change: Change) -> Result<(), String> {
    let config = Config { cases: CASES, failure_persistence: None, ..Config::default() };
    let strategy = (intents(), proptest::collection::vec(packets(), PACKETS));
    TestRunner::new_with_rng(config, seeded(5))
        .run(&strategy, |(intent, packets)| {
            let case = Case::new(intent, change);
            packets.iter().try_for_each(|packet| check(&case, packet))
        })
        .map_err(|error| error.to_string())
}

fn retain(rules: &mut Ruleset, keep: fn(&Rule) -> bool) {
    rules.chains.iter_mut().for_each(|chain| chain.rules.retain(keep));
}

fn without(rules: &mut Ruleset, note: &str) {
    for chain in &mut rules.chains {
        chain.rules.retain(|rule| !rule.note.contains(note));
    }
}

fn each(rules: &mut Ruleset, change: fn(&mut Rule)) {
    rules.chains.iter_mut().flat_map(|chain| &mut chain.rules).for_each(change);
}

/// Rules that are others each time.
fn moody(rules: &mut Ruleset) {
    static TURN: AtomicUsize = AtomicUsize::new(0);
    for rule in rules.chains.iter_mut().flat_map(|chain| &mut chain.rules) {
        rule.target = Target::Jump(Cow::Owned(format!("TURN{}", TURN.fetch_add(1, Ordering::Relaxed))));
    }
}

/// The proxy's own traffic that leaves the machine is never handed back to it; over loopback it may only go inbound.
fn no_loop(case: &Case, packet: &Packet) -> Result<(), TestCaseError> {
    let intent = &case.intent;
    let own = |id: Option<u32>, owners: &[mesh_netfilter::net::Owner]| {
        id.is_some_and(|id| owners.iter().any(|owner| owner.contains(id)))
    };
    let by_proxy = own(packet.uid, &intent.proxy_uids) || own(packet.gid, &intent.proxy_gids);
    if packet.direction == Direction::In || !by_proxy {
        return Ok(());
    }
    let port = case.ours.fate(packet).verdict.port();
    if packet.interface == "lo" {
        // What shares a group with the proxy is not the proxy: as Istio has it, its lookups over loopback are captured.
        let lookup = intent.dns.port().filter(|_| packet.destination_port == 53);
        prop_assert!(port.is_none() || port == Some(intent.inbound_port) || port == lookup, "{port:?}");
    } else {
        prop_assert_eq!(port, None);
    }
    Ok(())
}

fn excluded(case: &Case, packet: &Packet) -> Result<(), TestCaseError> {
    let intent = &case.intent;
    let has_ports = packet.protocol.has_ports();
    let fate = case.ours.fate(packet);
    if packet.direction == Direction::Out {
        let port = has_ports
            && intent.outbound_exclude_ports.iter().any(|port| port.contains(packet.destination_port));
        let interface = intent.exclude_interfaces.iter().any(|name| name.matches(&packet.interface));
        if matches!(packet.protocol, Protocol::Tcp | Protocol::Udp) && port || interface {
            prop_assert!(!matches!(fate.verdict, Verdict::Redirected { .. }), "{fate}");
        }
        let lookup = intent.dns.port().is_some() && packet.destination_port == 53;
        let to_excluded = intent.outbound_exclude.iter().any(|net| net.contains(&packet.destination));
        if to_excluded && !lookup && packet.interface != "lo" {
            prop_assert_eq!(fate.verdict.port(), None);
        }
    } else if let InboundPorts::AllExcept(ports) = &intent.inbound {
        let from_machine = intent.virtual_interfaces.iter().any(|name| name.matches(&packet.interface));
        let tunnel = intent.mode == Mode::Redirect && packet.destination_port == intent.tunnel_port;
        if has_ports
            && !from_machine
            && (tunnel || ports.iter().any(|port| port.contains(packet.destination_port)))
        {
            prop_assert_eq!(fate.verdict.port(), None);
        }
    }
    Ok(())
}

/// A new TCP connection of an ordinary process to an included destination, with nothing that excludes it, is captured.
fn included(case: &Case, packet: &Packet) -> Result<(), TestCaseError> {
    let intent = &case.intent;
    let mut packet = packet.clone();
    (packet.protocol, packet.direction, packet.state) = (Protocol::Tcp, Direction::Out, CtState::New);
    "eth0".clone_into(&mut packet.interface);
    (packet.uid, packet.gid) = (Some(777), Some(777));
    let captured_family = intent.ipv6 || packet.family() == Family::V4;
    let by_address = match &intent.outbound {
        OutboundRanges::All => true,
        OutboundRanges::Only(nets) => nets.iter().any(|net| net.contains(&packet.destination)),
    };
    let by_port = intent.outbound_ports.iter().any(|port| port.contains(packet.destination_port));
    let spared = packet.destination.is_loopback()
        || intent.outbound_exclude.iter().any(|net| net.contains(&packet.destination))
        || intent.outbound_exclude_ports.iter().any(|port| port.contains(packet.destination_port))
        || matches!(intent.owner_groups, OwnerGroups::Only(_));
    if captured_family && (by_address || by_port) && !spared {
        let port = case.ours.fate(&packet).verdict.port();
        let lookup = intent.dns.port().filter(|_| packet.destination_port == 53);
        prop_assert!(
            port == Some(intent.outbound_port) || (port.is_some() && port == lookup),
            "{packet}: {port:?}"
        );
    }
    Ok(())
}

/// The same for what arrives: a new TCP connection from elsewhere to an included port.
fn arriving(case: &Case, packet: &Packet) -> Result<(), TestCaseError> {
    let intent = &case.intent;
    let mut packet = packet.clone();
    (packet.protocol, packet.direction, packet.state) = (Protocol::Tcp, Direction::In, CtState::New);
    "eth0".clone_into(&mut packet.interface);
    (packet.uid, packet.gid, packet.mark) = (None, None, 0);
    let port = packet.destination_port;
    let wanted = match &intent.inbound {
        InboundPorts::AllExcept(ports) => !ports.iter().any(|range| range.contains(port)),
        InboundPorts::Only(ports) => ports.iter().any(|range| range.contains(port)),
    };
    let captured_family = intent.ipv6 || packet.family() == Family::V4;
    let spared = intent.inbound_exempt_sources.iter().any(|net| net.contains(&packet.source))
        || packet.destination.is_loopback()
        || intent.mode == Mode::Redirect && port == intent.tunnel_port;
    if wanted && captured_family && !spared {
        let fate = case.ours.fate(&packet);
        let delivered = match intent.mode {
            Mode::Redirect => Verdict::Redirected { port: intent.inbound_port },
            Mode::Tproxy { .. } => Verdict::Delivered { port: intent.inbound_port },
        };
        prop_assert_eq!(fate.verdict, delivered, "{}", packet);
    }
    Ok(())
}

/// Exempt sources reach their destination themselves, and for all others nothing changes by them.
fn exempt(case: &Case, packet: &Packet) -> Result<(), TestCaseError> {
    let intent = &case.intent;
    let spared =
        |intent: &Interception| intent.inbound_exempt_sources.iter().any(|net| net.contains(&packet.source));
    let from_machine = intent.virtual_interfaces.iter().any(|name| name.matches(&packet.interface));
    if !spared(intent) {
        let plain = Interception { inbound_exempt_sources: Vec::new(), ..intent.clone() };
        prop_assert_eq!(case.ours.fate(packet), rules(&plain, case.change).fate(packet));
    } else if packet.direction == Direction::In && !from_machine {
        prop_assert_eq!(case.ours.fate(packet).verdict.port(), None);
    }
    Ok(())
}

/// With drop-invalid, what fits no connection does not arrive.
fn invalid(case: &Case, packet: &Packet) -> Result<(), TestCaseError> {
    let intent = &case.intent;
    let spared = intent.mode != Mode::Redirect
        && intent.exclude_interfaces.iter().any(|name| name.matches(&packet.interface));
    let captured_family = intent.ipv6 || packet.family() == Family::V4;
    if packet.direction == Direction::In && packet.state == CtState::Invalid && captured_family && !spared {
        let dropped = case.ours.fate(packet).verdict == Verdict::Dropped;
        prop_assert_eq!(dropped, intent.drop_invalid);
    }
    Ok(())
}

fn once(case: &Case, packet: &Packet) -> Result<(), TestCaseError> {
    let intent = &case.intent;
    let trace = case.ours.trace(packet);
    let captures = |step: &&mesh_netfilter::trace::Step| {
        let redirects = step.rule.contains("-j REDIRECT") || step.rule.contains("-j TPROXY");
        step.matched == Some(true) && redirects
    };
    // A packet that the inbound side of TPROXY delivers may come from a virtual machine, whose nat rule comes after.
    let both = intent.mode != Mode::Redirect && !intent.virtual_interfaces.is_empty();
    prop_assert!(trace.steps.iter().filter(captures).count() <= 1 || both, "{trace}");
    Ok(())
}

/// Without addresses in the intent, IPv6 fares as IPv4 does.
fn families(case: &Case, packet: &Packet) -> Result<(), TestCaseError> {
    let intent = &case.intent;
    let intent = Interception {
        ipv6: true,
        inbound_exempt_sources: Vec::new(),
        outbound: match &intent.outbound {
            OutboundRanges::All => OutboundRanges::All,
            OutboundRanges::Only(_) => OutboundRanges::Only(Vec::new()),
        },
        outbound_exclude: Vec::new(),
        dns: intent.dns.port().map_or(mesh_netfilter::Dns::Off, |port| mesh_netfilter::Dns::All { port }),
        loopback: "127.0.0.1/32".parse().expect("a prefix"),
        ..intent.clone()
    };
    let address = |text: &str| text.parse().expect("an address");
    let pairs =
        [("127.0.0.1", "::1"), ("127.0.0.6", "::6"), ("10.77.0.2", "fd77::2"), ("1.1.1.1", "2001:4860::1")];
    let ruleset = rules(&intent, case.change);
    for source in pairs {
        for destination in pairs {
            let mut v4 = packet.clone();
            (v4.source, v4.destination) = (address(source.0), address(destination.0));
            let mut v6 = packet.clone();
            (v6.source, v6.destination) = (address(source.1), address(destination.1));
            prop_assert_eq!(
                ruleset.fate(&v4),
                ruleset.fate(&v6),
                "\n{}\n{}",
                ruleset.trace(&v4),
                ruleset.trace(&v6)
            );
        }
    }
    Ok(())
}

fn deterministic(case: &Case, _: &Packet) -> Result<(), TestCaseError> {
    let intent = &case.intent;
    let (one, other) = (&case.ours, rules(intent, case.change));
    prop_assert_eq!(one.to_nft(), other.to_nft());
    for family in Family::BOTH {
        let text = one.to_iptables(family, Restore::NoFlush);
        prop_assert_eq!(&text, &other.to_iptables(family, Restore::NoFlush));
        prop_assert!(
            one.chains.iter().flat_map(|chain| &chain.rules).all(|rule| rule.target != Target::Count)
        );
    }
    Ok(())
}

/// Written and read again, rules still do the same.
fn text(case: &Case, packet: &Packet) -> Result<(), TestCaseError> {
    let ours = &case.ours;
    let texts = || {
        let read = |family| Ruleset::from_iptables(&ours.to_iptables(family, Restore::NoFlush), family);
        let iptables = read(Family::V4).and_then(|v4| Ok(v4.merge(read(Family::V6)?)));
        let nft = Ruleset::from_nft(&ours.to_nft());
        iptables.and_then(|iptables| Ok((iptables, nft?))).map_err(|error| error.to_string())
    };
    let (iptables, nft) =
        case.texts.get_or_init(texts).as_ref().map_err(|error| TestCaseError::fail(error.clone()))?;
    prop_assert_eq!(ours.fate(packet), iptables.fate(packet));
    if packet.direction == Direction::In || packet.uid.is_some() {
        prop_assert_eq!(ours.fate(packet), nft.fate(packet), "{}", ours.to_nft());
    }
    Ok(())
}

/// A packet is its description, and a trace ends where the quick answer does.
fn written(case: &Case, packet: &Packet) -> Result<(), TestCaseError> {
    let trace = case.ours.trace(packet);
    prop_assert_eq!(case.ours.fate(packet), trace.fate);
    prop_assert_eq!(packet.to_string().parse::<Packet>(), Ok(packet.clone()));
    Ok(())
}

fn udp(case: &Case, packet: &Packet) -> Result<(), TestCaseError> {
    let intent = &case.intent;
    if packet.protocol == Protocol::Udp {
        let port = case.ours.fate(packet).verdict.port();
        let lookup = intent.dns.port().filter(|_| packet.destination_port == 53);
        prop_assert!(port.is_none() || port == lookup);
    }
    Ok(())
}
