use super::*;
use crate::net::Family;
use crate::{Dns, Interception};

const NAT: i32 = -100;

/// What is reported when these rules of `iptables-save` stand around those of an intent.
fn around(intent: &Interception, text: &str) -> Vec<String> {
    let live = Ruleset::from_iptables(text, Family::V4).expect("rules");
    let foreign = Foreign::of_iptables(&live, "iptables", true, NAT);
    find(&Ruleset::from(intent), &foreign).iter().map(ToString::to_string).collect()
}

/// The same where they stand in a table that packets meet first.
fn before(intent: &Interception, text: &str) -> Vec<String> {
    let live = Ruleset::from_iptables(text, Family::V4).expect("rules");
    let foreign = Foreign::of_iptables(&live, "legacy", false, NAT);
    find(&Ruleset::from(intent), &foreign).iter().map(ToString::to_string).collect()
}

const OURS: &str = "-A OUTPUT -j MESH_OUTPUT\n-A PREROUTING -p tcp -j MESH_INBOUND\n";

#[test]
fn rules_before_our_jump_take_packets() {
    let found = |rule: &str| around(&Interception::default(), &format!("*nat\n{rule}\n{OURS}COMMIT\n"));
    for taking in [
        "-A OUTPUT -p tcp --dport 80 -j ACCEPT",
        "-A OUTPUT -d 10.0.0.0/8 -j RETURN",
        "-A OUTPUT -m owner --uid-owner 1000 -j REDIRECT --to-ports 9",
        "-A PREROUTING -p tcp -j DNAT --to-destination 10.0.0.9",
        "-A PREROUTING -s 10.1.0.0/16 -i eth+ -j DROP",
        "-A OUTPUT -g OTHERS\n-N OTHERS",
        "-N OTHERS\n-A OTHERS -p tcp --dport 443 -j ACCEPT\n-A OUTPUT -d 10.0.0.0/8 -j OTHERS",
    ] {
        assert_eq!(found(taking).len(), 1, "{taking}: {:?}", found(taking));
    }
    for harmless in [
        // Ours leave these alone too.
        "-A OUTPUT -p udp --dport 53 -j ACCEPT",
        "-A OUTPUT -d 127.0.0.1/32 -j RETURN",
        "-A PREROUTING -p tcp --dport 15008 -j ACCEPT",
        "-A PREROUTING -j LOG",
        "-N OTHERS\n-A OTHERS -p tcp --dport 443 -j RETURN\n-A OUTPUT -j OTHERS",
    ] {
        assert_eq!(found(harmless), Vec::<String>::new(), "{harmless}");
    }
    assert_eq!(
        found("-A OUTPUT -p tcp --dport 3306 -j ACCEPT"),
        [
            "iptables nat OUTPUT#1 `-p tcp -m tcp --dport 3306 -j ACCEPT` takes tcp 10.0.0.5:40000 > 192.0.2.1:3306 out via eth0 uid 1000 gid 1000 (by our rules redirected to port 15001)"
        ]
    );
}

#[test]
fn rules_behind_our_jump_are_no_matter() {
    let text = format!(
        "*nat\n{OURS}-A OUTPUT -p tcp -j ACCEPT\n-A PREROUTING -p tcp -j REDIRECT --to-ports 9\nCOMMIT\n"
    );
    assert_eq!(around(&Interception::default(), &text), Vec::<String>::new());
}

#[test]
fn an_accept_in_another_table_takes_nothing() {
    for table in ["raw", "mangle"] {
        let text = |target: &str| format!("*{table}\n-A OUTPUT -p tcp -j {target}\nCOMMIT\n");
        assert_eq!(before(&Interception::default(), &text("ACCEPT")), Vec::<String>::new());
        assert_eq!(before(&Interception::default(), &text("DROP")).len(), 1);
    }
    assert_eq!(before(&Interception::default(), "*raw\n-A OUTPUT -p tcp -j NOTRACK\nCOMMIT\n").len(), 1);
}

#[test]
fn what_is_dropped_after_it_was_captured() {
    let text = |rules: &str| format!("*filter\n:INPUT DROP [0:0]\n{rules}COMMIT\n");
    let policy = before(&Interception::default(), &text(""));
    assert!(
        policy.iter().any(|found| found.starts_with("legacy filter INPUT `policy DROP` takes")),
        "{policy:?}"
    );
    let saved = "-A INPUT -p tcp -m multiport --dports 15001,15006 -j ACCEPT\n";
    assert_eq!(before(&Interception::default(), &text(saved)), Vec::<String>::new());
    let port = text("-A INPUT -p tcp --dport 15006 -j DROP\n-A INPUT -j ACCEPT\n");
    assert_eq!(before(&Interception::default(), &port).len(), 1);
}

#[test]
fn conditions_that_are_not_modelled_are_said_to_be() {
    let text = format!("*nat\n-A OUTPUT -m addrtype --dst-type LOCAL -j ACCEPT\n{OURS}COMMIT\n");
    let found = around(&Interception::default(), &text);
    assert!(found.len() == 1 && found[0].contains(" may take "), "{found:?}");
}

#[test]
fn lookups_and_invalid_packets_can_be_taken_too() {
    let intent =
        Interception { dns: Dns::All { port: 15053 }, drop_invalid: true, ..Interception::default() };
    let raw = "*raw\n-A OUTPUT -p udp --dport 53 -j ACCEPT\n-A OUTPUT -j MESH_RAW_OUT\nCOMMIT\n";
    assert_eq!(around(&intent, raw).len(), 1, "{:?}", around(&intent, raw));
    let mangle = "*mangle\n-A PREROUTING -j ACCEPT\n-A PREROUTING -j MESH_MANGLE_IN\nCOMMIT\n";
    assert_eq!(around(&intent, mangle).len(), 1, "{:?}", around(&intent, mangle));
    assert_eq!(around(&Interception::default(), raw), Vec::<String>::new());
}

#[test]
fn priorities_have_their_places() {
    assert_eq!(place_of(-150, true, -101), (TableKind::Nat, Place::Before));
    assert_eq!(place_of(-100, true, -101), (TableKind::Nat, Place::After));
    assert_eq!(place_of(-400, false, -101), (TableKind::Raw, Place::Before));
    assert_eq!(place_of(-200, false, -101), (TableKind::Mangle, Place::Before));
    assert_eq!(place_of(-120, false, -101), (TableKind::Mangle, Place::After));
    assert_eq!(place_of(0, false, -101), (TableKind::Filter, Place::Before));
}
