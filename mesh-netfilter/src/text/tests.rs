use super::*;
use crate::{Dns, Interception, Mode};

const SAVED: &str = r#"*raw
:PREROUTING ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
-A PREROUTING -p udp -m udp --sport 53 -j CT --zone 1
COMMIT
*mangle
:PREROUTING DROP [0:0]
-A PREROUTING -m conntrack --ctstate RELATED,ESTABLISHED -j MARK --set-xmark 0x539/0xffffffff
-A PREROUTING ! -d 127.0.0.1/32 -p tcp -j TPROXY --on-port 15006 --on-ip 0.0.0.0 --tproxy-mark 0x539/0xffffffff
-A PREROUTING -p tcp -m mark --mark 0x539 -j CONNMARK --save-mark --nfmask 0xffffffff --ctmask 0xffffffff
COMMIT
*nat
:OUTPUT ACCEPT [0:0]
:KUBE-SERVICES - [0:0]
:MESH_OUTPUT - [0:0]
-A OUTPUT -m comment --comment "a \"service\" here" -j KUBE-SERVICES
-A OUTPUT -j MESH_OUTPUT
-A KUBE-SERVICES -d 10.96.0.1/32 -p tcp -m addrtype --dst-type LOCAL -m tcp --dport 443 -j DNAT --to-destination 10.0.0.1:6443
-A MESH_OUTPUT -s 127.0.0.6/32 -o lo -j RETURN
-A MESH_OUTPUT ! -d 127.0.0.1/32 -o lo -p tcp -m multiport ! --dports 53,15008 -m owner --uid-owner 1337 -j REDIRECT --to-ports 15006
-A MESH_OUTPUT -m owner ! --gid-owner java -m owner ! --gid-owner 202 -j RETURN
-A MESH_OUTPUT -p tcp -m tcp --sport 1:1023 --dport 80 -g KUBE-SERVICES
-A MESH_OUTPUT -p udp -j LOG --log-prefix "x y"
-A MESH_OUTPUT -p tcp
COMMIT
"#;

#[test]
fn saved_text_comes_back_to_the_letter() {
    let read = Ruleset::from_iptables(SAVED, Family::V4).expect("it is right");
    assert_eq!(read.to_iptables(Family::V4, Restore::Whole), SAVED);
}

/// What other programs leave on a node.
const OTHERS: &str = r#"*security
:INPUT ACCEPT [0:0]
-A INPUT -j SECMARK --selctx system_u:object_r:dns_t:s0
COMMIT
*filter
:FORWARD DROP [0:0]
:KUBE-FORWARD - [0:0]
-A FORWARD -m comment --comment "kubernetes forwarding rules" -j KUBE-FORWARD
-A FORWARD -s 10.0.0.0/8 -i eth0 -o wg0.7 -p tcp -m tcp --tcp-flags SYN,RST SYN -j TCPMSS --clamp-mss-to-pmtu
-A FORWARD -p tcp -f -j DROP
-A FORWARD -p gre -j ACCEPT
-A FORWARD -p 200 -j ACCEPT
-A FORWARD -m set --match-set blocked src -j DROP
-A FORWARD -m set ! --match-set good src -m addrtype ! --src-type LOCAL --limit-iface-in -j DROP
-A FORWARD -p tcp -m tcp --dport 80 --tcp-flags FIN,SYN SYN -m owner --uid-owner 7 --socket-exists -j DROP
-A KUBE-FORWARD -m conntrack --ctstate SNAT,DNAT -j ACCEPT
-A KUBE-FORWARD -m conntrack --ctstate NEW --ctorigdst 10.96.0.1/32 -j ACCEPT
-A KUBE-FORWARD -p icmp -m icmp --icmp-type 8 -j ACCEPT
-A KUBE-FORWARD -m owner --uid-owner 0-999 --gid-owner 7 -j REJECT --reject-with icmp-port-unreachable
-A KUBE-FORWARD -m owner ! --socket-exists -j ACCEPT
-A KUBE-FORWARD -m limit --limit 5/min -j LOG --log-prefix "iptables denied: " --log-level 7
COMMIT
*nat
:POSTROUTING ACCEPT [0:0]
-A POSTROUTING -m mark ! --mark 0x4000/0x4000 -j MASQUERADE --random-fully
-A POSTROUTING -j MARK --set-xmark 0x4000/0x0
-A POSTROUTING -m statistic --mode random --probability 0.50000000000 -j DNAT --to-destination 10.0.0.1:80
COMMIT
"#;

#[test]
fn other_people_s_rules_come_back_to_the_letter() {
    let read = Ruleset::from_iptables(OTHERS, Family::V4).expect("it is right");
    assert_eq!(read.to_iptables(Family::V4, Restore::Whole), OTHERS);
    let marked = read.chains.iter().find(|chain| chain.table == crate::ruleset::TableKind::Security);
    assert_eq!(marked.map(|chain| chain.rules.len()), Some(1));
}

#[test]
fn short_forms_of_restore_text_are_read() {
    let text = "*nat\n-A OUTPUT -p all -j RETURN\n-A OUTPUT -p tcp --syn -j RETURN\n[5:60] -A OUTPUT -p icmpv6 -j RETURN\n";
    let read = Ruleset::from_iptables(text, Family::V6).expect("it is right");
    let want = "*nat\n:OUTPUT ACCEPT [0:0]\n-A OUTPUT -j RETURN\n-A OUTPUT -p tcp --syn -j RETURN\n\
                -A OUTPUT -p ipv6-icmp -j RETURN\nCOMMIT\n";
    assert_eq!(read.to_iptables(Family::V6, Restore::Whole), want);
}

#[test]
fn a_listing_is_read() {
    let listing = include_str!("../../tests/corpus/listing");
    let read = Ruleset::from_nft(listing).expect("nft wrote it");
    let packet = "tcp 10.0.0.5:40000 > 10.1.2.3:80 out uid 1000".parse().expect("a packet");
    assert_eq!(read.fate(&packet).verdict.port(), Some(15001));
    let with_handles: String =
        listing.lines().enumerate().map(|(index, line)| format!("{line} # handle {index}\n")).collect();
    assert_eq!(Ruleset::from_nft(&with_handles), Ok(read));
    for (priority, wrong) in
        [("raw", false), ("mangle + 10", false), ("srcnat", false), ("soon", true), ("filter -", true)]
    {
        let text = format!("add chain inet t c {{ type filter hook output priority {priority} ; }}");
        assert_eq!(Ruleset::from_nft(&text).is_err(), wrong, "{priority}");
    }
}

#[test]
fn restore_text_in_istio_s_form_is_read() {
    let text = "* nat\n-N A\n-A OUTPUT -j A\n-A A -p tcp --dport 80 -j REDIRECT --to-port 15001\n-I A 1 -j RETURN\nCOMMIT\n";
    let read = Ruleset::from_iptables(text, Family::V4).expect("it is right");
    let want = "*nat\n:A - [0:0]\n:OUTPUT ACCEPT [0:0]\n-A A -j RETURN\n\
                -A A -p tcp -m tcp --dport 80 -j REDIRECT --to-ports 15001\n-A OUTPUT -j A\nCOMMIT\n";
    assert_eq!(read.to_iptables(Family::V4, Restore::Whole), want);
}

#[test]
fn our_rules_are_the_same_after_every_text() {
    let intent = Interception {
        mode: Mode::TPROXY,
        ipv6: true,
        dns: Dns::All { port: 15053 },
        drop_invalid: true,
        outbound_exclude: vec![
            "10.0.0.0/8".parse().expect("a prefix"),
            "11.0.0.0/8".parse().expect("a prefix"),
        ],
        ..Interception::default()
    };
    let ruleset = Ruleset::from(&intent);
    for family in Family::BOTH {
        let text = ruleset.to_iptables(family, Restore::NoFlush);
        let read = Ruleset::from_iptables(&text, family).expect("our own text");
        assert_eq!(read.to_iptables(family, Restore::NoFlush), text);
    }
    let script = ruleset.to_nft();
    assert!(script.contains("ip daddr 10.0.0.0/7 counter return"), "{script}");
    assert_eq!(Ruleset::from_nft(&script).expect("our own script").to_nft(), script);
}

#[test]
fn wrong_text_is_refused_with_its_line() {
    for (text, line) in [
        ("-A OUTPUT -j RETURN", 1),
        ("*nat\n-A OUTPUT -p tcp --dport", 2),
        ("*nat\n\n-A OUTPUT -p frob -j RETURN", 3),
        ("*nat\n-A OUTPUT -d fd00::1 -j RETURN", 2),
        ("*nat\n-A OUTPUT -m comment --comment \"open", 2),
        ("*nat\n-I OUTPUT 5 -j RETURN", 2),
        ("*broute", 1),
        ("*nat\n-A OUTPUT ! -p all -j RETURN", 2),
        ("*nat\n-A OUTPUT -j \"two words\"", 2),
        ("*nat\n-A OUTPUT -g \"two words\"", 2),
        ("*nat\n-A OUTPUT -m conntrack --ctstate NEW,SOON", 2),
        ("*nat\n-F OUTPUT", 2),
        ("*nat\n:A QUEUE", 2),
    ] {
        assert_eq!(Ruleset::from_iptables(text, Family::V4).map_err(|error| error.line), Err(line), "{text}");
    }
    for text in [
        "add rule inet t c counter return",
        "add chain inet t c\nadd rule inet t c tcp dport { 1, 2 counter return",
        "add chain inet t c { type nat hook nowhere priority 0 ; }",
        "add table ip t",
        "add chain inet t \"c",
        "add chain inet t c\nadd rule inet t c jump 7",
        "add chain inet t c\ninsert rule inet t c index 3 counter return",
        "add chain inet t c\nadd rule inet t c accept drop",
    ] {
        assert!(Ruleset::from_nft(text).is_err(), "{text}");
    }
}
