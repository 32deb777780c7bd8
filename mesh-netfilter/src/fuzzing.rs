//! What fuzzers call; properties and a replay of their corpus call the same.

use crate::Interception;
use crate::net::Family;
use crate::ruleset::Ruleset;
use crate::text::Restore;
use crate::trace::Packet;

/// A packet to send through whatever was read.
const PACKET: &str = "tcp 10.0.0.5:40000 > 10.1.2.3:8080 out uid 1000 gid 1000";

/// `iptables-save` text: what is read can be written, read again as the same, and walked.
///
/// # Panics
/// When it cannot.
pub fn fuzz_save(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    for family in Family::BOTH {
        let Ok(rules) = Ruleset::from_iptables(&text, family) else { continue };
        walk(&rules);
        let written = rules.to_iptables(family, Restore::Whole);
        let again = Ruleset::from_iptables(&written, family).expect("what was written is read");
        assert_eq!(again.to_iptables(family, Restore::Whole), written);
    }
}

/// nft scripts and listings: what is read can be written and walked; what was written once stays the same.
///
/// # Panics
/// When it does not.
pub fn fuzz_nft(data: &[u8]) {
    let Ok(rules) = Ruleset::from_nft(&String::from_utf8_lossy(data)) else { return };
    walk(&rules);
    let written = rules.to_nft();
    // Chains at one hook may come from several tables; ours is only one, in which they become one.
    if let Ok(again) = Ruleset::from_nft(&written) {
        let written = again.to_nft();
        assert_eq!(Ruleset::from_nft(&written).map(|rules| rules.to_nft()), Ok(written));
    }
}

/// An intent: its rules are the same each time, can be written in every form, and what is written is read as the same.
///
/// # Panics
/// When it is not.
pub fn fuzz_intent(intent: &Interception) {
    let rules = Ruleset::from(intent);
    assert_eq!(rules, Ruleset::from(intent));
    walk(&rules);
    for family in Family::BOTH {
        let written = rules.to_iptables(family, Restore::NoFlush);
        let again = Ruleset::from_iptables(&written, family).expect("what was written is read");
        assert_eq!(again.to_iptables(family, Restore::NoFlush), written);
    }
    let written = rules.to_nft();
    assert_eq!(Ruleset::from_nft(&written).expect("what was written is read").to_nft(), written);
}

/// A packet's description: what is read is written as it was meant.
///
/// # Panics
/// When it is not.
pub fn fuzz_packet(data: &[u8]) {
    if let Ok(packet) = String::from_utf8_lossy(data).parse::<Packet>() {
        assert_eq!(packet.to_string().parse().as_ref(), Ok(&packet));
    }
}

/// A packet's bytes.
#[cfg(feature = "raw-packets")]
pub fn fuzz_bytes(data: &[u8]) {
    if let Ok(packet) = Packet::from_bytes(data, crate::trace::Direction::In) {
        let _ = Ruleset::from(&Interception::default()).fate(&packet);
    }
}

fn walk(rules: &Ruleset) {
    if let Ok(packet) = PACKET.parse() {
        let _ = rules.fate(&packet);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    /// Words that rules are made of, so that more than the first is read.
    fn words() -> impl Strategy<Value = String> {
        let known = [
            "*nat",
            "*mangle",
            "\n",
            "COMMIT",
            ":A - [0:0]",
            ":OUTPUT ACCEPT [0:0]",
            "-A",
            "-I",
            "-N",
            "OUTPUT",
            "A",
            "!",
            "-s",
            "-d",
            "10.0.0.0/8",
            "::1",
            "-i",
            "-o",
            "lo",
            "-p",
            "tcp",
            "udp",
            "-m",
            "owner",
            "--uid-owner",
            "7",
            "multiport",
            "--dports",
            "1,2:3",
            "--dport",
            "53",
            "--sport",
            "-j",
            "-g",
            "RETURN",
            "REDIRECT",
            "--to-ports",
            "MARK",
            "--set-xmark",
            "0x1/0xff",
            "CONNMARK",
            "--save-mark",
            "TPROXY",
            "--on-port",
            "CT",
            "--zone",
            "comment",
            "--comment",
            "\"a b\"",
            "conntrack",
            "--ctstate",
            "NEW",
            "add",
            "insert",
            "rule",
            "chain",
            "table",
            "inet",
            "t",
            "{",
            "}",
            "type nat hook output priority 0 ;",
            "index",
            "counter",
            "jump",
            "goto",
            "ip",
            "daddr",
            "!=",
            "meta",
            "l4proto",
            "mark",
            "set",
            "ct",
            "state",
            "redirect to :1",
            "accept",
            "\"",
            "\\",
            "'",
            ";",
            ",",
        ];
        let word =
            prop_oneof![8 => prop::sample::select(known.to_vec()).prop_map(str::to_owned), 1 => ".{0,6}"];
        prop::collection::vec(word, 0..40).prop_map(|words| words.join(" "))
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn text_never_panics(text in words()) {
            super::fuzz_save(text.replace(" \n ", "\n").as_bytes());
            super::fuzz_nft(text.replace(" \n ", "\n").as_bytes());
        }

        #[test]
        fn packets_never_panic(text in "(tcp|udp|icmp|1|x) [0-9.:\\[\\]]{0,12} > [0-9.:\\[\\]]{0,12} (in|out)?( (uid|gid|mark|via|state) [0-9a-zA-Z]{0,6}){0,3}") {
            super::fuzz_packet(text.as_bytes());
        }
    }

    #[cfg(feature = "raw-packets")]
    proptest! {
        #[test]
        fn bytes_never_panic(start in prop::sample::select(vec![0x45_u8, 0x46, 0x4f, 0x40, 0x60, 0x70]), rest in prop::collection::vec(any::<u8>(), 0..80)) {
            super::fuzz_bytes(&[&[start], &rest[..]].concat());
        }
    }

    /// What fuzzers found or began with stays right.
    #[test]
    fn the_corpus_is_replayed() {
        let corpus = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus");
        let mut files = 0;
        for entry in std::fs::read_dir(&corpus).expect("the corpus is there") {
            let data = std::fs::read(entry.expect("an entry").path()).expect("it can be read");
            super::fuzz_save(&data);
            super::fuzz_nft(&data);
            super::fuzz_packet(&data);
            files += 1;
        }
        assert!(files > 0);
    }
}
