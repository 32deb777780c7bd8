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
        ("*security", 1),
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
        "add chain inet t c\ninsert rule inet t c index 3 counter return",
        "add chain inet t c\nadd rule inet t c accept drop",
    ] {
        assert!(Ruleset::from_nft(text).is_err(), "{text}");
    }
}
