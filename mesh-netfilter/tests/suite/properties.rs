//! What holds for every intent and every packet.

use std::cell::OnceCell;

use libtest_mimic::Trial;
use mesh_netfilter::net::{Family, Protocol};
use mesh_netfilter::ruleset::{CtState, Target};
use mesh_netfilter::text::Restore;
use mesh_netfilter::trace::{Direction, Packet, Verdict};
use mesh_netfilter::{InboundPorts, Interception, Mode, OutboundRanges, OwnerGroups, Ruleset};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use crate::reference;
use crate::strategies::{intents, packets};
use crate::trial;

/// Intents per property, and packets per intent.
const CASES: u32 = 400;
const PACKETS: usize = 24;

type Check = fn(&Case, &Packet) -> Result<(), TestCaseError>;

/// An intent with its rules, and with what only some properties need.
#[derive(Debug)]
struct Case {
    intent: Interception,
    ours: Ruleset,
    plain: OnceCell<Ruleset>,
    texts: OnceCell<(Ruleset, Ruleset)>,
}

pub(crate) fn trials() -> Vec<Trial> {
    let checks: [(&str, Check); 10] = [
        ("same_fate_as_the_plainest_rules", plainest),
        ("the_proxy_never_loops", no_loop),
        ("excluded_is_never_captured", excluded),
        ("included_is_captured", included),
        ("nothing_is_captured_twice", once),
        ("both_families_agree", families),
        ("rendering_is_deterministic", deterministic),
        ("text_means_the_same", text),
        ("the_quick_answer_is_the_long_one", quick),
        ("udp_is_only_captured_for_lookups", udp),
    ];
    let property = |(name, check): (&str, Check)| {
        trial(format!("property::{name}"), move || {
            let config = Config { cases: CASES, failure_persistence: None, ..Config::default() };
            let strategy = (intents(), proptest::collection::vec(packets(), PACKETS));
            TestRunner::new(config)
                .run(&strategy, |(intent, packets)| {
                    let ours = Ruleset::from(&intent);
                    let case = Case { intent, ours, plain: OnceCell::new(), texts: OnceCell::new() };
                    packets.iter().try_for_each(|packet| check(&case, packet))
                })
                .map_err(|error| error.to_string())
        })
    };
    checks.into_iter().map(property).collect()
}

fn plainest(case: &Case, packet: &Packet) -> Result<(), TestCaseError> {
    let (ours, plain) = (&case.ours, case.plain.get_or_init(|| reference::ruleset(&case.intent)));
    prop_assert_eq!(
        ours.fate(packet),
        plain.fate(packet),
        "\n{}\n{}",
        ours.trace(packet),
        plain.trace(packet)
    );
    prop_assert!(ours.len() <= plain.len(), "{} rules for {}", ours.len(), plain.len());
    Ok(())
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
    let ruleset = Ruleset::from(&intent);
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
    let (one, other) = (&case.ours, Ruleset::from(intent));
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
        (iptables.expect("our own text"), Ruleset::from_nft(&ours.to_nft()).expect("our own script"))
    };
    let (iptables, nft) = case.texts.get_or_init(texts);
    prop_assert_eq!(ours.fate(packet), iptables.fate(packet));
    if packet.direction == Direction::In || packet.uid.is_some() {
        prop_assert_eq!(ours.fate(packet), nft.fate(packet), "{}", ours.to_nft());
    }
    Ok(())
}

fn quick(case: &Case, packet: &Packet) -> Result<(), TestCaseError> {
    let ruleset = &case.ours;
    prop_assert_eq!(ruleset.fate(packet), ruleset.trace(packet).fate);
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
