//! `iptables-save` and `iptables-restore` text.

use std::borrow::Cow;
use std::fmt::Write;

use super::options::rule;
use super::{InvalidText, Restore};
use crate::net::Family;
use crate::ruleset::{CHAIN_PREFIX, Chain, Dialect, Hook, Ruleset, TableKind};

/// Longest chain name the kernel takes, with its terminator left out.
const CHAIN_NAME: usize = 28;

pub(super) fn read(text: &str, family: Family) -> Result<Ruleset, InvalidText> {
    let mut ruleset = Ruleset { chains: Vec::new(), dialect: Dialect::Iptables };
    let mut table = None;
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        let wrong = |reason, text: &str| InvalidText { line: index + 1, reason, text: text.to_owned() };
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if let Some(name) = line.strip_prefix('*') {
            let kind = TableKind::ALL.into_iter().find(|kind| kind.as_str() == name.trim());
            table = Some(kind.ok_or_else(|| wrong("not a table that is known here", name.trim()))?);
            continue;
        }
        let table_here = table.ok_or_else(|| wrong("stands before any table", line))?;
        if line == "COMMIT" {
            table = None;
            continue;
        }
        if let Some(declaration) = line.strip_prefix(':') {
            let mut words = declaration.split_whitespace();
            let name = words.next().ok_or_else(|| wrong("a chain without a name", line))?;
            let policy = words.next().unwrap_or("-");
            let drops = match policy {
                "ACCEPT" | "-" => false,
                "DROP" => true,
                other => return Err(wrong("not a policy", other)),
            };
            chain_name(name).map_err(|reason| wrong(reason, name))?;
            chain(&mut ruleset, table_here, name).drops = drops;
            continue;
        }
        let mut words = split(line).ok_or_else(|| wrong("a quote is not closed", line))?;
        // Counters, as `iptables-save -c` writes them.
        if words.first().is_some_and(|word| word.starts_with('[')) {
            words.remove(0);
        }
        let mut words = words.iter().map(String::as_str);
        let command = words.next().unwrap_or_default();
        let name = words.next().ok_or_else(|| wrong("a command without a chain", line))?;
        chain_name(name).map_err(|reason| wrong(reason, name))?;
        let words: Vec<&str> = words.collect();
        match command {
            "-N" | "--new" | "--new-chain" => drop(chain(&mut ruleset, table_here, name)),
            "-A" | "--append" => {
                let rule = rule(&words, family).map_err(|(reason, text)| wrong(reason, &text))?;
                chain(&mut ruleset, table_here, name).rules.push(rule);
            }
            "-I" | "--insert" => {
                let place = words.first().and_then(|word| word.parse::<usize>().ok());
                let words = if place.is_some() { &words[1..] } else { &words[..] };
                let rule = rule(words, family).map_err(|(reason, text)| wrong(reason, &text))?;
                let rules = &mut chain(&mut ruleset, table_here, name).rules;
                let at = place.unwrap_or(1).saturating_sub(1);
                if at > rules.len() {
                    return Err(wrong("a place behind the end of the chain", line));
                }
                rules.insert(at, rule);
            }
            other => return Err(wrong("not a command that is known here", other)),
        }
    }
    Ok(ruleset)
}

/// Whether a chain can be called this.
pub(super) fn chain_name(name: &str) -> Result<(), &'static str> {
    let fits = !name.is_empty() && name.len() <= CHAIN_NAME && !name.starts_with(['-', '!']);
    if fits && name.bytes().all(|byte| byte.is_ascii_graphic()) { Ok(()) } else { Err("not a chain's name") }
}

/// The chain of this name, made if need be.
fn chain<'a>(ruleset: &'a mut Ruleset, table: TableKind, name: &str) -> &'a mut Chain {
    let at = ruleset.chains.iter().position(|chain| chain.table == table && chain.name == name);
    let at = at.unwrap_or_else(|| {
        let chain = match Hook::from_name(name) {
            Some(hook) => Chain::base(table, hook),
            None => Chain::regular(table, Cow::Owned(name.to_owned())),
        };
        ruleset.chains.push(chain);
        ruleset.chains.len() - 1
    });
    &mut ruleset.chains[at]
}

/// Words as a shell would split them: double quotes hold blanks, a backslash holds the next character.
fn split(line: &str) -> Option<Vec<String>> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quoted = false;
    let mut chars = line.chars();
    while let Some(char) = chars.next() {
        match char {
            '"' => {
                quoted = !quoted;
                word.get_or_insert_default();
            }
            '\\' if quoted => word.get_or_insert_default().push(chars.next()?),
            blank if blank.is_ascii_whitespace() && !quoted => words.extend(word.take()),
            other => word.get_or_insert_default().push(other),
        }
    }
    words.extend(word);
    if quoted { None } else { Some(words) }
}

pub(super) fn write(ruleset: &Ruleset, family: Family, restore: Restore) -> String {
    let mut text = String::with_capacity(2048);
    let mut tables: Vec<TableKind> = Vec::new();
    for chain in &ruleset.chains {
        if !tables.contains(&chain.table) {
            tables.push(chain.table);
        }
    }
    for table in tables {
        let chains: Vec<&Chain> = ruleset.chains.iter().filter(|chain| chain.table == table).collect();
        let wanted = reachable(&chains, family);
        let wanted = |chain: &Chain| match restore {
            Restore::Whole => true,
            // A family that nothing leads to gets no chains.
            Restore::NoFlush => wanted.iter().any(|name| *name == chain.name),
        };
        let mut chains: Vec<&Chain> = chains.into_iter().filter(|chain| wanted(chain)).collect();
        if restore == Restore::NoFlush {
            // Chains are filled before packets are led there.
            chains.sort_by_key(|chain| chain.hook.is_some());
        }
        if chains.is_empty() {
            continue;
        }
        let _ = writeln!(text, "*{table}");
        for chain in &chains {
            match (restore, chain.hook) {
                (_, None) => drop(writeln!(text, ":{} - [0:0]", chain.name)),
                (Restore::Whole, Some(_)) => {
                    let policy = if chain.drops { "DROP" } else { "ACCEPT" };
                    let _ = writeln!(text, ":{} {policy} [0:0]", chain.name);
                }
                // Declaring a built-in chain would set its policy.
                (Restore::NoFlush, Some(_)) => {}
            }
        }
        for chain in &chains {
            for rule in chain.rules.iter().filter(|rule| rule.family.is_none_or(|only| only == family)) {
                let _ = write!(text, "-A {} ", chain.name);
                let _ = rule.write_iptables(&mut text, family);
                while text.ends_with(' ') {
                    text.pop();
                }
                text.push('\n');
            }
        }
        text.push_str("COMMIT\n");
    }
    text
}

/// Base chains with rules of this family, and what they lead to; for text without base chains all there is.
fn reachable<'a>(chains: &[&'a Chain], family: Family) -> Vec<&'a str> {
    let ours = |chain: &&&Chain| chain.name.starts_with(CHAIN_PREFIX);
    let mut found: Vec<&str> = Vec::new();
    let has_rules =
        |chain: &Chain| chain.rules.iter().any(|rule| rule.family.is_none_or(|only| only == family));
    let mut next: Vec<&Chain> =
        chains.iter().filter(|chain| chain.hook.is_some() && has_rules(chain)).copied().collect();
    if !chains.iter().any(|chain| chain.hook.is_some()) {
        next = chains.iter().filter(ours).copied().collect();
    }
    while let Some(chain) = next.pop() {
        if found.contains(&&*chain.name) {
            continue;
        }
        found.push(&chain.name);
        for rule in chain.rules.iter().filter(|rule| rule.family.is_none_or(|only| only == family)) {
            if let crate::ruleset::Target::Jump(name) | crate::ruleset::Target::Goto(name) = &rule.target {
                next.extend(chains.iter().filter(|chain| chain.name == *name).copied());
            }
        }
    }
    found
}
