//! The part of nft's language that interception uses: `add`, `insert`, `flush` and `delete` commands, one per line.

use ipnet::IpNet;

use super::InvalidText;
use crate::net::{Family, Interface, Owner, PortRange, Protocol, number};
use crate::ruleset::{Chain, CtState, Dialect, Hook, Match, Rule, Ruleset, TableKind, Target};

type Wrong = (&'static str, String);

/// Reads a script, or what `nft list table` prints.
pub(super) fn read(text: &str) -> Result<Ruleset, InvalidText> {
    let listed = text
        .lines()
        .map(str::trim)
        .find(|line| !line.is_empty())
        .is_some_and(|line| line.starts_with("table "));
    if listed { read_script(&commands(text)) } else { read_script(text) }
}

/// The commands that would make what a listing shows, line for line; chains first, so that jumps find them.
fn commands(listing: &str) -> String {
    let (mut chains, mut rules) = (String::new(), String::new());
    let (mut table, mut chain) = (String::new(), None);
    for line in listing.lines() {
        // `nft -a` writes each object's handle behind it.
        let line = line.split_once(" # handle ").map_or(line, |(line, _)| line).trim();
        if let Some(name) = line.strip_prefix("table ").and_then(|line| line.strip_suffix('{')) {
            name.trim().clone_into(&mut table);
            chains.push_str(&format!("add table {table}\n"));
        } else if let Some(name) = line.strip_prefix("chain ").and_then(|line| line.strip_suffix('{')) {
            let name = name.trim().to_owned();
            chains.push_str(&format!("add chain {table} {name}"));
            chain = Some(name);
        } else if line.starts_with("type ") {
            chains.push_str(&format!(" {{ {line} }}"));
        } else if line == "}" {
            if chain.take().is_some() {
                chains.push('\n');
            }
        } else if let Some(name) = chain.as_ref().filter(|_| !line.is_empty()) {
            rules.push_str(&format!("add rule {table} {name} {line}\n"));
        }
    }
    chains + &rules
}

fn read_script(text: &str) -> Result<Ruleset, InvalidText> {
    let mut ruleset = Ruleset { chains: Vec::new(), dialect: Dialect::Nftables };
    // Which table each chain stands in, beside the chain itself: names are unique only within one.
    let mut tables: Vec<String> = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        command(line, &mut ruleset, &mut tables).map_err(|(reason, text)| InvalidText {
            line: index + 1,
            reason,
            text,
        })?;
    }
    settle(&mut ruleset, &tables);
    Ok(ruleset)
}

fn command(line: &str, ruleset: &mut Ruleset, tables: &mut Vec<String>) -> Result<(), Wrong> {
    let words = words(line)?;
    let mut words = Words { words: &words, at: 0 };
    let verb = words.take()?;
    let object = words.take()?;
    let family = words.take()?;
    if family != "inet" {
        return Err(("only inet tables are read", family.to_owned()));
    }
    let table = words.take()?.to_owned();
    let find = |ruleset: &Ruleset, tables: &[String], name: &str| {
        ruleset.chains.iter().zip(tables).position(|(chain, own)| chain.name == name && *own == table)
    };
    match (verb, object) {
        ("add", "table") => Ok(()),
        ("flush", "table") => {
            for (chain, own) in ruleset.chains.iter_mut().zip(tables.iter()) {
                if *own == table {
                    chain.rules.clear();
                }
            }
            Ok(())
        }
        ("delete", "table") => {
            let mut keep = tables.iter().map(|own| *own != table);
            ruleset.chains.retain(|_| keep.next().unwrap_or(true));
            tables.retain(|own| *own != table);
            Ok(())
        }
        ("add", "chain") => {
            let name = chain_name(&mut words)?;
            let chain = chain(&name, &table, &mut words)?;
            if find(ruleset, tables, &name).is_none() {
                ruleset.chains.push(chain);
                tables.push(table);
            }
            Ok(())
        }
        ("add" | "insert", "rule") => {
            let name = words.take()?;
            let at = find(ruleset, tables, name).ok_or_else(|| ("no such chain", name.to_owned()))?;
            let place = match (verb, words.peek()) {
                (_, Some("index")) => {
                    words.at += 1;
                    let index: usize = words.parsed("not an index")?;
                    Some(if verb == "insert" { index } else { index + 1 })
                }
                ("insert", _) => Some(0),
                _ => None,
            };
            let read = rules(&mut words)?;
            let rules = &mut ruleset.chains[at].rules;
            let place = place.unwrap_or(rules.len());
            if place > rules.len() {
                return Err(("a place behind the end of the chain", line.to_owned()));
            }
            rules.splice(place..place, read);
            Ok(())
        }
        _ => Err(("not a command that is known here", format!("{verb} {object}"))),
    }
}

/// Blanks separate words; braces, commas and semicolons are words of their own.
fn words(line: &str) -> Result<Vec<String>, Wrong> {
    let mut words: Vec<String> = Vec::new();
    let mut word = String::new();
    let mut chars = line.chars();
    while let Some(char) = chars.next() {
        match char {
            '"' => {
                // A quoted word keeps its first quote, so that it is no keyword.
                word.push('"');
                let before = word.len();
                for char in chars.by_ref().take_while(|char| *char != '"') {
                    word.push(char);
                }
                if word.len() == before && !line.contains("\"\"") {
                    return Err(("a quote is not closed", line.to_owned()));
                }
            }
            '{' | '}' | ',' | ';' => {
                words.extend((!word.is_empty()).then(|| std::mem::take(&mut word)));
                words.push(char.to_string());
            }
            blank if blank.is_whitespace() => {
                words.extend((!word.is_empty()).then(|| std::mem::take(&mut word)));
            }
            other => word.push(other),
        }
    }
    words.extend((!word.is_empty()).then_some(word));
    Ok(words)
}

struct Words<'a> {
    words: &'a [String],
    at: usize,
}

impl<'a> Words<'a> {
    fn peek(&self) -> Option<&'a str> {
        self.words.get(self.at).map(String::as_str)
    }

    fn take(&mut self) -> Result<&'a str, Wrong> {
        let word = self.peek().ok_or_else(|| ("the line ends too early", String::new()))?;
        self.at += 1;
        Ok(word)
    }

    /// Takes the next words if they are these.
    fn given(&mut self, want: &[&str]) -> bool {
        let found = want
            .iter()
            .enumerate()
            .all(|(index, want)| self.words.get(self.at + index).is_some_and(|word| word == want));
        if found {
            self.at += want.len();
        }
        found
    }

    fn expect(&mut self, want: &str) -> Result<(), Wrong> {
        let word = self.take()?;
        if word == want { Ok(()) } else { Err(("not what should stand here", word.to_owned())) }
    }

    fn parsed<T: std::str::FromStr>(&mut self, reason: &'static str) -> Result<T, Wrong> {
        let word = self.take()?;
        word.trim_start_matches('"').parse().map_err(|_| (reason, word.to_owned()))
    }

    /// One item, or several in braces or with commas between.
    fn items<T>(&mut self, read: impl Fn(&str) -> Result<T, Wrong>) -> Result<Vec<T>, Wrong> {
        if !self.given(&["{"]) {
            let mut items = vec![read(self.take()?)?];
            while self.given(&[","]) {
                items.push(read(self.take()?)?);
            }
            return Ok(items);
        }
        let mut items = Vec::new();
        loop {
            items.push(read(self.take()?)?);
            match self.take()? {
                "," => {}
                "}" => return Ok(items),
                other => return Err(("not what should stand in a set", other.to_owned())),
            }
        }
    }
}

/// A name as nft takes it without quotes.
fn chain_name(words: &mut Words<'_>) -> Result<String, Wrong> {
    let name = words.take()?;
    let begins = name.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_');
    let goes_on = |byte: u8| byte.is_ascii_alphanumeric() || b"_-./\\".contains(&byte);
    if begins && name.bytes().all(goes_on) {
        Ok(name.to_owned())
    } else {
        Err(("not a chain's name", name.to_owned()))
    }
}

fn chain(name: &str, table: &str, words: &mut Words<'_>) -> Result<Chain, Wrong> {
    if !words.given(&["{", "type"]) {
        return Ok(Chain::regular(TableKind::Nat, name.to_owned()));
    }
    let kind = words.take()?;
    words.expect("hook")?;
    let hook = words.take()?;
    let hook = Hook::from_name(&hook.to_ascii_uppercase()).ok_or_else(|| ("not a hook", hook.to_owned()))?;
    words.expect("priority")?;
    let priority = priority(words)?;
    words.expect(";")?;
    let drops = words.given(&["policy", "drop", ";"]);
    if !drops {
        words.given(&["policy", "accept", ";"]);
    }
    words.expect("}")?;
    let table = match (kind, priority) {
        ("nat", _) => TableKind::Nat,
        ("filter" | "route", ..=-200) => TableKind::Raw,
        ("filter" | "route", -199..=-1) => TableKind::Mangle,
        ("filter", ..=49) => TableKind::Filter,
        ("filter", _) => TableKind::Security,
        _ => return Err(("not a chain type that is known here", format!("{kind} in {table}"))),
    };
    Ok(Chain { drops, name: name.to_owned().into(), ..Chain::base(table, hook) })
}

/// `-100`, `filter`, or as a listing writes it: `dstnat - 1`.
fn priority(words: &mut Words<'_>) -> Result<i32, Wrong> {
    const NAMES: [(&str, i32); 6] =
        [("raw", -300), ("mangle", -150), ("dstnat", -100), ("filter", 0), ("security", 50), ("srcnat", 100)];
    let word = words.take()?;
    let named = NAMES.iter().find(|(name, _)| *name == word).map(|(_, value)| *value);
    let base: i32 = match named {
        Some(value) => value,
        None => word.parse().map_err(|_| ("not a priority", word.to_owned()))?,
    };
    let sign = if words.given(&["+"]) {
        1
    } else if words.given(&["-"]) {
        -1
    } else {
        return Ok(base);
    };
    let offset: i32 = words.parsed("not a priority")?;
    offset
        .checked_mul(sign)
        .and_then(|offset| base.checked_add(offset))
        .ok_or_else(|| ("not a priority", word.to_owned()))
}

/// Regular chains stand where the base chains of their nft table lead; chains of the same name in different nft tables are
/// told apart by that.
fn settle(ruleset: &mut Ruleset, tables: &[String]) {
    for _ in 0..ruleset.chains.len() {
        for from in 0..ruleset.chains.len() {
            let kind = ruleset.chains[from].table;
            let targets: Vec<String> = ruleset.chains[from]
                .rules
                .iter()
                .filter_map(|rule| match &rule.target {
                    Target::Jump(chain) | Target::Goto(chain) => Some(chain.to_string()),
                    _ => None,
                })
                .collect();
            for to in 0..ruleset.chains.len() {
                let chain = &ruleset.chains[to];
                let meant = chain.hook.is_none()
                    && tables[to] == tables[from]
                    && targets.iter().any(|name| *name == chain.name);
                if meant {
                    ruleset.chains[to].table = kind;
                }
            }
        }
    }
}

/// One rule; several when an address stands in a set.
fn rules(words: &mut Words<'_>) -> Result<Vec<Rule>, Wrong> {
    let mut read = Read { alternatives: vec![Vec::new()], family: None, target: None, note: String::new() };
    while words.peek().is_some() {
        read.part(words)?;
    }
    let target = read.target.unwrap_or(Target::Count);
    let rule = |matches| Rule::new(matches, target.clone()).only(read.family).noted(read.note.clone());
    Ok(read.alternatives.into_iter().map(rule).collect())
}

struct Read {
    alternatives: Vec<Vec<Match>>,
    family: Option<Family>,
    target: Option<Target>,
    note: String,
}

impl Read {
    fn all(&mut self, each: Match) {
        for matches in &mut self.alternatives {
            matches.push(each.clone());
        }
    }

    fn part(&mut self, words: &mut Words<'_>) -> Result<(), Wrong> {
        if self.target_part(words)? {
            return Ok(());
        }
        if words.given(&["meta"])
            && !matches!(words.peek(), Some("l4proto" | "nfproto" | "skuid" | "skgid" | "mark"))
        {
            return Err(("not a property that is known here", words.take()?.to_owned()));
        }
        let word = words.take()?;
        match word {
            "counter" => {
                if words.given(&["packets"]) {
                    words.at += 3;
                }
            }
            "comment" => self.note = words.take()?.trim_start_matches('"').to_owned(),
            "nfproto" => {
                self.family = Some(match words.take()? {
                    "ipv4" => Family::V4,
                    "ipv6" => Family::V6,
                    other => return Err(("not a family", other.to_owned())),
                });
            }
            "l4proto" => {
                let invert = words.given(&["!="]);
                let protocol = words.parsed::<Protocol>("not a protocol")?;
                self.all(Match::Protocol { protocol, invert });
            }
            "tcp" | "udp" | "udplite" | "sctp" | "dccp" => self.ports(word, words)?,
            "ip" | "ip6" => self.address(word, words)?,
            "iifname" | "oifname" => {
                let invert = words.given(&["!="]);
                let name = words.take()?.trim_start_matches('"').replace('*', "+");
                let interface: Interface = name.parse().map_err(|_| ("not an interface", name.clone()))?;
                self.all(if word == "iifname" {
                    Match::InInterface { interface, invert }
                } else {
                    Match::OutInterface { interface, invert }
                });
            }
            "skuid" | "skgid" => {
                let invert = words.given(&["!="]);
                let owner = words.parsed::<Owner>("not an owner")?;
                self.all(if word == "skuid" {
                    Match::Uid { owner, invert }
                } else {
                    Match::Gid { owner, invert }
                });
            }
            "mark" => {
                let (value, mask, invert) = mark(words)?;
                self.all(Match::Mark { value, mask, invert });
            }
            "ct" if words.given(&["mark"]) => {
                let (value, mask, invert) = mark(words)?;
                self.all(Match::ConnMark { value, mask, invert });
            }
            "ct" if words.given(&["state"]) => {
                let state = |name: &str| {
                    let found =
                        CtState::ALL.into_iter().find(|state| state.as_str().eq_ignore_ascii_case(name));
                    found.ok_or_else(|| ("not a state", name.to_owned()))
                };
                let invert = words.given(&["!="]);
                let states = words.items(state)?;
                self.all(Match::State { states, invert });
            }
            other => return Err(("not a part of a rule that is known here", other.to_owned())),
        }
        Ok(())
    }

    fn ports(&mut self, protocol: &str, words: &mut Words<'_>) -> Result<(), Wrong> {
        let protocol = protocol.parse::<Protocol>().map_err(|_| ("not a protocol", protocol.to_owned()))?;
        let said = Match::Protocol { protocol, invert: false };
        if !self.alternatives[0].contains(&said) {
            self.all(said);
        }
        let side = words.take()?;
        let invert = words.given(&["!="]);
        let port = |word: &str| {
            let read = word.replace('-', ":").parse::<PortRange>();
            read.map_err(|_| ("not a port or range of ports", word.to_owned()))
        };
        let ports = words.items(port)?;
        self.all(match side {
            "dport" => Match::DestinationPorts { ports, invert },
            "sport" => Match::SourcePorts { ports, invert },
            other => return Err(("neither sport nor dport", other.to_owned())),
        });
        Ok(())
    }

    fn address(&mut self, family: &str, words: &mut Words<'_>) -> Result<(), Wrong> {
        let side = words.take()?;
        let invert = words.given(&["!="]);
        let net = |word: &str| {
            let net = word.parse::<IpNet>().or_else(|_| word.parse::<std::net::IpAddr>().map(IpNet::from));
            net.ok()
                .filter(|net| net.addr().is_ipv4() == (family == "ip"))
                .ok_or_else(|| ("not an address or prefix of this family", word.to_owned()))
        };
        let nets = words.items(net)?;
        let source = match side {
            "saddr" => true,
            "daddr" => false,
            other => return Err(("neither saddr nor daddr", other.to_owned())),
        };
        let each =
            |net| if source { Match::Source { net, invert } } else { Match::Destination { net, invert } };
        // Outside a set is outside each of its elements; inside is inside one.
        if invert {
            nets.into_iter().map(each).for_each(|each| self.all(each));
        } else {
            let alternatives = std::mem::take(&mut self.alternatives);
            for net in nets {
                self.alternatives.extend(alternatives.iter().cloned().map(|mut matches| {
                    matches.push(each(net));
                    matches
                }));
            }
        }
        Ok(())
    }

    /// A verdict or another statement, if one stands here.
    fn target_part(&mut self, words: &mut Words<'_>) -> Result<bool, Wrong> {
        let port = |words: &mut Words<'_>| {
            let word = words.take()?;
            let port = word.strip_prefix(':').and_then(|port| port.parse::<u16>().ok());
            port.ok_or_else(|| ("not a port", word.to_owned()))
        };
        let target = if words.given(&["accept"]) {
            Target::Accept
        } else if words.given(&["drop"]) {
            Target::Drop
        } else if words.given(&["return"]) {
            Target::Return
        } else if words.given(&["jump"]) {
            Target::Jump(chain_name(words)?.into())
        } else if words.given(&["goto"]) {
            Target::Goto(chain_name(words)?.into())
        } else if words.given(&["redirect", "to"]) {
            Target::Redirect { port: port(words)? }
        } else if words.given(&["tproxy"]) {
            let _ = words.given(&["ip"]) || words.given(&["ip6"]);
            words.expect("to")?;
            let port = port(words)?;
            if !words.given(&["meta", "mark", "set"]) {
                return Err(("tproxy without a mark", String::new()));
            }
            let mark = one_number(words)?;
            words.given(&["counter"]);
            words.expect("accept")?;
            Target::Tproxy { port, mark }
        } else if words.given(&["meta", "mark", "set", "ct", "mark"]) {
            Target::RestoreMark
        } else if words.given(&["meta", "mark", "set"]) {
            Target::SetMark { value: one_number(words)?, mask: u32::MAX }
        } else if words.given(&["ct", "mark", "set", "meta", "mark"])
            || words.given(&["ct", "mark", "set", "mark"])
        {
            Target::SaveMark
        } else if words.given(&["ct", "zone", "set"]) {
            Target::Zone(words.parsed("not a zone")?)
        } else {
            return Ok(false);
        };
        if self.target.replace(target).is_some() {
            return Err(("a second verdict", String::new()));
        }
        Ok(true)
    }
}

fn one_number(words: &mut Words<'_>) -> Result<u32, Wrong> {
    let word = words.take()?;
    number(word).ok_or_else(|| ("not a number", word.to_owned()))
}

fn mark(words: &mut Words<'_>) -> Result<(u32, u32, bool), Wrong> {
    let mask = if words.given(&["and"]) { one_number(words)? } else { u32::MAX };
    let invert = words.given(&["!="]);
    if !invert {
        words.given(&["=="]);
    }
    Ok((one_number(words)?, mask, invert))
}
