use super::*;
use crate::{Dns, Interception, Mode};

fn fate(intent: &Interception, packet: &str) -> Fate {
    let packet: Packet = packet.parse().expect("a packet");
    let ruleset = Ruleset::from(intent);
    let fate = ruleset.fate(&packet);
    assert_eq!(ruleset.trace(&packet).fate, fate);
    fate
}

fn port(intent: &Interception, packet: &str) -> Option<u16> {
    fate(intent, packet).verdict.port()
}

#[test]
fn the_default_captures_what_it_should() {
    let intent = Interception::default();
    for (packet, want) in [
        ("tcp 10.0.0.5:40000 > 10.1.2.3:8080 out uid 1000 gid 1000", Some(15001)),
        ("tcp 10.0.0.5:40000 > 10.1.2.3:8080 out uid 1337 gid 1337", None),
        ("tcp 10.0.0.5:40000 > 10.1.2.3:8080 out uid 0 gid 1337", None),
        ("tcp 10.0.0.9:40000 > 10.0.0.5:8080 in", Some(15006)),
        ("tcp 10.0.0.9:40000 > 10.0.0.5:15008 in", None),
        ("tcp 10.0.0.9:40000 > 10.0.0.5:15021 in", None),
        ("tcp 127.0.0.6:40000 > 10.0.0.5:8080 out via lo uid 1337 gid 1337", None),
        ("tcp 10.0.0.5:40000 > 10.0.0.5:8080 out via lo uid 1337 gid 1337", Some(15006)),
        ("tcp 10.0.0.5:40000 > 10.0.0.5:8080 out via lo uid 1000 gid 1000", None),
        ("tcp 127.0.0.1:40000 > 127.0.0.1:8080 out uid 1000 gid 1000", None),
        ("udp 10.0.0.5:40000 > 10.1.2.3:53 out uid 1000 gid 1000", None),
        ("tcp [fd00::5]:40000 > [fd00::6]:8080 out uid 1000 gid 1000", None),
    ] {
        assert_eq!(port(&intent, packet), want, "{packet}");
    }
}

#[test]
fn exclusions_beat_inclusions_in_istio_s_order() {
    let intent = Interception {
        outbound_exclude_ports: vec![3306.into()],
        outbound_exclude: vec!["10.1.0.0/16".parse().expect("a prefix")],
        outbound_ports: vec![9000.into(), 3306.into()],
        outbound: crate::OutboundRanges::Only(vec!["10.0.0.0/8".parse().expect("a prefix")]),
        ..Interception::default()
    };
    for (packet, want) in [
        ("tcp 10.0.0.5:1 > 10.2.2.3:3306 out uid 1000", None),
        ("tcp 10.0.0.5:1 > 10.1.2.3:9000 out uid 1000", None),
        ("tcp 10.0.0.5:1 > 8.8.8.8:9000 out uid 1000", Some(15001)),
        ("tcp 10.0.0.5:1 > 8.8.8.8:9001 out uid 1000", None),
        ("tcp 10.0.0.5:1 > 10.2.2.3:9001 out uid 1000", Some(15001)),
    ] {
        assert_eq!(port(&intent, packet), want, "{packet}");
    }
}

#[test]
fn lookups_get_their_port_and_zone() {
    let intent = Interception { dns: Dns::All { port: 15053 }, ..Interception::default() };
    let application = fate(&intent, "udp 10.0.0.5:1 > 10.96.0.10:53 out uid 1000 gid 1000");
    assert_eq!((application.verdict.port(), application.zone), (Some(15053), 2));
    let agent = fate(&intent, "udp 10.0.0.5:1 > 10.96.0.10:53 out uid 1337 gid 1337");
    assert_eq!((agent.verdict.port(), agent.zone), (None, 1));
    let answer = fate(&intent, "udp 10.96.0.10:53 > 10.0.0.5:1 in");
    assert_eq!(answer.zone, 1);
}

#[test]
fn transparent_mode_marks_and_delivers() {
    let intent = Interception { mode: Mode::TPROXY, ..Interception::default() };
    let new = fate(&intent, "tcp 10.0.0.9:1 > 10.0.0.5:8080 in");
    assert_eq!((new.verdict, new.mark), (Verdict::Delivered { port: 15006 }, 1337));
    let known = fate(&intent, "tcp 10.0.0.9:1 > 10.0.0.5:8080 in state ESTABLISHED");
    assert_eq!((known.verdict, known.mark), (Verdict::Accepted, 1337));
    let answer = fate(&intent, "tcp 10.0.0.5:8080 > 10.0.0.9:1 out uid 1000 connmark 1337 state ESTABLISHED");
    assert_eq!(answer.mark, 1337);
}

#[test]
fn a_name_that_only_the_machine_knows_is_not_guessed() {
    let only = crate::OwnerGroups::Only(vec!["java".parse().expect("a name")]);
    let intent = Interception { owner_groups: only, ..Interception::default() };
    let packet = "tcp 10.0.0.5:40000 > 10.1.2.3:80 out uid 1000 gid 1000".parse().expect("a packet");
    let rules = Ruleset::from(&intent);
    assert!(!rules.fate(&packet).certain);
    assert!(rules.trace(&packet).to_string().contains("this machine's id of java"));
    let known = rules.resolve(|_, _| Some(7)).expect("everybody is 7");
    assert_eq!((known.fate(&packet).certain, known.fate(&packet).verdict), (true, Verdict::Accepted));
}

#[test]
fn a_trace_says_why() {
    let intent = Interception { outbound_exclude_ports: vec![3306.into()], ..Interception::default() };
    let packet = "tcp 10.0.0.5:40000 > 10.1.2.3:3306 out uid 1000".parse().expect("a packet");
    let trace = Ruleset::from(&intent).trace(&packet);
    let last = trace.steps.last().expect("some rule");
    assert_eq!((last.matched, last.note.as_str()), (Some(true), "excluded outbound port"));
    assert!(
        trace.to_string().ends_with("=> accepted: it goes where it was going, not through the proxy"),
        "{trace}"
    );
    assert_eq!(trace.to_json()["verdict"], "accepted");
}

#[test]
fn descriptions_are_read_back_and_wrong_ones_named() {
    for text in [
        "tcp 10.0.0.5:40000 > 10.1.2.3:8080 out via eth0 uid 1000 gid 0",
        "udp [fd00::1]:53 > [fd00::2]:9 in via eth1 mark 0x5 connmark 0x6 state ESTABLISHED",
        "icmp 10.0.0.1 > 10.0.0.2 in via eth0",
    ] {
        let packet: Packet = text.parse().expect("a packet");
        assert_eq!(packet.to_string(), text);
    }
    for text in [
        "",
        "tcp",
        "tcp 10.0.0.5 > 10.0.0.6:80",
        "tcp 10.0.0.5:1 10.0.0.6:80",
        "tcp 10.0.0.5:1 > [::1]:80",
        "tcp 10.0.0.5:1 > 10.0.0.6:80 sideways",
        "tcp 10.0.0.5:1 > 10.0.0.6:80 out uid",
        "tcp 10.0.0.5:1 > 10.0.0.6:80 out uid x",
        "tcp 10.0.0.5:1 > 10.0.0.6:80 out color red",
        "quic 10.0.0.5:1 > 10.0.0.6:80",
        "esp 10.0.0.5:1 > 10.0.0.6",
    ] {
        assert!(text.parse::<Packet>().is_err(), "{text:?}");
    }
}

#[test]
fn jumps_in_a_circle_end() {
    use crate::ruleset::{Chain, Hook, Rule, TableKind, Target};
    let mut base = Chain::base(TableKind::Nat, Hook::Output);
    base.rules.push(Rule::new(Vec::new(), Target::Jump("A".into())));
    let mut chain = Chain::regular(TableKind::Nat, "A");
    chain.rules.push(Rule::new(Vec::new(), Target::Jump("A".into())));
    let ruleset = Ruleset { chains: vec![base, chain], ..Ruleset::default() };
    let packet = "tcp 10.0.0.5:1 > 10.0.0.6:80 out".parse().expect("a packet");
    assert!(!ruleset.fate(&packet).certain);
}

#[test]
fn the_first_taker_keeps_a_packet() {
    let rules = |text: &str| Ruleset::from_iptables(text, crate::net::Family::V4).expect("rules");
    let arriving: Packet = "tcp 10.0.0.5:40000 > 10.1.2.3:80 in".parse().expect("a packet");
    // A socket that was given to it outlives a redirect.
    let tproxy = rules(
        "*mangle\n-A PREROUTING -p tcp -j TPROXY --on-port 15006 --tproxy-mark 0x539\nCOMMIT\n*nat\n-A PREROUTING -p tcp -j REDIRECT --to-ports 15001\nCOMMIT\n",
    );
    assert_eq!(tproxy.fate(&arriving).verdict, Verdict::Delivered { port: 15006 });
    // Of two base chains that translate, the first does.
    let mut twice = rules("*nat\n-A PREROUTING -p tcp -j REDIRECT --to-ports 1\nCOMMIT\n");
    let second = rules("*nat\n-A PREROUTING -p tcp -j REDIRECT --to-ports 2\nCOMMIT\n");
    twice.chains.extend(second.chains);
    assert_eq!(twice.fate(&arriving).verdict, Verdict::Redirected { port: 1 });
}
